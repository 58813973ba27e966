//! Which requests are sent: the same to every engine, and the same as `qemu-img bench -S` sends.
//!
//! Request `i` reads or writes `len` bytes at `i * step % disk`. A step equal to `len` goes from one end to the other; a
//! step that has no common factor with the disk's length, both counted in requests, visits every
//! place of the disk once before it comes back, each far away from the one before.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use clap::Args;
use nix::fcntl::OFlag;

use crate::Failure;

/// As given on the command line.
#[derive(Args)]
pub struct Arguments {
    /// Which engine.
    #[arg(long)]
    engine: String,
    /// Length of the disk in bytes.
    #[arg(long)]
    disk: u64,
    /// Length of a request in bytes.
    #[arg(long, default_value_t = 4096)]
    len: u64,
    /// From one request to the next, in bytes.
    #[arg(long)]
    step: u64,
    /// How many requests.
    #[arg(long)]
    count: u64,
    /// How many at once.
    #[arg(long, default_value_t = 1)]
    depth: u64,
    /// Bypass the page cache.
    #[arg(long)]
    direct: bool,
    /// What buffers hold before they are used; writes write it. Not zero, so that their pages are
    /// there, not only promised.
    #[arg(long, default_value_t = 1)]
    pattern: u8,
    /// The image: qcow2 for libraries, raw for the engines `calls` and `uring`.
    image: PathBuf,
}

/// Whether data is read or written.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Direction {
    Read,
    Write,
}

/// Checked.
#[derive(Clone, Debug)]
pub struct Work {
    pub direction: Direction,
    pub engine: String,
    pub image: PathBuf,
    pub len: usize,
    pub depth: usize,
    pub count: u64,
    pub direct: bool,
    pub pattern: u8,
    disk: u64,
    step: u64,
}

impl Arguments {
    /// Refuses what some request would not fit.
    pub fn work(self, direction: Direction) -> Result<Work, Failure> {
        let fits = self.len > 0
            && self.disk.is_multiple_of(self.len)
            && self.step.is_multiple_of(self.len);
        if !fits || self.disk == 0 || self.depth == 0 {
            return Err("disk and step must be multiples of the length, nothing may be zero".into());
        }
        Ok(Work {
            direction,
            engine: self.engine,
            image: self.image,
            len: usize::try_from(self.len)?,
            depth: usize::try_from(self.depth)?,
            count: self.count,
            direct: self.direct,
            pattern: self.pattern,
            disk: self.disk,
            step: self.step,
        })
    }
}

impl Work {
    /// Where request `index` goes.
    pub fn offset(&self, index: u64) -> u64 {
        let offset = u128::from(index) * u128::from(self.step) % u128::from(self.disk);
        u64::try_from(offset).unwrap_or(0) // Below the disk's length, which is 64 bits.
    }

    /// Whether the image is written.
    pub fn writes(&self) -> bool {
        self.direction == Direction::Write
    }

    /// The image, opened as a raw file.
    pub fn open_raw(&self) -> io::Result<File> {
        let flags = if self.direct { OFlag::O_DIRECT.bits() } else { 0 };
        OpenOptions::new().read(true).write(self.writes()).custom_flags(flags).open(&self.image)
    }

    /// A buffer for one request.
    pub fn page_buf(&self) -> PageBuf {
        PageBuf::new(self.len, self.pattern)
    }
}

/// Bytes at a page's border, for engines that take any slice.
pub struct PageBuf {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl PageBuf {
    /// `len` bytes of one value.
    fn new(len: usize, value: u8) -> Self {
        let bytes = vec![value; len + 4096];
        let start = bytes.as_ptr().align_offset(4096);
        Self { bytes, start, len }
    }

    /// The bytes.
    pub fn slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(disk: u64, step: u64) -> Work {
        let (image, engine) = (PathBuf::new(), String::new());
        let (len, count, depth, direct, pattern) = (1, 1, 1, false, 1);
        let arguments = Arguments { engine, image, disk, len, step, count, depth, direct, pattern };
        arguments.work(Direction::Read).unwrap()
    }

    #[test]
    fn a_coprime_step_visits_everything() {
        let work = work(64, 39);
        let mut offsets: Vec<u64> = (0..64).map(|i| work.offset(i)).collect();
        offsets.sort_unstable();
        assert_eq!(offsets, (0..64).collect::<Vec<_>>());
    }

    #[test]
    fn a_buffer_is_aligned() {
        let mut buf = PageBuf::new(100, 7);
        assert_eq!(buf.slice().as_ptr().align_offset(4096), 0);
        assert_eq!(buf.slice(), [7; 100]);
    }
}
