//! What a unit says of itself: INQUIRY, REPORT LUNS, REPORT SUPPORTED OPERATION CODES (SPC-4 clause 6),
//! READ DEFECT DATA.

use block_core::range::to_usize;

use super::check::Check;
use super::command::{Cdb, Entry, Op};
use super::copy;
use super::lun::{Lun, Medium, NoBlocks, Provisioning};
use super::table::COMMANDS;

const VENDOR: &[u8; 8] = b"TESTKIT ";
const PRODUCT: &[u8; 16] = b"memory disk     ";
const REVISION: &[u8; 4] = b"1   ";
const PAGES: [u8; 7] = [0x00, 0x80, 0x83, 0x8f, 0xb0, 0xb1, 0xb2];

/// As many bytes as the initiator has room for.
pub(super) fn cut(mut bytes: Vec<u8>, allocation: impl Into<u64>) -> Vec<u8> {
    bytes.truncate(to_usize(allocation.into()));
    bytes
}

/// INQUIRY; of no unit, if there is none behind the LUN.
pub(super) fn inquiry(lun: Option<&Lun>, cdb: Cdb) -> Result<Vec<u8>, Check> {
    let page = cdb.u8(2);
    let bytes = if cdb.has(1, 1) {
        let lun = lun.ok_or(Check::NO_LUN)?;
        let content = lun.page(page).ok_or(Check::field(2, 7))?;
        let len = u16::try_from(content.len()).unwrap_or(u16::MAX).to_be_bytes();
        [&[0, page], len.as_slice(), &content].concat()
    } else if page != 0 {
        return Err(Check::field(2, 7));
    } else {
        standard(lun)
    };
    Ok(cut(bytes, cdb.u16(3)))
}

fn standard(lun: Option<&Lun>) -> Vec<u8> {
    let removable = lun.is_some_and(|lun| lun.config.medium == Medium::Removable);
    let mut out = vec![0; 8];
    out[0] = if lun.is_some() { 0x00 } else { 0x7f };
    out[1] = if removable { 0x80 } else { 0 };
    // SPC-4; HISUP, format 2; 91 bytes follow; 3PC; CMDQUE.
    out[2..].copy_from_slice(&[6, 0x12, 91, 0x08, 0, 0x02]);
    out.extend(VENDOR);
    out.extend(PRODUCT);
    out.extend(REVISION);
    out.resize(58, 0);
    // SAM-5, SPC-4, SBC-3, iSCSI.
    out.extend([0x00, 0xa0, 0x04, 0x60, 0x04, 0xc0, 0x09, 0x60]);
    out.resize(96, 0);
    out
}

impl Lun {
    /// The content of a page of vital product data.
    fn page(&self, page: u8) -> Option<Vec<u8>> {
        Some(match page {
            0x00 => PAGES.to_vec(),
            0x80 => self.config.serial.clone().into_bytes(),
            0x83 => self.designators(),
            0x8f => copy::page(),
            0xb0 => self.block_limits(),
            0xb1 => {
                // Not a rotating medium; after an erasure reads are good (WABEREQ and WACEREQ are 1).
                let block_erase = if self.is_thin() { 0x40 } else { 0 };
                let mut out = vec![0, 1, 0, block_erase | 0x10];
                out.resize(60, 0);
                out
            }
            0xb2 => {
                let zeroes = if self.reads_zeroes() { 0x04 } else { 0 };
                let (flags, kind) = if self.is_thin() { (0xe0 | zeroes, 2) } else { (0, 0) };
                vec![0, flags, kind, 0]
            }
            _ => return None,
        })
    }

    /// Page 83: a T10 designator and a locally assigned NAA, both of the serial number.
    fn designators(&self) -> Vec<u8> {
        let [named, naa] = self.names();
        let len = |name: &[u8]| u8::try_from(name.len()).unwrap_or(u8::MAX);
        let heads = [[0x02, 0x01, 0, len(&named)], [0x01, 0x03, 0, len(&naa)]];
        [heads[0].as_slice(), &named, &heads[1], &naa].concat()
    }

    /// The designators themselves: T10, NAA.
    pub(super) fn names(&self) -> [Vec<u8>; 2] {
        let serial = self.config.serial.as_bytes();
        // FNV-1a, so that other serial numbers have other names.
        let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        let hash = serial.iter().fold(0xcbf2_9ce4_8422_2325, step);
        [[VENDOR, serial].concat(), (hash >> 4 | 3 << 60).to_be_bytes().to_vec()]
    }

    /// Page B0.
    fn block_limits(&self) -> Vec<u8> {
        let config = &self.config;
        let wsnz = u8::from(config.no_blocks == NoBlocks::Refused);
        // COMPARE AND WRITE of up to 255 blocks; the optimal granularity is a physical block.
        let [.., high, low] = (1u32 << config.physical_exponent).to_be_bytes();
        let mut out = vec![wsnz, 255, high, low];
        let best = config.max_transfer.min((1 << 20) / config.block_size);
        let (unmap, granule) = match config.provisioning {
            Provisioning::Thick => ([0, 0], [0, 0]),
            Provisioning::Thin { granularity, alignment, .. } => (
                [config.max_unmap_blocks, config.max_unmap_descriptors],
                [granularity, 1 << 31 | alignment],
            ),
        };
        let words = [[config.max_transfer, best], [0, unmap[0]], [unmap[1], granule[0]]];
        for word in words.iter().flatten() {
            out.extend(word.to_be_bytes());
        }
        out.extend(granule[1].to_be_bytes());
        out.extend(u64::from(config.max_write_same).to_be_bytes());
        // WRITE ATOMIC, of any alignment and length, without boundaries.
        out.extend(self.max_atomic().to_be_bytes());
        out.resize(60, 0);
        out
    }

    /// Whether the unit has a command.
    pub(super) fn has(&self, entry: &Entry) -> bool {
        match entry.op {
            Op::Unmap | Op::BlockErase => self.is_thin(),
            Op::Overwrite => self.can_be_overwritten(),
            Op::PreventRemoval => self.config.medium == Medium::Removable,
            _ => true,
        }
    }

    /// REPORT SUPPORTED OPERATION CODES (SPC-4 6.35).
    pub(super) fn report_opcodes(&self, cdb: Cdb) -> Result<Vec<u8>, Check> {
        let timeouts = cdb.has(2, 0x80);
        let out = match cdb.u8(2) & 0x07 {
            0 => self.all_opcodes(timeouts),
            options @ 1..=3 => self.one_opcode(options, cdb.u8(3), cdb.u16(4), timeouts)?,
            _ => return Err(Check::field(2, 2)),
        };
        Ok(cut(out, cdb.u32(6)))
    }

    fn all_opcodes(&self, timeouts: bool) -> Vec<u8> {
        let mut list = Vec::new();
        for entry in COMMANDS.iter().filter(|entry| self.has(entry)) {
            let flags = u8::from(entry.action().is_some()) | if timeouts { 2 } else { 0 };
            let len = u8::try_from(entry.usage.len()).unwrap_or(u8::MAX);
            list.extend([entry.opcode(), 0, 0, entry.action().unwrap_or(0), 0, flags, 0, len]);
            list.extend(timeout(timeouts));
        }
        let len = u32::try_from(list.len()).unwrap_or(u32::MAX);
        [len.to_be_bytes().as_slice(), &list].concat()
    }

    fn one_opcode(
        &self,
        options: u8,
        opcode: u8,
        action: u16,
        timeouts: bool,
    ) -> Result<Vec<u8>, Check> {
        let mut entries = COMMANDS.iter().filter(|entry| entry.opcode() == opcode).peekable();
        let has_actions = entries.peek().map(|entry| entry.action().is_some());
        match (options, has_actions) {
            (1, Some(true)) | (2, Some(false)) => return Err(Check::field(2, 2)),
            _ => {}
        }
        let found = entries.filter(|entry| self.has(entry)).find(|entry| match entry.action() {
            Some(code) => u16::from(code) == action,
            None => options == 1 || action == 0,
        });
        let Some(entry) = found else {
            return Ok(vec![0, 1, 0, 0]);
        };
        let len = u8::try_from(entry.usage.len()).unwrap_or(u8::MAX);
        let flags = if timeouts { 0x83 } else { 0x03 };
        let usage = entry.usage;
        Ok([&[0, flags, 0, len], usage, timeout(timeouts)].concat())
    }
}

/// READ DEFECT DATA (10) and (12) (SBC-3): the lists that were asked for are there, and empty.
pub(super) fn defects(op: Op, cdb: Cdb) -> Vec<u8> {
    match op {
        Op::ReadDefects10 => cut(vec![0, cdb.u8(2), 0, 0], cdb.u16(7)),
        _ => cut(vec![0, cdb.u8(1), 0, 0, 0, 0, 0, 0], cdb.u32(6)),
    }
}

/// A command timeouts descriptor that tells nothing (SPC-4 6.35).
fn timeout(wanted: bool) -> &'static [u8] {
    if wanted { &[0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] } else { &[] }
}

/// REPORT LUNS (SPC-4). There are no well known logical units.
pub(super) fn report_luns(numbers: impl Iterator<Item = u16>, cdb: Cdb) -> Result<Vec<u8>, Check> {
    let luns: Vec<u8> = match cdb.u8(2) {
        0 | 2 => numbers.flat_map(address).collect(),
        1 => Vec::new(),
        _ => return Err(Check::field(2, 7)),
    };
    let len = u32::try_from(luns.len()).unwrap_or(u32::MAX);
    Ok(cut([len.to_be_bytes().as_slice(), &[0; 4], &luns].concat(), cdb.u32(6)))
}

/// SAM-5 4.7: the peripheral device method up to 255, flat addressing beyond.
fn address(number: u16) -> [u8; 8] {
    let [high, low] = number.to_be_bytes();
    let method = if high == 0 { 0 } else { 0x40 };
    [method | high, low, 0, 0, 0, 0, 0, 0]
}
