//! Rules as users write them: a configuration file, or options of the node.
//!
//! ```text
//! # a comment
//! [inject-error]
//! event = "write_aio"
//! errno = "28"
//! once = "on"
//! ```
//!
//! Invariants: at most [`MAX_CONFIG_BYTES`] are read, and at most [`MAX_RULES`] rules are kept. A name that
//! no rule has, or a value that is none, is an error that names it.

use std::collections::BTreeMap;

use super::events;
use super::rules::{Action, Delivery, Inject, IoTypes, Lifetime, Rule};
use crate::error::{OpenError, Problem};
use crate::options::Options;
use crate::range::SECTOR_SIZE;

/// Longest configuration file.
pub(super) const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Most rules of one filter.
const MAX_RULES: usize = 4096;

/// The kinds of rules, by the name of their section.
const SECTIONS: [&str; 2] = [INJECT_ERROR, SET_STATE];
const INJECT_ERROR: &str = "inject-error";
const SET_STATE: &str = "set-state";

/// Reads the text of a configuration file.
pub(super) fn parse(text: &str) -> Result<Vec<Rule>, OpenError> {
    let mut sections: Vec<(&'static str, Options)> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |what: &str| OpenError::Text {
            format: "blkdebug",
            what: "configuration",
            problem: format!("line {}: {what}", number.saturating_add(1)),
        };
        if let Some(head) = line.strip_prefix('[') {
            let (head, _) = head.split_once(']').ok_or_else(|| wrong("']' is missing"))?;
            // A name in quotes may follow, which means nothing here.
            let name = head.split_whitespace().next().unwrap_or_default();
            let section = SECTIONS.into_iter().find(|section| *section == name);
            let unknown = || wrong(&format!("there is no section '{name}'"));
            sections.push((section.ok_or_else(unknown)?, Options::new()));
            continue;
        }
        let (name, value) = assignment(line).ok_or_else(|| wrong("expected name = \"value\""))?;
        let (_, options) =
            sections.last_mut().ok_or_else(|| wrong("no section begins before it"))?;
        options.set(name, value);
    }
    sections.into_iter().map(|(section, options)| rule(section, options)).collect()
}

/// The two sides of `name = "value"`; what follows the value is left out.
fn assignment(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.split_once('=')?;
    let (value, _) = value.trim_start().strip_prefix('"')?.split_once('"')?;
    Some((name.trim_end(), value))
}

/// Takes the rules among the options of a node: `inject-error.0.event`, `set-state.1.new_state`, ...
pub(super) fn take(options: &mut Options) -> Result<Vec<Rule>, OpenError> {
    let mut rules = Vec::new();
    for section in SECTIONS {
        let mut numbered: BTreeMap<u32, Options> = BTreeMap::new();
        for (name, value) in options.take_sub(section).iter() {
            let split = name.split_once('.');
            let parsed = split.and_then(|(number, rest)| Some((number.parse().ok()?, rest)));
            let unknown = || unknown(&format!("{section}.{name}"));
            let (number, rest) = parsed.ok_or_else(unknown)?;
            numbered.entry(number).or_default().set(rest, value);
        }
        for options in numbered.into_values() {
            rules.push(rule(section, options)?);
        }
    }
    Ok(rules)
}

/// Refuses more rules than anybody writes by hand.
pub(super) fn check_count(rules: &[Rule]) -> Result<(), OpenError> {
    if rules.len() > MAX_RULES {
        let value = rules.len().to_string();
        let problem = Problem::Above(u64::try_from(MAX_RULES).unwrap_or(u64::MAX));
        return Err(OpenError::OptionValue { option: "config", value, problem });
    }
    Ok(())
}

/// One rule from the options of its section.
fn rule(section: &'static str, mut options: Options) -> Result<Rule, OpenError> {
    let event = options.take("event").ok_or_else(|| OpenError::Option {
        option: format!("{section}.event"),
        problem: Problem::Missing,
    })?;
    let event = events::named(&event).ok_or(OpenError::OptionValue {
        option: "event",
        value: event,
        problem: Problem::Unknown,
    })?;
    let state = options.take_size("state")?.filter(|state| *state != 0);
    let action = if section == SET_STATE {
        Action::SetState(options.take_size("new_state")?.unwrap_or(0))
    } else {
        Action::Inject(inject(&mut options)?)
    };
    options.finish()?;
    Ok(Rule { event, state, action })
}

fn inject(options: &mut Options) -> Result<Inject, OpenError> {
    let errno = match options.take_size("errno")? {
        None => libc::EIO,
        Some(number) => i32::try_from(number).map_err(|_| OpenError::OptionValue {
            option: "errno",
            value: number.to_string(),
            problem: Problem::Above(i32::MAX.unsigned_abs().into()),
        })?,
    };
    let types = match options.take("iotype") {
        None => IoTypes::UNLESS_SAID,
        Some(name) => IoTypes::named(&name).ok_or(OpenError::OptionValue {
            option: "iotype",
            value: name,
            problem: Problem::Unknown,
        })?,
    };
    let once = options.take_bool("once")?.unwrap_or(false);
    let immediately = options.take_bool("immediately")?.unwrap_or(false);
    // -1 is what it is without.
    let sector = match options.peek("sector") {
        Some("-1") => options.take("sector").and(None),
        _ => options.take_size("sector")?,
    };
    Ok(Inject {
        errno,
        types,
        lifetime: if once { Lifetime::Once } else { Lifetime::Always },
        delivery: if immediately { Delivery::AtOnce } else { Delivery::NextTurn },
        offset: sector.map(|sector| sector.saturating_mul(SECTOR_SIZE)),
    })
}

fn unknown(option: &str) -> OpenError {
    OpenError::Option { option: option.to_owned(), problem: Problem::Unknown }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_file_becomes_rules_in_order() {
        let text = "# comment\n\n[inject-error \"first\"]\n  event = \"read_aio\" # why\nerrno=\"28\"\n\
            once = \"on\"\nsector = \"8\"\nstate = \"2\"\n\n[set-state]\nevent = \"l2_load\"\n\
            new_state = \"3\"\n";
        let inject = Inject {
            errno: 28,
            types: IoTypes::UNLESS_SAID,
            lifetime: Lifetime::Once,
            delivery: Delivery::NextTurn,
            offset: Some(4096),
        };
        let first = Rule { event: "read_aio", state: Some(2), action: Action::Inject(inject) };
        let second = Rule { event: "l2_load", state: None, action: Action::SetState(3) };
        assert_eq!(parse(text), Ok(vec![first, second]));
        assert_eq!(parse(""), Ok(Vec::new()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("[bogus]", "line 1: there is no section 'bogus'"),
            ("[set-state", "line 1: ']' is missing"),
            ("event = \"x\"", "line 1: no section begins before it"),
            ("[set-state]\nevent=read_aio", "line 2: expected name"),
            ("[set-state]\nnew_state = \"1\"", "'set-state.event': is missing"),
            ("[set-state]\nevent = \"bogus\"", "'event=bogus'"),
            ("[set-state]\nevent = \"none\"\nerrno = \"1\"", "'errno'"),
            ("[inject-error]\nevent = \"none\"\nerrno = \"x\"", "'errno'"),
            ("[inject-error]\nevent = \"none\"\nerrno = \"4294967296\"", "'errno=4294967296'"),
            ("[inject-error]\nevent = \"none\"\niotype = \"x\"", "'iotype=x'"),
            ("[inject-error]\nevent = \"none\"\nonce = \"x\"", "'once'"),
        ];
        for (text, expect) in cases {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(expect), "{text:?}: {error}");
        }
    }

    #[test]
    fn options_are_taken_by_number() {
        let mut options = Options::new()
            .with("inject-error.10.event", "write_aio")
            .with("inject-error.2.event", "read_aio")
            .with("inject-error.2.iotype", "flush")
            .with("set-state.0.event", "none")
            .with("image.filename", "x");
        let rules = take(&mut options).unwrap();
        let events: Vec<_> = rules.iter().map(|rule| rule.event).collect();
        assert_eq!(events, ["read_aio", "write_aio", "none"]);
        assert_eq!(options.iter().collect::<Vec<_>>(), [("image.filename", "x")]);
        let mut bad = Options::new().with("inject-error.x.event", "none");
        assert!(take(&mut bad).unwrap_err().to_string().contains("inject-error.x.event"));
    }

    proptest! {
        #[test]
        fn any_text_is_rules_or_refused(text in "(\\[(inject-error|set-state)\\]|event|errno|=|\"|none|[0-9]|\n| ){0,40}|\\PC{0,60}") {
            let _ = parse(&text);
        }
    }
}
