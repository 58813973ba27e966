//! Requests as data, strategies that make them, and contents that tell who wrote them.
//!
//! [`content`] gives every byte a value that depends on the operation that wrote it and on where it
//! was meant to be: a byte in the wrong place or from the wrong operation shows. No byte of it is
//! zero, so zeroes show too.

use std::fmt;

use block_core::{Alignment, ByteRange, IoBuf, IoVec, RequestFlags};
use proptest::prelude::*;
use proptest::strategy::Union;

/// Number of an operation in a test; zero stands for what was there before.
pub type OpId = u32;

/// What a guest or a tool asks of a node.
#[derive(Clone, PartialEq, Eq)]
pub enum Op {
    /// Read a range.
    Read {
        /// Where.
        range: ByteRange,
    },
    /// Write [`content`] to a range.
    Write {
        /// Where.
        range: ByteRange,
        /// How.
        flags: RequestFlags,
        /// In how many buffers the data is.
        buffers: usize,
    },
    /// Write a buffer that holds only zeroes.
    WriteZeroData {
        /// Where.
        range: ByteRange,
    },
    /// Make a range zero.
    Zero {
        /// Where.
        range: ByteRange,
        /// How: `MAY_UNMAP`, `NO_FALLBACK`, `FUA`, `SERIALISING`.
        flags: RequestFlags,
    },
    /// Discard a range.
    Discard {
        /// Where.
        range: ByteRange,
    },
    /// Flush.
    Flush,
    /// Change the length.
    Truncate {
        /// New length in bytes.
        len: u64,
    },
    /// Take, apply or delete an internal snapshot.
    Snapshot(SnapshotOp),
    /// Close the node and open it again.
    Reopen,
}

/// What is done with an internal snapshot. Numbers choose among those that are there, the oldest first
/// and going round; where there is none, nothing is done.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum SnapshotOp {
    /// Take one.
    Create,
    /// Make the disk what it was.
    Apply(usize),
    /// Delete one.
    Delete(usize),
}

impl Op {
    /// The bytes it is about; empty for what has no range.
    pub fn range(&self) -> ByteRange {
        match self {
            Self::Read { range }
            | Self::Write { range, .. }
            | Self::WriteZeroData { range }
            | Self::Zero { range, .. }
            | Self::Discard { range } => *range,
            Self::Flush | Self::Truncate { .. } | Self::Snapshot(_) | Self::Reopen => {
                ByteRange::default()
            }
        }
    }

    /// The operation without what is beyond the first `len` bytes.
    #[must_use]
    pub fn within(mut self, len: u64) -> Self {
        match &mut self {
            Self::Read { range }
            | Self::Write { range, .. }
            | Self::WriteZeroData { range }
            | Self::Zero { range, .. }
            | Self::Discard { range } => *range = range.intersect(ByteRange::up_to(len)),
            Self::Flush | Self::Truncate { .. } | Self::Snapshot(_) | Self::Reopen => {}
        }
        if self.range().is_empty() { self.at_zero() } else { self }
    }

    /// With its range, which is empty, at the start of the disk.
    fn at_zero(mut self) -> Self {
        if let Self::Read { range }
        | Self::Write { range, .. }
        | Self::WriteZeroData { range }
        | Self::Zero { range, .. }
        | Self::Discard { range } = &mut self
        {
            *range = ByteRange::default();
        }
        self
    }

    /// Whether nothing else may be in flight meanwhile. Taking a snapshot may run beside writes.
    pub fn is_alone(&self) -> bool {
        match self {
            Self::Truncate { .. } | Self::Reopen => true,
            Self::Snapshot(op) => *op != SnapshotOp::Create,
            _ => false,
        }
    }
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { range } => write!(f, "read {range}"),
            Self::Write { range, flags, buffers } => {
                write!(f, "write {range} {} x{buffers}", FlagNames(*flags))
            }
            Self::WriteZeroData { range } => write!(f, "write {range} zero data"),
            Self::Zero { range, flags } => write!(f, "zero {range} {}", FlagNames(*flags)),
            Self::Discard { range } => write!(f, "discard {range}"),
            Self::Flush => write!(f, "flush"),
            Self::Truncate { len } => write!(f, "truncate {len:#x}"),
            Self::Snapshot(SnapshotOp::Create) => write!(f, "snapshot"),
            Self::Snapshot(SnapshotOp::Apply(n)) => write!(f, "apply {n}"),
            Self::Snapshot(SnapshotOp::Delete(n)) => write!(f, "delete {n}"),
            Self::Reopen => write!(f, "reopen"),
        }
    }
}

/// Shows flags as `FUA|MAY_UNMAP`, and none as `-`.
pub(crate) struct FlagNames(pub(crate) RequestFlags);

impl fmt::Display for FlagNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter_names().map(|(name, _)| name).collect();
        if names.is_empty() { f.write_str("-") } else { f.write_str(&names.join("|")) }
    }
}

/// The byte that operation `id` writes at `offset` of the disk; never zero.
pub fn content(id: OpId, offset: u64) -> u8 {
    // 1 to 255: neighbouring offsets and neighbouring operations differ.
    let value = (u64::from(id) * 101 + (offset % 241) * 7 + (offset / 512) * 13) % 255 + 1;
    u8::try_from(value).unwrap_or(u8::MAX)
}

/// The bytes that operation `id` writes to `range`.
pub fn contents(id: OpId, range: ByteRange) -> Vec<u8> {
    (range.offset()..range.end()).map(|offset| content(id, offset)).collect()
}

/// `bytes` in memory that suits `align`, in `buffers` pieces whose borders are multiples of `align`
/// (fewer where there is not enough of it).
///
/// # Panics
/// If there is no memory.
pub fn io_vec(bytes: &[u8], align: Alignment, buffers: usize) -> IoVec {
    let unit = usize::try_from(align.bytes()).unwrap_or(usize::MAX);
    let units = (bytes.len() / unit).max(1).div_ceil(buffers.max(1));
    let pieces = bytes.chunks(units.saturating_mul(unit)).map(|chunk| {
        let buf = IoBuf::zeroed(chunk.len(), align.max(Alignment::ONE));
        let buf = buf.unwrap_or_else(|error| panic!("{error}"));
        buf.copy_from(0, chunk);
        buf
    });
    pieces.collect()
}

/// What random operations look like.
#[derive(Clone, Debug)]
pub struct OpSpace {
    /// Length of the disk in bytes.
    pub len: u64,
    /// Numbers whose multiples are interesting places: alignments, limits, cluster sizes.
    pub edges: Vec<u64>,
    /// Longest request in bytes.
    pub max_request: u64,
    /// Flags that writes may have, each with an even chance.
    pub write_flags: RequestFlags,
    /// Flags that zero writes may have, each with an even chance.
    pub zero_flags: RequestFlags,
    /// Whether there are discards.
    pub discards: Discards,
    /// Longest disk that truncates make; `None`: there are none.
    pub truncates: Option<u64>,
    /// Whether there are snapshots.
    pub snapshots: Snapshots,
    /// Whether the node is closed and opened again now and then.
    pub reopens: Reopens,
    /// Bytes of a cluster, where whole clusters are written compressed now and then.
    pub compressed: Option<u64>,
}

/// Whether random operations have snapshots.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Snapshots {
    /// None.
    Never,
    /// Now and then.
    Sometimes,
}

/// Whether random operations close the node and open it again.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Reopens {
    /// They do not.
    Never,
    /// Now and then.
    Sometimes,
}

/// Whether random operations have discards.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Discards {
    /// None.
    Never,
    /// As many as zero writes.
    Sometimes,
}

impl OpSpace {
    /// Plain requests on a disk of `len` bytes.
    pub fn new(len: u64, edges: &[u64]) -> Self {
        Self {
            len,
            edges: edges.to_vec(),
            max_request: len / 2,
            write_flags: RequestFlags::FUA,
            zero_flags: RequestFlags::FUA | RequestFlags::MAY_UNMAP,
            discards: Discards::Never,
            truncates: None,
            snapshots: Snapshots::Never,
            reopens: Reopens::Never,
            compressed: None,
        }
    }

    /// An offset: anywhere, or within two bytes of an edge.
    pub fn offset(&self) -> impl Strategy<Value = u64> + use<> {
        let len = self.len;
        let near = (proptest::sample::select(self.edges.clone()), any::<u64>(), 0..5u64);
        let near = near.prop_map(move |(edge, n, delta)| {
            let multiple = (n % (len / edge + 1)) * edge;
            (multiple + delta).saturating_sub(2).min(len)
        });
        let exact = (proptest::sample::select(self.edges.clone()), any::<u64>())
            .prop_map(move |(edge, n)| (n % (len / edge + 1)) * edge);
        prop_oneof![3 => exact, 3 => near, 1 => 0..=len, 1 => Just(len), 1 => Just(0)]
    }

    /// A range inside of the disk, rarely empty.
    pub fn range(&self) -> impl Strategy<Value = ByteRange> + use<> {
        let max = self.max_request;
        (self.offset(), self.offset()).prop_map(move |(a, b)| {
            let (start, end) = (a.min(b), a.max(b));
            ByteRange::from_bounds(start, end).unwrap_or_default().first(max)
        })
    }

    /// One operation.
    pub fn op(&self) -> impl Strategy<Value = Op> + use<> {
        let (write_flags, zero_flags) = (self.write_flags, self.zero_flags);
        let write =
            (self.range(), any::<u32>(), 1..5usize).prop_map(move |(range, bits, buffers)| {
                let flags = RequestFlags::from_bits_truncate(bits) & write_flags;
                Op::Write { range, flags, buffers }
            });
        let zero = (self.range(), any::<u32>()).prop_map(move |(range, bits)| {
            let flags = RequestFlags::from_bits_truncate(bits) & zero_flags;
            Op::Zero { range, flags }
        });
        let mut kinds = vec![
            (8, self.range().prop_map(|range| Op::Read { range }).boxed()),
            (10, write.boxed()),
            (2, self.range().prop_map(|range| Op::WriteZeroData { range }).boxed()),
            (4, zero.boxed()),
            (2, Just(Op::Flush).boxed()),
        ];
        let discard = self.range();
        kinds.push(match self.discards {
            Discards::Never => (4, discard.prop_map(|range| Op::Read { range }).boxed()),
            Discards::Sometimes => (4, discard.prop_map(|range| Op::Discard { range }).boxed()),
        });
        kinds.extend(self.rare());
        Union::new_weighted(kinds)
    }

    /// The operations that not every disk has, with their weights.
    fn rare(&self) -> Vec<(u32, BoxedStrategy<Op>)> {
        let mut kinds = Vec::new();
        if let Some(len) = self.truncates {
            let space = Self { len, ..self.clone() };
            kinds.push((2, space.offset().prop_map(|len| Op::Truncate { len }).boxed()));
        }
        if self.snapshots == Snapshots::Sometimes {
            let snapshot = prop_oneof![
                3 => Just(SnapshotOp::Create),
                2 => any::<u8>().prop_map(|n| SnapshotOp::Apply(n.into())),
                2 => any::<u8>().prop_map(|n| SnapshotOp::Delete(n.into())),
            ];
            kinds.push((2, snapshot.prop_map(Op::Snapshot).boxed()));
        }
        if self.reopens == Reopens::Sometimes {
            kinds.push((1, Just(Op::Reopen).boxed()));
        }
        if let Some(cluster) = self.compressed.and_then(Alignment::new) {
            let (flags, disk) = (RequestFlags::COMPRESSED, ByteRange::up_to(self.len));
            let write = self.range().prop_map(move |range| {
                let range = range.expand(cluster).intersect(disk);
                Op::Write { range, flags, buffers: 1 }
            });
            kinds.push((3, write.boxed()));
        }
        kinds
    }

    /// Up to `most` operations.
    pub fn ops(&self, most: usize) -> impl Strategy<Value = Vec<Op>> + use<> {
        proptest::collection::vec(self.op(), 1..=most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_tell_operations_and_places_apart() {
        for offset in [0, 1, 511, 512, 4096, 65_535] {
            let ids: std::collections::BTreeSet<_> =
                (0..255).map(|id| content(id, offset)).collect();
            assert_eq!(ids.len(), 255, "one value for each operation");
            assert!(!ids.contains(&0));
            for shift in [1, 2, 512, 513, 4096] {
                assert_ne!(content(9, offset), content(9, offset + shift));
            }
        }
    }

    #[test]
    fn a_vector_has_the_pieces_asked_for() {
        let bytes: Vec<u8> = (0..=255).collect();
        let align = Alignment::new(16).unwrap();
        let iov = io_vec(&bytes, align, 3);
        assert_eq!((iov.to_vec(), iov.bufs().len()), (bytes.clone(), 3));
        assert!(iov.is_aligned(align, align));
        assert_eq!(io_vec(&bytes[..5], align, 3).bufs().len(), 1);
        assert!(io_vec(&[], align, 2).is_empty());
    }

    proptest! {
        #[test]
        fn operations_stay_on_the_disk(op in OpSpace::new(10_000, &[512, 1000]).op()) {
            prop_assert!(op.range().end() <= 10_000);
        }
    }
}
