//! The limit with a queue: io_uring with `depth` requests in flight, submitted in batches.

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use io_uring::{IoUring, opcode, types};
use nix::fcntl::OFlag;

use super::Times;
use crate::Failure;
use crate::stopwatch::Stopwatch;
use crate::work::{PageBuf, Work};

pub fn run(work: &Work) -> Result<Times, Failure> {
    let flags = if work.direct { OFlag::O_DIRECT.bits() } else { 0 };
    let file = OpenOptions::new().read(true).custom_flags(flags).open(&work.image)?;
    let fd = types::Fd(file.as_raw_fd());
    let depth = u32::try_from(work.depth)?;
    let len = u32::try_from(work.len)?;
    let mut bufs: Vec<PageBuf> = (0..work.depth).map(|_| PageBuf::new(work.len)).collect();
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
            let read = opcode::Read::new(fd, ptr, len)
                .offset(work.offset(started))
                .build()
                .user_data(u64::try_from(slot)?);
            // SAFETY: the buffer is used by this request alone until its completion is seen, and
            // lives longer than the ring; at most `depth` entries are queued.
            unsafe { ring.submission().push(&read)? };
            started += 1;
        }
        ring.submit_and_wait(1)?;
        for entry in ring.completion() {
            if entry.result() != i32::try_from(len)? {
                return Err(format!("a read of {len} bytes gave {}", entry.result()).into());
            }
            free.push(usize::try_from(entry.user_data())?);
            finished += 1;
        }
    }
    watch.stop()
}
