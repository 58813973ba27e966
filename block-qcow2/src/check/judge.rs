//! What is wrong with an L1 or L2 entry by itself, what it refers to all the same, and what it is to
//! become.
//!
//! A check must go on where the driver stops, so entries are taken apart here without the checks of
//! [`crate::spec::entry`]. What becomes of an entry that is wrong:
//! * reserved bits are cleared, the rest stays;
//! * an offset that is not aligned is rounded down, if nothing else is there;
//! * a subcluster that is both allocated and zero stays allocated;
//! * an entry that cannot mean anything is *dropped*: unallocated where there is no backing file,
//!   else zeroes (if the version has them), so that old data does not show through.

use crate::check::layout::Layout;
use crate::geometry::{DataLocation, L2Format, Version};
use crate::spec::entry::Payload;

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;

/// The words of an entry; the second is 0 where entries have one.
pub(super) type Words = (u64, u64);

/// What an entry refers to.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Target {
    /// Nothing.
    None,
    /// The cluster that starts there, in the image file (never in a data file).
    Cluster(u64),
    /// A compressed cluster.
    Compressed(Payload),
    /// A cluster of the data file.
    External,
}

/// An entry that was looked at.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Judged {
    pub(super) target: Target,
    /// What is wrong, in the format's words.
    pub(super) problems: [Option<&'static str>; 2],
    /// Whether the offset had to be rounded.
    pub(super) rounded: bool,
    /// What it should be.
    pub(super) fixed: Words,
}

impl Judged {
    fn new(target: Target, fixed: Words) -> Self {
        Self { target, problems: [None; 2], rounded: false, fixed }
    }

    fn problem(&mut self, what: &'static str) {
        if let Some(slot) = self.problems.iter_mut().find(|slot| slot.is_none()) {
            *slot = Some(what);
        }
    }

    /// Whether the entry refers to its cluster also when it is what it should be.
    pub(super) fn keeps_cluster(&self) -> bool {
        self.fixed.0 & OFFSET != 0
    }

    /// Whether the entry claims to be the only one to refer to its cluster.
    pub(super) fn is_copied(&self) -> bool {
        self.fixed.0 & COPIED != 0
    }
}

impl Layout {
    /// An L1 entry.
    pub(super) fn judge_l1(&self, raw: u64) -> Judged {
        let mut fixed = raw & (OFFSET | COPIED);
        let offset = self.geometry().cluster_alignment().round_down(fixed & OFFSET);
        let reserved = raw != fixed;
        let rounded = offset != fixed & OFFSET;
        fixed = offset | fixed & COPIED;
        if offset == 0 {
            fixed = 0;
        }
        let target = if offset == 0 { Target::None } else { Target::Cluster(offset) };
        let mut judged = Judged { rounded, ..Judged::new(target, (fixed, 0)) };
        if reserved {
            judged.problem("reserved bits are set");
        }
        if rounded {
            judged.problem("the L2 table is not aligned to a cluster");
        }
        judged
    }

    /// An L2 entry, which maps the guest bytes from `guest` on, if that is known.
    pub(super) fn judge_l2(&self, words: Words, guest: Option<u64>) -> Judged {
        if words.0 & COMPRESSED != 0 {
            return self.judge_compressed(words);
        }
        let (raw, bitmap) = words;
        let extended = self.geometry().l2_format() == L2Format::Extended;
        let external = self.geometry().data_location() == DataLocation::DataFile;
        let has_zero_flag = self.geometry().version() != Version::V2 && !extended;
        let allowed = OFFSET | COPIED | if has_zero_flag { ZERO } else { 0 };
        let masked = raw & allowed;
        let offset = self.geometry().cluster_alignment().round_down(masked & OFFSET);
        let rounded = offset != masked & OFFSET;
        let target = if external && (offset != 0 || masked & COPIED != 0) {
            Target::External
        } else if offset != 0 {
            Target::Cluster(offset)
        } else {
            Target::None
        };
        let fixed = masked & !OFFSET | offset;
        let mut judged = Judged { rounded, ..Judged::new(target, (fixed, bitmap)) };
        if masked != raw {
            judged.problem("reserved bits are set");
            if raw & ZERO != 0 && !extended {
                // A zero cluster in an image whose version has none.
                judged.fixed = (0, 0);
            }
        }
        if rounded {
            judged.problem("the cluster is not aligned");
        }
        if let (Target::External, Some(guest)) = (target, guest)
            && offset != guest
        {
            judged.problem("the cluster of the data file is not at its guest offset");
            judged.fixed.0 = judged.fixed.0 & !OFFSET | guest & OFFSET | COPIED;
        }
        if extended {
            self.judge_bitmap(&mut judged, bitmap);
        }
        judged
    }

    fn judge_bitmap(&self, judged: &mut Judged, bitmap: u64) {
        let (alloc, zero) = (bitmap & u64::from(u32::MAX), bitmap >> 32);
        if judged.target == Target::None && alloc != 0 {
            judged.problem("subclusters are allocated without a cluster");
            let zero = if self.has_backing { zero | alloc } else { zero };
            judged.fixed.1 = zero << 32;
        } else if alloc & zero != 0 {
            judged.problem("subclusters are both allocated and zero");
            judged.fixed.1 = (zero & !alloc) << 32 | alloc;
        }
    }

    fn judge_compressed(&self, (raw, bitmap): Words) -> Judged {
        if self.geometry().data_location() == DataLocation::DataFile {
            let mut judged = Judged::new(Target::None, self.dropped());
            judged.problem("a compressed cluster in an image with a data file");
            return judged;
        }
        let (offset, len) = self.geometry().compressed_payload(raw & (COMPRESSED - 1));
        let target = Target::Compressed(Payload { offset, len });
        let mut judged = Judged::new(target, (raw & !COPIED, 0));
        if raw & COPIED != 0 {
            judged.problem("a compressed cluster has the COPIED flag");
        }
        if bitmap != 0 {
            judged.problem("a compressed cluster has subclusters");
        }
        judged
    }

    /// What an entry becomes that cannot mean anything.
    pub(super) fn dropped(&self) -> Words {
        match (self.geometry().l2_format(), self.geometry().version()) {
            _ if !self.has_backing => (0, 0),
            (L2Format::Extended, _) => (0, u64::from(u32::MAX) << 32),
            (L2Format::Standard, Version::V3) => (ZERO, 0),
            (L2Format::Standard, Version::V2) => (0, 0),
        }
    }
}
