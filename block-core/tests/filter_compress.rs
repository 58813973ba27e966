//! The filter `compress`: to its users a disk like any other, to its file nothing but compressed writes
//! of whole clusters.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod request_support;

use std::sync::Arc;

use async_trait::async_trait;
use block_core::driver::{BlockDriver, Exactness, Prealloc, ReopenOptions};
use block_core::filter::compress::{CompressDriver, CompressFactory};
use block_core::flags::Support;
use block_core::io::exec::block_on;
use block_core::node::{DetectZeroes, NodeOptions};
use block_core::proto::null::NullFactory;
use block_core::registry::{DriverFactory, OpenContext};
use block_core::request::status::StatusDetail;
use block_core::{
    ByteRange, Error, Node, OpenError, OpenFlags, Options, Registry, RequestFlags, graph,
};
use block_testkit::disk::mem::{MemConfig, MemDisk};
use block_testkit::disk::record::Record;
use block_testkit::disk::tap::{Kind, Tapped};
use block_testkit::exec::Exec;
use block_testkit::model::disk::{DiskModel, Source};
use block_testkit::op::{Discards, Op, OpSpace, contents};
use block_testkit::play::{Played, Player};
use proptest::prelude::*;
use request_support::{align, buffer, cases, data, span};

/// A disk of `len` bytes that takes compressed writes of whole clusters, beside what is not needed.
fn config(len: u64, block: u64, cluster: u64) -> MemConfig {
    let mut config = MemConfig::new(len).aligned(block);
    config.limits.compressed_write_alignment = Some(align(cluster));
    config.limits.pwrite_zeroes_alignment = Some(align(cluster));
    config.capabilities.compressed_write = Support::Native;
    config
}

/// The disk, the filter on it, and what arrives at the disk.
fn filter(config: MemConfig, options: NodeOptions) -> (Arc<MemDisk>, Node, Arc<Record>) {
    let (disk, record) = (config.build(), Record::new());
    let unmap = NodeOptions { unmap: true, ..NodeOptions::default() };
    let file = Node::new(Tapped::new(disk.clone(), Arc::clone(&record)), unmap);
    let filter = CompressDriver::new(file).unwrap();
    (disk, Node::new(Arc::new(filter), NodeOptions { unmap: true, ..options }), record)
}

/// Panics unless everything that was written to a disk of `len` bytes was compressed and whole.
fn check_writes(record: &Record, len: u64, cluster: u64) {
    for call in record.take() {
        assert!(call.range.end() <= len.next_multiple_of(4096), "{call}");
        if call.kind == Kind::Write {
            assert!(call.flags.contains(RequestFlags::COMPRESSED), "{call}");
            assert!(call.range.offset().is_multiple_of(cluster), "{call}");
            let end = call.range.end();
            assert!(end.is_multiple_of(cluster) || end >= len, "{call}");
        }
    }
}

fn space(len: u64, cluster: u64) -> OpSpace {
    OpSpace {
        write_flags: RequestFlags::FUA | RequestFlags::SERIALISING,
        zero_flags: RequestFlags::FUA | RequestFlags::MAY_UNMAP | RequestFlags::SERIALISING,
        discards: Discards::Sometimes,
        ..OpSpace::new(len, &[512, cluster])
    }
}

/// Length, block and cluster of the disk, operations, how many at once, the seed of their order.
fn game() -> impl Strategy<Value = (u64, u64, u64, Vec<Op>, usize, u64)> {
    let sizes = prop_oneof![
        Just((65_536u64, 512u64, 4096u64)),
        Just((65_536 + 4096 + 700, 1, 4096)),
        Just((40_960 + 512, 512, 8192)),
        Just((1000, 1, 4096)),
        Just((30_000, 1, 512)),
        // Blocks larger than clusters.
        Just((32_768, 4096, 512)),
    ];
    sizes.prop_flat_map(|(len, block, cluster)| {
        let ops = space(len, cluster).ops(24);
        (Just(len), Just(block), Just(cluster), ops, 1..=8usize, any::<u64>())
    })
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn any_interleaving_equals_the_flat_disk_and_all_writes_are_whole_clusters(
        (len, block, cluster, ops, depth, seed) in game(),
        detects in any::<bool>(),
        fua in any::<bool>(),
    ) {
        Exec::run(seed, |exec| async move {
            let mut config = config(len, block, cluster);
            config.capabilities.write_fua = if fua { Support::Native } else { Support::None };
            let detect_zeroes = if detects { DetectZeroes::Unmap } else { DetectZeroes::Off };
            let options = NodeOptions { detect_zeroes, ..NodeOptions::default() };
            let (disk, node, record) = filter(config, options);
            let all = ByteRange::up_to(len);
            disk.load(0, &contents(0, all));
            let player = Player::new(exec, node, DiskModel::new(len, Source::Op(0)));
            let played = player.play(&ops, depth).await;
            player.check_all().await;
            check_writes(&record, len, cluster);
            for (op, played) in ops.iter().zip(&played) {
                assert!(matches!(played, Played::Returned(Ok(()))), "{op:?}: {played:?}");
            }
        });
    }

    #[test]
    fn lengths_change_between_requests(
        parts in proptest::collection::vec((space(12_000, 4096).ops(6), 0..16_000u64), 1..5),
        seed: u64,
    ) {
        Exec::run(seed, |exec| async move {
            let (_, node, record) = filter(config(12_000, 1, 4096), NodeOptions::default());
            let player = Player::new(exec, node, DiskModel::new(12_000, Source::Zero));
            let mut before = 12_000;
            for (ops, len) in parts {
                player.play(&ops, 4).await;
                check_writes(&record, before, 4096);
                let played = player.play(&[Op::Truncate { len }], 1).await;
                assert_eq!(played, [Played::Returned(Ok(()))]);
                player.check_all().await;
                // A truncate is none of the writes.
                record.take();
                before = len;
            }
        });
    }
}

#[test]
fn a_part_of_a_cluster_is_merged_with_the_rest_of_it() {
    let (disk, node, record) = filter(config(10_000, 1, 4096), NodeOptions::default());
    disk.load(0, &contents(7, ByteRange::up_to(10_000)));
    let write = |range| block_on(node.write(range, data(&node, 1, range), RequestFlags::FUA));
    write(span(5000, 5100)).unwrap();
    assert_eq!(record.take_text(), "read 0x1000+0x1000\nwrite 0x1000+0x1000 FUA|COMPRESSED\n");
    // The last cluster ends with the disk.
    write(span(9000, 9001)).unwrap();
    assert_eq!(record.take_text(), "read 0x2000+0x710\nwrite 0x2000+0x710 FUA|COMPRESSED\n");
    write(span(4096, 10_000)).unwrap();
    let text = record.take_text();
    assert!(text.ends_with("write 0x1000+0x1710 FUA|COMPRESSED in 2 buffers\n"), "{text}");
    assert_eq!(write(span(9999, 10_001)).unwrap_err().errno(), Error::IO.errno());
}

#[test]
fn whole_clusters_of_zeroes_stay_zero_writes() {
    let (_, node, record) = filter(config(16_384, 512, 4096), NodeOptions::default());
    block_on(node.write_zeroes(span(0, 8192), RequestFlags::MAY_UNMAP)).unwrap();
    assert_eq!(record.take_text(), "zero 0x0+0x2000 MAY_UNMAP\n");
    block_on(node.write_zeroes(span(4096, 4608), RequestFlags::empty())).unwrap();
    assert_eq!(record.take_text(), "read 0x1000+0x1000\nwrite 0x1000+0x1000 COMPRESSED\n");
}

#[test]
fn everything_else_goes_on() {
    let (disk, node, record) = filter(config(10_000, 1, 4096), NodeOptions::default());
    disk.load(4096, &[1; 4096]);
    let status = block_on(node.block_status(span(0, 10_000), StatusDetail::Zeroes)).unwrap();
    assert!(status.is_zero() && status.len <= 4096, "{status:?}");
    block_on(node.discard(span(0, 10_000))).unwrap();
    block_on(node.flush()).unwrap();
    block_on(node.truncate(20_000, Exactness::Exact, Prealloc::Off)).unwrap();
    assert_eq!(node.len(), 20_000);
    let text = record.take_text();
    for expect in ["discard 0x0+0x2", "flush-to-disk", "truncate 0x4e20"] {
        assert!(text.contains(expect), "{expect}: {text}");
    }
    let options = ReopenOptions { read_only: Some(true), ..ReopenOptions::default() };
    block_on(graph::reopen(&[(node.clone(), options)])).unwrap();
    let range = span(0, 4096);
    let written = block_on(node.write(range, data(&node, 1, range), RequestFlags::empty()));
    assert_eq!(written, Err(Error::ReadOnly));
    block_on(node.read(range, buffer(&node, range))).unwrap();
}

/// A format that compresses, over nothing.
struct Packs;

#[async_trait]
impl DriverFactory for Packs {
    fn name(&self) -> &'static str {
        "packs"
    }

    async fn open(
        &self,
        mut options: Options,
        mut context: OpenContext,
    ) -> Result<Arc<dyn BlockDriver>, OpenError> {
        let file = context.open_child(&mut options, "file").await?;
        let cluster = options.take_size("cluster")?.unwrap_or(4096);
        options.finish()?;
        Ok(config(file.len(), 1, cluster).build())
    }
}

fn open(options: Options, flags: OpenFlags) -> Result<Node, OpenError> {
    let registry = Registry::new().with(CompressFactory).with(NullFactory).with(Packs);
    block_on(OpenContext::new(Arc::new(registry), flags).open(options))
}

fn compress() -> Options {
    Options::new()
        .with("driver", "compress")
        .with("file.driver", "packs")
        .with("file.file.size", "1M")
}

#[test]
fn it_opens_over_what_compresses_and_nothing_else() {
    let null = compress().with("file.file.driver", "null-co");
    let node = open(null.clone(), OpenFlags::READ_WRITE).unwrap();
    assert_eq!((node.len(), node.is_read_only()), (1 << 20, false));
    assert_eq!(node.limits().request_alignment, align(4096));
    assert!(open(null.clone(), OpenFlags::READ_ONLY).unwrap().is_read_only());

    let unsupported = |driver| OpenError::Unsupported { driver, what: "writing compressed data" };
    let plain = Options::new().with("driver", "compress").with("file.driver", "null-co");
    let error = open(plain.with("file.size", "1M"), OpenFlags::READ_WRITE).unwrap_err();
    assert_eq!(error, unsupported("null-co"));
    let odd = open(null.clone().with("file.cluster", "1536"), OpenFlags::READ_WRITE);
    assert_eq!(odd.unwrap_err(), unsupported("test-mem"));
    assert!(open(null.with("bogus", "1"), OpenFlags::READ_WRITE).is_err());
    assert!(open(Options::new().with("driver", "compress"), OpenFlags::READ_WRITE).is_err());
}
