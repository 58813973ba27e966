//! One cluster, compressed or inflated: raw deflate and Zstandard.
//!
//! Invariants of inflating: the output is exactly one cluster or an error; bytes after the payload are
//! normal and not looked at; memory besides the output is bounded whatever the payload says. Those of
//! compressing stand in `encode.rs`.

use std::cell::RefCell;

use block_core::range::to_u64;
use block_core::{Error, Result, cpu};
#[cfg(feature = "zlib")]
use libdeflater::Decompressor;
#[cfg(feature = "zstd")]
use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

use crate::compress::encode::{Encoders, Encoding};
use crate::spec::header::Compression;

/// Largest window that a Zstandard frame may ask for: far more than a cluster, and a bound on what
/// a hostile one makes the decoder allocate.
#[cfg(feature = "zstd")]
const MAX_WINDOW_LOG: u32 = 24;

/// Decoders and encoders that are kept from one cluster to the next.
#[derive(Default)]
pub struct Codec {
    #[cfg(feature = "zlib")]
    deflate: Option<Decompressor>,
    #[cfg(feature = "zstd")]
    zstd: Option<Decoder<'static>>,
    encoders: Encoders,
    /// A cluster that is inflated and then copied elsewhere, or that is about to be compressed.
    scratch: Vec<u8>,
    /// Where a cluster is compressed.
    compressed: Vec<u8>,
}

impl Codec {
    /// No decoder and no encoder yet: each is made when it is first needed.
    pub fn new() -> Self {
        Self::default()
    }

    /// Compresses `src` to the start of `dst`: the length, or `None` if it does not fit.
    ///
    /// The bytes depend on the arguments alone, not on what the codec did before.
    pub fn compress(&mut self, encoding: Encoding, src: &[u8], dst: &mut [u8]) -> Option<usize> {
        self.encoders.compress(encoding, src, dst)
    }

    /// Compresses what `fill` puts into `len` bytes; `None` if that does not make them fewer.
    pub(crate) fn compress_with(
        &mut self,
        encoding: Encoding,
        len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Option<Vec<u8>> {
        let mut src = std::mem::take(&mut self.scratch);
        let mut dst = std::mem::take(&mut self.compressed);
        src.resize(len, 0);
        dst.resize(len.saturating_sub(1), 0);
        fill(&mut src);
        let done = self.compress(encoding, &src, &mut dst);
        let payload = done.and_then(|len| dst.get(..len)).map(<[u8]>::to_vec);
        (self.scratch, self.compressed) = (src, dst);
        payload
    }

    /// Inflates the payload at the start of `src` to all of `dst`.
    ///
    /// A method whose feature is off is [`Error::NotBuilt`].
    #[cfg_attr(
        not(any(feature = "zlib", feature = "zstd")),
        allow(unused_variables, unreachable_code, reason = "every method is refused")
    )]
    pub fn inflate(
        &mut self,
        compression: Compression,
        src: &[u8],
        dst: &mut [u8],
    ) -> Result<(), Error> {
        check_built(compression)?;
        let done: Option<usize> = match compression {
            #[cfg(feature = "zlib")]
            Compression::Deflate => self.inflate_deflate(src, dst),
            #[cfg(feature = "zstd")]
            Compression::Zstd => self.inflate_zstd(src, dst),
            #[cfg(not(all(feature = "zlib", feature = "zstd")))]
            _ => None,
        };
        match done {
            Some(len) if len == dst.len() => Ok(()),
            other => Err(Error::Corrupt {
                what: "length of an inflated cluster",
                value: to_u64(other.unwrap_or(0)),
            }),
        }
    }

    /// Inflates the payload at the start of `src` to `len` bytes and shows them to `look`.
    pub fn inflate_with<R>(
        &mut self,
        compression: Compression,
        src: &[u8],
        len: usize,
        look: impl FnOnce(&[u8]) -> R,
    ) -> Result<R, Error> {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.resize(len, 0);
        let done = self.inflate(compression, src, &mut scratch);
        let result = done.map(|()| look(&scratch));
        self.scratch = scratch;
        result
    }

    #[cfg(feature = "zlib")]
    /// Bytes written; `None` if the payload is damaged or longer than `dst`.
    fn inflate_deflate(&mut self, src: &[u8], dst: &mut [u8]) -> Option<usize> {
        let decoder = self.deflate.get_or_insert_with(Decompressor::new);
        decoder.deflate_decompress(src, dst).ok()
    }

    #[cfg(feature = "zstd")]
    fn inflate_zstd(&mut self, src: &[u8], dst: &mut [u8]) -> Option<usize> {
        if self.zstd.is_none() {
            let mut decoder = Decoder::new().ok()?;
            let window = zstd::stream::raw::DParameter::WindowLogMax(MAX_WINDOW_LOG);
            decoder.set_parameter(window).ok()?;
            self.zstd = Some(decoder);
        }
        let decoder = self.zstd.as_mut()?;
        decoder.reinit().ok()?;
        let mut input = InBuffer::around(src);
        let mut output = OutBuffer::around(dst);
        // Several frames may follow each other; what comes after a full cluster belongs to others.
        while output.pos() < output.capacity() {
            let before = (input.pos(), output.pos());
            decoder.run(&mut input, &mut output).ok()?;
            if before == (input.pos(), output.pos()) {
                break;
            }
        }
        Some(output.pos())
    }
}

/// Fails if the feature is off that a method needs.
pub(crate) fn check_built(compression: Compression) -> Result<()> {
    match compression.missing_feature() {
        Some(feature) => Err(Error::NotBuilt { feature }),
        None => Ok(()),
    }
}

/// Runs `work` with the codec of this thread.
pub(crate) fn with_thread_codec<R>(work: impl FnOnce(&mut Codec) -> R) -> R {
    thread_local! {
        static CODEC: RefCell<Codec> = RefCell::new(Codec::new());
    }
    CODEC.with(|codec| match codec.try_borrow_mut() {
        Ok(mut codec) => work(&mut codec),
        // Only if `work` runs `work` inside.
        Err(_) => work(&mut Codec::new()),
    })
}

/// Runs `work` on a thread of the pool, with the codec of that thread.
pub(crate) fn on_pool<R: Send + 'static>(
    work: impl FnOnce(&mut Codec) -> Result<R> + Send + 'static,
) -> impl Future<Output = Result<R>> + Send {
    cpu::run(move || with_thread_codec(work))
}

#[cfg(test)]
#[cfg(all(feature = "zlib", feature = "zstd"))]
mod tests {
    use libdeflater::{CompressionLvl, Compressor};
    use proptest::prelude::*;

    use super::*;

    fn deflate(data: &[u8]) -> Vec<u8> {
        let mut compressor = Compressor::new(CompressionLvl::default());
        let mut out = vec![0; compressor.deflate_compress_bound(data.len())];
        let len = compressor.deflate_compress(data, &mut out).unwrap();
        out.truncate(len);
        out
    }

    fn compress(compression: Compression, data: &[u8]) -> Vec<u8> {
        match compression {
            Compression::Deflate => deflate(data),
            Compression::Zstd => zstd::bulk::compress(data, 3).unwrap(),
        }
    }

    const BOTH: [Compression; 2] = [Compression::Deflate, Compression::Zstd];

    #[test]
    fn what_follows_the_payload_is_not_looked_at() {
        let data: Vec<u8> = (0..65536u32).map(|n| (n / 100 % 251) as u8).collect();
        let mut codec = Codec::new();
        for compression in BOTH {
            let mut src = compress(compression, &data);
            for tail in [0, 1, 511, 5000] {
                src.extend(std::iter::repeat_n(0xa5, tail));
                let mut dst = vec![0; data.len()];
                codec.inflate(compression, &src, &mut dst).unwrap();
                assert!(dst == data, "{compression:?} {tail}");
            }
        }
    }

    #[test]
    fn too_short_too_long_or_damaged_is_an_error_and_the_next_one_works() {
        let data = vec![7; 4096];
        let mut codec = Codec::new();
        for compression in BOTH {
            let src = compress(compression, &data);
            let mut inflate =
                |src: &[u8], len: usize| codec.inflate(compression, src, &mut vec![0; len]);
            assert!(inflate(&src, 4097).is_err());
            assert!(inflate(&src[..src.len() / 2], 4096).is_err());
            assert!(inflate(&[0xff; 64], 4096).is_err());
            assert!(inflate(&[], 4096).is_err());
            assert!(inflate(&src, 4096).is_ok());
        }
        let src = deflate(&data);
        assert!(codec.inflate(Compression::Deflate, &src, &mut [0; 4095]).is_err());
    }

    #[test]
    fn frames_without_a_content_size_and_in_a_row_are_read() {
        let data = vec![9; 3000];
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 3).unwrap();
        std::io::Write::write_all(&mut encoder, &data).unwrap();
        let mut src = encoder.finish().unwrap();
        src.extend(compress(Compression::Zstd, &data));
        let mut dst = vec![0; 6000];
        Codec::new().inflate(Compression::Zstd, &src, &mut dst).unwrap();
        assert!(dst.iter().all(|b| *b == 9));
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..600), flip in 0usize..200) {
            let mut codec = Codec::new();
            for compression in BOTH {
                let _ = codec.inflate(compression, &bytes, &mut [0; 512]);
                let mut good = compress(compression, &bytes);
                let mut dst = vec![0; bytes.len()];
                codec.inflate(compression, &good, &mut dst).unwrap();
                prop_assert_eq!(&dst, &bytes);
                let at = flip % good.len();
                good[at] ^= 0x10;
                let _ = codec.inflate(compression, &good, &mut dst);
            }
        }
    }
}
