//! One logical unit: which commands are sent again, how fast, how often, and who hears of what.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod kit;

use std::sync::Arc;
use std::time::Duration;

use block_iscsi::nexus::{Data, Nexus, NexusEvent, TaskError};
use block_iscsi::pdu::reject::RejectReason;
use block_iscsi::scsi::cdb::{Caching, CdbBytes, Replay, WhichOpcodes};
use block_iscsi::scsi::luns::Lun;
use block_iscsi::scsi::opcodes::Support;
use block_iscsi::scsi::sense::{Attention, SenseCode, SenseKey, Status};
use block_iscsi::unit::{Retries, Unit, UnitError, UnitEvent};
use block_testkit::exec::Exec;
use kit::*;
use parking_lot::Mutex;

/// A unit whose first unit attention is over, and what it has told.
struct Bench {
    exec: Exec,
    nexus: Arc<MemoryNexus>,
    unit: Arc<Unit>,
    heard: Arc<Mutex<Vec<UnitEvent>>>,
}

fn bench<F: Future<Output = ()> + Send>(test: impl FnOnce(Bench) -> F + Send + 'static) {
    Exec::run(5, |exec| async move {
        let nexus = MemoryNexus::new(&exec, gib());
        let sleep = Arc::new(VirtualSleep(exec.clone()));
        let lun = Lun::from_number(LUN).unwrap();
        let unit = Unit::new(Arc::clone(&nexus) as Arc<dyn Nexus>, lun, sleep, Retries::default());
        unit.test_ready().await.unwrap();
        nexus.take_log();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hearing = Arc::clone(&heard);
        unit.listen(Arc::new(move |event| hearing.lock().push(event)));
        test(Bench { exec, nexus, unit, heard }).await;
    });
}

fn any(_: &Sent) -> bool {
    true
}

#[test]
fn unit_attentions_are_told_before_the_command_is_sent_again() {
    bench(|bench| async move {
        bench.nexus.inject(1, refuses(6, 0x2a, 0x09), any);
        bench.nexus.inject(1, refuses(6, 0x29, 0x00), any);
        let heard = Arc::clone(&bench.heard);
        let (nexus, seen) = (Arc::clone(&bench.nexus), Arc::new(Mutex::new(Vec::new())));
        let counts = Arc::clone(&seen);
        // Before each try, how many events had been told.
        let count = move |_: &Sent| {
            counts.lock().push(heard.lock().len());
            false
        };
        drop(nexus.hold(Point::Before, count));
        bench.unit.test_ready().await.unwrap();
        assert_eq!(*seen.lock(), [0, 1, 2]);
        let told = [Attention::Capacity, Attention::Reset].map(UnitEvent::Attention);
        assert_eq!(*bench.heard.lock(), told);
        assert_eq!((bench.nexus.count(0), bench.exec.now()), (3, Duration::ZERO));
    });
}

#[test]
fn what_passes_by_itself_is_waited_for_longer_each_time() {
    for status in [Status::Busy, Status::TaskSetFull] {
        bench(move |bench| async move {
            bench.nexus.inject(10, Ending::Status(status, Vec::new()), any);
            bench.unit.test_ready().await.unwrap();
            assert_eq!(bench.nexus.count(0), 11);
            // 10 ms, 20 ms and so on, at most 2 s.
            let waited = Duration::from_millis(10 * 255 + 2 * 2000);
            assert_eq!(bench.exec.now(), waited);
            assert!(bench.heard.lock().is_empty());
        });
    }
}

#[test]
fn trying_again_has_an_end() {
    bench(|bench| async move {
        bench.nexus.inject(u32::MAX, Ending::Status(Status::Busy, Vec::new()), any);
        let busy = UnitError::Status { opcode: 0, status: Status::Busy };
        assert_eq!(bench.unit.test_ready().await, Err(busy));
        assert!(bench.exec.now() <= Duration::from_secs(60), "{:?}", bench.exec.now());
        assert!(bench.nexus.count(0) <= 32);
    });
    bench(|bench| async move {
        bench.nexus.inject(u32::MAX, refuses(6, 0x29, 0), any);
        let Err(UnitError::Sense { sense, .. }) = bench.unit.test_ready().await else {
            panic!("an attention");
        };
        assert_eq!((sense.key, bench.nexus.count(0)), (SenseKey::UnitAttention, 32));
    });
}

/// The session was away for ten minutes: the first thing that the unit says then is a unit attention,
/// and that is no reason to fail.
#[test]
fn the_time_that_a_command_waits_for_its_session_is_no_time_of_trying() {
    bench(|bench| async move {
        let mut held = bench.nexus.hold(Point::Before, any);
        bench.nexus.inject(1, refuses(6, 0x29, 0), any);
        bench.nexus.inject(1, Ending::Status(Status::Busy, Vec::new()), any);
        let back = async {
            held.arrived().await;
            bench.exec.sleep(Duration::from_secs(600)).await;
            held.release();
        };
        let (done, ()) = futures::join!(bench.unit.test_ready(), back);
        assert_eq!((done, bench.nexus.count(0)), (Ok(()), 3));
    });
}

#[test]
fn what_will_end_the_same_way_is_not_sent_again() {
    for (key, asc) in [(3, 0x11), (4, 0x44), (5, 0x20), (5, 0x24), (7, 0x27), (0xe, 0x1d)] {
        bench(move |bench| async move {
            bench.nexus.inject(u32::MAX, refuses(key, asc, 0), any);
            let Err(UnitError::Sense { sense, opcode: 0 }) = bench.unit.test_ready().await else {
                panic!("sense data");
            };
            assert_eq!(sense.code, SenseCode { asc, ascq: 0 });
            assert_eq!(bench.nexus.count(0), 1);
        });
    }
    bench(|bench| async move {
        // Without sense data, nobody knows.
        bench.nexus.inject(1, Ending::Status(Status::CheckCondition, Vec::new()), any);
        let failed = UnitError::Status { opcode: 0, status: Status::CheckCondition };
        assert_eq!(bench.unit.test_ready().await, Err(failed));
    });
}

#[test]
fn a_command_that_must_not_run_twice_is_only_sent_again_if_it_did_not_run() {
    let data = || iov_of(&[0; 1024]);
    let compare = move |unit: Arc<Unit>| async move {
        unit.compare_and_write(0, 1, data(), Caching::DEFAULT).await
    };
    bench(move |bench| async move {
        bench.nexus.inject(1, refuses(6, 0x2f, 0), any);
        bench.nexus.inject(1, Ending::Status(Status::Busy, Vec::new()), any);
        compare(Arc::clone(&bench.unit)).await.unwrap();
        assert_eq!(bench.nexus.count(0x89), 3);
    });
    let unsure = [
        || Ending::Lost(TaskError::Aborted),
        || Ending::Lost(TaskError::Unknown),
        || Ending::Status(Status::TaskAborted, Vec::new()),
        || refuses(0xb, 0x47, 0x05),
    ];
    for ending in unsure {
        bench(move |bench| async move {
            bench.nexus.inject(1, ending(), any);
            compare(Arc::clone(&bench.unit)).await.unwrap_err();
            assert_eq!(bench.nexus.count(0x89), 1);
        });
        // A read may run as often as it likes; but a session that does not know has given up.
        bench(move |bench| async move {
            bench.nexus.inject(1, ending(), any);
            let read = bench.unit.read(0, 1, iov_of(&[1; 512]), Caching::DEFAULT).await;
            let unknown = UnitError::Task { opcode: READ10, error: TaskError::Unknown };
            assert!(read.is_ok() || read == Err(unknown));
        });
    }
}

/// The session hands it back only if it may run again. One that each connection is lost with is given up.
#[test]
fn a_command_that_a_new_session_hands_back_is_sent_again() {
    let back = |sent| Ending::Task(TaskError::Reinstated { sent });
    bench(move |bench| async move {
        bench.nexus.inject(1, back(true), any);
        bench.nexus.inject(100, back(false), any);
        let data = iov_of(&[0; 1024]);
        bench.unit.compare_and_write(0, 1, data, Caching::DEFAULT).await.unwrap();
        assert_eq!((bench.nexus.count(0x89), bench.exec.now()), (102, Duration::ZERO));
        bench.nexus.take_log();
        bench.nexus.inject(u32::MAX, back(true), any);
        let lost = TaskError::Reinstated { sent: true };
        let failed = UnitError::Task { opcode: READ10, error: lost };
        let read = bench.unit.read(0, 1, iov_of(&[1; 512]), Caching::DEFAULT).await;
        assert_eq!((read, bench.nexus.count(READ10)), (Err(failed), 32));
    });
}

#[test]
fn commands_that_the_target_rejects_for_now_are_sent_later() {
    bench(|bench| async move {
        let later = TaskError::Rejected { reason: RejectReason::LongOperation };
        bench.nexus.inject(2, Ending::Task(later), any);
        bench.unit.test_ready().await.unwrap();
        assert_eq!((bench.nexus.count(0), bench.exec.now()), (3, Duration::from_millis(30)));
        let never = TaskError::Rejected { reason: RejectReason::ProtocolError };
        bench.nexus.inject(1, Ending::Task(never.clone()), any);
        let failed = UnitError::Task { opcode: 0, error: never };
        assert_eq!(bench.unit.test_ready().await, Err(failed));
    });
}

#[test]
fn what_a_reset_aborts_is_sent_again() {
    bench(|bench| async move {
        let mut held = bench.nexus.hold(Point::Before, |sent| sent.opcode() == READ10);
        let unit = Arc::clone(&bench.unit);
        let reader = async move { unit.read(0, 1, iov_of(&[1; 512]), Caching::DEFAULT).await };
        let reader = bench.exec.spawn("reader", reader);
        held.arrived().await;
        bench.unit.reset().await.unwrap();
        held.release();
        assert_eq!(reader.await, Ok(()));
        assert_eq!(bench.heard.lock()[0], UnitEvent::Reset);
    });
}

#[test]
fn events_of_the_session_are_told_if_they_are_about_the_unit() {
    bench(|bench| async move {
        let unit = Arc::clone(&bench.unit);
        let [ours, other] = [LUN, LUN + 1].map(|number| Lun::from_number(number).unwrap());
        let attention = |lun| NexusEvent::Sense { lun, sense: sense(6, 0x3f, 0x03) };
        for event in [
            NexusEvent::Reinstated,
            NexusEvent::Reset { lun: None },
            NexusEvent::Reset { lun: Some(unit.lun()) },
            NexusEvent::Reset { lun: Some(other) },
            attention(ours),
            attention(other),
            NexusEvent::Sense { lun: ours, sense: sense(5, 0x20, 0) },
            NexusEvent::Sense { lun: ours, sense: deferred(3, 0x0c, 0) },
            NexusEvent::Sense { lun: other, sense: deferred(3, 0x0c, 0) },
            NexusEvent::Sense { lun: ours, sense: deferred(1, 0x0c, 0) },
            NexusEvent::Sense { lun: ours, sense: vec![1, 2] },
        ] {
            bench.nexus.tell(&event);
        }
        let told = [
            UnitEvent::Reinstated,
            UnitEvent::Reset,
            UnitEvent::Reset,
            UnitEvent::Attention(Attention::Inquiry),
            UnitEvent::WriteLost,
            UnitEvent::Attention(Attention::Other),
        ];
        assert_eq!(*bench.heard.lock(), told);
    });
}

#[test]
fn commands_of_others_are_sent_once_and_as_they_are() {
    bench(|bench| async move {
        bench.nexus.inject(1, refuses(6, 0x29, 0), any);
        let cdb = CdbBytes::raw(&[0; 6]).unwrap();
        let done = bench.unit.pass_through(cdb, Replay::Safe, Data::None).await.unwrap();
        assert_eq!((done.status, bench.nexus.count(0)), (Status::CheckCondition, 1));
        assert_eq!(*bench.heard.lock(), [UnitEvent::Attention(Attention::Reset)]);
    });
}

#[test]
fn a_unit_says_which_commands_it_knows() {
    bench(|bench| async move {
        let known = bench.unit.knows(WhichOpcodes::One(UNMAP)).await.unwrap();
        assert_eq!((known.support, known.usage[0]), (Support::Standard, UNMAP));
        let unknown = bench.unit.knows(WhichOpcodes::One(0xc0)).await.unwrap();
        assert_eq!(unknown.support, Support::No);
        let characteristics = bench.unit.characteristics().await.unwrap();
        assert!(!characteristics.fua_is_for_volatile_caches);
    });
}
