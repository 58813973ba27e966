//! Numbers out of a file in memory, big-endian unless their name says otherwise; what is beyond its end
//! is zero.

use block_core::range::{to_u64, to_usize};

/// A file.
#[derive(Copy, Clone)]
pub(super) struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Length in bytes.
    pub(super) fn len(self) -> u64 {
        to_u64(self.0.len())
    }

    /// The part of `[offset, offset + len)` that is inside the file; may be shorter or empty.
    pub(super) fn slice(self, offset: u64, len: u64) -> &'a [u8] {
        let start = to_usize(offset.min(self.len()));
        let end = to_usize(offset.saturating_add(len).min(self.len()));
        self.0.get(start..end).unwrap_or_default()
    }

    /// Fills `out` from `offset` on, with zeroes beyond the end.
    pub(super) fn copy_to(self, offset: u64, out: &mut [u8]) {
        let found = self.slice(offset, to_u64(out.len()));
        let (head, tail) = out.split_at_mut(found.len());
        head.copy_from_slice(found);
        tail.fill(0);
    }

    fn array<const N: usize>(self, offset: u64) -> [u8; N] {
        let mut out = [0; N];
        self.copy_to(offset, &mut out);
        out
    }

    pub(super) fn u8(self, offset: u64) -> u8 {
        u8::from_be_bytes(self.array(offset))
    }

    pub(super) fn u16(self, offset: u64) -> u16 {
        u16::from_be_bytes(self.array(offset))
    }

    pub(super) fn u32(self, offset: u64) -> u32 {
        u32::from_be_bytes(self.array(offset))
    }

    pub(super) fn u64(self, offset: u64) -> u64 {
        u64::from_be_bytes(self.array(offset))
    }

    pub(super) fn le_u16(self, offset: u64) -> u16 {
        u16::from_le_bytes(self.array(offset))
    }

    pub(super) fn le_u32(self, offset: u64) -> u32 {
        u32::from_le_bytes(self.array(offset))
    }

    pub(super) fn le_u64(self, offset: u64) -> u64 {
        u64::from_le_bytes(self.array(offset))
    }
}

impl std::fmt::Debug for Bytes<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_the_end_is_zero() {
        let bytes = Bytes::new(&[1, 2, 3]);
        assert_eq!(bytes.u16(0), 0x0102);
        assert_eq!(bytes.u32(1), 0x0203_0000);
        assert_eq!(bytes.u64(u64::MAX), 0);
        assert_eq!(bytes.slice(2, u64::MAX), &[3]);
        assert_eq!(bytes.slice(9, 1), &[] as &[u8]);
    }
}
