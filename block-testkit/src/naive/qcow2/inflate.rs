//! Decompression of one cluster, by other libraries than the driver's.

use std::io::Read;

use super::header::Compression;

/// Fills `out` from the compressed bytes `input`; what follows in `input` belongs to others.
/// `false` if `input` is damaged or gives less than `out` needs; a deflate stream must end with it.
pub(super) fn inflate(compression: Compression, input: &[u8], out: &mut [u8]) -> bool {
    match compression {
        Compression::Zlib => {
            let mut decoder = flate2::read::DeflateDecoder::new(input);
            decoder.read_exact(out).is_ok() && matches!(decoder.read(&mut [0]), Ok(0))
        }
        Compression::Zstd => match ruzstd::decoding::StreamingDecoder::new(input) {
            Ok(mut decoder) => decoder.read_exact(out).is_ok(),
            Err(_) => false,
        },
    }
}
