//! The commands that read and change a medium (SBC-3 clause 5).

use block_core::range::{to_u64, to_usize};

use super::check::Check;
use super::command::{Cdb, Op};
use super::lun::{Lun, Provisioning};

/// What blocks that are not mapped read as where that is not zeroes.
const JUNK: u8 = 0xa5;
/// Most descriptors in one answer to GET LBA STATUS.
const STATUS_DESCRIPTORS_MAX: u64 = 4096;

/// Blocks that a command is about, and where its CDB says how many.
#[derive(Copy, Clone)]
struct Blocks {
    lba: u64,
    count: u64,
    field: u16,
}

impl Blocks {
    fn of10(cdb: Cdb) -> Self {
        Self { lba: cdb.u32(2).into(), count: cdb.u16(7).into(), field: 7 }
    }

    fn of16(cdb: Cdb) -> Self {
        Self { lba: cdb.u64(2), count: cdb.u32(10).into(), field: 10 }
    }

    /// Refuses more than `max`.
    fn at_most(self, max: u32) -> Result<(), Check> {
        if self.count > u64::from(max) {
            return Err(Check::field(self.field, 7));
        }
        Ok(())
    }
}

impl Lun {
    /// Runs a command on the medium; the answer is its Data-In.
    pub(super) fn run_medium(&mut self, op: Op, cdb: Cdb, data: &[u8]) -> Result<Vec<u8>, Check> {
        match op {
            Op::Read10 => self.read(Blocks::of10(cdb)),
            Op::Read16 => self.read(Blocks::of16(cdb)),
            Op::Write10 => self.write(Blocks::of10(cdb), data),
            Op::Write16 => self.write(Blocks::of16(cdb), data),
            Op::WriteSame10 => self.write_same(Blocks::of10(cdb), cdb, Some(data)),
            Op::WriteSame16 => {
                self.write_same(Blocks::of16(cdb), cdb, (!cdb.has(1, 1)).then_some(data))
            }
            Op::Synchronize10 => self.synchronize(Blocks::of10(cdb)),
            Op::Synchronize16 => self.synchronize(Blocks::of16(cdb)),
            Op::CompareAndWrite => self.compare_and_write(cdb, data),
            Op::Unmap => self.unmap(cdb, data),
            Op::GetLbaStatus => self.lba_status(cdb.u64(2), cdb.u32(10)),
            Op::ReadCapacity10 => Ok(self.capacity10()),
            Op::ReadCapacity16 => Ok(self.capacity16(cdb.u32(10))),
            _ => Ok(Vec::new()),
        }
    }

    fn block(&self) -> u64 {
        self.config.block_size.into()
    }

    /// Refuses what is not on the medium.
    fn check_range(&self, lba: u64, count: u64) -> Result<(), Check> {
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
        let blocks = match op {
            Op::Read10 => Blocks::of10(cdb),
            Op::Read16 => Blocks::of16(cdb),
            _ => return None,
        };
        blocks.at_most(self.config.max_transfer).ok()?;
        self.check_range(blocks.lba, blocks.count).ok()?;
        Some((blocks.lba * self.block(), blocks.count * self.block()))
    }

    /// Writes the whole blocks that came; fewer than the CDB says are a residual, not an error.
    fn write(&mut self, blocks: Blocks, data: &[u8]) -> Result<Vec<u8>, Check> {
        blocks.at_most(self.config.max_transfer)?;
        self.check_range(blocks.lba, blocks.count)?;
        let len = to_usize(blocks.count * self.block()).min(data.len());
        self.store.write(blocks.lba, &data[..len]);
        Ok(Vec::new())
    }

    fn write_same(
        &mut self,
        blocks: Blocks,
        cdb: Cdb,
        data: Option<&[u8]>,
    ) -> Result<Vec<u8>, Check> {
        let (unmap, anchor) = (cdb.has(1, 0x08), cdb.has(1, 0x10));
        if anchor {
            // ANC_SUP is 0.
            return Err(Check::field(1, 4));
        }
        if unmap && !self.is_thin() {
            return Err(Check::field(1, 3));
        }
        if blocks.count == 0 {
            // WSNZ is 1.
            return Err(Check::field(blocks.field, 7));
        }
        blocks.at_most(self.config.max_write_same)?;
        self.check_range(blocks.lba, blocks.count)?;
        let len = to_usize(self.block());
        let zeroes = vec![0; len];
        let block = match data {
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
        Ok(Vec::new())
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

    fn synchronize(&self, blocks: Blocks) -> Result<Vec<u8>, Check> {
        self.check_range(blocks.lba, blocks.count)?;
        Ok(Vec::new())
    }

    fn compare_and_write(&mut self, cdb: Cdb, data: &[u8]) -> Result<Vec<u8>, Check> {
        let (lba, count) = (cdb.u64(2), u64::from(cdb.u8(13)));
        self.check_range(lba, count)?;
        let len = to_usize(count * self.block());
        let (expected, new) = match data.get(..2 * len) {
            Some(data) => data.split_at(len),
            None => return Err(Check::TOO_LITTLE_DATA),
        };
        let found = self.store.read(lba, count, self.unmapped_byte());
        if let Some(offset) = found.iter().zip(expected).position(|(a, b)| a != b) {
            return Err(Check::miscompare(to_u64(offset)));
        }
        self.store.write(lba, new);
        Ok(Vec::new())
    }

    /// UNMAP (SBC-3 5.28). Nothing is unmapped unless everything can be.
    fn unmap(&mut self, cdb: Cdb, data: &[u8]) -> Result<Vec<u8>, Check> {
        if cdb.has(1, 1) {
            return Err(Check::field(1, 0));
        }
        let len = usize::from(cdb.u16(7));
        if len == 0 {
            return Ok(Vec::new());
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
            self.check_range(lba, count)?;
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
        Ok(Vec::new())
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
        out.extend([0, 0, managed | zeroes, 0]);
        out.resize(32, 0);
        out.truncate(to_usize(allocation.into()));
        out
    }
}
