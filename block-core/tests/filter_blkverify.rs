//! The filter `blkverify`: two images hold the same, and what differs is told with its place.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod request_support;

use std::sync::Arc;

use block_core::filter::blkverify::{BlkverifyDriver, BlkverifyFactory};
use block_core::format::raw::RawFactory;
use block_core::io::exec::block_on;
use block_core::node::NodeOptions;
use block_core::proto::file::FileFactory;
use block_core::registry::OpenContext;
use block_core::{
    ByteRange, Error, Node, OpenError, OpenFlags, Options, Problem, Registry, RequestFlags,
};
use block_testkit::disk::fault::{Fault, Rule};
use block_testkit::disk::mem::{MemConfig, MemDisk};
use block_testkit::disk::tap::{Kind, Tapped};
use block_testkit::exec::Exec;
use block_testkit::model::disk::{DiskModel, Source};
use block_testkit::op::{Op, OpSpace};
use block_testkit::play::{Played, Player};
use proptest::prelude::*;
use request_support::{buffer, cases, data, span};

const LEN: u64 = 40_960;

/// Both disks, what fails requests to them, and the filter.
fn filter() -> ([Arc<MemDisk>; 2], [Arc<Fault>; 2], Node) {
    let disks = [1, 512].map(|block| MemConfig::new(LEN).aligned(block).build());
    let faults = [Fault::new(), Fault::new()];
    let node = |at: usize| {
        let tapped = Tapped::new(disks[at].clone(), Arc::clone(&faults[at]));
        Node::new(tapped, NodeOptions::default())
    };
    let driver = BlkverifyDriver::new(node(0), node(1));
    let filter = Node::new(Arc::new(driver), NodeOptions::default());
    (disks, faults, filter)
}

fn game() -> impl Strategy<Value = (Vec<Op>, usize, u64)> {
    let space = OpSpace { write_flags: RequestFlags::FUA, ..OpSpace::new(LEN, &[512, 4096]) };
    (space.ops(24), 1..=8usize, any::<u64>())
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn any_requests_leave_both_images_alike((ops, depth, seed) in game()) {
        Exec::run(seed, |exec| async move {
            let (_, _, node) = filter();
            let player = Player::new(exec, node, DiskModel::new(LEN, Source::Zero));
            let played = player.play(&ops, depth).await;
            // Reads compare: a difference would fail this one.
            player.check_all().await;
            for (op, played) in ops.iter().zip(&played) {
                assert!(matches!(played, Played::Returned(Ok(()))), "{op:?}: {played:?}");
            }
        });
    }
}

#[test]
fn a_difference_is_told_with_its_place() {
    let (disks, _, node) = filter();
    let range = span(100, 20_000);
    let read = || block_on(node.read(range, buffer(&node, range)));
    assert_eq!(read(), Ok(()));
    disks[1].load(9_999, &[1]);
    let error = read().unwrap_err();
    let asked = span(0, 20_480);
    assert_eq!(error, Error::Mismatch { range: asked, offset: 9_999 });
    assert_eq!(error.to_string(), "contents mismatch at offset 9999");
    assert_eq!(error.errno(), Error::IO.errno());
    // Elsewhere nothing is wrong.
    let range = span(10_240, 20_000);
    assert_eq!(block_on(node.read(range, buffer(&node, range))), Ok(()));
}

#[test]
fn what_only_one_image_fails_is_told_apart() {
    for (at, kind) in [(0, Kind::Write), (1, Kind::Write), (0, Kind::Read), (1, Kind::Read)] {
        let (_, faults, node) = filter();
        faults[at].add(Rule::new(kind).error(Error::NO_SPACE));
        let range = span(0, 512);
        let result = match kind {
            Kind::Write => {
                block_on(node.write(range, data(&node, 1, range), RequestFlags::empty()))
            }
            _ => block_on(node.read(range, buffer(&node, range))),
        };
        let errno = Error::NO_SPACE.errno();
        assert_eq!(result, Err(Error::Diverged { range, errno }), "{at} {kind}");
        assert_eq!(faults[at].injected(), 1);
    }
    let (_, faults, node) = filter();
    faults.iter().for_each(|fault| fault.add(Rule::new(Kind::Write).error(Error::NO_SPACE)));
    let range = ByteRange::up_to(512);
    let result = block_on(node.write(range, data(&node, 1, range), RequestFlags::empty()));
    assert_eq!(result, Err(Error::NO_SPACE), "both agree");
}

#[test]
fn a_name_holds_both_images() {
    let dir = tempfile::TempDir::new().unwrap();
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name).to_str().unwrap().to_owned());
    std::fs::write(&a, [0; 4096]).unwrap();
    std::fs::write(&b, [0; 4096]).unwrap();
    let registry =
        || Arc::new(Registry::new().with(BlkverifyFactory).with(FileFactory).with(RawFactory));
    let open = |options| block_on(OpenContext::new(registry(), OpenFlags::READ_ONLY).open(options));
    let node = open(Options::filename(format!("blkverify:{a}:{b}"))).unwrap();
    assert_eq!((node.len(), node.driver().name()), (4096, "raw"));
    let options = Options::new()
        .with("driver", "blkverify")
        .with("raw.filename", &a)
        .with("test.filename", &b);
    assert!(open(options).unwrap().is_read_only());
    let missing =
        |option: &str| OpenError::Option { option: option.to_owned(), problem: Problem::Missing };
    assert_eq!(open(Options::filename(format!("blkverify:{a}"))).unwrap_err(), missing("raw"));
    let options = Options::new().with("driver", "blkverify").with("raw.filename", a);
    assert_eq!(open(options).unwrap_err(), missing("test"));
}
