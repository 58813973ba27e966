//! Rules that hold the documents to the code: the map names what there is, the README's commands
//! are what CI runs.

use std::collections::BTreeSet;

use super::graph::Package;
use super::source::is_test_file;
use super::{Complaint, Text};

/// A directory of modules.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Folder {
    /// The crate's directory.
    krate: String,
    /// Inside the crate's `src`; empty for `src` itself.
    path: String,
}

impl Folder {
    /// Every directory of the crates' sources, tests left out.
    pub(super) fn all(packages: &[Package], texts: &[Text]) -> Vec<Self> {
        let mut folders = BTreeSet::new();
        for package in packages {
            let src = format!("{}/src/", package.directory);
            let is_source = |text: &&Text| text.path.ends_with(".rs") && !is_test_file(&text.path);
            let sources = texts.iter().filter(is_source);
            for inside in sources.filter_map(|text| text.path.strip_prefix(&src)) {
                folders.insert(Self {
                    krate: package.directory.clone(),
                    path: inside.rsplit_once('/').map_or("", |(path, _)| path).to_owned(),
                });
            }
        }
        folders.into_iter().collect()
    }
}

/// The map has a heading for every crate, and below it names every directory of modules.
pub(super) fn map(architecture: &str, folders: &[Folder]) -> Vec<Complaint> {
    let missing = |folder: &&Folder| match section(architecture, &folder.krate) {
        None => true,
        Some(text) => !folder.path.is_empty() && !text.contains(&format!("`{}/`", folder.path)),
    };
    folders
        .iter()
        .filter(missing)
        .map(|folder| match folder.path.as_str() {
            "" => format!("ARCHITECTURE.md: has no heading `{}`", folder.krate),
            path => format!("ARCHITECTURE.md: `{path}/` is not named under `{}`", folder.krate),
        })
        .collect()
}

/// What stands between the heading that names `krate` and the next one.
fn section<'a>(document: &'a str, krate: &str) -> Option<&'a str> {
    let is_heading = |line: &str| line.starts_with('#');
    let name = format!("`{krate}`");
    let mut start = None;
    let mut offset = 0;
    for line in document.split_inclusive('\n') {
        match start {
            None if is_heading(line) && line.contains(&name) => start = Some(offset + line.len()),
            Some(start) if is_heading(line) => return Some(&document[start..offset]),
            _ => {}
        }
        offset += line.len();
    }
    start.map(|start| &document[start..])
}

/// The README's shell commands are what `.ci/run` calls or a step of what it calls, and the README
/// shows everything that `.ci/run` calls.
pub(super) fn commands(readme: &str, ci_run: &str, steps: &[&str]) -> Vec<Complaint> {
    let shown = xtask_commands(&shell_blocks(readme));
    let called = xtask_commands(ci_run);
    let mut complaints = Vec::new();
    if called.is_empty() {
        complaints.push(".ci/run: calls no `cargo xtask`".to_owned());
    }
    for command in called.difference(&shown) {
        complaints.push(format!("README.md: does not show `{command}`, which .ci/run calls"));
    }
    for command in shown.difference(&called) {
        let name = command.rsplit(' ').next().unwrap_or_default();
        if !steps.contains(&name) {
            complaints.push(format!("README.md: `{command}` is not run by .ci/run"));
        }
    }
    complaints
}

/// The text of the blocks fenced as `sh`.
fn shell_blocks(readme: &str) -> String {
    let mut inside = false;
    let mut text = String::new();
    for line in readme.lines() {
        match line.trim() {
            "```sh" => inside = true,
            "```" => inside = false,
            _ if inside => {
                text.push_str(line);
                text.push('\n');
            }
            _ => {}
        }
    }
    text
}

fn xtask_commands(text: &str) -> BTreeSet<String> {
    text.lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .map(|line| line.strip_prefix("exec ").unwrap_or(line))
        .filter(|line| line.starts_with("cargo xtask "))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(krate: &str, path: &str) -> Folder {
        Folder { krate: krate.to_owned(), path: path.to_owned() }
    }

    #[test]
    fn a_crate_or_folder_that_the_map_does_not_name_is_complained_about() {
        let document = "# Map\n## `a`\ntext `x/` here\n## `b`\n`y/`\n";
        let complaints = |folders: &[Folder]| map(document, folders).len();
        assert_eq!(complaints(&[folder("a", ""), folder("a", "x"), folder("b", "y")]), 0);
        assert_eq!(complaints(&[folder("c", "")]), 1);
        assert_eq!(complaints(&[folder("a", "y")]), 1, "named under another crate only");
        assert_eq!(complaints(&[folder("b", "x")]), 1);
    }

    #[test]
    fn folders_come_from_the_sources() {
        let packages =
            [Package { name: "a".to_owned(), directory: "a".to_owned(), ..Package::default() }];
        let paths = ["a/src/lib.rs", "a/src/x/mod.rs", "a/src/x/y.rs", "a/src/w/tests.rs"];
        let texts = paths.map(|path| Text::new(path, ""));
        let found = Folder::all(&packages, &texts);
        assert_eq!(found, [folder("a", ""), folder("a", "x")]);
    }

    #[test]
    fn a_command_that_ci_does_not_run_is_complained_about() {
        let readme = "```sh\ncargo xtask demo   # main job\ncargo xtask ci\n```\n";
        let ci_run = "#!/bin/sh\nexec cargo xtask ci\n";
        assert!(commands(readme, ci_run, &["demo"]).is_empty());
        assert_eq!(commands(readme, ci_run, &["peer"]).len(), 1);
        assert_eq!(commands("", ci_run, &["demo"]).len(), 1);
        assert_eq!(commands("", "", &["demo"]).len(), 1);
    }
}
