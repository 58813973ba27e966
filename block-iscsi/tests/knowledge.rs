//! What the driver believes of a medium: never an answer that is too old, nothing after the unit may have
//! become another one, and all that it may.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod kit;

use std::time::Duration;

use block_core::RequestFlags;
use block_core::driver::ReopenOptions;
use block_core::request::status::StatusDetail;
use block_core::{Error, graph};
use block_iscsi::nexus::{Data, NexusEvent, TaskError};
use block_iscsi::scsi::cdb::CdbBytes;
use block_iscsi::scsi::luns::Lun;
use block_iscsi::scsi::sense::Status;
use block_testkit::iscsi::LunConfig;
use futures::FutureExt;
use futures::future::BoxFuture;
use kit::*;

const PAGE: u64 = 64 << 10;
const LEN: usize = 64 << 10;

/// A write that was acknowledged while a question was under way, which began before or after it.
#[test]
fn an_answer_older_than_an_acknowledged_write_is_not_believed() {
    for write_is_sent_first in [false, true] {
        on(gib(), CACHED, move |world| async move {
            let other = world.clone();
            let writer = async move { other.write(PAGE, &[7; LEN]).await };
            let (mut write, writer) = if write_is_sent_first {
                let mut write = world.nexus.hold(Point::Before, |sent| sent.opcode() == WRITE10);
                let writer = world.exec.spawn("writer", writer);
                write.arrived().await;
                (Some(write), writer)
            } else {
                (None, world.exec.spawn("writer, later", async {}))
            };
            let mut question = world.nexus.hold(Point::After, Sent::is_lba_status);
            let reader = world.clone();
            // It asks about everything from the start on.
            let reader = world.exec.spawn("reader", async move { reader.read(0, PAGE).await });
            question.arrived().await;
            match write.take() {
                Some(write) => write.release(),
                None => world.write(PAGE, &[7; LEN]).await,
            }
            writer.await;
            question.release();
            assert_eq!(reader.await, [0; LEN]);
            // The answer said zeroes of that page, too; and of all others it counts.
            assert_eq!(world.read(PAGE, PAGE).await, [7; LEN]);
            assert!(world.reads_free_zeroes(0, PAGE).await);
            assert!(world.reads_free_zeroes(2 * PAGE, 4 * PAGE).await);
        });
    }
}

#[test]
fn an_answer_is_not_believed_of_what_is_being_written() {
    on(gib(), CACHED, |world| async move {
        let mut write = world.nexus.hold(Point::Before, |sent| sent.opcode() == WRITE10);
        let other = world.clone();
        let writer = world.exec.spawn("writer", async move { other.write(PAGE, &[7; LEN]).await });
        write.arrived().await;
        assert_eq!(world.read(0, PAGE).await, [0; LEN]);
        assert_eq!(world.nexus.lba_statuses(), 1);
        // Beside the write either is right, but it is not free.
        world.nexus.take_log();
        world.read(PAGE, PAGE).await;
        assert_eq!(world.nexus.count(READ10), 1);
        write.release();
        writer.await;
        assert_eq!(world.read(PAGE, PAGE).await, [7; LEN]);
    });
}

/// Two writes to a page beside a question; the later one fails.
#[test]
fn an_answer_older_than_two_writes_of_which_one_failed_is_not_believed() {
    on(gib(), CACHED, |world| async move {
        let mut question = world.nexus.hold(Point::After, Sent::is_lba_status);
        let reader = world.clone();
        let reader = world.exec.spawn("reader", async move { reader.read(0, PAGE).await });
        question.arrived().await;
        world.write(0, &[7; LEN]).await;
        world.nexus.inject(1, refuses(3, 0x0c, 0), |sent| sent.opcode() == WRITE10);
        assert_eq!(world.try_write(0, &[9; 512]).await, Err(Error::IO));
        question.release();
        reader.await;
        assert_eq!(world.read(0, PAGE).await, [7; LEN]);
    });
}

#[test]
fn a_page_written_in_part_is_data() {
    on(gib(), CACHED, |world| async move {
        assert!(world.read(0, 8 * PAGE).await.iter().all(|byte| *byte == 0));
        world.write(PAGE + 512, &[7; 512]).await;
        // Over the border of two pages, of which it covers neither.
        world.write(4 * PAGE - 512, &[8; 1024]).await;
        let all = world.read(0, 8 * PAGE).await;
        assert_eq!(all[LEN + 512..LEN + 1024], [7; 512]);
        assert_eq!(all[4 * LEN - 512..4 * LEN + 512], [8; 1024]);
        for (page, free) in [(0, true), (1, false), (2, true), (3, false), (4, false), (5, true)] {
            assert_eq!(world.reads_free_zeroes(page * PAGE, 512).await, free, "page {page}");
        }
    });
}

#[test]
fn a_write_that_failed_makes_its_pages_unknown() {
    on(gib(), CACHED, |world| async move {
        world.read(0, PAGE).await;
        let lost = Ending::Lost(TaskError::TimedOut);
        world.nexus.inject(1, lost, |sent| sent.opcode() == WRITE10);
        let failed = world.try_write(PAGE, &[7; LEN]).await;
        assert_eq!(failed.map_err(Error::errno), Err(libc::ETIMEDOUT));
        // It has arrived all the same.
        assert_eq!(world.read(PAGE, PAGE).await, [7; LEN]);
    });
}

#[test]
fn a_discard_makes_its_pages_unknown_whether_it_fails_or_not() {
    for fails in [false, true] {
        on(gib(), CACHED, move |world| async move {
            world.write(0, &[7; 2 * LEN]).await;
            if fails {
                let lost = Ending::Lost(TaskError::Unknown);
                world.nexus.inject(1, lost, |sent| sent.opcode() == UNMAP);
            }
            let discarded = world.node.discard(range(0, PAGE)).await;
            assert_eq!(discarded.is_err(), fails);
            world.nexus.take_log();
            assert_eq!(world.read(0, PAGE).await, [0; LEN]);
            assert_eq!((world.nexus.lba_statuses(), world.nexus.count(READ10)), (1, 0));
            assert_eq!(world.read(PAGE, PAGE).await, [7; LEN]);
        });
    }
}

#[test]
fn zeroes_that_were_written_need_no_read() {
    for flags in [RequestFlags::empty(), RequestFlags::MAY_UNMAP] {
        on(gib(), CACHED, move |world| async move {
            world.write(0, &[7; 4 * LEN]).await;
            world.zero(512, 3 * PAGE, flags).await;
            assert!(world.reads_free_zeroes(PAGE, 2 * PAGE).await);
            let all = world.read(0, 4 * PAGE).await;
            assert_eq!((all[511], all[512], all[3 * LEN + 511], all[3 * LEN + 512]), (7, 0, 0, 7));
        });
    }
}

/// A write beside a zero write that the target ran first and answers last.
#[test]
fn zeroes_are_not_claimed_where_somebody_wrote_meanwhile() {
    for first_is_held in [false, true] {
        on(gib(), CACHED, move |world| async move {
            let mut zeroes = world.nexus.hold(Point::After, |sent| sent.opcode() == SAME16);
            let other = world.clone();
            let zeroer = async move { other.zero(0, 4 * PAGE, RequestFlags::empty()).await };
            let zeroer = world.exec.spawn("zeroer", zeroer);
            zeroes.arrived().await;
            let mut write = world.nexus.hold(Point::After, |sent| sent.opcode() == WRITE10);
            let other = world.clone();
            let writer = async move { other.write(PAGE + 512, &[7; 512]).await };
            let writer = world.exec.spawn("writer", writer);
            write.arrived().await;
            if first_is_held {
                write.release();
                writer.await;
                zeroes.release();
                zeroer.await;
            } else {
                zeroes.release();
                zeroer.await;
                assert!(!world.reads_free_zeroes(PAGE + 512, 512).await);
                write.release();
                writer.await;
            }
            assert_eq!(world.read(PAGE + 512, 512).await, [7; 512]);
            assert!(world.reads_free_zeroes(2 * PAGE, 2 * PAGE).await);
        });
    }
}

#[test]
fn a_read_beside_a_write_gives_old_or_new_and_one_after_it_gives_new() {
    on(gib(), CACHED, |world| async move {
        assert!(world.read(0, PAGE).await.iter().all(|byte| *byte == 0));
        let mut write = world.nexus.hold(Point::After, |sent| sent.opcode() == WRITE10);
        let other = world.clone();
        let writer = world.exec.spawn("writer", async move { other.write(0, &[7; LEN]).await });
        write.arrived().await;
        // The target has it already. Who sees the new data must not see the old again.
        assert_eq!(world.read(0, PAGE).await, [7; LEN]);
        assert_eq!(world.read(0, PAGE).await, [7; LEN]);
        write.release();
        writer.await;
        assert_eq!(world.read(0, PAGE).await, [7; LEN]);
    });
}

/// Knows the whole medium to be zeroes, lets somebody else write, and then `happen` what must make it
/// ask again.
async fn forgets(world: World, happen: impl AsyncFnOnce(&World)) {
    world.read(0, PAGE).await;
    assert!(world.reads_free_zeroes(0, 1 << 20).await);
    world.nexus.they_write(512, PAGE, &[7; LEN]);
    // Nobody could know that.
    assert!(world.reads_free_zeroes(PAGE, PAGE).await);
    happen(&world).await;
    assert_eq!(world.read(PAGE, PAGE).await, [7; LEN]);
}

#[test]
fn every_unit_attention_makes_everything_unknown() {
    for (asc, ascq) in [
        (0x28, 0x00),
        (0x29, 0x00),
        (0x29, 0x07),
        (0x2a, 0x01),
        (0x2a, 0x03),
        (0x2a, 0x09),
        (0x2f, 0x00),
        (0x38, 0x07),
        (0x3f, 0x03),
        (0x3f, 0x0e),
    ] {
        // With a command of this initiator.
        on(gib(), CACHED, move |world| async move {
            let forgets = forgets(world, async |world: &World| {
                world.nexus.inject(1, refuses(6, asc, ascq), |_| true);
                world.node.flush().await.unwrap();
                world.write(1 << 29, &[1; 512]).await;
            });
            forgets.await;
        });
        // By itself.
        on(gib(), CACHED, move |world| async move {
            let forgets = forgets(world, async |world: &World| {
                let lun = Lun::from_number(LUN).unwrap();
                world.nexus.tell(&NexusEvent::Sense { lun, sense: sense(6, asc, ascq) });
            });
            forgets.await;
        });
    }
}

/// The target has told it, and tells it no second time.
#[test]
fn an_attention_that_nobody_waits_for_makes_everything_unknown() {
    type Ask = fn(&World) -> BoxFuture<'_, ()>;
    let raw: Ask = |world| {
        let cdb = CdbBytes::raw(&[0; 6]).unwrap();
        Box::pin(world.driver.execute_raw(cdb, Data::None).map(drop))
    };
    let luns: Ask = |world| Box::pin(world.driver.report_luns().map(drop));
    let reserve: Ask = |world| Box::pin(world.driver.reserve().map(drop));
    let keys: Ask = |world| Box::pin(world.driver.persistent_keys().map(drop));
    for ask in [raw, luns, reserve, keys] {
        on(gib(), CACHED, move |world| async move {
            let forgets = forgets(world, async |world: &World| {
                world.nexus.inject(1, refuses(6, 0x29, 0), |_| true);
                let mut asked = ask(world);
                assert!(futures::poll!(&mut asked).is_pending());
                drop(asked);
                world.exec.sleep(Duration::from_secs(1)).await;
                assert!(world.nexus.has_met_all());
            });
            forgets.await;
        });
    }
}

/// Whatever it was meant to say.
#[test]
fn sense_data_that_cannot_be_read_makes_everything_unknown() {
    for sense in [vec![], vec![0x70], vec![0x7f; 18]] {
        on(gib(), CACHED, move |world| async move {
            let forgets = forgets(world, async |world: &World| {
                let unread = Ending::Status(Status::CheckCondition, sense);
                world.nexus.inject(1, unread, |sent| sent.opcode() == WRITE10);
                world.try_write(1 << 29, &[1; 512]).await.unwrap_err();
            });
            forgets.await;
        });
    }
}

#[test]
fn a_reset_and_a_new_session_make_everything_unknown() {
    on(gib(), CACHED, |world| async move {
        forgets(world, async |world: &World| world.driver.reset().await.unwrap()).await;
    });
    on(gib(), CACHED, |world| async move {
        forgets(world, async |world: &World| world.nexus.tell(&NexusEvent::Reset { lun: None }))
            .await;
    });
    on(gib(), CACHED, |world| async move {
        forgets(world, async |world: &World| world.nexus.tell(&NexusEvent::Reinstated)).await;
    });
    // What happens to another unit does not matter.
    on(gib(), CACHED, |world| async move {
        world.read(0, PAGE).await;
        let lun = Lun::from_number(LUN + 1).unwrap();
        world.nexus.tell(&NexusEvent::Reset { lun: Some(lun) });
        world.nexus.tell(&NexusEvent::Sense { lun, sense: sense(6, 0x29, 0) });
        assert!(world.reads_free_zeroes(0, PAGE).await);
    });
}

#[test]
fn an_answer_from_before_a_new_session_is_not_believed() {
    on(gib(), CACHED, |world| async move {
        let mut question = world.nexus.hold(Point::After, Sent::is_lba_status);
        let reader = world.clone();
        let reader = world.exec.spawn("reader", async move { reader.read(0, PAGE).await });
        question.arrived().await;
        world.nexus.they_write(512, 0, &[7; LEN]);
        world.nexus.tell(&NexusEvent::Reinstated);
        question.release();
        reader.await;
        assert_eq!(world.read(0, PAGE).await, [7; LEN]);
    });
}

#[test]
fn invalidating_the_cache_makes_everything_unknown() {
    on(gib(), CACHED, |world| async move {
        let invalidate = async |world: &World| graph::invalidate_cache(&world.node).await.unwrap();
        forgets(world, invalidate).await;
    });
}

#[test]
fn raw_commands_that_may_write_make_everything_unknown() {
    // WRITE (10), WRITE SAME (16), UNMAP, FORMAT UNIT, EXTENDED COPY, one of a vendor.
    for opcode in [WRITE10, SAME16, UNMAP, 0x04, 0x83, 0xc5] {
        on(gib(), CACHED, move |world| async move {
            let forgets = forgets(world, async |world: &World| {
                let mut cdb = [0; 16];
                cdb[0] = opcode;
                let cdb = CdbBytes::raw(&cdb[..if opcode == 4 { 6 } else { 16 }]).unwrap();
                world.driver.execute_raw(cdb, Data::None).await.unwrap();
            });
            forgets.await;
        });
    }
}

#[test]
fn raw_commands_that_leave_the_medium_alone_are_no_reason_to_forget() {
    on(gib(), CACHED, |world| async move {
        world.read(0, PAGE).await;
        for cdb in [
            &[0, 0, 0, 0, 0, 0][..],
            &[0x12, 0, 0, 0, 36, 0],
            &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0],
            &[READ10, 0, 0, 0, 0, 0, 0, 0, 1, 0],
        ] {
            let data = Data::In(memory(512).into());
            let done = world.driver.execute_raw(CdbBytes::raw(cdb).unwrap(), data).await.unwrap();
            assert_eq!(done.status.code(), 0, "{cdb:?}");
        }
        assert!(world.reads_free_zeroes(0, PAGE).await);
        assert_eq!(CdbBytes::raw(&[0; 5]), None);
        assert_eq!(CdbBytes::raw(&[0; 17]), None);
    });
}

#[test]
fn an_answer_is_not_believed_beside_a_raw_command() {
    on(gib(), CACHED, |world| async move {
        let mut raw = world.nexus.hold(Point::Before, |sent| sent.opcode() == WRITE10);
        let driver = std::sync::Arc::clone(&world.driver);
        let writer = async move {
            let cdb = CdbBytes::raw(&[WRITE10, 0, 0, 0, 0, 128, 0, 0, 128, 0]).unwrap();
            driver.execute_raw(cdb, Data::Out(iov_of(&[7; LEN]))).await.unwrap()
        };
        let writer = world.exec.spawn("raw", writer);
        raw.arrived().await;
        world.read(0, PAGE).await;
        assert!(!world.reads_free_zeroes(0, PAGE).await);
        raw.release();
        assert_eq!(writer.await.status.code(), 0);
        assert_eq!(world.read(PAGE, PAGE).await, [7; LEN]);
        assert!(world.reads_free_zeroes(4 * PAGE, PAGE).await);
    });
}

#[test]
fn where_others_may_write_nothing_is_remembered_as_zeroes() {
    on(gib(), DIRECT, |world| async move {
        for n in 1..5 {
            assert_eq!(world.read(n * PAGE, PAGE).await, [0; LEN]);
            world.nexus.they_write(512, n * PAGE, &[7; LEN]);
            assert_eq!(world.read(n * PAGE, PAGE).await, [7; LEN]);
            assert_eq!(world.map().await[0].0, PAGE);
        }
    });
    // Nor is an answer used by who began to read after it was asked for.
    on(gib(), DIRECT, |world| async move {
        let mut question = world.nexus.hold(Point::After, Sent::is_lba_status);
        let reader = world.clone();
        let reader = world.exec.spawn("reader", async move { reader.read(0, PAGE).await });
        question.arrived().await;
        world.nexus.they_write(512, 0, &[7; LEN]);
        assert_eq!(world.read(0, PAGE).await, [7; LEN]);
        question.release();
        reader.await;
    });
    // Nor is one beside a write of this host: the target is read.
    on(gib(), DIRECT, |world| async move {
        let mut question = world.nexus.hold(Point::After, Sent::is_lba_status);
        let reader = world.clone();
        let reader = world.exec.spawn("reader", async move { reader.read(0, PAGE).await });
        question.arrived().await;
        world.write(0, &[7; LEN]).await;
        question.release();
        assert_eq!(reader.await, [7; LEN]);
    });
}

#[test]
fn a_reopen_that_changes_nothing_for_the_map_keeps_it() {
    on(gib(), CACHED, |world| async move {
        world.read(0, PAGE).await;
        let reopen = async |options| graph::reopen(&[(world.node.clone(), options)]).await.unwrap();
        for read_only in [true, false] {
            reopen(ReopenOptions { read_only: Some(read_only), ..ReopenOptions::default() }).await;
            assert_eq!(world.node.is_read_only(), read_only);
            assert!(world.reads_free_zeroes(0, PAGE).await);
        }
        reopen(ReopenOptions { direct: Some(false), ..ReopenOptions::default() }).await;
        assert!(world.reads_free_zeroes(0, PAGE).await);
        reopen(ReopenOptions { direct: Some(true), ..ReopenOptions::default() }).await;
        assert!(!world.reads_free_zeroes(0, PAGE).await);
        reopen(ReopenOptions { direct: Some(false), ..ReopenOptions::default() }).await;
        assert!(!world.reads_free_zeroes(0, PAGE).await);
        assert!(world.reads_free_zeroes(0, PAGE).await);
    });
}

#[test]
fn the_short_last_page_is_asked_about_once() {
    let blocks = 10 * 128 + 5;
    on(thin(512, blocks, 128, 0), CACHED, move |world| async move {
        let tail = 10 * PAGE;
        for n in 0..160 {
            let offset = tail + n % 5 * 512;
            assert_eq!(world.read(offset, 512).await, [0; 512]);
        }
        assert_eq!((world.nexus.lba_statuses(), world.nexus.count(READ10)), (1, 0));
        world.write(tail + 512, &[7; 512]).await;
        assert_eq!(world.read(tail, 5 * 512).await[512..1024], [7; 512]);
    });
}

#[test]
fn pages_begin_where_granules_do() {
    // Granules of 64 KiB from block 5 on; the first and the last page are short.
    on(thin(512, 1 << 20, 128, 5), CACHED, |world| async move {
        let granule = |n: u64| 5 * 512 + n * PAGE;
        world.write(granule(1), &vec![7; 3 * LEN]).await;
        world.discard(granule(2), PAGE).await;
        world.read(0, 512).await;
        assert!(world.reads_free_zeroes(0, granule(1)).await);
        assert!(world.reads_free_zeroes(granule(2), PAGE).await);
        assert!(world.reads_free_zeroes(granule(4), 10 * PAGE).await);
        assert_eq!(world.read(granule(3), PAGE).await, [7; LEN]);
        assert_eq!(world.read(granule(2) - 512, 1024).await[..512], [7; 512]);
    });
}

#[test]
fn block_status_comes_from_what_is_known() {
    on(gib(), CACHED, |world| async move {
        world.nexus.they_map(512, 4 * PAGE, 2 * PAGE);
        let found = world.map().await;
        let rest = (1 << 30) - 6 * PAGE;
        assert_eq!(found, [(4 * PAGE, true), (2 * PAGE, false), (rest, true)]);
        assert_eq!(world.nexus.lba_statuses(), 1);
        world.nexus.take_log();
        assert_eq!(world.map().await, found);
        assert!(world.nexus.take_log().is_empty());
        // What was written since is data, whatever the answer was.
        world.write(PAGE, &[7; 512]).await;
        assert_eq!(world.map().await[..2], [(PAGE, true), (PAGE, false)]);
        let detail = StatusDetail::Allocation;
        let status = world.node.block_status(range(0, 1 << 30), detail).await.unwrap();
        assert_eq!((status.len, status.is_data()), (1 << 30, true));
    });
}

#[test]
fn block_status_does_not_ask_twice_about_pages_of_small_pieces() {
    on(gib(), CACHED, |world| async move {
        for n in 0..64 {
            world.nexus.they_map(512, n * 4096, 512);
        }
        let found = world.map().await;
        assert_eq!(found[0], (4 * PAGE, false));
        assert!(world.nexus.lba_statuses() <= 2);
    });
}

/// The unit knows nothing of GET LBA STATUS, or fails it: reads go on, and it is not asked each time.
#[test]
fn a_status_that_fails_is_not_asked_for_again_and_again() {
    for (key, asc, most) in [(5, 0x20, 1), (5, 0x24, 1), (4, 0x44, 3), (3, 0x11, 3)] {
        on(gib(), CACHED, move |world| async move {
            world.nexus.inject(u32::MAX, refuses(key, asc, 0), Sent::is_lba_status);
            world.write(8 * PAGE, &[7; LEN]).await;
            for n in 0..40 {
                let value = if n == 8 { 7 } else { 0 };
                assert_eq!(world.read(n * PAGE, PAGE).await, [value; LEN]);
            }
            assert_eq!(world.map().await.iter().map(|(len, _)| len).sum::<u64>(), 1 << 30);
            assert_eq!(world.nexus.lba_statuses(), most);
            assert_eq!(world.nexus.count(READ10), 40);
            // A new session may be one with another target.
            world.nexus.tell(&NexusEvent::Reinstated);
            world.read(0, PAGE).await;
            assert_eq!(world.nexus.lba_statuses(), most + 1);
        });
    }
}

/// Answers that cannot be, and holes that have no length: tgt says so of holes of 2 TiB.
#[test]
fn a_wrong_status_leaves_the_read_to_the_target() {
    let wrong: [&[(u64, u32, u8)]; 6] = [
        &[],
        &[(0, 0, 1)],
        &[(0, 128, 1), (128, 0, 1)],
        &[(8, 128, 1)],
        &[(0, 128, 1), (136, 8, 1)],
        &[(u64::MAX, u32::MAX, 1)],
    ];
    for descriptors in wrong {
        on(gib(), CACHED, move |world| async move {
            world.nexus.they_write(512, 0, &[7; LEN]);
            world.nexus.inject(u32::MAX, tells(descriptors), Sent::is_lba_status);
            assert_eq!(world.read(0, PAGE).await, [7; LEN]);
            for n in 0..20 {
                assert_eq!(world.read(n * PAGE, 512).await[0], if n == 0 { 7 } else { 0 });
            }
            assert_eq!(world.map().await.iter().map(|(len, _)| len).sum::<u64>(), 1 << 30);
            assert!(world.nexus.lba_statuses() <= 4, "{descriptors:?}");
        });
    }
}

#[test]
fn a_hole_without_a_length_does_not_keep_others_from_being_found() {
    on(gib(), CACHED, |world| async move {
        world.nexus.inject(1, tells(&[(0, 0, 1)]), Sent::is_lba_status);
        world.read(0, PAGE).await;
        world.read(0, PAGE).await;
        assert_eq!((world.nexus.lba_statuses(), world.nexus.count(READ10)), (1, 2));
        world.read(PAGE, PAGE).await;
        assert!(world.reads_free_zeroes(PAGE, (1 << 20) - PAGE).await);
    });
}

#[test]
fn an_answer_beyond_the_end_is_cut_and_one_beyond_the_request_is_used() {
    on(gib(), CACHED, |world| async move {
        world.nexus.inject(1, tells(&[(0, u32::MAX, 1)]), Sent::is_lba_status);
        assert_eq!(world.read(0, 512).await, [0; 512]);
        assert!(world.reads_free_zeroes((1 << 30) - PAGE, PAGE).await);
        assert!(world.try_read(1 << 30, 512).await.is_ok_and(|bytes| bytes == [0; 512]));
    });
}

#[test]
fn answers_of_less_than_a_page_are_not_asked_for_again() {
    on(gib(), CACHED, |world| async move {
        world.nexus.inject(u32::MAX, tells(&[(0, 8, 1)]), Sent::is_lba_status);
        for _ in 0..10 {
            world.read(0, PAGE).await;
        }
        assert_eq!(world.nexus.lba_statuses(), 1);
    });
}

#[test]
fn a_unit_that_does_not_read_zeroes_or_is_full_has_no_map() {
    use block_testkit::iscsi::{Provisioning, Unmapped};
    let unmapped = Unmapped::Junk;
    let provisioning = Provisioning::Thin { unmapped, granularity: 128, alignment: 0 };
    let junk = LunConfig { provisioning, ..gib() };
    for config in [junk, LunConfig::thick(512, 2 << 20), LunConfig::thick(4096, 1 << 18)] {
        on(config, CACHED, |world| async move {
            for _ in 0..3 {
                world.read(0, PAGE).await;
            }
            assert_eq!((world.nexus.lba_statuses(), world.nexus.count(READ10)), (0, 3));
            assert_eq!(world.map().await, [(1 << 30, false)]);
            world.zero(0, PAGE, RequestFlags::empty()).await;
            world.read(0, PAGE).await;
            assert_eq!(world.nexus.count(READ10), 4);
        });
    }
}

#[test]
fn the_longest_unit_has_no_map_and_works() {
    let blocks = block_core::range::MAX_LEN / 512;
    on(thin(512, blocks, 1, 0), CACHED, move |world| async move {
        let last = blocks * 512 - PAGE;
        assert_eq!(world.read(last, PAGE).await, [0; LEN]);
        assert_eq!((world.nexus.lba_statuses(), world.nexus.count(READ16)), (0, 1));
        world.write(last, &[7; LEN]).await;
        assert_eq!(world.read(last, PAGE).await, [7; LEN]);
    });
}
