//! What a driver's requests must look like, and how the limits of children merge upwards.

use crate::range::Alignment;

/// Largest bounce or zero buffer of the request layer, in bytes.
pub const MAX_BOUNCE: u64 = 16 << 20;

/// Most buffers in one vectored system call on Linux.
pub const IOV_MAX: usize = 1024;

/// Limits of one node. `None` for a maximum means that there is none.
///
/// Invariant (kept by [`BlockLimits::validated`]): `request_alignment` and `min_mem_alignment` are
/// powers of two; every maximum is at least `request_alignment`; the zero and discard alignments may
/// be any number.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct BlockLimits {
    /// Offsets and lengths of requests to the driver are multiples of this.
    pub request_alignment: Alignment,
    /// Memory addresses of buffers are multiples of this.
    pub min_mem_alignment: Alignment,
    /// Memory alignment that serves best.
    pub opt_mem_alignment: Alignment,
    /// Longest read or write, in bytes.
    pub max_transfer: Option<u64>,
    /// Length that serves best, in bytes.
    pub opt_transfer: Option<u64>,
    /// Most buffers in one read or write.
    pub max_iov: usize,
    /// Zero writes are cheapest when they are multiples of this (cluster size).
    pub pwrite_zeroes_alignment: Option<Alignment>,
    /// Longest zero write, in bytes.
    pub max_pwrite_zeroes: Option<u64>,
    /// Discards do something only in multiples of this.
    pub pdiscard_alignment: Option<Alignment>,
    /// Longest discard, in bytes.
    pub max_pdiscard: Option<u64>,
    /// Compressed writes begin at a multiple of this and end at one, or at the end of the disk (cluster
    /// size). `None` where there are no compressed writes.
    pub compressed_write_alignment: Option<Alignment>,
}

impl Default for BlockLimits {
    /// No limits: byte-granular requests of any length.
    fn default() -> Self {
        Self {
            request_alignment: Alignment::ONE,
            min_mem_alignment: Alignment::ONE,
            opt_mem_alignment: Alignment::PAGE,
            max_transfer: None,
            opt_transfer: None,
            max_iov: IOV_MAX,
            pwrite_zeroes_alignment: None,
            max_pwrite_zeroes: None,
            pdiscard_alignment: None,
            max_pdiscard: None,
            compressed_write_alignment: None,
        }
    }
}

impl BlockLimits {
    /// The limits of a node that passes requests to both `self` and `child`: the larger of the
    /// alignments, the smaller of the maxima. Limits of zero, discard and compressed writes are the driver's own
    /// business and are not inherited.
    #[must_use]
    pub fn merge(&self, child: &Self) -> Self {
        Self {
            request_alignment: self.request_alignment.max(child.request_alignment),
            min_mem_alignment: self.min_mem_alignment.max(child.min_mem_alignment),
            opt_mem_alignment: self.opt_mem_alignment.max(child.opt_mem_alignment),
            max_transfer: min_some(self.max_transfer, child.max_transfer),
            opt_transfer: self.opt_transfer.max(child.opt_transfer),
            max_iov: self.max_iov.min(child.max_iov),
            ..*self
        }
    }

    /// The same limits with every value usable: power-of-two alignments (rounded up), maxima rounded
    /// down to a multiple of the request alignment but never below one block of it.
    #[must_use]
    pub fn validated(&self) -> Self {
        let request = power_of_two(self.request_alignment);
        let cut = |max: Option<u64>| max.map(|m| request.round_down(m).max(request.bytes()));
        Self {
            request_alignment: request,
            min_mem_alignment: power_of_two(self.min_mem_alignment),
            opt_mem_alignment: power_of_two(self.opt_mem_alignment)
                .max(power_of_two(self.min_mem_alignment)),
            max_transfer: cut(self.max_transfer),
            opt_transfer: self.opt_transfer,
            max_iov: self.max_iov.clamp(1, IOV_MAX),
            pwrite_zeroes_alignment: self.pwrite_zeroes_alignment,
            max_pwrite_zeroes: cut(self.max_pwrite_zeroes),
            pdiscard_alignment: self.pdiscard_alignment,
            max_pdiscard: cut(self.max_pdiscard),
            compressed_write_alignment: self.compressed_write_alignment,
        }
    }
}

fn power_of_two(align: Alignment) -> Alignment {
    Alignment::new(align.bytes().next_power_of_two()).unwrap_or(align)
}

fn min_some(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
