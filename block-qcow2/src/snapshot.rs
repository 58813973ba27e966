//! Internal snapshots: listing them.
//!
//! Not here: reading from one, making, applying and deleting them.

use async_trait::async_trait;
use block_core::ability::{NewSnapshot, Snapshots};
use block_core::info::SnapshotInfo;
use block_core::{Error, Node, OpenError, Result};

use crate::driver::Qcow2Driver;
use crate::spec::header::Table;
use crate::spec::snapshot::{FIXED_BYTES, Snapshot, encode, entry_len, parse};
use crate::table::EntryReader;

/// Largest snapshot table in bytes: a kilobyte for each of as many as there may be.
pub(crate) const MAX_TABLE_BYTES: u64 = 64 << 20;

/// Reads the snapshot table.
pub(crate) async fn load(file: &Node, table: Table) -> Result<Vec<Snapshot>, OpenError> {
    let mut entries = EntryReader::new(file, "snapshot table", table.offset, MAX_TABLE_BYTES);
    let mut all = Vec::new();
    for _ in 0..table.count {
        all.push(entries.next_entry(FIXED_BYTES, entry_len, parse).await?);
    }
    Ok(all)
}

/// Bytes that the table of these snapshots takes.
pub(crate) fn table_bytes(snapshots: &[Snapshot]) -> u64 {
    let entries = snapshots.iter().filter_map(|snapshot| encode(snapshot).ok());
    entries.map(|bytes| block_core::range::to_u64(bytes.len().next_multiple_of(8))).sum()
}

#[async_trait]
impl Snapshots for Qcow2Driver {
    fn list(&self) -> Vec<SnapshotInfo> {
        self.lists.read().snapshots.iter().map(info).collect()
    }

    async fn create(&self, _: &NewSnapshot) -> Result<()> {
        Err(Error::Unsupported)
    }

    async fn apply(&self, _: &str) -> Result<()> {
        Err(Error::Unsupported)
    }

    async fn delete(&self, _: &str) -> Result<()> {
        Err(Error::Unsupported)
    }
}

fn info(snapshot: &Snapshot) -> SnapshotInfo {
    SnapshotInfo {
        id: snapshot.id.clone(),
        name: snapshot.name.clone(),
        vm_state_size: snapshot.vm_state_size,
        date_seconds: snapshot.date_seconds.into(),
        date_nanoseconds: snapshot.date_nanoseconds,
        vm_clock_nanoseconds: snapshot.vm_clock_nanoseconds,
        instruction_count: snapshot.instruction_count,
        disk_len: snapshot.disk_len,
    }
}
