//! The header in memory and how it reaches the file.
//!
//! **Invariant.** What is in memory is what the last successful write put into the file; a change of
//! the fixed fields is one write of one sector, so that a crash leaves the old or the new header.

use block_core::error::Problem;
use block_core::range::{to_u64, to_usize};
use block_core::{ByteRange, Node, OpenError, Result};
use parking_lot::RwLock;

use crate::metadata_io::{flush, read_bytes, write_bytes};
use crate::spec::bad_field;
use crate::spec::extension::Extensions;
use crate::spec::header::{Header, Part};
use crate::units::HostOffset;

mod bitmaps;

/// The right to change the header.
type Turn<'a> = futures::lock::MutexGuard<'a, ()>;

/// The header of an open image.
pub(crate) struct HeaderStore {
    file: Node,
    /// Guards the header; held for a look or to put a new one in place.
    parts: RwLock<Parts>,
    /// Held by the one change that is under way.
    turn: futures::lock::Mutex<()>,
}

/// What the first cluster holds.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) header: Header,
    pub(crate) extensions: Extensions,
    /// As it stands in the image: it need not be text.
    pub(crate) backing_name: Option<Vec<u8>>,
}

impl HeaderStore {
    pub(crate) fn new(file: Node, parts: Parts) -> Self {
        Self { file, parts: RwLock::new(parts), turn: futures::lock::Mutex::default() }
    }

    /// What `look` says of it.
    pub(crate) fn with<R>(&self, look: impl FnOnce(&Parts) -> R) -> R {
        look(&self.parts.read())
    }

    /// Changes fixed fields by one write of one sector.
    pub(crate) async fn update(&self, change: impl FnOnce(&mut Header)) -> Result<()> {
        let turn = self.turn.lock().await;
        self.update_in_turn(&turn, change).await
    }

    async fn update_in_turn(&self, _: &Turn<'_>, change: impl FnOnce(&mut Header)) -> Result<()> {
        let mut header = self.parts.read().header.clone();
        change(&mut header);
        if header == self.parts.read().header {
            return Ok(());
        }
        self.file.driver().event("header_update");
        let bytes = header.encode_fixed();
        if let Err(error) = write_bytes(&self.file, HostOffset::new(0), &bytes).await {
            // It may have been done all the same, and memory has to agree with the header that others
            // will read: the old one is put back or, if that fails too, what is there counts.
            let old = self.parts.read().header.encode_fixed();
            let restored = write_bytes(&self.file, HostOffset::new(0), &old).await;
            if restored.is_ok() || !self.holds(&bytes).await {
                return Err(error);
            }
        }
        self.parts.write().header = header;
        Ok(())
    }

    /// Whether the file starts with `bytes`.
    async fn holds(&self, bytes: &[u8]) -> bool {
        let range = ByteRange::up_to(to_u64(bytes.len()));
        read_bytes(&self.file, range).await.is_ok_and(|now| *now == *bytes)
    }

    /// After an update that failed: puts what is known into the file again, so that it is certain which
    /// header is there.
    pub(crate) async fn restore(&self) -> Result<()> {
        let _turn = self.turn.lock().await;
        let fixed = self.parts.read().header.encode_fixed();
        write_bytes(&self.file, HostOffset::new(0), &fixed).await?;
        flush(&self.file).await
    }

    /// Changes anything in the first cluster. Refuses what does not fit.
    ///
    /// A crash leaves the old header or the new one, unless extensions other than the names of features
    /// fill the first sector: then the old header may be left with what the new one has behind it.
    pub(crate) async fn rewrite(
        &self,
        change: impl FnOnce(&mut Parts),
    ) -> std::result::Result<(), OpenError> {
        let turn = self.turn.lock().await;
        self.rewrite_in_turn(&turn, change).await
    }

    async fn rewrite_in_turn(
        &self,
        _: &Turn<'_>,
        change: impl FnOnce(&mut Parts),
    ) -> std::result::Result<(), OpenError> {
        let mut parts = self.parts.read().clone();
        change(&mut parts);
        let mut bytes = parts.header.encode(&parts.extensions, parts.backing_name.as_deref())?;
        let cluster_size = parts.header.geometry.cluster_size();
        let len = to_u64(bytes.len());
        if len > cluster_size {
            return Err(bad_field("header length", len, Problem::Above(cluster_size)));
        }
        // What an older, longer header left behind must not be taken for an extension.
        bytes.resize(to_usize(cluster_size), 0);
        self.file.driver().event("header_update");
        let what = "header";
        let written = self.write_cluster(&bytes).await;
        written.map_err(|error| OpenError::Request { what, error })?;
        *self.parts.write() = parts;
        Ok(())
    }

    /// Replaces the first cluster. One sector is written at once or not at all, so what stands behind the
    /// first is written while nothing refers to it.
    async fn write_cluster(&self, cluster: &[u8]) -> Result<()> {
        let (head, tail) = cluster.split_at(SECTOR.min(cluster.len()));
        let start = HostOffset::new(to_u64(head.len()));
        let behind = ByteRange::from_bounds(start.bytes(), to_u64(cluster.len()))?;
        if *read_bytes(&self.file, behind).await? == *tail {
            return write_bytes(&self.file, HostOffset::new(0), head).await;
        }
        let used = to_usize(cluster.iter().rposition(|byte| *byte != 0).map_or(0, to_u64) + 1);
        let spare = match self.leave_tail(to_u64(cluster.len()), to_u64(used)).await? {
            Some(spare) => spare,
            None => to_u64(cluster.len()),
        };
        let free = to_usize(spare).saturating_sub(head.len()).min(tail.len());
        let (now, later) = tail.split_at(free);
        write_bytes(&self.file, start, now).await?;
        flush(&self.file).await?;
        write_bytes(&self.file, HostOffset::new(0), head).await?;
        if !later.is_empty() {
            flush(&self.file).await?;
            write_bytes(&self.file, HostOffset::new(spare), later).await?;
        }
        Ok(())
    }

    /// Makes the header refer to nothing between the first sector and a place at the end of the cluster,
    /// which it returns: without the names of features, and with the backing file's name in the first
    /// sector or at that place, which leaves `used` bytes for others. `None` if it cannot.
    async fn leave_tail(&self, cluster_size: u64, used: u64) -> Result<Option<u64>> {
        let mut parts = self.parts.read().clone();
        parts.extensions.feature_names.clear();
        let name = parts.backing_name.clone().unwrap_or_default();
        let old_end = parts.header.backing_name.map_or(0, |part| part.end);
        let Ok(mut bytes) = parts.header.encode(&parts.extensions, Some(&name)) else {
            return Ok(None);
        };
        let mut spare = cluster_size;
        if bytes.len() > SECTOR {
            let len = to_u64(name.len());
            spare = cluster_size.saturating_sub(len.next_multiple_of(to_u64(SECTOR)));
            let without = parts.header.encode(&parts.extensions, None);
            bytes = without.unwrap_or_default();
            if bytes.is_empty() || bytes.len() > SECTOR || spare < used.max(old_end) {
                return Ok(None);
            }
            write_bytes(&self.file, HostOffset::new(spare), &name).await?;
            flush(&self.file).await?;
            parts.header.backing_name = Some(Part { start: spare, end: spare + len });
            let fixed = parts.header.encode_fixed();
            bytes.splice(..fixed.len(), fixed);
        }
        bytes.resize(SECTOR, 0);
        write_bytes(&self.file, HostOffset::new(0), &bytes).await?;
        flush(&self.file).await?;
        *self.parts.write() = parts;
        Ok(Some(spare))
    }

    /// Puts what was read from the file in place of what is known.
    pub(crate) fn replace(&self, parts: Parts) {
        *self.parts.write() = parts;
    }
}

/// Bytes that storage writes as a whole or not at all.
const SECTOR: usize = 512;
