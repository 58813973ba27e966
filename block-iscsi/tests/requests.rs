//! Writes, zero writes, discards and flushes: which commands they become on which units, what becomes of
//! refusals and errors, and what a unit can do beside requests.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod kit;

use std::sync::Arc;
use std::time::Duration;

use block_core::driver::{BlockDriver, Exactness, Prealloc, ReopenOptions};
use block_core::options::OpenFlags;
use block_core::{Error, RequestFlags, graph};
use block_iscsi::driver::Compared;
use block_iscsi::nexus::{Data, NexusEvent, TaskError};
use block_iscsi::pdu::fields::Residual;
use block_iscsi::scsi::cdb::{Caching, CdbBytes};
use block_iscsi::scsi::luns::Lun;
use block_iscsi::scsi::reservation::{Persistence, ReservationType, ReserveList, ReserveOut};
use block_iscsi::scsi::sense::Status;
use block_testkit::exec::poll_times;
use block_testkit::iscsi::{Access, LunConfig};
use futures::future::BoxFuture;
use kit::*;

const PAGE: u64 = 64 << 10;
const GIB: u64 = 1 << 30;
const FUA: RequestFlags = RequestFlags::FUA;
const MAY_UNMAP: RequestFlags = RequestFlags::MAY_UNMAP;
const NO_FALLBACK: RequestFlags = RequestFlags::NO_FALLBACK;

fn is(opcode: u8) -> impl Fn(&Sent) -> bool + Send + 'static {
    move |sent| sent.opcode() == opcode
}

/// Opens a unit that answers MODE SENSE (6) with `specific` and whether it has a write cache.
async fn with_mode(world: &World, specific: u8, write_cache: bool) -> World {
    let exec = world.exec.clone();
    let nexus = MemoryNexus::new(&exec, gib());
    let forge = move |_: &mut _, data: &mut Vec<u8>| {
        data[2] = specific;
        data[6] = if write_cache { 4 } else { 0 };
    };
    nexus.inject(1, Ending::Forged(Box::new(forge)), is(0x1a));
    World::around(exec, nexus, CACHED).await
}

#[test]
fn fua_is_a_bit_where_the_unit_knows_it_and_a_flush_elsewhere() {
    on(gib(), CACHED, |world| async move {
        world.node.write(range(0, 512), iov_of(&[1; 512]), FUA).await.unwrap();
        let log = world.nexus.take_log();
        assert_eq!((log.len(), log[0].opcode(), log[0].cdb[1]), (1, WRITE10, 0x08));
        world.zero(0, 512, FUA).await;
        let opcodes: Vec<_> = world.nexus.take_log().iter().map(Sent::opcode).collect();
        assert_eq!(opcodes, [SAME16, SYNC10]);
        let world = with_mode(&world, 0, true).await;
        world.node.write(range(0, 512), iov_of(&[1; 512]), FUA).await.unwrap();
        let log = world.nexus.take_log();
        assert_eq!((log[0].opcode(), log[0].cdb[1], log[1].opcode()), (WRITE10, 0, SYNC10));
    });
}

#[test]
fn a_flush_is_a_command_only_where_there_is_a_cache() {
    on(gib(), CACHED, |world| async move {
        world.write(0, &[1; 512]).await;
        world.node.flush().await.unwrap();
        assert_eq!(world.nexus.count(SYNC10), 1);
        let world = with_mode(&world, 0x10, false).await;
        world.write(0, &[1; 512]).await;
        world.node.flush().await.unwrap();
        assert_eq!(world.nexus.count(SYNC10), 0);
        // Its mode parameters are others now: who knows.
        world.nexus.device(|device| device.set_access(LUN, Access::ReadWrite));
        world.write(0, &[1; 512]).await;
        world.node.flush().await.unwrap();
        assert_eq!(world.nexus.count(SYNC10), 1);
        // Whatever else happens may have changed them, too.
        for (asc, ascq) in [(0x29, 0), (0x2a, 0x09), (0x28, 0), (0x3f, 0x03), (0x2f, 0)] {
            let world = with_mode(&world, 0x10, false).await;
            world.nexus.inject(1, refuses(6, asc, ascq), is(WRITE10));
            world.write(0, &[1; 512]).await;
            world.node.flush().await.unwrap();
            assert_eq!(world.nexus.count(SYNC10), 1, "{asc:02x}/{ascq:02x}");
        }
    });
}

#[test]
fn a_unit_that_cannot_flush_has_no_cache_and_other_errors_are_told() {
    on(gib(), CACHED, |world| async move {
        world.nexus.inject(1, refuses(2, 0x04, 0x02), is(SYNC10));
        world.write(0, &[1; 512]).await;
        assert_eq!(world.node.flush().await.map_err(Error::errno), Err(libc::EBUSY));
        world.nexus.inject(u32::MAX, refuses(5, 0x20, 0), is(SYNC10));
        for _ in 0..3 {
            world.write(0, &[1; 512]).await;
            world.node.flush().await.unwrap();
        }
        assert_eq!(world.nexus.count(SYNC10), 2);
    });
}

/// Flushes fail from now on, also after a reopening.
async fn flushes_fail_for_good(world: &World) {
    let fails = async || {
        world.write(0, &[1; 512]).await;
        assert_eq!(world.node.flush().await, Err(Error::IO));
    };
    fails().await;
    fails().await;
    let options = ReopenOptions { read_only: Some(false), ..ReopenOptions::default() };
    let reopened = Arc::clone(&world.driver).reopen_prepare(&options).await.unwrap();
    world.driver.reopen_commit(reopened);
    fails().await;
}

#[test]
fn a_flush_that_has_lost_data_fails_for_good() {
    for key in [3, 4] {
        on(gib(), CACHED, move |world| async move {
            world.nexus.inject(1, refuses(key, 0x0c, 0), is(SYNC10));
            flushes_fail_for_good(&world).await;
        });
    }
}

/// Whoever hears of it: it is about a write that was acknowledged.
#[test]
fn a_deferred_error_makes_flushes_fail_whatever_command_met_it() {
    type Meet = fn(World) -> BoxFuture<'static, ()>;
    let ask: Meet = |world| {
        Box::pin(async move {
            world.read(0, PAGE).await;
            assert_eq!(world.nexus.lba_statuses(), 1);
        })
    };
    let resize: Meet = |world| {
        Box::pin(async move {
            let lun = Lun::from_number(LUN).unwrap();
            world.nexus.tell(&NexusEvent::Sense { lun, sense: sense(6, 0x2a, 0x09) });
            world.try_read(0, PAGE).await.unwrap_err();
        })
    };
    let write: Meet = |world| {
        Box::pin(async move {
            world.try_write(0, &[1; 512]).await.unwrap_err();
        })
    };
    let flush: Meet = |world| {
        Box::pin(async move {
            world.write(0, &[1; 512]).await;
            assert_eq!(world.node.flush().await, Err(Error::IO));
        })
    };
    let raw: Meet = |world| {
        Box::pin(async move {
            let cdb = CdbBytes::raw(&[0; 6]).unwrap();
            world.driver.execute_raw(cdb, Data::None).await.unwrap();
        })
    };
    let any: fn(&Sent) -> bool = |_| true;
    for (meet, key, at) in [
        (ask, 3, any),
        (resize, 4, any),
        (write, 3, any),
        (write, 0xd, any),
        (flush, 7, |sent| sent.opcode() == SYNC10),
        (raw, 3, any),
    ] {
        on(gib(), CACHED, move |world| async move {
            world.nexus.take_log();
            let met = Ending::Status(Status::CheckCondition, deferred(key, 0x0c, 0));
            world.nexus.inject(1, met, at);
            meet(world.clone()).await;
            assert!(world.nexus.has_met_all());
            flushes_fail_for_good(&world).await;
        });
    }
    // By itself, and where there is no cache, or the unit cannot flush.
    on(gib(), CACHED, |world| async move {
        let world = with_mode(&world, 0x10, false).await;
        world.nexus.inject(u32::MAX, refuses(5, 0x20, 0), is(SYNC10));
        let lun = Lun::from_number(LUN).unwrap();
        world.nexus.tell(&NexusEvent::Sense { lun, sense: deferred(3, 0x0c, 0) });
        flushes_fail_for_good(&world).await;
    });
    // It was told while the flush was under way.
    on(gib(), CACHED, |world| async move {
        world.write(0, &[1; 512]).await;
        let mut held = world.nexus.hold(Point::After, is(SYNC10));
        let node = world.node.clone();
        let flush = world.exec.spawn("flush", async move { node.flush().await });
        held.arrived().await;
        let met = Ending::Status(Status::CheckCondition, deferred(3, 0x0c, 0));
        world.nexus.inject(1, met, is(WRITE10));
        world.try_write(PAGE, &[1; 512]).await.unwrap_err();
        held.release();
        assert_eq!(flush.await, Err(Error::IO));
    });
}

/// The target tells a read of the loss, and then that its cache is empty. Who flushes may run first.
#[test]
fn a_flush_fails_for_a_loss_that_somebody_else_was_told_of() {
    on(gib(), CACHED, |world| async move {
        world.write(0, &[1; 512]).await;
        let met = Ending::Status(Status::CheckCondition, deferred(3, 0x0c, 0));
        world.nexus.inject(1, met, is(READ10));
        let mut read = Box::pin(world.try_read(0, 512));
        assert!(futures::poll!(&mut read).is_pending());
        world.exec.sleep(Duration::from_secs(1)).await;
        assert!(world.nexus.has_met_all());
        assert_eq!(world.node.flush().await, Err(Error::IO));
        assert_eq!(read.await, Err(Error::IO));
    });
}

#[test]
fn a_deferred_error_that_lost_nothing_is_no_reason_to_fail() {
    for key in [0, 1] {
        on(gib(), CACHED, move |world| async move {
            let met = Ending::Status(Status::CheckCondition, deferred(key, 0x17, 0));
            world.nexus.inject(1, met, is(WRITE10));
            world.write(0, &[1; 512]).await;
            world.node.flush().await.unwrap();
        });
    }
}

/// What the target refuses is tried in another way, and not tried again.
#[test]
fn refused_ways_to_write_zeroes_are_remembered() {
    let all = [SAME16, SAME10, SAME16, SAME10];
    // By the number of refusals, and by the sense code of an unknown field: one way after the other.
    for refusals in 0..4 {
        on(gib(), CACHED, move |world| async move {
            let same = |sent: &Sent| matches!(sent.opcode(), SAME10 | SAME16);
            world.write(0, &[7; 4096]).await;
            world.nexus.take_log();
            if refusals > 0 {
                world.nexus.inject(refusals, refuses(5, 0x24, 0), same);
            }
            world.zero(0, 1024, MAY_UNMAP).await;
            let sent: Vec<_> = world.nexus.take_log().iter().map(Sent::opcode).collect();
            let count = usize::try_from(refusals).unwrap() + 1;
            assert_eq!(sent, all[..count]);
            world.zero(1024, 1024, MAY_UNMAP).await;
            let sent: Vec<_> = world.nexus.take_log().iter().map(Sent::opcode).collect();
            assert_eq!(sent, [all[count - 1]]);
            let read = world.read(0, 4096).await;
            assert_eq!((&read[..2048], &read[2048..]), (&[0; 2048][..], &[7; 2048][..]));
        });
    }
}

#[test]
fn a_unit_without_write_same_gets_zeroes_as_data() {
    on(gib(), CACHED, |world| async move {
        world.write(0, &[7; 4096]).await;
        let same = |sent: &Sent| matches!(sent.opcode(), SAME10 | SAME16);
        world.nexus.inject(u32::MAX, refuses(5, 0x20, 0), same);
        world.nexus.take_log();
        for _ in 0..2 {
            world.zero(0, 1024, MAY_UNMAP).await;
        }
        let sent: Vec<_> = world.nexus.take_log().iter().map(Sent::opcode).collect();
        assert_eq!(sent, [SAME16, SAME10, WRITE10, WRITE10]);
        assert_eq!(world.read(0, 1024).await, [0; 1024]);
        let flags = MAY_UNMAP | NO_FALLBACK;
        let zeroed = world.node.write_zeroes(range(2048, 1024), flags).await;
        assert_eq!(
            (zeroed, world.read(2048, 1024).await),
            (Err(Error::Unsupported), vec![7; 1024])
        );
    });
}

#[test]
fn without_a_fallback_zeroes_are_unmapped_or_refused() {
    on(gib(), CACHED, |world| async move {
        world.write(0, &[7; 4096]).await;
        world.nexus.take_log();
        let zero = |flags| world.node.write_zeroes(range(0, 4096), flags | NO_FALLBACK);
        assert_eq!(zero(RequestFlags::empty()).await, Err(Error::Unsupported));
        assert!(world.nexus.take_log().is_empty());
        assert_eq!(zero(MAY_UNMAP).await, Ok(()));
        assert_eq!(world.nexus.count(SAME16), 1);
        // Once it has been refused, nothing else is tried.
        world.write(0, &[7; 4096]).await;
        world.nexus.inject(u32::MAX, refuses(5, 0x24, 0), is(SAME16));
        world.nexus.inject(u32::MAX, refuses(5, 0x24, 0), is(SAME10));
        assert_eq!(zero(MAY_UNMAP).await, Err(Error::Unsupported));
        assert_eq!(world.read(0, 4096).await, [7; 4096]);
    });
    on(LunConfig::thick(512, 1 << 20), CACHED, |world| async move {
        let zeroed = world.node.write_zeroes(range(0, 4096), MAY_UNMAP | NO_FALLBACK).await;
        assert_eq!((zeroed, world.nexus.take_log()), (Err(Error::Unsupported), Vec::new()));
        world.zero(0, GIB / 4, MAY_UNMAP).await;
        let log = world.nexus.take_log();
        assert_eq!((log.len(), log[0].opcode(), log[0].cdb[1]), (1, SAME16, 0));
    });
}

#[test]
fn errors_of_zero_writes_are_told() {
    on(gib(), CACHED, |world| async move {
        world.nexus.inject(1, refuses(3, 0x0c, 0), is(SAME16));
        let zeroed = world.node.write_zeroes(range(0, 4096), MAY_UNMAP).await;
        assert_eq!((zeroed, world.nexus.count(WRITE10)), (Err(Error::IO), 0));
    });
}

#[test]
fn long_zero_writes_are_cut_where_granules_begin() {
    // Granules of 24 blocks from block 5 on, and 100 blocks at a time.
    let config = LunConfig { max_write_same: 100, ..thin(512, 4096, 24, 5) };
    on(config, CACHED, |world| async move {
        let limits = world.driver.limits();
        assert_eq!((limits.pwrite_zeroes_alignment, limits.pdiscard_alignment), (None, None));
        world.write(0, &[7; 512 * 512]).await;
        world.nexus.take_log();
        world.zero(512, 300 * 512, MAY_UNMAP).await;
        let sent: Vec<_> =
            world.nexus.take_log().iter().map(|sent| (sent.lba(), sent.blocks())).collect();
        assert_eq!(sent, [(1, 100), (101, 96), (197, 96), (293, 8)]);
        let first = world.nexus.device(|device| (0..400).find(|lba| !device.is_mapped(LUN, *lba)));
        assert_eq!(first, Some(5));
        let read = world.read(0, 512 * 512).await;
        assert!(read[512..301 * 512].iter().all(|byte| *byte == 0));
        assert!(read[..512].iter().chain(&read[301 * 512..]).all(|byte| *byte == 7));
    });
}

#[test]
fn limits_below_a_granule_still_make_progress() {
    let limits = LunConfig { max_write_same: 3, max_unmap_blocks: 5, ..thin(512, 1000, 128, 0) };
    on(limits, CACHED, |world| async move {
        world.write(0, &[7; 20 * 512]).await;
        world.zero(0, 10 * 512, MAY_UNMAP).await;
        assert_eq!(world.nexus.count(SAME16), 4);
        world.discard(0, 20 * 512).await;
        assert_eq!(world.nexus.count(UNMAP), 4);
        assert_eq!(world.read(0, 10 * 512).await, [0; 10 * 512]);
    });
}

#[test]
fn a_unit_that_names_no_limit_may_refuse_a_long_write_same() {
    on(gib(), CACHED, |world| async move {
        let exec = world.exec.clone();
        let nexus = MemoryNexus::new(&exec, gib());
        let silent = |_: &mut _, page: &mut Vec<u8>| page[36..44].fill(0);
        let is_limits = |sent: &Sent| sent.opcode() == 0x12 && sent.cdb[2] == 0xb0;
        nexus.inject(1, Ending::Forged(Box::new(silent)), is_limits);
        let world = World::around(exec, nexus, CACHED).await;
        let too_long = |sent: &Sent| sent.opcode() == SAME16 && sent.blocks() > 0xffff;
        world.nexus.inject(u32::MAX, refuses(5, 0x24, 0), too_long);
        world.zero(0, 128 << 20, MAY_UNMAP).await;
        // Whole granules of 128 blocks, of 65535 at the most.
        assert_eq!((world.nexus.count(SAME16), world.nexus.count(WRITE10)), (6, 0));
    });
}

#[test]
fn discards_are_whole_granules_in_as_few_commands_as_may_be() {
    // Granules of 24 blocks from block 5 on.
    let config = LunConfig { max_unmap_blocks: 100, ..thin(512, 4096, 24, 5) };
    on(config, CACHED, |world| async move {
        world.write(0, &[7; 512 * 512]).await;
        world.nexus.take_log();
        world.discard(512, 300 * 512).await;
        let lists: Vec<_> = world.nexus.take_log().into_iter().map(|sent| sent.data).collect();
        let lba = |list: &Vec<u8>| (list[15], list[14], u16::from_be_bytes([list[18], list[19]]));
        // Block 293, which is 0x125, is where the last whole granule ends.
        assert_eq!(
            lists.iter().map(lba).collect::<Vec<_>>(),
            [(5, 0, 96), (101, 0, 96), (197, 0, 96)]
        );
        assert!(world.nexus.device(|device| !device.is_mapped(LUN, 292)));
        assert!(world.nexus.device(|device| device.is_mapped(LUN, 293)));
        // Less than a granule is nothing.
        world.nexus.take_log();
        world.discard(6 * 512, 30 * 512).await;
        assert!(world.nexus.take_log().is_empty());
    });
}

/// 5 TiB are more blocks than two descriptors can say, and a command may have one.
#[test]
fn a_discard_of_more_blocks_than_a_descriptor_can_say_is_several() {
    let config = LunConfig { max_unmap_descriptors: 1, ..LunConfig::thin(512, 5 << 31) };
    on(config, CACHED, |world| async move {
        world.write(0, &[7; 512]).await;
        world.write((5 << 40) - 512, &[7; 512]).await;
        world.nexus.take_log();
        world.discard(0, 5 << 40).await;
        let lists: Vec<_> = world.nexus.take_log().into_iter().map(|sent| sent.data).collect();
        let descriptors: Vec<usize> = lists.iter().map(|list| (list.len() - 8) / 16).collect();
        assert_eq!(descriptors, [1, 1, 1]);
        for lba in [0, (5 << 31) - 1] {
            assert!(world.nexus.device(|device| !device.is_mapped(LUN, lba)));
        }
    });
}

#[test]
fn a_discard_that_fails_is_told_and_one_that_is_refused_is_not() {
    on(gib(), CACHED, |world| async move {
        let discard = || world.node.discard(range(0, PAGE));
        world.nexus.inject(1, refuses(3, 0x0c, 0), is(UNMAP));
        assert_eq!(discard().await, Err(Error::IO));
        world.nexus.inject(1, refuses(7, 0x27, 0), is(UNMAP));
        assert_eq!(discard().await.map_err(Error::errno), Err(libc::EROFS));
        // Not this one; another one perhaps.
        world.nexus.inject(1, refuses(5, 0x26, 0), is(UNMAP));
        assert_eq!(discard().await, Ok(()));
        world.nexus.take_log();
        assert_eq!((discard().await, world.nexus.count(UNMAP)), (Ok(()), 1));
        // None at all.
        world.nexus.inject(u32::MAX, refuses(5, 0x20, 0), is(UNMAP));
        world.nexus.take_log();
        for _ in 0..3 {
            assert_eq!(discard().await, Ok(()));
        }
        assert_eq!(world.nexus.count(UNMAP), 1);
    });
}

/// As tgt answers each UNMAP: GOOD, with old sense data and a residual.
#[test]
fn a_good_unmap_with_sense_data_and_a_residual_is_good() {
    on(gib(), CACHED, |world| async move {
        world.write(0, &[7; 64 << 10]).await;
        let forge = |completion: &mut block_iscsi::nexus::Completion, _: &mut Vec<u8>| {
            completion.sense = sense(5, 0x25, 0);
            completion.residual = Residual::Underflow(24);
        };
        world.nexus.inject(1, Ending::Forged(Box::new(forge)), is(UNMAP));
        world.discard(0, PAGE).await;
        assert_eq!(world.read(0, PAGE).await, [0; 64 << 10]);
        assert_eq!(world.nexus.count(UNMAP), 1);
    });
}

#[test]
fn a_read_or_write_that_moves_less_than_all_is_an_error() {
    on(gib(), CACHED, |world| async move {
        world.write(0, &[7; 1024]).await;
        let short = |_: &mut _, data: &mut Vec<u8>| data.truncate(512);
        world.nexus.inject(1, Ending::Forged(Box::new(short)), is(READ10));
        assert_eq!(world.try_read(0, 1024).await, Err(Error::IO));
        for opcode in [READ10, WRITE10] {
            let forge = |completion: &mut block_iscsi::nexus::Completion, _: &mut Vec<u8>| {
                completion.residual = Residual::Overflow(512);
            };
            world.nexus.inject(1, Ending::Forged(Box::new(forge)), is(opcode));
        }
        assert_eq!(world.try_read(0, 1024).await, Err(Error::IO));
        assert_eq!(world.try_write(0, &[8; 1024]).await, Err(Error::IO));
        assert_eq!(world.read(0, 1024).await, [8; 1024]);
    });
}

#[test]
fn errors_say_what_happened() {
    on(gib(), CACHED, |world| async move {
        for ((key, asc, ascq), errno) in [
            ((7, 0x27, 0x07), libc::ENOSPC),
            ((7, 0x27, 0x00), libc::EROFS),
            ((3, 0x0c, 0x00), libc::EIO),
            ((4, 0x44, 0x00), libc::EIO),
            ((2, 0x3a, 0x00), libc::ENOMEDIUM),
            ((5, 0x25, 0x00), libc::ENXIO),
            ((5, 0x21, 0x00), libc::EIO),
            ((5, 0x20, 0x00), libc::EOPNOTSUPP),
            ((0xd, 0x00, 0x00), libc::ENOSPC),
        ] {
            world.nexus.inject(1, refuses(key, asc, ascq), is(WRITE10));
            let failed = world.try_write(0, &[1; 512]).await.map_err(Error::errno);
            assert_eq!(failed, Err(errno), "{key:x} {asc:02x}/{ascq:02x}");
        }
        for (error, errno) in [
            (TaskError::TimedOut, libc::ETIMEDOUT),
            (TaskError::Ended, libc::ESHUTDOWN),
            (TaskError::TargetFailure { response: 1 }, libc::EIO),
            (TaskError::Unknown, libc::ECONNRESET),
        ] {
            world.nexus.inject(1, Ending::Task(error), is(WRITE10));
            let failed = world.try_write(0, &[1; 512]).await.map_err(Error::errno);
            assert_eq!(failed, Err(errno));
        }
        let conflict = Ending::Status(Status::ReservationConflict, Vec::new());
        world.nexus.inject(1, conflict, is(WRITE10));
        let failed = world.try_write(0, &[1; 512]).await.map_err(Error::errno);
        assert_eq!(failed, Err(libc::EBUSY));
    });
}

#[test]
fn commands_of_ten_bytes_are_used_while_they_can_say_it() {
    on(thin(512, 1 << 33, 128, 0), CACHED, |world| async move {
        for (lba, write, read) in
            [(0u64, WRITE10, READ10), (0xffff_ffff, WRITE10, READ10), (1 << 32, 0x8a, READ16)]
        {
            world.nexus.take_log();
            world.write(lba * 512, &[7; 512]).await;
            assert_eq!(world.read(lba * 512, 512).await, [7; 512]);
            let log = world.nexus.take_log();
            assert_eq!((log[0].opcode(), log[1].opcode()), (write, read));
            assert_eq!((log[0].lba(), log[1].lba()), (lba, lba));
        }
    });
}

#[test]
fn the_layer_cuts_requests_to_what_the_unit_takes() {
    let config = LunConfig { max_transfer: 16, ..thin(512, 1 << 20, 128, 0) };
    on(config, CACHED, |world| async move {
        let limits = world.driver.limits();
        assert_eq!(limits.request_alignment.bytes(), 512);
        assert_eq!((limits.max_transfer, limits.opt_transfer), (Some(8192), Some(8192)));
        assert_eq!(limits.pdiscard_alignment.map(|a| a.bytes()), Some(PAGE));
        let data: Vec<u8> = (0..40_000u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
        world.write(1000, &data).await;
        assert_eq!(world.read(1000, 40_000).await, data);
        let sent = world.nexus.take_log();
        let moves = |sent: &&Sent| matches!(sent.opcode(), READ10 | WRITE10);
        assert!(sent.iter().filter(moves).all(|sent| sent.blocks() <= 16));
    });
}

#[test]
fn truncate_only_looks() {
    on(gib(), CACHED, |world| async move {
        let truncate = |len, exactness| world.node.truncate(len, exactness, Prealloc::Off);
        assert_eq!(truncate(GIB, Exactness::Exact).await, Ok(()));
        assert_eq!(truncate(GIB / 2, Exactness::AtLeast).await, Ok(()));
        assert_eq!(truncate(GIB / 2, Exactness::Exact).await, Err(Error::Unsupported));
        assert_eq!(truncate(GIB + 512, Exactness::AtLeast).await, Err(Error::Unsupported));
        let full = world.node.truncate(GIB, Exactness::Exact, Prealloc::Full).await;
        assert_eq!(full, Err(Error::Unsupported));
        world.nexus.device(|device| device.resize(LUN, 4 << 20)).unwrap();
        assert_eq!(truncate(2 * GIB, Exactness::Exact).await, Ok(()));
        assert_eq!(world.node.len(), 2 * GIB);
    });
}

#[test]
fn a_unit_that_is_protected_by_now_is_not_reopened_for_writing() {
    on(gib(), CACHED, |world| async move {
        let reopen = async |read_only| {
            let options = ReopenOptions { read_only: Some(read_only), ..ReopenOptions::default() };
            graph::reopen(&[(world.node.clone(), options)]).await
        };
        reopen(true).await.unwrap();
        world.nexus.device(|device| device.set_access(LUN, Access::ReadOnly));
        let refused = reopen(false).await.unwrap_err();
        assert!(refused.to_string().contains("Read-only file system"), "{refused}");
        assert!(world.node.is_read_only());
        world.nexus.device(|device| device.set_access(LUN, Access::ReadWrite));
        reopen(false).await.unwrap();
        world.write(0, &[1; 512]).await;
    });
}

#[test]
fn compare_and_write_writes_what_it_has_compared() {
    on(gib(), CACHED, |world| async move {
        let driver = Arc::clone(&world.driver);
        world.read(0, PAGE).await;
        let compare = async |expected: &[u8], new: &[u8]| {
            let at = range(512, u64::try_from(new.len()).unwrap());
            driver.compare_and_write(at, &iov_of(expected), &iov_of(new), Caching::DEFAULT).await
        };
        assert_eq!(compare(&[0; 1024], &[7; 1024]).await, Ok(Compared::Written));
        // It was known to be zeroes.
        assert_eq!(world.read(512, 1024).await, [7; 1024]);
        let mut other = [7; 1024];
        other[600] = 8;
        let differs = Compared::Differs { offset: Some(600) };
        assert_eq!(compare(&other, &[9; 1024]).await, Ok(differs));
        assert_eq!(world.read(512, 1024).await, [7; 1024]);
        assert_eq!(compare(&[7; 512], &[9; 1024]).await, Err(Error::Invalid));
        assert_eq!(compare(&[7; 100], &[9; 100]).await, Err(Error::Invalid));
        let long = vec![0; 256 * 512];
        assert_eq!(compare(&long, &long).await, Err(Error::Invalid));
        // Nobody knows whether it ran: it is not sent again.
        world.nexus.take_log();
        world.nexus.inject(1, Ending::Lost(TaskError::Unknown), is(0x89));
        assert!(compare(&[7; 1024], &[9; 1024]).await.is_err());
        assert_eq!(world.nexus.count(0x89), 1);
        assert_eq!(world.read(512, 1024).await, [9; 1024]);
        world.nexus.inject(1, refuses(5, 0x20, 0), is(0x89));
        assert_eq!(compare(&[9; 1024], &[1; 1024]).await, Err(Error::Unsupported));
    });
}

/// The layer counts its own writes, and skips a flush where there were none.
#[test]
fn a_flush_covers_what_was_written_beside_the_layer() {
    type Write = fn(World) -> BoxFuture<'static, ()>;
    let compare: Write = |world| {
        Box::pin(async move {
            let (at, old, new) = (range(0, 512), iov_of(&[0; 512]), iov_of(&[7; 512]));
            let compared = world.driver.compare_and_write(at, &old, &new, Caching::DEFAULT).await;
            assert_eq!(compared, Ok(Compared::Written));
        })
    };
    let raw: Write = |world| {
        Box::pin(async move {
            let cdb = CdbBytes::raw(&[WRITE10, 0, 0, 0, 0, 0, 0, 0, 1, 0]).unwrap();
            let data = Data::Out(iov_of(&[7; 512]));
            let done = world.driver.execute_raw(cdb, data).await.unwrap();
            assert_eq!(done.status, Status::Good);
        })
    };
    for write in [compare, raw] {
        on(gib(), CACHED, move |world| async move {
            write(world.clone()).await;
            world.nexus.take_log();
            // One that failed has flushed nothing.
            world.nexus.inject(1, refuses(2, 0x04, 0x02), is(SYNC10));
            assert_eq!(world.node.flush().await.map_err(Error::errno), Err(libc::EBUSY));
            for _ in 0..2 {
                world.node.flush().await.unwrap();
                assert_eq!(world.nexus.count(SYNC10), 2);
            }
        });
        on(gib(), CACHED, move |world| async move {
            write(world.clone()).await;
            graph::close(&world.node).await.unwrap();
            assert_eq!(world.nexus.count(SYNC10), 1);
        });
        // What it wrote is lost, and nobody else wrote anything.
        on(gib(), CACHED, move |world| async move {
            write(world.clone()).await;
            world.node.flush().await.unwrap();
            let lun = Lun::from_number(LUN).unwrap();
            world.nexus.tell(&NexusEvent::Sense { lun, sense: deferred(3, 0x0c, 0) });
            for _ in 0..2 {
                assert_eq!(world.node.flush().await, Err(Error::IO));
            }
        });
    }
}

#[test]
fn a_disk_that_is_opened_for_reading_is_not_compared_and_written() {
    on(gib(), OpenFlags::READ_ONLY, |world| async move {
        let (at, iov) = (range(0, 512), iov_of(&[0; 512]));
        let refused = world.driver.compare_and_write(at, &iov, &iov, Caching::DEFAULT).await;
        assert_eq!((refused, world.nexus.count(0x89)), (Err(Error::ReadOnly), 0));
    });
}

/// It may run when no flush can know of it any more.
#[test]
fn what_nobody_waits_for_is_flushed_each_time() {
    on(gib(), CACHED, |world| async move {
        let (at, old, new) = (range(0, 512), iov_of(&[0; 512]), iov_of(&[7; 512]));
        let compare = world.driver.compare_and_write(at, &old, &new, Caching::DEFAULT);
        assert!(poll_times(Box::pin(compare), 1).await.is_none());
        for count in 1..3 {
            world.node.flush().await.unwrap();
            assert_eq!(world.nexus.count(SYNC10), count);
        }
    });
}

/// As `cache=unsafe` has it.
#[test]
fn a_flush_that_stops_at_the_driver_sends_nothing() {
    on(gib(), OpenFlags { no_flush: true, ..CACHED }, |world| async move {
        let (at, old, new) = (range(0, 512), iov_of(&[0; 512]), iov_of(&[7; 512]));
        world.driver.compare_and_write(at, &old, &new, Caching::DEFAULT).await.unwrap();
        world.node.flush().await.unwrap();
        assert_eq!(world.nexus.count(SYNC10), 0);
        let options = ReopenOptions { no_flush: Some(false), ..ReopenOptions::default() };
        graph::reopen(&[(world.node.clone(), options)]).await.unwrap();
        world.node.flush().await.unwrap();
        assert_eq!(world.nexus.count(SYNC10), 1, "it does not stop there any more");
    });
}

#[test]
fn reservations_keep_others_out() {
    on(gib(), CACHED, |world| async move {
        let driver = &world.driver;
        let theirs = || world.nexus.theirs(&[WRITE10, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[1; 512]).status;
        driver.reserve().await.unwrap();
        assert_eq!(theirs(), 0x18);
        driver.release().await.unwrap();
        assert_eq!(theirs(), 0);
        let persistence = Persistence::UntilPowerLoss;
        let list = |key, action_key| ReserveList { key, action_key, persistence };
        driver.persistent_reserve(ReserveOut::Register, &list(0, 9)).await.unwrap();
        let kind = ReservationType::WriteExclusive;
        driver.persistent_reserve(ReserveOut::Reserve(kind), &list(9, 0)).await.unwrap();
        assert_eq!(driver.persistent_keys().await.unwrap().keys, [9]);
        let holder = driver.persistent_reservation().await.unwrap().holder.unwrap();
        assert_eq!((holder.key, holder.kind), (9, kind));
        assert!(driver.persistent_capabilities().await.unwrap().types.is_some());
        assert_eq!(theirs(), 0x18);
        driver.persistent_reserve(ReserveOut::Clear, &list(9, 0)).await.unwrap();
        assert_eq!(theirs(), 0);
        assert_eq!(driver.report_luns().await.unwrap().len(), 1);
        assert_eq!(driver.designators().await.unwrap().len(), 2);
    });
}

#[test]
fn closing_ends_the_session() {
    on(gib(), CACHED, |world| async move {
        world.write(0, &[1; 512]).await;
        graph::close(&world.node).await.unwrap();
        assert!(world.nexus.is_closed());
        assert_eq!(world.nexus.count(SYNC10), 1);
    });
}
