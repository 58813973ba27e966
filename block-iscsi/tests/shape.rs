//! Units that become longer or shorter, or get other blocks, while they are in use: every request hears of it
//! before a command names blocks that mean something else by now.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod kit;

use std::time::Duration;

use block_core::driver::{Exactness, Prealloc};
use block_core::{Error, RequestFlags};
use block_iscsi::nexus::{Data, NexusEvent};
use block_iscsi::scsi::cdb::{Caching, CdbBytes};
use futures::future::BoxFuture;
use kit::*;

const PAGE: u64 = 64 << 10;
const LEN: usize = 64 << 10;

/// A unit that has grown, and a length that it does not have.
#[test]
fn a_truncate_that_is_refused_after_growth_leaves_a_map_of_the_new_length() {
    on(gib(), CACHED, |world| async move {
        world.read(0, PAGE).await;
        world.nexus.device(|device| device.resize(LUN, 4 << 20)).unwrap();
        let truncated = world.node.truncate(3 << 30, Exactness::Exact, Prealloc::Off).await;
        assert_eq!(truncated, Err(Error::Unsupported));
        assert_eq!(world.node.len(), 2 << 30);
        let last = (2 << 30) - PAGE;
        assert_eq!(world.read(last, PAGE).await, [0; LEN]);
        assert!(world.reads_free_zeroes(last, PAGE).await);
        world.write(last, &[7; LEN]).await;
        assert_eq!(world.read(last, PAGE).await, [7; LEN]);
    });
}

#[test]
fn a_unit_that_says_that_it_has_another_length_is_believed() {
    on(gib(), CACHED, |world| async move {
        world.read(0, PAGE).await;
        for blocks in [3 << 20, 1 << 20, 5000] {
            world.nexus.device(|device| device.resize(LUN, blocks)).unwrap();
            // Who hears of it asks before the command is sent again.
            world.nexus.take_log();
            world.write(0, &[1; 512]).await;
            let log = world.nexus.take_log();
            assert!(log.len() == 3 && log[1].is_capacity(), "{log:?}");
            assert_eq!(world.node.len(), blocks * 512);
            let tail = blocks * 512 - 512;
            assert_eq!(world.read(tail, 512).await, [0; 512]);
            assert!(world.reads_free_zeroes(tail, 512).await);
            assert!(world.try_write(blocks * 512, &[1; 512]).await.is_err());
        }
    });
}

#[test]
fn a_unit_with_other_blocks_than_before_is_not_served() {
    on(gib(), CACHED, |world| async move {
        world.write(0, &[7; 512]).await;
        let forge = |_: &mut _, data: &mut Vec<u8>| data[8..12].copy_from_slice(&[0, 0, 16, 0]);
        world.nexus.inject(u32::MAX, Ending::Forged(Box::new(forge)), Sent::is_capacity);
        world.nexus.inject(1, refuses(6, 0x2a, 0x09), |sent| sent.opcode() == READ10);
        assert_eq!(world.try_read(0, 512).await, Err(Error::IO));
        assert_eq!(world.try_read(0, 512).await, Err(Error::IO));
        assert_eq!(world.try_write(0, &[1; 512]).await, Err(Error::IO));
        assert_eq!(world.try_read(PAGE, 512).await, Err(Error::IO));
    });
}

#[test]
fn a_unit_whose_blocks_are_the_old_ones_again_is_served_again() {
    on(gib(), CACHED, |world| async move {
        world.write(0, &[7; 512]).await;
        let forge = |_: &mut _, data: &mut Vec<u8>| data[8..12].copy_from_slice(&[0, 0, 16, 0]);
        world.nexus.inject(1, Ending::Forged(Box::new(forge)), Sent::is_capacity);
        world.nexus.tell(&NexusEvent::Reinstated);
        assert_eq!(world.try_read(0, 512).await, Err(Error::IO));
        assert_eq!(world.read(0, 512).await, [7; 512]);
    });
}

/// Every command that names blocks, when it hears that they are others now.
#[test]
fn no_command_is_sent_again_to_blocks_that_are_others_by_now() {
    type Request = fn(World) -> BoxFuture<'static, Result<(), Error>>;
    let read: Request = |world| Box::pin(async move { world.try_read(0, 512).await.map(drop) });
    let write: Request = |world| Box::pin(async move { world.try_write(0, &[1; 512]).await });
    let zero: Request =
        |world| Box::pin(async move { world.node.write_zeroes(range(0, PAGE), FLAGS).await });
    let discard: Request =
        |world| Box::pin(async move { world.node.discard(range(0, PAGE)).await });
    let compare: Request = |world| {
        Box::pin(async move {
            let (at, iov) = (range(0, 512), iov_of(&[7; 512]));
            world.driver.compare_and_write(at, &iov, &iov, Caching::DEFAULT).await.map(drop)
        })
    };
    const FLAGS: RequestFlags = RequestFlags::MAY_UNMAP;
    let requests =
        [(read, READ10), (write, WRITE10), (zero, SAME16), (discard, UNMAP), (compare, 0x89)];
    for (request, opcode) in requests {
        on(gib(), CACHED, move |world| async move {
            world.write(0, &[7; 512]).await;
            world.nexus.take_log();
            let forge = |_: &mut _, data: &mut Vec<u8>| data[8..12].copy_from_slice(&[0, 0, 16, 0]);
            world.nexus.inject(u32::MAX, Ending::Forged(Box::new(forge)), Sent::is_capacity);
            world.nexus.inject(1, refuses(6, 0x29, 0), move |sent| sent.opcode() == opcode);
            assert_eq!(request(world.clone()).await, Err(Error::IO));
            let opcodes: Vec<_> = world.nexus.take_log().iter().map(Sent::opcode).collect();
            assert_eq!(opcodes, [opcode, 0x9e]);
            assert_eq!(request(world.clone()).await, Err(Error::IO));
            let log = world.nexus.take_log();
            assert!(log.len() == 1 && log[0].is_capacity(), "{log:?}");
        });
    }
}

/// A target that was away says of all that happened meanwhile that it was reset.
#[test]
fn whatever_happens_to_a_unit_may_have_changed_its_length() {
    let asked_after = |happen: fn(&World), most: usize| {
        on(gib(), CACHED, move |world| async move {
            world.write(0, &[7; LEN]).await;
            happen(&world);
            world.nexus.take_log();
            for _ in 0..3 {
                world.read(0, 512).await;
            }
            let log = world.nexus.take_log();
            assert_eq!(log.iter().filter(|sent| sent.is_capacity()).count(), most);
        });
    };
    asked_after(|world| world.nexus.tell(&NexusEvent::Reinstated), 1);
    asked_after(|world| world.nexus.tell(&NexusEvent::Reset { lun: None }), 1);
    for (asc, ascq, asks) in [
        (0x29, 0x00, 1),
        (0x29, 0x07, 1),
        (0x2a, 0x01, 1),
        (0x2a, 0x09, 1),
        (0x28, 0x00, 1),
        (0x3f, 0x03, 1),
        (0x2f, 0x00, 1),
        (0x2a, 0x03, 0),
        (0x38, 0x07, 0),
        (0x3f, 0x0e, 0),
    ] {
        on(gib(), CACHED, move |world| async move {
            world.write(0, &[7; LEN]).await;
            world.nexus.inject(1, refuses(6, asc, ascq), |sent| sent.opcode() == READ10);
            world.nexus.take_log();
            for _ in 0..3 {
                world.read(0, 512).await;
            }
            let log = world.nexus.take_log();
            let asked = log.iter().filter(|sent| sent.is_capacity()).count();
            assert_eq!(asked, asks, "{asc:02x}/{ascq:02x}");
        });
    }
}

#[test]
fn all_requests_wait_for_the_new_length() {
    on(gib(), CACHED, |world| async move {
        world.nexus.tell(&NexusEvent::Reinstated);
        let mut question = world.nexus.hold(Point::After, Sent::is_capacity);
        let writer = |page: u64| {
            let other = world.clone();
            world.exec.spawn("writer", async move { other.write(page * PAGE, &[7; LEN]).await })
        };
        let first = writer(0);
        question.arrived().await;
        let second = writer(1);
        world.exec.sleep(Duration::from_secs(1)).await;
        assert_eq!(world.nexus.count(WRITE10), 0);
        question.release();
        first.await;
        second.await;
        let log = world.nexus.take_log();
        assert_eq!(log.iter().filter(|sent| sent.is_capacity()).count(), 1);
    });
}

/// A read hears of it, and whoever writes runs before the reader does.
#[test]
fn no_command_is_sent_after_an_attention_that_somebody_else_was_told_of() {
    for (asc, ascq) in [(0x2a, 0x09), (0x29, 0x00)] {
        on(gib(), CACHED, move |world| async move {
            world.write(0, &[7; LEN]).await;
            world.nexus.take_log();
            world.nexus.inject(1, refuses(6, asc, ascq), |sent| sent.opcode() == READ10);
            let mut read = Box::pin(world.read(0, 512));
            assert!(futures::poll!(&mut read).is_pending());
            world.exec.sleep(Duration::from_secs(1)).await;
            world.write(PAGE, &[7; 512]).await;
            let opcodes: Vec<_> = world.nexus.take_log().iter().map(Sent::opcode).collect();
            assert_eq!(opcodes, [READ10, 0x9e, WRITE10], "{asc:02x}/{ascq:02x}");
            assert_eq!(read.await, [7; 512]);
        });
    }
}

/// FORMAT UNIT, say.
#[test]
fn a_raw_command_that_nobody_waits_for_any_more_may_have_changed_the_shape() {
    on(gib(), CACHED, |world| async move {
        world.read(0, 512).await;
        let _held = world.nexus.hold(Point::Before, |sent| sent.opcode() == 0x04);
        let cdb = CdbBytes::raw(&[4, 0, 0, 0, 0, 0]).unwrap();
        let mut raw = Box::pin(world.driver.execute_raw(cdb, Data::None));
        assert!(futures::poll!(&mut raw).is_pending());
        drop(raw);
        world.nexus.take_log();
        world.read(0, 512).await;
        assert!(world.nexus.take_log()[0].is_capacity());
    });
}

/// They would have shared the answer. Whoever comes later asks anew.
#[test]
fn all_requests_that_wait_for_an_answer_share_its_failure() {
    on(gib(), CACHED, |world| async move {
        world.nexus.tell(&NexusEvent::Reinstated);
        let mut question = world.nexus.hold(Point::Before, Sent::is_capacity);
        world.nexus.inject(1, refuses(2, 0x3a, 0), Sent::is_capacity);
        let writer = |page: u64| {
            let other = world.clone();
            let write = async move { other.try_write(page * PAGE, &[7; LEN]).await };
            world.exec.spawn("writer", write)
        };
        let writers: Vec<_> = (0..8).map(writer).collect();
        question.arrived().await;
        world.exec.sleep(Duration::from_secs(30)).await;
        question.release();
        for writer in writers {
            assert_eq!(writer.await.map_err(Error::errno), Err(libc::ENOMEDIUM));
        }
        let log = world.nexus.take_log();
        assert!(log.len() == 1 && log[0].is_capacity(), "{log:?}");
        world.write(0, &[7; LEN]).await;
    });
}

#[test]
fn nothing_is_sent_while_the_length_cannot_be_asked_for() {
    on(gib(), CACHED, |world| async move {
        world.write(0, &[7; LEN]).await;
        world.nexus.tell(&NexusEvent::Reinstated);
        world.nexus.inject(1, refuses(2, 0x3a, 0), Sent::is_capacity);
        let failed = world.try_read(0, PAGE).await.map_err(Error::errno);
        assert_eq!((failed, world.nexus.count(READ10)), (Err(libc::ENOMEDIUM), 0));
        assert_eq!(world.read(0, PAGE).await, [7; LEN]);
    });
}

/// An event while the capacity is asked for: the answer may be from before it.
#[test]
fn an_answer_about_the_length_from_before_an_event_is_not_enough() {
    on(gib(), CACHED, |world| async move {
        world.nexus.tell(&NexusEvent::Reinstated);
        let mut question = world.nexus.hold(Point::After, Sent::is_capacity);
        let other = world.clone();
        let writer = async move { other.try_write(PAGE, &[7; 512]).await };
        let writer = world.exec.spawn("writer", writer);
        question.arrived().await;
        let forge = |_: &mut _, data: &mut Vec<u8>| data[8..12].copy_from_slice(&[0, 0, 16, 0]);
        world.nexus.inject(u32::MAX, Ending::Forged(Box::new(forge)), Sent::is_capacity);
        world.nexus.tell(&NexusEvent::Reinstated);
        question.release();
        assert_eq!(writer.await, Err(Error::IO));
        assert_eq!(world.nexus.count(WRITE10), 0);
    });
}

#[test]
fn a_unit_that_no_longer_reads_zeroes_is_not_believed_to() {
    // Without LBPRZ, without LBPME.
    for lost in [0x40, 0x80] {
        on(gib(), CACHED, move |world| async move {
            world.read(0, PAGE).await;
            assert!(world.reads_free_zeroes(0, 1 << 20).await);
            let forge = move |_: &mut _, data: &mut Vec<u8>| data[14] &= !lost;
            world.nexus.inject(1, Ending::Forged(Box::new(forge)), Sent::is_capacity);
            world.nexus.tell(&NexusEvent::Reinstated);
            for _ in 0..2 {
                world.read(0, PAGE).await;
                assert_eq!((world.nexus.lba_statuses(), world.nexus.count(READ10)), (0, 1));
                world.zero(0, PAGE, RequestFlags::MAY_UNMAP).await;
                let log = world.nexus.take_log();
                let same = log.last().unwrap();
                assert_eq!((same.opcode(), same.cdb[1] & 0x18), (SAME16, 0));
                assert_eq!(world.map().await, [(1 << 30, false)]);
                // It may say what it likes now.
                world.nexus.tell(&NexusEvent::Reinstated);
            }
        });
    }
}
