//! The walk over all metadata that counts references.

use block_core::Problem;

use super::{Checker, Finding, References, Role};
use crate::naive::qcow2::bitmap::{Bitmap, Cluster};
use crate::naive::qcow2::entry::{L1Entry, L2Entry};
use crate::naive::qcow2::error::BadImage;
use crate::naive::qcow2::map::Disk;

impl Checker<'_> {
    pub(super) fn count_references(&mut self) -> Result<(), BadImage> {
        let header = &self.image.header;
        self.refer(Role::Header, 0, header.cluster_size());
        if let Some((offset, len)) = header.crypt_header() {
            self.refer(Role::CryptHeader, offset, len);
        }
        self.walk_refcounts()?;
        self.walk_l1(Disk::active(header), Role::ActiveL1)?;
        self.report.shares_with_itself = self.references.iter().any(References::is_shared_data);
        self.walk_snapshots()?;
        self.walk_bitmaps()
    }

    fn walk_refcounts(&mut self) -> Result<(), BadImage> {
        let (image, cluster) = (self.image, self.image.header.cluster_size());
        let table_len = image.reftable_entries() * 8;
        self.refer(Role::RefcountTable, image.header.refcount_table_offset, table_len);
        for index in 0..image.reftable_entries() {
            self.spend()?;
            match image.refcount_block(index) {
                Ok(Some(block)) => self.refer(Role::RefcountBlock, block, cluster),
                Ok(None) => {}
                Err(bad) => self.add(Finding::Structure(bad)),
            }
        }
        Ok(())
    }

    fn walk_l1(&mut self, disk: Disk, role: Role) -> Result<(), BadImage> {
        let (image, header) = (self.image, &self.image.header);
        self.refer(role, disk.l1_offset, u64::from(disk.l1_size) * 8);
        for index in 0..u64::from(disk.l1_size) {
            self.spend()?;
            let entry = L1Entry::parse(image.file.u64(disk.l1_offset + index * 8));
            let guest = index * header.l2_coverage();
            if let Some(problem) = entry.problem(header) {
                self.add(Finding::Entry {
                    table: "L1 table",
                    place: guest,
                    value: entry.raw,
                    problem,
                });
            }
            if entry.offset == 0 || !entry.offset.is_multiple_of(header.cluster_size()) {
                continue;
            }
            self.refer(Role::L2, entry.offset, header.cluster_size());
            if role == Role::ActiveL1 {
                self.check_copied(Role::L2, guest, entry.offset, entry.copied);
            }
            if entry.offset < image.file.len() {
                self.walk_l2(entry.offset, guest, role)?;
            }
        }
        Ok(())
    }

    /// The L2 table at `table`, which maps the guest bytes from `start` on.
    fn walk_l2(&mut self, table: u64, start: u64, l1: Role) -> Result<(), BadImage> {
        let (image, header) = (self.image, &self.image.header);
        for index in 0..header.l2_entries() {
            self.spend()?;
            let guest = start + index * header.cluster_size();
            let entry = image.l2_entry_at(table, index);
            if let Some(problem) = entry.problem(header) {
                self.add(Finding::Entry {
                    table: "L2 table",
                    place: guest,
                    value: entry.raw(),
                    problem,
                });
            }
            match entry {
                L2Entry::Compressed { host, len, .. } => self.refer(Role::Compressed, host, len),
                L2Entry::Standard { host: Some(host), copied, raw, .. } => {
                    if header.has_data_file() {
                        self.check_data_file(guest, host, raw);
                    } else if host.is_multiple_of(header.cluster_size()) {
                        self.refer(Role::Data, host, header.cluster_size());
                    }
                    if l1 == Role::ActiveL1 {
                        self.check_copied(Role::Data, guest, host, copied);
                    }
                }
                L2Entry::Standard { host: None, .. } => {}
            }
        }
        Ok(())
    }

    /// In a data file every cluster stands at its guest offset.
    fn check_data_file(&mut self, guest: u64, host: u64, raw: u64) {
        if host != guest {
            self.add(Finding::Entry {
                table: "L2 table",
                place: guest,
                value: raw,
                problem: Problem::Contradicts("its guest offset"),
            });
        }
    }

    fn check_copied(&mut self, role: Role, guest: u64, host: u64, copied: bool) {
        let header = &self.image.header;
        let cluster = host / header.cluster_size();
        // Clusters of a data file have no refcount, and count as used once.
        let refcount =
            if role == Role::Data && header.has_data_file() { 1 } else { self.stored(cluster) };
        if copied != (refcount == 1) {
            self.add(Finding::Copied { role, guest, cluster, refcount, copied });
        }
    }

    fn walk_snapshots(&mut self) -> Result<(), BadImage> {
        if self.image.header.nb_snapshots == 0 {
            return Ok(());
        }
        let table = match self.image.snapshot_table() {
            Ok(table) => table,
            Err(bad) => {
                self.add(Finding::Structure(bad));
                return Ok(());
            }
        };
        let offset = self.image.header.snapshots_offset;
        self.refer(Role::SnapshotTable, offset, table.len);
        for snapshot in &table.snapshots {
            let disk = Disk::of_snapshot(snapshot, &self.image.header);
            self.walk_l1(disk, Role::InactiveL1)?;
        }
        Ok(())
    }

    fn walk_bitmaps(&mut self) -> Result<(), BadImage> {
        let found =
            self.image.header.bitmaps().and_then(|place| Ok((place, self.image.bitmaps()?)));
        let (place, bitmaps) = match found {
            Ok(found) => found,
            Err(bad) => {
                self.add(Finding::Structure(bad));
                return Ok(());
            }
        };
        if let Some((_, size, offset)) = place {
            self.refer(Role::BitmapDirectory, offset, size);
        }
        for bitmap in &bitmaps {
            self.walk_bitmap(bitmap)?;
        }
        Ok(())
    }

    fn walk_bitmap(&mut self, bitmap: &Bitmap) -> Result<(), BadImage> {
        let entries = u64::from(bitmap.table_size);
        self.refer(Role::BitmapTable, bitmap.table_offset, entries * 8);
        for index in 0..entries {
            self.spend()?;
            match self.image.bitmap_entry(bitmap, index) {
                Ok(Cluster::At(offset)) => {
                    self.refer(Role::BitmapData, offset, self.image.header.cluster_size());
                }
                Ok(Cluster::Filled(_)) => {}
                Err(bad) => self.add(Finding::Structure(bad)),
            }
        }
        Ok(())
    }
}
