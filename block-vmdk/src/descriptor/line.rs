//! A line of a descriptor: its bytes, and what they mean.
//!
//! Invariant: [`Line::bytes`] gives the bytes that the line was made of.

use std::ops::Range;

/// A line as it was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Line {
    /// Without what ends it.
    pub(super) text: Vec<u8>,
    end: LineEnd,
}

/// What ends a line.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum LineEnd {
    /// The end of the text.
    Text,
    /// `\n`.
    Unix,
    /// `\r\n`.
    Dos,
}

impl LineEnd {
    fn bytes(self) -> &'static [u8] {
        match self {
            Self::Text => b"",
            Self::Unix => b"\n",
            Self::Dos => b"\r\n",
        }
    }
}

/// What a line means, extents apart.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Meaning<'a> {
    /// Blank or a comment.
    Nothing,
    /// `name = value`; the value without its quotes.
    Setting { name: &'a [u8], value: &'a [u8] },
    /// Something else: an extent, or unknown.
    Other,
}

/// The lines of `text`.
pub(super) fn lines(text: &[u8]) -> impl Iterator<Item = Line> {
    text.split_inclusive(|b| *b == b'\n').map(|line| {
        let ends = [LineEnd::Dos, LineEnd::Unix];
        let end = ends.into_iter().find(|end| line.ends_with(end.bytes()));
        let end = end.unwrap_or(LineEnd::Text);
        let text = line.strip_suffix(end.bytes()).unwrap_or(line);
        Line { text: text.to_vec(), end }
    })
}

impl Line {
    pub(super) fn bytes(&self) -> impl Iterator<Item = u8> {
        self.text.iter().chain(self.end.bytes()).copied()
    }

    pub(super) fn meaning(&self) -> Meaning<'_> {
        let text = self.text.trim_ascii();
        if text.is_empty() || text.starts_with(b"#") {
            return Meaning::Nothing;
        }
        match self.value_place() {
            Some((name, place)) => {
                Meaning::Setting { name: &self.text[name], value: &self.text[place] }
            }
            None => Meaning::Other,
        }
    }

    pub(super) fn is_setting(&self, wanted: &str) -> bool {
        matches!(self.meaning(), Meaning::Setting { name, .. }
            if name.eq_ignore_ascii_case(wanted.as_bytes()))
    }

    /// Puts `value` in the place of the one there is; spaces and quotes around it stay.
    pub(super) fn replace_value(&mut self, value: &str) {
        if let Some((_, place)) = self.value_place() {
            self.text.splice(place, value.bytes());
        }
    }

    /// Puts `value` in the place of the one there is, in quotes.
    pub(super) fn replace_with_text(&mut self, value: &str) {
        if let Some((_, place)) = self.value_place() {
            let in_quotes = place.start.checked_sub(1).and_then(|before| self.text.get(before));
            let quote = if in_quotes == Some(&b'"') { "" } else { "\"" };
            self.text.splice(place, format!("{quote}{value}{quote}").into_bytes());
        }
    }

    /// A line of its own behind this one, which ends like it.
    pub(super) fn followed_by(&mut self, text: String) -> Self {
        if self.end == LineEnd::Text {
            self.end = LineEnd::Unix;
        }
        Self { text: text.into_bytes(), end: self.end }
    }

    /// Where name and value of a setting are in `text`. A name is one word.
    fn value_place(&self) -> Option<(Range<usize>, Range<usize>)> {
        let equals = self.text.iter().position(|b| *b == b'=')?;
        let name = trimmed(&self.text, 0..equals);
        if name.is_empty() || self.text[name.clone()].iter().any(u8::is_ascii_whitespace) {
            return None;
        }
        let value = trimmed(&self.text, equals + 1..self.text.len());
        let quoted = &self.text[value.clone()];
        let in_quotes = quoted.len() >= 2 && quoted.starts_with(b"\"") && quoted.ends_with(b"\"");
        Some(if in_quotes { (name, value.start + 1..value.end - 1) } else { (name, value) })
    }
}

/// `range` of `text` without the white space at its ends.
fn trimmed(text: &[u8], range: Range<usize>) -> Range<usize> {
    let part = &text[range.clone()];
    let lead = part.len() - part.trim_ascii_start().len();
    let start = range.start + lead;
    start..start + part.trim_ascii().len()
}
