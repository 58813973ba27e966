//! Internal snapshots: listing them.
//!
//! Not here: reading from one, making, applying and deleting them.

use block_core::info::{SnapshotInfo, Snapshots};
use block_core::{Node, OpenError};

use crate::driver::Qcow2Driver;
use crate::spec::header::Table;
use crate::spec::snapshot::{FIXED_BYTES, Snapshot, entry_len, parse};
use crate::table::EntryReader;

/// Largest snapshot table in bytes: a kilobyte for each of as many as there may be.
const MAX_TABLE_BYTES: u64 = 64 << 20;

/// Reads the snapshot table.
pub(crate) async fn load(file: &Node, table: Table) -> Result<Vec<Snapshot>, OpenError> {
    let mut entries = EntryReader::new(file, "snapshot table", table.offset, MAX_TABLE_BYTES);
    let mut all = Vec::new();
    for _ in 0..table.count {
        all.push(entries.next_entry(FIXED_BYTES, entry_len, parse).await?);
    }
    Ok(all)
}

impl Snapshots for Qcow2Driver {
    fn list(&self) -> Vec<SnapshotInfo> {
        self.metadata.snapshots.iter().map(info).collect()
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
