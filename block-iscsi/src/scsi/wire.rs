//! Numbers out of an answer, big-endian; what is beyond its end is an error or, where the standard
//! lets a target leave fields out, zero.

use super::AnswerError;

/// The bytes of an answer, or of a part of one.
#[derive(Copy, Clone)]
pub(super) struct Bytes<'a> {
    what: &'static str,
    bytes: &'a [u8],
}

impl<'a> Bytes<'a> {
    /// The bytes of `what`, which errors name.
    pub(super) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, bytes }
    }

    pub(super) fn len(self) -> usize {
        self.bytes.len()
    }

    /// The part `[at, at + len)`.
    pub(super) fn slice(self, at: usize, len: usize) -> Result<&'a [u8], AnswerError> {
        let end = at.saturating_add(len);
        let truncated =
            AnswerError::Truncated { what: self.what, len: self.bytes.len(), needed: end };
        self.bytes.get(at..end).ok_or(truncated)
    }

    /// The first `len` bytes.
    pub(super) fn first(self, len: usize) -> Result<Self, AnswerError> {
        Ok(Self { what: self.what, bytes: self.slice(0, len)? })
    }

    /// The first `len` bytes, or as many as there are.
    pub(super) fn at_most(self, len: usize) -> Self {
        let bytes = self.bytes.get(..len).unwrap_or(self.bytes);
        Self { what: self.what, bytes }
    }

    /// What comes after the first `at` bytes; nothing if there are no more.
    pub(super) fn from(self, at: usize) -> Self {
        Self { what: self.what, bytes: self.bytes.get(at..).unwrap_or_default() }
    }

    fn array<const N: usize>(self, at: usize) -> Result<[u8; N], AnswerError> {
        let mut out = [0; N];
        out.copy_from_slice(self.slice(at, N)?);
        Ok(out)
    }

    pub(super) fn u8(self, at: usize) -> Result<u8, AnswerError> {
        Ok(u8::from_be_bytes(self.array(at)?))
    }

    pub(super) fn u16(self, at: usize) -> Result<u16, AnswerError> {
        Ok(u16::from_be_bytes(self.array(at)?))
    }

    pub(super) fn u32(self, at: usize) -> Result<u32, AnswerError> {
        Ok(u32::from_be_bytes(self.array(at)?))
    }

    pub(super) fn u64(self, at: usize) -> Result<u64, AnswerError> {
        Ok(u64::from_be_bytes(self.array(at)?))
    }

    /// The whole of it in pieces of `len` bytes; a shorter last one is left out.
    pub(super) fn pieces(self, len: usize) -> impl ExactSizeIterator<Item = Self> {
        self.bytes.chunks_exact(len).map(move |bytes| Self { what: self.what, bytes })
    }
}

/// `u32` to `usize`, saturating: for lengths that are compared with those of memory.
pub(super) fn size(len: u32) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

/// The bytes of an ASCII field without the spaces around it; what is not printable becomes `?`, so
/// that a target cannot write to somebody's terminal.
pub(super) fn text(bytes: &[u8]) -> String {
    let printable = |byte: &u8| if matches!(byte, b' '..=b'~') { char::from(*byte) } else { '?' };
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let text: String = bytes.iter().take(end).map(printable).collect();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_an_error_that_says_how_much_was_needed() {
        let bytes = Bytes::new("it", &[1, 2, 3]);
        assert_eq!(bytes.u16(1), Ok(0x0203));
        let truncated = AnswerError::Truncated { what: "it", len: 3, needed: 4 };
        assert_eq!(bytes.u16(2), Err(truncated));
        assert_eq!(truncated.to_string(), "it has 3 bytes of 4");
        assert!(bytes.slice(usize::MAX, usize::MAX).is_err());
        assert_eq!(bytes.from(9).len(), 0);
    }

    #[test]
    fn text_is_printable() {
        assert_eq!(text(b"  disk \x1b[0m \0\0"), "disk ?[0m");
        assert_eq!(text(b""), "");
    }
}
