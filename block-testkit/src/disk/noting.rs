//! A disk that notes what changes it, to be played again up to any point: what is there after a crash.
//!
//! Unlike [`crash`](super::crash) it keeps everything, for a short run of which every point is looked at.

use std::sync::Arc;

use async_trait::async_trait;
use block_core::driver::{BlockDriver, Exactness, Prealloc};
use block_core::proto::mem::MemDriver;
use block_core::range::to_usize;
use block_core::{BlockLimits, ByteRange, Capabilities, IoVec, RequestFlags, Result, Support};
use parking_lot::Mutex;

/// The disk.
pub struct Noting {
    disk: Arc<MemDriver>,
    notes: Mutex<Vec<Note>>,
}

/// What changed it, or made changes stable.
#[derive(Clone, Debug)]
pub enum Note {
    /// These bytes were written at this offset.
    Write(u64, Vec<u8>),
    /// This became the length.
    Truncate(u64),
    /// What came before is stable.
    Flush,
}

impl Noting {
    /// A disk that holds `bytes`.
    pub fn new(bytes: &[u8]) -> Arc<Self> {
        let disk = MemDriver::from_bytes(bytes).unwrap_or_else(|error| panic!("{error}"));
        Arc::new(Self { disk: Arc::new(disk), notes: Mutex::default() })
    }

    /// What has arrived.
    pub fn notes(&self) -> Vec<Note> {
        self.notes.lock().clone()
    }
}

#[async_trait]
impl BlockDriver for Noting {
    fn name(&self) -> &'static str {
        "noting"
    }

    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn limits(&self) -> BlockLimits {
        BlockLimits::default()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { grows_on_write: true, truncate: Support::Native, ..Capabilities::default() }
    }

    fn is_read_only(&self) -> bool {
        false
    }

    async fn preadv(self: Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        Arc::clone(&self.disk).preadv(range, iov).await
    }

    async fn pwritev(
        self: Arc<Self>,
        range: ByteRange,
        iov: IoVec,
        flags: RequestFlags,
    ) -> Result<()> {
        self.notes.lock().push(Note::Write(range.offset(), iov.to_vec()));
        Arc::clone(&self.disk).pwritev(range, iov, flags).await
    }

    async fn truncate(self: Arc<Self>, len: u64, how: Exactness, prealloc: Prealloc) -> Result<()> {
        self.notes.lock().push(Note::Truncate(len));
        Arc::clone(&self.disk).truncate(len, how, prealloc).await
    }

    async fn flush_to_disk(self: Arc<Self>) -> Result<()> {
        self.notes.lock().push(Note::Flush);
        Ok(())
    }
}

/// What a disk may hold that started with `start` and lost power after `notes`: all before the last flush, and
/// of what came since, sector by sector, what `keeps` picks.
pub fn after_crash(start: &[u8], notes: &[Note], mut keeps: impl FnMut() -> bool) -> Vec<u8> {
    let mut bytes = start.to_vec();
    let stable = notes.iter().rposition(|note| matches!(note, Note::Flush)).unwrap_or(0);
    for (index, note) in notes.iter().enumerate() {
        let (offset, data) = match note {
            Note::Write(offset, data) => (offset, data),
            Note::Truncate(len) if index < stable || keeps() => {
                bytes.resize(to_usize(*len), 0);
                continue;
            }
            _ => continue,
        };
        // Sectors are atomic; a write may begin within one.
        let mut at = 0;
        while at < data.len() {
            let place = to_usize(*offset) + at;
            let len = (512 - place % 512).min(data.len() - at);
            if index < stable || keeps() {
                if bytes.len() < place + len {
                    bytes.resize(place + len, 0);
                }
                bytes[place..place + len].copy_from_slice(&data[at..at + len]);
            }
            at += len;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_flushed_is_there_and_the_rest_is_by_sectors() {
        let notes = [
            Note::Write(0, vec![1; 512]),
            Note::Flush,
            Note::Truncate(2048),
            Note::Write(256, vec![2; 1024]),
        ];
        assert_eq!(after_crash(&[0; 512], &notes[..1], || false), [0; 512]);
        assert_eq!(after_crash(&[0; 512], &notes[..2], || false), [1; 512]);
        let mut picks = [true, false, true, true].into_iter();
        let torn = after_crash(&[0; 512], &notes, || picks.next().unwrap());
        assert_eq!(torn, [vec![1; 512], vec![2; 768], vec![0; 768]].concat());
    }
}
