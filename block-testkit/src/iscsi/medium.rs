//! The commands that read and change a medium (SBC-3 clause 5).

use block_core::range::{to_u64, to_usize};

use super::check::Check;
use super::command::{Blocks, Cdb, NO_DATA_OUT, Op};
use super::lun::{Lun, NoBlocks, Provisioning};

/// What blocks that are not mapped read as where that is not zeroes.
const JUNK: u8 = 0xa5;
/// Most descriptors in one answer to GET LBA STATUS.
const STATUS_DESCRIPTORS_MAX: u64 = 4096;

impl Lun {
    /// Runs a command on the medium; the answer is its Data-In.
    pub(super) fn run_medium(&mut self, op: Op, cdb: Cdb, data: &[u8]) -> Result<Vec<u8>, Check> {
        let blocks = Blocks::of(cdb);
        match op {
            Op::Read => return self.read(blocks),
            Op::GetLbaStatus => return self.lba_status(cdb.u64(2), cdb.u32(10)),
            Op::ReadCapacity10 => return Ok(self.capacity10()),
            Op::ReadCapacity16 => return Ok(self.capacity16(cdb.u32(10))),
            // What is written is what can be read, so that there is nothing to verify.
            Op::Write | Op::WriteAndVerify => self.write(blocks, data),
            Op::WriteAtomic => self.write_atomic(blocks, data),
            Op::OrWrite => self.or_write(blocks, data),
            Op::WriteSame => {
                self.write_same(blocks, cdb, (!cdb.has(1, NO_DATA_OUT)).then_some(data))
            }
            Op::CompareAndWrite => self.compare_and_write(cdb, data),
            Op::Verify => self.verify(cdb, data),
            // There is no cache.
            Op::Synchronize | Op::Prefetch => self.check_range(blocks.lba, blocks.count),
            Op::Unmap => self.unmap(cdb, data),
            Op::Overwrite | Op::BlockErase | Op::CryptoErase | Op::ExitFailureMode => {
                self.sanitize(op, cdb, data)
            }
            _ => Ok(()),
        }?;
        Ok(Vec::new())
    }

    pub(super) fn block(&self) -> u64 {
        self.config.block_size.into()
    }

    /// Refuses what is not on the medium.
    pub(super) fn check_range(&self, lba: u64, count: u64) -> Result<(), Check> {
        let after = self.config.blocks.checked_sub(lba).filter(|after| *after > 0);
        if after.is_none_or(|after| count > after) {
            return Err(Check::OUT_OF_RANGE);
        }
        Ok(())
    }

    pub(super) fn unmapped_byte(&self) -> u8 {
        if self.is_thin() && !self.reads_zeroes() { JUNK } else { 0 }
    }

    fn read(&self, blocks: Blocks) -> Result<Vec<u8>, Check> {
        blocks.at_most(self.config.max_transfer)?;
        self.check_range(blocks.lba, blocks.count)?;
        Ok(self.store.read(blocks.lba, blocks.count, self.unmapped_byte()))
    }

    /// The first byte of a READ and how many it wants, if it can be answered.
    pub(super) fn readable(&self, op: Op, cdb: Cdb) -> Option<(u64, u64)> {
        if op != Op::Read {
            return None;
        }
        let blocks = Blocks::of(cdb);
        blocks.at_most(self.config.max_transfer).ok()?;
        self.check_range(blocks.lba, blocks.count).ok()?;
        Some((blocks.lba * self.block(), blocks.count * self.block()))
    }

    /// Writes the blocks that came; fewer than the CDB says are a residual, not an error, but a part of
    /// a block is one.
    fn write(&mut self, blocks: Blocks, data: &[u8]) -> Result<(), Check> {
        blocks.at_most(self.config.max_transfer)?;
        self.check_range(blocks.lba, blocks.count)?;
        let len = to_usize(blocks.count * self.block()).min(data.len());
        if !to_u64(len).is_multiple_of(self.block()) {
            return Err(Check::TOO_LITTLE_DATA);
        }
        self.store.write(blocks.lba, &data[..len]);
        Ok(())
    }

    /// Most blocks of one WRITE ATOMIC.
    pub(super) fn max_atomic(&self) -> u32 {
        self.config.max_transfer.min(u16::MAX.into())
    }

    /// Writes everything or nothing.
    fn write_atomic(&mut self, blocks: Blocks, data: &[u8]) -> Result<(), Check> {
        blocks.at_most(self.max_atomic())?;
        self.check_range(blocks.lba, blocks.count)?;
        let data = data.get(..to_usize(blocks.count * self.block()));
        self.store.write(blocks.lba, data.ok_or(Check::TOO_LITTLE_DATA)?);
        Ok(())
    }

    /// Sets, of the whole blocks that came, the bits that are set: ORWRITE (16) (SBC-3).
    fn or_write(&mut self, blocks: Blocks, data: &[u8]) -> Result<(), Check> {
        blocks.at_most(self.config.max_transfer)?;
        self.check_range(blocks.lba, blocks.count)?;
        let count = blocks.count.min(to_u64(data.len()) / self.block());
        let mut bits = self.store.read(blocks.lba, count, self.unmapped_byte());
        for (bits, new) in bits.iter_mut().zip(data) {
            *bits |= new;
        }
        self.store.write(blocks.lba, &bits);
        Ok(())
    }

    fn write_same(
        &mut self,
        mut blocks: Blocks,
        cdb: Cdb,
        data: Option<&[u8]>,
    ) -> Result<(), Check> {
        let (unmap, anchor) = (cdb.has(1, 0x08), cdb.has(1, 0x10));
        if anchor {
            // ANC_SUP is 0.
            return Err(Check::field(1, 4));
        }
        if unmap && !self.is_thin() {
            return Err(Check::field(1, 3));
        }
        if blocks.count == 0 {
            match self.config.no_blocks {
                NoBlocks::Refused => return Err(blocks.bad_count()),
                NoBlocks::ToTheEnd => blocks.count = self.config.blocks.saturating_sub(blocks.lba),
            }
        }
        blocks.at_most(self.config.max_write_same)?;
        self.check_range(blocks.lba, blocks.count)?;
        let len = to_usize(self.block());
        let zeroes = vec![0; len];
        let block = match data {
            // What is meant by more than a block, nobody knows.
            Some(data) if data.len() > len => return Err(blocks.bad_count()),
            Some(data) => data.get(..len).ok_or(Check::TOO_LITTLE_DATA)?,
            None => &zeroes,
        };
        // Blocks may be unmapped only if they read the same afterwards (SBC-3 4.7.3.4.3).
        let freed = if unmap && self.reads_zeroes() && block == zeroes {
            self.granules(blocks.lba, blocks.count)
        } else {
            (blocks.lba, 0)
        };
        let (start, end) = (freed.0, freed.0 + freed.1);
        self.store.fill(blocks.lba, start - blocks.lba, block);
        self.store.unmap(start, freed.1);
        self.store.fill(end, blocks.lba + blocks.count - end, block);
        Ok(())
    }

    /// The whole granules in a range, as a first block and a number of them.
    fn granules(&self, lba: u64, count: u64) -> (u64, u64) {
        let Provisioning::Thin { granularity, alignment, .. } = self.config.provisioning else {
            return (lba, 0);
        };
        let (unit, offset) = (u64::from(granularity), u64::from(alignment));
        // Counted from one granule before block 0, so that nothing is negative.
        let shift = unit - offset;
        let start = (lba + shift).next_multiple_of(unit);
        let end = (lba + count + shift) / unit * unit;
        if start < end { (start - shift, end - start) } else { (lba, 0) }
    }

    /// UNMAP (SBC-3 5.28). Nothing is unmapped unless everything can be.
    fn unmap(&mut self, cdb: Cdb, data: &[u8]) -> Result<(), Check> {
        if cdb.has(1, 1) {
            return Err(Check::field(1, 0));
        }
        let len = usize::from(cdb.u16(7));
        if len == 0 {
            return Ok(());
        }
        let list = data.get(..len).filter(|list| list.len() >= 8).ok_or(Check::LIST_LENGTH)?;
        let descriptors_len = usize::from(u16::from_be_bytes([list[2], list[3]]));
        let descriptors = &list[8..];
        let descriptors = &descriptors[..descriptors_len.min(descriptors.len())];
        let most = to_usize(self.config.max_unmap_descriptors.into());
        if descriptors.len() / 16 > most {
            return Err(Check::parameter(2, 7));
        }
        let mut ranges = Vec::new();
        let mut total = 0;
        for (at, descriptor) in (8u16..).step_by(16).zip(descriptors.chunks_exact(16)) {
            let descriptor = Cdb::new(descriptor);
            let (lba, count) = (descriptor.u64(0), u64::from(descriptor.u32(8)));
            // No blocks are well even where the medium ends.
            if count > 0 || lba != self.config.blocks {
                self.check_range(lba, count)?;
            }
            total += count;
            if total > u64::from(self.config.max_unmap_blocks) {
                return Err(Check::parameter(at + 8, 7));
            }
            ranges.push((lba, count));
        }
        for (lba, count) in ranges {
            let (lba, count) = self.granules(lba, count);
            self.store.unmap(lba, count);
        }
        Ok(())
    }

    /// GET LBA STATUS (SBC-3 5.4): as many descriptors as there is room for, but one at least.
    fn lba_status(&self, lba: u64, allocation: u32) -> Result<Vec<u8>, Check> {
        self.check_range(lba, 1)?;
        let room = u64::from(allocation).saturating_sub(8) / 16;
        let mut descriptors = Vec::new();
        let mut next = lba;
        for _ in 0..room.clamp(1, STATUS_DESCRIPTORS_MAX) {
            let limit = self.config.blocks.min(next + u64::from(u32::MAX));
            if next == limit {
                break;
            }
            let (mapped, count) =
                if self.is_thin() { self.store.run(next, limit) } else { (true, limit - next) };
            descriptors.extend(next.to_be_bytes());
            descriptors.extend(u32::try_from(count).unwrap_or(u32::MAX).to_be_bytes());
            descriptors.extend([u8::from(!mapped), 0, 0, 0]);
            next += count;
        }
        let len = u32::try_from(descriptors.len() + 4).unwrap_or(u32::MAX);
        let mut out = len.to_be_bytes().to_vec();
        out.extend([0; 4]);
        out.extend(descriptors);
        out.truncate(to_usize(allocation.into()));
        Ok(out)
    }

    /// The answer to READ CAPACITY (10) (SBC-3 5.15).
    fn capacity10(&self) -> Vec<u8> {
        let last = u32::try_from(self.config.blocks - 1).unwrap_or(u32::MAX);
        [last.to_be_bytes(), self.config.block_size.to_be_bytes()].concat()
    }

    /// The answer to READ CAPACITY (16) (SBC-3 5.16.2).
    fn capacity16(&self, allocation: u32) -> Vec<u8> {
        let mut out = (self.config.blocks - 1).to_be_bytes().to_vec();
        out.extend(self.config.block_size.to_be_bytes());
        let managed = if self.is_thin() { 0x80 } else { 0 };
        let zeroes = if self.reads_zeroes() { 0x40 } else { 0 };
        out.extend([0, self.config.physical_exponent, managed | zeroes, 0]);
        out.resize(32, 0);
        out.truncate(to_usize(allocation.into()));
        out
    }
}
