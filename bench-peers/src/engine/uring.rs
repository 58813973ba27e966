//! The limit with a queue: io_uring with `depth` requests in flight, submitted in batches.

use std::os::fd::AsRawFd;

use io_uring::{IoUring, opcode, types};

use super::Times;
use crate::Failure;
use crate::stopwatch::Stopwatch;
use crate::work::{Direction, PageBuf, Work};

pub fn run(work: &Work) -> Result<Times, Failure> {
    let file = work.open_raw()?;
    let fd = types::Fd(file.as_raw_fd());
    let depth = u32::try_from(work.depth)?;
    let len = u32::try_from(work.len)?;
    let mut bufs: Vec<PageBuf> = (0..work.depth).map(|_| work.page_buf()).collect();
    // The ring is dropped before the buffers, so that nothing is in flight when they go.
    let mut ring: IoUring = IoUring::builder().build(depth)?;

    let watch = Stopwatch::start()?;
    let mut free: Vec<usize> = (0..work.depth).collect();
    let (mut started, mut finished) = (0, 0);
    while finished < work.count {
        while started < work.count
            && let Some(slot) = free.pop()
        {
            let ptr = bufs[slot].slice().as_mut_ptr();
            let offset = work.offset(started);
            let entry = match work.direction {
                Direction::Read => opcode::Read::new(fd, ptr, len).offset(offset).build(),
                Direction::Write => opcode::Write::new(fd, ptr, len).offset(offset).build(),
            };
            let entry = entry.user_data(u64::try_from(slot)?);
            // SAFETY: the buffer is used by this request alone until its completion is seen, and
            // lives longer than the ring; at most `depth` entries are queued.
            unsafe { ring.submission().push(&entry)? };
            started += 1;
        }
        ring.submit_and_wait(1)?;
        for entry in ring.completion() {
            if entry.result() != i32::try_from(len)? {
                return Err(format!("{len} bytes were asked for, {} came", entry.result()).into());
            }
            free.push(usize::try_from(entry.user_data())?);
            finished += 1;
        }
    }
    watch.stop()
}
