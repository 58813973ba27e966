//! Which configurations are meant: tags that they have, or must not have.

use std::collections::BTreeSet;
use std::fmt;

/// What is known of a configuration: `qcow2`, `qcow2-v2`, `file`, `snapshots`, ...
pub type Tags = BTreeSet<String>;

/// Tags, some with a `!` before them. A configuration is meant if it has any of those without, if there
/// are such, and none of those with.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Selection {
    any: Vec<String>,
    none: Vec<String>,
}

impl Selection {
    /// Reads tags between spaces.
    pub fn parse(text: &str) -> Self {
        let mut selection = Self::default();
        for word in text.split_whitespace() {
            match word.strip_prefix('!') {
                Some(tag) => selection.none.push(tag.to_owned()),
                None => selection.any.push(word.to_owned()),
            }
        }
        selection
    }

    /// Whether it names no tag, and so means everything.
    pub fn is_empty(&self) -> bool {
        self.any.is_empty() && self.none.is_empty()
    }

    /// Whether a configuration with these tags is meant.
    pub fn means(&self, tags: &Tags) -> bool {
        let any = self.any.is_empty() || self.any.iter().any(|tag| tags.contains(tag));
        any && !self.none.iter().any(|tag| tags.contains(tag))
    }

    /// Whether a configuration has every one of the tags without `!`, and none of the others.
    pub fn is_met_by(&self, tags: &Tags) -> bool {
        self.any.iter().all(|tag| tags.contains(tag))
            && !self.none.iter().any(|tag| tags.contains(tag))
    }

    /// All tags that it names.
    pub fn tags(&self) -> impl Iterator<Item = &str> {
        self.any.iter().chain(&self.none).map(String::as_str)
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let none = self.none.iter().map(|tag| format!("!{tag}"));
        let words: Vec<_> = self.any.iter().cloned().chain(none).collect();
        f.write_str(&words.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_of_these_and_none_of_those() {
        let tags: Tags = ["qcow2", "qcow2-v2", "file"].map(str::to_owned).into();
        for (text, means, met) in [
            ("", true, true),
            ("qcow2", true, true),
            ("raw qcow2", true, false),
            ("qcow2 file", true, true),
            ("raw vmdk", false, false),
            ("!raw", true, true),
            ("qcow2 !qcow2-v2", false, false),
        ] {
            let selection = Selection::parse(text);
            assert_eq!(selection.means(&tags), means, "{text}");
            assert_eq!(selection.is_met_by(&tags), met, "{text}");
            assert_eq!(selection.to_string(), text);
        }
    }
}
