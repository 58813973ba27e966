//! What comes from the target: bytes in, PDUs out. Data-In goes to the memory of its request.
//!
//! Bytes are received into a staging buffer. Once the header of a Data-In is known, what the buffer
//! holds of its data is copied to the request, and the rest is received there directly; the same
//! call to receive may bring the headers behind it.
//!
//! Invariants: `start <= end <= buffer.len()`; bytes are in the staging buffer only if no data segment
//! waits for them; the buffer never has more than the longest PDU that may come, or [`STAGING_LEN`].

use block_core::IoVec;
use block_core::range::to_usize;

use crate::keys::DigestKind;
use crate::pdu::PduError;
use crate::pdu::bhs::{BHS_LEN, Bhs};
use crate::pdu::digest::{DIGEST_LEN, Digest, DigestError, Part, check};
use crate::transport::ReceiveSlot;

use super::error::Violation;

/// Length of the staging buffer in bytes.
pub(super) const STAGING_LEN: usize = 128 << 10;

/// Room that is always there behind what is staged: more than a data segment's end and a header.
const STAGING_LEN_MIN: usize = 256;

/// A data segment of this length in bytes is long.
const BULK_LEN: usize = 32 << 10;

/// The receiving half of a connection.
#[derive(Debug)]
pub struct Inbound {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    segment: Option<Segment>,
    header_digest: bool,
    data_digest: bool,
    /// Longest data segment that may come.
    data_len_max: u32,
    bulk: bool,
}

/// A data segment on its way to the memory of a request.
#[derive(Debug)]
struct Segment {
    bhs: Bhs,
    to: IoVec,
    done: usize,
}

impl Segment {
    fn rest(&self) -> usize {
        self.to.len() - self.done
    }
}

/// A PDU that has come.
#[derive(Debug)]
pub(super) enum Received {
    /// One whose data, if any, is in the staging buffer.
    Whole(Bhs, Range),
    /// The header of a Data-In with data, which [`Inbound::place`] has to be told the place of.
    DataInHead(Bhs),
    /// A Data-In whose data has arrived at its place.
    DataIn(Bhs),
}

/// A part of the staging buffer.
#[derive(Copy, Clone, Debug, Default)]
pub(super) struct Range {
    start: usize,
    len: usize,
}

impl Inbound {
    pub(super) fn new(data_len_max: u32) -> Self {
        Self {
            buffer: vec![0; STAGING_LEN],
            start: 0,
            end: 0,
            segment: None,
            header_digest: false,
            data_digest: false,
            data_len_max,
            bulk: false,
        }
    }

    /// Which digests the PDUs from now on carry, and how long their data segments may be.
    pub(super) fn set_limits(&mut self, header: DigestKind, data: DigestKind, data_len_max: u32) {
        self.header_digest = header == DigestKind::Crc32c;
        self.data_digest = data == DigestKind::Crc32c;
        self.data_len_max = data_len_max;
    }

    /// Where the next bytes belong. Never empty.
    pub fn slot(&mut self) -> ReceiveSlot<'_> {
        let direct = match &self.segment {
            Some(segment) => segment.to.slice(segment.done, segment.rest()),
            None => IoVec::new(),
        };
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start > 0 && self.end + STAGING_LEN_MIN > self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let len = if self.bulk { self.len_to_header() } else { usize::MAX };
        let room = self.buffer.get_mut(self.end..).unwrap_or_default();
        let len = len.min(room.len());
        ReceiveSlot { direct, staging: room.get_mut(..len).unwrap_or_default() }
    }

    /// How much is received beside a long data segment, or after one: up to the end of the next header, but
    /// none of the data behind it. That would have to be copied, and what is copied to an address that is
    /// not aligned is copied slowly, by the kernel, too.
    fn len_to_header(&self) -> usize {
        let end_of_data = self.segment.as_ref().map_or(0, |segment| {
            let len = segment.to.len();
            len.next_multiple_of(4) - len + self.trailer(len)
        });
        let staged = self.end - self.start;
        (end_of_data + self.header_len()).saturating_sub(staged).max(1)
    }

    fn header_len(&self) -> usize {
        BHS_LEN + if self.header_digest { DIGEST_LEN } else { 0 }
    }

    /// Takes note of `len` bytes that were received into [`Inbound::slot`].
    pub(super) fn handle_received(&mut self, len: usize) {
        let mut staged = len;
        if let Some(segment) = &mut self.segment {
            let direct = len.min(segment.rest());
            segment.done += direct;
            staged -= direct;
        }
        self.end = (self.end + staged).min(self.buffer.len());
    }

    /// The next PDU, or `None` if more bytes are needed.
    pub(super) fn next(&mut self) -> Result<Option<Received>, Violation> {
        if self.segment.is_some() {
            return self.next_of_segment();
        }
        let header_len = self.header_len();
        let Some(header) = self.staged(0, header_len) else {
            return Ok(None);
        };
        let (header, header_digest) = header.split_at(BHS_LEN);
        if let Ok(found) = header_digest.try_into() {
            check(Part::Header, header, found)?;
        }
        let bhs = Bhs::parse(header)?;
        bhs.check_data_len(self.data_len_max)?;
        if bhs.ahs_len() > 0 {
            // Targets have none to send.
            return Err(PduError::Field { field: "TotalAHSLength", value: bhs.ahs_len() }.into());
        }
        if bhs.opcode() == crate::pdu::bhs::Opcode::DataIn && bhs.data_len() > 0 {
            self.start += header_len;
            return Ok(Some(Received::DataInHead(bhs)));
        }
        let data_len = to_usize(bhs.data_len().into());
        let total = header_len + to_usize(bhs.padded_data_len().into()) + self.trailer(data_len);
        if total > self.buffer.len() {
            self.buffer.resize(total, 0);
        }
        if self.end - self.start < total {
            self.bulk = false;
            if self.start + total > self.buffer.len() {
                self.buffer.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
            }
            return Ok(None);
        }
        let data = Range { start: self.start + header_len, len: data_len };
        let digest_at = total - self.trailer(data_len);
        if let Some(found) = self.staged(digest_at, self.trailer(data_len))
            && let Ok(found) = found.try_into()
        {
            check(Part::Data, self.data(data), found)?;
        }
        self.start += total;
        Ok(Some(Received::Whole(bhs, data)))
    }

    /// The bytes of a data segment, until more are received.
    pub(super) fn data(&self, range: Range) -> &[u8] {
        self.buffer.get(range.start..range.start + range.len).unwrap_or_default()
    }

    /// Says where the data behind a header belongs: buffers of just that length.
    pub(super) fn place(&mut self, bhs: Bhs, to: IoVec) {
        let staged = self.buffer.get(self.start..self.end).unwrap_or_default();
        let done = staged.len().min(to.len());
        to.copy_from(0, staged.get(..done).unwrap_or_default());
        self.start += done;
        self.bulk = to.len() >= BULK_LEN;
        self.segment = Some(Segment { bhs, to, done });
    }

    fn next_of_segment(&mut self) -> Result<Option<Received>, Violation> {
        let Some(segment) = &self.segment else {
            return Ok(None);
        };
        let len = segment.to.len();
        let padding = len.next_multiple_of(4) - len;
        let trailer = padding + self.trailer(len);
        if segment.rest() > 0 || self.end - self.start < trailer {
            return Ok(None);
        }
        if let Some(found) = self.staged(padding, self.trailer(len))
            && let Ok(found) = <[u8; DIGEST_LEN]>::try_from(found)
        {
            check_placed(&segment.to, found)?;
        }
        self.start += trailer;
        Ok(self.segment.take().map(|segment| Received::DataIn(segment.bhs)))
    }

    /// Length of the digest behind a data segment.
    fn trailer(&self, data_len: usize) -> usize {
        if self.data_digest && data_len > 0 { DIGEST_LEN } else { 0 }
    }

    /// `len` bytes of the staging buffer, `skip` bytes behind its start.
    fn staged(&self, skip: usize, len: usize) -> Option<&[u8]> {
        let staged = self.buffer.get(self.start..self.end)?;
        staged.get(skip..)?.get(..len)
    }
}

/// Checks the digest of data that has been received into the memory of a request.
fn check_placed(data: &IoVec, found: [u8; DIGEST_LEN]) -> Result<(), DigestError> {
    let mut digest = Digest::new();
    let mut chunk = [0; 4096];
    let mut done = 0;
    while done < data.len() {
        let len = chunk.len().min(data.len() - done);
        if let Some(bytes) = chunk.get_mut(..len) {
            data.copy_to(done, bytes);
            digest.update(bytes);
        }
        done += len;
    }
    let expected = digest.finish();
    if expected != found {
        return Err(DigestError { part: Part::Data, expected, found });
    }
    Ok(())
}
