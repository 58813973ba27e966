//! Images that are made of an input's bytes, and all that can be asked of them.

use std::sync::Arc;

use block_core::ability::NewSnapshot;
use block_core::driver::{Exactness, Prealloc};
use block_core::range::to_usize;
use block_core::request::status::StatusDetail;
use block_core::{Alignment, ByteRange, IoBuf, Node};

use super::Bytes;
use crate::op::{Op, OpId, SnapshotOp, contents, io_vec};

/// Bytes of an input that make one damage.
const DAMAGE_LEN: usize = 12;
/// Most damages of one image.
const MOST_DAMAGES: usize = 16;
/// Longest disk that is read as a whole, in bytes.
const LONG: u64 = 4 << 20;

/// The input as an image: all that is left of it, or one of `bases` with damages. `words` are numbers that mean
/// something in such images: clusters or sectors by their offset, and flags beside them.
///
/// # Panics
/// If there are no bases.
pub fn damaged(bytes: &mut Bytes<'_>, bases: &[Vec<u8>], words: Words) -> (usize, Vec<u8>) {
    let base = usize::from(bytes.byte());
    if base == ANY {
        return (0, bytes.rest().to_vec());
    }
    let mut file = bases[base % bases.len()].clone();
    for _ in 0..MOST_DAMAGES {
        if bytes.is_empty() {
            break;
        }
        damage(&mut file, Bytes::new(&bytes.array::<DAMAGE_LEN>()), words);
    }
    (base % bases.len(), file)
}

/// How a format stores its numbers.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Words {
    /// As qcow2: the highest byte first, offsets in bytes, flags in the outermost bits.
    BigEndian,
    /// As VMDK: the lowest byte first, offsets in sectors.
    LittleEndian,
}

/// First byte of an input whose rest is the image as it is.
const ANY: usize = 0xff;

/// The input of which [`damaged`] makes `file`.
pub fn as_it_is(file: &[u8]) -> Vec<u8> {
    let mut input = vec![0xff];
    input.extend_from_slice(file);
    input
}

/// One damage: what is done, where, and a number.
fn damage(file: &mut Vec<u8>, mut bytes: Bytes<'_>, words: Words) {
    let (how, flags) = (bytes.byte(), bytes.byte());
    let place = bytes.u16();
    let number = bytes.u64();
    if how >= 0xfc {
        // Cut off, or longer.
        return file.resize(usize::from(place) * 16, flags);
    }
    // Half of the damages are in the first 128 bytes, where the headers are; and most at whole words.
    let span = if how & 1 == 0 { file.len() } else { file.len().min(128) };
    let unit = if how & 6 == 0 { 1 } else { 4 };
    let at = usize::from(place) * unit % span.max(1);
    let number = match (how >> 3 & 3, words) {
        (0, _) => number,
        (1, _) => number & 0xffff,
        (_, Words::BigEndian) => {
            (number % 0x400) << 9 | u64::from(flags & 3) << 62 | u64::from(flags >> 7)
        }
        (_, Words::LittleEndian) => number % 0x200,
    };
    let width = 1 << (how >> 5 & 3);
    let word = match words {
        Words::BigEndian => number.to_be_bytes()[8 - width..].to_vec(),
        Words::LittleEndian => number.to_le_bytes()[..width].to_vec(),
    };
    for (byte, value) in file.iter_mut().skip(at).zip(word) {
        *byte = value;
    }
}

/// Asks everything of a node that changes nothing: lengths, status, bytes. What it holds, if that is short and
/// could be read.
///
/// # Panics
/// If answers do not fit together.
pub async fn look_at(node: &Node) -> Option<Vec<u8>> {
    node.driver().info();
    let len = node.len();
    let all = ByteRange::up_to(len);
    let mut rest = all;
    for _ in 0..4096 {
        let Ok(status) = node.block_status(rest, StatusDetail::Zeroes).await else { break };
        assert!(status.len > 0 || rest.is_empty(), "the status of {rest} stands still");
        assert!(status.len <= rest.len(), "the status of {rest} is {} bytes long", status.len);
        rest = rest.split_at(status.len).1;
        if rest.is_empty() {
            break;
        }
    }
    if len > LONG {
        for offset in [0, len / 2, len.saturating_sub(1 << 16)] {
            let range = all.split_at(offset).1.first(1 << 16);
            let _ = read(node, range).await;
        }
        return None;
    }
    let bytes = read(node, all).await;
    // Parts read as the whole does.
    for (number, offset) in (0..).zip((0..len).step_by(to_usize((len / 7).max(513)))) {
        let range = all.split_at(offset).1.first(700 + 300 * number);
        if let (Some(part), Some(bytes)) = (read(node, range).await, &bytes) {
            let at = to_usize(range.offset())..to_usize(range.end());
            assert!(part == bytes[at], "{range} reads in another way alone");
        }
    }
    bytes
}

/// Sends operations two at a time, whatever becomes of them: to images of which nobody knows what they hold.
pub async fn send(node: &Node, ops: &[Op]) {
    for (number, pair) in (1..).step_by(2).zip(ops.chunks(2)) {
        let (first, rest) = (pair.first(), pair.get(1));
        let one = |id, op: Option<&Op>| {
            let op = op.map(|op| op.clone().within(node.len()));
            async move {
                if let Some(op) = op {
                    send_one(node, id, op).await;
                }
            }
        };
        futures::join!(one(number, first), one(number + 1, rest));
    }
}

async fn send_one(node: &Node, id: OpId, op: Op) {
    let align = node.limits().min_mem_alignment;
    let sent = match op {
        Op::Read { range } => read(node, range).await.map(|_| ()),
        Op::Write { range, flags, buffers } => {
            node.write(range, io_vec(&contents(id, range), align, buffers), flags).await.ok()
        }
        Op::WriteZeroData { range } => {
            let zeroes = vec![0; to_usize(range.len())];
            node.write(range, io_vec(&zeroes, align, 1), Default::default()).await.ok()
        }
        Op::Zero { range, flags } => node.write_zeroes(range, flags).await.ok(),
        Op::Discard { range } => node.discard(range).await.ok(),
        Op::Flush | Op::Reopen => node.flush().await.ok(),
        Op::Truncate { len } => node.truncate(len, Exactness::Exact, Prealloc::Off).await.ok(),
        Op::Snapshot(op) => snapshot(node, id, op).await,
    };
    // An error is as good as none.
    let _ = sent;
}

async fn snapshot(node: &Node, id: OpId, op: SnapshotOp) -> Option<()> {
    let driver = Arc::clone(node.driver());
    let snapshots = driver.as_snapshots()?;
    let name = |number: usize| {
        let list = snapshots.list();
        list.get(number % list.len().max(1)).map(|snapshot| snapshot.id.clone())
    };
    match op {
        SnapshotOp::Create => {
            let new = NewSnapshot { name: format!("s{id}"), ..NewSnapshot::default() };
            snapshots.create(&new).await.ok()
        }
        SnapshotOp::Apply(number) => snapshots.apply(&name(number)?).await.ok(),
        SnapshotOp::Delete(number) => snapshots.delete(&name(number)?).await.ok(),
    }
}

async fn read(node: &Node, range: ByteRange) -> Option<Vec<u8>> {
    let buf = IoBuf::zeroed(to_usize(range.len()), Alignment::PAGE).ok()?;
    buf.fill(0xee);
    node.read(range, buf.clone().into()).await.ok()?;
    Some(buf.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_is_an_image_or_damages_one() {
        let bases = [vec![1; 100], vec![2; 200]];
        let made = |input: &[u8]| damaged(&mut Bytes::new(input), &bases, Words::BigEndian);
        assert_eq!(made(&as_it_is(&[9, 8])), (0, vec![9, 8]));
        assert_eq!(made(&[3]), (1, vec![2; 200]));
        // A word of 16 bits, a plain number, in the header.
        let (_, file) = made(&[0, 0b0010_0111, 0, 2, 0, 0xcd, 0xab]);
        assert_eq!(file[8..10], [0xab, 0xcd]);
        assert_eq!(file.iter().filter(|byte| **byte != 1).count(), 2);
        assert_eq!(made(&[0, 0xff, 7, 20, 0]).1.len(), 320);
    }
}
