//! What the tests of the request layer share: disks of every kind, and nodes on them.

#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

pub mod games;

use std::sync::Arc;

use block_core::driver::BlockDriver;
use block_core::flags::Support;
use block_core::node::{DetectZeroes, NodeOptions};
use block_core::{Alignment, ByteRange, Capabilities, IoBuf, IoVec, Node};
use block_testkit::disk::mem::{Discarded, MemConfig, MemDisk, UnalignedZeroes};
use block_testkit::disk::record::Record;
use block_testkit::disk::tap::{Tap, Tapped};
use block_testkit::op::{OpId, contents, io_vec};
use proptest::prelude::ProptestConfig;

/// `count` random cases, or as many as `PROPTEST_CASES` says.
pub fn cases(count: u32) -> ProptestConfig {
    let default = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => default,
        None => ProptestConfig { cases: count, ..default },
    }
}

/// A range by its bounds.
pub fn span(start: u64, end: u64) -> ByteRange {
    ByteRange::from_bounds(start, end).unwrap()
}

pub fn align(bytes: u64) -> Alignment {
    Alignment::new(bytes).unwrap()
}

/// A kind of disk, and how the node on it is set up.
#[derive(Clone)]
pub struct Shape {
    pub name: &'static str,
    pub config: MemConfig,
    pub options: NodeOptions,
    /// Multiples of these are interesting.
    pub edges: Vec<u64>,
}

impl std::fmt::Debug for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Shape {
    fn new(name: &'static str, config: MemConfig, edges: &[u64]) -> Self {
        let options = NodeOptions { unmap: true, ..NodeOptions::default() };
        Self { name, config, options, edges: edges.to_vec() }
    }

    fn with(mut self, change: impl FnOnce(&mut MemConfig, &mut NodeOptions)) -> Self {
        change(&mut self.config, &mut self.options);
        self
    }
}

/// Disks with limits of all kinds.
pub fn shapes() -> Vec<Shape> {
    vec![
        Shape::new("bytes", MemConfig::new(20_000), &[512, 1000]),
        Shape::new("sectors", MemConfig::new(32_768).aligned(512), &[512, 4096]).with(|c, _| {
            c.limits.max_transfer = Some(4096);
            c.limits.max_iov = 2;
            c.capabilities.write_fua = Support::None;
        }),
        Shape::new("pages of odd zeroes", MemConfig::new(65_536).aligned(4096), &[4096, 6144, 512])
            .with(|c, _| {
                c.limits.pwrite_zeroes_alignment = Some(align(6144));
                c.limits.max_pwrite_zeroes = Some(20_000);
                c.limits.pdiscard_alignment = Some(align(10_240));
                c.limits.max_pdiscard = Some(30_000);
                c.unaligned_zeroes = UnalignedZeroes::Refuse;
                c.capabilities.zeroes_fua = Support::None;
            }),
        Shape::new("short zeroes", MemConfig::new(65_536).aligned(4096), &[4096, 12_288]).with(
            |c, _| {
                // No multiple of both alignments is this short.
                c.limits.pwrite_zeroes_alignment = Some(align(6144));
                c.limits.max_pwrite_zeroes = Some(8192);
                c.limits.pdiscard_alignment = Some(align(6144));
                c.limits.max_pdiscard = Some(8192);
            },
        ),
        Shape::new("ragged end", MemConfig::new(10_123).aligned(512), &[512, 1536]).with(|c, _| {
            c.limits.pwrite_zeroes_alignment = Some(align(1536));
            c.discarded = Discarded::Zeroes;
        }),
        Shape::new("poor", MemConfig::new(16_384).aligned(512), &[512, 1024]).with(|c, _| {
            c.limits.max_transfer = Some(1024);
            c.limits.max_iov = 1;
            c.capabilities = Capabilities::default();
        }),
        Shape::new("detects zeroes", MemConfig::new(16_384).aligned(512), &[512, 2048]).with(
            |c, o| {
                c.limits.pwrite_zeroes_alignment = Some(align(2048));
                c.limits.max_pwrite_zeroes = Some(4096);
                o.detect_zeroes = DetectZeroes::Unmap;
            },
        ),
        Shape::new("no unmap", MemConfig::new(16_384).aligned(512), &[512, 2048]).with(|c, o| {
            c.limits.pdiscard_alignment = Some(align(2048));
            c.discarded = Discarded::Kept;
            o.unmap = false;
            o.detect_zeroes = DetectZeroes::On;
        }),
    ]
}

pub fn shape(name: &str) -> Shape {
    shapes().into_iter().find(|shape| shape.name == name).unwrap()
}

/// A node on a driver.
pub fn node_on(driver: Arc<dyn BlockDriver>, options: &NodeOptions) -> Node {
    Node::new(driver, options.clone())
}

/// A disk of this kind and a node on it.
pub fn node_of(shape: &Shape) -> (Arc<MemDisk>, Node) {
    let disk = shape.config.clone().build();
    let node = node_on(disk.clone(), &shape.options);
    (disk, node)
}

/// A disk of this kind and a node on it, with a tap between.
pub fn tapped<T: Tap>(shape: &Shape, tap: &Arc<T>) -> (Arc<MemDisk>, Node) {
    let disk = shape.config.clone().build();
    let tapped = Tapped::new(disk.clone(), Arc::clone(tap));
    (disk, node_on(tapped, &shape.options))
}

/// A disk of this kind and a node on it; what arrives at the disk is recorded.
pub fn recorded(shape: &Shape) -> (Arc<MemDisk>, Node, Arc<Record>) {
    let record = Record::new();
    let (disk, node) = tapped(shape, &record);
    (disk, node, record)
}

/// Memory for a read of `range`.
pub fn buffer(node: &Node, range: ByteRange) -> IoVec {
    let len = usize::try_from(range.len()).unwrap();
    IoBuf::zeroed(len, node.limits().min_mem_alignment).unwrap().into()
}

/// The data of operation `id`.
pub fn data(node: &Node, id: OpId, range: ByteRange) -> IoVec {
    io_vec(&contents(id, range), node.limits().min_mem_alignment, 1)
}
