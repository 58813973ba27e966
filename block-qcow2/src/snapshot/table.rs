//! The snapshot table: reading it, and putting another in its place.
//!
//! **Invariant.** The header points at a table that is stable, and whose snapshots' L1 tables are.

use block_core::range::{to_u64, to_usize};
use block_core::{Error, Node, OpenError, Result};

use crate::alloc::Reason;
use crate::driver::Qcow2Driver;
use crate::metadata_io::write_bytes;
use crate::overlap::Section;
use crate::spec::header::Table;
use crate::spec::snapshot::{FIXED_BYTES, Snapshot, encode, entry_len, parse};
use crate::table::EntryReader;
use crate::units::HostOffset;
use crate::writeback::Extent;

/// Largest snapshot table in bytes: a kilobyte for each of as many as there may be.
pub(crate) const MAX_TABLE_BYTES: u64 = 64 << 20;

/// Why the table was not replaced.
pub(crate) enum NotReplaced {
    /// The header points at the old one.
    Before(Error),
    /// The header in the file may point at either.
    Unsure(Error),
}

impl NotReplaced {
    pub(crate) fn error(self) -> Error {
        match self {
            Self::Before(error) | Self::Unsure(error) => error,
        }
    }
}

impl From<Error> for NotReplaced {
    fn from(error: Error) -> Self {
        Self::Before(error)
    }
}

/// Reads the snapshot table.
pub(crate) async fn load(file: &Node, table: Table) -> Result<Vec<Snapshot>, OpenError> {
    let mut entries = EntryReader::new(file, "snapshot table", table.offset, MAX_TABLE_BYTES);
    let mut all = Vec::new();
    for _ in 0..table.count {
        all.push(entries.next_entry(FIXED_BYTES, entry_len, parse).await?);
    }
    Ok(all)
}

/// Bytes that the table takes in the file. What is read and written again may have another length.
pub(crate) async fn stored_bytes(file: &Node, table: Table) -> Result<u64, OpenError> {
    let mut entries = EntryReader::new(file, "snapshot table", table.offset, MAX_TABLE_BYTES);
    let mut sum = 0;
    for _ in 0..table.count {
        let len = |bytes: &[u8]| entry_len(bytes).map(|len| to_u64(len.unwrap_or(0)));
        sum += entries.next_entry(FIXED_BYTES, entry_len, len).await?;
    }
    Ok(sum)
}

impl Qcow2Driver {
    /// Writes a table of these snapshots, makes the header point at it, and gives the old one back.
    pub(crate) async fn replace_snapshot_table(
        &self,
        list: Vec<Snapshot>,
    ) -> Result<(), NotReplaced> {
        let old = self.header.with(|parts| parts.header.snapshots);
        let stored = stored_bytes(&self.file, old).await;
        let old_bytes = stored.map_err(|_| Error::IO)?;
        let mut bytes = Vec::new();
        for snapshot in &list {
            bytes.extend(encode(snapshot).map_err(|_| Error::Invalid)?);
        }
        let len = to_u64(bytes.len());
        if len > MAX_TABLE_BYTES {
            return Err(Error::Os(libc::EFBIG).into());
        }
        let count = u32::try_from(list.len()).map_err(|_| Error::Os(libc::EFBIG))?;
        let offset = self.place_snapshot_table(&bytes).await?;
        let stable = match self.write_back(Extent::Everything).await {
            Ok(()) => self.barrier().await,
            failed => failed,
        };
        if let Err(error) = stable {
            self.drop_snapshot_table(offset, len).await?;
            return Err(error.into());
        }
        self.event("snapshot_table_switch");
        let table = Table { offset, count };
        let switched = self.header.update(|header| header.snapshots = table).await;
        if let Err(error) = switched {
            self.header.restore().await.map_err(|_| NotReplaced::Unsure(error))?;
            self.drop_snapshot_table(offset, len).await?;
            return Err(error.into());
        }
        self.lists.write().snapshots = list;
        // It is given back behind a barrier, and so after the header is stable.
        self.drop_snapshot_table(old.offset, old_bytes).await.map_err(NotReplaced::Unsure)
    }

    /// Writes a table to new clusters. An empty one needs none.
    async fn place_snapshot_table(&self, bytes: &[u8]) -> Result<HostOffset> {
        if bytes.is_empty() {
            return Ok(HostOffset::new(0));
        }
        let cluster_bits = self.geometry().cluster_bits();
        let clusters = to_u64(bytes.len()).div_ceil(1 << cluster_bits);
        let offset = {
            let mut meta = self.writer()?.meta.lock().await;
            let section = Section::SnapshotTable;
            meta.allocate_metadata(section, clusters, &self.header).await?
        };
        let mut whole = bytes.to_vec();
        whole.resize(to_usize(clusters << cluster_bits), 0);
        self.event("snapshot_table_write");
        if let Err(error) = write_bytes(&self.file, offset, &whole).await {
            self.drop_snapshot_table(offset, to_u64(bytes.len())).await?;
            return Err(error);
        }
        Ok(offset)
    }

    async fn drop_snapshot_table(&self, offset: HostOffset, len: u64) -> Result<()> {
        let mut meta = self.writer()?.meta.lock().await;
        meta.drop_metadata(offset, len, Reason::Other);
        Ok(())
    }
}
