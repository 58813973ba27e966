//! From the text of a file to a [`Scenario`].

use super::error::{Problem, ScenarioError};
use super::expected::{Expected, Variant};
use super::head::{Head, KEYS};
use super::select::Selection;
use super::{Scenario, Step};

/// What a line of output starts with.
pub(super) const INDENT: &str = "  ";

/// Takes a text apart.
pub(super) fn parse(name: &str, text: &str) -> Result<Scenario, ScenarioError> {
    let source: Vec<String> = text.lines().map(str::to_owned).collect();
    let failed = |(line, problem)| ScenarioError { file: name.to_owned(), line, problem };
    let (head, first) = parse_head(&source).map_err(failed)?;
    let steps = parse_steps(&source, first).map_err(failed)?;
    if steps.is_empty() {
        return Err(failed((source.len().max(1), Problem::NoSteps)));
    }
    Ok(Scenario { name: name.to_owned(), head, steps, source })
}

/// A line, counted from one, and what is wrong with it.
type Fault = (usize, Problem);

/// The head, and the index of the first line after it.
fn parse_head(source: &[String]) -> Result<(Head, usize), Fault> {
    let mut head: Option<Head> = None;
    let mut seen: Vec<&str> = Vec::new();
    for (index, line) in source.iter().enumerate() {
        let number = index + 1;
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            let head = head.ok_or((number, Problem::Missing("title")))?;
            return Ok((head, number));
        }
        let (key, value) = line.split_once(':').ok_or((number, Problem::NotKey))?;
        let value = value.trim();
        if !KEYS.contains(&key) {
            return Err((number, Problem::UnknownKey(key.to_owned())));
        }
        if seen.contains(&key) {
            return Err((number, Problem::Twice(key.to_owned())));
        }
        seen.push(key);
        match &mut head {
            None if key == "title" => head = Some(Head::new(value.to_owned())),
            None => return Err((number, Problem::Missing("title"))),
            Some(head) => head.set(key, value).map_err(|problem| (number, problem))?,
        }
    }
    let problem = if head.is_none() { Problem::Missing("title") } else { Problem::NoSteps };
    Err((source.len().max(1), problem))
}

fn parse_steps(source: &[String], first: usize) -> Result<Vec<Step>, Fault> {
    let mut steps: Vec<Step> = Vec::new();
    // Whether the lines above belong to a step, so that output may follow.
    let mut open = false;
    for (index, line) in source.iter().enumerate().skip(first) {
        let number = index + 1;
        if line.trim().is_empty() || line.starts_with('#') {
            open = false;
            continue;
        }
        if line.starts_with(char::is_whitespace) {
            let output = line.strip_prefix(INDENT).ok_or((number, Problem::Indentation))?;
            let step = steps.last_mut().filter(|_| open);
            let variant = step.and_then(|step| step.expected.variants.last_mut());
            let variant = variant.ok_or((number, Problem::OutputWithoutStep))?;
            variant.lines.push(output.to_owned());
            variant.at.end = number;
            continue;
        }
        if let Some(tags) = line.strip_prefix('?') {
            let step = steps.last_mut().filter(|_| open);
            let step = step.ok_or((number, Problem::OutputWithoutStep))?;
            let only = Selection::parse(tags);
            if only.is_empty() {
                return Err((number, Problem::NoTags));
            }
            let (lines, at) = (Vec::new(), number..number);
            step.expected.variants.push(Variant { only: Some(only), lines, at });
            continue;
        }
        let (only, text) = match line.strip_prefix("if ") {
            None => (None, line.as_str()),
            Some(rest) => {
                let (tags, text) = rest.split_once(": ").ok_or((number, Problem::If))?;
                (Some(Selection::parse(tags)), text)
            }
        };
        let variant = Variant { only: None, lines: Vec::new(), at: number..number };
        let expected = Expected { variants: vec![variant] };
        steps.push(Step { line: number, only, text: text.trim().to_owned(), expected });
        open = true;
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::super::Outputs;
    use super::*;

    const TEXT: &str = "title: It holds what was written\n\
        clause: qcow2 document, \"Cluster mapping\"\n\
        formats: qcow2 !qcow2-v2\n\
        size: 1M\n\
        # A comment.\n\
        \n\
        create\n\
        # Another comment.\n\
        write -P 1 0 64k\n\
        \x20 wrote 65536/65536 bytes at offset 0\n\
        map\n\
        \x20 a\n\
        \x20   b\n\
        ? qcow2-v3 !memory\n\
        \x20 c\n\
        ? file\n\
        if file crash: check\n";

    fn scenario() -> Scenario {
        Scenario::parse("name", TEXT).unwrap()
    }

    fn tags(tags: &[&str]) -> super::super::Tags {
        tags.iter().map(|tag| (*tag).to_owned()).collect()
    }

    #[test]
    fn a_text_is_taken_apart() {
        let scenario = scenario();
        assert_eq!(scenario.head.title, "It holds what was written");
        assert_eq!(scenario.head.size, "1M");
        assert!(scenario.head.allows(&tags(&["qcow2", "file"])));
        assert!(!scenario.head.allows(&tags(&["qcow2", "qcow2-v2"])));
        assert!(!scenario.head.allows(&tags(&["raw"])));
        let texts: Vec<_> = scenario.steps.iter().map(|step| (step.line, &*step.text)).collect();
        assert_eq!(texts, [(7, "create"), (9, "write -P 1 0 64k"), (11, "map"), (17, "check")]);
        let map = &scenario.steps[2].expected;
        assert_eq!(map.lines(&tags(&["raw"])), ["a", "  b"]);
        assert_eq!(map.lines(&tags(&["qcow2-v3", "file"])), ["c"]);
        assert!(map.lines(&tags(&["qcow2-v3", "memory", "file"])).is_empty());
        let only = scenario.steps[3].only.as_ref().unwrap();
        assert!(only.means(&tags(&["crash"])) && !only.means(&tags(&["memory"])));
    }

    #[test]
    fn nothing_new_is_written_as_it_was() {
        assert_eq!(scenario().rewrite(&Outputs::new()), TEXT);
        let same = scenario();
        let mut outputs = Outputs::new();
        for (index, step) in same.steps.iter().enumerate() {
            for (number, variant) in step.expected.variants().iter().enumerate() {
                outputs.insert((index, number), variant.lines.clone());
            }
        }
        assert_eq!(same.rewrite(&outputs), TEXT);
    }

    #[test]
    fn what_came_is_put_in_place_of_what_was_expected() {
        let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
        let outputs = Outputs::from([
            ((0, 0), lines(&["made"])),
            ((1, 0), lines(&[])),
            ((2, 2), lines(&["d", " e"])),
        ]);
        let text = scenario().rewrite(&outputs);
        let expected = TEXT
            .replace("create\n", "create\n  made\n")
            .replace("  wrote 65536/65536 bytes at offset 0\n", "")
            .replace("? file\n", "? file\n  d\n   e\n");
        assert_eq!(text, expected);
        let again = Scenario::parse("name", &text).unwrap();
        assert_eq!(again.steps[2].expected.lines(&tags(&["file"])), ["d", " e"]);
        assert_eq!(again.rewrite(&Outputs::new()), text);
    }

    #[test]
    fn errors_name_file_and_line() {
        for (text, expect) in [
            ("", "x.iot:1: the head has no line 'title:'"),
            ("\ncreate\n", "x.iot:1: the head has no line 'title:'"),
            ("size: 1M\ntitle: a\n\ncreate\n", "x.iot:1: the head has no line 'title:'"),
            ("title: a\nbogus: b\n\ncreate\n", "x.iot:2: the head has no 'bogus'"),
            ("title: a\nsize: 1\nsize: 2\n\ncreate\n", "x.iot:3: 'size' was said already"),
            ("title: a\ntimeout: 0\n\ncreate\n", "x.iot:2: '0' is no number"),
            ("title: a\ncreate\n", "x.iot:2: expected 'key: value'"),
            ("title: a\n", "x.iot:1: there is no step"),
            ("title: a\n\n# nothing\n", "x.iot:3: there is no step"),
            ("title: a\n\n  out\n", "x.iot:3: output without a step"),
            ("title: a\n\ncreate\n\n  out\n", "x.iot:5: output without a step"),
            ("title: a\n\ncreate\n out\n", "x.iot:4: output is indented by two spaces"),
            ("title: a\n\ncreate\n\tout\n", "x.iot:4: output is indented by two spaces"),
            ("title: a\n\ncreate\n?\n", "x.iot:4: '?' needs tags"),
            ("title: a\n\n? raw\n", "x.iot:3: output without a step"),
            ("title: a\n\nif raw create\n", "x.iot:3: expected 'if TAGS: WORDS'"),
        ] {
            let error = Scenario::parse("x", text).unwrap_err().to_string();
            assert!(error.starts_with(expect), "{text:?}: {error}");
        }
    }
}
