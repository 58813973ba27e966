//! The disks that requests are sent to, each as a raw file and as a qcow2 image.
//!
//! Invariant: when a sample begins, an empty disk is new, and nothing that an earlier sample wrote waits to
//! be written to the disk.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::contender::Direction;
use crate::failure::{Failure, Result};
use crate::run;
use crate::scratch::Scratch;

/// What a disk holds before each sample.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Start {
    /// Random bytes, or what was written over them; every cluster is allocated.
    Allocated,
    /// Nothing: a sparse file, an image without a cluster.
    Empty,
}

/// A disk.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) raw: PathBuf,
    pub(super) qcow2: PathBuf,
    pub(super) len: u64,
    pub(super) start: Start,
}

impl Disk {
    /// A raw file of random bytes, and the same as qcow2; or the names of files that do not exist
    /// before [`Disk::prepare`].
    pub(super) fn new(scratch: &Scratch, start: Start, len: u64) -> Result<Self> {
        let name = match start {
            Start::Allocated => "allocated",
            Start::Empty => "empty",
        };
        let [raw, qcow2] = ["raw", "qcow2"].map(|format| scratch.file(&format!("{name}.{format}")));
        let disk = Self { raw, qcow2, len, start };
        if start == Start::Allocated {
            disk.fill()?;
        }
        Ok(disk)
    }

    fn fill(&self) -> Result<()> {
        let what = || format!("fill {}", self.raw.display());
        let random = File::open("/dev/urandom").map_err(Failure::io(what()))?;
        let mut file = File::create(&self.raw).map_err(Failure::io(what()))?;
        io::copy(&mut random.take(self.len), &mut file).map_err(Failure::io(what()))?;
        let mut convert = run::command("qemu-img");
        convert.args(["convert", "-f", "raw", "-O", "qcow2"]);
        run::succeed(convert.args([&self.raw, &self.qcow2]))?;
        run::succeed(&mut run::command("sync"))
    }

    /// Takes an allocated disk out of the page cache.
    pub(super) fn forget(&self) -> Result<()> {
        if self.start == Start::Empty {
            return Ok(());
        }
        run::succeed(&mut run::command("sync"))?;
        forget(&self.raw)?;
        forget(&self.qcow2)
    }

    /// Brings an allocated disk into the page cache.
    pub(super) fn read(&self) -> Result<()> {
        if self.start == Start::Empty {
            return Ok(());
        }
        read_whole(&self.raw)?;
        read_whole(&self.qcow2)
    }

    /// Before each run of a program on `image`, one of the disk's two.
    pub(super) fn prepare(&self, image: &Path, direction: Direction) -> Result<()> {
        if self.start == Start::Empty {
            // A file that is truncated instead would be written out by ext4 when it is closed.
            remove(image)?;
            if image == self.raw {
                let what = || format!("make {}", image.display());
                let file = File::create_new(image).map_err(Failure::io(what()))?;
                file.set_len(self.len).map_err(Failure::io(what()))?;
            } else {
                let mut create = run::command("qemu-img");
                create.args(["create", "-q", "-f", "qcow2"]).arg(image);
                run::succeed(create.arg(self.len.to_string()))?;
            }
        }
        match direction {
            Direction::Read => Ok(()),
            Direction::Write => run::succeed(&mut run::command("sync")),
        }
    }

    /// Fails unless the image holds what the raw file holds, and nothing is wrong with it.
    pub(super) fn verify(&self, direct: bool) -> Result<()> {
        let cache = ["-T", if direct { "none" } else { "writeback" }];
        let mut compare = run::command("qemu-img");
        compare.args(["compare", "-q", "-f", "raw", "-F", "qcow2"]).args(cache);
        run::succeed(compare.args([&self.raw, &self.qcow2]))?;
        let mut check = run::command("qemu-img");
        check.args(["check", "-q", "-f", "qcow2"]).args(cache);
        run::succeed(check.arg(&self.qcow2))
    }

    /// Removes both files.
    pub(super) fn remove(self) -> Result<()> {
        remove(&self.raw)?;
        remove(&self.qcow2)
    }
}

/// Removes a file that need not exist.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other.map_err(Failure::io(format!("remove {}", path.display()))),
    }
}

/// Brings a file into the page cache.
pub(super) fn read_whole(path: &Path) -> Result<()> {
    let what = || format!("read {}", path.display());
    let mut file = File::open(path).map_err(Failure::io(what()))?;
    io::copy(&mut file, &mut io::sink()).map_err(Failure::io(what()))?;
    Ok(())
}

/// Takes a file, which has been synced, out of the page cache: dd does so when it copies nothing.
fn forget(path: &Path) -> Result<()> {
    let mut from = OsString::from("if=");
    from.push(path);
    let mut dd = run::command("dd");
    run::succeed(dd.arg(from).args(["iflag=nocache", "count=0", "status=none"]))
}
