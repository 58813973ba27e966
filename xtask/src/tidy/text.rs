//! Rules for every text file, whatever it holds.
//!
//! What these rules look for is written in parts, or this file would hold it.

use super::{Complaint, Text};

/// Directories in which a machine keeps what is its own.
const OWN_DIRECTORIES: [&str; 5] = [
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
    concat!("/wo", "rk/"),
    concat!("/Us", "ers/"),
    concat!("/fa", "rm/"),
];

const UNFINISHED: [&str; 5] = [
    concat!("to", "do!("),
    concat!("unimple", "mented!("),
    concat!("d", "bg!("),
    concat!("FIX", "ME"),
    concat!("XX", "X:"),
];

/// Nothing names a place that only one machine has.
pub(super) fn foreign_paths(text: &Text) -> Vec<Complaint> {
    complain(text, "names a directory of one machine", |line| {
        OWN_DIRECTORIES.iter().any(|directory| {
            line.match_indices(directory).any(|(at, _)| {
                let before = line[..at].chars().next_back();
                let after = line[at + directory.len()..].chars().next();
                // A directory of that name inside of a path or an address is no absolute path.
                !before.is_some_and(|c| c.is_alphanumeric() || "._-/$~}".contains(c))
                    && after.is_some_and(|c| c.is_alphanumeric() || c == '.')
            })
        })
    })
}

/// Nothing is left for later without anybody knowing.
pub(super) fn unfinished_marks(text: &Text) -> Vec<Complaint> {
    complain(text, "is unfinished", |line| UNFINISHED.iter().any(|mark| line.contains(mark)))
}

/// Every dependency comes from crates.io, under its own name.
pub(super) fn registries(text: &Text) -> Vec<Complaint> {
    const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";
    if text.path.ends_with("Cargo.lock") {
        return complain(text, "does not come from crates.io", |line| {
            line.starts_with("source = ") && !line.contains(CRATES_IO)
        });
    }
    if text.path.ends_with("Cargo.toml") || text.path.contains(".cargo/config") {
        return complain(text, "names a registry", |line| {
            ["registry = ", "registry-index = ", "[source.", "[registries", "replace-with"]
                .iter()
                .any(|word| line.contains(word))
        });
    }
    Vec::new()
}

fn complain(text: &Text, why: &str, bad: impl Fn(&str) -> bool) -> Vec<Complaint> {
    let lines = text.content.lines().enumerate();
    lines
        .filter(|(_, line)| bad(line))
        .map(|(index, _)| format!("{}:{}: {why}", text.path, index + 1))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_one_machine_is_complained_about() {
        for directory in OWN_DIRECTORIES {
            let bad = format!("a\nsee {directory}somebody/x\n");
            assert_eq!(foreign_paths(&Text::new("a.md", &bad)).len(), 1, "{bad}");
        }
        let relative =
            format!("see a{}b and https://c.d{}", OWN_DIRECTORIES[2], OWN_DIRECTORIES[2]);
        assert!(foreign_paths(&Text::new("a.md", &relative)).is_empty());
        assert!(foreign_paths(&Text::new("a.md", "/dev/null and /proc/self")).is_empty());
    }

    #[test]
    fn what_is_unfinished_is_complained_about() {
        for mark in UNFINISHED {
            assert_eq!(unfinished_marks(&Text::new("a.rs", mark)).len(), 1, "{mark}");
        }
        assert!(unfinished_marks(&Text::new("a.rs", "mastodon!(x)")).is_empty());
    }

    #[test]
    fn another_registry_is_complained_about() {
        let lock = "source = \"registry+https://example.org/index\"\n";
        assert_eq!(registries(&Text::new("Cargo.lock", lock)).len(), 1);
        let good = "source = \"registry+https://github.com/rust-lang/crates.io-index\"\n";
        assert!(registries(&Text::new("Cargo.lock", good)).is_empty());
        let config = "[source.crates-io]\nreplace-with = \"mirror\"\n";
        assert_eq!(registries(&Text::new(".cargo/config.toml", config)).len(), 2);
        let manifest = "a = { version = \"1\", registry = \"mine\" }\n";
        assert_eq!(registries(&Text::new("a/Cargo.toml", manifest)).len(), 1);
    }
}
