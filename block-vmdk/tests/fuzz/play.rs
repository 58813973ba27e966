//! Games whose operations are an input's bytes: two for what it is played on, one for how many run at once, four
//! for the order, some that the game has of its own; then eight for each operation.

use std::sync::LazyLock;

use block_testkit::campaign::Game;
use block_testkit::disk::fault::Effect;
use block_testkit::disk::tap::Kind;
use block_testkit::fuzz::{Bytes, Target, noise};
use block_testkit::op::Op;

use super::games::crash::Met;
use super::games::faults::{Plan, Then};
use super::games::{crash, faults, model};
use super::kit::{Setup, setups};

/// Most operations of a game.
const MOST_OPS: usize = 40;
/// Most operations where every crash is looked at.
const MOST_BEFORE_CRASH: usize = 12;
/// Bytes before the operations, and of all of them.
const MAX_LEN: usize = 12 + 8 * MOST_OPS;

pub const OPERATIONS: Target =
    Target { name: "vmdk-operations", body: operations, seeds: games, max_len: MAX_LEN };
pub const CRASH: Target =
    Target { name: "vmdk-crash", body: crashes, seeds: few_games, max_len: MAX_LEN };
pub const FAULTS: Target =
    Target { name: "vmdk-faults", body: failures, seeds: few_games, max_len: MAX_LEN };

/// One or two games for each setup.
fn games() -> Vec<Vec<u8>> {
    let count = setups().len();
    let with_setup = |(at, mut input): (usize, Vec<u8>)| {
        input[..2].copy_from_slice(&u16::try_from(at % count).unwrap_or(0).to_le_bytes());
        input
    };
    noise(count + count / 2, MAX_LEN, 1).into_iter().enumerate().map(with_setup).collect()
}

/// Some of them, where each takes long.
fn few_games() -> Vec<Vec<u8>> {
    games().into_iter().step_by(8).collect()
}

/// Those on which a game does not take long.
fn quick_setups() -> Vec<Setup> {
    setups().into_iter().filter(|setup| setup.shape.size <= 1 << 21).collect()
}

fn start(bytes: &mut Bytes<'_>, setups: &[Setup]) -> Game<Setup> {
    let setup = bytes.choose(setups).clone();
    let depth = 1 + usize::from(bytes.byte() % 8);
    Game { setup, ops: Vec::new(), depth, seed: bytes.u32().into() }
}

/// Any interleaving on any disk equals the flat disk, and leaves no errors.
fn operations(input: &[u8]) {
    static SETUPS: LazyLock<Vec<Setup>> = LazyLock::new(quick_setups);
    let bytes = &mut Bytes::new(input);
    let mut game = start(bytes, &SETUPS);
    game.ops = game.setup.space().decode(bytes, MOST_OPS);
    if let Err(why) = model::play(&game) {
        panic!("{why}\n{game:?}");
    }
}

/// Whatever a crash leaves opens, can be repaired, and holds what was flushed.
fn crashes(input: &[u8]) {
    static SETUPS: LazyLock<Vec<Setup>> = LazyLock::new(crash::small_setups);
    let bytes = &mut Bytes::new(input);
    let mut game = start(bytes, &SETUPS);
    game.ops = game.setup.space().decode(bytes, MOST_BEFORE_CRASH);
    if let Err(why) = crash::play(&game, &Met::default()) {
        panic!("{why}\n{game:?}");
    }
}

/// One request that fails harms one operation only.
fn failures(input: &[u8]) {
    const KINDS: [Kind; 8] = [
        Kind::Write,
        Kind::Read,
        Kind::FlushToDisk,
        Kind::Write,
        Kind::Truncate,
        Kind::Zero,
        Kind::Discard,
        Kind::Write,
    ];
    static SETUPS: LazyLock<Vec<Setup>> = LazyLock::new(faults::quick_setups);
    let bytes = &mut Bytes::new(input);
    let mut game = start(bytes, &SETUPS);
    let (kind, how, skip) = (bytes.byte(), bytes.byte(), bytes.byte());
    let plan = Plan {
        event: "",
        nth: 0,
        kind: KINDS[usize::from(kind % 8)],
        skip: skip.into(),
        effect: [Effect::Nothing, Effect::Half, Effect::All][usize::from(how % 3)],
        then: if how & 0x80 == 0 { Then::Again } else { Then::On },
    };
    game.ops = game.setup.space().decode(bytes, 16);
    game.depth = 1;
    game.ops.retain(|op| *op != Op::Reopen);
    if let Err(why) = faults::run(&game, Some(plan)) {
        panic!("{plan:?}: {why}\n{game:?}");
    }
}
