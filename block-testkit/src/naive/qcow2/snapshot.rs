//! The snapshot table.

use block_core::Problem;

use super::Image;
use super::error::{BadImage, field};

const L1_BYTES_MAX: u64 = 32 << 20;
const EXTRA_MAX: u32 = 1024;

/// An entry of the snapshot table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// Where its L1 table starts.
    pub l1_table_offset: u64,
    /// Entries of its L1 table.
    pub l1_size: u32,
    /// Unique id, invalid UTF-8 replaced.
    pub id: String,
    /// Name, invalid UTF-8 replaced.
    pub name: String,
    /// When it was taken: seconds since 1970.
    pub date_seconds: u32,
    /// Nanoseconds part of the date.
    pub date_nanoseconds: u32,
    /// Guest clock in nanoseconds.
    pub vm_clock_nanoseconds: u64,
    /// Bytes of saved machine state.
    pub vm_state_size: u64,
    /// Length of the disk at that time, where the image says so.
    pub disk_len: Option<u64>,
}

/// The snapshot table as it stands in the file.
pub(super) struct SnapshotTable {
    /// Its length in bytes.
    pub(super) len: u64,
    pub(super) snapshots: Vec<Snapshot>,
}

impl Image<'_> {
    /// All snapshots, in the order of the table.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>, BadImage> {
        Ok(self.snapshot_table()?.snapshots)
    }

    pub(super) fn snapshot_table(&self) -> Result<SnapshotTable, BadImage> {
        let start = self.header.snapshots_offset;
        let mut table = SnapshotTable { len: 0, snapshots: Vec::new() };
        for _ in 0..self.header.nb_snapshots {
            table.len = table.len.next_multiple_of(8);
            let (snapshot, len) = self.snapshot_at(start + table.len)?;
            table.snapshots.push(snapshot);
            table.len += len;
        }
        Ok(table)
    }

    /// The entry at `at`, and its length without padding.
    fn snapshot_at(&self, at: u64) -> Result<(Snapshot, u64), BadImage> {
        let file = self.file;
        if at >= file.len() {
            return Err(field("snapshot table", at, Problem::Truncated(file.len())));
        }
        let (id_len, name_len) = (u64::from(file.u16(at + 12)), u64::from(file.u16(at + 14)));
        let extra = file.u32(at + 36);
        if extra > EXTRA_MAX {
            let problem = Problem::Above(u64::from(EXTRA_MAX));
            return Err(field("snapshot extra data size", extra, problem));
        }
        let id_at = at + 40 + u64::from(extra);
        let text = |at, len| String::from_utf8_lossy(file.slice(at, len)).into_owned();
        let snapshot = Snapshot {
            l1_table_offset: file.u64(at),
            l1_size: file.u32(at + 8),
            id: text(id_at, id_len),
            name: text(id_at + id_len, name_len),
            date_seconds: file.u32(at + 16),
            date_nanoseconds: file.u32(at + 20),
            vm_clock_nanoseconds: file.u64(at + 24),
            vm_state_size: if extra >= 8 {
                file.u64(at + 40)
            } else {
                u64::from(file.u32(at + 32))
            },
            disk_len: (extra >= 16).then(|| file.u64(at + 48)),
        };
        self.check_snapshot(&snapshot, extra)?;
        Ok((snapshot, 40 + u64::from(extra) + id_len + name_len))
    }

    fn check_snapshot(&self, snapshot: &Snapshot, extra: u32) -> Result<(), BadImage> {
        let (cluster, offset) = (self.header.cluster_size(), snapshot.l1_table_offset);
        if !offset.is_multiple_of(cluster) {
            let problem = Problem::Misaligned(cluster);
            return Err(field("snapshot l1_table_offset", offset, problem));
        }
        if offset > 1 << 62 {
            return Err(field("snapshot l1_table_offset", offset, Problem::Above(1 << 62)));
        }
        if u64::from(snapshot.l1_size) * 8 > L1_BYTES_MAX {
            let problem = Problem::Above(L1_BYTES_MAX / 8);
            return Err(field("snapshot l1_size", snapshot.l1_size, problem));
        }
        if self.header.version > 2 && extra < 16 {
            return Err(field("snapshot extra data size", extra, Problem::Below(16)));
        }
        Ok(())
    }
}
