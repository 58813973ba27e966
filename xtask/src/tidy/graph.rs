//! Rules for the crates of the workspace as a whole: which may use which, and which may be unsafe.

use std::path::Path;

use serde_json::Value;

use super::{Complaint, Text};
use crate::failure::Result;
use crate::run;

/// For each crate, the crates of the workspace that it may use. In tests all may use the testkit,
/// and no other crate of the workspace beyond these.
const MAY_USE: &[(&str, &[&str])] = &[
    ("block-core", &[]),
    ("block-qcow2", &["block-core"]),
    ("block-vmdk", &["block-core"]),
    ("block-iscsi", &["block-core"]),
    ("block-testkit", &["block-core", "block-iscsi"]),
    ("block-tools", &["block-core", "block-qcow2", "block-vmdk", "block-iscsi"]),
    ("xtask", &[]),
];

const TESTKIT: &str = "block-testkit";

/// The one crate that may hold unsafe code.
const MAY_BE_UNSAFE: &str = "block-core";

/// A crate of the workspace.
#[derive(Debug, Default)]
pub(super) struct Package {
    pub(super) name: String,
    /// Its directory, relative to the root.
    pub(super) directory: String,
    /// The root files of its library and binaries, relative to the root.
    pub(super) roots: Vec<String>,
    /// Names of what it uses, and whether only in tests.
    pub(super) uses: Vec<(String, Scope)>,
}

#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Scope {
    Everywhere,
    Tests,
}

/// The crates of the workspace as cargo sees them.
pub(super) fn packages() -> Result<Vec<Package>> {
    let arguments = ["metadata", "--no-deps", "--format-version", "1", "--offline"];
    let metadata = run::json(run::cargo().args(arguments))?;
    Ok(items(&metadata["packages"]).map(package).collect())
}

fn package(value: &Value) -> Package {
    let root = run::root();
    let relative = |value: &Value| {
        let path = Path::new(value.as_str().unwrap_or_default());
        let path = path.strip_prefix(&root).unwrap_or(path);
        path.to_string_lossy().into_owned()
    };
    let is_root = |target: &&Value| {
        let kinds = items(&target["kind"]);
        let kinds: Vec<&str> = kinds.filter_map(Value::as_str).collect();
        kinds.iter().any(|kind| ["lib", "bin"].contains(kind))
    };
    let manifest = relative(&value["manifest_path"]);
    Package {
        name: value["name"].as_str().unwrap_or_default().to_owned(),
        directory: manifest.trim_end_matches("/Cargo.toml").to_owned(),
        roots: items(&value["targets"])
            .filter(is_root)
            .map(|target| relative(&target["src_path"]))
            .collect(),
        uses: items(&value["dependencies"]).map(dependency).collect(),
    }
}

fn dependency(value: &Value) -> (String, Scope) {
    let scope = match value["kind"].as_str() {
        Some("dev") => Scope::Tests,
        _ => Scope::Everywhere,
    };
    (value["name"].as_str().unwrap_or_default().to_owned(), scope)
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Crates use each other in one direction only.
pub(super) fn direction(packages: &[Package]) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for package in packages {
        let rule = MAY_USE.iter().find(|(name, _)| *name == package.name);
        let Some((_, may_use)) = rule else {
            complaints.push(format!("{}: tidy does not know what it may use", package.name));
            continue;
        };
        for (used, scope) in &package.uses {
            let is_member = packages.iter().any(|other| other.name == *used);
            let tests = *scope == Scope::Tests && used == TESTKIT;
            if is_member && !tests && !may_use.contains(&used.as_str()) {
                complaints.push(format!("{}: may not use {used} ({scope:?})", package.name));
            }
        }
    }
    complaints
}

/// Every crate but one forbids unsafe code in each of its root files.
pub(super) fn unsafe_forbidden(packages: &[Package], texts: &[Text]) -> Vec<Complaint> {
    let safe = packages.iter().filter(|package| package.name != MAY_BE_UNSAFE);
    let forbids = |root: &str| {
        let text = texts.iter().find(|text| text.path == root);
        text.is_some_and(|text| text.content.contains("#![forbid(unsafe_code)]"))
    };
    safe.flat_map(|package| &package.roots)
        .filter(|root| !forbids(root))
        .map(|root| format!("{root}: has no `#![forbid(unsafe_code)]`"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crate_that_uses(name: &str, uses: &[(&str, Scope)]) -> Package {
        Package {
            name: name.to_owned(),
            directory: name.to_owned(),
            roots: vec![format!("{name}/src/lib.rs")],
            uses: uses.iter().map(|(used, scope)| ((*used).to_owned(), *scope)).collect(),
        }
    }

    fn complaints_about(name: &str, uses: &[(&str, Scope)]) -> usize {
        let mut packages: Vec<Package> = MAY_USE
            .iter()
            .filter(|(other, _)| *other != name)
            .map(|(other, _)| crate_that_uses(other, &[]))
            .collect();
        packages.push(crate_that_uses(name, uses));
        direction(&packages).len()
    }

    #[test]
    fn a_dependency_against_the_direction_is_complained_about() {
        let everywhere = Scope::Everywhere;
        assert_eq!(complaints_about("block-core", &[("block-qcow2", everywhere)]), 1);
        assert_eq!(complaints_about("block-qcow2", &[("block-vmdk", everywhere)]), 1);
        assert_eq!(complaints_about("block-qcow2", &[("block-tools", Scope::Tests)]), 1);
        assert_eq!(complaints_about("xtask", &[("block-core", everywhere)]), 1);
        assert_eq!(complaints_about("block-tools", &[("block-core", everywhere)]), 0);
        assert_eq!(complaints_about("block-core", &[("libc", everywhere)]), 0);
    }

    #[test]
    fn the_testkit_is_for_tests_only() {
        assert_eq!(complaints_about("block-core", &[(TESTKIT, Scope::Tests)]), 0);
        assert_eq!(complaints_about("block-core", &[(TESTKIT, Scope::Everywhere)]), 1);
    }

    #[test]
    fn a_crate_without_a_rule_is_complained_about() {
        assert_eq!(complaints_about("block-new", &[]), 1);
    }

    #[test]
    fn a_crate_that_allows_unsafe_code_is_complained_about() {
        let packages = [crate_that_uses("block-vmdk", &[]), crate_that_uses("block-core", &[])];
        let complaints = |content| {
            let texts = [Text::new("block-vmdk/src/lib.rs", content)];
            unsafe_forbidden(&packages, &texts).len()
        };
        assert_eq!(complaints("//! No.\n"), 1);
        assert_eq!(complaints("//! Yes.\n#![forbid(unsafe_code)]\n"), 0);
    }

    #[test]
    fn cargo_metadata_is_understood() {
        let packages = packages().unwrap();
        let tools = packages.iter().find(|package| package.name == "block-tools").unwrap();
        assert_eq!(tools.directory, "block-tools");
        assert!(tools.roots.iter().any(|root| root == "block-tools/src/lib.rs"));
        assert!(tools.uses.contains(&("block-core".to_owned(), Scope::Everywhere)));
    }
}
