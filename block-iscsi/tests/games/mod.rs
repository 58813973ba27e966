//! The game that is played on units: against the flat disk, in any order, while things happen to the unit.
//!
//! Who plays brings the operations: random ones by a seed, or those that a fuzzer has found.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use block_core::options::OpenFlags;
use block_core::{Alignment, ByteRange, Error, RequestFlags};
use block_iscsi::nexus::{Nexus, NexusEvent};
use block_iscsi::scsi::luns::Lun;
use block_testkit::campaign::Game;
use block_testkit::exec::Exec;
use block_testkit::iscsi::{Access, LunConfig, Provisioning, Unmapped};
use block_testkit::model::disk::{DiskModel, Outcome, Source};
use block_testkit::op::{Discards, Op, OpSpace, Reopens, contents};
use block_testkit::play::{Discarded, Played, Player};

use super::kit::*;

/// A unit, and what happens to it beside requests.
#[derive(Clone, Debug)]
pub struct Setup {
    pub config: LunConfig,
    pub flags: OpenFlags,
    /// Somebody else writes, too.
    pub shared: bool,
    /// The unit is reset and tells things now and then.
    pub restless: bool,
}

impl Setup {
    fn len(&self) -> u64 {
        self.config.blocks * u64::from(self.config.block_size)
    }

    fn reads_zeroes(&self) -> bool {
        let Provisioning::Thin { unmapped, .. } = self.config.provisioning else { return true };
        unmapped == Unmapped::Zeroes
    }
}

fn thin_unit(block_size: u32, blocks: u64, granularity: u32, alignment: u32) -> LunConfig {
    let limits = LunConfig {
        max_unmap_blocks: 700,
        max_unmap_descriptors: 3,
        ..thin(block_size, blocks, granularity, alignment)
    };
    LunConfig { max_write_same: 900, max_transfer: 512, ..limits }
}

pub fn setups() -> Vec<Setup> {
    let units = [
        thin_unit(512, 2000, 8, 0),
        thin_unit(512, 2047, 24, 5),
        thin_unit(512, 2048, 9, 3),
        thin_unit(512, 1999, 1, 0),
        thin_unit(4096, 301, 2, 1),
        thin_unit(4096, 256, 3, 2),
        thin_unit(4096, 255, 1, 0),
        LunConfig::thick(512, 1500),
        LunConfig::thick(4096, 200),
    ];
    let mut setups = Vec::new();
    for config in units {
        for flags in [CACHED, DIRECT] {
            for restless in [false, true] {
                let shared = flags == DIRECT;
                setups.push(Setup { config: config.clone(), flags, shared, restless });
            }
        }
    }
    for granularity in [1, 8] {
        let unmapped = Unmapped::Junk;
        let provisioning = Provisioning::Thin { unmapped, granularity, alignment: 0 };
        let config = LunConfig { provisioning, ..LunConfig::thin(512, 1000) };
        setups.push(Setup { config, flags: CACHED, shared: false, restless: true });
    }
    setups
}

impl Setup {
    /// Operations on it.
    pub fn space(&self, max_request: u64) -> OpSpace {
        let block = u64::from(self.config.block_size);
        let (unit, shift) = match self.config.provisioning {
            Provisioning::Thick => (1, 0),
            Provisioning::Thin { granularity, alignment, .. } => (granularity, alignment),
        };
        let edges =
            [block, u64::from(unit) * block, 4096, 64 << 10, u64::from(unit + shift) * block];
        OpSpace {
            max_request,
            discards: Discards::Sometimes,
            truncates: self.reads_zeroes().then(|| self.len() + 50 * block),
            reopens: Reopens::Sometimes,
            zero_flags: RequestFlags::FUA | RequestFlags::MAY_UNMAP | RequestFlags::NO_FALLBACK,
            ..OpSpace::new(self.len(), &edges)
        }
    }

    /// Makes the operations such that a unit can do them.
    pub fn fit(&self, ops: &mut [Op]) {
        let block = u64::from(self.config.block_size);
        let align = Alignment::new(block).unwrap();
        for op in ops {
            match op {
                // The unit itself is resized, to whole blocks.
                Op::Truncate { len } => *len = (*len / block).max(20) * block,
                // What is written of a block in part would undo what somebody else writes to it meanwhile.
                Op::Write { range, .. } | Op::WriteZeroData { range } | Op::Zero { range, .. }
                    if self.shared =>
                {
                    *range = range.expand(align);
                }
                _ => {}
            }
        }
    }
}

/// Writes by somebody else begin here in the numbering of operations, which the bytes depend on.
const THEIRS: u32 = 1 << 16;
/// How often a read was answered without the target.
pub static FREE: AtomicUsize = AtomicUsize::new(0);

/// Resets the unit and lets it tell things until it is stopped.
async fn disturb(exec: Exec, current: Current, stop: Arc<AtomicUsize>) {
    let lun = Lun::from_number(LUN).unwrap();
    while stop.load(Ordering::Relaxed) == 0 {
        exec.sleep(Duration::from_micros(exec.random(30) * 1000)).await;
        let nexus = current.lock().clone();
        if nexus.is_closed() {
            continue;
        }
        match exec.random(6) {
            0 => nexus.reset(lun).await.unwrap(),
            1 => nexus.tell(&NexusEvent::Reinstated),
            2 => {
                nexus.device(|device| device.set_access(LUN, Access::ReadWrite));
            }
            3 => nexus.tell(&NexusEvent::Sense { lun, sense: sense(6, 0x38, 0x07) }),
            4 => nexus.tell(&NexusEvent::Sense { lun, sense: sense(6, 0x2a, 0x09) }),
            _ if nexus.has_met_all() && exec.random(8) == 0 => {
                let busy = block_iscsi::scsi::sense::Status::Busy;
                nexus.inject(1, Ending::Status(busy, Vec::new()), |sent| sent.opcode() != 0x12);
            }
            _ => {}
        }
    }
}

type Current = Arc<parking_lot::Mutex<Arc<MemoryNexus>>>;

/// The unit equals the flat disk, whatever happens to it meanwhile.
pub fn play(game: &Game<Setup>) -> Result<(), String> {
    let game = game.clone();
    Exec::run(game.seed, move |exec| async move {
        let setup = game.setup.clone();
        let device = device(setup.config.clone());
        let nexus = MemoryNexus::with_device(&exec, device, true);
        let world = World::around(exec.clone(), Arc::clone(&nexus), setup.flags).await;
        let start = match setup.config.provisioning {
            Provisioning::Thin { unmapped: Unmapped::Junk, .. } => 0xa5,
            _ => 0,
        };
        let bytes: Arc<[u8]> = vec![start; usize::try_from(setup.len()).unwrap()].into();
        let model = DiskModel::new(setup.len(), Source::Bytes(0, bytes));
        let player = Player::new(exec.clone(), world.node.clone(), model);
        let model = Arc::clone(player.model());
        let current = Arc::new(parking_lot::Mutex::new(Arc::clone(&nexus)));
        let block = u64::from(setup.config.block_size);
        let (host, chance, shared) = (Arc::clone(&current), exec.clone(), setup.shared);
        let announce = move |id, op: &Op| {
            let nexus = host.lock().clone();
            if let Op::Truncate { len } = op {
                nexus.device(|device| device.resize(LUN, len / block)).unwrap();
            } else if shared && chance.random(4) == 0 {
                they_write(&nexus, &model, &chance, block, THEIRS + id);
            }
        };
        let discarded =
            if setup.reads_zeroes() { Discarded::OldOrZero } else { Discarded::Anything };
        let (again, opener) = (Arc::clone(&current), exec.clone());
        let flags = setup.flags;
        let player =
            player.cutting().discards_leave(discarded).announcing(announce).reopening(move || {
                // Another session with the same device.
                let (exec, current) = (opener.clone(), Arc::clone(&again));
                Box::pin(async move {
                    let old = current.lock().clone();
                    let mut device = old.device(std::mem::take);
                    device.disconnect(US);
                    device.connect(US);
                    let nexus = MemoryNexus::with_device(&exec, device, true);
                    let driver = try_open(&exec, &nexus, flags).await?;
                    *current.lock() = nexus;
                    Ok(node_of(&driver))
                })
            });
        let stop = Arc::new(AtomicUsize::new(0));
        let disturbing = setup.restless.then(|| {
            exec.spawn("disturber", disturb(exec.clone(), Arc::clone(&current), Arc::clone(&stop)))
        });
        let played = player.play(&game.ops, game.depth).await;
        stop.store(1, Ordering::Relaxed);
        if let Some(disturbing) = disturbing {
            disturbing.await;
        }
        player.check_all().await;
        let nexus = current.lock().clone();
        nexus.take_log();
        player.check_all().await;
        if nexus.take_log().is_empty() {
            FREE.fetch_add(1, Ordering::Relaxed);
        }
        unexpected(&game.ops, &played)
    })
}

/// Somebody else writes a few blocks at once.
fn they_write(
    nexus: &MemoryNexus,
    model: &parking_lot::Mutex<DiskModel>,
    exec: &Exec,
    block: u64,
    id: u32,
) {
    let mut model = model.lock();
    let blocks = model.len() / block;
    let first = exec.random(blocks);
    let count = 1 + exec.random((blocks - first).min(20));
    let at = ByteRange::new(first * block, count * block).unwrap();
    let at = at.intersect(ByteRange::up_to(model.len()));
    let token = model.begin_write(at, Source::Op(id));
    nexus.they_write(block, at.offset(), &contents(id, at));
    model.end_write(token, Outcome::Done);
}

/// What must not fail and did.
fn unexpected(ops: &[Op], played: &[Played]) -> Result<(), String> {
    let refused = |op: &Op, error: &Error| match op {
        Op::Zero { flags, .. } => {
            flags.contains(RequestFlags::NO_FALLBACK) && *error == Error::Unsupported
        }
        _ => false,
    };
    let failed: Vec<_> = ops
        .iter()
        .zip(played)
        .filter_map(|(op, played)| match played {
            Played::Returned(Err(error)) if !refused(op, error) => Some(format!("{op:?}: {error}")),
            _ => None,
        })
        .collect();
    if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
}
