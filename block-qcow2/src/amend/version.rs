//! From version 2 to version 3 and back.
//!
//! Version 2 has no zero clusters: before the header says so, every one of them, in the tables of
//! snapshots too, becomes a cluster of zeroes, or an unallocated one where no backing file shows.
//!
//! **Invariants.** A table is changed once, in place, for everybody who shares it; a cluster that it
//! gains is counted as often as the table is. A crash leaves an image of version 3.

use block_core::range::to_u64;
use block_core::{ByteRange, OpenError, RequestFlags, Result};

use super::{Progress, failed};
use crate::alloc::{Place, Reason};
use crate::driver::Qcow2Driver;
use crate::geometry::Version;
use crate::metadata_io::{encode_words, write_bytes};
use crate::overlap::Section;
use crate::plan::Dropped;
use crate::refcounts::{Run, Step};
use crate::reload::from_below;
use crate::snapshot::{NotReplaced, l1_of};
use crate::spec::entry::{Cluster, Copied, encode_plain, l1_entry, l2_entry};
use crate::spec::extension::known_feature_names;
use crate::units::{GuestOffset, HostOffset};
use crate::writeback::Extent;

impl Qcow2Driver {
    /// Makes the image one of version 3. In an exclusive turn, everything written back.
    pub(super) async fn upgrade(&self) -> Result<(), OpenError> {
        let mut list = self.lists.read().snapshots.clone();
        if list.iter().any(|snapshot| snapshot.disk_len.is_none()) {
            // Version 3 wants it said; in version 2 they are all as long as the disk.
            for snapshot in &mut list {
                snapshot.disk_len.get_or_insert(self.disk_len());
            }
            let replaced = self.replace_snapshot_table(list).await;
            let replaced = replaced.map_err(NotReplaced::error);
            replaced.map_err(failed("snapshot table"))?;
            self.settle_all().await.map_err(failed("snapshot table"))?;
        }
        let geometry = self.geometry().with_version(Version::V3);
        let named = self.header.rewrite(|parts| {
            parts.header.geometry = geometry;
            parts.extensions.feature_names = known_feature_names();
        });
        if let Err(OpenError::Field { .. }) = named.await {
            // No room for names, which are there for people.
            self.header.rewrite(|parts| parts.header.geometry = geometry).await?;
        }
        self.barrier().await.map_err(failed("header"))?;
        self.adopt().await
    }

    /// Makes the image one of version 2, which nothing in it contradicts but zero clusters and feature
    /// bits. In an exclusive turn.
    pub(super) async fn downgrade(&self, progress: Progress<'_>) -> Result<(), OpenError> {
        let what = failed("zero clusters");
        self.settle_all().await.map_err(&what)?;
        let expanded = self.expand_zeroes(progress).await;
        self.after(expanded).await.map_err(&what)?;
        self.take_back_growth().await.map_err(&what)?;
        self.settle_all().await.map_err(&what)?;
        let geometry = self.geometry().with_version(Version::V2);
        self.header
            .rewrite(|parts| {
                parts.header.geometry = geometry;
                parts.header.features.lazy_refcounts = false;
                parts.header.features.bitmaps = false;
                parts.header.unknown_compatible = 0;
                parts.header.unknown_autoclear = 0;
                parts.extensions.bitmaps = None;
                parts.extensions.feature_names.clear();
            })
            .await?;
        self.barrier().await.map_err(&what)?;
        self.adopt().await
    }

    /// Expands the zero clusters of the disk and of all snapshots.
    async fn expand_zeroes(&self, progress: Progress<'_>) -> Result<()> {
        let snapshots = self.lists.read().snapshots.clone();
        let counts = snapshots.iter().map(|snapshot| u64::from(snapshot.l1.count));
        let total = counts.sum::<u64>() + self.l1_len();
        let active = self.l1.read().clone();
        let mut done = 0;
        self.expand_tables(&active, Section::ActiveL2, (&mut done, total), progress).await?;
        for snapshot in &snapshots {
            let l1 = l1_of(&self.file, self.geometry(), snapshot, snapshot.l1.count).await?;
            self.expand_tables(&l1, Section::InactiveL2, (&mut done, total), progress).await?;
        }
        progress(total, total);
        Ok(())
    }

    async fn expand_tables(
        &self,
        l1: &[u64],
        section: Section,
        (done, total): (&mut u64, u64),
        progress: Progress<'_>,
    ) -> Result<()> {
        for raw in l1 {
            if let Some(table) = l1_entry(self.geometry(), *raw)? {
                progress(*done, total);
                self.expand_table(table, section).await?;
                self.relieve().await?;
            }
            *done += 1;
        }
        Ok(())
    }

    /// Expands the zero clusters of one table. One that was met before has none left.
    async fn expand_table(&self, table: HostOffset, section: Section) -> Result<()> {
        let geometry = self.geometry();
        let mut words = self.read_l2(table).await?;
        let mut zeroes = Vec::new();
        let mut dropped = Vec::new();
        for (index, raw) in words.iter().enumerate() {
            if let Cluster::Plain { host, zero: 1, .. } = l2_entry(geometry, *raw, 0)? {
                zeroes.push(index);
                dropped.extend(host.map(Dropped::Cluster));
            }
        }
        if zeroes.is_empty() {
            return Ok(());
        }
        let number = table.bytes() >> geometry.cluster_bits();
        let users = self.writer()?.meta.lock().await.refcounts.get(number).await?;
        let copied = if users == 1 { Copied::Yes } else { Copied::No };
        // Asked of the header: the backing file itself may be kept closed.
        let backed = self.header.with(|parts| parts.backing_name.is_some());
        let places = match backed {
            true => self.places_of_zeroes(to_u64(zeroes.len()), users).await?,
            false => Vec::new(),
        };
        let hosts = places.iter().flat_map(|place| {
            (0..place.count).map(|n| place.host.plus(n << geometry.cluster_bits()))
        });
        let hosts = hosts.map(Some).chain(std::iter::repeat(None));
        for (index, host) in zeroes.into_iter().zip(hosts) {
            let alloc = u32::from(host.is_some());
            let (raw, _) = encode_plain(geometry, host, alloc, 0, copied);
            words.get_mut(index).into_iter().for_each(|word| *word = raw);
        }
        self.write_back(Extent::Everything).await?;
        self.barrier().await?;
        {
            let overlap = &self.writer()?.overlap;
            // A table of a snapshot may be one of the disk, or may not be known.
            let own = overlap.check_metadata(section, table, geometry.cluster_size());
            own.or_else(|_| {
                overlap.check_metadata(Section::ActiveL2, table, geometry.cluster_size())
            })?;
        }
        self.event("l2_update");
        write_bytes(&self.file, table, &encode_words(&words)).await?;
        self.forget_slices(table);
        let mut meta = self.writer()?.meta.lock().await;
        for one in dropped {
            // Everybody who shares the table had a reference.
            (0..users).for_each(|_| meta.drop_data(one, Reason::Other));
        }
        Ok(())
    }

    /// Clusters of zeroes, counted `users` times.
    async fn places_of_zeroes(&self, count: u64, users: u64) -> Result<Vec<Place>> {
        let mut places = Vec::new();
        let filled = self.fill_places(count, users, &mut places).await;
        if filled.is_err() {
            let mut meta = self.writer()?.meta.lock().await;
            places.drain(..).for_each(|place| meta.give_back(place));
        }
        filled.map(|()| places)
    }

    async fn fill_places(&self, count: u64, users: u64, places: &mut Vec<Place>) -> Result<()> {
        let bits = self.geometry().cluster_bits();
        let mut rest = count;
        while rest > 0 {
            let place = {
                let mut meta = self.writer()?.meta.lock().await;
                meta.allocate_data(GuestOffset::new(0), rest, &self.header).await?
            };
            places.push(place);
            rest -= place.count.min(rest);
            let range = ByteRange::new(place.host.bytes(), place.count << bits)?;
            from_below(self.file.write_zeroes(range, RequestFlags::empty()).await)?;
        }
        let mut meta = self.writer()?.meta.lock().await;
        for place in places {
            let run = Run { first: place.host.bytes() >> bits, count: place.count };
            for _ in 1..users {
                meta.refcounts.step(run, Step::Up).await?;
            }
        }
        Ok(())
    }
}
