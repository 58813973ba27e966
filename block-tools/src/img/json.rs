//! JSON as scripts find it in the output of `qemu-img`: four spaces for each level, every element on
//! a line of its own, brackets of empty lists on two lines, names in the order given.

use std::fmt::Write;

use block_core::info::InfoValue;

/// A value to print.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Json {
    Bool(bool),
    Int(u64),
    Text(String),
    List(Vec<Self>),
    Map(Vec<(&'static str, Self)>),
}

impl Json {
    /// The text, without a line end.
    pub(super) fn to_pretty(&self) -> String {
        let mut text = String::new();
        self.print(0, &mut text);
        text
    }

    fn print(&self, level: usize, text: &mut String) {
        match self {
            Self::Bool(value) => text.push_str(if *value { "true" } else { "false" }),
            Self::Int(value) => text.push_str(&value.to_string()),
            Self::Text(value) => quote(value, text),
            Self::List(values) => {
                let items = values.iter().map(|value| (None, value));
                print_group(('[', ']'), items, level, text);
            }
            Self::Map(values) => {
                let items = values.iter().map(|(name, value)| (Some(*name), value));
                print_group(('{', '}'), items, level, text);
            }
        }
    }
}

fn print_group<'a>(
    brackets: (char, char),
    items: impl Iterator<Item = (Option<&'static str>, &'a Json)>,
    level: usize,
    text: &mut String,
) {
    text.push(brackets.0);
    for (index, (name, value)) in items.enumerate() {
        if index > 0 {
            text.push(',');
        }
        new_line(level + 1, text);
        if let Some(name) = name {
            quote(name, text);
            text.push_str(": ");
        }
        value.print(level + 1, text);
    }
    new_line(level, text);
    text.push(brackets.1);
}

fn new_line(level: usize, text: &mut String) {
    text.push('\n');
    text.extend(std::iter::repeat_n("    ", level));
}

/// A string in quotes; whatever is not printable ASCII as an escape.
fn quote(value: &str, text: &mut String) {
    text.push('"');
    for c in value.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            ' '..='~' => text.push(c),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a string cannot fail.
                    let _ = write!(text, "\\u{unit:04X}");
                }
            }
        }
    }
    text.push('"');
}

impl From<&InfoValue> for Json {
    fn from(value: &InfoValue) -> Self {
        match value {
            InfoValue::Bool(value) => Self::Bool(*value),
            InfoValue::Int(value) => Self::Int(*value),
            InfoValue::Text(value) => Self::Text(value.clone()),
            InfoValue::List(values) => Self::List(values.iter().map(Self::from).collect()),
            InfoValue::Map(values) => {
                Self::Map(values.iter().map(|(name, value)| (*name, Self::from(value))).collect())
            }
        }
    }
}

impl From<bool> for Json {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<u64> for Json {
    fn from(value: u64) -> Self {
        Self::Int(value)
    }
}

impl From<&str> for Json {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn groups_are_printed_on_lines_of_their_own() {
        let value = Json::Map(vec![
            ("children", Json::List(Vec::new())),
            ("n", Json::Int(1)),
            ("list", Json::List(vec![Json::Bool(true), Json::from("a")])),
        ]);
        let expect = "{\n    \"children\": [\n    ],\n    \"n\": 1,\n    \"list\": [\n        true,\n        \"a\"\n    ]\n}";
        assert_eq!(value.to_pretty(), expect);
    }

    proptest! {
        #[test]
        fn any_text_is_read_back_by_a_parser(text in "\\PC*|[\u{0}-\u{1f}\"\\\\]*|\u{1f600}") {
            let printed = Json::Text(text.clone()).to_pretty();
            prop_assert!(printed.is_ascii());
            prop_assert_eq!(serde_json::from_str::<String>(&printed).unwrap(), text);
        }
    }
}
