//! EXTENDED COPY (LID1) and RECEIVE COPY RESULTS (SPC-4): from blocks
//! to blocks, between the units of one device, which identification descriptors name.
//!
//! Invariant: all segments are checked before the first is copied, so that a copy that ends with
//! CHECK CONDITION has copied nothing.

use std::collections::BTreeMap;

use block_core::range::{to_u64, to_usize};

use super::check::{Check, Refusal};
use super::command::{Cdb, Use};
use super::describe::cut;
use super::device::{Device, Nexus};
use super::lun::Lun;
use super::sanitize::Sanitizing;

const HEADER_LEN: usize = 16;
const TARGET_LEN: usize = 32;
const SEGMENT_LEN: usize = 28;
const TARGETS_MAX: usize = 16;
const SEGMENTS_MAX: usize = 64;
const LIST_LEN_MAX: usize = TARGETS_MAX * TARGET_LEN + SEGMENTS_MAX * SEGMENT_LEN;
/// Bytes that are copied at a time.
const PIECE: u64 = 1 << 20;

/// Type codes of descriptors.
const BLOCK_TO_BLOCK: u8 = 0x02;
const IDENTIFICATION: u8 = 0xe4;
/// LIST ID USAGE: nobody will ask for the status.
const NO_LIST_ID: u8 = 3;

/// How a copy ended.
#[derive(Copy, Clone, Debug)]
pub(super) struct Copied {
    /// COPY MANAGER STATUS.
    status: u8,
    segments: u16,
    bytes: u64,
}

impl Copied {
    const FAILED: Self = Self { status: 2, segments: 0, bytes: 0 };
}

/// A part of a unit, in blocks.
#[derive(Copy, Clone)]
struct Part {
    number: u16,
    lba: u64,
    count: u64,
}

/// A segment that can be copied.
#[derive(Copy, Clone)]
struct Segment {
    from: Part,
    to: Part,
    bytes: u64,
}

/// A parameter list, cut into its parts.
struct List<'a> {
    id: u8,
    usage: u8,
    targets: &'a [u8],
    segments: &'a [u8],
}

impl<'a> List<'a> {
    /// The parameter list header (SPC-4).
    fn parse(list: &'a [u8]) -> Result<Self, Check> {
        let (head, rest) = list.split_at_checked(HEADER_LEN).ok_or(Check::LIST_LENGTH)?;
        let head = Cdb::new(head);
        let (id, usage) = (head.u8(0), head.u8(1) >> 3 & 3);
        if usage == 1 {
            return Err(Check::parameter(1, 4));
        }
        if usage == NO_LIST_ID && id != 0 {
            return Err(Check::parameter(0, 7));
        }
        if head.u32(12) != 0 {
            return Err(Check::INLINE_DATA);
        }
        let (targets_len, segments_len) =
            (usize::from(head.u16(2)), to_usize(u64::from(head.u32(8))));
        let len = targets_len.saturating_add(segments_len);
        if len > LIST_LEN_MAX || len != rest.len() {
            return Err(Check::LIST_LENGTH);
        }
        if targets_len % TARGET_LEN != 0 {
            return Err(Check::parameter(2, 7));
        }
        let (targets, segments) = rest.split_at(targets_len);
        Ok(Self { id, usage, targets, segments })
    }
}

impl Device {
    /// EXTENDED COPY that unit `number` received.
    pub(super) fn copy(
        &mut self,
        nexus: Nexus,
        number: u16,
        cdb: Cdb,
        data: &[u8],
    ) -> Result<(), Refusal> {
        let len = to_usize(cdb.u32(10).into());
        if len == 0 {
            return Ok(());
        }
        let list = List::parse(data.get(..len).ok_or(Check::LIST_LENGTH)?)?;
        let targets = self.targets(number, list.targets)?;
        let planned = self.plan(nexus, &targets, list.segments);
        let copied = planned.as_ref().map_or(Copied::FAILED, |segments| {
            let count = u16::try_from(segments.len()).unwrap_or(u16::MAX);
            Copied { status: 1, segments: count, bytes: segments.iter().map(|one| one.bytes).sum() }
        });
        for segment in planned.iter().flatten() {
            self.copy_segment(*segment);
        }
        if list.usage != NO_LIST_ID
            && let Some(lun) = self.luns.get_mut(&number)
        {
            lun.copies.insert((nexus, list.id), copied);
        }
        planned.map(|_| ()).map_err(Refusal::from)
    }

    /// The units that descriptors name; a unit that is not here is an error only for its segments.
    fn targets(&self, number: u16, descriptors: &[u8]) -> Result<Vec<Option<u16>>, Check> {
        let descriptors = descriptors.chunks_exact(TARGET_LEN);
        if descriptors.len() > TARGETS_MAX {
            return Err(Check::MANY_TARGETS);
        }
        let mut found = Vec::new();
        for (place, descriptor) in (16u16..).step_by(TARGET_LEN).zip(descriptors) {
            if descriptor[0] != IDENTIFICATION {
                return Err(Check::UNKNOWN_TARGET);
            }
            if descriptor[1] & 0x1f != 0 {
                return Err(Check::parameter(place + 1, 4));
            }
            let Some(name) = descriptor[8..28].get(..usize::from(descriptor[7])) else {
                return Err(Check::parameter(place + 7, 7));
            };
            // Units may have the same name; the one that was asked is the nearest.
            let numbers = std::iter::once(number).chain(self.luns.keys().copied());
            let mut named = numbers.filter_map(|number| Some((number, self.luns.get(&number)?)));
            let named = named.find(|(_, lun)| lun.names().iter().any(|known| known == name));
            let block = u32::from_be_bytes([0, descriptor[29], descriptor[30], descriptor[31]]);
            if named.is_some_and(|(_, lun)| lun.config.block_size != block) {
                return Err(Check::parameter(place + 29, 7));
            }
            found.push(named.map(|(number, _)| number));
        }
        Ok(found)
    }

    /// The segments, all of which can be copied.
    fn plan(
        &self,
        nexus: Nexus,
        targets: &[Option<u16>],
        mut descriptors: &[u8],
    ) -> Result<Vec<Segment>, Check> {
        let mut cut_off = Vec::new();
        while !descriptors.is_empty() {
            let head = descriptors.get(..4).ok_or(Check::LIST_LENGTH)?;
            let len = 4 + usize::from(u16::from_be_bytes([head[2], head[3]]));
            let (one, rest) = descriptors.split_at_checked(len).ok_or(Check::LIST_LENGTH)?;
            cut_off.push(one);
            descriptors = rest;
        }
        if cut_off.len() > SEGMENTS_MAX {
            return Err(Check::MANY_SEGMENTS);
        }
        if cut_off.iter().any(|one| one[0] != BLOCK_TO_BLOCK || one.len() != SEGMENT_LEN) {
            return Err(Check::UNKNOWN_SEGMENT);
        }
        cut_off.iter().map(|one| self.segment(nexus, targets, one)).collect()
    }

    /// A block to block segment descriptor (SPC-4).
    fn segment(
        &self,
        nexus: Nexus,
        targets: &[Option<u16>],
        descriptor: &[u8],
    ) -> Result<Segment, Check> {
        let (head, places) = (Cdb::new(descriptor), Cdb::new(&descriptor[12..]));
        let unit = |index: u16| {
            let number = *targets.get(usize::from(index)).ok_or(Check::UNREACHABLE_COPY_TARGET)?;
            let number = number.ok_or(Check::COPY_TARGET_NOT_FOUND)?;
            Ok((number, self.luns.get(&number).ok_or(Check::COPY_TARGET_NOT_FOUND)?))
        };
        let ((from, source), (to, destination)) = (unit(head.u16(4))?, unit(head.u16(6))?);
        // DC: the blocks that are counted are those of the destination.
        let counted = if head.has(1, 0x02) { destination } else { source };
        let bytes = u64::from(head.u16(10)) * counted.block();
        let part = |number, lun: &Lun, lba, kind| {
            if bytes % lun.block() != 0 {
                return Err(Check::INEXACT_SEGMENT);
            }
            let allowed = lun.reservations.check(nexus, kind).is_ok()
                && lun.medium_present
                && lun.sanitizing == Sanitizing::Idle
                && (kind == Use::Read || lun.check_writable().is_ok());
            if !allowed {
                return Err(Check::COPY_TARGET_FAILED);
            }
            let count = bytes / lun.block();
            lun.check_range(lba, count).map_err(|_| Check::COPY_ABORTED)?;
            Ok(Part { number, lba, count })
        };
        Ok(Segment {
            from: part(from, source, places.u64(0), Use::Read)?,
            to: part(to, destination, places.u64(8), Use::Write)?,
            bytes,
        })
    }

    fn copy_segment(&mut self, Segment { from, to, bytes }: Segment) {
        let block = |part: Part| bytes.checked_div(part.count).unwrap_or(1);
        let mut done = 0;
        while done < bytes {
            // A whole number of blocks of either unit.
            let len = PIECE.min(bytes - done);
            let Some(source) = self.luns.get(&from.number) else { return };
            let at = from.lba + done / block(from);
            let data = source.store.read(at, len / block(from), source.unmapped_byte());
            let Some(destination) = self.luns.get_mut(&to.number) else { return };
            destination.store.write(to.lba + done / block(to), &data);
            done += to_u64(data.len());
        }
    }
}

/// RECEIVE COPY STATUS (LID1): what became of a copy of this nexus.
pub(super) fn status(
    copies: &BTreeMap<(Nexus, u8), Copied>,
    nexus: Nexus,
    cdb: Cdb,
) -> Result<Vec<u8>, Check> {
    let copied = copies.get(&(nexus, cdb.u8(2))).ok_or(Check::field(2, 7))?;
    // TRANSFER COUNT UNITS: bytes, or KiB if there are too many.
    let (unit, count) = match u32::try_from(copied.bytes) {
        Ok(bytes) => (0, bytes),
        Err(_) => (1, u32::try_from(copied.bytes >> 10).unwrap_or(u32::MAX)),
    };
    let [high, low] = copied.segments.to_be_bytes();
    let head = [0, 0, 0, 8, copied.status, high, low, unit];
    Ok(cut([head.as_slice(), &count.to_be_bytes()].concat(), cdb.u32(10)))
}

/// The page of third-party copies (8F): commands, limits, descriptors, no special CSCD identifiers.
pub(super) fn page() -> Vec<u8> {
    let mut commands = vec![0x83, 1, 0x00, 0x84, 2, 0x00, 0x03];
    commands.insert(0, u8::try_from(commands.len()).unwrap_or(u8::MAX));
    let limits = [vec![0; 4], limits(), vec![0; 16]].concat();
    let mut operations = [0, 0, 0, 1, 0, 0, 0, 1].to_vec();
    operations.resize(32, 0);
    let parts = [
        (0x0001, commands),
        (0x0004, limits),
        (0x0008, vec![2, BLOCK_TO_BLOCK, IDENTIFICATION]),
        (0x000c, vec![0; 2]),
        (0x8001, operations),
    ];
    let part = |(kind, mut content): (u16, Vec<u8>)| {
        content.resize(content.len().next_multiple_of(4), 0);
        let len = u16::try_from(content.len()).unwrap_or(u16::MAX);
        [kind.to_be_bytes().as_slice(), &len.to_be_bytes(), &content].concat()
    };
    parts.into_iter().flat_map(part).collect()
}

/// RECEIVE COPY OPERATING PARAMETERS: one copy at a time, no held data, no inline data.
pub(super) fn parameters(cdb: Cdb) -> Vec<u8> {
    let mut out = vec![0, 0, 0, 42, 1, 0, 0, 0];
    out.extend(limits());
    out.resize(34, 0);
    out.extend([0, 1, 1]);
    out.resize(43, 0);
    out.extend([2, BLOCK_TO_BLOCK, IDENTIFICATION]);
    cut(out, cdb.u32(10))
}

/// Most CSCD descriptors, most segments, longest list of both.
fn limits() -> Vec<u8> {
    let short = |count: usize| u16::try_from(count).unwrap_or(u16::MAX).to_be_bytes();
    let long = u32::try_from(LIST_LEN_MAX).unwrap_or(u32::MAX).to_be_bytes();
    [short(TARGETS_MAX).as_slice(), &short(SEGMENTS_MAX), &long].concat()
}
