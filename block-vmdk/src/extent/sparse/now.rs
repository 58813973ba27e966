//! Reads and writes that are answered within one call: of one run whose table is at hand.

use block_core::{ByteRange, IoVec, Result};

use super::SparseExtent;
use super::lookup::Kind;
use super::read::of_backing;

impl SparseExtent {
    /// Reads within this call, if that takes no waiting.
    pub(crate) fn read_now(&self, range: ByteRange, iov: &IoVec) -> Option<Result<()>> {
        let _pass = self.try_enter()?;
        let run = self.run_at_once(range)?.ok().filter(|run| run.len == range.len())?;
        match run.kind {
            Kind::Data(at) => {
                let there = ByteRange::new(at, range.len()).ok()?;
                (there.end() <= self.file.len()).then(|| self.file.read_now(there, iov))?
            }
            Kind::Unallocated => match &self.backing {
                Some(backing) => {
                    let there = range.shifted(self.start).ok()?;
                    let read =
                        (there.end() <= backing.len()).then(|| backing.read_now(there, iov))?;
                    read.map(|read| read.map_err(of_backing))
                }
                None => zeroes(iov),
            },
            Kind::Zero => zeroes(iov),
            Kind::Compressed { .. } => None,
        }
    }

    /// Writes within this call, to where the grains are already.
    pub(crate) fn write_now(&self, range: ByteRange, iov: &IoVec) -> Option<Result<()>> {
        let _pass = self.try_enter()?;
        // Damage is told by the long way.
        let host = self.in_place_at_once(range)?.ok()?;
        self.file.write_now(host, iov)
    }
}

fn zeroes(iov: &IoVec) -> Option<Result<()>> {
    iov.fill(0, iov.len(), 0);
    Some(Ok(()))
}
