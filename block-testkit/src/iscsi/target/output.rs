//! What a connection sends: PDUs with their padding and digests, one behind the other.

use std::ops::Range;

use block_iscsi::pdu::bhs::BHS_LEN;
use block_iscsi::pdu::digest::{DIGEST_LEN, Part, digest};

use super::frame::Digests;
use crate::iscsi::script::{Piece, announced};

/// Bytes that wait to be sent.
#[derive(Debug, Default)]
pub(super) struct Output {
    pub(super) bytes: Vec<u8>,
    pub(super) digests: Digests,
    /// The PDUs that no script has looked at, if there is one, and the digests that they have.
    pub(super) marks: Option<Vec<(Range<usize>, Digests)>>,
}

impl Output {
    /// Appends a PDU whose header is `header`.
    pub(super) fn put(&mut self, header: &[u8; BHS_LEN], data: &[u8]) {
        self.put_with(header, |bytes| bytes.extend_from_slice(data));
    }

    /// Appends a PDU whose data segment `fill` appends, as long as the header says.
    pub(super) fn put_with(&mut self, header: &[u8; BHS_LEN], fill: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(header);
        if self.digests.header {
            self.bytes.extend_from_slice(&digest(header));
        }
        let data_start = self.bytes.len();
        fill(&mut self.bytes);
        let len = self.bytes.len() - data_start;
        self.bytes.resize(data_start + len.next_multiple_of(4), 0);
        if self.digests.data && len > 0 {
            let sum = digest(self.bytes.get(data_start..).unwrap_or_default());
            self.bytes.extend_from_slice(&sum);
        }
        if let Some(marks) = &mut self.marks {
            marks.push((start..self.bytes.len(), self.digests));
        }
    }

    /// Puts what `filter` makes of the PDUs that no script has looked at in their place. Says whether
    /// the connection is cut.
    pub(super) fn filter(
        &mut self,
        mut filter: impl FnMut([u8; BHS_LEN], Vec<u8>) -> Vec<Piece>,
    ) -> bool {
        let marks = self.marks.as_mut().map(std::mem::take).unwrap_or_default();
        let Some((first, _)) = marks.first() else { return false };
        let start = first.start;
        let tail = self.bytes.split_off(start);
        for (range, digests) in marks {
            let pdu = tail.get(range.start - start..range.end - start).unwrap_or_default();
            let Some((header, data)) = take_apart(pdu, digests) else { continue };
            let mut left = None;
            for piece in filter(header, data) {
                let before = self.bytes.len();
                match piece {
                    Piece::Cut(len) => left = Some(len),
                    Piece::Bytes(bytes) => self.bytes.extend(bytes),
                    Piece::Pdu { header, data, spoiled } => {
                        self.encode(digests, &header, &data, spoiled);
                        if let Some(len) = left {
                            self.bytes.truncate(before + len);
                            return true;
                        }
                    }
                }
            }
        }
        false
    }

    /// Appends a PDU that may be wrong.
    fn encode(
        &mut self,
        digests: Digests,
        header: &[u8; BHS_LEN],
        data: &[u8],
        spoiled: Option<Part>,
    ) {
        let sum = |bytes: &[u8], part: Part| {
            let mut sum = digest(bytes);
            if spoiled == Some(part) {
                sum[0] ^= 1;
            }
            sum
        };
        self.bytes.extend_from_slice(header);
        if digests.header {
            self.bytes.extend_from_slice(&sum(header, Part::Header));
        }
        self.bytes.extend_from_slice(data);
        self.bytes.extend(std::iter::repeat_n(0, data.len().next_multiple_of(4) - data.len()));
        if digests.data && !data.is_empty() {
            self.bytes.extend_from_slice(&sum(data, Part::Data));
        }
    }
}

/// Header and data segment of a PDU as [`Output::put`] makes it.
fn take_apart(pdu: &[u8], digests: Digests) -> Option<([u8; BHS_LEN], Vec<u8>)> {
    let header = pdu.first_chunk::<BHS_LEN>()?;
    let start = BHS_LEN + if digests.header { DIGEST_LEN } else { 0 };
    let data = pdu.get(start..start + announced(header))?;
    Some((*header, data.to_vec()))
}
