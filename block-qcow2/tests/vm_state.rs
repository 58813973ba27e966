//! Machine state behind the disk: what was saved is loaded, also from snapshots and after reopening; the
//! disk does not notice, and nothing of a backing file shows through; both checkers find nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers outside of #[test]")]

mod support;

use std::sync::Arc;

use block_core::ability::NewSnapshot;
use block_core::driver::{Exactness, Prealloc};
use block_core::format::raw::RawFactory;
use block_core::io::exec::block_on;
use block_core::node::NodeOptions;
use block_core::options::OpenFlags;
use block_core::proto::file::FileFactory;
use block_core::proto::null::NullDriver;
use block_core::registry::OpenContext;
use block_core::{
    Alignment, ByteRange, Error, IoBuf, Node, Options, Registry, RequestFlags, Result,
};
use block_qcow2::Qcow2Factory;
use block_testkit::naive::qcow2::Image;
use block_testkit::op::io_vec;
use block_testkit::peer::{ImageDir, Verdict};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Bytes of state that the games use.
const STATE: usize = 96 << 10;
/// Bytes of the disk: no multiple of what an L2 table maps.
const DISK: u64 = 200 << 10;

fn open_with(dir: &ImageDir, flags: OpenFlags) -> Node {
    let registry = Registry::new().with(Qcow2Factory).with(RawFactory).with(FileFactory);
    let options = Options::new()
        .with("driver", "qcow2")
        .with("filename", dir.path("a").to_str().unwrap())
        .with("l2-cache-entry-size", "512");
    // Nothing here must survive a crash of the machine.
    let flags = OpenFlags { no_flush: true, ..flags };
    block_on(OpenContext::new(Arc::new(registry), flags).open(options)).unwrap()
}

fn open(dir: &ImageDir) -> Node {
    open_with(dir, OpenFlags::READ_WRITE)
}

fn close(node: &Node) {
    block_on(block_core::graph::close(node)).unwrap();
}

fn save(node: &Node, offset: u64, bytes: &[u8]) -> Result<()> {
    block_on(node.save_vm_state(offset, io_vec(bytes, Alignment::PAGE, 1)))
}

fn load(node: &Node, offset: u64, len: usize) -> Result<Vec<u8>> {
    let buf = IoBuf::zeroed(len, Alignment::PAGE)?;
    buf.fill(0xee);
    block_on(node.load_vm_state(offset, buf.clone().into()))?;
    Ok(buf.to_vec())
}

fn judge(dir: &ImageDir, what: &str) {
    assert_eq!(dir.check("a").unwrap(), Verdict::Clean, "{what}");
    let bytes = dir.bytes("a").unwrap();
    let report = Image::open(&bytes).unwrap().check().unwrap();
    assert!(report.is_clean(), "{what}: {report}");
}

/// An image with small clusters over a backing file that is longer than it.
fn made(options: &str) -> ImageDir {
    let dir = ImageDir::new().unwrap();
    dir.write("base", &vec![0x77; 4 << 20]).unwrap();
    let len = DISK.to_string();
    let backing = ["-b", "base", "-F", "raw"];
    let create = [&["create", "-q", "-f", "qcow2", "-o", options], &backing[..], &["a", &len]];
    dir.qemu_img(&create.concat()).unwrap();
    dir
}

/// Saves at random places, between snapshots, writes to the disk and reopening.
fn play(options: &str, seed: u64) {
    let dir = made(options);
    let mut random = StdRng::seed_from_u64(seed);
    let mut state = vec![0; STATE];
    let mut kept = Vec::new();
    let mut node = open(&dir);
    for step in 0..60_u8 {
        match random.random_range(0..10) {
            0 => {
                close(&node);
                judge(&dir, &format!("{options}, seed {seed}, step {step}"));
                node = open(&dir);
            }
            1 if kept.len() < 3 => {
                let name = format!("s{step}");
                let new = NewSnapshot { name: name.clone(), ..NewSnapshot::default() };
                block_on(node.driver().as_snapshots().unwrap().create(&new)).unwrap();
                kept.push((name, state.clone()));
            }
            2 if !kept.is_empty() => {
                let (name, was) = &kept[random.random_range(0..kept.len())];
                block_on(block_core::graph::apply_snapshot(&node, name)).unwrap();
                state.clone_from(was);
            }
            3 => {
                let range = ByteRange::new(random.random_range(0..DISK / 2), 5000).unwrap();
                let data = io_vec(&[step; 5000], Alignment::PAGE, 1);
                block_on(node.write(range, data, RequestFlags::empty())).unwrap();
            }
            _ => {
                let start = random.random_range(0..STATE);
                let len = random.random_range(1..=(STATE - start).min(9000));
                let bytes = vec![step | 0x80; len];
                save(&node, start.try_into().unwrap(), &bytes).unwrap();
                state[start..start + len].copy_from_slice(&bytes);
            }
        }
        let start = random.random_range(0..STATE);
        let loaded = load(&node, start.try_into().unwrap(), STATE - start).unwrap();
        assert!(loaded == state[start..], "{options}, seed {seed}, step {step}");
    }
    close(&node);
    judge(&dir, &format!("{options}, seed {seed}"));
    let reading = open_with(&dir, OpenFlags::READ_ONLY);
    assert!(load(&reading, 0, STATE).unwrap() == state, "{options}, seed {seed}, for reading");
    assert_eq!(save(&reading, 0, &[1]), Err(Error::ReadOnly));
}

#[test]
fn what_was_saved_is_loaded() {
    // One L2 table maps 32 KiB, 512 KiB, or 16 MiB.
    for options in
        ["cluster_size=512", "cluster_size=2k,compat=0.10", "cluster_size=16k,extended_l2=on"]
    {
        for seed in 0..4 {
            play(options, seed);
        }
    }
}

#[test]
fn a_longer_disk_shows_no_state() {
    let dir = made("cluster_size=512");
    let node = open(&dir);
    save(&node, 0, &[9; STATE]).unwrap();
    let grown = DISK + (64 << 10);
    block_on(node.truncate(grown, Exactness::Exact, Prealloc::Off)).unwrap();
    let tail = ByteRange::from_bounds(DISK, grown).unwrap();
    let buf = IoBuf::zeroed(64 << 10, Alignment::PAGE).unwrap();
    buf.fill(0xee);
    block_on(node.read(tail, buf.clone().into())).unwrap();
    assert!(buf.is_zero());
    close(&node);
    judge(&dir, "after growing");
}

#[test]
fn a_flush_after_a_save_makes_it_stable() {
    let dir = made("cluster_size=512");
    let node = open(&dir);
    block_on(node.flush()).unwrap();
    save(&node, 1 << 20, &[5; 700]).unwrap();
    block_on(node.flush()).unwrap();
    // As after a crash: nothing more is written back.
    let other = ImageDir::new().unwrap();
    other.write("a", &dir.bytes("a").unwrap()).unwrap();
    other.write("base", &[]).unwrap();
    let crashed = open_with(&other, OpenFlags::READ_ONLY);
    assert_eq!(load(&crashed, 1 << 20, 700).unwrap(), [5; 700]);
    close(&node);
}

#[test]
fn state_has_bounds() {
    let dir = made("cluster_size=512");
    let node = open(&dir);
    for offset in [u64::MAX, u64::MAX - 511, 1 << 62, 200 << 30] {
        assert_eq!(save(&node, offset, &[1; 512]), Err(Error::Os(libc::EFBIG)), "{offset}");
        assert_eq!(load(&node, offset, 512), Err(Error::Os(libc::EFBIG)), "{offset}");
    }
    // What was never saved takes no space, and is none.
    let before = dir.bytes("a").unwrap().len();
    assert_eq!(load(&node, 20 << 30, 512).unwrap(), [0; 512]);
    close(&node);
    assert_eq!(dir.bytes("a").unwrap().len(), before);
    judge(&dir, "what was refused");
    let file = Node::new(Arc::new(NullDriver::new(1 << 20, true)), NodeOptions::default());
    assert_eq!(save(&file, 0, &[1]), Err(Error::Unsupported));
    assert_eq!(load(&file, 0, 1), Err(Error::Unsupported));
}
