//! A property test of a driver of one's own: whatever is asked of it, in whatever order, it is a disk.
//!
//! The driver stripes a disk over two others. The test is what a project would have in its `tests`: put
//! `#[test]` where `cfg_attr` is, and leave `main` out. It fails, for instance, if `Stripe::pieces` forgets to
//! split a request where the disks take turns: try it. `BLOCK_SEED`, `BLOCK_CASES` and `BLOCK_FIRST` choose the
//! games; a game that fails is made small and printed with its seed.

#![forbid(unsafe_code)]

use std::sync::Arc;

use async_trait::async_trait;
use block_core::driver::{BlockDriver, Child, ChildRole, Children};
use block_core::range::to_usize;
use block_core::{BlockLimits, ByteRange, Capabilities, IoVec, Node, RequestFlags, Result};
use block_testkit::campaign::{Campaign, Game, seeded};
use block_testkit::disk::mem::MemConfig;
use block_testkit::exec::Exec;
use block_testkit::model::disk::{DiskModel, Source};
use block_testkit::op::OpSpace;
use block_testkit::play::{Player, failures};
use futures::future::join_all;

/// How many bytes one disk holds before it is the other's turn.
const STRIPE: u64 = 4096;

/// The driver that is tested: even stripes are in the first disk, odd ones in the second.
struct Stripe {
    disks: [Node; 2],
}

impl Stripe {
    /// The parts of a range: the disk, the place in it, and the place in the request's buffers.
    fn pieces(&self, range: ByteRange) -> Result<Vec<(&Node, ByteRange, usize)>> {
        let mut pieces = Vec::new();
        let mut at = range.offset();
        while at < range.end() {
            let end = (at - at % STRIPE + STRIPE).min(range.end());
            let stripe = at / STRIPE;
            let disk = &self.disks[usize::from(stripe % 2 == 1)];
            let place = stripe / 2 * STRIPE + at % STRIPE;
            let place = ByteRange::new(place, end - at)?;
            pieces.push((disk, place, to_usize(at - range.offset())));
            at = end;
        }
        Ok(pieces)
    }
}

#[async_trait]
impl BlockDriver for Stripe {
    fn name(&self) -> &'static str {
        "stripe"
    }

    fn len(&self) -> u64 {
        self.disks.iter().map(Node::len).sum()
    }

    fn limits(&self) -> BlockLimits {
        self.disks[0].limits()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    fn is_read_only(&self) -> bool {
        self.disks.iter().any(Node::is_read_only)
    }

    fn children(&self) -> Children {
        let child =
            |(name, node): (_, &Node)| Child { name, role: ChildRole::Data, node: node.clone() };
        ["even", "odd"].into_iter().zip(&self.disks).map(child).collect()
    }

    async fn preadv(self: Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        let pieces = self.pieces(range)?.into_iter();
        let reads =
            pieces.map(|(disk, place, at)| disk.read(place, iov.slice(at, to_usize(place.len()))));
        join_all(reads).await.into_iter().collect()
    }

    async fn pwritev(
        self: Arc<Self>,
        range: ByteRange,
        iov: IoVec,
        flags: RequestFlags,
    ) -> Result<()> {
        let pieces = self.pieces(range)?.into_iter();
        let writes = pieces.map(|(disk, place, at)| {
            disk.write(place, iov.slice(at, to_usize(place.len())), flags)
        });
        join_all(writes).await.into_iter().collect()
    }

    async fn flush_to_disk(self: Arc<Self>) -> Result<()> {
        join_all(self.disks.iter().map(Node::flush)).await.into_iter().collect()
    }
}

/// What a game is played on: the blocks that the disks below insist on.
#[derive(Clone, Debug)]
struct Setup {
    block: u64,
}

const LEN: u64 = 16 * STRIPE;

/// The game of a seed: up to 40 operations that like to begin and end near stripes and blocks.
fn make(seed: u64) -> Game<Setup> {
    let block = [1, 512, 4096][to_usize(seed % 3)];
    let ops = seeded(&OpSpace::new(LEN, &[block, STRIPE]).ops(40), seed);
    Game { setup: Setup { block }, ops, depth: 1 + to_usize(seed % 8), seed }
}

/// Plays it on the driver and on a flat disk. The executor chooses by the seed which of the requests in flight
/// goes on, so that one seed is one order of events.
fn play(game: &Game<Setup>) -> std::result::Result<(), String> {
    let Game { setup, ops, depth, seed } = game.clone();
    Exec::run(seed, |exec| async move {
        // Disks in memory that take their time and, where requests overlap, mix them block by block.
        let disk = || {
            let disk = MemConfig::new(LEN / 2).aligned(setup.block).build();
            Node::new(disk, Default::default())
        };
        let driver = Arc::new(Stripe { disks: [disk(), disk()] });
        let node = Node::new(driver, Default::default());
        // Reads are checked on the way, also those that overlap with writes; futures are dropped now and then.
        let player = Player::new(exec, node, DiskModel::new(LEN, Source::Zero)).dropping_one_in(10);
        let played = player.play(&ops, depth).await;
        player.check_all().await;
        match failures(&ops, &played, |_, _| false) {
            failed if failed.is_empty() => Ok(()),
            failed => Err(failed.join("; ")),
        }
    })
}

#[cfg_attr(test, test)]
fn any_requests_in_any_order_find_a_disk() {
    Campaign::new("stripe", 200).run(make, play);
}

fn main() {
    any_requests_in_any_order_find_a_disk();
}
