//! Operations that are made of an input's bytes.

use block_core::{Alignment, ByteRange, RequestFlags};

use super::Bytes;
use crate::op::{Discards, Op, OpSpace, Reopens, SnapshotOp, Snapshots};

/// Bytes of an input that make one operation, so that a fuzzer can change, add and move single ones.
const OP_LEN: usize = 8;

impl OpSpace {
    /// The operations that the rest of an input says, up to `most`: what this space allows, and as often at its
    /// edges as random ones.
    pub fn decode(&self, bytes: &mut Bytes<'_>, most: usize) -> Vec<Op> {
        let mut ops = Vec::new();
        while ops.len() < most && !bytes.is_empty() {
            let record: [u8; OP_LEN] = bytes.array();
            ops.push(self.decode_one(record));
        }
        ops
    }

    fn decode_one(&self, record: [u8; OP_LEN]) -> Op {
        let mut bytes = Bytes::new(&record);
        let (kind, flags) = (bytes.byte(), bytes.byte());
        let range = self.decode_range(&mut bytes, self.len);
        let bits = |allowed: RequestFlags| {
            RequestFlags::from_bits_truncate(u32::from(flags & 0x3f)) & allowed
        };
        let whole = self.compressed.and_then(Alignment::new);
        match kind % 32 {
            0..8 => Op::Read { range },
            8..16 => {
                let buffers = 1 + usize::from(flags >> 6);
                Op::Write { range, flags: bits(self.write_flags), buffers }
            }
            16 | 17 => Op::WriteZeroData { range },
            18..21 => Op::Zero { range, flags: bits(self.zero_flags) },
            21..24 if self.discards == Discards::Sometimes => Op::Discard { range },
            24 | 25 => Op::Flush,
            26 if self.reopens == Reopens::Sometimes => Op::Reopen,
            27 if self.snapshots == Snapshots::Sometimes => Op::Snapshot(snapshot(flags)),
            28 if self.truncates.is_some() => {
                let most = self.truncates.unwrap_or_default();
                let mut bytes = Bytes::new(&record[2..]);
                Op::Truncate { len: self.decode_offset(&mut bytes, most) }
            }
            29.. if whole.is_some() => {
                let cluster = whole.unwrap_or(Alignment::ONE);
                let disk = ByteRange::up_to(self.len);
                let range = range.expand(cluster).intersect(disk);
                Op::Write { range, flags: RequestFlags::COMPRESSED, buffers: 1 }
            }
            _ => Op::Write { range, flags: RequestFlags::empty(), buffers: 1 },
        }
    }

    /// Six bytes: two offsets.
    fn decode_range(&self, bytes: &mut Bytes<'_>, len: u64) -> ByteRange {
        let (a, b) = (self.decode_offset(bytes, len), self.decode_offset(bytes, len));
        ByteRange::from_bounds(a.min(b), a.max(b)).unwrap_or_default().first(self.max_request)
    }

    /// Three bytes: which edge, how far from it, which multiple of it.
    fn decode_offset(&self, bytes: &mut Bytes<'_>, len: u64) -> u64 {
        let (how, number) = (bytes.byte(), u64::from(bytes.u16()));
        let Some(edge) = self.edges.get(usize::from(how >> 4) % self.edges.len().max(1)) else {
            return number % (len + 1);
        };
        let multiple = number % (len / edge + 1) * edge;
        match how & 0xf {
            0..9 => multiple,
            delta @ 9..14 => (multiple + u64::from(delta)).saturating_sub(11).min(len),
            14 => len,
            _ => (number.wrapping_mul(0x9e37_79b9) >> 8) % (len + 1),
        }
    }
}

fn snapshot(bits: u8) -> SnapshotOp {
    let which = usize::from(bits >> 2);
    match bits & 3 {
        2 => SnapshotOp::Apply(which),
        3 => SnapshotOp::Delete(which),
        _ => SnapshotOp::Create,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::noise;

    fn space() -> OpSpace {
        OpSpace {
            discards: Discards::Sometimes,
            truncates: Some(14_000),
            snapshots: Snapshots::Sometimes,
            reopens: Reopens::Sometimes,
            compressed: Some(1000),
            ..OpSpace::new(10_000, &[512, 1000])
        }
    }

    #[test]
    fn noise_makes_operations_of_every_kind_on_the_disk() {
        let input = noise(1, 8000, 3).remove(0);
        let ops = space().decode(&mut Bytes::new(&input), 1000);
        assert_eq!(ops.len(), 1000);
        for op in &ops {
            // Compressed writes are rounded out to whole clusters.
            assert!(op.range().end() <= 10_000 && op.range().len() < 5000 + 2 * 1000, "{op:?}");
        }
        let some = |is: fn(&Op) -> bool| ops.iter().filter(|op| is(op)).count() > 2;
        assert!(some(|op| matches!(op, Op::Discard { .. })));
        assert!(some(|op| matches!(op, Op::Truncate { len } if *len > 10_000)));
        assert!(some(|op| matches!(op, Op::Snapshot(SnapshotOp::Apply(_)))));
        assert!(some(|op| matches!(op, Op::Reopen)));
        let packed = |op: &Op| matches!(op, Op::Write { flags, .. } if flags.contains(RequestFlags::COMPRESSED));
        assert!(some(packed));
        assert!(some(|op| op.range().offset() % 512 == 0 && !op.range().is_empty()));
        assert!(some(|op| op.range().offset() % 500 != 0));
    }

    #[test]
    fn one_record_is_one_operation() {
        let input = noise(1, 80, 5).remove(0);
        let ops = space().decode(&mut Bytes::new(&input), 100);
        let less = [&input[..OP_LEN], &input[2 * OP_LEN..]].concat();
        let fewer = space().decode(&mut Bytes::new(&less), 100);
        assert_eq!((ops.len(), fewer.len()), (10, 9));
        assert_eq!(ops[2..], fewer[1..]);
    }
}
