//! The bitmap directory, and what the bitmaps hold.

use block_core::Problem;
use block_core::range::{to_u64, to_usize};

use super::Image;
use super::error::{BadImage, field};

const NAME_MAX: u16 = 1023;
const GRANULARITY_BITS_MAX: u8 = 31;
const DIRECTORY_BYTES_MAX: u64 = 1024 * 65535;
const DATA_BYTES_MAX: u64 = 512 << 20;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

const IN_USE: u32 = 1 << 0;
const AUTO: u32 = 1 << 1;
const KNOWN_FLAGS: u32 = 0x7;

/// An entry of the bitmap directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bitmap {
    /// Name, invalid UTF-8 replaced.
    pub name: String,
    /// Where its table starts.
    pub table_offset: u64,
    /// Entries of its table.
    pub table_size: u32,
    /// Flags as they stand in the file.
    pub flags: u32,
    /// A bit stands for `1 << granularity_bits` guest bytes.
    pub granularity_bits: u8,
    /// Extra data, of which the format defines none yet.
    pub extra_data: Vec<u8>,
}

impl Bitmap {
    /// Whether it was not saved properly.
    pub fn is_in_use(&self) -> bool {
        self.flags & IN_USE != 0
    }

    /// Whether it records writes.
    pub fn is_auto(&self) -> bool {
        self.flags & AUTO != 0
    }
}

/// A cluster of a bitmap's data.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Cluster {
    /// It starts there in the file.
    At(u64),
    /// It is not in the file: all its bytes are this one.
    Filled(u8),
}

impl Image<'_> {
    /// All bitmaps that are to be trusted, in the order of the directory.
    pub fn bitmaps(&self) -> Result<Vec<Bitmap>, BadImage> {
        let Some((count, size, offset)) = self.header.bitmaps()? else {
            return Ok(Vec::new());
        };
        if size > DIRECTORY_BYTES_MAX {
            let problem = Problem::Above(DIRECTORY_BYTES_MAX);
            return Err(field("bitmap_directory_size", size, problem));
        }
        if offset.saturating_add(size) > self.file.len() {
            let problem = Problem::Truncated(self.file.len());
            return Err(field("bitmap_directory_offset", offset, problem));
        }
        let (mut at, end) = (offset, offset + size);
        let mut bitmaps = Vec::new();
        while at < end {
            let (bitmap, len) = self.bitmap_at(at, end)?;
            bitmaps.push(bitmap);
            at += len;
        }
        if to_u64(bitmaps.len()) != u64::from(count) {
            let problem = Problem::Contradicts("bitmap_directory_size");
            return Err(field("nb_bitmaps", count, problem));
        }
        Ok(bitmaps)
    }

    /// The entry at `at`, and its length with padding.
    fn bitmap_at(&self, at: u64, end: u64) -> Result<(Bitmap, u64), BadImage> {
        let file = self.file;
        let (name_len, extra_len) = (file.u16(at + 18), u64::from(file.u32(at + 20)));
        let len = (24 + extra_len + u64::from(name_len)).next_multiple_of(8);
        if len > end - at {
            return Err(field("bitmap directory entry", at, Problem::Truncated(end)));
        }
        let name = file.slice(at + 24 + extra_len, u64::from(name_len));
        let bitmap = Bitmap {
            name: String::from_utf8_lossy(name).into_owned(),
            table_offset: file.u64(at),
            table_size: file.u32(at + 8),
            flags: file.u32(at + 12),
            granularity_bits: file.u8(at + 17),
            extra_data: file.slice(at + 24, extra_len).to_vec(),
        };
        if !(1..=NAME_MAX).contains(&name_len) {
            let problem = Problem::Above(u64::from(NAME_MAX));
            return Err(field("bitmap name size", name_len, problem));
        }
        if file.u8(at + 16) != 1 {
            return Err(field("bitmap type", file.u8(at + 16), Problem::Unknown));
        }
        self.check_bitmap(&bitmap)?;
        Ok((bitmap, len))
    }

    fn check_bitmap(&self, bitmap: &Bitmap) -> Result<(), BadImage> {
        let cluster = self.header.cluster_size();
        let (offset, bits) = (bitmap.table_offset, bitmap.granularity_bits);
        if !offset.is_multiple_of(cluster) {
            let problem = Problem::Misaligned(cluster);
            return Err(field("bitmap_table_offset", offset, problem));
        }
        if bitmap.flags & !KNOWN_FLAGS != 0 {
            let problem = Problem::Reserved(u64::from(!KNOWN_FLAGS));
            return Err(field("bitmap flags", bitmap.flags, problem));
        }
        if bits > GRANULARITY_BITS_MAX {
            let problem = Problem::Above(u64::from(GRANULARITY_BITS_MAX));
            return Err(field("bitmap granularity_bits", bits, problem));
        }
        let table_bytes = u64::from(bitmap.table_size) * 8;
        if offset.saturating_add(table_bytes) > self.file.len() {
            let problem = Problem::Truncated(self.file.len());
            return Err(field("bitmap_table_offset", offset, problem));
        }
        // A bitmap that is in use may have missed a change of the disk's length.
        let clusters = self.bitmap_bytes(bitmap).div_ceil(cluster);
        if !bitmap.is_in_use() && u64::from(bitmap.table_size) != clusters {
            let problem = Problem::Contradicts("size");
            return Err(field("bitmap_table_size", bitmap.table_size, problem));
        }
        Ok(())
    }

    /// Bytes of the bitmap's data, for the disk's length.
    fn bitmap_bytes(&self, bitmap: &Bitmap) -> u64 {
        let bits = self.header.size.div_ceil(1 << bitmap.granularity_bits);
        bits.div_ceil(8)
    }

    /// The entry `index` of the bitmap's table; beyond its end all bits are clear.
    pub(super) fn bitmap_entry(&self, bitmap: &Bitmap, index: u64) -> Result<Cluster, BadImage> {
        if index >= u64::from(bitmap.table_size) {
            return Ok(Cluster::Filled(0));
        }
        let value = self.file.u64(bitmap.table_offset + index * 8);
        let bad = |problem| BadImage::Entry { table: "bitmap table", index, value, problem };
        let (offset, cluster) = (value & OFFSET, self.header.cluster_size());
        let reserved = !OFFSET & !u64::from(offset == 0);
        if value & reserved != 0 {
            return Err(bad(Problem::Reserved(reserved)));
        }
        if !offset.is_multiple_of(cluster) {
            return Err(bad(Problem::Misaligned(cluster)));
        }
        match offset {
            0 if value & 1 != 0 => Ok(Cluster::Filled(0xff)),
            0 => Ok(Cluster::Filled(0)),
            offset => Ok(Cluster::At(offset)),
        }
    }

    /// The bits of `bitmap`: element `i` stands for the guest bytes from `i << granularity_bits`.
    pub fn bitmap_bits(&self, bitmap: &Bitmap) -> Result<Vec<bool>, BadImage> {
        let (bytes, cluster) = (self.bitmap_bytes(bitmap), self.header.cluster_size());
        if bytes > DATA_BYTES_MAX {
            return Err(BadImage::TooLarge {
                what: "bitmap data",
                value: bytes,
                limit: DATA_BYTES_MAX,
            });
        }
        let mut data = vec![0; to_usize(bytes)];
        for (index, part) in (0..).zip(data.chunks_mut(to_usize(cluster))) {
            match self.bitmap_entry(bitmap, index)? {
                Cluster::At(offset) => self.file.copy_to(offset, part),
                Cluster::Filled(byte) => part.fill(byte),
            }
        }
        let count = to_usize(self.header.size.div_ceil(1 << bitmap.granularity_bits));
        let bits = data.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 != 0));
        Ok(bits.take(count).collect())
    }
}
