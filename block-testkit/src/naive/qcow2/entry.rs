//! Entries of L1 and L2 tables, taken apart bit by bit.

use block_core::Problem;

use super::header::Header;

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;

/// An entry of an L1 table.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct L1Entry {
    /// The entry as it stands in the file.
    pub raw: u64,
    /// Where the L2 table starts; 0: there is none.
    pub offset: u64,
    /// Whether it claims that the L2 table has a refcount of one.
    pub copied: bool,
}

impl L1Entry {
    pub(super) fn parse(raw: u64) -> Self {
        Self { raw, offset: raw & OFFSET, copied: raw & COPIED != 0 }
    }

    /// What the format does not allow of it.
    pub(super) fn problem(self, header: &Header) -> Option<Problem> {
        if self.raw & L1_RESERVED != 0 {
            Some(Problem::Reserved(L1_RESERVED))
        } else {
            misaligned(self.offset, header)
        }
    }
}

/// An entry of an L2 table.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum L2Entry {
    /// A cluster that stands as it is, or does not stand anywhere.
    Standard {
        /// The first 64 bits as they stand in the file.
        raw: u64,
        /// Where it starts; `None`: it has no host cluster.
        host: Option<u64>,
        /// Whether it claims that the host cluster has a refcount of one.
        copied: bool,
        /// Subclusters (bit i: the i-th) that are in the host cluster; all or none without subclusters.
        allocated: u32,
        /// Subclusters that read as zeroes.
        zero: u32,
    },
    /// A compressed cluster.
    Compressed {
        /// The first 64 bits as they stand in the file.
        raw: u64,
        /// Where the compressed bytes start.
        host: u64,
        /// How many bytes there are at most, up to the end of the last sector.
        len: u64,
        /// The subcluster bitmap, which must be 0.
        bitmap: u64,
    },
}

impl L2Entry {
    /// Takes apart the descriptor `raw` and the subcluster bitmap (0 where there is none).
    pub(super) fn parse(raw: u64, bitmap: u64, header: &Header) -> Self {
        if raw & COMPRESSED != 0 {
            return Self::parse_compressed(raw, bitmap, header.cluster_bits);
        }
        let copied = raw & COPIED != 0;
        let host = match raw & OFFSET {
            0 if !(header.has_data_file() && copied) => None,
            offset => Some(offset),
        };
        let (allocated, zero) = if header.extended_l2() {
            (low_half(bitmap), low_half(bitmap >> 32))
        } else if header.version > 2 && raw & 1 != 0 {
            (0, u32::MAX)
        } else if host.is_some() {
            (u32::MAX, 0)
        } else {
            (0, 0)
        };
        Self::Standard { raw, host, copied, allocated, zero }
    }

    fn parse_compressed(raw: u64, bitmap: u64, cluster_bits: u32) -> Self {
        let x = 62 - (cluster_bits - 8);
        let host = raw & ((1 << x) - 1);
        let more_sectors = (raw & (COMPRESSED - 1)) >> x;
        Self::Compressed { raw, host, len: (more_sectors + 1) * 512 - host % 512, bitmap }
    }

    /// What the format does not allow of it.
    pub(super) fn problem(self, header: &Header) -> Option<Problem> {
        match self {
            Self::Compressed { raw, host, bitmap, .. } => {
                if header.has_data_file() {
                    Some(Problem::Contradicts("the external data file"))
                } else if raw & COPIED != 0 {
                    Some(Problem::Reserved(COPIED))
                } else if bitmap != 0 {
                    Some(Problem::Reserved(u64::MAX))
                } else if host >> 56 != 0 {
                    Some(Problem::Above((1 << 56) - 1))
                } else {
                    None
                }
            }
            Self::Standard { raw, host, allocated, zero, .. } => {
                let zero_flag_allowed = header.version > 2 && !header.extended_l2();
                let reserved = L2_RESERVED | u64::from(!zero_flag_allowed);
                if raw & reserved != 0 {
                    Some(Problem::Reserved(reserved))
                } else if allocated & zero != 0 {
                    Some(Problem::Contradicts("the zero bits of its subclusters"))
                } else if allocated != 0 && host.is_none() {
                    Some(Problem::Zero)
                } else {
                    misaligned(raw & OFFSET, header)
                }
            }
        }
    }

    /// The entry's first 64 bits as they stand in the file.
    pub fn raw(self) -> u64 {
        match self {
            Self::Standard { raw, .. } | Self::Compressed { raw, .. } => raw,
        }
    }
}

fn misaligned(offset: u64, header: &Header) -> Option<Problem> {
    let cluster = header.cluster_size();
    (!offset.is_multiple_of(cluster)).then_some(Problem::Misaligned(cluster))
}

fn low_half(bits: u64) -> u32 {
    u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(u32::MAX)
}
