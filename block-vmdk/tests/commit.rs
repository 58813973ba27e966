//! A commit that a crash ends at any moment: every image still opens and the top reads as it did, but where the crash
//! is between the two writes by which the base and the image above it change the base's name.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod kit;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use block_core::driver::BlockDriver;
use block_core::job::commit::{Afterwards, CommitOptions, commit};
use block_core::options::OpenFlags;
use block_core::registry::OpenContext;
use block_core::{Alignment, ByteRange};
use block_core::{Cancel, IoBuf, Node, OpenError, Options, Registry, graph};
use block_testkit::disk::crash::CrashDisk;
use block_testkit::given::{Given, NoFiles};
use block_testkit::naive::vmdk::make::{Grain, NAME, Shape};
use block_vmdk::VmdkFactory;
use futures::executor::block_on;
use kit::memory;
use parking_lot::Mutex;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

const SIZE: u64 = 1 << 20;
const GRAIN: u64 = 64 << 10;
/// The base, the image in the middle, the top.
const LAYERS: [&str; 3] = ["given-0", "given-1", "given-2"];

/// The bytes of each file.
type Chain = [Vec<u8>; 3];

/// Three images, each with grains of its own.
fn chain() -> Chain {
    let filled = |byte| Grain::Data(vec![byte; usize::try_from(GRAIN).unwrap()]);
    let make = |shape: Shape, grains: [u64; 4], byte| {
        let grains: BTreeMap<_, _> = grains.into_iter().map(|n| (n, filled(byte))).collect();
        shape.make(&grains)[NAME].clone()
    };
    let over = |name: &str, cid| Some((name.to_owned(), cid));
    let shape = Shape::new(SIZE);
    [
        make(Shape { cid: 1, ..shape.clone() }, [0, 1, 2, 3], 1),
        make(Shape { cid: 2, backing: over("base", 1), ..shape.clone() }, [2, 3, 4, 5], 2),
        make(Shape { cid: 3, backing: over("middle", 2), ..shape }, [3, 5, 6, 15], 3),
    ]
}

/// Opens the image at `top`, and those below that `writable` says too.
fn open(
    files: &[Arc<dyn BlockDriver>],
    flags: OpenFlags,
    writable: std::ops::Range<usize>,
) -> Result<Node, OpenError> {
    let mut registry = Registry::new().with(VmdkFactory).with(NoFiles);
    let mut options = Options::new();
    let mut prefix = String::new();
    for (name, file) in LAYERS.into_iter().zip(files).rev() {
        registry = registry.with(Given(name, Arc::clone(file)));
        options.set(format!("{prefix}driver"), "vmdk");
        options.set(format!("{prefix}file.driver"), name);
        prefix.push_str("backing.");
    }
    let mut context = OpenContext::new(Arc::new(registry), flags);
    context.writable_backing_depths = writable;
    if files.len() == 1 {
        options.take("backing.driver");
    }
    block_on(context.open(options))
}

fn contents(node: &Node) -> Vec<u8> {
    let buf = IoBuf::zeroed(usize::try_from(SIZE).unwrap(), Alignment::PAGE).unwrap();
    block_on(node.read(ByteRange::up_to(SIZE), buf.clone().into())).unwrap();
    buf.to_vec()
}

/// What the top of these files reads as.
fn look(files: &Chain) -> Result<Vec<u8>, OpenError> {
    let files = files.each_ref().map(|bytes| memory(bytes));
    let node = open(&files, OpenFlags::READ_ONLY, 0..0)?;
    let found = contents(&node);
    block_on(graph::close(&node)).unwrap();
    Ok(found)
}

/// Commits the top to the base that is `depth` below it; what each moment would leave after a crash, and the end.
fn shoot(depth: usize, afterwards: Afterwards) -> (Vec<Chain>, Chain) {
    let disks = chain().map(CrashDisk::new);
    let shots: Arc<Mutex<Vec<Chain>>> = Arc::default();
    let weak: [Weak<CrashDisk>; 3] = disks.each_ref().map(Arc::downgrade);
    let rng = Arc::new(Mutex::new(ChaCha8Rng::seed_from_u64(7)));
    for disk in &disks {
        let (shots, weak, rng) = (Arc::clone(&shots), weak.clone(), Arc::clone(&rng));
        disk.watch(move |_| {
            let mut rng = rng.lock();
            let left = weak.each_ref().map(|disk| disk.upgrade().unwrap().crash(&mut *rng).bytes);
            shots.lock().push(left);
        });
    }
    let files = disks.each_ref().map(|disk| -> Arc<dyn BlockDriver> { disk.clone() });
    let top = open(&files, OpenFlags::READ_WRITE, 1..depth + 1).unwrap();
    let base = std::iter::successors(Some(top.clone()), Node::backing).nth(depth).unwrap();
    let options = CommitOptions { afterwards, ..CommitOptions::default() };
    block_on(commit(&top, &base, options, &Cancel::new(), |_| ())).unwrap();
    block_on(graph::close(&top)).unwrap();
    let shots = shots.lock().clone();
    (shots, disks.map(|disk| disk.to_vec()))
}

/// What else than names of states differs from how it began.
fn data_moved(left: &Chain) -> bool {
    left.iter()
        .zip(chain())
        .any(|(now, before)| now.len() != before.len() || now[1536..] != before[1536..])
}

#[test]
fn a_crash_leaves_a_top_that_reads_as_it_did() {
    let before = look(&chain()).unwrap();
    for (depth, afterwards) in
        [(1, Afterwards::Keep), (1, Afterwards::Empty), (2, Afterwards::Keep)]
    {
        let (shots, end) = shoot(depth, afterwards);
        let (mut moved, mut stale) = (0, 0);
        for left in &shots {
            match look(left) {
                Ok(found) => {
                    assert!(found == before, "{depth} {afterwards:?}");
                    moved += u32::from(data_moved(left));
                }
                // The base has its new name, and nothing else has changed.
                Err(error) => {
                    assert!(error.to_string().contains("parentCID"), "{error}");
                    assert!(!data_moved(left), "{depth} {afterwards:?}: {error}");
                    stale += 1;
                }
            }
        }
        assert!(moved > 10 && stale > 0 && stale < 10, "{depth} {afterwards:?}: {moved} {stale}");
        assert!(look(&end).unwrap() == before, "{depth} {afterwards:?}");
    }
}
