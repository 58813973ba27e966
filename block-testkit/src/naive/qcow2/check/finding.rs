//! What a check finds.

use std::collections::BTreeSet;
use std::fmt;

use block_core::Problem;

use crate::naive::qcow2::error::BadImage;

/// Most findings that are kept; the others are only counted.
pub const MAX_FINDINGS: usize = 1 << 16;

/// What a cluster is used for.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Role {
    /// The header.
    Header,
    /// The encryption header.
    CryptHeader,
    /// The refcount table.
    RefcountTable,
    /// A refcount block.
    RefcountBlock,
    /// The L1 table that the guest uses.
    ActiveL1,
    /// The L1 table of a snapshot.
    InactiveL1,
    /// An L2 table.
    L2,
    /// Guest data as it is.
    Data,
    /// Compressed guest data.
    Compressed,
    /// The snapshot table.
    SnapshotTable,
    /// The bitmap directory.
    BitmapDirectory,
    /// The table of a bitmap.
    BitmapTable,
    /// The bits of a bitmap.
    BitmapData,
}

impl Role {
    const ALL: [Self; 13] = [
        Self::Header,
        Self::CryptHeader,
        Self::RefcountTable,
        Self::RefcountBlock,
        Self::ActiveL1,
        Self::InactiveL1,
        Self::L2,
        Self::Data,
        Self::Compressed,
        Self::SnapshotTable,
        Self::BitmapDirectory,
        Self::BitmapTable,
        Self::BitmapData,
    ];

    /// Snapshots share L2 tables and data; compressed clusters share host clusters.
    pub(super) const SHARABLE: u16 = Self::L2.bit() | Self::Data.bit() | Self::Compressed.bit();

    pub(super) const fn bit(self) -> u16 {
        match self {
            Self::Header => 1 << 0,
            Self::CryptHeader => 1 << 1,
            Self::RefcountTable => 1 << 2,
            Self::RefcountBlock => 1 << 3,
            Self::ActiveL1 => 1 << 4,
            Self::InactiveL1 => 1 << 5,
            Self::L2 => 1 << 6,
            Self::Data => 1 << 7,
            Self::Compressed => 1 << 8,
            Self::SnapshotTable => 1 << 9,
            Self::BitmapDirectory => 1 << 10,
            Self::BitmapTable => 1 << 11,
            Self::BitmapData => 1 << 12,
        }
    }

    pub(super) fn of_bits(bits: u16) -> Vec<Self> {
        Self::ALL.into_iter().filter(|role| bits & role.bit() != 0).collect()
    }
}

/// How bad a finding is.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// Space is lost; no data is in danger.
    Leak,
    /// Data is lost or will be by the next writes.
    Error,
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Finding {
    /// The stored refcount is not the number of references. A leak if it is larger.
    Refcount {
        /// Host cluster.
        cluster: u64,
        /// What is stored.
        stored: u64,
        /// How many references there are.
        references: u64,
    },
    /// A COPIED flag contradicts the stored refcount, which it must be set for if that is one.
    Copied {
        /// What the entry points at: an L2 table or data.
        role: Role,
        /// First guest byte that the entry maps.
        guest: u64,
        /// Host cluster that the entry points at.
        cluster: u64,
        /// Its stored refcount; 1 for all clusters of a data file.
        refcount: u64,
        /// Whether the flag is set.
        copied: bool,
    },
    /// An entry of a table holds what the format does not allow.
    Entry {
        /// The table, in the format's words.
        table: &'static str,
        /// First guest byte that the entry maps; the entry's index in other tables.
        place: u64,
        /// The entry.
        value: u64,
        /// What is wrong with it.
        problem: Problem,
    },
    /// A cluster is used for things that cannot share one.
    Overlap {
        /// Host cluster.
        cluster: u64,
        /// For what; one role if that has more than one user and must not.
        roles: Vec<Role>,
    },
    /// Something refers to a cluster that starts at or beyond the end of the file.
    Beyond {
        /// The first such host cluster.
        cluster: u64,
        /// For what it is used.
        role: Role,
    },
    /// A structure cannot be understood; what it refers to was not counted.
    Structure(BadImage),
}

impl Finding {
    /// How bad it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Refcount { stored, references, .. } if stored > references => Kind::Leak,
            _ => Kind::Error,
        }
    }

    /// The cluster that has one reference and a refcount above that.
    fn own_but_leaked(&self) -> Option<u64> {
        match self {
            Self::Refcount { cluster, stored, references: 1 } if *stored > 1 => Some(*cluster),
            _ => None,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refcount { cluster, stored, references } => {
                write!(f, "cluster {cluster}: refcount {stored}, references {references}")
            }
            Self::Copied { role, guest, cluster, refcount, copied } => write!(
                f,
                "guest {guest:#x}: COPIED is {copied} for {role:?} cluster {cluster} of refcount {refcount}"
            ),
            Self::Entry { table, place, value, problem } => {
                write!(f, "{table} at {place:#x}: {value:#x} {problem}")
            }
            Self::Overlap { cluster, roles } => write!(f, "cluster {cluster} is shared: {roles:?}"),
            Self::Beyond { cluster, role } => {
                write!(f, "{role:?} cluster {cluster} is beyond the end of the file")
            }
            Self::Structure(bad) => write!(f, "{bad}"),
        }
    }
}

/// All that a check found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// The findings, the first [`MAX_FINDINGS`] of them.
    pub findings: Vec<Finding>,
    /// Whether entries of the guest's disk share a cluster with each other. That is sound as it is, but
    /// a write through one of them leaves the other with a COPIED flag that could be set.
    pub shares_with_itself: bool,
    /// How many findings of each kind there are, those not kept included: leaks, errors.
    counts: [u64; 2],
}

impl Report {
    pub(super) fn add(&mut self, finding: Finding) {
        match finding.kind() {
            Kind::Leak => self.counts[0] += 1,
            Kind::Error => self.counts[1] += 1,
        }
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding);
        }
    }

    /// How many leaks there are.
    pub fn leaks(&self) -> u64 {
        self.counts[0]
    }

    /// How many errors put data at risk: not COPIED flags that could be set, which cost a copy; and not
    /// those that are set although the refcount is too high, where nobody else refers to the cluster.
    ///
    /// Only of those findings that are kept.
    pub fn dangers(&self) -> usize {
        let leaked: BTreeSet<u64> =
            self.findings.iter().filter_map(Finding::own_but_leaked).collect();
        let harmless = |finding: &Finding| match finding {
            Finding::Copied { copied: false, refcount, .. } => *refcount > 0,
            Finding::Copied { copied: true, cluster, .. } => leaked.contains(cluster),
            _ => false,
        };
        let errors = self.findings.iter().filter(|finding| finding.kind() == Kind::Error);
        errors.filter(|finding| !harmless(finding)).count()
    }

    /// How many errors there are.
    pub fn errors(&self) -> u64 {
        self.counts[1]
    }

    /// Whether nothing was found.
    pub fn is_clean(&self) -> bool {
        self.counts == [0, 0]
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} errors, {} leaks", self.errors(), self.leaks())?;
        self.findings.iter().try_for_each(|finding| writeln!(f, "{finding}"))
    }
}
