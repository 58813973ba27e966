//! Reading without a detour: a READ that will succeed is answered from where the blocks lie.

use block_core::range::to_usize;

use super::command::{self, Cdb};
use super::device::{Device, Nexus};
use super::sanitize::Sanitizing;
use super::store::Store;

/// What a READ found; see [`Device::read`].
#[derive(Copy, Clone, Debug)]
pub struct Blocks<'a> {
    store: &'a Store,
    unmapped: u8,
    /// Of the first byte, from the start of the unit.
    offset: u64,
    len: u64,
}

impl Blocks<'_> {
    /// How many bytes the READ wants.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the READ wants nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends the bytes `[start, start + len)` of the answer to `out`, as far as there are so many.
    pub fn append_to(&self, start: u64, len: u64, out: &mut Vec<u8>) {
        let start = start.min(self.len);
        let len = to_usize(len.min(self.len - start));
        self.store.append(self.offset + start, len, self.unmapped, out);
    }
}

impl Device {
    /// Runs a command that is a READ of something and will succeed; `None` if it is anything else, and then nothing
    /// has happened. The answer is that of [`Device::execute`], which needs one copy more.
    pub fn read(&mut self, nexus: Nexus, number: u16, cdb: &[u8]) -> Option<Blocks<'_>> {
        let cdb = Cdb::new(cdb);
        let entry = command::decode(cdb).ok()?;
        let lun = self.luns.get_mut(&number)?;
        let idle = lun.sanitizing == Sanitizing::Idle;
        if lun.has_attention(nexus) || !lun.medium_present || !idle {
            return None;
        }
        let (offset, len) = lun.readable(entry.op, cdb).filter(|(_, len)| *len > 0)?;
        lun.reservations.check(nexus, entry.kind(cdb)).ok()?;
        self.counters.count(cdb.u8(0), 0);
        self.counters.data_in += len;
        Some(Blocks { store: &lun.store, unmapped: lun.unmapped_byte(), offset, len })
    }
}
