//! Cutting received bytes to PDUs (RFC 7143, section 11.2).
//!
//! Invariant: of a PDU whose data segment is longer than allowed nothing is kept but what has come.

use block_core::range::to_usize;
use block_iscsi::pdu::bhs::BHS_LEN;
use block_iscsi::pdu::digest::{self, DIGEST_LEN, Part};

/// What has been agreed on for the bytes of one direction.
#[derive(Copy, Clone, Debug, Default)]
pub(super) struct Digests {
    pub(super) header: bool,
    pub(super) data: bool,
}

/// A whole PDU.
#[derive(Copy, Clone, Debug)]
pub(super) struct Frame<'a> {
    /// Header and additional segments.
    pub(super) header: &'a [u8],
    /// The data segment, without padding.
    pub(super) data: &'a [u8],
    /// Whether the data digest is right, if there is one.
    pub(super) intact: bool,
}

/// What received bytes start with.
pub(super) enum Cut<'a> {
    /// A PDU, which takes so many bytes.
    Whole(Frame<'a>, usize),
    /// A part of a PDU: at least so many bytes are needed.
    Part(usize),
    /// A header whose digest is wrong: nothing behind it can be trusted.
    Garbled,
    /// A PDU with more data than allowed.
    TooLong(&'a [u8]),
}

/// What `bytes` start with, given the longest data segment that is taken.
pub(super) fn cut(bytes: &[u8], digests: Digests, limit: u32) -> Cut<'_> {
    let Some(fixed) = bytes.first_chunk::<BHS_LEN>() else { return Cut::Part(BHS_LEN) };
    let [_, _, _, _, ahs_words, high, middle, low, ..] = *fixed;
    let header_len = BHS_LEN + usize::from(ahs_words) * 4;
    let data_len = u32::from_be_bytes([0, high, middle, low]);
    let header_end = header_len + if digests.header { DIGEST_LEN } else { 0 };
    let Some((header, header_digest)) = bytes.get(..header_end).map(|all| all.split_at(header_len))
    else {
        return Cut::Part(header_end);
    };
    if let Ok(found) = header_digest.try_into()
        && digest::check(Part::Header, header, found).is_err()
    {
        return Cut::Garbled;
    }
    if data_len > limit {
        return Cut::TooLong(header);
    }
    let len = to_usize(data_len.into());
    let padded_end = header_end + len.next_multiple_of(4);
    let has_digest = digests.data && len > 0;
    let end = padded_end + if has_digest { DIGEST_LEN } else { 0 };
    let Some(rest) = bytes.get(header_end..end) else { return Cut::Part(end) };
    let (data, behind) = rest.split_at(len);
    let intact = match behind.last_chunk::<DIGEST_LEN>() {
        Some(found) if has_digest => digest::check(Part::Data, data, *found).is_ok(),
        _ => true,
    };
    Cut::Whole(Frame { header, data, intact }, end)
}
