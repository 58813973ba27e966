//! Header and data digests: CRC32C (RFC 7143, sections 11.2.3 and 13.1).
//!
//! A header digest covers the basic header segment and all additional ones. A data digest covers
//! the data segment and its padding, which is zeroes. Both stand on the wire with the low byte of
//! the usual CRC32C first.

/// Length of a digest on the wire in bytes.
pub const DIGEST_LEN: usize = 4;

/// Which part of a PDU a digest covers.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Part {
    /// All header segments.
    Header,
    /// The data segment and its padding.
    Data,
}

/// A digest does not fit what it covers.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the {part:?} digest is {found:02x?}, the bytes have {expected:02x?}")]
pub struct DigestError {
    /// What the digest covers.
    pub part: Part,
    /// The digest of the bytes that came.
    pub expected: [u8; DIGEST_LEN],
    /// The digest that came with them.
    pub found: [u8; DIGEST_LEN],
}

/// A digest of bytes that come in pieces.
#[derive(Clone, Debug, Default)]
pub struct Digest {
    crc: u32,
    /// `len % 4` of the bytes so far.
    tail: usize,
}

impl Digest {
    /// The digest of no bytes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Goes on with `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        self.tail = (self.tail + bytes.len() % 4) % 4;
    }

    /// The digest as it stands on the wire. If the bytes end within a word of four, the zeroes
    /// that fill it are covered too.
    pub fn finish(mut self) -> [u8; DIGEST_LEN] {
        const PADDING: [u8; 4] = [0; 4];
        let missing = (4 - self.tail) % 4;
        self.update(PADDING.get(..missing).unwrap_or_default());
        self.crc.to_le_bytes()
    }
}

/// The digest of `bytes`, with padding if they need it.
pub fn digest(bytes: &[u8]) -> [u8; DIGEST_LEN] {
    let mut digest = Digest::new();
    digest.update(bytes);
    digest.finish()
}

/// Compares the digest of `bytes` (without padding) with the one that came.
pub fn check(part: Part, bytes: &[u8], found: [u8; DIGEST_LEN]) -> Result<(), DigestError> {
    let expected = digest(bytes);
    if expected != found {
        return Err(DigestError { part, expected, found });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 7143, appendix A.4, whose words give the bytes in the order in which they are sent.
    #[test]
    fn the_vectors_of_the_rfc_hold() {
        let ascending: Vec<u8> = (0..32).collect();
        let descending: Vec<u8> = (0..32).rev().collect();
        assert_eq!(digest(&[0; 32]), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(digest(&[0xff; 32]), [0x43, 0xab, 0xa8, 0x62]);
        assert_eq!(digest(&ascending), [0x4e, 0x79, 0xdd, 0x46]);
        assert_eq!(digest(&descending), [0x5c, 0xdb, 0x3f, 0x11]);
        let mut read_10 = [0; 48];
        read_10[..2].copy_from_slice(&[0x01, 0xc0]);
        read_10[16] = 0x14;
        read_10[22] = 0x04;
        read_10[27] = 0x14;
        read_10[31] = 0x18;
        read_10[32] = 0x28;
        read_10[40] = 0x02;
        assert_eq!(digest(&read_10), [0x56, 0x3a, 0x96, 0xd9]);
    }

    #[test]
    fn a_wrong_digest_is_refused_and_named() {
        assert_eq!(check(Part::Header, &[0; 32], [0xaa, 0x36, 0x91, 0x8a]), Ok(()));
        let refused = check(Part::Data, &[0; 32], [0xaa, 0x36, 0x91, 0x8b]).unwrap_err();
        assert_eq!(refused.part, Part::Data);
        assert_eq!(
            refused.to_string(),
            "the Data digest is [aa, 36, 91, 8b], the bytes have [aa, 36, 91, 8a]"
        );
    }

    proptest! {
        #[test]
        fn pieces_and_padding_make_no_difference(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..70), 0..6)
        ) {
            let mut in_pieces = Digest::new();
            for piece in &pieces {
                in_pieces.update(piece);
            }
            let mut whole = pieces.concat();
            prop_assert_eq!(in_pieces.finish(), digest(&whole));
            let unpadded = digest(&whole);
            whole.resize(whole.len().next_multiple_of(4), 0);
            prop_assert_eq!(digest(&whole), unpadded);
        }

        #[test]
        fn one_flipped_bit_is_seen(
            mut bytes in prop::collection::vec(any::<u8>(), 1..100),
            at in any::<prop::sample::Index>(),
            bit in 0..8_u32,
        ) {
            let before = digest(&bytes);
            let index = at.index(bytes.len());
            bytes[index] ^= 1 << bit;
            prop_assert!(check(Part::Data, &bytes, before).is_err());
        }
    }
}
