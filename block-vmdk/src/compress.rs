//! One grain, compressed or inflated: a zlib stream (RFC 1950).
//!
//! Invariants: what a stream gives is at least what the disk needs of the grain and at most the grain, or it is an
//! error, and the rest of the grain reads as zeroes; the checksum of the stream is held against its contents; what
//! follows the stream is not looked at. What is compressed depends on the level and the data alone, not on what was
//! compressed before or by which thread. Memory is that of the caller's buffers, whatever the stream says.

mod read;

pub use read::{GrainReader, StoredGrain, Wanted};

use std::cell::RefCell;

use block_core::error::Problem;
use libdeflater::{CompressionLvl, Compressor, DecompressionError, Decompressor};

/// Longest grain that is compressed or inflated, in sectors: 16 MiB. A grain is always handled as a whole, and tools
/// write grains of 64 KiB.
pub const COMPRESSED_GRAIN_SECTORS_MAX: u64 = 0x8000;

/// How hard grains are compressed.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Level(i32);

/// Why a stream is not that of a grain.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InflateError {
    /// It is no zlib stream, is cut, or its checksum does not fit.
    #[error("the zlib stream is damaged")]
    Damaged,
    /// It is longer than a grain.
    #[error("the zlib stream has more than {max} bytes, or is damaged")]
    TooLong {
        /// Bytes of a grain.
        max: usize,
    },
    /// It ends before the grain does.
    #[error("the zlib stream has {len} bytes, not {needed}")]
    TooShort {
        /// Bytes that it has.
        len: usize,
        /// Bytes of the grain that are inside of the disk.
        needed: usize,
    },
}

impl Level {
    /// Levels are 1 (fast) to 12 (small).
    pub fn new(level: u32) -> Result<Self, Problem> {
        match i32::try_from(level) {
            Ok(0) => Err(Problem::Below(1)),
            Ok(level @ 1..=LEVEL_MAX) => Ok(Self(level)),
            _ => Err(Problem::Above(u64::from(LEVEL_MAX.unsigned_abs()))),
        }
    }
}

impl Default for Level {
    fn default() -> Self {
        Self(LEVEL)
    }
}

/// Inflates the stream at the start of `src` to `dst`, which is as long as a grain. At least `needed` bytes must come,
/// which are less than a grain only in the last one of a disk. What is behind those that came becomes zero.
pub fn inflate(src: &[u8], dst: &mut [u8], needed: usize) -> Result<(), InflateError> {
    let done = with_codec(|codec| codec.decoder.zlib_decompress(src, dst));
    let len = match done {
        Ok(len) => len,
        Err(DecompressionError::InsufficientSpace) => {
            return Err(InflateError::TooLong { max: dst.len() });
        }
        Err(_) => return Err(InflateError::Damaged),
    };
    if len < needed {
        return Err(InflateError::TooShort { len, needed });
    }
    if let Some(rest) = dst.get_mut(len..) {
        rest.fill(0);
    }
    Ok(())
}

/// Inflates the stream at the start of `src` like [`inflate`], to `len` bytes of this thread, and shows them to `look`.
fn inflate_with<R>(
    src: &[u8],
    len: usize,
    needed: usize,
    look: impl FnOnce(&[u8]) -> R,
) -> Result<R, InflateError> {
    let mut scratch = with_codec(|codec| std::mem::take(&mut codec.scratch));
    scratch.resize(len, 0);
    let result = inflate(src, &mut scratch, needed).map(|()| look(&scratch));
    if len <= SCRATCH_MAX {
        with_codec(|codec| codec.scratch = scratch);
    }
    result
}

/// Compresses `src` to the end of `dst`; gives the length of the stream.
///
/// A stream that comes out short is made again, harder, and the shorter one taken: the file holds whole sectors, and
/// what compresses so well is done fast.
pub fn deflate(level: Level, src: &[u8], dst: &mut Vec<u8>) -> usize {
    with_codec(|codec| {
        let start = dst.len();
        let len = codec.encoder.append(level, src, dst);
        if len > SHORT || level >= HARD {
            return len;
        }
        let again = codec.hard.append(HARD, src, dst);
        if again < len {
            dst.copy_within(start + len.., start);
        }
        dst.truncate(start + again.min(len));
        again.min(len)
    })
}

/// The codecs of one thread.
struct Codec {
    decoder: Decompressor,
    encoder: Encoder,
    /// The one for streams that are made again.
    hard: Encoder,
    /// A grain that is inflated and then copied elsewhere.
    scratch: Vec<u8>,
}

impl Codec {
    fn new() -> Self {
        let (encoder, hard) = (Encoder::default(), Encoder::default());
        Self { decoder: Decompressor::new(), encoder, hard, scratch: Vec::new() }
    }
}

/// An encoder that is kept, for the level that was last asked for.
#[derive(Default)]
struct Encoder(Option<(Level, Compressor)>);

impl Encoder {
    /// Compresses `src` to the end of `dst`; gives the length of the stream.
    fn append(&mut self, level: Level, src: &[u8], dst: &mut Vec<u8>) -> usize {
        let make = || (level, Compressor::new(CompressionLvl::new(level.0).unwrap_or_default()));
        let kept = self.0.take().filter(|(own, _)| *own == level);
        let (_, encoder) = self.0.insert(kept.unwrap_or_else(make));
        let start = dst.len();
        let bound = encoder.zlib_compress_bound(src.len());
        dst.resize(start + bound, 0);
        let place = dst.get_mut(start..).unwrap_or_default();
        // There is always room: the bound is what the library says it needs at most.
        let len = encoder.zlib_compress(src, place).unwrap_or_default();
        dst.truncate(start + len);
        len
    }
}

fn with_codec<R>(work: impl FnOnce(&mut Codec) -> R) -> R {
    thread_local! {
        static CODEC: RefCell<Codec> = RefCell::new(Codec::new());
    }
    CODEC.with(|codec| work(&mut codec.borrow_mut()))
}

/// On files of a system, in grains of 64 KiB, the streams are about one percent smaller than those of zlib at its own
/// default, and take a third of its time. The level below has half of that gain for a seventh less time.
const LEVEL: i32 = 6;
/// At this level long runs are looked for to their ends, which the default does not do and zlib does.
const HARD: Level = Level(9);
/// Streams up to this many bytes are made again.
const SHORT: usize = 4096;
const LEVEL_MAX: i32 = 12;
/// Longest memory for a grain that a thread keeps for the next one.
const SCRATCH_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packed(data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let len = deflate(Level::default(), data, &mut out);
        assert_eq!(len, out.len());
        out
    }

    fn text(len: u32) -> Vec<u8> {
        (0..len).map(|n| (n / 100 % 251).to_le_bytes()[0]).collect()
    }

    #[test]
    fn levels_have_bounds() {
        assert_eq!(Level::new(0), Err(Problem::Below(1)));
        assert_eq!(Level::new(13), Err(Problem::Above(12)));
        assert_eq!(Level::new(u32::MAX), Err(Problem::Above(12)));
        let data = text(65536);
        for level in 1..=12 {
            let mut stream = Vec::new();
            deflate(Level::new(level).unwrap(), &data, &mut stream);
            let mut grain = vec![1; data.len()];
            inflate(&stream, &mut grain, data.len()).unwrap();
            assert!(grain == data && stream.len() < 2000, "{level}");
        }
    }

    /// Runs of a length that the levels below take two sectors for.
    #[test]
    fn what_compresses_well_is_compressed_hard() {
        let data: Vec<u8> = (0..65536u32).map(|n| (n / 91 % 7).to_le_bytes()[0]).collect();
        for level in 1..9 {
            let mut stream = vec![1, 2, 3];
            let len = deflate(Level::new(level).unwrap(), &data, &mut stream);
            assert!(len < 500 && stream.len() == 3 + len && stream[..3] == [1, 2, 3], "{len}");
            let mut grain = vec![0; data.len()];
            inflate(&stream[3..], &mut grain, data.len()).unwrap();
            assert!(grain == data);
        }
    }

    #[test]
    fn a_stream_is_one_of_zlib() {
        let stream = packed(&text(4096));
        let head = u16::from_be_bytes([stream[0], stream[1]]);
        assert_eq!((stream[0], head % 31), (0x78, 0));
    }

    #[test]
    fn what_follows_the_stream_is_not_looked_at() {
        let data = text(65536);
        let mut src = packed(&data);
        for tail in [1, 511, 5000] {
            src.extend(std::iter::repeat_n(0xa5, tail));
            let mut grain = vec![0; data.len()];
            inflate(&src, &mut grain, data.len()).unwrap();
            assert!(grain == data, "{tail}");
        }
    }

    #[test]
    fn a_short_stream_is_that_of_a_grain_at_the_end_of_the_disk_only() {
        let src = packed(&[7; 1000]);
        let mut grain = vec![9; 4096];
        inflate(&src, &mut grain, 512).unwrap();
        assert!(grain[..1000].iter().all(|byte| *byte == 7));
        assert!(grain[1000..].iter().all(|byte| *byte == 0));
        inflate(&src, &mut grain, 1000).unwrap();
        let short = InflateError::TooShort { len: 1000, needed: 1001 };
        assert_eq!(inflate(&src, &mut grain, 1001), Err(short));
    }

    #[test]
    fn too_long_or_damaged_is_an_error_and_the_next_one_works() {
        let data = text(4096);
        let src = packed(&data);
        let run = |src: &[u8], len: usize| inflate(src, &mut vec![0; len], len);
        assert_eq!(run(&src, 4095), Err(InflateError::TooLong { max: 4095 }));
        for cut in 0..src.len() {
            // The decoder goes on with zeroes where the stream is cut: it may be too long or damaged.
            assert!(run(&src[..cut], 4096).is_err(), "{cut}");
        }
        let mut other = src.clone();
        *other.last_mut().unwrap() ^= 1;
        assert_eq!(run(&other, 4096), Err(InflateError::Damaged));
        assert_eq!(run(&src, 4096), Ok(()));
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 1..600), flip in 0usize..200) {
            let mut grain = vec![0; 1024];
            let _ = inflate(&bytes, &mut grain, 1024);
            let mut src = packed(&bytes);
            inflate(&src, &mut grain, bytes.len()).unwrap();
            prop_assert_eq!(&grain[..bytes.len()], &bytes);
            let at = flip % src.len();
            src[at] ^= 0x10;
            let _ = inflate(&src, &mut grain, bytes.len());
        }

        /// Others that used the encoder before change nothing.
        #[test]
        fn the_stream_depends_on_the_data_alone(
            first in prop::collection::vec(0u8..4, 0..3000),
            second in prop::collection::vec(0u8..4, 0..3000),
        ) {
            let alone = std::thread::spawn({
                let second = second.clone();
                move || packed(&second)
            });
            packed(&first);
            prop_assert_eq!(packed(&second), alone.join().unwrap());
        }
    }
}
