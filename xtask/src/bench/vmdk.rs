//! Writes that allocate grains of a VMDK: how fast, and with how many calls on the image.
//!
//! The calls are those that strace counts in a run of its own, which is not timed; there everybody works with
//! threads, as io_uring would hide requests from it. Conversions are in [`super::conversions`], the one
//! onto a slow file system in [`super::slow_truncate`].

use std::fs;
use std::path::Path;
use std::process::Command;

use super::contender::run_completed;
use super::{Programs, Scale, conversions, median, number, report, slow_truncate};
use crate::failure::{Failure, Result};
use crate::scratch::Scratch;
use crate::{run, setup};

/// Bytes of a grain, which is qemu-img's and ours where nothing else is asked for.
const GRAIN: u64 = 64 << 10;

/// Requests that each allocate.
#[derive(Copy, Clone, Debug)]
struct Load {
    name: &'static str,
    /// Bytes of a request.
    len: u64,
    /// Requests; a power of two.
    count: u64,
    places: Places,
    depth: u64,
}

/// Where one request after the other goes.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Places {
    Sequential,
    /// Each into a grain of its own, far from the last one.
    Grains,
}

impl Load {
    /// Length of the disk, whose every grain is allocated at the end.
    fn disk(&self) -> u64 {
        self.count * self.len.max(GRAIN)
    }

    /// From one request to the next.
    fn step(&self) -> u64 {
        match self.places {
            Places::Sequential => self.len,
            // Odd, so that it visits every grain once.
            Places::Grains => ((self.count * 382 / 1000) | 1) * GRAIN,
        }
    }

    fn grains(&self) -> u64 {
        self.disk() / GRAIN
    }

    /// `bench`, but for the image's name.
    fn command(&self, program: &Path, format: &str) -> Command {
        let mut command = run::command(program);
        command.args(["bench", "-w", "--pattern", "1", "-t", "writeback", "-f", format]);
        for (option, value) in
            [("-c", self.count), ("-d", self.depth), ("-s", self.len), ("-S", self.step())]
        {
            command.args([option, &value.to_string()]);
        }
        command
    }

    fn create(&self, image: &Path, format: &str) -> Result<()> {
        remove(image)?;
        let mut create = run::command("qemu-img");
        create.args(["create", "-q", "-f", format]).arg(image);
        run::succeed(create.arg(self.disk().to_string()))
    }
}

/// What is timed.
fn timed(scale: Scale) -> [Load; 3] {
    let load = |name, len, real, quick, places, depth| {
        let count = scale.choose(real, quick);
        Load { name, len, count, places, depth }
    };
    [
        load("sequential 64 KiB, QD8", GRAIN, 4096, 256, Places::Sequential, 8),
        load("sequential 1 MiB, QD8", 1 << 20, 256, 32, Places::Sequential, 8),
        load("random 4 KiB, each allocates a grain, QD32", 4096, 4096, 256, Places::Grains, 32),
    ]
}

/// What is counted.
const COUNTED: [Load; 2] = [
    Load {
        name: "sequential 64 KiB into 1024 grains",
        len: GRAIN,
        count: 1024,
        places: Places::Sequential,
        depth: 8,
    },
    Load {
        name: "random 4 KiB into 1024 grains",
        len: 4096,
        count: 1024,
        places: Places::Grains,
        depth: 8,
    },
];

/// Measures all of it whose name contains `only`.
pub(super) fn measure(
    programs: &Programs,
    scratch: &Scratch,
    scale: Scale,
    only: &str,
) -> Result<String> {
    setup::peers(&[setup::STRACE])?;
    let mut text = count(programs, scratch, only)?;
    text += &time(programs, scratch, scale, only)?;
    text += &conversions::measure(programs, scratch, scale, &conversions::VMDK, only)?;
    if slow_truncate::NAME.contains(only) {
        text += &slow_truncate::measure(programs, scratch, scale)?;
    }
    Ok(text)
}

/// The table of calls.
fn count(programs: &Programs, scratch: &Scratch, only: &str) -> Result<String> {
    let mut text = "\n## VMDK: calls on the image per new grain\n\nmonolithicSparse, empty before, \
        `-t writeback`; from opening to closing, as strace counts them for \
        `-i threads`, because it does not see requests to io_uring. Data: writes behind the tables; tables: \
        writes to grain tables and directories; other: header and descriptor; length: ftruncate and \
        fallocate.\n\n\
        | work | who | data | tables | other | fdatasync | length | all per grain |\n\
        |---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for load in COUNTED.iter().filter(|load| load.name.contains(only)) {
        eprintln!("bench: {}", load.name);
        for (who, program) in
            [("qemu-img", Path::new("qemu-img")), ("block-img", &programs.block_img)]
        {
            text += &calls(program, scratch, load)?.row(load, who);
        }
    }
    Ok(text)
}

/// Calls on an image.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
struct Calls {
    data: u64,
    tables: u64,
    other: u64,
    syncs: u64,
    lengths: u64,
}

const WRITES: [&str; 4] = ["pwrite64", "pwritev", "pwritev2", "write"];
const SYNCS: [&str; 2] = ["fdatasync", "fsync"];
const LENGTHS: [&str; 2] = ["ftruncate", "fallocate"];

/// Where the descriptor of a monolithicSparse image ends and its tables begin: 20 sectors after the header.
const TABLES_AT: u64 = 21 * 512;
/// Where the first grain is, if the tables of the image take no more room than that.
const DATA_AT: u64 = GRAIN;

/// Runs `load` under strace, and checks what it left.
fn calls(program: &Path, scratch: &Scratch, load: &Load) -> Result<Calls> {
    let (image, log) = (scratch.file("counted.vmdk"), scratch.file("counted.log"));
    load.create(&image, "vmdk")?;
    let mut command = run::command("strace");
    let names = [&WRITES[..], &SYNCS, &LENGTHS].concat().join(",");
    command.args(["-f", "-s", "0", "-e", &format!("trace={names}"), "-P"]).arg(&image);
    command.arg("-o").arg(&log);
    let bench = load.command(program, "vmdk");
    command.arg(bench.get_program()).args(bench.get_args()).args(["-i", "threads"]).arg(&image);
    eprintln!("  {}", report::short_line(&command));
    run::stdout(&mut command)?;
    verify(scratch, load, &image)?;
    let text = fs::read_to_string(&log).map_err(Failure::io("read what strace wrote"))?;
    remove(&log)?;
    remove(&image)?;
    Ok(Calls::of(&text))
}

impl Calls {
    fn of(log: &str) -> Self {
        let mut calls = Self::default();
        for (name, arguments) in log.lines().filter_map(call) {
            if SYNCS.contains(&name) {
                calls.syncs += 1;
            } else if LENGTHS.contains(&name) {
                calls.lengths += 1;
            } else if WRITES.contains(&name) {
                // The flags of pwritev2 stand behind the offset.
                let back = if name == "pwritev2" { 1 } else { 0 };
                let offset = arguments.rsplit(", ").nth(back).and_then(|text| text.parse().ok());
                match offset.unwrap_or(0u64) {
                    DATA_AT.. => calls.data += 1,
                    TABLES_AT.. => calls.tables += 1,
                    _ => calls.other += 1,
                }
            }
        }
        calls
    }

    fn row(self, load: &Load, who: &str) -> String {
        let Self { data, tables, other, syncs, lengths } = self;
        let all = data + tables + other + syncs + lengths;
        format!(
            "| {} | {who} | {data} | {tables} | {other} | {syncs} | {lengths} | {:.2} |\n",
            load.name,
            ratio(all, load.grains())
        )
    }
}

/// The name and the arguments of a call in a line of strace: `123 name(a, b) = c`, or, if another thread's
/// call came between, `123 name(a, b <unfinished ...>`.
fn call(line: &str) -> Option<(&str, &str)> {
    let (name, rest) = line.split_once('(')?;
    let name = name.rsplit(' ').next()?;
    let end = rest.find(" <unfinished").or_else(|| rest.rfind(')'))?;
    Some((name, &rest[..end]))
}

/// The table of speeds.
fn time(programs: &Programs, scratch: &Scratch, scale: Scale, only: &str) -> Result<String> {
    let mut text = "\n## VMDK: writes that allocate\n\nmonolithicSparse, new each time, what was \
        written before is on the disk (`sync`), `-t writeback`. Thousands of requests a second while the \
        requests last; seconds and CPU seconds of the whole command, closing the image among them.\n\n\
        | work | who | requests | seconds (CPU s) | times the speed of qemu-img, whole command |\n\
        |---|---|---|---|---|\n"
        .to_owned();
    for load in timed(scale).iter().filter(|load| load.name.contains(only)) {
        eprintln!("bench: {}", load.name);
        let samples = time_row(programs, scratch, scale, load)?;
        let names = ["qemu-img bench -i threads", "qemu-img bench -i io_uring", "block-img bench"];
        let theirs = samples[0].seconds.min(samples[1].seconds);
        for (name, sample) in names.iter().zip(&samples) {
            text += &format!(
                "| {} | {name} | {:.1}k | {:.2} ({:.2}) | {:.2} |\n",
                load.name,
                ratio(load.count, 1000) / sample.loop_seconds,
                sample.seconds,
                sample.cpu_seconds,
                theirs / sample.seconds,
            );
        }
    }
    Ok(text)
}

/// One run, or the medians of several.
#[derive(Copy, Clone, Debug, Default)]
struct Sample {
    loop_seconds: f64,
    seconds: f64,
    cpu_seconds: f64,
}

/// qemu-img with two engines, and ours.
fn time_row(
    programs: &Programs,
    scratch: &Scratch,
    scale: Scale,
    load: &Load,
) -> Result<[Sample; 3]> {
    let image = scratch.file("timed.vmdk");
    let qemu = Path::new("qemu-img");
    let contenders: [(&Path, &[&str]); 3] =
        [(qemu, &["-i", "threads"]), (qemu, &["-i", "io_uring"]), (&programs.block_img, &[])];
    let mut samples: [Vec<Sample>; 3] = Default::default();
    for round in 0..scale.rounds {
        for turn in 0..contenders.len() {
            let index = (round + turn) % contenders.len();
            let (program, options) = contenders[index];
            load.create(&image, "vmdk")?;
            run::succeed(&mut run::command("sync"))?;
            let mut command = load.command(program, "vmdk");
            command.args(options).arg(&image);
            eprintln!("  {}", report::short_line(&command));
            let value = programs.measure(&command, &run::root())?;
            samples[index].push(Sample {
                loop_seconds: run_completed(&value)?,
                seconds: number(&value, "seconds")?,
                cpu_seconds: number(&value, "user_seconds")? + number(&value, "system_seconds")?,
            });
            if round == 0 && program != qemu {
                verify(scratch, load, &image)?;
            }
        }
    }
    remove(&image)?;
    Ok(samples.each_ref().map(|samples| {
        let of = |field: fn(&Sample) -> f64| median(samples.iter().map(field));
        Sample {
            loop_seconds: of(|sample| sample.loop_seconds),
            seconds: of(|sample| sample.seconds),
            cpu_seconds: of(|sample| sample.cpu_seconds),
        }
    }))
}

/// Fails unless the image holds what a raw file holds after the same requests, and nothing is wrong with it.
fn verify(scratch: &Scratch, load: &Load, image: &Path) -> Result<()> {
    let raw = scratch.file("reference.raw");
    load.create(&raw, "raw")?;
    run::stdout(load.command(Path::new("qemu-img"), "raw").arg(&raw))?;
    let mut compare = run::command("qemu-img");
    compare.args(["compare", "-q", "-f", "raw", "-F", "vmdk"]);
    run::succeed(compare.arg(&raw).arg(image))?;
    run::succeed(run::command("qemu-img").args(["check", "-q", "-f", "vmdk"]).arg(image))?;
    remove(&raw)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::io(format!("remove {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}

/// Numbers below 2^53, which floating point holds exactly.
#[allow(clippy::cast_precision_loss, reason = "counts")]
fn ratio(a: u64, b: u64) -> f64 {
    a as f64 / b as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_told_apart_by_where_they_write() {
        let log = "1 pwrite64(4, \"\"..., 65536, 65536)  = 65536\n\
            2 pwrite64(4, \"\"..., 4, 15872)      = 4\n\
            1 pwritev2(3, [...], 1, 131072, 0) = 65536\n\
            1 pwritev2(3, [...], 1, 11264, 0 <unfinished ...>\n\
            2 fdatasync(4 <unfinished ...>\n\
            1 <... pwritev2 resumed>) = 2048\n\
            2 <... fdatasync resumed>) = 0\n\
            1 ftruncate(3, 2162688)             = 0\n\
            1 pwritev(3, [...], 1, 512)     = 340\n\
            1 +++ exited with 0 +++\n";
        let expected = Calls { data: 2, tables: 2, other: 1, syncs: 1, lengths: 1 };
        assert_eq!(Calls::of(log), expected);
    }

    #[test]
    fn every_grain_is_written_once() {
        let scales = [true, false].map(|quick| Scale { quick, rounds: 1 });
        let loads = scales.into_iter().flat_map(timed).chain(COUNTED);
        for load in loads {
            assert!(load.count.is_power_of_two() && load.step() < 1 << 31, "{load:?}");
            assert_eq!(
                load.places == Places::Grains,
                (load.step() / GRAIN) % 2 == 1 && load.len < GRAIN
            );
            assert!(load.step() <= load.disk());
        }
    }

    /// The tables of a disk that calls are counted for end where the first grain is.
    #[test]
    fn tables_end_before_the_data() {
        for load in COUNTED {
            let tables = load.disk().div_ceil(512 * GRAIN) * 2048;
            assert!(TABLES_AT + 2 * (512 + tables) <= DATA_AT);
        }
    }
}
