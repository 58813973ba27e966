//! `json:{"driver": "qcow2", "file": {"filename": "a.qcow2"}}` as flat options: the name of an inner
//! value is made of the outer names and, in arrays, its index, joined by dots.
//!
//! Strings may stand in single quotes too, which saves escapes in a shell. Numbers and booleans are
//! kept as their text (`true` as `on`), and `null` becomes the empty text (`backing` without a file).

use block_core::Options;

use super::{JsonProblem, MAX_TEXT_BYTES, SpecError, add};

/// Most objects and arrays inside each other.
pub const MAX_DEPTH: usize = 64;

/// What a name starts with to be read by this module.
pub const PREFIX: &str = "json:";

/// Reads the text after `json:`, which holds one object.
pub fn parse(text: &str) -> Result<Options, SpecError> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(SpecError::TooLong(text.len()));
    }
    let mut parser = Parser { text, at: 0, options: Options::new() };
    parser.skip_space();
    if parser.peek() != Some('{') {
        return Err(parser.expected("'{'"));
    }
    parser.value(&mut String::new(), 0)?;
    parser.skip_space();
    match parser.peek() {
        None => Ok(parser.options),
        Some(_) => Err(parser.error(JsonProblem::Trailing)),
    }
}

/// Invariant: `at <= text.len()`, on a character boundary.
struct Parser<'a> {
    text: &'a str,
    at: usize,
    options: Options,
}

impl Parser<'_> {
    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Result<char, SpecError> {
        let c = self.peek().ok_or_else(|| self.error(JsonProblem::End))?;
        self.at += c.len_utf8();
        Ok(c)
    }

    fn error(&self, problem: JsonProblem) -> SpecError {
        SpecError::Json { at: self.at, problem }
    }

    /// The error of a character that is missing or another one.
    fn expected(&self, what: &'static str) -> SpecError {
        self.error(match self.peek() {
            Some(_) => JsonProblem::Expected(what),
            None => JsonProblem::End,
        })
    }

    fn skip_space(&mut self) {
        let rest = self.rest();
        let trimmed = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        self.at += rest.len() - trimmed.len();
    }

    /// Takes `c` if it is next.
    fn eat(&mut self, c: char) -> bool {
        let found = self.peek() == Some(c);
        if found {
            self.at += c.len_utf8();
        }
        found
    }

    /// One value, of the option `name` (empty: the outermost object).
    fn value(&mut self, name: &mut String, depth: usize) -> Result<(), SpecError> {
        if depth > MAX_DEPTH {
            return Err(self.error(JsonProblem::Depth));
        }
        self.skip_space();
        match self.peek() {
            Some('{') => self.members(name, depth, '}'),
            Some('[') => self.members(name, depth, ']'),
            Some('"' | '\'') => {
                let value = self.string()?;
                add(&mut self.options, name, value)
            }
            _ => {
                let value = self.word()?;
                add(&mut self.options, name, value)
            }
        }
    }

    /// An object (`close` is `}`) or an array.
    fn members(&mut self, name: &mut String, depth: usize, close: char) -> Result<(), SpecError> {
        self.next()?;
        self.skip_space();
        if self.eat(close) {
            return Ok(());
        }
        let outer = name.len();
        for index in 0usize.. {
            if outer > 0 {
                name.push('.');
            }
            if close == '}' {
                name.push_str(&self.member_name()?);
            } else {
                name.push_str(&index.to_string());
            }
            // Checked before anything below is read, so that deep names cannot pile up.
            if name.len() > super::MAX_NAME_BYTES {
                return Err(SpecError::Name(name.chars().take(64).collect()));
            }
            self.value(name, depth + 1)?;
            name.truncate(outer);
            self.skip_space();
            if self.eat(close) {
                break;
            }
            if !self.eat(',') {
                return Err(self.expected("',' or the end of the group"));
            }
            self.skip_space();
        }
        Ok(())
    }

    /// `"name" :`
    fn member_name(&mut self) -> Result<String, SpecError> {
        if !matches!(self.peek(), Some('"' | '\'')) {
            return Err(self.expected("a name in quotes"));
        }
        let name = self.string()?;
        if name.is_empty() {
            return Err(SpecError::Name(name));
        }
        self.skip_space();
        if self.eat(':') { Ok(name) } else { Err(self.expected("':'")) }
    }

    /// A string in either kind of quotes.
    fn string(&mut self) -> Result<String, SpecError> {
        let quote = self.next()?;
        let mut value = String::new();
        loop {
            match self.next()? {
                c if c == quote => return Ok(value),
                '\\' => value.push(self.escape()?),
                c if c < ' ' => return Err(self.error(JsonProblem::Control)),
                c => value.push(c),
            }
        }
    }

    /// What follows a backslash.
    fn escape(&mut self) -> Result<char, SpecError> {
        Ok(match self.next()? {
            c @ ('"' | '\'' | '\\' | '/') => c,
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let unit = self.hex4()?;
                let code = if (0xd800..0xdc00).contains(&unit) {
                    if !(self.eat('\\') && self.eat('u')) {
                        return Err(self.error(JsonProblem::Escape));
                    }
                    let low = self.hex4()?;
                    if !(0xdc00..0xe000).contains(&low) {
                        return Err(self.error(JsonProblem::Escape));
                    }
                    0x1_0000 + ((unit - 0xd800) << 10) + (low - 0xdc00)
                } else {
                    unit
                };
                // A file name cannot hold a NUL, and a lone low surrogate is no character.
                char::from_u32(code)
                    .filter(|c| *c != '\0')
                    .ok_or_else(|| self.error(JsonProblem::Escape))?
            }
            _ => return Err(self.error(JsonProblem::Escape)),
        })
    }

    fn hex4(&mut self) -> Result<u32, SpecError> {
        let mut value = 0;
        for _ in 0..4 {
            let digit = self.next()?.to_digit(16);
            value = value * 16 + digit.ok_or_else(|| self.error(JsonProblem::Escape))?;
        }
        Ok(value)
    }

    /// A number, `true`, `false` or `null`, as the text of an option.
    fn word(&mut self) -> Result<String, SpecError> {
        let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.');
        let rest = self.rest();
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let word = rest.get(..end).unwrap_or_default();
        let value = match word {
            "true" => "on",
            "false" => "off",
            "null" => "",
            number if is_number(number) => number,
            _ => return Err(self.expected("a value")),
        };
        let value = value.to_owned();
        self.at += end;
        Ok(value)
    }
}

/// Whether a text is a number as JSON writes it.
fn is_number(text: &str) -> bool {
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let text = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (text, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    let no_leading_zero = whole == "0" || !whole.starts_with('0');
    let exponent = exponent.map(|e| e.strip_prefix(['+', '-']).unwrap_or(e));
    digits(whole) && no_leading_zero && fraction.is_none_or(digits) && exponent.is_none_or(digits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn flat(text: &str) -> Vec<(String, String)> {
        let options = parse(text).unwrap();
        let pairs = options.iter();
        pairs.map(|(n, v)| (n.to_owned(), v.to_owned())).collect()
    }

    fn problem(text: &str) -> JsonProblem {
        match parse(text) {
            Err(SpecError::Json { problem, .. }) => problem,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn nested_values_become_dotted_names() {
        let text = r#" {"driver": "qcow2", 'file': {"filename": "a b", "x.y": [1, {"z": true}]},
            "n": -1.5e3, "backing": null, "e": {}, "l": [] } "#;
        let expect = [
            ("backing", ""),
            ("driver", "qcow2"),
            ("file.filename", "a b"),
            ("file.x.y.0", "1"),
            ("file.x.y.1.z", "on"),
            ("n", "-1.5e3"),
        ];
        assert_eq!(flat(text), expect.map(|(n, v)| (n.to_owned(), v.to_owned())));
    }

    #[test]
    fn escapes_are_those_of_json() {
        let expect = "\"\\/\u{8}\u{c}\n\r\t\u{e9}\u{1f600}'";
        let text = r#"{"a":"\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00\'"}"#;
        assert_eq!(flat(text), [("a".to_owned(), expect.to_owned())]);
        for bad in [r"\x", r"\u12g4", r"\ud83d", r"\ud83dA", r"\udc00", r"\u0000"] {
            let text = format!("{{\"a\":\"{bad}\"}}");
            assert_eq!(problem(&text), JsonProblem::Escape, "{bad}");
        }
    }

    #[test]
    fn what_is_no_object_is_refused() {
        let cases = [
            ("", JsonProblem::End),
            ("{", JsonProblem::End),
            ("[1]", JsonProblem::Expected("'{'")),
            ("{1:2}", JsonProblem::Expected("a name in quotes")),
            (r#"{"a":1,}"#, JsonProblem::Expected("a name in quotes")),
            (r#"{"a" 1}"#, JsonProblem::Expected("':'")),
            (r#"{"a":01}"#, JsonProblem::Expected("a value")),
            (r#"{"a":+1}"#, JsonProblem::Expected("a value")),
            (r#"{"a":nul}"#, JsonProblem::Expected("a value")),
            (r#"{"a":1 "b"}"#, JsonProblem::Expected("',' or the end of the group")),
            ("{\"a\":\"\n\"}", JsonProblem::Control),
            ("{} x", JsonProblem::Trailing),
        ];
        for (text, expect) in cases {
            assert_eq!(problem(text), expect, "{text}");
        }
    }

    #[test]
    fn depth_length_and_names_are_bounded() {
        let deep = format!("{{\"a\":{}", "[".repeat(MAX_TEXT_BYTES / 2));
        assert_eq!(problem(&deep), JsonProblem::Depth);
        let long = " ".repeat(MAX_TEXT_BYTES + 1);
        assert_eq!(parse(&long), Err(SpecError::TooLong(MAX_TEXT_BYTES + 1)));
        let name = format!("{{\"{}\":1}}", "n".repeat(1025));
        assert!(matches!(parse(&name), Err(SpecError::Name(_))));
        assert_eq!(parse(r#"{"":1}"#), Err(SpecError::Name(String::new())));
    }

    #[test]
    fn a_name_given_twice_is_refused() {
        for text in [r#"{"a":1,"a":2}"#, r#"{"a":{"b":1},"a.b":2}"#] {
            assert!(matches!(parse(text), Err(SpecError::Twice(_))), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(
            text in "[{}\\[\\]:,\"'\\\\a1u. -]{0,60}|\\PC{0,60}",
        ) {
            let _ = parse(&text);
            let _ = parse(&format!("{{\"a\":{text}"));
        }

        #[test]
        fn any_string_comes_back(value in "[^\u{0}]{0,20}") {
            let text = serde_json::json!({ "outer": { "name": value } }).to_string();
            let options = parse(&text).unwrap();
            prop_assert_eq!(options.peek("outer.name"), Some(value.as_str()));
        }

        #[test]
        fn numbers_are_those_of_json(text in "[-+0-9.eE]{1,8}") {
            let theirs = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            prop_assert_eq!(is_number(&text), theirs);
        }
    }
}
