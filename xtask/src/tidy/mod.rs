//! Checks of what the compiler does not check: the order of the sheet (STYLE.md) and of the map
//! (ARCHITECTURE.md).
//!
//! A rule is a pure function from texts to complaints, and each has a test that shows it complain.
//! This module only reads the files and hands them out.

mod document;
mod graph;
mod mutants;
mod source;
mod text;

use std::fs;
use std::path::{Path, PathBuf};

use crate::failure::{Failure, Result};
use crate::{ci, run};

/// Longest file that is read as a text; longer ones are data.
const TEXT_LEN_MAX: u64 = 1 << 20;

/// Something that a rule does not like: `path: why`.
type Complaint = String;

/// A text file of the repository.
#[derive(Debug)]
struct Text {
    /// Relative to the root, with `/`.
    path: String,
    content: String,
}

impl Text {
    #[cfg(test)]
    fn new(path: &str, content: &str) -> Self {
        Self { path: path.to_owned(), content: content.to_owned() }
    }
}

/// Checks everything, prints each complaint.
pub(crate) fn run() -> Result<()> {
    let root = run::root();
    let mut texts = Vec::new();
    read_tree(&root, &root, &mut texts)?;
    texts.sort_by(|a, b| a.path.cmp(&b.path));
    let packages = graph::packages()?;

    let mut complaints = Vec::new();
    for text in &texts {
        complaints.extend(text::foreign_paths(text));
        complaints.extend(text::unfinished_marks(text));
        complaints.extend(text::registries(text));
        if text.path.ends_with(".rs") {
            complaints.extend(source::head(text));
            complaints.extend(source::length(text));
            complaints.extend(source::panics(text));
        }
    }
    complaints.extend(graph::direction(&packages));
    complaints.extend(graph::unsafe_forbidden(&packages, &texts));
    let folders = document::Folder::all(&packages, &texts);
    let names: Vec<&str> = ci::STEPS.iter().map(|step| step.name).collect();
    complaints.extend(document::map(find(&texts, "ARCHITECTURE.md"), &folders));
    complaints.extend(document::commands(
        find(&texts, "README.md"),
        find(&texts, ".ci/run"),
        &names,
    ));

    complaints.extend(mutants::lists(&texts));

    for complaint in &complaints {
        println!("{complaint}");
    }
    match complaints.len() {
        0 => {
            println!("tidy: {} files are fine", texts.len());
            Ok(())
        }
        count => Err(Failure::Faults { check: "tidy", count }),
    }
}

/// The content of a file that must be there; empty, and so complained about, where it is not.
fn find<'a>(texts: &'a [Text], path: &str) -> &'a str {
    let found = texts.iter().find(|text| text.path == path);
    found.map_or("", |text| &text.content)
}

/// Reads what is text below `directory`, except for what is built and what git keeps.
fn read_tree(root: &Path, directory: &Path, texts: &mut Vec<Text>) -> Result<()> {
    let what = || format!("read {}", directory.display());
    for entry in fs::read_dir(directory).map_err(Failure::io(what()))? {
        let entry = entry.map_err(Failure::io(what()))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(Failure::io(what()))?;
        if run::is_no_source(&path) {
            continue;
        }
        if kind.is_dir() {
            read_tree(root, &path, texts)?;
        } else if kind.is_file() {
            texts.extend(read_text(root, path)?);
        }
    }
    Ok(())
}

/// The file, if it is short enough and UTF-8.
fn read_text(root: &Path, path: PathBuf) -> Result<Option<Text>> {
    let what = || format!("read {}", path.display());
    let len = fs::metadata(&path).map_err(Failure::io(what()))?.len();
    if len > TEXT_LEN_MAX {
        return Ok(None);
    }
    let bytes = fs::read(&path).map_err(Failure::io(what()))?;
    let relative = path.strip_prefix(root).unwrap_or(&path);
    let path = relative.to_string_lossy().into_owned();
    Ok(String::from_utf8(bytes).ok().map(|content| Text { path, content }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_absent_is_empty() {
        let texts = [Text::new("a", "b")];
        assert_eq!(find(&texts, "a"), "b");
        assert_eq!(find(&texts, "c"), "");
    }

    #[test]
    fn this_file_is_read_and_the_target_directory_is_not() {
        let root = run::root();
        let mut texts = Vec::new();
        read_tree(&root, &root, &mut texts).unwrap();
        assert!(find(&texts, "xtask/src/tidy/mod.rs").contains("read_tree"));
        assert!(!texts.iter().any(|text| text.path.starts_with("target/")));
    }
}
