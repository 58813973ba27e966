//! The copy of the workspace in which the mutations are made: the user's own files are only read.
//!
//! **Invariant:** after [`Copy::renew`] the copy has the workspace's files and no others; what was the
//! same is not written again, so that cargo builds only what has changed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::failure::{Failure, Result};
use crate::run;

/// The copy, and what belongs to it.
pub(super) struct Copy {
    root: PathBuf,
    /// Where the workspace's files are.
    pub(super) tree: PathBuf,
    /// Where cargo builds them.
    pub(super) build: PathBuf,
}

impl Copy {
    /// Makes the copy, or what is missing of it since the last time.
    pub(super) fn new() -> Result<Self> {
        let root = run::root().join("target").join("mutants");
        let copy = Self { tree: root.join("tree"), build: root.join("build"), root };
        copy.renew()?;
        Ok(copy)
    }

    /// Undoes whatever was done to the copy.
    pub(super) fn renew(&self) -> Result<()> {
        let mut kept = BTreeSet::new();
        copy_new(&run::root(), &self.tree, &mut kept)?;
        remove_others(&self.tree, &kept)
    }

    /// Changes a file of the copy.
    pub(super) fn write(&self, file: &str, content: &str) -> Result<()> {
        let path = self.tree.join(file);
        fs::write(&path, content).map_err(Failure::io(format!("write {}", path.display())))
    }

    /// What a mutation's run has printed.
    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.root.join(format!("{name}.log"))
    }

    /// An empty directory for temporary files: a test that is ended by force leaves its own behind.
    pub(super) fn temporary(&self) -> Result<PathBuf> {
        let path = self.root.join("tmp");
        let what = || format!("empty {}", path.display());
        if path.exists() {
            fs::remove_dir_all(&path).map_err(Failure::io(what()))?;
        }
        fs::create_dir_all(&path).map_err(Failure::io(what()))?;
        Ok(path)
    }
}

/// Copies what differs, and notes what is there; what is built and what git keeps stays.
fn copy_new(from: &Path, to: &Path, kept: &mut BTreeSet<PathBuf>) -> Result<()> {
    fs::create_dir_all(to).map_err(Failure::io(format!("create {}", to.display())))?;
    kept.insert(to.to_path_buf());
    for (path, is_directory) in entries(from)? {
        let Some(name) = path.file_name().filter(|_| !run::is_no_source(&path)) else { continue };
        let target = to.join(name);
        if is_directory {
            copy_new(&path, &target, kept)?;
            continue;
        }
        let content = fs::read(&path).map_err(Failure::io(format!("read {}", path.display())))?;
        if fs::read(&target).ok().as_ref() != Some(&content) {
            let what = format!("copy {}", path.display());
            fs::copy(&path, &target).map_err(Failure::io(what))?;
        }
        kept.insert(target);
    }
    Ok(())
}

fn remove_others(directory: &Path, kept: &BTreeSet<PathBuf>) -> Result<()> {
    for (path, is_directory) in entries(directory)? {
        let what = || format!("remove {}", path.display());
        match (kept.contains(&path), is_directory) {
            (true, true) => remove_others(&path, kept)?,
            (true, false) => {}
            (false, true) => fs::remove_dir_all(&path).map_err(Failure::io(what()))?,
            (false, false) => fs::remove_file(&path).map_err(Failure::io(what()))?,
        }
    }
    Ok(())
}

/// Files and directories, and which they are; other things are none of ours.
fn entries(directory: &Path) -> Result<Vec<(PathBuf, bool)>> {
    let what = || format!("read {}", directory.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(Failure::io(what()))? {
        let entry = entry.map_err(Failure::io(what()))?;
        let kind = entry.file_type().map_err(Failure::io(what()))?;
        if kind.is_dir() || kind.is_file() {
            found.push((entry.path(), kind.is_dir()));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_copy_is_made_good_again_and_what_is_the_same_is_left_alone() {
        let scratch = Scratch::new("mutants-copy").unwrap();
        let (from, to) = (scratch.file("from"), scratch.file("to"));
        fs::create_dir_all(from.join("a/target")).unwrap();
        fs::create_dir_all(from.join("a/b/target")).unwrap();
        fs::write(from.join("a/Cargo.toml"), "").unwrap();
        fs::write(from.join("a/b/target/source"), "4").unwrap();
        fs::write(from.join("a/same"), "1").unwrap();
        fs::write(from.join("a/mutated"), "2").unwrap();
        fs::write(from.join("a/target/built"), "3").unwrap();
        let renew = || {
            let mut kept = BTreeSet::new();
            copy_new(&from, &to, &mut kept).unwrap();
            remove_others(&to, &kept).unwrap();
        };
        renew();
        let time = |name: &str| fs::metadata(to.join(name)).unwrap().modified().unwrap();
        let same = time("a/same");
        fs::write(to.join("a/mutated"), "x").unwrap();
        fs::create_dir_all(to.join("a/new/deep")).unwrap();
        renew();
        assert_eq!(fs::read(to.join("a/mutated")).unwrap(), b"2");
        assert!(!to.join("a/new").exists() && !to.join("a/target").exists());
        assert!(to.join("a/b/target/source").exists(), "a module of that name");
        assert_eq!(time("a/same"), same);
    }
}
