//! Compressed grains: a marker, and a zlib stream.

use super::error::BadImage;
use super::sparse::{SECTOR, Sparse};
use crate::naive::bytes::Bytes;
use crate::naive::inflate::inflate;
use block_core::range::{to_u64, to_usize};

/// Bytes of the marker before a grain: its first sector in the extent, and the length of the stream.
const MARKER: u64 = 12;

/// A compressed grain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Packed {
    /// Its bytes.
    pub(super) bytes: Vec<u8>,
    /// Sectors that it takes in the file.
    pub(super) sectors: u64,
}

impl Sparse<'_> {
    /// Inflates the grain `grain` of the extent, which starts at `sector` of the file.
    pub(super) fn unpack(&self, grain: u64, sector: u64) -> Result<Packed, BadImage> {
        let bad = |problem| BadImage::Compressed { sector, problem };
        let start = sector.saturating_mul(SECTOR);
        let limit = self.grain * SECTOR;
        let (at, most) = if self.markers {
            if self.file.le_u64(start) != grain * self.grain {
                return Err(bad("the marker is that of another grain"));
            }
            let size = u64::from(self.file.le_u32(start.saturating_add(8)));
            (start.saturating_add(MARKER), size)
        } else {
            (start, limit * 2)
        };
        let input = self.file.slice(at, most);
        if self.markers && to_u64(input.len()) != most {
            return Err(bad("it ends beyond the file"));
        }
        let (bytes, used) = zlib(input, to_usize(limit)).map_err(bad)?;
        if self.markers && to_u64(used) != most {
            return Err(bad("the stream is shorter than the marker says"));
        }
        let wanted = self.grain.min(self.capacity.saturating_sub(grain * self.grain)) * SECTOR;
        if to_u64(bytes.len()) < wanted {
            return Err(bad("it inflates to less than a grain"));
        }
        let sectors = (at - start + to_u64(used)).div_ceil(SECTOR);
        Ok(Packed { bytes, sectors })
    }
}

/// Inflates a zlib stream; what it holds, and the bytes that it took.
fn zlib(input: &[u8], limit: usize) -> Result<(Vec<u8>, usize), &'static str> {
    let head = Bytes::new(input).u16(0);
    let (method, dictionary) = (head >> 8 & 0xf, head & 0x20 != 0);
    if method != 8 || head >> 12 > 7 || dictionary || !head.is_multiple_of(31) {
        return Err("it is no zlib stream");
    }
    let window = 1 << ((head >> 12) + 8);
    let deflated = input.get(2..).unwrap_or_default();
    let found = inflate(deflated, window, limit).map_err(|_| "the deflate stream is damaged")?;
    let end = 2 + found.used;
    let stored = input.get(end..end + 4).ok_or("its checksum is missing")?;
    if stored != adler32(&found.bytes).to_be_bytes() {
        return Err("its checksum is wrong");
    }
    Ok((found.bytes, end + 4))
}

/// The checksum of zlib streams (RFC 1950, section 9).
fn adler32(bytes: &[u8]) -> u32 {
    let (mut a, mut b) = (1u32, 0u32);
    for byte in bytes {
        a = (a + u32::from(*byte)) % 65_521;
        b = (b + a) % 65_521;
    }
    b << 16 | a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_field() {
        assert_eq!(adler32(b""), 1);
        assert_eq!(adler32(b"Wikipedia"), 0x11e6_0398);
    }

    #[test]
    fn a_stream_that_another_library_made_is_read() -> std::io::Result<()> {
        use std::io::Write as _;
        let data: Vec<u8> = (0..20_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(&data)?;
        let mut packed = encoder.finish()?;
        let len = packed.len();
        packed.extend([1, 2, 3]);
        assert_eq!(zlib(&packed, data.len()), Ok((data.clone(), len)));
        assert!(zlib(&packed, data.len() - 1).is_err());
        packed[len - 1] ^= 1;
        assert_eq!(zlib(&packed, data.len()), Err("its checksum is wrong"));
        Ok(())
    }
}
