//! Compressing one cluster: raw deflate within a small or a large window, and Zstandard.
//!
//! Invariants: the payload is whole or `None`; it depends on the encoding, the data and the room for it alone, not
//! on what was compressed before or by which thread; with [`Window::Small`] no copy of a deflate payload reaches
//! back further than [`SMALL_BITS`] bits, with Zstandard none can.

use block_core::error::Problem;
#[cfg(feature = "zlib")]
use libdeflater::{CompressionLvl, Compressor};
#[cfg(feature = "zlib")]
use zlib_rs::{Deflate, DeflateConfig, DeflateFlush, Status};

use crate::spec::header::Compression;

/// The format's window: deflate payloads of a writer that keeps to it reach at most 4 KiB back.
#[cfg(feature = "zlib")]
const SMALL_BITS: i32 = 12;

/// How many symbols zlib-rs gathers for a block: 8 Ki, which for 64 KiB clusters of files gives the smallest
/// payloads, if by little.
#[cfg(feature = "zlib")]
const MEM_LEVEL: i32 = 7;

/// How clusters are compressed.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Encoding {
    compression: Compression,
    level: i32,
    window: Window,
}

/// How far back deflate may reach. Zstandard has its own rules and does not look at it.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum Window {
    /// 4 KiB: what every reader has. QEMU sets up its inflater with a window of this size.
    #[default]
    Small,
    /// 32 KiB: smaller and faster. For readers that inflate a cluster in one go, as the usual ones do.
    Large,
}

impl Window {
    /// The window that options call by this name: `4k` or `32k`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "4k" => Some(Self::Small),
            "32k" => Some(Self::Large),
            _ => None,
        }
    }
}

impl Encoding {
    /// Levels are 1 to 9 for deflate and 1 to 22 for Zstandard; `None` is the default of the two.
    ///
    /// A method whose feature is off has no encodings: [`Problem::NotBuilt`].
    pub fn new(
        compression: Compression,
        level: Option<u32>,
        window: Window,
    ) -> Result<Self, Problem> {
        if let Some(feature) = compression.missing_feature() {
            return Err(Problem::NotBuilt(feature));
        }
        let (default, max) = match compression {
            Compression::Deflate => (DEFLATE_LEVEL, DEFLATE_LEVEL_MAX),
            Compression::Zstd => (ZSTD_LEVEL, ZSTD_LEVEL_MAX),
        };
        let level = match level {
            None => default,
            Some(0) => return Err(Problem::Below(1)),
            Some(level) => i32::try_from(level).unwrap_or(i32::MAX),
        };
        if level > max {
            return Err(Problem::Above(u64::from(max.unsigned_abs())));
        }
        Ok(Self { compression, level, window })
    }

    /// What inflates it.
    pub fn compression(self) -> Compression {
        self.compression
    }
}

/// The encoders of one thread. One of each kind is kept, for the level that was last asked for.
#[derive(Default)]
pub(super) struct Encoders {
    #[cfg(feature = "zlib")]
    small: Option<(i32, Deflate)>,
    #[cfg(feature = "zlib")]
    large: Option<(i32, Compressor)>,
    #[cfg(feature = "zstd")]
    zstd: Option<(i32, zstd::bulk::Compressor<'static>)>,
}

impl Encoders {
    #[cfg_attr(
        not(any(feature = "zlib", feature = "zstd")),
        allow(unused_variables, reason = "there are no encodings")
    )]
    pub(super) fn compress(
        &mut self,
        encoding: Encoding,
        src: &[u8],
        dst: &mut [u8],
    ) -> Option<usize> {
        let level = encoding.level;
        match (encoding.compression, encoding.window) {
            #[cfg(feature = "zlib")]
            (Compression::Deflate, Window::Small) => self.small(level, src, dst),
            #[cfg(feature = "zlib")]
            (Compression::Deflate, Window::Large) => self.large(level, src, dst),
            #[cfg(feature = "zstd")]
            (Compression::Zstd, _) => self.zstd(level, src, dst),
            // There is no such encoding.
            #[cfg(not(all(feature = "zlib", feature = "zstd")))]
            _ => None,
        }
    }

    #[cfg(feature = "zlib")]
    fn small(&mut self, level: i32, src: &[u8], dst: &mut [u8]) -> Option<usize> {
        // A negative window means raw deflate.
        let (window_bits, mem_level) = (-SMALL_BITS, MEM_LEVEL);
        let config = DeflateConfig { level, window_bits, mem_level, ..DeflateConfig::default() };
        let make = || Some(Deflate::new_with_config(config));
        let encoder = kept(&mut self.small, level, make)?;
        let done = encoder.compress(src, dst, DeflateFlush::Finish);
        if let Ok(Status::StreamEnd) = done {
            let len = usize::try_from(encoder.total_out()).ok();
            encoder.reset();
            return len;
        }
        // `dst` was too small. The rest is still in the encoder, and zlib-rs 0.6 does not forget
        // all of it when it is reset: after a few such clusters it would panic.
        self.small = None;
        None
    }

    #[cfg(feature = "zlib")]
    fn large(&mut self, level: i32, src: &[u8], dst: &mut [u8]) -> Option<usize> {
        let make = || CompressionLvl::new(level).ok().map(Compressor::new);
        kept(&mut self.large, level, make)?.deflate_compress(src, dst).ok()
    }

    #[cfg(feature = "zstd")]
    fn zstd(&mut self, level: i32, src: &[u8], dst: &mut [u8]) -> Option<usize> {
        let make = || zstd::bulk::Compressor::new(level).ok();
        kept(&mut self.zstd, level, make)?.compress_to_buffer(src, dst).ok()
    }
}

#[cfg(any(feature = "zlib", feature = "zstd"))]
/// The encoder in `place` if it is for `level`, else a new one.
fn kept<T>(
    place: &mut Option<(i32, T)>,
    level: i32,
    make: impl FnOnce() -> Option<T>,
) -> Option<&mut T> {
    if place.as_ref().is_none_or(|(own, _)| *own != level) {
        *place = Some((level, make()?));
    }
    place.as_mut().map(|(_, encoder)| encoder)
}

/// On files of a system, one or two percent above zlib's own default in the same window, in less than half the time. Level
/// 9 is below it, in twice the time of this one.
const DEFLATE_LEVEL: i32 = 5;
const DEFLATE_LEVEL_MAX: i32 = 9;
/// The library's own default.
const ZSTD_LEVEL: i32 = 3;
const ZSTD_LEVEL_MAX: i32 = 22;

#[cfg(test)]
#[cfg(all(feature = "zlib", feature = "zstd"))]
mod tests {
    use super::*;

    #[test]
    fn levels_have_bounds() {
        let new = |compression, level| Encoding::new(compression, level, Window::Small);
        for (compression, default, max) in
            [(Compression::Deflate, 5, 9), (Compression::Zstd, 3, 22)]
        {
            assert_eq!(new(compression, None), new(compression, Some(default)));
            assert_eq!(new(compression, Some(0)), Err(Problem::Below(1)));
            assert!(new(compression, Some(1)).is_ok() && new(compression, Some(max)).is_ok());
            for level in [max + 1, u32::MAX] {
                assert_eq!(new(compression, Some(level)), Err(Problem::Above(u64::from(max))));
            }
        }
    }
}
