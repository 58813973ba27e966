//! Changing the bitmaps extension so that a crash, and a torn write, leave the old or the new one.
//!
//! The extension is changed where it stands, or added behind the last one; nothing else in the first
//! cluster moves, but for a backing file name that stands in the way: it gets a copy further back first.
//! An extension appears and disappears by a write of eight aligned bytes, which no sector border
//! divides. The bit that says that it is up to date is set last and cleared first.
//!
//! Only where there is no room for that, or others follow the extension that goes, is the whole cluster
//! written anew, with the bit cleared meanwhile.

use block_core::range::{to_u64, to_usize};
use block_core::{Error, OpenError, Result};

use super::{HeaderStore, Turn};
use crate::metadata_io::{flush, write_bytes};
use crate::reload::request_error;
use crate::spec::extension::{BitmapsExtension, Place, place_bitmaps};
use crate::spec::header::Part;
use crate::table::read_table;
use crate::units::HostOffset;

/// Bytes that storage writes as a whole or not at all.
const SECTOR: u64 = 512;

impl HeaderStore {
    /// Makes the header refer to this bitmap directory, or to none. Stable when it returns.
    pub(crate) async fn set_bitmaps(&self, new: Option<BitmapsExtension>) -> Result<()> {
        let turn = self.turn.lock().await;
        let (cluster_size, area) = self.with(|parts| {
            let header = &parts.header;
            let cluster_size = header.geometry.cluster_size();
            let end = header.backing_name.map_or(cluster_size, |name| name.start);
            (cluster_size, Part { start: header.header_length().into(), end })
        });
        let start = HostOffset::new(0);
        let cluster = read_table(&self.file, "header", start, cluster_size).await;
        let mut cluster = cluster.map_err(request_error)?;
        cluster.resize(to_usize(cluster_size), 0);
        let place = place_bitmaps(area.of(&cluster));
        self.file.driver().event("header_update");
        match (place, new) {
            (Place::At { at, .. }, Some(new)) => {
                self.change_in_place(&turn, area.start + at, new).await?;
            }
            (Place::At { at, last: true }, None) => {
                self.set_bit(&turn, Bit::Cleared).await?;
                self.write_stable(area.start + at, &[0; 8]).await?;
            }
            (Place::None { end }, Some(new)) => {
                self.set_bit(&turn, Bit::Cleared).await?;
                let end = area.start + end;
                match self.make_room(&turn, end + APPENDED, cluster_size).await? {
                    Room::Made => self.append(end, new).await?,
                    Room::Missing => self.set_by_rewrite(&turn, Some(new)).await?,
                }
            }
            (Place::Unmarked, None) | (Place::None { .. }, None) => {}
            (Place::Unmarked, _) | (Place::At { .. }, None) => {
                self.set_bit(&turn, Bit::Cleared).await?;
                self.set_by_rewrite(&turn, new).await?;
            }
        }
        self.parts.write().extensions.bitmaps = new;
        let bit = if new.is_some() { Bit::Set } else { Bit::Cleared };
        self.set_bit(&turn, bit).await
    }

    /// Replaces the data of the extension at `at`.
    async fn change_in_place(&self, turn: &Turn<'_>, at: u64, new: BitmapsExtension) -> Result<()> {
        let bytes = new.encode();
        let data = bytes.get(8..).unwrap_or_default();
        let (first, last) = (at + 8, at + to_u64(bytes.len()) - 1);
        if first / SECTOR != last / SECTOR {
            self.set_bit(turn, Bit::Cleared).await?;
        }
        self.write_stable(first, data).await
    }

    /// Adds the extension at `end`, where the end marker is.
    async fn append(&self, end: u64, new: BitmapsExtension) -> Result<()> {
        let bytes = new.encode();
        let (head, data) = bytes.split_at_checked(8).unwrap_or_default();
        // Behind the end marker nobody looks.
        self.write_stable(end + 8, &[data, &[0; 8]].concat()).await?;
        self.write_stable(end, head).await
    }

    /// Sees to it that the extensions may reach to `end` of the first cluster.
    async fn make_room(&self, turn: &Turn<'_>, end: u64, cluster_size: u64) -> Result<Room> {
        if end > cluster_size {
            return Ok(Room::Missing);
        }
        let (name, bytes) =
            self.with(|parts| (parts.header.backing_name, parts.backing_name.clone()));
        let (Some(name), Some(bytes)) = (name, bytes) else { return Ok(Room::Made) };
        if name.start >= end {
            return Ok(Room::Made);
        }
        let len = to_u64(bytes.len());
        let start = cluster_size.saturating_sub(len) / 8 * 8;
        if start < end.max(name.end) {
            return Ok(Room::Missing);
        }
        self.write_stable(start, &bytes).await?;
        let moved = Some(Part { start, end: start + len });
        self.update_in_turn(turn, |header| header.backing_name = moved).await?;
        flush(&self.file).await?;
        Ok(Room::Made)
    }

    /// Writes the whole cluster. Names of feature bits are for people: they go where room is short.
    async fn set_by_rewrite(&self, turn: &Turn<'_>, new: Option<BitmapsExtension>) -> Result<()> {
        let rewritten = self.rewrite_in_turn(turn, |parts| parts.extensions.bitmaps = new).await;
        match rewritten {
            Ok(()) => {}
            Err(OpenError::Request { error, .. }) => return Err(error),
            Err(_) => {
                let smaller = self.rewrite_in_turn(turn, |parts| {
                    parts.extensions.bitmaps = new;
                    parts.extensions.feature_names.clear();
                });
                smaller.await.map_err(|error| match error {
                    OpenError::Request { error, .. } => error,
                    _ => Error::NO_SPACE,
                })?;
            }
        }
        flush(&self.file).await
    }

    /// Says whether the extension is up to date; stable when it returns.
    async fn set_bit(&self, turn: &Turn<'_>, bit: Bit) -> Result<()> {
        let set = bit == Bit::Set;
        if self.with(|parts| parts.header.features.bitmaps) == set {
            return Ok(());
        }
        self.update_in_turn(turn, |header| header.features.bitmaps = set).await?;
        flush(&self.file).await
    }

    async fn write_stable(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        write_bytes(&self.file, HostOffset::new(offset), bytes).await?;
        flush(&self.file).await
    }
}

/// Whether the extensions may grow.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Room {
    Made,
    Missing,
}

/// The autoclear bit of the bitmaps.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Bit {
    Set,
    Cleared,
}

/// Bytes of the extension and of the end marker behind it.
const APPENDED: u64 = 40;
