//! The commands that compare with what a medium holds: VERIFY, COMPARE AND WRITE (SBC-3).

use block_core::range::{to_u64, to_usize};

use super::check::Check;
use super::command::{Blocks, Cdb};
use super::lun::Lun;

/// What VERIFY compares with (BYTCHK).
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum ByteCheck {
    /// Nothing: that the blocks can be read is all.
    Nothing,
    /// As many blocks as there are to verify.
    All,
    /// Each block with the same one.
    Same,
}

impl ByteCheck {
    pub(super) fn of(cdb: Cdb) -> Result<Self, Check> {
        match cdb.u8(1) >> 1 & 3 {
            0 => Ok(Self::Nothing),
            1 => Ok(Self::All),
            3 => Ok(Self::Same),
            _ => Err(Check::field(1, 2)),
        }
    }
}

impl Lun {
    /// Of data that is too short, the whole blocks that came are compared.
    pub(super) fn verify(&self, cdb: Cdb, data: &[u8]) -> Result<(), Check> {
        let (blocks, compared) = (Blocks::of(cdb), ByteCheck::of(cdb)?);
        self.check_range(blocks.lba, blocks.count)?;
        if compared == ByteCheck::Nothing || blocks.count == 0 {
            return Ok(());
        }
        blocks.at_most(self.config.max_transfer)?;
        let len = to_usize(self.block());
        let mut chunks: Vec<_> = data.chunks_exact(len).collect();
        if compared == ByteCheck::Same {
            let first = *chunks.first().ok_or(Check::TOO_LITTLE_DATA)?;
            chunks = vec![first; to_usize(blocks.count)];
        }
        for (index, expected) in (0..blocks.count).zip(chunks) {
            let found = self.store.read(blocks.lba + index, 1, self.unmapped_byte());
            if let Some(offset) = difference(&found, expected) {
                return Err(Check::miscompare(index * self.block() + offset));
            }
        }
        Ok(())
    }

    /// Data must be as long as the count says: 256 blocks are not none, though eight bits say so.
    pub(super) fn compare_and_write(&mut self, cdb: Cdb, data: &[u8]) -> Result<(), Check> {
        let blocks = Blocks::of(cdb);
        self.check_range(blocks.lba, blocks.count)?;
        let len = to_usize(blocks.count * self.block());
        if data.len() < 2 * len {
            return Err(Check::TOO_LITTLE_DATA);
        }
        if data.len() > 2 * len {
            return Err(blocks.bad_count());
        }
        let (expected, new) = data.split_at(len);
        let found = self.store.read(blocks.lba, blocks.count, self.unmapped_byte());
        if let Some(offset) = difference(&found, expected) {
            return Err(Check::miscompare(offset));
        }
        self.store.write(blocks.lba, new);
        Ok(())
    }
}

/// Where two texts differ first.
fn difference(found: &[u8], expected: &[u8]) -> Option<u64> {
    found.iter().zip(expected).position(|(a, b)| a != b).map(to_u64)
}
