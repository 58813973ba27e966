//! Reading bitmaps: table by table, in bounded pieces.

use std::sync::atomic::Ordering;

use block_core::dirty::{BitmapError, DirtyBitmap, DirtyBitmaps, Granularity};
use block_core::error::Problem;
use block_core::range::{to_u64, to_usize};
use block_core::{ByteRange, Error, OpenError};

use super::bits::{Cluster, covered, parse_entry, runs, table_entries};
use super::{MAX_DATA_BYTES, PIECE};
use crate::driver::Qcow2Driver;
use crate::spec::bad_field;
use crate::spec::bitmap::Bitmap;
use crate::spec::header::check_place;
use crate::table::{read_table, read_words};

impl Qcow2Driver {
    /// Puts the image's bitmaps into `into`.
    pub(super) async fn load_bitmaps(&self, into: &DirtyBitmaps) -> Result<(), OpenError> {
        let bitmaps = self.lists.read().bitmaps.clone();
        for (index, bitmap) in (0u64..).zip(&bitmaps) {
            let mut loaded = if bitmap.in_use {
                let granularity = granularity(bitmap)?;
                DirtyBitmap::new_inconsistent(&bitmap.name, granularity, self.disk_len())
                    .map_err(|error| unfit(bitmap, &error))?
            } else {
                self.load_bitmap(bitmap).await?
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

    async fn load_bitmap(&self, bitmap: &Bitmap) -> Result<DirtyBitmap, OpenError> {
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
        let mut set = |start: u64, end: u64| {
            let area = ByteRange::from_bounds(start.min(len), end.min(len));
            let area = area.map_err(|e| request(e.into()))?;
            into.set(area).map_err(|error| unfit(bitmap, &error))
        };
        let start_of = |byte: u64| covered(byte, granularity);
        let offset = match cluster {
            Cluster::Zeroes => return Ok(()),
            Cluster::Ones => return set(start_of(rest.offset()), start_of(rest.end())),
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
            for (start, end) in runs(&read, start_of(piece.offset()), granularity) {
                set(start, end)?;
            }
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
