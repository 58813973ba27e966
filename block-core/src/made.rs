//! The files that the making of one image has made, and how they are given up when it fails.
//!
//! Half an image opens as no image of its format, but as a raw disk, and what it was to overwrite is lost
//! already. Invariant: nothing is touched but the files of [`MadeFiles::add`], wherever their names lead by
//! then.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::io::pool;

/// Whether a file was there before.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Before {
    /// It was not.
    Missing,
    /// It was, and what it held is gone.
    There,
}

/// Regular files, in the order in which they were made.
#[derive(Clone, Debug, Default)]
pub(crate) struct MadeFiles(Arc<Mutex<Vec<MadeFile>>>);

#[derive(Debug)]
struct MadeFile {
    path: PathBuf,
    identity: (u64, u64),
    before: Before,
}

impl MadeFiles {
    /// Adds the file `path` with these `metadata`.
    pub(crate) fn add(&self, path: &Path, metadata: &Metadata, before: Before) {
        let file = MadeFile { path: path.to_owned(), identity: identity(metadata), before };
        self.0.lock().push(file);
    }

    /// Removes what was not there before, and empties the rest. What cannot be given up stays: the
    /// failure that led here is the one to tell of.
    pub(crate) async fn give_up(self) {
        let files = std::mem::take(&mut *self.0.lock());
        let given_up = pool::run(move || {
            files.iter().rev().for_each(|file| drop(file.give_up()));
            Ok(())
        });
        let _ = given_up.await;
    }
}

impl MadeFile {
    fn give_up(&self) -> io::Result<()> {
        let is_name = identity(&fs::symlink_metadata(&self.path)?) == self.identity;
        if self.before == Before::Missing && is_name {
            return fs::remove_file(&self.path);
        }
        // Whatever else has that name now must not be waited for.
        let mut options = OpenOptions::new();
        let file: File = options.write(true).custom_flags(libc::O_NONBLOCK).open(&self.path)?;
        match identity(&file.metadata()?) == self.identity {
            true => file.set_len(0),
            false => Ok(()),
        }
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn only_what_was_made_is_given_up() {
        let dir = TempDir::new().unwrap();
        let path = |name| dir.path().join(name);
        let made = MadeFiles::default();
        for (name, before) in
            [("new", Before::Missing), ("old", Before::There), ("replaced", Before::Missing)]
        {
            fs::write(path(name), "image").unwrap();
            made.add(&path(name), &fs::metadata(path(name)).unwrap(), before);
        }
        fs::write(path("other"), "other").unwrap();
        fs::rename(path("other"), path("replaced")).unwrap();
        block_on(made.give_up());
        assert!(!path("new").exists());
        assert_eq!(fs::read(path("old")).unwrap(), b"");
        assert_eq!(fs::read(path("replaced")).unwrap(), b"other");
    }
}
