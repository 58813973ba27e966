//! The list of mutations: what each changes, what that breaks, and the tests that must notice.
//!
//! `xtask/mutants/*.txt` has one block for each:
//!
//! ```text
//! # A comment, up to here.
//! mutant  tail-not-read
//! breaks  The last block of an unaligned write is not read first: what stood behind the write is lost.
//! file    block-core/src/request/write.rs
//! test    block-core request_faults any_failure
//! added   any_failure_leaves_the_block
//! @@
//!  a line that stays
//! -a line that goes
//! +a line that comes in its place
//! ```
//!
//! `test` names a package, one of its files of tests (or `lib`), and words of which a test's name must hold one;
//! `added` a test that was written because the mutation survived all that there were. The change is of whole
//! lines, which must be in the file exactly once: those with ` ` and `-` before them.

use std::fmt;

/// One mutation.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Mutation {
    pub(crate) name: String,
    /// What goes wrong, in a sentence.
    pub(crate) breaks: String,
    /// The file that is changed, from the workspace's root.
    pub(crate) file: String,
    /// Who must notice.
    pub(crate) test: Test,
    /// The test that did not exist before.
    pub(crate) added: Option<String>,
    pub(super) before: String,
    pub(super) after: String,
}

/// Some tests of one program.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(crate) struct Test {
    pub(crate) package: String,
    /// The file below `tests/`, or [`LIB`].
    pub(crate) target: String,
    /// At least one; a test is run whose name holds one of them.
    pub(crate) filters: Vec<String>,
}

/// The target of the tests inside of a library.
pub(crate) const LIB: &str = "lib";

impl Mutation {
    /// The mutated file.
    pub(crate) fn apply(&self, content: &str) -> Result<String, String> {
        let mut places = content.match_indices(&self.before).map(|(at, _)| at);
        let starts_line = |at: &usize| *at == 0 || content[..*at].ends_with('\n');
        let found: Vec<usize> = places.by_ref().filter(starts_line).collect();
        match found[..] {
            [at] => {
                let (head, tail) = (&content[..at], &content[at + self.before.len()..]);
                Ok([head, &self.after, tail].concat())
            }
            _ => Err(format!("what it changes is {} times in {}", found.len(), self.file)),
        }
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.package, self.target, self.filters.join(" "))
    }
}

/// The mutations of a file of the list.
pub(crate) fn parse(text: &str) -> Result<Vec<Mutation>, String> {
    let mut found: Vec<Mutation> = Vec::new();
    let mut inside = false;
    for (index, line) in text.lines().enumerate() {
        let at = |problem: String| format!("line {}: {problem}", index + 1);
        let Some(mutation) = take_line(&mut found, line, &mut inside).map_err(at)? else {
            continue;
        };
        found.push(mutation);
    }
    match found.iter().find_map(|mutation| Some((mutation, missing(mutation)?))) {
        Some((mutation, what)) => Err(format!("{}: says no {what}", mutation.name)),
        None => Ok(found),
    }
}

/// Understands one line: a mutation that it begins, or something about the last one of `found`.
fn take_line(
    found: &mut [Mutation],
    line: &str,
    inside: &mut bool,
) -> Result<Option<Mutation>, String> {
    let (sign, rest) = line.split_at_checked(1).unwrap_or((line, ""));
    if *inside && ["-", "+", " "].contains(&sign) {
        let last = found.last_mut().ok_or("a change of nothing")?;
        for (text, not) in [(&mut last.before, "+"), (&mut last.after, "-")] {
            if sign != not {
                text.push_str(rest);
                text.push('\n');
            }
        }
        return Ok(None);
    }
    *inside = false;
    if line.trim().is_empty() || sign == "#" {
        return Ok(None);
    }
    let (word, value) = line.split_once(' ').unwrap_or((line, ""));
    let value = value.trim().to_owned();
    if word == "mutant" {
        return Ok(Some(Mutation { name: value, ..Mutation::default() }));
    }
    let last = found.last_mut().ok_or_else(|| format!("`{word}` before any mutant"))?;
    match word {
        "breaks" => last.breaks = value,
        "file" => last.file = value,
        "test" if last.test == Test::default() => last.test = test(&value)?,
        "added" => last.added = Some(value),
        "@@" => *inside = true,
        _ => return Err(format!("`{word}` means nothing here")),
    }
    Ok(None)
}

fn test(value: &str) -> Result<Test, String> {
    let mut words = value.split_whitespace().map(str::to_owned);
    match (words.next(), words.next(), words.collect::<Vec<_>>()) {
        (Some(package), Some(target), filters) if !filters.is_empty() => {
            Ok(Test { package, target, filters })
        }
        _ => Err("a test is a package, a file of tests, and words of names".to_owned()),
    }
}

/// What a mutation must say and does not.
fn missing(mutation: &Mutation) -> Option<&'static str> {
    let said = [
        ("name", &mutation.name),
        ("breaks", &mutation.breaks),
        ("file", &mutation.file),
        ("test", &mutation.test.package),
        ("line that goes or stays", &mutation.before),
    ];
    let silent = said.iter().find(|(_, value)| value.is_empty()).map(|(what, _)| *what);
    silent.or_else(|| (mutation.before == mutation.after).then_some("change"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "# x\nmutant  m\nbreaks  All of it.\nfile  a.rs\ntest  p t one two\n@@\n";

    fn one(hunk: &str) -> Mutation {
        let mut found = parse(&format!("{HEAD}{hunk}\n# y\n")).unwrap();
        assert_eq!(found.len(), 1);
        found.remove(0)
    }

    #[test]
    fn a_change_is_of_whole_lines() {
        let mutation = one(" a();\n-b();\n+c();");
        assert_eq!(mutation.name, "m");
        assert_eq!(mutation.test.to_string(), "p t one two");
        let content = "x\na();\nb();\ny\n";
        assert_eq!(mutation.apply(content).unwrap(), "x\na();\nc();\ny\n");
        assert!(mutation.apply("x\nb();\n").is_err(), "the line that stays is missing");
        assert!(mutation.apply("x\n  a();\nb();\n").is_err(), "another line");
    }

    #[test]
    fn what_is_in_the_file_twice_or_never_is_an_error() {
        let mutation = one("-a\n+b");
        assert_eq!(mutation.apply("a\n").unwrap(), "b\n");
        assert!(mutation.apply("a\na\n").unwrap_err().contains("2 times"));
        assert!(mutation.apply("c\n").unwrap_err().contains("0 times"));
        assert_eq!(mutation.apply("ba\na\n").unwrap(), "ba\nb\n", "the end of a line is no line");
    }

    #[test]
    fn what_is_missing_or_means_nothing_is_an_error() {
        assert!(parse(HEAD).is_err(), "no change");
        assert!(parse(&format!("{HEAD} a\n")).is_err(), "no change either");
        assert!(parse("file a\n").is_err());
        assert!(parse("mutant a\nnonsense b\n").unwrap_err().contains("line 2"));
        assert!(parse("mutant a\ntest p t\n").is_err(), "all tests of a file are too many");
        assert!(parse(&HEAD.replace("breaks", "# breaks")).is_err());
        assert_eq!(parse("# nothing\n"), Ok(vec![]));
    }
}
