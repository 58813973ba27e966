//! What becomes of the clusters of a piece: which hold data, and their bytes as the file holds them.
//!
//! Both passes use this, so that a cluster is the same in both.

use block_core::job::stream::{Finished, Pack, Piece, Pieces, is_zero};
use block_core::range::{to_u64, to_usize};

use super::list::Stored;
use crate::compress::Encoding;
use crate::compress::codec::{Codec, with_thread_codec};

/// The pieces of one pass.
pub(super) type ClusterPieces = Pieces<Work>;

/// How the pieces of a disk are made.
#[derive(Copy, Clone, Debug)]
pub(super) struct Work {
    pub(super) cluster_size: u64,
    /// How data is compressed, if it is.
    pub(super) encoding: Option<Encoding>,
    pub(super) keep: Keep,
}

/// What of a piece is wanted.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Keep {
    /// How long its clusters are.
    Lengths,
    /// Their bytes too.
    Bytes,
}

/// The data clusters of a piece.
#[derive(Default)]
pub(super) struct Clusters {
    pub(super) stored: Vec<Stored>,
    /// What was compressed of them.
    bytes: Vec<u8>,
}

impl Pack for Work {
    type Packed = Clusters;

    fn unit(&self) -> u64 {
        self.cluster_size
    }

    fn memory(&self, piece_bytes: usize) -> Clusters {
        // Compressed clusters are shorter than they were, one by one and together.
        let bytes = match (self.encoding, self.keep) {
            (None, _) => 0,
            (Some(_), Keep::Lengths) => to_usize(self.cluster_size),
            (Some(_), Keep::Bytes) => piece_bytes,
        };
        Clusters { stored: Vec::new(), bytes: Vec::with_capacity(bytes) }
    }

    /// Classifies the clusters and compresses them.
    fn pack(&self, piece: Piece, plain: &[u8], clusters: &mut Clusters) {
        clusters.bytes.clear();
        clusters.stored.clear();
        let first = piece.start / self.cluster_size;
        with_thread_codec(|codec| {
            for (cluster, bytes) in (first..).zip(plain.chunks(to_usize(self.cluster_size))) {
                if is_zero(bytes) {
                    continue;
                }
                let compress =
                    |encoding| compress(codec, encoding, bytes, &mut clusters.bytes, self.keep);
                let len = self.encoding.and_then(compress);
                let len = len.map_or(self.cluster_size, to_u64);
                clusters.stored.push(Stored { cluster, len });
            }
        });
    }
}

impl Work {
    /// The clusters of a piece and their bytes as the file holds them, where they were kept.
    pub(super) fn clusters<'a>(
        &self,
        piece: &'a Finished<Clusters>,
    ) -> impl Iterator<Item = (Stored, &'a [u8])> + Send + use<'a> {
        let mut packed = piece.packed().bytes.as_slice();
        let (size, start) = (self.cluster_size, piece.piece().start);
        piece.packed().stored.iter().map(move |stored| {
            let bytes = if stored.len == size {
                let at = to_usize(stored.cluster * size - start);
                piece.plain().get(at..at + to_usize(stored.len))
            } else {
                let (first, rest) =
                    packed.split_at_checked(to_usize(stored.len)).unwrap_or_default();
                packed = rest;
                Some(first)
            };
            (*stored, bytes.unwrap_or_default())
        })
    }
}

/// Compresses a cluster to the end of `packed`, where it stays if it is to be kept; `None` if it does
/// not become shorter.
fn compress(
    codec: &mut Codec,
    encoding: Encoding,
    bytes: &[u8],
    packed: &mut Vec<u8>,
    keep: Keep,
) -> Option<usize> {
    let start = packed.len();
    packed.resize(start + bytes.len() - 1, 0);
    let place = packed.get_mut(start..).unwrap_or_default();
    let len = codec.compress(encoding, bytes, place).filter(|len| (1..bytes.len()).contains(len));
    packed.truncate(match keep {
        Keep::Lengths => start,
        Keep::Bytes => start + len.unwrap_or(0),
    });
    len
}
