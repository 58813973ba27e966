//! The request layer and dirty bitmaps, with operations that are an input's bytes.

use block_core::ByteRange;
use block_testkit::fuzz::{Bytes, Target, noise};
use block_testkit::op::OpSpace;

use super::dirty_support::{Step, compare};
use super::request_support::games::{self, Game};
use super::request_support::shapes;

/// Most operations of a game.
const MOST_OPS: usize = 40;
const MAX_LEN: usize = 12 + 8 * MOST_OPS;

pub const REQUESTS: Target =
    Target { name: "core-requests", body: requests, seeds: games, max_len: MAX_LEN };
pub const CONFLICTS: Target =
    Target { name: "core-conflicts", body: conflicts, seeds: games, max_len: MAX_LEN };
pub const DIRTY: Target =
    Target { name: "core-dirty", body: dirty, seeds: || noise(10, 200, 3), max_len: 400 };

/// A few for each kind of disk.
fn games() -> Vec<Vec<u8>> {
    let count = shapes().len();
    let with_shape = |(at, mut input): (usize, Vec<u8>)| {
        input[0] = u8::try_from(at % count).unwrap_or(0);
        input[1] = 0;
        input
    };
    noise(count * 3, MAX_LEN, 1).into_iter().enumerate().map(with_shape).collect()
}

fn game(bytes: &mut Bytes<'_>) -> Game {
    let shape = bytes.choose(&shapes()).clone();
    let depth = 1 + usize::from(bytes.byte() % 12);
    let seed = bytes.u32().into();
    let drop_one_in = [0, 3, 0, 8][usize::from(bytes.byte() % 4)];
    Game { shape, ops: Vec::new(), depth, seed, drop_one_in }
}

/// Any interleaving of unaligned, overlapping and dropped requests equals the flat disk, whatever the driver's
/// limits, and also where the disk grows.
fn requests(input: &[u8]) {
    let bytes = &mut Bytes::new(input);
    let mut game = game(bytes);
    let grows = bytes.byte();
    let played = if grows % 4 == 3 {
        let len = *bytes.choose(&[0, 1, 512, 700, 4096, 8192]);
        let align = *bytes.choose(&[1, 512, 4096]);
        let ops = OpSpace::new(12_000, &[512, 4096]).decode(bytes, MOST_OPS);
        games::growing(&ops, len, align, game.depth, game.seed)
    } else {
        game.ops = games::space(&game.shape).decode(bytes, MOST_OPS);
        games::flat(&game)
    };
    if let Err(why) = played {
        panic!("{why}\n{game:?}");
    }
}

/// Requests that conflict never meet at the driver, and all of them finish.
fn conflicts(input: &[u8]) {
    let bytes = &mut Bytes::new(input);
    let mut game = game(bytes);
    game.ops = games::space(&game.shape).decode(bytes, MOST_OPS);
    if let Err(why) = games::conflicts(&game) {
        panic!("{why}\n{game:?}");
    }
}

/// A dirty bitmap equals its slow twin after every step, near the borders of what it is made of.
fn dirty(input: &[u8]) {
    const BASES: [u64; 3] = [0, (512 << 16) - 65_536, (512 << 32) - 65_536];
    let bytes = &mut Bytes::new(input);
    let granularities = [512, 1024, 4096, 65_536];
    let (granularity, base) = (*bytes.choose(&granularities), *bytes.choose(&BASES));
    let len = offset(bytes);
    let mut steps = Vec::new();
    while !bytes.is_empty() && steps.len() < 24 {
        let step = match bytes.byte() % 16 {
            0..6 => Step::Set(range(bytes)),
            6..11 => Step::Reset(range(bytes)),
            11 => Step::Clear,
            12 => Step::Truncate(offset(bytes)),
            _ => {
                let granularity = *bytes.choose(&granularities);
                let count = bytes.below(4);
                Step::Merge { granularity, areas: (0..count).map(|_| range(bytes)).collect() }
            }
        };
        steps.push(step);
    }
    let mut probes = Bytes::new(input);
    let probes: Vec<_> = (0..3).map(|_| (range(&mut probes), probes.below(5000))).collect();
    compare(granularity, base, len, &steps, &probes);
}

/// Near a multiple of 512, or anywhere.
fn offset(bytes: &mut Bytes<'_>) -> u64 {
    let number = u64::from(bytes.u16());
    if number & 3 == 3 {
        number % 20_100
    } else {
        (number / 4 % 40 * 512 + number % 3).saturating_sub(1)
    }
}

fn range(bytes: &mut Bytes<'_>) -> ByteRange {
    let (a, b) = (offset(bytes), offset(bytes));
    ByteRange::from_bounds(a.min(b), a.max(b)).expect("a range")
}
