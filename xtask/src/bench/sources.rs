//! A disk to convert: an ext4 file system full of real files, those of the machine's `/usr`.
//!
//! Which files these are differs from machine to machine; in one run everybody converts the same.

use std::fs;
use std::path::{Path, PathBuf};

use crate::failure::{Failure, Result};
use crate::scratch::Scratch;
use crate::{run, setup};

/// Makes `name`, a raw disk of `disk` bytes with an ext4 of about `files` bytes of files.
pub(super) fn file_system(scratch: &Scratch, name: &str, disk: u64, files: u64) -> Result<PathBuf> {
    let tree = scratch.file("tree");
    fs::create_dir_all(&tree).map_err(Failure::io("create the tree of files"))?;
    let mut stage = Stage { tree: &tree, left: files, count: 0 };
    for top in ["/usr/lib", "/usr/bin", "/usr/share"] {
        stage.take(Path::new(top))?;
    }
    let path = scratch.file(name);
    let mut make = run::command(setup::MKE2FS);
    make.args(["-q", "-F", "-t", "ext4", "-d"]).arg(&tree).arg(&path);
    run::succeed(make.arg(format!("{}k", disk >> 10)))?;
    fs::remove_dir_all(&tree).map_err(Failure::io("remove the tree of files"))?;
    Ok(path)
}

/// Gathers files under numbered names, a thousand to a directory.
struct Stage<'a> {
    tree: &'a Path,
    /// Bytes still wanted.
    left: u64,
    count: u64,
}

impl Stage<'_> {
    /// Takes the plain files below `directory`, in the order of their names, until there are enough.
    /// What cannot be read is left out: the tree need not be complete.
    fn take(&mut self, directory: &Path) -> Result<()> {
        let Ok(entries) = fs::read_dir(directory) else {
            return Ok(());
        };
        let mut entries: Vec<_> = entries.flatten().collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            if self.left == 0 {
                break;
            }
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => self.take(&entry.path())?,
                Ok(kind) if kind.is_file() => self.add(&entry.path())?,
                _ => {}
            }
        }
        Ok(())
    }

    fn add(&mut self, file: &Path) -> Result<()> {
        let Ok(metadata) = fs::metadata(file) else {
            return Ok(());
        };
        if metadata.len() > self.left / 4 + (1 << 20) {
            return Ok(()); // One huge file is not what a file system holds.
        }
        let directory = self.tree.join((self.count / 1000).to_string());
        fs::create_dir_all(&directory).map_err(Failure::io("create the tree of files"))?;
        let target = directory.join(self.count.to_string());
        // A link takes no room; it fails across file systems and for files of others.
        if fs::hard_link(file, &target).is_ok() || fs::copy(file, &target).is_ok() {
            self.count += 1;
            self.left = self.left.saturating_sub(metadata.len());
        }
        Ok(())
    }
}
