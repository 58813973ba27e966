//! From a part of an L2 table to extents: pure, no I/O, no locks.
//!
//! Invariants of an [`Extent`]: `1 <= len <= the len asked for`; all its bytes are stored the same
//! way, and those that have host offsets follow each other there. A compressed cluster is never
//! merged with its neighbours. A faulty entry is an error only for the bytes that it maps: an extent
//! ends before it.

use crate::geometry::Geometry;
use crate::spec::Fault;
use crate::spec::entry::{Cluster, Payload, mapping_entry};
use crate::units::{GuestOffset, HostOffset};

/// How an extent is stored.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Not in this image. With a host offset if a cluster is kept for it.
    Unallocated(Option<HostOffset>),
    /// Reads as zeroes. With a host offset if a cluster is kept for it.
    Zero(Option<HostOffset>),
    /// Stands at this host offset.
    Data(HostOffset),
    /// In a compressed cluster, from byte `skip` of what it inflates to.
    Compressed {
        /// The compressed bytes.
        payload: Payload,
        /// Offset of the extent in the cluster.
        skip: u64,
    },
}

impl Kind {
    /// The same, `by` bytes further.
    #[must_use]
    pub fn advanced(self, by: u64) -> Self {
        match self {
            Self::Unallocated(host) => Self::Unallocated(host.map(|h| h.plus(by))),
            Self::Zero(host) => Self::Zero(host.map(|h| h.plus(by))),
            Self::Data(host) => Self::Data(host.plus(by)),
            Self::Compressed { payload, skip } => {
                Self::Compressed { payload, skip: skip.saturating_add(by) }
            }
        }
    }

    /// Whether `next`, `len` bytes after this, continues it without a seam.
    pub fn continues_in(self, len: u64, next: Self) -> bool {
        !matches!(self, Self::Compressed { .. }) && self.advanced(len) == next
    }
}

/// A run of bytes that are stored the same way.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Bytes.
    pub len: u64,
    /// How they are stored.
    pub kind: Kind,
}

/// The extent that starts at `offset`, of at most `len` bytes.
///
/// `slice` holds the entries of an L2 table from entry `first_entry` on, and must hold that of
/// `offset`; the extent ends at the end of the slice at the latest.
pub fn first_extent(
    geometry: Geometry,
    slice: &[u64],
    first_entry: u64,
    offset: GuestOffset,
    len: u64,
) -> Result<Extent, Fault> {
    let outside = Fault::new("L2 index", geometry.l2_index(offset));
    let skip_entries = geometry
        .l2_index(offset)
        .checked_sub(first_entry)
        .and_then(|n| usize::try_from(n).ok())
        .ok_or(outside)?;
    let mut entries = slice.chunks_exact(geometry.l2_entry_words()).skip(skip_entries);
    let mut within = geometry.offset_in_cluster(offset.bytes());
    let mut cluster_start = offset.bytes() - within;
    let mut extent: Option<Extent> = None;
    loop {
        let done = extent.map_or(0, |e| e.len);
        if done >= len {
            break;
        }
        let Some(words) = entries.next() else {
            break;
        };
        let (&raw, bitmap) = (words.first().ok_or(outside)?, words.get(1));
        let guest = GuestOffset::new(cluster_start);
        let cluster = match mapping_entry(geometry, raw, bitmap.copied().unwrap_or(0), guest) {
            Ok(cluster) => cluster,
            Err(_) if extent.is_some() => break,
            Err(fault) => return Err(fault),
        };
        let (merged, ended) = extend(geometry, extent, cluster, within, len - done);
        extent = Some(merged);
        if ended {
            break;
        }
        within = 0;
        cluster_start = cluster_start.saturating_add(geometry.cluster_size());
    }
    extent.ok_or(outside)
}

/// Adds to `extent` what continues it in `cluster` from its byte `within` on, up to `max` bytes; says
/// whether the extent ends here.
fn extend(
    geometry: Geometry,
    extent: Option<Extent>,
    cluster: Cluster,
    within: u64,
    max: u64,
) -> (Extent, bool) {
    let (mut at, end) = (within, geometry.cluster_size().min(within.saturating_add(max)));
    let mut extent = extent;
    while at < end {
        let (kind, piece_end) = piece(geometry, cluster, at);
        let len = piece_end.min(end) - at;
        extent = match extent {
            None => Some(Extent { len, kind }),
            Some(e) if e.kind.continues_in(e.len, kind) => Some(Extent { len: e.len + len, ..e }),
            Some(e) => return (e, true),
        };
        at += len;
    }
    // `max` is at least one, so that at least one piece was looked at.
    let nothing = Extent { len: max, kind: Kind::Unallocated(None) };
    (extent.unwrap_or(nothing), false)
}

/// How the byte `at` of a cluster is stored, and where in the cluster that ends.
fn piece(geometry: Geometry, cluster: Cluster, at: u64) -> (Kind, u64) {
    let (host, alloc, zero) = match cluster {
        Cluster::Compressed(payload) => {
            let kind = Kind::Compressed { payload, skip: at };
            return (kind, geometry.cluster_size());
        }
        Cluster::Plain { host, alloc, zero } => (host, alloc, zero),
    };
    // Below 32 by the geometry.
    let index = u32::try_from(at >> geometry.subcluster_bits()).unwrap_or(0);
    let run = |mask: u32| (mask >> index).trailing_ones().min(geometry.subclusters() - index);
    let here = host.map(|h| h.plus(at));
    let (kind, count) = match here {
        Some(host) if alloc >> index & 1 == 1 => (Kind::Data(host), run(alloc)),
        _ if zero >> index & 1 == 1 => (Kind::Zero(here), run(zero)),
        _ => (Kind::Unallocated(here), run(!(alloc | zero))),
    };
    (kind, (u64::from(index) + u64::from(count.max(1))) << geometry.subcluster_bits())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::{DataLocation, L2Format, Version};
    use proptest::prelude::*;

    fn geometry(l2_format: L2Format) -> Geometry {
        Geometry::new(Version::V3, 14, 4, l2_format, DataLocation::Image).unwrap()
    }

    fn at(slice: &[u64], format: L2Format, offset: u64, len: u64) -> Result<Extent, Fault> {
        first_extent(geometry(format), slice, 0, GuestOffset::new(offset), len)
    }

    #[test]
    fn contiguous_clusters_are_one_extent() {
        let slice = [0x1_0000, 0x1_4000 | 1 << 63, 0x1_8000, 0x4_0000, 0, 0, 1, 1];
        let kind = |offset, len| at(&slice, L2Format::Standard, offset, len).unwrap();
        let data = |host| Kind::Data(HostOffset::new(host));
        assert_eq!(kind(5, 0xbffb), Extent { len: 0xbffb, kind: data(0x1_0005) });
        assert_eq!(kind(5, u64::MAX).len, 0xbffb);
        assert_eq!(kind(5, 7), Extent { len: 7, kind: data(0x1_0005) });
        assert_eq!(kind(0x4000 * 3, 0x8000), Extent { len: 0x4000, kind: data(0x4_0000) });
        let none = Kind::Unallocated(None);
        assert_eq!(kind(0x4000 * 4, u64::MAX), Extent { len: 0x8000, kind: none });
        assert_eq!(kind(0x4000 * 6, u64::MAX), Extent { len: 0x8000, kind: Kind::Zero(None) });
    }

    #[test]
    fn a_fault_concerns_its_own_bytes_only() {
        let slice = [0x1_0000, 0x1_4200, 0];
        assert_eq!(at(&slice, L2Format::Standard, 0, 0x8000).unwrap().len, 0x4000);
        let fault = at(&slice, L2Format::Standard, 0x4000, 1).unwrap_err();
        assert_eq!(fault, Fault::new("unaligned cluster offset", 0x1_4200));
        assert!(at(&slice, L2Format::Standard, 0x4000 * 3, 1).is_err());
    }

    #[test]
    fn subclusters_are_runs_across_clusters() {
        // The last 30 subclusters of one cluster and the first of the next are allocated.
        let slice = [0x1_0000, 0xffff_fffc | 2 << 32, 0x1_4000, 1];
        let kind = |offset| at(&slice, L2Format::Extended, offset, u64::MAX).unwrap();
        let host = |bytes| HostOffset::new(bytes);
        let unallocated = Kind::Unallocated(Some(host(0x1_0000)));
        assert_eq!(kind(0), Extent { len: 512, kind: unallocated });
        assert_eq!(kind(600), Extent { len: 424, kind: Kind::Zero(Some(host(0x1_0258))) });
        let data = Kind::Data(host(0x1_0400));
        assert_eq!(kind(1024), Extent { len: 31 * 512, kind: data });
    }

    #[test]
    fn compressed_clusters_stay_alone() {
        let slice = [1 << 62 | 0x5_0000, 1 << 62 | 0x5_0000];
        let extent = at(&slice, L2Format::Standard, 100, u64::MAX).unwrap();
        assert_eq!(extent.len, 0x4000 - 100);
        assert!(matches!(extent.kind, Kind::Compressed { skip: 100, .. }));
    }

    /// The slow twin: how one byte is stored.
    fn byte(slice: &[u64], format: L2Format, offset: u64) -> Option<Kind> {
        at(slice, format, offset, 1).ok().map(|e| e.kind)
    }

    fn entry() -> impl Strategy<Value = u64> {
        prop_oneof![
            Just(0u64),
            Just(1u64),
            (1u64..6).prop_map(|n| n << 14),
            (1u64..6).prop_map(|n| n << 14 | 1),
            (1u64..6).prop_map(|n| 1 << 62 | n << 14),
            any::<u64>(),
        ]
    }

    proptest! {
        #[test]
        fn an_extent_says_of_each_byte_what_the_byte_says(
            words in prop::collection::vec(entry(), 8),
            extended: bool,
            offset in 0u64..8 << 14,
            len in 1u64..8 << 14,
        ) {
            let format = if extended { L2Format::Extended } else { L2Format::Standard };
            match at(&words, format, offset, len) {
                Err(_) => prop_assert_eq!(byte(&words, format, offset), None),
                Ok(extent) => {
                    prop_assert!((1..=len).contains(&extent.len));
                    for n in (0..extent.len).step_by(509).chain([extent.len - 1]) {
                        let expect = Some(extent.kind.advanced(n));
                        prop_assert_eq!(byte(&words, format, offset + n), expect);
                    }
                }
            }
        }
    }
}
