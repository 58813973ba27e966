//! The crates as they would be published: whole packages, which strangers can build.
//!
//! Every crate is packaged; the packages are unpacked next to each other, and compile there, with their examples,
//! without the workspace. So does a program that depends on one of them as a stranger would.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::failure::{Failure, Result};
use crate::run;
use crate::scratch::Scratch;

/// The crate that is for nobody else.
const OWN: &str = "xtask";

/// What every package holds.
const FILES: &[&str] = &["Cargo.toml", "README.md", "LICENSE-APACHE", "LICENSE-MIT", "src/lib.rs"];

/// What every manifest says.
const FIELDS: &[&str] =
    &["description", "license", "readme", "rust_version", "keywords", "categories"];

/// A program of somebody else's: the library's README is compiled with it.
const STRANGER: &str = r#"[package]
name = "stranger"
edition = "2024"
version = "0.0.0"
publish = false

[dependencies]
block-core = { version = "VERSION", default-features = false }
block-qcow2 = { version = "VERSION", default-features = false }
"#;

/// A crate of the workspace.
struct Package {
    name: String,
    version: String,
}

impl Package {
    fn stem(&self) -> String {
        format!("{}-{}", self.name, self.version)
    }
}

/// Packages all crates, and compiles what is in the packages.
pub(crate) fn run() -> Result<()> {
    let packages = packages()?;
    let mut cargo = run::cargo();
    cargo.args(["package", "--workspace", "--exclude", OWN, "--locked", "--quiet"]);
    // What is about to be committed is tried, too.
    run::succeed(cargo.args(["--no-verify", "--allow-dirty"]))?;
    let scratch = Scratch::new("package")?;
    for package in &packages {
        unpack(package, scratch.path())?;
    }
    write_workspace(&packages, scratch.path())?;
    // In the workspace's own directory: what it depends on has been compiled there.
    let target = run::root().join("target");
    let check = |arguments: &[&str]| {
        let mut check = run::cargo();
        check.args(["check", "--quiet", "--offline"]).args(arguments);
        run::succeed(check.current_dir(scratch.path()).env("CARGO_TARGET_DIR", &target))
    };
    check(&["--workspace", "--exclude", "stranger", "--lib", "--bins", "--examples"])?;
    check(&["--package", "stranger"])?;
    println!("{} packages are whole, and compile without the workspace", packages.len());
    Ok(())
}

/// The crates that can be published. Each has to say what it is.
fn packages() -> Result<Vec<Package>> {
    let mut command = run::cargo();
    command.args(["metadata", "--no-deps", "--format-version", "1", "--offline"]);
    let metadata = run::json(&mut command)?;
    let all = metadata["packages"].as_array().into_iter().flatten();
    all.filter(|package| package["name"] != OWN)
        .map(|package| {
            let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
            match FIELDS.iter().find(|field| is_empty(&package[**field])) {
                Some(field) => Err(wrong(&command, format!("{}: no {field}", text("name")))),
                None => Ok(Package { name: text("name"), version: text("version") }),
            }
        })
        .collect()
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        _ => true,
    }
}

/// Unpacks a package into `directory`. It holds what it must, and no tests.
fn unpack(package: &Package, directory: &Path) -> Result<()> {
    let file = run::root().join("target/package").join(format!("{}.crate", package.stem()));
    let mut tar = run::command("tar");
    tar.arg("-xzf").arg(&file).arg("-C").arg(directory);
    run::succeed(&mut tar)?;
    let inside = directory.join(package.stem());
    if let Some(name) = FILES.iter().find(|name| !inside.join(name).is_file()) {
        return Err(wrong(&tar, format!("a package without {name}")));
    }
    if inside.join("tests").exists() {
        return Err(wrong(&tar, "a package with tests, which need the test kit".to_owned()));
    }
    Ok(())
}

/// A workspace of the packages and a stranger's program, with the versions of dependencies that ours has.
fn write_workspace(packages: &[Package], directory: &Path) -> Result<()> {
    let write = |name: &str, text: &str| {
        let path = directory.join(name);
        let written = path.parent().map_or(Ok(()), fs::create_dir_all);
        written.and_then(|()| fs::write(&path, text)).map_err(Failure::io(format!("write {name}")))
    };
    let members: Vec<String> = packages.iter().map(|p| format!("\"{}\"", p.stem())).collect();
    let patches = packages.iter().map(|p| format!("{} = {{ path = \"{}\" }}", p.name, p.stem()));
    let patches: Vec<String> = patches.collect();
    let (members, patches) = (members.join(", "), patches.join("\n"));
    let manifest = format!(
        "[workspace]\nresolver = \"3\"\nmembers = [\"stranger\", {members}]\n\n\
         [patch.crates-io]\n{patches}\n"
    );
    write("Cargo.toml", &manifest)?;
    let version = packages.first().map_or("", |package| package.version.as_str());
    write("stranger/Cargo.toml", &STRANGER.replace("VERSION", version))?;
    let readme = run::root().join("block-qcow2/README.md");
    let readme = fs::read_to_string(readme).map_err(Failure::io("read block-qcow2/README.md"))?;
    let program = "\nfn main() {\n    println!(\"{:?}\", boot_sector(\"disk.qcow2\"));\n}\n";
    write("stranger/src/main.rs", &(example(&readme) + program))?;
    let lock = fs::read_to_string(run::root().join("Cargo.lock"));
    write("Cargo.lock", &lock.map_err(Failure::io("read Cargo.lock"))?)
}

/// The Rust code in a README.
fn example(readme: &str) -> String {
    let code = readme.split("```rust\n").nth(1).unwrap_or_default();
    code.split("```").next().unwrap_or_default().to_owned()
}

fn wrong(command: &Command, problem: String) -> Failure {
    Failure::Output { command: run::line(command), problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_of_a_readme_is_what_stands_in_its_fence() {
        assert_eq!(example("a\n```rust\nb\nc\n```\nd\n```rust\ne\n```\n"), "b\nc\n");
        assert_eq!(example("a"), "");
    }

    #[test]
    fn every_crate_says_what_it_is() {
        let packages = packages().unwrap();
        assert!(packages.len() >= 6 && packages.iter().all(|package| package.name != OWN));
        let (text, list) = (Value::from(""), Value::from(Vec::<Value>::new()));
        assert!(is_empty(&text) && is_empty(&list) && is_empty(&Value::Null));
    }
}
