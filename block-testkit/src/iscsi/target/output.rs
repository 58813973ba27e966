//! What a connection sends: PDUs with their padding and digests, one behind the other.

use std::ops::Range;

use block_core::range::to_usize;
use block_iscsi::pdu::bhs::BHS_LEN;
use block_iscsi::pdu::digest::digest;

use super::frame::Digests;

/// Bytes that wait to be sent.
#[derive(Debug, Default)]
pub(super) struct Output {
    pub(super) bytes: Vec<u8>,
    pub(super) digests: Digests,
    /// Where each PDU stands that nobody has looked at, if anybody wants to.
    pub(super) marks: Option<Vec<Range<usize>>>,
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
        debug_assert_eq!(len, data_len(header), "the header says how long the data is");
        self.bytes.resize(data_start + len.next_multiple_of(4), 0);
        if self.digests.data && len > 0 {
            let sum = digest(self.bytes.get(data_start..).unwrap_or_default());
            self.bytes.extend_from_slice(&sum);
        }
        if let Some(marks) = &mut self.marks {
            marks.push(start..self.bytes.len());
        }
    }
}

fn data_len([_, _, _, _, _, high, middle, low, ..]: &[u8; BHS_LEN]) -> usize {
    to_usize(u32::from_be_bytes([0, *high, *middle, *low]).into())
}
