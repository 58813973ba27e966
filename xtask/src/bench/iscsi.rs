//! iSCSI: how many commands reading takes, and how fast commands go, beside QEMU's driver and libiscsi.
//!
//! The target is the test kit's, in memory and in a process of its own, so that the initiators are what
//! is measured. QEMU takes part if it has its iSCSI module.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::contender::run_completed;
use super::report::Goal;
use super::{Programs, Scale, median, number};
use crate::failure::{Failure, Result};
use crate::served::{Counts, Served};
use crate::{run, setup};

/// A thin unit whose granule is 64 KiB, so that QEMU has a map, too.
const THIN: &str = "thin:1G,granularity=128";
const THIN_SMALL: &str = "thin:128M,granularity=128";
/// A unit that nobody can answer for but the target.
const THICK: &str = "thick:1G";

/// Measures all of it whose name contains `only`.
pub(super) fn measure(programs: &Programs, scale: Scale, only: &str) -> Result<String> {
    setup::peers(&[setup::LIBISCSI])?;
    let target = run::example(run::RELEASE, "block-testkit", "iscsi-target")?;
    let mut text = count(programs, &target, only)?;
    text += &time(programs, &target, scale, only)?;
    Ok(text)
}

/// Who is asked to read.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Who {
    BlockImg,
    QemuImg,
    Libiscsi,
}

impl Who {
    fn name(self) -> &'static str {
        match self {
            Self::BlockImg => "block-img",
            Self::QemuImg => "qemu-img",
            Self::Libiscsi => "iscsi-perf",
        }
    }

    fn img(self, programs: &Programs) -> PathBuf {
        match self {
            Self::BlockImg => programs.block_img.clone(),
            Self::QemuImg | Self::Libiscsi => PathBuf::from("qemu-img"),
        }
    }

    fn io(self, programs: &Programs) -> PathBuf {
        match self {
            Self::BlockImg => programs.block_img.with_file_name("block-io"),
            Self::QemuImg | Self::Libiscsi => PathBuf::from("qemu-io"),
        }
    }
}

/// Whether qemu-img knows iSCSI here: without its module it does not know the protocol.
fn has_qemu() -> bool {
    let tried =
        run::output(run::command("qemu-img").args(["info", "iscsi://127.0.0.1:1/iqn.x:y/0"]));
    tried.is_ok_and(|output| !String::from_utf8_lossy(&output.stderr).contains("Unknown protocol"))
}

/// What commands are counted for.
struct Work {
    name: &'static str,
    unit: &'static str,
    before: &'static [&'static str],
    run: Run,
}

/// How it is done.
enum Run {
    /// Reads of these many bytes, one behind the other, so many times; with what cache.
    Bench { len: u64, count: u64, cache: &'static str },
    /// A command of qemu-io.
    Io(&'static str),
}

const EVERY_OTHER: &[&str] =
    &["bench", "-q", "-w", "-f", "raw", "-s", "65536", "-S", "131072", "-c", "8192"];

const COUNTED: [Work; 7] = [
    Work {
        name: "empty, 64 KiB reads, twice",
        unit: THIN,
        before: &[],
        run: Run::Bench { len: 65536, count: 32768, cache: "writeback" },
    },
    Work {
        name: "the same, cache.direct",
        unit: THIN,
        before: &[],
        run: Run::Bench { len: 65536, count: 32768, cache: "none" },
    },
    Work {
        name: "empty 128 MiB, 4 KiB reads, twice",
        unit: THIN_SMALL,
        before: &[],
        run: Run::Bench { len: 4096, count: 65536, cache: "writeback" },
    },
    Work {
        name: "every other 64 KiB allocated, 64 KiB reads, twice",
        unit: THIN,
        before: EVERY_OTHER,
        run: Run::Bench { len: 65536, count: 32768, cache: "writeback" },
    },
    Work {
        name: "the same, cache.direct",
        unit: THIN,
        before: EVERY_OTHER,
        run: Run::Bench { len: 65536, count: 32768, cache: "none" },
    },
    Work { name: "write zeroes, 1 GiB", unit: THIN, before: &[], run: Run::Io("write -z 0 1G") },
    Work { name: "discard, 1 GiB", unit: THIN, before: &[], run: Run::Io("discard 0 1G") },
];

impl Work {
    fn count(&self, programs: &Programs, target: &Path, who: Who) -> Result<Counts> {
        let served = Served::start(target, &[self.unit])?;
        let url = served.url(0);
        if !self.before.is_empty() {
            run::stdout(run::command(&programs.block_img).args(self.before).arg(&url))?;
        }
        let mut command = match &self.run {
            Run::Bench { len, count, cache } => {
                let mut command = run::command(who.img(programs));
                command.args(["bench", "-f", "raw", "-t", cache, "-d", "1"]);
                command.args(["-s", &len.to_string(), "-S", &len.to_string()]);
                command.args(["-c", &count.to_string()]);
                command
            }
            Run::Io(line) => {
                let mut command = run::command(who.io(programs));
                command.args(["-f", "raw", "-d", "unmap", "-t", "writeback", "-c", line]);
                command
            }
        };
        run::stdout(command.arg(&url))?;
        served.stop()
    }
}

/// The kinds of commands that the table tells apart, by what the target prints of them.
const KINDS: [(&str, &[&str]); 5] = [
    ("GET LBA STATUS", &["0x9e/0x12"]),
    ("READ", &["0x08", "0x28", "0x88", "0xa8"]),
    ("WRITE SAME", &["0x41", "0x93"]),
    ("UNMAP", &["0x42"]),
    ("WRITE", &["0x2a", "0x8a"]),
];

fn count_of(counts: &Counts, kind: &[&str]) -> u64 {
    counts.iter().filter(|(name, _)| kind.contains(&name.as_str())).map(|(_, count)| count).sum()
}

/// The table of commands.
fn count(programs: &Programs, target: &Path, only: &str) -> Result<String> {
    let mut text =
        "\n## iSCSI: commands on the wire\n\nA thin unit of 1 GiB with granules of 64 KiB, as the \
        target counts them. Writes are those that allocated before.\n\n| work | who | "
            .to_owned();
    text += &KINDS.map(|(name, _)| name).join(" | ");
    text += " |\n|---|---|---|---|---|---|---|\n";
    let mut contenders = vec![Who::BlockImg];
    contenders.extend(has_qemu().then_some(Who::QemuImg));
    for work in COUNTED.iter().filter(|work| work.name.contains(only)) {
        eprintln!("bench: iSCSI commands: {}", work.name);
        for who in &contenders {
            let counts = work.count(programs, target, *who)?;
            let cells = KINDS.map(|(_, kind)| count_of(&counts, kind).to_string());
            text += &format!("| {} | {} | {} |\n", work.name, who.name(), cells.join(" | "));
        }
    }
    Ok(text)
}

/// What is timed.
struct Load {
    name: &'static str,
    len: u64,
    depth: u64,
    count: u64,
    /// From one request to the next.
    step: u64,
}

/// Far from the last one, and visits every block.
const FAR: u64 = 663_556_096;

fn timed(scale: Scale) -> [Load; 4] {
    let load = |name, len, depth, real, quick, step| {
        let count = scale.choose(real, quick);
        Load { name, len, depth, count, step }
    };
    [
        load("random 4 KiB, QD1", 4096, 1, 200_000, 5_000, FAR),
        load("random 4 KiB, QD32", 4096, 32, 500_000, 10_000, FAR),
        load("sequential 256 KiB, QD1", 256 << 10, 1, 40_000, 1_000, 256 << 10),
        load("sequential 256 KiB, QD8", 256 << 10, 8, 40_000, 1_000, 256 << 10),
    ]
}

impl Load {
    fn command(&self, programs: &Programs, who: Who, url: &str, scale: Scale) -> Command {
        if who == Who::Libiscsi {
            let mut command = run::command("iscsi-perf");
            command.args(["-t", scale.choose("3", "1"), "-m", &self.depth.to_string()]);
            command.args(["-b", &(self.len / 512).to_string()]);
            if self.step == FAR {
                command.arg("-r");
            }
            command.arg(url);
            return command;
        }
        let mut command = run::command(who.img(programs));
        command.args(["bench", "-f", "raw", "-t", "writeback"]);
        // qemu-img is slower, and needs no more requests for as long a run.
        let count = if who == Who::QemuImg { self.count / 2 } else { self.count };
        for (option, value) in
            [("-c", count), ("-d", self.depth), ("-s", self.len), ("-S", self.step)]
        {
            command.args([option, &value.to_string()]);
        }
        command.arg(url);
        command
    }

    fn sample(&self, programs: &Programs, who: Who, url: &str, scale: Scale) -> Result<Sample> {
        let value = programs.measure(&self.command(programs, who, url, scale), &run::root())?;
        let cpu = number(&value, "user_seconds")? + number(&value, "system_seconds")?;
        let (count, seconds) = match who {
            Who::Libiscsi => {
                let seconds = scale.choose(3.0, 1.0);
                (iops_average(&value)? * seconds, seconds)
            }
            Who::BlockImg => (self.count_of(who), run_completed(&value)?),
            Who::QemuImg => (self.count_of(who), run_completed(&value)?),
        };
        Ok(Sample { iops: count / seconds, cpu_us: cpu * 1e6 / count })
    }

    #[allow(clippy::cast_precision_loss, reason = "counts")]
    fn count_of(&self, who: Who) -> f64 {
        let count = if who == Who::QemuImg { self.count / 2 } else { self.count };
        count as f64
    }
}

#[derive(Copy, Clone)]
struct Sample {
    iops: f64,
    cpu_us: f64,
}

/// The number of `iops average 1234 (5 MB/s)`, the last time that it is printed.
fn iops_average(value: &Value) -> Result<f64> {
    let text = value["stdout"].as_str().unwrap_or_default();
    let after = text.rsplit("iops average ").next().unwrap_or_default();
    let iops = after.split_whitespace().next().unwrap_or_default();
    iops.parse().map_err(|_| Failure::Output {
        command: "iscsi-perf".to_owned(),
        problem: format!("no `iops average`: {text}"),
    })
}

/// The table of times.
fn time(programs: &Programs, target: &Path, scale: Scale, only: &str) -> Result<String> {
    let mut text =
        "\n## iSCSI: speed\n\nReads of a thick unit in memory over TCP on the loopback interface; \
        client's CPU per request.\n\n\
        | load | who | requests/s | CPU, us | of iscsi-perf | goal |\n|---|---|---|---|---|---|\n"
            .to_owned();
    let mut contenders = vec![Who::Libiscsi, Who::BlockImg];
    contenders.extend(has_qemu().then_some(Who::QemuImg));
    let served = Served::start(target, &[THICK])?;
    let url = served.url(0);
    for load in timed(scale).iter().filter(|load| load.name.contains(only)) {
        eprintln!("bench: iSCSI: {}", load.name);
        let mut samples: Vec<Vec<Sample>> = contenders.iter().map(|_| Vec::new()).collect();
        for round in 0..scale.rounds {
            for at in 0..contenders.len() {
                let at = (at + round) % contenders.len();
                samples[at].push(load.sample(programs, contenders[at], &url, scale)?);
            }
        }
        let iops = |at: usize| median(samples[at].iter().map(|sample: &Sample| sample.iops));
        let goal = Goal::at_least(1.0, Who::Libiscsi);
        for (at, who) in contenders.iter().enumerate() {
            let cpu = median(samples[at].iter().map(|sample| sample.cpu_us));
            let ratio = iops(at) / iops(0);
            let verdict = match who {
                Who::BlockImg => {
                    format!("{}: {}", goal.words("iscsi-perf"), goal.verdict(Some(ratio)))
                }
                _ => String::new(),
            };
            text += &format!(
                "| {} | {} | {:.0} | {cpu:.1} | {ratio:.2} | {verdict} |\n",
                load.name,
                who.name(),
                iops(at)
            );
        }
    }
    drop(served.stop()?);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_last_average_of_iscsi_perf_counts() {
        let printed = "iops average 12 (0 MB/s)  \riops average 4711 (18 MB/s)\n\nfinished.\n";
        assert_eq!(iops_average(&json!({ "stdout": printed })).unwrap(), 4711.0);
        assert!(iops_average(&json!({ "stdout": "Login Failed" })).is_err());
    }

    #[test]
    fn kinds_of_commands_are_told_apart() {
        let counts = vec![("0x9e/0x10".to_owned(), 1), ("0x9e/0x12".to_owned(), 5)];
        assert_eq!(KINDS.map(|(_, kind)| count_of(&counts, kind)), [5, 0, 0, 0, 0]);
    }
}
