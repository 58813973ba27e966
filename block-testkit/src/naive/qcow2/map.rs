//! Where every guest byte is, and what it holds.

use block_core::Problem;
use block_core::range::{to_u64, to_usize};

use super::Image;
use super::entry::{L1Entry, L2Entry};
use super::error::{BadImage, field};
use super::header::Header;
use super::inflate::inflate;
use super::snapshot::Snapshot;

/// Most bytes that one read returns.
pub const MAX_CONTENTS: u64 = 1 << 30;

/// Most pieces that one map returns.
pub const MAX_PIECES: u64 = 1 << 24;

/// Where the bytes of a piece are.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// Not in this image: in the backing file, or nowhere.
    Unallocated,
    /// Nowhere: they are zeroes. `host` is set where space is reserved for them.
    Zero {
        /// Where the reserved space is.
        host: Option<u64>,
    },
    /// In the image file, or the data file where there is one, at `host`.
    Data {
        /// Where.
        host: u64,
    },
    /// In a compressed cluster.
    Compressed {
        /// Where the compressed bytes start.
        host: u64,
        /// How many there are at most.
        len: u64,
    },
}

/// A (sub)cluster, or the part of the last one that is inside the disk.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// First guest byte.
    pub guest: u64,
    /// Length in bytes.
    pub len: u64,
    /// Where its bytes are.
    pub place: Place,
}

/// An L1 table and the length of the disk that it maps.
#[derive(Copy, Clone, Debug)]
pub(super) struct Disk {
    pub(super) l1_offset: u64,
    pub(super) l1_size: u32,
    pub(super) len: u64,
}

impl Disk {
    pub(super) fn active(header: &Header) -> Self {
        Self { l1_offset: header.l1_table_offset, l1_size: header.l1_size, len: header.size }
    }

    pub(super) fn of_snapshot(snapshot: &Snapshot, header: &Header) -> Self {
        Self {
            l1_offset: snapshot.l1_table_offset,
            l1_size: snapshot.l1_size,
            len: snapshot.disk_len.unwrap_or(header.size),
        }
    }
}

impl Image<'_> {
    /// All that the guest sees.
    pub fn contents(&self) -> Result<Vec<u8>, BadImage> {
        self.read(0, self.header.size)
    }

    /// What the guest sees in `[offset, offset + len)`, with zeroes beyond the end of the disk.
    pub fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>, BadImage> {
        self.read_disk(Disk::active(&self.header), offset, len)
    }

    /// All that the guest saw when the snapshot was taken.
    pub fn snapshot_contents(&self, snapshot: &Snapshot) -> Result<Vec<u8>, BadImage> {
        let disk = Disk::of_snapshot(snapshot, &self.header);
        self.read_disk(disk, 0, disk.len)
    }

    /// Where every (sub)cluster is, in guest order, without gaps.
    pub fn map(&self) -> Result<Vec<Piece>, BadImage> {
        self.map_of(Disk::active(&self.header))
    }

    /// Where every (sub)cluster of a snapshot is.
    pub fn snapshot_map(&self, snapshot: &Snapshot) -> Result<Vec<Piece>, BadImage> {
        self.map_of(Disk::of_snapshot(snapshot, &self.header))
    }

    /// The (sub)cluster that holds the guest byte `offset`; `None` beyond the end of the disk.
    pub fn piece_at(&self, offset: u64) -> Result<Option<Piece>, BadImage> {
        self.piece(Disk::active(&self.header), offset)
    }

    fn map_of(&self, disk: Disk) -> Result<Vec<Piece>, BadImage> {
        let count = disk.len.div_ceil(self.header.granularity());
        if count > MAX_PIECES {
            return Err(BadImage::TooLarge {
                what: "pieces of the disk",
                value: count,
                limit: MAX_PIECES,
            });
        }
        let mut pieces = Vec::new();
        let mut at = 0;
        while let Some(piece) = self.piece(disk, at)? {
            at += piece.len;
            pieces.push(piece);
        }
        Ok(pieces)
    }

    fn piece(&self, disk: Disk, offset: u64) -> Result<Option<Piece>, BadImage> {
        if offset >= disk.len {
            return Ok(None);
        }
        let (header, cluster) = (&self.header, self.header.cluster_size());
        let guest_cluster = offset - offset % cluster;
        let entry = self.l2_entry(disk, guest_cluster)?;
        let unit = match entry {
            L2Entry::Compressed { .. } => cluster,
            L2Entry::Standard { .. } => header.granularity(),
        };
        let guest = offset - offset % unit;
        let index = (guest - guest_cluster) / unit;
        let place = match entry {
            L2Entry::Compressed { host, len, .. } => Place::Compressed { host, len },
            L2Entry::Standard { host, allocated, zero, .. } => {
                // Without subclusters all 32 bits are alike, and the index is 0.
                let host = host.map(|h| h + index * unit);
                if zero >> index & 1 != 0 {
                    Place::Zero { host }
                } else {
                    match host.filter(|_| allocated >> index & 1 != 0) {
                        Some(host) => Place::Data { host },
                        None => Place::Unallocated,
                    }
                }
            }
        };
        let len = unit.min(disk.len - guest);
        Ok(Some(Piece { guest, len, place }))
    }

    /// The L2 entry of the cluster at `guest`; one that maps nothing where there is no L2 table.
    fn l2_entry(&self, disk: Disk, guest: u64) -> Result<L2Entry, BadImage> {
        let header = &self.header;
        let l1_index = guest / header.l2_coverage();
        if l1_index >= u64::from(disk.l1_size) {
            let problem = Problem::Contradicts("the length of the disk");
            return Err(field("l1_size", disk.l1_size, problem));
        }
        let l1 = L1Entry::parse(self.file.u64(disk.l1_offset + l1_index * 8));
        if let Some(problem) = l1.problem(header) {
            return Err(BadImage::Entry {
                table: "L1 table",
                index: l1_index,
                value: l1.raw,
                problem,
            });
        }
        if l1.offset == 0 {
            return Ok(L2Entry::parse(0, 0, header));
        }
        let index = guest / header.cluster_size() % header.l2_entries();
        let entry = self.l2_entry_at(l1.offset, index);
        match entry.problem(header) {
            None => Ok(entry),
            Some(problem) => {
                Err(BadImage::Entry { table: "L2 table", index, value: entry.raw(), problem })
            }
        }
    }

    /// The entry `index` of the L2 table at `table`, whatever it says.
    pub(super) fn l2_entry_at(&self, table: u64, index: u64) -> L2Entry {
        let at = table + index * self.header.l2_entry_size();
        let bitmap = if self.header.extended_l2() { self.file.u64(at + 8) } else { 0 };
        L2Entry::parse(self.file.u64(at), bitmap, &self.header)
    }

    fn read_disk(&self, disk: Disk, offset: u64, len: u64) -> Result<Vec<u8>, BadImage> {
        if len > MAX_CONTENTS {
            return Err(BadImage::TooLarge {
                what: "bytes to read",
                value: len,
                limit: MAX_CONTENTS,
            });
        }
        if self.header.crypt_method != 0 {
            return Err(BadImage::Encrypted { method: self.header.crypt_method });
        }
        let mut out = vec![0; to_usize(len)];
        let mut rest = &mut out[..];
        let mut at = offset;
        while let Some(piece) = self.piece(disk, at)?.filter(|_| !rest.is_empty()) {
            let skip = at - piece.guest;
            let step = to_usize(piece.len - skip).min(rest.len());
            let (now, later) = rest.split_at_mut(step);
            self.read_piece(&piece, skip, now)?;
            at += to_u64(step);
            rest = later;
        }
        Ok(out)
    }

    /// Fills `out` with the bytes of `piece` from its byte `skip` on.
    fn read_piece(&self, piece: &Piece, skip: u64, out: &mut [u8]) -> Result<(), BadImage> {
        match piece.place {
            Place::Zero { .. } => out.fill(0),
            Place::Unallocated => match self.backing {
                Some(backing) => backing.copy_to(piece.guest + skip, out),
                None => out.fill(0),
            },
            Place::Data { host } if self.header.has_data_file() => {
                let data = self.data.ok_or(BadImage::NeedsDataFile)?;
                data.copy_to(host + skip, out);
            }
            Place::Data { host } => self.file.copy_to(host + skip, out),
            Place::Compressed { host, len } => {
                let mut cluster = vec![0; to_usize(self.header.cluster_size())];
                let input = self.file.slice(host, len);
                if !inflate(self.header.compression, input, &mut cluster) {
                    return Err(BadImage::Compressed { host });
                }
                let from = to_usize(skip);
                out.copy_from_slice(&cluster[from..from + out.len()]);
            }
        }
        Ok(())
    }
}
