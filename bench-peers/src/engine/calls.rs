//! The limit without a queue: `pread` or `pwrite`, one after the other, whatever the depth.

use std::os::unix::fs::FileExt;

use super::Times;
use crate::Failure;
use crate::stopwatch::Stopwatch;
use crate::work::{Direction, Work};

pub fn run(work: &Work) -> Result<Times, Failure> {
    let file = work.open_raw()?;
    let mut buf = work.page_buf();
    let watch = Stopwatch::start()?;
    for index in 0..work.count {
        match work.direction {
            Direction::Read => file.read_exact_at(buf.slice(), work.offset(index))?,
            Direction::Write => file.write_all_at(buf.slice(), work.offset(index))?,
        }
    }
    watch.stop()
}
