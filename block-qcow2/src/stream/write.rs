//! The bytes of the image, from the first to the last.
//!
//! Invariant: a cluster goes out only if it is stored as the measure pass said.

use block_core::job::stream::{Forward, Report};
use block_core::range::{to_u64, to_usize};
use futures::io::AsyncWrite;

use super::StreamError;
use super::layout::{Place, StreamLayout, l1_index};
use super::list::ClusterList;
use super::pieces::{ClusterPieces, Work};
use crate::geometry::{Geometry, L2Format};
use crate::spec::entry::{Copied, encode_compressed, encode_l1, encode_plain};
use crate::spec::refcount::set_refcount;

/// What is written, beside the data.
pub(super) struct Image<'a> {
    pub(super) geometry: Geometry,
    pub(super) layout: StreamLayout,
    pub(super) list: &'a ClusterList,
    pub(super) work: Work,
    /// The used bytes of the first cluster.
    pub(super) header: &'a [u8],
}

impl Image<'_> {
    /// Writes everything; gives the length of the file.
    pub(super) async fn write<S: AsyncWrite + Unpin + Send>(
        &self,
        mut out: Forward<'_, S>,
        pieces: &mut ClusterPieces,
        report: Report,
    ) -> Result<u64, StreamError> {
        self.write_tables(&mut out).await?;
        self.write_data(&mut out, pieces, report).await?;
        out.pad_to(self.layout.tables.len()).await?;
        Ok(out.finish().await?)
    }

    /// Writes what stands before the data.
    async fn write_tables<S: AsyncWrite + Unpin + Send>(
        &self,
        out: &mut Forward<'_, S>,
    ) -> Result<(), StreamError> {
        let (size, tables) = (self.geometry.cluster_size(), self.layout.tables);
        out.put(self.header).await?;
        out.pad_to(tables.refcount_table_offset().bytes()).await?;

        let blocks = tables.refcount_blocks_offset();
        for index in 0..tables.refcount_blocks {
            put_word(out, blocks.plus(index * size).bytes()).await?;
        }
        out.pad_to(blocks.bytes()).await?;
        self.write_refcounts(out).await?;

        let mut table = tables.l2_offset();
        let mut next = 0;
        for index in self.layout.l1_indexes(self.list) {
            for _ in next..index {
                put_word(out, 0).await?;
            }
            put_word(out, encode_l1(table, Copied::Yes)).await?;
            table = table.plus(size);
            next = index + 1;
        }
        for _ in next..tables.l1_entries {
            put_word(out, 0).await?;
        }
        out.pad_to(tables.l2_offset().bytes()).await?;
        self.write_l2(out).await
    }

    async fn write_refcounts<S: AsyncWrite + Unpin + Send>(
        &self,
        out: &mut Forward<'_, S>,
    ) -> Result<(), StreamError> {
        let mut refcounts = self.layout.refcounts(self.list);
        let mut block = vec![0; to_usize(self.geometry.cluster_size())];
        for _ in 0..self.layout.tables.refcount_blocks {
            block.fill(0);
            for index in 0..self.geometry.refcounts_per_block() {
                let Some(refs) = refcounts.next() else { break };
                // The layout lets no count pass what fits.
                let _ = set_refcount(self.geometry, &mut block, index, refs);
            }
            out.put(&block).await?;
        }
        Ok(())
    }

    async fn write_l2<S: AsyncWrite + Unpin + Send>(
        &self,
        out: &mut Forward<'_, S>,
    ) -> Result<(), StreamError> {
        let geometry = self.geometry;
        let mut places = self.layout.places(self.list).peekable();
        while let Some(first) = places.peek() {
            let table = l1_index(geometry, first.stored.cluster);
            let start = table * geometry.l2_entries();
            let mut next = start;
            let in_table = |place: &Place| place.stored.cluster < start + geometry.l2_entries();
            while let Some(place) = places.next_if(in_table) {
                for _ in next..place.stored.cluster {
                    self.put_entry(out, (0, 0)).await?;
                }
                self.put_entry(out, self.entry(place)).await?;
                next = place.stored.cluster + 1;
            }
            for _ in next..start + geometry.l2_entries() {
                self.put_entry(out, (0, 0)).await?;
            }
        }
        Ok(())
    }

    /// The words of the L2 entry of a cluster.
    fn entry(&self, place: Place) -> (u64, u64) {
        let geometry = self.geometry;
        if place.stored.len < geometry.cluster_size() {
            return encode_compressed(geometry, place.offset, place.stored.len);
        }
        let all = u32::MAX >> (32 - geometry.subclusters());
        encode_plain(geometry, Some(place.offset), all, 0, Copied::Yes)
    }

    async fn put_entry<S: AsyncWrite + Unpin + Send>(
        &self,
        out: &mut Forward<'_, S>,
        entry: (u64, u64),
    ) -> Result<(), StreamError> {
        put_word(out, entry.0).await?;
        match self.geometry.l2_format() {
            L2Format::Standard => Ok(()),
            L2Format::Extended => put_word(out, entry.1).await,
        }
    }

    /// Writes the data clusters, and compares them with the list.
    async fn write_data<S: AsyncWrite + Unpin + Send>(
        &self,
        out: &mut Forward<'_, S>,
        pieces: &mut ClusterPieces,
        report: Report,
    ) -> Result<(), StreamError> {
        let mut places = self.layout.places(self.list);
        let changed = |cluster: u64| {
            let offset = cluster.saturating_mul(self.geometry.cluster_size());
            Err(StreamError::Changed { offset })
        };
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            for (stored, bytes) in self.work.clusters(&piece) {
                let offset = match places.next() {
                    Some(place) if place.stored == stored => place.offset.bytes(),
                    Some(place) => return changed(place.stored.cluster.min(stored.cluster)),
                    None => return changed(stored.cluster),
                };
                let is_room = offset + stored.len < out.at() + to_u64(out.room());
                let putting = async {
                    out.pad_to(offset).await?;
                    out.put(bytes).await
                };
                if is_room {
                    putting.await?;
                } else {
                    pieces.during(putting).await?;
                }
            }
            report.tell(out.watch(), piece.piece().end);
            pieces.recycle(piece);
        }
        match places.next() {
            Some(place) => changed(place.stored.cluster),
            None => Ok(()),
        }
    }
}

async fn put_word<S: AsyncWrite + Unpin + Send>(
    out: &mut Forward<'_, S>,
    word: u64,
) -> Result<(), StreamError> {
    Ok(out.put(&word.to_be_bytes()).await?)
}
