//! How many commands the driver sends for work that is known: reads of empty and half empty media, zero
//! writes, discards.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod kit;

use block_core::RequestFlags;
use block_testkit::exec::yield_now;
use kit::*;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Reads `len` bytes from the start on, and says how many GET LBA STATUS and READ that took.
async fn read_through(world: &World, len: u64, piece: u64) -> (usize, usize) {
    world.nexus.take_log();
    let buf = memory(piece);
    for offset in (0..len).step_by(usize::try_from(piece).unwrap()) {
        world.node.read(range(offset, piece), buf.clone().into()).await.unwrap();
    }
    (world.nexus.lba_statuses(), world.nexus.count(READ10))
}

#[test]
fn an_empty_gib_read_twice_takes_one_question() {
    on(gib(), CACHED, |world| async move {
        assert_eq!(read_through(&world, GIB, 64 * KIB).await, (1, 0));
        assert_eq!(read_through(&world, GIB, 64 * KIB).await, (0, 0));
        assert!(world.nexus.take_log().is_empty());
    });
}

#[test]
fn a_unit_that_names_no_granularity_has_a_map_too() {
    // As tgt does: the granularity is one block, or nothing is said of it.
    on(thin(512, 2 << 20, 1, 0), CACHED, |world| async move {
        assert_eq!(read_through(&world, GIB, 64 * KIB).await, (1, 0));
    });
    on(gib(), CACHED, |world| async move {
        let exec = world.exec.clone();
        let nexus = MemoryNexus::new(&exec, gib());
        let silent = |_: &mut _, page: &mut Vec<u8>| page[28..36].fill(0);
        let is_limits = |sent: &Sent| sent.opcode() == 0x12 && sent.cdb[2] == 0xb0;
        nexus.inject(1, Ending::Forged(Box::new(silent)), is_limits);
        let world = World::around(exec, nexus, CACHED).await;
        assert_eq!(read_through(&world, GIB, 64 * KIB).await, (1, 0));
    });
}

#[test]
fn short_reads_of_an_empty_medium_take_a_handful_of_questions() {
    on(gib(), CACHED, |world| async move {
        assert_eq!(read_through(&world, 128 * MIB, 4 * KIB).await, (1, 0));
    });
}

/// Maps every other 64 KiB of `len` bytes behind the driver's back.
fn half_full(world: &World, len: u64) {
    for offset in (0..len).step_by(128 << 10) {
        world.nexus.they_map(512, offset, 512);
    }
}

#[test]
fn every_descriptor_of_an_answer_is_used() {
    // Granules of 64 KiB, each second of which holds data; a quarter of a GiB of them.
    on(gib(), CACHED, |world| async move {
        let len = 256 * MIB;
        for offset in (0..len).step_by(128 << 10) {
            world.nexus.they_map(512, offset, 64 * KIB);
        }
        let (asked, read) = read_through(&world, len, 64 * KIB).await;
        assert!(asked <= 17, "{asked} questions");
        assert_eq!(read, 2048);
        assert_eq!(read_through(&world, len, 64 * KIB).await, (0, 2048));
    });
}

#[test]
fn pages_that_are_data_in_part_are_not_asked_about_again() {
    on(gib(), CACHED, |world| async move {
        half_full(&world, 16 * MIB);
        let (asked, read) = read_through(&world, 16 * MIB, 64 * KIB).await;
        assert!(asked <= 2, "{asked} questions");
        assert_eq!(read, 128);
        assert_eq!(read_through(&world, 16 * MIB, 64 * KIB).await, (0, 128));
    });
}

#[test]
fn without_the_cache_each_long_read_of_a_hole_asks_and_short_ones_read() {
    on(gib(), DIRECT, |world| async move {
        assert_eq!(read_through(&world, 16 * MIB, 64 * KIB).await, (256, 0));
        assert_eq!(read_through(&world, 16 * MIB, 64 * KIB).await, (256, 0));
        assert_eq!(read_through(&world, MIB, 4 * KIB).await, (0, 256));
        for offset in (0..16 * MIB).step_by(128 << 10) {
            world.nexus.they_map(512, offset, 64 * KIB);
        }
        let (asked, read) = read_through(&world, 16 * MIB, 64 * KIB).await;
        assert!(asked <= 256 && read == 128, "{asked} questions, {read} reads");
        let (asked, read) = read_through(&world, 16 * MIB, 64 * KIB).await;
        assert_eq!((asked, read), (128, 128));
    });
}

#[test]
fn a_gib_is_zeroed_and_discarded_by_one_command_each() {
    on(gib(), CACHED, |world| async move {
        world.zero(0, GIB, RequestFlags::MAY_UNMAP).await;
        let log = world.nexus.take_log();
        assert_eq!((log.len(), log[0].opcode(), log[0].blocks()), (1, SAME16, 2 << 20));
        assert_eq!(log[0].cdb[1], 0x08);
        world.discard(0, GIB).await;
        let log = world.nexus.take_log();
        assert_eq!((log.len(), log[0].opcode()), (1, UNMAP));
        world.zero(0, GIB, RequestFlags::empty()).await;
        let log = world.nexus.take_log();
        assert_eq!((log.len(), log[0].opcode(), log[0].cdb[1]), (1, SAME16, 0));
    });
}

#[test]
fn many_short_reads_of_a_medium_of_small_pieces_do_not_ask_each_time() {
    // A target that tells one extent at a time, of a medium whose pages are data and zeroes in turn.
    on(gib(), CACHED, |world| async move {
        for offset in (0..64 * MIB).step_by(128 << 10) {
            world.nexus.they_map(512, offset, 64 * KIB);
        }
        let one = |_: &mut _, data: &mut Vec<u8>| {
            data.truncate(24);
            data[..4].copy_from_slice(&20u32.to_be_bytes());
        };
        world.nexus.inject(u32::MAX, Ending::Forged(Box::new(one)), Sent::is_lba_status);
        let (mut asked, mut read) = (0, 0);
        for offset in (64 * KIB..64 * MIB).step_by(128 << 10) {
            // The piece that holds data before the hole, so that no answer saves anything.
            world.nexus.take_log();
            world.read(offset - 64 * KIB, 4 * KIB).await;
            asked += world.nexus.lba_statuses();
            read += world.nexus.count(READ10);
        }
        assert_eq!(read, 512);
        assert!(asked <= 16, "{asked} questions");
    });
}

#[test]
fn readers_side_by_side_share_a_question() {
    on(gib(), CACHED, |world| async move {
        let mut held = world.nexus.hold(Point::After, Sent::is_lba_status);
        let reader = |n: u64| {
            let reader = world.clone();
            let read = async move { reader.read(n * 64 * KIB, 64 * KIB).await };
            world.exec.spawn(format!("reader {n}"), read)
        };
        let mut readers = vec![reader(0)];
        held.arrived().await;
        readers.extend((1..32).map(reader));
        for _ in 0..200 {
            yield_now().await;
        }
        held.release();
        for reader in readers {
            reader.await;
        }
        assert_eq!((world.nexus.lba_statuses(), world.nexus.count(READ10)), (1, 0));
    });
}
