//! Games on nodes over limits of all kinds: against the flat disk, and with an eye on which requests run together.

use std::sync::Arc;

use block_core::flags::Support;
use block_core::{ByteRange, Node, RequestFlags};
use block_testkit::disk::tap::Tapped;
use block_testkit::disk::watch::Watch;
use block_testkit::exec::Exec;
use block_testkit::model::disk::{DiskModel, Source};
use block_testkit::model::overlap::{Claim, Overlap};
use block_testkit::op::{Discards, Op, OpSpace, contents};
use block_testkit::play::{Played, Player};

use super::{Shape, node_of, shape};

/// Operations on a disk, how many at once, and the seed of their order.
#[derive(Clone, Debug)]
pub struct Game {
    pub shape: Shape,
    pub ops: Vec<Op>,
    pub depth: usize,
    pub seed: u64,
    /// One operation in this many is dropped before its end; zero: none.
    pub drop_one_in: u64,
}

/// Operations on such a disk.
pub fn space(shape: &Shape) -> OpSpace {
    OpSpace {
        write_flags: RequestFlags::FUA | RequestFlags::SERIALISING,
        zero_flags: RequestFlags::FUA
            | RequestFlags::MAY_UNMAP
            | RequestFlags::NO_FALLBACK
            | RequestFlags::SERIALISING,
        discards: Discards::Sometimes,
        ..OpSpace::new(shape.config.len, &shape.edges)
    }
}

/// The node equals the flat disk.
pub fn flat(game: &Game) -> Result<(), String> {
    let Game { shape, ops, depth, seed, drop_one_in } = game.clone();
    let failed = Exec::run(seed, move |exec| async move {
        let (disk, node) = node_of(&shape);
        let all = ByteRange::up_to(shape.config.len);
        disk.load(0, &contents(0, all));
        let model = DiskModel::new(all.len(), Source::Op(0));
        let player = Player::new(exec, node, model).dropping_one_in(drop_one_in);
        let played = player.play(&ops, depth).await;
        player.check_all().await;
        unexpected(&ops, &played)
    });
    if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
}

/// A node of `len` bytes at first, which grows, equals the flat disk.
pub fn growing(ops: &[Op], len: u64, align: u64, depth: usize, seed: u64) -> Result<(), String> {
    let ops = ops.to_vec();
    let failed = Exec::run(seed, move |exec| async move {
        let mut shape = shape("bytes");
        shape.config.len = len;
        shape.config = shape.config.aligned(align);
        shape.config.capabilities.grows_on_write = true;
        let (_, node) = node_of(&shape);
        let player = Player::new(exec, node, DiskModel::new(len, Source::Zero));
        let played = player.play(&ops, depth).await;
        player.check_all().await;
        unexpected(&ops, &played)
    });
    if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
}

/// Requests that conflict never run together, and all finish, also those that were dropped.
pub fn conflicts(game: &Game) -> Result<(), String> {
    let Game { shape, ops, depth, seed, drop_one_in } = game.clone();
    let overlap = Arc::new(Overlap::new());
    let seen = Arc::clone(&overlap);
    Exec::run(seed, move |exec| async move {
        let disk = shape.config.clone().build();
        let watched = Tapped::new(disk, Watch::new(Arc::clone(&seen)));
        let node = Node::new(watched, shape.options.clone());
        let all = ByteRange::up_to(shape.config.len);
        let model = DiskModel::new(all.len(), Source::Zero);
        let (announced, claims) = (Arc::clone(&seen), node.clone());
        let player = Player::new(exec, node, model)
            .announcing(move |id, op| announced.declare(u64::from(id), claim(&claims, op)))
            .dropping_one_in(drop_one_in);
        let played = player.play(&ops, depth).await;
        for (id, _) in (1..).zip(&played) {
            seen.complete(id);
        }
    });
    // Everything has run to its end, also what was dropped.
    overlap.check().map_err(|wrong| format!("{wrong:?}"))
}

/// Every operation that failed, but those that may be refused.
fn unexpected(ops: &[Op], played: &[Played]) -> Vec<String> {
    let may_be_refused = |op: &Op| match op {
        Op::Zero { flags, .. } => flags.contains(RequestFlags::NO_FALLBACK),
        _ => false,
    };
    let pairs = ops.iter().zip(played);
    let failed = pairs.filter(|(op, played)| match played {
        Played::Returned(Err(block_core::Error::Unsupported)) => !may_be_refused(op),
        Played::Returned(result) => result.is_err(),
        Played::Dropped => false,
    });
    failed.map(|(op, played)| format!("{op:?}: {played:?}")).collect()
}

/// What a request claims at its driver, by the written rules: what does not fit the request
/// alignment, discards (by cluster), and what asks for it has its blocks to itself.
fn claim(node: &Node, op: &Op) -> Claim {
    let limits = node.limits();
    let range = op.range();
    let blocks = range.expand(limits.request_alignment);
    let unaligned = !range.is_aligned(limits.request_alignment);
    match op {
        Op::Write { flags, .. } | Op::Zero { flags, .. }
            if unaligned || flags.contains(RequestFlags::SERIALISING) =>
        {
            Claim::Serialising(blocks)
        }
        Op::WriteZeroData { .. } if unaligned => Claim::Serialising(blocks),
        Op::Discard { .. } if node.capabilities().discard == Support::Native => {
            let cluster = limits.pdiscard_alignment.unwrap_or(limits.request_alignment);
            Claim::Serialising(range.expand(cluster))
        }
        _ => Claim::Shared,
    }
}
