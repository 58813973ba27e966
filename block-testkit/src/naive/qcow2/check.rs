//! The checker: every reference to every host cluster is counted and compared with the refcounts.
//!
//! Nothing found is worth stopping for: the check goes on with what can still be understood, so
//! that one damage gives one finding wherever that is possible. It changes nothing.

mod finding;
mod walk;

pub use finding::{Finding, Kind, MAX_FINDINGS, Report, Role};

use std::collections::BTreeSet;

use block_core::range::{to_u64, to_usize};

use super::Image;
use super::error::BadImage;

/// Most table entries that one check visits.
pub const MAX_WORK: u64 = 1 << 26;

/// What refers to one cluster.
#[derive(Copy, Clone, Default)]
struct References {
    count: u64,
    /// One bit for each [`Role`].
    roles: u16,
}

impl References {
    /// Whether entries whose flags are checked refer to it, and more than one.
    fn is_shared_data(&self) -> bool {
        self.count > 1 && self.roles & (Role::L2.bit() | Role::Data.bit()) != 0
    }
}

struct Checker<'a> {
    image: &'a Image<'a>,
    /// For each cluster of the file, a partial last one included.
    references: Vec<References>,
    /// Clusters beyond the end of the file that something refers to.
    beyond: BTreeSet<u64>,
    report: Report,
    work: u64,
}

impl Image<'_> {
    /// Counts every reference and compares with the refcounts and COPIED flags.
    ///
    /// Fails only where more than [`MAX_WORK`] entries would have to be visited.
    pub fn check(&self) -> Result<Report, BadImage> {
        let clusters = self.file.len().div_ceil(self.header.cluster_size());
        let mut checker = Checker {
            image: self,
            references: vec![References::default(); to_usize(clusters)],
            beyond: BTreeSet::new(),
            report: Report::default(),
            work: 0,
        };
        checker.count_references()?;
        checker.compare_refcounts()?;
        checker.find_overlaps();
        Ok(checker.report)
    }
}

impl Checker<'_> {
    fn add(&mut self, finding: Finding) {
        self.report.add(finding);
    }

    /// Accounts for one more entry.
    fn spend(&mut self) -> Result<(), BadImage> {
        self.work += 1;
        if self.work > MAX_WORK {
            return Err(BadImage::TooLarge {
                what: "entries to check",
                value: self.work,
                limit: MAX_WORK,
            });
        }
        Ok(())
    }

    /// Counts a reference to every cluster that holds a byte of `[offset, offset + len)`.
    fn refer(&mut self, role: Role, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        let size = self.image.header.cluster_size();
        for cluster in offset / size..=offset.saturating_add(len - 1) / size {
            match self.references.get_mut(to_usize(cluster)) {
                Some(references) => {
                    references.count += 1;
                    references.roles |= role.bit();
                }
                None => {
                    // The rest of the range is beyond the end too.
                    if self.beyond.len() < MAX_FINDINGS {
                        self.beyond.insert(cluster);
                    }
                    self.add(Finding::Beyond { cluster, role });
                    return;
                }
            }
        }
    }

    /// The stored refcount; 0 where the refcount table is damaged, which is a finding by itself.
    fn stored(&self, cluster: u64) -> u64 {
        self.image.refcount(cluster).unwrap_or(0)
    }

    fn compare_refcounts(&mut self) -> Result<(), BadImage> {
        let clusters = to_u64(self.references.len());
        for cluster in 0..clusters {
            self.spend()?;
            let references = self.references[to_usize(cluster)].count;
            let stored = self.stored(cluster);
            if stored != references {
                self.add(Finding::Refcount { cluster, stored, references });
            }
        }
        self.find_refcounts_beyond(clusters)
    }

    /// Clusters from `first` on are not in the file, so nothing but what was found to refer to them
    /// may have a refcount.
    fn find_refcounts_beyond(&mut self, first: u64) -> Result<(), BadImage> {
        let per_block = self.image.refcounts_per_block();
        let per_word = 64 / u64::from(self.image.header.refcount_bits());
        for index in first / per_block..self.image.reftable_entries() {
            self.spend()?;
            let Ok(Some(block)) = self.image.refcount_block(index) else {
                continue;
            };
            for word in 0..per_block / per_word {
                self.spend()?;
                if self.image.file.u64(block.saturating_add(word * 8)) == 0 {
                    continue;
                }
                let start = index * per_block + word * per_word;
                for cluster in start.max(first)..start + per_word {
                    let stored = self.image.refcount_in(block, cluster % per_block);
                    if stored != 0 && !self.beyond.contains(&cluster) {
                        self.add(Finding::Refcount { cluster, stored, references: 0 });
                    }
                }
            }
        }
        Ok(())
    }

    /// Metadata has one user; guest data may be shared, but only with its like.
    fn find_overlaps(&mut self) {
        for cluster in 0..self.references.len() {
            let References { count, roles } = self.references[cluster];
            let alone = roles & Role::SHARABLE == 0;
            if roles.count_ones() > 1 || (alone && count > 1) {
                self.add(Finding::Overlap {
                    cluster: to_u64(cluster),
                    roles: Role::of_bits(roles),
                });
            }
        }
    }
}
