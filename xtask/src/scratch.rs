//! A directory for the files of one run, removed at its end.

use std::fs;
use std::path::{Path, PathBuf};

use crate::failure::{Failure, Result};
use crate::run;

/// A directory under `target/xtask`, on a real disk rather than in memory, so that O_DIRECT works.
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// A fresh, empty directory; its name holds `name` and the process's number.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let parent = run::root().join("target").join("xtask");
        Self::inside(&parent, name)
    }

    /// A fresh, empty directory inside `parent`.
    pub(crate) fn inside(parent: &Path, name: &str) -> Result<Self> {
        let path = parent.join(format!("{name}-{}", std::process::id()));
        let what = format!("create {}", path.display());
        fs::create_dir_all(&path).map_err(Failure::io(what))?;
        Ok(Self { path })
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory, which stays.
    pub(crate) fn keep(self) -> PathBuf {
        std::mem::ManuallyDrop::new(self).path.clone()
    }

    /// The path of a file in it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("xtask: cannot remove {}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_goes_with_the_value() {
        let scratch = Scratch::new("scratch-test").unwrap();
        let path = scratch.path().to_path_buf();
        fs::write(scratch.file("a"), "b").unwrap();
        assert!(path.join("a").exists());
        drop(scratch);
        assert!(!path.exists());
    }
}
