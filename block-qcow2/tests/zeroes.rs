//! A zero write without fallback is done, or refused with nothing changed.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod kit;

use block_core::{Alignment, ByteRange, Error, IoBuf, Node, RequestFlags, Result, graph};
use block_testkit::naive::qcow2::make::L2Entries;
use futures::executor::block_on;
use kit::setups::{Filled, Setup, setup};
use kit::{World, memory, setups};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn open(setup: &Setup) -> Node {
    let made = setup.make();
    let world = World::new(setup, memory(&made.file), Some(memory(&made.data)));
    block_on(world.open()).unwrap()
}

fn read(node: &Node) -> Vec<u8> {
    let buf = IoBuf::zeroed(kit::index(node.len()), Alignment::PAGE).unwrap();
    block_on(node.read(ByteRange::up_to(node.len()), buf.clone().into())).unwrap();
    buf.to_vec()
}

/// Zeroes `start..end` without fallback, and holds the disk against what the answer promises.
fn zero(node: &Node, start: u64, end: u64) -> Result<()> {
    let mut expected = read(node);
    let range = ByteRange::from_bounds(start, end).unwrap();
    let answer = block_on(node.write_zeroes(range, RequestFlags::NO_FALLBACK));
    if answer.is_ok() {
        expected[kit::index(start)..kit::index(end)].fill(0);
    }
    let wrong = read(node).iter().zip(&expected).position(|(is, want)| is != want);
    assert_eq!(wrong, None, "{range}: {answer:?}");
    answer
}

/// Without zero flags, what the backing file shows through cannot be zero; the end of the range could be.
#[test]
fn above_a_backing_file_of_version_2() {
    let mut setup = setup("v2 64k, backing");
    (setup.shape.size, setup.filled) = (0x6_0200, Filled::Mixed);
    let node = open(&setup);
    assert_eq!(zero(&node, 0x3_0000, 0x6_0200), Err(Error::Unsupported));
    assert_eq!(zero(&node, 0x5_0000, 0x6_0200), Ok(()));
    block_on(graph::close(&node)).unwrap();
}

/// A part of a compressed cluster cannot be zero; the whole clusters beside it could be, and the part of
/// a plain one, in subclusters.
#[test]
fn to_the_middle_of_a_compressed_cluster() {
    for name in ["16k subclusters", "64k subclusters, backing"] {
        let setup = setup(name);
        assert_eq!(setup.shape.l2_entries, L2Entries::Extended);
        let half = |halves| halves * setup.shape.cluster_size() / 2;
        let node = open(&setup);
        // Clusters 3 and 4 are compressed, the others are plain.
        for (start, end) in [(0, 7), (1, 7), (1, 9), (7, 11), (9, 12), (9, 13), (7, 13), (7, 9)] {
            assert_eq!(zero(&node, half(start), half(end)), Err(Error::Unsupported), "{name}");
        }
        // The disk ends within a subcluster, of which the rest is no obstacle.
        assert_eq!(zero(&node, half(7), node.len()), Err(Error::Unsupported), "{name}");
        assert_eq!(zero(&node, half(1), half(13)), Ok(()), "{name}");
        block_on(graph::close(&node)).unwrap();
    }
}

#[test]
fn any_range_of_any_image() {
    let (mut done, mut refused) = (0, 0);
    let quick = |setup: &Setup| setup.filled != Filled::Full && setup.shape.cluster_bits < 21;
    for setup in setups().into_iter().filter(quick) {
        let mut rng = ChaCha8Rng::seed_from_u64(setup.shape.size);
        let unit = setup.shape.cluster_size() / 32;
        let mut node = open(&setup);
        for round in 0..12 {
            if round % 6 == 5 {
                // Most of what was there is zero by now.
                block_on(graph::close(&node)).unwrap();
                node = open(&setup);
            }
            let unit = [unit.max(512), setup.shape.cluster_size(), 512][rng.random_range(0..3)];
            let mut bound = || (rng.random_range(0..=node.len()) / unit * unit).min(node.len());
            let (a, b) = (bound(), bound());
            let most = setup.shape.cluster_size() * 5;
            match zero(&node, a.min(b), a.max(b).min(a.min(b) + most)) {
                Ok(()) => done += 1,
                Err(error) => {
                    assert_eq!(error, Error::Unsupported, "{setup:?}");
                    refused += 1;
                }
            }
        }
        block_on(graph::close(&node)).unwrap();
    }
    assert!(done > 60 && refused > 30, "{done} done, {refused} refused");
}
