//! Keeps a unit busy over one session, without the driver, and says what a command costs.
//!
//! `iscsi-load URL read|write|check SIZE DEPTH SECONDS`: `check` writes blocks that say who wrote them and when,
//! reads them back, and fails if they are not the same; it is for targets that are cut off or restarted
//! meanwhile. Everything but `read` destroys what the unit holds.

#![forbid(unsafe_code)]

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use block_core::io::exec::block_on;
use block_core::{Alignment, IoBuf, IoVec, Options};
use block_iscsi::config::IscsiConfig;
use block_iscsi::initiator::{Initiator, random_isid};
use block_iscsi::nexus::{Command, Data, Nexus};
use block_iscsi::scsi::cdb::{Caching, Cdb};
use block_iscsi::scsi::luns::Lun;
use block_iscsi::scsi::sense::Status;
use block_iscsi::transport::tcp::TcpConnector;
use futures::future::try_join_all;
use rustix::time::{ClockId, clock_gettime};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const BLOCK: usize = 512;

/// Part of the unit that is used, in bytes.
const SPAN: usize = 64 << 20;

fn main() -> ExitCode {
    match run(&std::env::args().collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("iscsi-load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let [_, url, mode, size, depth, seconds] = arguments else {
        return Err("iscsi-load URL read|write|check SIZE DEPTH SECONDS".into());
    };
    let env = |name: &str| std::env::var(name).ok();
    let config = IscsiConfig::from_options(Options::filename(url.as_str()), &env, random_isid()?)?;
    let (size, depth): (usize, usize) = (size.parse()?, depth.parse()?);
    let time = Duration::from_secs_f64(seconds.parse()?);
    block_on(async {
        let connector = Arc::new(TcpConnector::new());
        let initiator = Initiator::connect(config.session, connector).await?;
        let unit = Unit { initiator, lun: config.lun };
        let (start, cpu) = (Instant::now(), cpu_now());
        let lanes = (0..depth).map(|lane| unit.lane(mode, lane, depth, size, start + time));
        let counts = try_join_all(lanes).await?;
        let (wall, cpu) = (start.elapsed(), cpu_now() - cpu);
        let count = f64::from(counts.into_iter().sum::<u32>());
        let rate = count / wall.as_secs_f64();
        let bytes = rate * f64::from(u32::try_from(size)?);
        let each = cpu.as_secs_f64() * 1e6 / count;
        println!("{rate:.0} commands/s, {:.2} GB/s, {each:.2} us of CPU each", bytes / 1e9);
        unit.initiator.close().await;
        Ok(())
    })
}

struct Unit {
    initiator: Initiator,
    lun: Lun,
}

impl Unit {
    /// One command after the other until `end`; how many.
    async fn lane(
        &self,
        mode: &str,
        lane: usize,
        lanes: usize,
        size: usize,
        end: Instant,
    ) -> Result<u32> {
        let slots = (SPAN / size / lanes).max(1);
        let buf = IoBuf::zeroed(size, Alignment::PAGE)?;
        let mut count = 0;
        while count % 16 != 0 || Instant::now() < end {
            // All over the lane's own part.
            let slot = usize::try_from(count)?.wrapping_mul(7919) % slots;
            let lba = u64::try_from((lane * slots + slot) * size / BLOCK)?;
            let blocks = u32::try_from(size / BLOCK)?;
            let read = Cdb::read(lba, blocks, Caching::DEFAULT);
            let write = Cdb::write(lba, blocks, Caching::DEFAULT);
            match mode {
                "read" => self.execute(read, Data::In(IoVec::from(buf.clone()))).await?,
                "write" => self.execute(write, Data::Out(IoVec::from(buf.clone()))).await?,
                "check" => {
                    let [low, ..] = (u64::from(count) * 251 + u64::try_from(lane)?).to_le_bytes();
                    buf.fill(low);
                    self.execute(write, Data::Out(IoVec::from(buf.clone()))).await?;
                    buf.fill(!low);
                    self.execute(read, Data::In(IoVec::from(buf.clone()))).await?;
                    if buf.to_vec().iter().any(|byte| *byte != low) {
                        return Err(format!("block {lba} is not what was written").into());
                    }
                }
                other => return Err(format!("no mode {other}").into()),
            }
            count += 1;
        }
        Ok(count)
    }

    /// Runs a command, again while the unit wants attention.
    async fn execute(&self, cdb: Cdb, data: Data) -> Result<()> {
        loop {
            let (lun, data, replay) = (self.lun, data.clone(), cdb.replay());
            let command = Command { lun, cdb: cdb.encode(), data, replay, session: None };
            let completion = self.initiator.execute(command).await?;
            match completion.status {
                Status::Good => return Ok(()),
                Status::CheckCondition
                    if completion.sense.get(2).is_some_and(|byte| byte & 0xf == UNIT_ATTENTION) => {
                }
                Status::Busy | Status::TaskSetFull => {}
                status => return Err(format!("{status:?}, sense {:02x?}", completion.sense).into()),
            }
        }
    }
}

/// A sense key, in the fixed format.
const UNIT_ATTENTION: u8 = 6;

/// What the process has used of the processors.
fn cpu_now() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let (seconds, nanos) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    Duration::new(seconds.unwrap_or(0), nanos.unwrap_or(0))
}
