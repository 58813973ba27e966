//! The limit without a queue: `pread`, one after the other, whatever the depth.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use nix::fcntl::OFlag;

use super::Times;
use crate::Failure;
use crate::stopwatch::Stopwatch;
use crate::work::{PageBuf, Work};

pub fn run(work: &Work) -> Result<Times, Failure> {
    let flags = if work.direct { OFlag::O_DIRECT.bits() } else { 0 };
    let file = OpenOptions::new().read(true).custom_flags(flags).open(&work.image)?;
    let mut buf = PageBuf::new(work.len);
    let watch = Stopwatch::start()?;
    for index in 0..work.count {
        file.read_exact_at(buf.slice(), work.offset(index))?;
    }
    watch.stop()
}
