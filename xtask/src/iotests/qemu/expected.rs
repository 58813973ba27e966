//! The committed list of what each script comes to under each configuration.
//!
//! A section for each configuration, `[name]`; in it lines `pass: 001 002 ...`, `wording: ...`, and
//! one line for each of the others: `fail 061: reason`, `skip 045: reason`. A script that no line
//! names is one that says itself that it is not for the configuration, or has not been seen.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::path::Path;

use super::script::Found;
use crate::failure::{Failure, Result};

/// What a script is expected to come to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// It passes, line by line.
    Pass,
    /// It passes but for the words of messages, which are our own.
    Wording,
    /// It fails, and why.
    Fail(String),
    /// It is not run, and why.
    Skip(String),
}

impl Verdict {
    /// Whether a run came to this.
    pub(super) fn fits(&self, found: &Found) -> bool {
        matches!(
            (self, found),
            (Self::Pass, Found::Pass)
                | (Self::Wording, Found::Wording(_))
                | (Self::Fail(_), Found::Fail(_))
                | (Self::Skip(_), _)
        )
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass => f.write_str("pass"),
            Self::Wording => f.write_str("wording"),
            Self::Fail(reason) => write!(f, "fail: {reason}"),
            Self::Skip(reason) => write!(f, "skip: {reason}"),
        }
    }
}

/// The list.
#[derive(Default, PartialEq, Eq, Debug)]
pub(super) struct Expected {
    sections: BTreeMap<String, BTreeMap<String, Verdict>>,
}

/// The head of the file.
const HEAD: &str = "\
# What QEMU's shell tests come to with block-img and block-io in the places of qemu-img and qemu-io
# (cargo xtask iotests --qemu-src DIR). Tests that pass with neither are skipped. `wording`: the same
# but for the words of messages on standard error. Written anew by --write-expected; reasons are kept.
";

/// Reason of what was found without one.
const NEW: &str = "not looked at";

impl Expected {
    /// Reads the list; none is an empty one.
    pub(super) fn read(path: &Path) -> Result<Self> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).map_err(|problem| Failure::Output {
                command: path.display().to_string(),
                problem,
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(Failure::io(format!("read {}", path.display()))(error)),
        }
    }

    fn parse(text: &str) -> std::result::Result<Self, String> {
        let mut sections: BTreeMap<String, BTreeMap<String, Verdict>> = BTreeMap::new();
        let mut name = None;
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = || format!("line {number}: {line:?} is no entry");
            if let Some(section) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                name = Some(section.to_owned());
                sections.entry(section.to_owned()).or_default();
                continue;
            }
            let section =
                name.as_ref().and_then(|name| sections.get_mut(name)).ok_or_else(wrong)?;
            let (head, tail) = line.split_once(':').ok_or_else(wrong)?;
            let words: Vec<_> = head.split_whitespace().collect();
            let reason = tail.trim().to_owned();
            let mut all = |verdict: &Verdict| {
                section
                    .extend(tail.split_whitespace().map(|one| (one.to_owned(), verdict.clone())));
            };
            match words.as_slice() {
                ["pass"] => all(&Verdict::Pass),
                ["wording"] => all(&Verdict::Wording),
                ["fail", script] => {
                    drop(section.insert((*script).to_owned(), Verdict::Fail(reason)))
                }
                ["skip", script] => {
                    drop(section.insert((*script).to_owned(), Verdict::Skip(reason)))
                }
                _ => return Err(wrong()),
            }
        }
        Ok(Self { sections })
    }

    /// What is expected of a script.
    pub(super) fn get(&self, configuration: &str, script: &str) -> Option<&Verdict> {
        self.sections.get(configuration)?.get(script)
    }

    /// Whether a run came to what the list says. It leaves out what cannot run.
    pub(super) fn fits(&self, configuration: &str, script: &str, found: &Found) -> bool {
        match self.get(configuration, script) {
            Some(verdict) => verdict.fits(found),
            None => matches!(found, Found::NotRun(_)),
        }
    }

    /// Takes over what was found: with our programs as it is, with the installed ones (`baseline`)
    /// what does not pass there as skipped.
    pub(super) fn set(&mut self, configuration: &str, script: &str, found: &Found, baseline: bool) {
        let section = self.sections.entry(configuration.to_owned()).or_default();
        let old = section.get(script).cloned();
        let reason = match old {
            Some(Verdict::Fail(reason) | Verdict::Skip(reason)) => reason,
            _ => NEW.to_owned(),
        };
        let verdict = match (found, baseline) {
            (Found::NotRun(_), _) => {
                section.remove(script);
                return;
            }
            (Found::Fail(_) | Found::Wording(_), true) => Verdict::Skip(reason),
            (Found::Pass, true) => match old_or_new(section.get(script)) {
                Some(verdict) => verdict,
                None => Verdict::Fail(reason),
            },
            (Found::Pass, false) => Verdict::Pass,
            (Found::Wording(_), false) => Verdict::Wording,
            (Found::Fail(_), false) => Verdict::Fail(reason),
        };
        section.insert(script.to_owned(), verdict);
    }

    /// Writes the list.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let what = format!("write {}", path.display());
        std::fs::write(path, self.text()).map_err(Failure::io(what))
    }

    fn text(&self) -> String {
        let mut text = HEAD.to_owned();
        for (name, section) in &self.sections {
            let _ = write!(text, "\n[{name}]\n");
            for (word, wanted) in [("pass", Verdict::Pass), ("wording", Verdict::Wording)] {
                let names = section.iter().filter(|(_, verdict)| **verdict == wanted);
                let names: Vec<_> = names.map(|(name, _)| name.as_str()).collect();
                for chunk in names.chunks(20) {
                    let _ = writeln!(text, "{word}: {}", chunk.join(" "));
                }
            }
            for (script, verdict) in section {
                let _ = match verdict {
                    Verdict::Pass | Verdict::Wording => Ok(()),
                    Verdict::Fail(reason) => writeln!(text, "fail {script}: {reason}"),
                    Verdict::Skip(reason) => writeln!(text, "skip {script}: {reason}"),
                };
            }
        }
        text
    }
}

/// What stays as it is when the installed programs pass.
fn old_or_new(old: Option<&Verdict>) -> Option<Verdict> {
    old.filter(|verdict| !matches!(verdict, Verdict::Skip(_))).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_read_as_it_was_written() {
        let mut list = Expected::default();
        list.set("raw", "001", &Found::Pass, false);
        list.set("raw", "002", &Found::Wording(Vec::new()), false);
        list.set("raw", "tests/x", &Found::Fail(Vec::new()), false);
        list.set("qcow2", "003", &Found::Fail(Vec::new()), true);
        list.set("qcow2", "004", &Found::NotRun(String::new()), false);
        assert_eq!(Expected::parse(&list.text()), Ok(list));
    }

    #[test]
    fn what_was_taken_over_is_no_surprise() {
        let not_run = Found::NotRun(String::new());
        for found in [Found::Pass, Found::Wording(Vec::new()), Found::Fail(Vec::new()), not_run] {
            let mut list = Expected::default();
            list.set("raw", "001", &found, false);
            assert!(list.fits("raw", "001", &found), "{}", found.word());
            let other = if found == Found::Pass { Found::Fail(Vec::new()) } else { Found::Pass };
            assert!(!list.fits("raw", "001", &other), "{}", found.word());
        }
    }

    #[test]
    fn reasons_outlive_new_runs() {
        let mut list = Expected::parse("[raw]\nfail 001: no such device\n").unwrap();
        list.set("raw", "001", &Found::Fail(Vec::new()), false);
        assert_eq!(list.get("raw", "001"), Some(&Verdict::Fail("no such device".to_owned())));
    }

    #[test]
    fn a_line_that_is_no_entry_is_named() {
        let error = Expected::parse("[raw]\nbogus 1: x\n").unwrap_err();
        assert!(error.contains("line 2"), "{error}");
        assert!(Expected::parse("pass: 001\n").is_err());
    }

    #[test]
    fn what_fits_is_no_surprise() {
        assert!(Verdict::Pass.fits(&Found::Pass));
        assert!(!Verdict::Pass.fits(&Found::Wording(Vec::new())));
        assert!(!Verdict::Fail(String::new()).fits(&Found::Pass));
    }
}
