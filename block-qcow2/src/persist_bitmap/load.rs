//! Reading bitmaps: table by table, in bounded pieces.

use std::sync::atomic::Ordering;

use block_core::dirty::{BitmapError, DirtyBitmap, DirtyBitmaps, Granularity};
use block_core::error::Problem;
use block_core::range::{to_u64, to_usize};
use block_core::{ByteRange, Error, OpenError};
use roaring::RoaringTreemap;

use super::bits::{Cluster, covered, parse_entry, table_entries};
use super::{MAX_ALL_BYTES, MAX_DATA_BYTES, PIECE};
use crate::driver::Qcow2Driver;
use crate::geometry::Geometry;
use crate::spec::bad_field;
use crate::spec::bitmap::Bitmap;
use crate::spec::header::check_place;
use crate::table::{read_table, read_words};
use crate::units::HostOffset;

/// The clusters of the file that bitmaps claim for their tables and bits. None is claimed twice, so that
/// what a small file makes of itself in memory is bounded by its length.
#[derive(Default)]
struct Claimed {
    clusters: RoaringTreemap,
    /// Bytes of bits.
    bits: u64,
}

impl Claimed {
    /// Claims the clusters of `len` bytes.
    fn claim(
        &mut self,
        geometry: Geometry,
        field: &'static str,
        offset: HostOffset,
        len: u64,
    ) -> Result<(), OpenError> {
        let first = offset.bytes() >> geometry.cluster_bits();
        let count = len.div_ceil(geometry.cluster_size());
        match self.clusters.insert_range(first..first.saturating_add(count)) == count {
            true => Ok(()),
            false => Err(bad_field(field, offset.bytes(), Problem::Overlap)),
        }
    }

    /// Claims the clusters of `len` bytes of bits.
    fn claim_bits(
        &mut self,
        geometry: Geometry,
        offset: HostOffset,
        len: u64,
    ) -> Result<(), OpenError> {
        self.claim(geometry, "bitmap table entry", offset, len)?;
        self.bits = self.bits.saturating_add(len);
        match self.bits <= MAX_ALL_BYTES {
            true => Ok(()),
            false => {
                let problem = Problem::Above(MAX_ALL_BYTES);
                Err(bad_field("size of the data of all bitmaps", self.bits, problem))
            }
        }
    }
}

impl Qcow2Driver {
    /// Puts the image's bitmaps into `into`.
    pub(super) async fn load_bitmaps(&self, into: &DirtyBitmaps) -> Result<(), OpenError> {
        let bitmaps = self.lists.read().bitmaps.clone();
        let mut claimed = Claimed::default();
        for (index, bitmap) in (0u64..).zip(&bitmaps) {
            let mut loaded = if bitmap.in_use {
                let granularity = granularity(bitmap)?;
                DirtyBitmap::new_inconsistent(&bitmap.name, granularity, self.disk_len())
                    .map_err(|error| unfit(bitmap, &error))?
            } else {
                self.load_bitmap(bitmap, &mut claimed).await?
            };
            if self.writer().is_err() {
                loaded.make_read_only();
            }
            into.insert(loaded).map_err(|error| match error {
                BitmapError::Exists { .. } => {
                    let problem = Problem::Contradicts("another bitmap, which has the same name");
                    bad_field("name of the bitmap of number", index, problem)
                }
                other => unfit(bitmap, &other),
            })?;
        }
        if let Ok(writer) = self.writer() {
            *writer.bitmaps.known.lock() = Some(into.revision());
            writer.bitmaps.marked.store(false, Ordering::Release);
        }
        Ok(())
    }

    async fn load_bitmap(
        &self,
        bitmap: &Bitmap,
        claimed: &mut Claimed,
    ) -> Result<DirtyBitmap, OpenError> {
        let geometry = self.geometry();
        let (size, len) = (u64::from(bitmap.table_size), self.disk_len());
        let bytes = size.saturating_mul(geometry.cluster_size());
        if bytes > MAX_DATA_BYTES {
            let problem = Problem::Above(MAX_DATA_BYTES);
            return Err(bad_field("size of the bitmap's data", bytes, problem));
        }
        if size != table_entries(geometry, len, bitmap.granularity) {
            let problem = Problem::Contradicts("the size of the disk");
            return Err(bad_field("bitmap table size", size, problem));
        }
        self.check_table_place(bitmap)?;
        claimed.claim(geometry, "bitmap table offset", bitmap.table_offset, size * 8)?;
        let mut loaded = DirtyBitmap::new(Some(&bitmap.name), granularity(bitmap)?, len)
            .map_err(|error| unfit(bitmap, &error))?;
        let table = read_words(&self.file, "bitmap table", bitmap.table_offset, size).await?;
        let mut rest = table.as_slice();
        while let Some(raw) = rest.first() {
            let first = to_u64(table.len() - rest.len());
            let cluster = parse_entry(geometry, *raw)
                .map_err(|fault| bad_field(fault.what, fault.value, Problem::Unknown))?;
            let same = match cluster {
                Cluster::At(offset) => {
                    let next = |n: usize| offset.plus(to_u64(n) << geometry.cluster_bits());
                    let follows = |(n, raw): (usize, &u64)| *raw == next(n).bytes();
                    rest.iter().enumerate().take_while(|pair| follows(*pair)).count()
                }
                _ => rest.iter().take_while(|other| *other == raw).count(),
            };
            let place = ByteRange::new(
                first << geometry.cluster_bits(),
                to_u64(same) << geometry.cluster_bits(),
            );
            let place = place.map_err(|e| request(e.into()))?;
            if let Cluster::At(offset) = cluster {
                claimed.claim_bits(geometry, offset, place.len())?;
            }
            self.load_bits(&mut loaded, bitmap, cluster, place).await?;
            rest = rest.get(same..).unwrap_or_default();
        }
        let finish = |loaded: &mut DirtyBitmap| {
            if !bitmap.auto {
                loaded.disable()?;
            }
            loaded.make_persistent()
        };
        finish(&mut loaded).map_err(|error| unfit(bitmap, &error))?;
        Ok(loaded)
    }

    /// Sets what clusters of bits say that are all of a kind; `bytes` is what they hold of the
    /// bitmap's bytes.
    async fn load_bits(
        &self,
        into: &mut DirtyBitmap,
        bitmap: &Bitmap,
        cluster: Cluster,
        bytes: ByteRange,
    ) -> Result<(), OpenError> {
        let len = self.disk_len();
        let granularity = bitmap.granularity;
        let used = len.div_ceil(granularity).div_ceil(8);
        let mut rest = bytes.intersect(ByteRange::up_to(used));
        let offset = match cluster {
            Cluster::Zeroes => return Ok(()),
            Cluster::Ones => {
                let [start, end] = [rest.offset(), rest.end()].map(|at| covered(at, granularity));
                let area = ByteRange::from_bounds(start.min(len), end.min(len));
                let area = area.map_err(|e| request(e.into()))?;
                return into.set(area).map_err(|error| unfit(bitmap, &error));
            }
            Cluster::At(offset) => offset,
        };
        while !rest.is_empty() {
            let piece = rest.first(PIECE);
            let at = offset.plus(piece.offset() - bytes.offset());
            let read = read_table(&self.file, "bitmap data", at, piece.len()).await?;
            if read.len() < to_usize(piece.len()) {
                // Bits that are not there are not zeroes.
                let problem = Problem::Truncated(self.file.len());
                return Err(bad_field("bitmap table entry", offset.bytes(), problem));
            }
            let bits = into.set_bits(piece.offset() * 8, &read);
            bits.map_err(|error| unfit(bitmap, &error))?;
            rest = rest.split_at(piece.len()).1;
        }
        Ok(())
    }

    /// Whether the table lies in whole clusters of the file, behind the header.
    pub(super) fn check_table_place(&self, bitmap: &Bitmap) -> Result<(), OpenError> {
        let len = u64::from(bitmap.table_size) * 8;
        let (field, offset) = ("bitmap table offset", bitmap.table_offset);
        check_place(field, self.geometry(), offset, len)?;
        if offset.bytes().saturating_add(len) > self.file.len() {
            return Err(bad_field(field, offset.bytes(), Problem::Truncated(self.file.len())));
        }
        Ok(())
    }
}

fn granularity(bitmap: &Bitmap) -> Result<Granularity, OpenError> {
    Granularity::new(bitmap.granularity).map_err(|error| unfit(bitmap, &error))
}

/// A bitmap that the node cannot hold.
fn unfit(bitmap: &Bitmap, error: &BitmapError) -> OpenError {
    let problem = match error {
        BitmapError::LengthDiffers { .. } => Problem::Contradicts("the length of the node"),
        BitmapError::TooManyGranules { .. } => Problem::Contradicts("the size of the disk"),
        _ => Problem::Unknown,
    };
    bad_field("bitmap granularity", bitmap.granularity, problem)
}

fn request(error: Error) -> OpenError {
    let what = "dirty bitmap";
    OpenError::Request { what, error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::{DataLocation, L2Format, Version};

    #[test]
    fn bits_of_all_bitmaps_are_bounded() {
        let location = DataLocation::Image;
        let geometry = Geometry::new(Version::V3, 16, 4, L2Format::Standard, location).unwrap();
        let mut claimed = Claimed::default();
        let mut claim = |at: u64, len| claimed.claim_bits(geometry, HostOffset::new(at), len);
        claim(1 << 40, MAX_ALL_BYTES / 2).unwrap();
        claim(2 << 40, MAX_ALL_BYTES / 2).unwrap();
        let error = claim(3 << 40, 1).unwrap_err().to_string();
        assert!(error.contains("size of the data of all bitmaps"), "{error}");
    }
}
