//! A check that cannot fail checks nothing: each of them is shown a fault of its kind here.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use async_trait::async_trait;
use block_core::driver::BlockDriver;
use block_core::error::Result;
use block_core::node::NodeOptions;
use block_core::{BlockLimits, ByteRange, Capabilities, IoBuf, IoVec, Node, RequestFlags};
use block_testkit::disk::fault::{Fault, Rule};
use block_testkit::disk::hold::{Hold, Point};
use block_testkit::disk::mem::{MemConfig, MemDisk};
use block_testkit::disk::tap::{Kind, Tapped};
use block_testkit::disk::watch::Watch;
use block_testkit::exec::Exec;
use block_testkit::model::disk::{DiskModel, Source};
use block_testkit::model::overlap::{Claim, Overlap, Violation};
use block_testkit::op::{Op, OpId, contents, io_vec};
use block_testkit::play::Player;

fn span(start: u64, end: u64) -> ByteRange {
    ByteRange::from_bounds(start, end).unwrap()
}

/// How a driver is wrong.
#[derive(Copy, Clone, Debug)]
enum Wrong {
    /// Says that a write is done and does nothing.
    LosesWrites,
    /// Writes a sector further on.
    WritesElsewhere,
    /// Writes the sector behind the range too.
    WritesTooMuch,
    /// Leaves the last sector of a read as it was in memory.
    ReadsTooLittle,
    /// Zeroes the sector before the range too.
    ZeroesTooMuch,
}

/// A disk of sectors that is wrong in one way.
struct Broken {
    disk: Arc<MemDisk>,
    wrong: Wrong,
}

#[async_trait]
impl BlockDriver for Broken {
    fn name(&self) -> &'static str {
        "broken"
    }

    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn limits(&self) -> BlockLimits {
        self.disk.limits()
    }

    fn capabilities(&self) -> Capabilities {
        self.disk.capabilities()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    async fn preadv(self: Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        let short = match self.wrong {
            Wrong::ReadsTooLittle if range.len() > 512 => range.first(range.len() - 512),
            _ => range,
        };
        let part = iov.slice(0, usize::try_from(short.len()).unwrap());
        Arc::clone(&self.disk).preadv(short, part).await
    }

    async fn pwritev(
        self: Arc<Self>,
        range: ByteRange,
        iov: IoVec,
        flags: RequestFlags,
    ) -> Result<()> {
        let behind = ByteRange::new(range.end(), 512).unwrap();
        let disk = Arc::clone(&self.disk);
        match self.wrong {
            Wrong::LosesWrites => Ok(()),
            Wrong::WritesElsewhere => disk.pwritev(range.shifted(512).unwrap(), iov, flags).await,
            Wrong::WritesTooMuch => {
                disk.clone().pwritev(range, iov, flags).await?;
                disk.pwritev(behind, io_vec(&[7; 512], block_core::Alignment::SECTOR, 1), flags)
                    .await
            }
            _ => disk.pwritev(range, iov, flags).await,
        }
    }

    async fn pwrite_zeroes(self: Arc<Self>, range: ByteRange, flags: RequestFlags) -> Result<()> {
        let more = match self.wrong {
            Wrong::ZeroesTooMuch => span(range.offset() - 512, range.end()),
            _ => range,
        };
        Arc::clone(&self.disk).pwrite_zeroes(more, flags).await
    }
}

#[test]
fn the_model_notices_every_way_to_be_wrong() {
    let ops = [
        Op::Write { range: span(1024, 4096), flags: RequestFlags::empty(), buffers: 1 },
        Op::Zero { range: span(5120, 6144), flags: RequestFlags::empty() },
        Op::Read { range: span(0, 8192) },
    ];
    for wrong in [
        Wrong::LosesWrites,
        Wrong::WritesElsewhere,
        Wrong::WritesTooMuch,
        Wrong::ReadsTooLittle,
        Wrong::ZeroesTooMuch,
    ] {
        let play = |ops: Vec<Op>| {
            Exec::run(1, |exec| async move {
                let disk = MemConfig::new(16_384).aligned(512).build();
                disk.load(0, &contents(0, ByteRange::up_to(16_384)));
                let driver = Arc::new(Broken { disk, wrong });
                let node = Node::new(driver, NodeOptions::default());
                let model = DiskModel::new(16_384, Source::Op(0));
                Player::new(exec, node, model).play(&ops, 1).await;
            });
        };
        let result = catch_unwind(AssertUnwindSafe(|| play(ops.to_vec())));
        let message = *result.expect_err("it was not noticed").downcast::<String>().unwrap();
        assert!(message.contains("op 3: read 0x0+0x2000"), "{wrong:?}: {message}");
    }
}

/// Two unaligned writes to one block without the request layer's tickets: two tasks do their own
/// read-modify-write on the bare disk.
#[test]
fn read_modify_writes_that_run_together_are_noticed() {
    let mut noticed = 0;
    for seed in 0..20 {
        let overlap = Arc::new(Overlap::new());
        let seen = Arc::clone(&overlap);
        Exec::run(seed, |exec| async move {
            let disk = MemConfig::new(4096).aligned(512).build();
            let driver = Tapped::new(disk, Watch::new(Arc::clone(&seen)));
            let block = span(512, 1024);
            let tasks: Vec<_> = (1..=2u64)
                .map(|label| {
                    seen.declare(label, Claim::Serialising(block));
                    let (driver, seen) = (driver.clone(), Arc::clone(&seen));
                    exec.spawn_labelled(label, format!("write {label}"), async move {
                        let buf = IoBuf::zeroed(512, block_core::Alignment::SECTOR).unwrap();
                        driver.clone().preadv(block, buf.clone().into()).await.unwrap();
                        driver.pwritev(block, buf.into(), RequestFlags::empty()).await.unwrap();
                        seen.complete(label);
                    })
                })
                .collect();
            futures::future::join_all(tasks).await;
        });
        noticed += usize::from(matches!(overlap.check(), Err(Violation::Together { .. })));
    }
    assert!(noticed > 10, "noticed in {noticed} of 20 orders");
}

#[test]
fn a_request_that_breaks_a_guarantee_is_a_failure() {
    let disk = || MemConfig::new(4096).aligned(512).build();
    let memory = |len| IoVec::from(IoBuf::zeroed(len, block_core::Alignment::SECTOR).unwrap());
    let message = |run: &dyn Fn()| {
        let panic = catch_unwind(AssertUnwindSafe(run)).expect_err("it was not noticed");
        *panic.downcast::<String>().unwrap()
    };
    let read = |range, iov: IoVec| {
        message(&|| {
            let _ = futures::executor::block_on(disk().preadv(range, iov.clone()));
        })
    };
    assert!(read(span(100, 612), memory(512)).contains("is not aligned to 512"));
    assert!(read(span(0, 512), memory(1024)).contains("memory of read"));
    assert!(read(span(3584, 4608), memory(1024)).contains("beyond the end"));
    assert!(read(span(512, 512), memory(0)).contains("empty read"));
    let write = |flags| {
        message(&|| {
            let write = disk().pwritev(span(0, 512), memory(512), flags);
            let _ = futures::executor::block_on(write);
        })
    };
    assert!(write(RequestFlags::COMPRESSED).contains("COMPRESSED"));
    assert!(write(RequestFlags::SERIALISING).contains("not declared"));
}

#[test]
fn a_request_that_is_never_released_is_a_deadlock_with_its_name() {
    let stuck = Exec::try_run(9, |exec| async move {
        let hold = Hold::new();
        let disk = MemConfig::new(4096).build();
        let node = Node::new(Tapped::new(disk, hold.clone()), NodeOptions::default());
        hold.hold(Point::Before, |call| call.kind == Kind::Write);
        let model = DiskModel::new(4096, Source::Zero);
        let op = Op::Write { range: span(0, 10), flags: RequestFlags::empty(), buffers: 1 };
        Player::new(exec, node, model).play(&[op], 1).await;
    })
    .unwrap_err();
    assert_eq!((stuck.seed, stuck.pending.len()), (9, 2));
    assert!(stuck.pending[1].starts_with("op 1: write"), "{stuck}");
}

#[test]
fn a_failed_write_that_reports_success_is_noticed() {
    let result = catch_unwind(|| {
        Exec::run(1, |exec| async move {
            let fault = Fault::new();
            fault.add(Rule::new(Kind::Write));
            let disk = MemConfig::new(4096).build();
            let node = Node::new(Tapped::new(disk, fault), NodeOptions::default());
            let player = Player::new(exec, node, DiskModel::new(4096, Source::Zero));
            let op = Op::Write { range: span(0, 10), flags: RequestFlags::empty(), buffers: 1 };
            // The model hears of a success that was none.
            player.play(&[op], 1).await;
            let id: OpId = 1;
            let token = player.model().lock().begin_write(span(0, 10), Source::Op(id));
            let done = block_testkit::model::disk::Outcome::Done;
            player.model().lock().end_write(token, done);
            player.check_all().await;
        });
    });
    assert!(result.is_err());
}
