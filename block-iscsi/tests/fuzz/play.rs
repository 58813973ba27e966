//! Games whose operations are an input's bytes.

use std::sync::LazyLock;

use block_core::ByteRange;
use block_iscsi::allocmap::Contents;
use block_testkit::campaign::Game;
use block_testkit::fuzz::{Bytes, Dice, Target, noise};

use super::games::{self, Setup, setups};
use super::twin::{ODD_PAGE, Step, TWIN_LEN, compare};
use super::{game, plan};

/// Most operations of a game.
const MOST_OPS: usize = 50;
const MAX_LEN: usize = 12 + 8 * MOST_OPS;

pub const OPERATIONS: Target =
    Target { name: "iscsi-operations", body: operations, seeds: games, max_len: MAX_LEN };
pub const NETWORK: Target =
    Target { name: "iscsi-network", body: network, seeds: || noise(12, 600, 2), max_len: 1000 };
pub const ALLOCMAP: Target =
    Target { name: "iscsi-allocmap", body: allocmap, seeds: || noise(8, 120, 3), max_len: 200 };

/// One for each kind of unit.
fn games() -> Vec<Vec<u8>> {
    let count = setups().len();
    let with_setup = |(at, mut input): (usize, Vec<u8>)| {
        input[..2].copy_from_slice(&u16::try_from(at).unwrap_or(0).to_le_bytes());
        input
    };
    noise(count, MAX_LEN, 1).into_iter().enumerate().map(with_setup).collect()
}

/// Any interleaving on any unit equals the flat disk, while the unit is reset, is busy and says that things have
/// changed, and while somebody else writes.
fn operations(input: &[u8]) {
    static SETUPS: LazyLock<Vec<Setup>> = LazyLock::new(setups);
    let bytes = &mut Bytes::new(input);
    let setup = bytes.choose(&SETUPS).clone();
    let depth = 1 + usize::from(bytes.byte() % 16);
    let seed = bytes.u32().into();
    let max_request = *bytes.choose(&[40 << 10, 300 << 10, 12 << 10]);
    let mut ops = setup.space(max_request).decode(bytes, MOST_OPS);
    setup.fit(&mut ops);
    let game = Game { setup, ops, depth, seed };
    if let Err(why) = games::play(&game) {
        panic!("{why}\n{game:?}");
    }
}

/// Whatever the network does, acknowledged writes are readable, commands end, and none runs twice that must not.
fn network(input: &[u8]) {
    let mut dice = Dice::new(input);
    let seed = Bytes::new(input).u32().into();
    let (pair, plan) = plan::random(&mut dice, seed, 60);
    game::Game::play(pair, plan, Box::new(dice));
}

/// The allocation map says of every page what its twin does, and zeroes only where there are zeroes.
fn allocmap(input: &[u8]) {
    let bytes = &mut Bytes::new(input);
    let len = TWIN_LEN / 2 + bytes.below(TWIN_LEN / 2);
    let origin = if bytes.flag() { 1 + bytes.below(ODD_PAGE - 1) } else { 0 };
    let trusted = !bytes.byte().is_multiple_of(8);
    let mut steps = Vec::new();
    while !bytes.is_empty() && steps.len() < 24 {
        let step = match bytes.byte() % 16 {
            0..4 => Step::Update(range(bytes), Contents::Allocated),
            4..10 => Step::Update(range(bytes), Contents::Zero),
            10..13 => Step::Update(range(bytes), Contents::Unknown),
            13 => Step::Resize((3 + bytes.below(3)) * ODD_PAGE),
            _ => Step::Resize(TWIN_LEN / 2 + bytes.below(TWIN_LEN / 2)),
        };
        steps.push(step);
    }
    let mut probes = Bytes::new(input);
    let reads: Vec<_> = (0..8).map(|_| range(&mut probes)).collect();
    compare(len, origin, trusted, &steps, &reads);
}

/// Its ends are mostly at the borders of pages, or next to them.
fn range(bytes: &mut Bytes<'_>) -> ByteRange {
    let mut end = || {
        let number = u64::from(bytes.u16());
        if number & 7 == 7 {
            return number / 8 * 4 % (TWIN_LEN + ODD_PAGE);
        }
        (number / 8 % 8 * ODD_PAGE + number % 3).saturating_sub(1)
    };
    let (a, b) = (end(), end());
    ByteRange::from_bounds(a.min(b), a.max(b)).expect("a range")
}
