//! What goes to the target next, as bytes: whole PDUs in the order in which they are sent.
//!
//! Headers that follow each other are put into one piece; the data of requests is sent from where it
//! is. With a data digest it is copied first, since the digest has to fit whatever its owner writes
//! there meanwhile.
//!
//! Invariant: `len` is the sum of all pieces that are not sent, `sent` is less than the length of the
//! first piece.

use std::collections::VecDeque;

use block_core::{IoBuf, IoVec};
use smallvec::SmallVec;

use crate::keys::DigestKind;
use crate::pdu::digest::digest;
use crate::transport::TransmitPart;

/// Bytes that are worth sending at once; no PDU is added beyond that.
const LEN_GOAL: usize = 512 << 10;

/// Pieces that are worth sending at once.
const PIECES_GOAL: usize = 128;

/// Most of the memory for headers that is kept for the next ones, in bytes.
const SPARE_LEN_MAX: usize = 64 << 10;

/// The sending half of a connection.
#[derive(Debug, Default)]
pub struct Outbound {
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that are sent.
    sent: usize,
    len: usize,
    spare: Vec<u8>,
    header_digest: bool,
    data_digest: bool,
}

#[derive(Debug)]
enum Piece {
    Bytes(Vec<u8>),
    Buf(IoBuf),
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Buf(buf) => buf.len(),
        }
    }
}

/// The pieces of one call to send.
pub type Parts<'a> = SmallVec<[TransmitPart<'a>; 8]>;

impl Outbound {
    /// Whether everything is sent.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What is to be sent, in order.
    pub fn parts(&self) -> Parts<'_> {
        let mut parts = Parts::new();
        let mut skip = self.sent;
        for piece in self.pieces.iter().take(PIECES_GOAL) {
            parts.push(match piece {
                Piece::Bytes(bytes) => {
                    TransmitPart::Bytes(bytes.get(std::mem::take(&mut skip)..).unwrap_or_default())
                }
                Piece::Buf(buf) => TransmitPart::Buf(buf),
            });
        }
        parts
    }

    /// Says that the first `len` bytes of [`Outbound::parts`] are sent.
    pub fn handle_transmitted(&mut self, len: usize) {
        self.len = self.len.saturating_sub(len);
        let mut left = len;
        while let Some(first) = self.pieces.front_mut() {
            let rest = first.len() - self.sent;
            if left < rest {
                match first {
                    Piece::Bytes(_) => self.sent += left,
                    Piece::Buf(buf) => *buf = buf.slice(left, rest - left),
                }
                return;
            }
            left -= rest;
            self.sent = 0;
            if let Some(Piece::Bytes(mut bytes)) = self.pieces.pop_front()
                && bytes.capacity() <= SPARE_LEN_MAX
                && bytes.capacity() > self.spare.capacity()
            {
                bytes.clear();
                self.spare = bytes;
            }
        }
    }

    /// Whether there is enough to send.
    pub(crate) fn is_full(&self) -> bool {
        self.len >= LEN_GOAL || self.pieces.len() >= PIECES_GOAL
    }

    /// Which digests the PDUs from now on carry.
    pub(super) fn set_digests(&mut self, header: DigestKind, data: DigestKind) {
        self.header_digest = header == DigestKind::Crc32c;
        self.data_digest = data == DigestKind::Crc32c;
    }

    /// Adds bytes as they are.
    pub(super) fn push_raw(&mut self, bytes: &[u8]) {
        self.len += bytes.len();
        if let Some(Piece::Bytes(last)) = self.pieces.back_mut() {
            last.extend_from_slice(bytes);
            return;
        }
        let mut first = std::mem::take(&mut self.spare);
        first.extend_from_slice(bytes);
        self.pieces.push_back(Piece::Bytes(first));
    }

    /// Adds a PDU: its header segments, and its data segment, which is in memory of the session.
    pub(super) fn push_small(&mut self, header: &[u8], data: &[u8]) {
        self.push_header(header);
        if data.is_empty() {
            return;
        }
        self.push_raw(data);
        self.push_padding(data.len());
        if self.data_digest {
            self.push_raw(&digest(data));
        }
    }

    /// Adds a PDU whose data segment is memory of a request.
    pub(super) fn push(&mut self, header: &[u8], data: &IoVec) {
        if data.is_empty() || self.data_digest {
            self.push_small(header, &data.to_vec());
            return;
        }
        self.push_header(header);
        self.len += data.len();
        self.pieces.extend(data.bufs().iter().cloned().map(Piece::Buf));
        self.push_padding(data.len());
    }

    fn push_header(&mut self, header: &[u8]) {
        self.push_raw(header);
        if self.header_digest {
            self.push_raw(&digest(header));
        }
    }

    fn push_padding(&mut self, len: usize) {
        const ZEROES: [u8; 4] = [0; 4];
        let missing = len.next_multiple_of(4) - len;
        if missing > 0 {
            self.push_raw(ZEROES.get(..missing).unwrap_or_default());
        }
    }
}
