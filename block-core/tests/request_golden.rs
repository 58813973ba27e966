//! The layer sends exactly these requests down: golden text, one file a theme.
//!
//! `UPDATE_GOLDEN=1 cargo test -p block-core --test request_golden` rewrites the files; read the
//! difference before it is committed.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod request_support;

use std::fmt::Write as _;

use block_core::RequestFlags;
use block_core::flags::Support;
use block_core::node::DetectZeroes;
use block_testkit::disk::mem::UnalignedZeroes;
use block_testkit::exec::Exec;
use block_testkit::golden;
use block_testkit::model::disk::{DiskModel, Source};
use block_testkit::op::Op;
use block_testkit::play::Player;
use request_support::{Shape, align, recorded, shape, span};

const NONE: RequestFlags = RequestFlags::empty();

/// What each operation sends down, one after the other, on a disk of this shape.
fn scene(text: &mut String, title: &str, shape: &Shape, ops: &[Op]) {
    writeln!(text, "# {title}").unwrap();
    for op in ops {
        let (shape, op_ran) = (shape.clone(), op.clone());
        let down = Exec::run(0, |exec| async move {
            let (_, node, record) = recorded(&shape);
            let model = DiskModel::new(node.len(), Source::Zero);
            let player = Player::new(exec, node, model);
            let played = player.play(&[op_ran], 1).await;
            let down = record.take_text();
            if shape.config.len <= 1 << 20 {
                player.check_all().await;
            }
            (down, played)
        });
        writeln!(text, "{op:?}").unwrap();
        down.0.lines().for_each(|line| writeln!(text, "    {line}").unwrap());
        if let block_testkit::play::Played::Returned(Err(error)) = down.1[0] {
            writeln!(text, "  = {error}").unwrap();
        }
    }
    text.push('\n');
}

fn read(start: u64, end: u64) -> Op {
    Op::Read { range: span(start, end) }
}

fn write(start: u64, end: u64, flags: RequestFlags) -> Op {
    Op::Write { range: span(start, end), flags, buffers: 1 }
}

fn zero(start: u64, end: u64, flags: RequestFlags) -> Op {
    Op::Zero { range: span(start, end), flags }
}

fn discard(start: u64, end: u64) -> Op {
    Op::Discard { range: span(start, end) }
}

fn plain(request_alignment: u64) -> Shape {
    let mut shape = shape("bytes");
    shape.config.len = 65_536;
    shape.config = shape.config.aligned(request_alignment);
    shape
}

#[test]
fn padding() {
    let mut text = String::new();
    let shape = plain(512);
    let reads = [
        read(512, 1024),
        read(513, 1024),
        read(512, 1023),
        read(600, 700),
        read(600, 3000),
        read(65_000, 65_536),
        read(65_000, 66_000),
        read(70_000, 71_000),
        read(100, 100),
    ];
    scene(&mut text, "reads of blocks of 512: one padded read", &shape, &reads);
    let writes = [
        write(512, 1024, NONE),
        write(600, 700, NONE),
        write(600, 1024, NONE),
        write(512, 1000, NONE),
        write(600, 1500, NONE),
        write(600, 3000, NONE),
        write(100, 100, NONE),
        write(65_000, 66_000, NONE),
    ];
    scene(
        &mut text,
        "writes: the blocks that are not whole are read, then one write",
        &shape,
        &writes,
    );
    let mut any_memory = plain(512);
    any_memory.config.limits.min_mem_alignment = align(1);
    let spliced = [read(600, 3000), write(600, 3000, NONE)];
    scene(&mut text, "any memory will do: whole blocks are not copied", &any_memory, &spliced);
    let mut ragged = plain(512);
    ragged.config.len = 1000;
    let at_the_end = [write(900, 1000, NONE), read(900, 1000), read(0, 4096)];
    scene(&mut text, "a disk of 1000 bytes", &ragged, &at_the_end);
    golden::check(env!("CARGO_MANIFEST_DIR"), "padding.txt", &text);
}

#[test]
fn fragments() {
    let mut text = String::new();
    let mut shape = plain(512);
    shape.config.limits.max_transfer = Some(2000);
    let ops = [
        read(0, 5120),
        write(0, 5120, NONE),
        write(0, 1536, RequestFlags::FUA),
        write(100, 5000, NONE),
    ];
    scene(&mut text, "max_transfer of 2000 bytes: three blocks at a time", &shape, &ops);
    let mut shape = plain(512);
    shape.config.limits.max_iov = 2;
    let many = |start, end| Op::Write { range: span(start, end), flags: NONE, buffers: 3 };
    let two = Op::Write { range: span(0, 1536), flags: NONE, buffers: 2 };
    scene(&mut text, "at most two buffers", &shape, &[two, many(0, 1536), many(100, 3000)]);
    golden::check(env!("CARGO_MANIFEST_DIR"), "fragments.txt", &text);
}

#[test]
fn fua_and_flushes() {
    let mut text = String::new();
    let mut shape = plain(512);
    shape.config.limits.max_transfer = Some(1024);
    let ops = [write(0, 3072, RequestFlags::FUA), write(100, 200, RequestFlags::FUA)];
    scene(&mut text, "a driver with FUA", &shape, &ops);
    shape.config.capabilities.write_fua = Support::Emulated;
    scene(&mut text, "one without: a flush after the last fragment", &shape, &ops);
    let zeroes = [zero(0, 4096, RequestFlags::FUA), zero(100, 4000, RequestFlags::FUA)];
    shape.config.capabilities.zeroes_fua = Support::Emulated;
    scene(&mut text, "zeroes without FUA: one flush for all parts", &shape, &zeroes);
    scene(&mut text, "a flush with nothing written", &shape, &[Op::Flush]);
    shape.options.no_flush = true;
    scene(&mut text, "no_flush: flushes stop at the driver", &shape, &[Op::Flush, ops[0].clone()]);
    golden::check(env!("CARGO_MANIFEST_DIR"), "fua.txt", &text);
}

#[test]
fn zeroes() {
    let mut text = String::new();
    let mut shape = plain(512);
    shape.config.limits.pwrite_zeroes_alignment = Some(align(1536));
    shape.config.limits.max_pwrite_zeroes = Some(4000);
    shape.config.unaligned_zeroes = UnalignedZeroes::Refuse;
    let ops = [
        zero(1536, 3072, NONE),
        zero(1024, 10_240, NONE),
        zero(1024, 1536, NONE),
        zero(2048, 2560, NONE),
        zero(1000, 10_000, NONE),
        zero(1600, 1700, NONE),
        zero(0, 4608, RequestFlags::MAY_UNMAP | RequestFlags::FUA),
    ];
    scene(&mut text, "alignment 1536, at most 4000, refuses other pieces", &shape, &ops);
    let no_fallback = RequestFlags::NO_FALLBACK;
    let ops = [
        zero(0, 6144, no_fallback),
        zero(0, 5120, no_fallback),
        zero(512, 6144, no_fallback),
        zero(100, 6144, no_fallback),
        zero(512, 5120, no_fallback),
    ];
    scene(
        &mut text,
        "the same without a fallback: done, or refused with nothing changed",
        &shape,
        &ops,
    );
    let mut shape = plain(512);
    shape.config.capabilities.write_zeroes = Support::Emulated;
    shape.config.capabilities.zeroes_no_fallback = Support::None;
    shape.config.limits.max_transfer = Some(8192);
    let ops = [zero(0, 20_480, NONE), zero(100, 20_000, NONE), zero(0, 512, no_fallback)];
    scene(&mut text, "no zero writes: one zero buffer of max_transfer", &shape, &ops);
    shape.config.len = 40 << 20;
    shape.config.step = None;
    shape.config.limits.max_transfer = None;
    let huge = [zero(0, 40 << 20, NONE)];
    scene(&mut text, "the zero buffer is never more than 16 MiB", &shape, &huge);
    let mut shape = plain(512);
    shape.options.unmap = false;
    let unmap = [zero(0, 512, RequestFlags::MAY_UNMAP)];
    scene(&mut text, "a node that was not opened with unmap", &shape, &unmap);
    golden::check(env!("CARGO_MANIFEST_DIR"), "zeroes.txt", &text);
}

#[test]
fn detected_zeroes() {
    let mut text = String::new();
    let mut shape = plain(512);
    let ops = [
        Op::WriteZeroData { range: span(0, 4096) },
        Op::WriteZeroData { range: span(100, 4096) },
        write(0, 4096, NONE),
    ];
    scene(&mut text, "off", &shape, &ops);
    shape.options.detect_zeroes = DetectZeroes::On;
    scene(&mut text, "on", &shape, &ops);
    shape.options.detect_zeroes = DetectZeroes::Unmap;
    scene(&mut text, "unmap", &shape, &ops);
    shape.config.capabilities.write_zeroes = Support::None;
    scene(&mut text, "unmap, on a driver without zero writes", &shape, &ops);
    golden::check(env!("CARGO_MANIFEST_DIR"), "detected_zeroes.txt", &text);
}

#[test]
fn discards() {
    let mut text = String::new();
    let mut shape = plain(512);
    shape.config.limits.pdiscard_alignment = Some(align(1536));
    shape.config.limits.max_pdiscard = Some(4000);
    let ops = [
        discard(1536, 3072),
        discard(1024, 10_240),
        discard(1000, 10_000),
        discard(600, 700),
        discard(65_024, 65_536),
        discard(65_024, 66_048),
    ];
    scene(&mut text, "alignment 1536, at most 4000", &shape, &ops);
    shape.options.unmap = false;
    scene(&mut text, "a node that was not opened with unmap", &shape, &ops[..1]);
    shape.options.unmap = true;
    shape.config.capabilities.discard = Support::None;
    scene(&mut text, "a driver without discards", &shape, &ops[..1]);
    golden::check(env!("CARGO_MANIFEST_DIR"), "discards.txt", &text);
}

#[test]
fn truncates() {
    let mut text = String::new();
    let mut shape = plain(512);
    let ops = [Op::Truncate { len: 100_000 }, Op::Truncate { len: 1000 }];
    scene(&mut text, "lengths", &shape, &ops);
    shape.config.capabilities.truncate = Support::None;
    scene(&mut text, "a driver that cannot", &shape, &ops[..1]);
    let mut growing = plain(512);
    growing.config.len = 1000;
    growing.config.capabilities.grows_on_write = true;
    let ops = [
        write(1000, 1024, NONE),
        write(1000, 1500, NONE),
        write(2048, 2560, NONE),
        zero(2000, 3000, NONE),
    ];
    scene(&mut text, "a disk of 1000 bytes that grows by writes", &growing, &ops);
    golden::check(env!("CARGO_MANIFEST_DIR"), "lengths.txt", &text);
}
