//! Compressed conversions to qcow2: how fast, how small, and with how many calls on the target.
//!
//! The calls are those that strace counts in a run of its own, which is not timed. There our file driver
//! works with threads: io_uring would hide its requests.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::report::{self, Goal, Verdict};
use super::{Programs, Scale, disks, median, number, sources};
use crate::failure::{Failure, Result};
use crate::scratch::Scratch;
use crate::{run, setup};

/// A disk to compress.
struct Disk {
    name: &'static str,
    path: PathBuf,
    bytes: u64,
}

/// The cache modes of the target.
const CACHES: [&str; 2] = ["none", "writeback"];

/// How something is compressed, and by how much ours should be faster.
const TYPES: [(&str, f64); 2] = [("zlib", 2.0), ("zstd", 1.2)];

/// Bytes of a host cluster.
const CLUSTER: u64 = 64 << 10;

/// What came out of one contender.
#[derive(Clone, Debug, Default)]
struct Outcome {
    seconds: f64,
    cpu_seconds: f64,
    bytes: u64,
    calls: Calls,
}

/// Calls on the target.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
struct Calls {
    reads: u64,
    writes: u64,
    syncs: u64,
}

/// Makes the disks and measures both of them in all ways whose name contains `only`.
pub(super) fn measure(
    programs: &Programs,
    scratch: &Scratch,
    scale: Scale,
    only: &str,
) -> Result<String> {
    setup::peers(&[setup::STRACE])?;
    let mut text =
        "\n## Compressed conversions\n\nRaw disks to qcow2 with 64 KiB clusters, `-c`. MB of \
        the disk's files a second of wall clock; all CPU seconds in brackets; the \
        length of the target; calls that read, write and sync the target file.\n\n\
        | disk, type, cache | who | MB/s (CPU s) | length | reads | writes | syncs |\n\
        |---|---|---|---|---|---|---|\n"
            .to_owned();
    let mut verdicts = String::new();
    for disk in make_disks(scratch, scale)? {
        disks::read_whole(&disk.path)?;
        for (kind, faster) in TYPES {
            let mut ours_by_cache = Vec::new();
            for cache in CACHES {
                let name = format!("{}, {kind}, -t {cache}", disk.name);
                if !name.contains(only) {
                    continue;
                }
                eprintln!("bench: {name}");
                let [theirs, ours] = compare(programs, scratch, scale, &disk, kind, cache)?;
                for (who, outcome) in [("qemu-img -m 8 -W", &theirs), ("block-img", &ours)] {
                    text += &outcome.row(&name, who, disk.bytes);
                }
                verdicts += &judge(&name, faster, cache, &theirs, &ours);
                ours_by_cache.push(ours.seconds);
            }
            if let [direct, cached] = ours_by_cache[..] {
                let goal = Goal::at_most(1.1, ());
                let verdict = goal.verdict(Some(direct / cached));
                verdicts += &line(
                    &format!("{}, {kind}", disk.name),
                    &goal.words("times the seconds of -t writeback with -t none"),
                    verdict,
                );
            }
        }
    }
    Ok(format!("{text}\n| | to reach | |\n|---|---|---|\n{verdicts}"))
}

fn make_disks(scratch: &Scratch, scale: Scale) -> Result<[Disk; 2]> {
    let ones = scratch.file("ones.raw");
    let bytes = 64 << 20;
    let mut file = File::create(&ones).map_err(Failure::io("create a disk of ones"))?;
    for _ in 0..bytes >> 20 {
        file.write_all(&[0xff; 1 << 20]).map_err(Failure::io("write a disk of ones"))?;
    }
    let (disk, files) = (scale.choose(2400 << 20, 200 << 20), scale.choose(1490 << 20, 100 << 20));
    let path = sources::file_system(scratch, "packed.raw", disk, files)?;
    let real = Disk { name: "ext4 of files", bytes: files, path };
    Ok([Disk { name: "64 MiB of ones", bytes, path: ones }, real])
}

/// The medians of both, and their calls.
fn compare(
    programs: &Programs,
    scratch: &Scratch,
    scale: Scale,
    disk: &Disk,
    kind: &str,
    cache: &str,
) -> Result<[Outcome; 2]> {
    let target = scratch.file("packed.qcow2");
    let contenders = [Path::new("qemu-img"), &programs.block_img];
    let mut samples: [Vec<(f64, f64)>; 2] = Default::default();
    let mut outcomes: [Outcome; 2] = Default::default();
    for round in 0..scale.rounds {
        for turn in 0..contenders.len() {
            let index = (round + turn) % contenders.len();
            remove(&target)?;
            run::succeed(&mut run::command("sync"))?;
            let mut command = convert(contenders[index], index == 0, kind, cache, disk);
            command.arg(&target);
            eprintln!("  {}", report::short_line(&command));
            let value = programs.measure(&command, &run::root())?;
            let cpu = number(&value, "user_seconds")? + number(&value, "system_seconds")?;
            samples[index].push((number(&value, "seconds")?, cpu));
            let found = fs::metadata(&target).map_err(Failure::io("look at a target"))?;
            outcomes[index].bytes = found.len();
        }
    }
    verify(&disk.path, &target)?;
    for (index, outcome) in outcomes.iter_mut().enumerate() {
        outcome.seconds = median(samples[index].iter().map(|sample| sample.0));
        outcome.cpu_seconds = median(samples[index].iter().map(|sample| sample.1));
        outcome.calls = calls(contenders[index], index == 0, kind, cache, disk, &target)?;
        verify(&disk.path, &target)?;
    }
    remove(&target)?;
    Ok(outcomes)
}

/// A conversion, without its target.
fn convert(program: &Path, theirs: bool, kind: &str, cache: &str, disk: &Disk) -> Command {
    let mut command = run::command(program);
    command.args(["convert", "-c", "-t", cache, "-f", "raw", "-O", "qcow2", "-o"]);
    command.arg(format!("compression_type={kind}"));
    if theirs {
        command.args(["-m", "8", "-W"]);
    }
    command.arg(&disk.path);
    command
}

/// Fails unless the target holds what the disk holds, and nothing is wrong with it.
fn verify(disk: &Path, target: &Path) -> Result<()> {
    let mut compare = run::command("qemu-img");
    run::succeed(
        compare.args(["compare", "-q", "-f", "raw", "-F", "qcow2"]).arg(disk).arg(target),
    )?;
    run::succeed(run::command("qemu-img").args(["check", "-q", "-f", "qcow2"]).arg(target))
}

/// Converts once more, under strace.
fn calls(
    program: &Path,
    theirs: bool,
    kind: &str,
    cache: &str,
    disk: &Disk,
    target: &Path,
) -> Result<Calls> {
    remove(target)?;
    let bytes = fs::metadata(&disk.path).map_err(Failure::io("look at a disk"))?.len();
    let mut create = run::command("qemu-img");
    create.args(["create", "-q", "-f", "qcow2", "-o"]).arg(format!("compression_type={kind}"));
    run::succeed(create.arg(target).arg(bytes.to_string()))?;
    let counts = target.with_extension("calls");
    let mut command = run::command("strace");
    command.args(["-f", "-c", "-P"]).arg(target).arg("-o").arg(&counts);
    command.arg("-e").arg(format!("trace={READS},{WRITES},{SYNCS}"));
    command.arg(program).args([
        "convert",
        "-c",
        "-n",
        "--target-is-zero",
        "-t",
        cache,
        "-f",
        "raw",
    ]);
    if theirs {
        command.args(["-m", "8", "-W"]);
    }
    command.arg("--target-image-opts").arg(&disk.path);
    let options = "driver=qcow2,file.driver=file,file.aio=threads,file.filename=";
    command.arg(format!("{options}{}", target.display()));
    eprintln!("  {}", report::short_line(&command));
    run::succeed(&mut command)?;
    let text = fs::read_to_string(&counts).map_err(Failure::io("read the counts of strace"))?;
    remove(&counts)?;
    Ok(parse(&text))
}

const READS: &str = "pread64,preadv,preadv2,read";
const WRITES: &str = "pwrite64,pwritev,pwritev2,write";
const SYNCS: &str = "fdatasync,fsync";

/// Adds up the table that `strace -c` prints: the calls in the fourth column, the name in the last.
fn parse(text: &str) -> Calls {
    let mut by_name: BTreeMap<&str, u64> = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let (Some(Ok(calls)), Some(name)) =
            (words.get(3).map(|n| n.parse::<u64>()), words.last())
        {
            *by_name.entry(name).or_default() += calls;
        }
    }
    let sum = |names: &str| names.split(',').filter_map(|name| by_name.get(name)).sum();
    Calls { reads: sum(READS), writes: sum(WRITES), syncs: sum(SYNCS) }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::io(format!("remove {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}

impl Outcome {
    fn row(&self, name: &str, who: &str, bytes: u64) -> String {
        let Calls { reads, writes, syncs } = self.calls;
        let speed = megabytes(bytes) / self.seconds;
        format!(
            "| {name} | {who} | {speed:.0} ({:.2}) | {:.1} MB | {reads} | {writes} | {syncs} |\n",
            self.cpu_seconds,
            megabytes(self.bytes),
        )
    }

    fn host_clusters(&self) -> u64 {
        self.bytes.div_ceil(CLUSTER)
    }
}

/// The verdicts of one row.
fn judge(name: &str, faster: f64, cache: &str, theirs: &Outcome, ours: &Outcome) -> String {
    let mut text = String::new();
    let mut add = |goal: Goal<()>, what: &str, value: f64| {
        text += &line(name, &goal.words(what), goal.verdict(Some(value)));
    };
    add(Goal::at_least(faster, ()), "times the speed", theirs.seconds / ours.seconds);
    // qemu-img cuts the file in its last cluster, where the data ends.
    let length = ratio(ours.host_clusters(), theirs.host_clusters());
    add(Goal::at_most(1.0, ()), "times the host clusters", length);
    let reads = "reads of the target, for its header and tables";
    add(Goal::at_most(OPENING_READS, ()), reads, ratio(ours.calls.reads, 1));
    if cache == "none" {
        let writes = ratio(ours.calls.writes, ours.host_clusters());
        add(Goal::at_most(1.1, ()), "writes a host cluster, metadata among them", writes);
    }
    text
}

/// Reads that opening an image and finding the alignment of its file take.
const OPENING_READS: f64 = 16.0;

fn line(name: &str, goal: &str, verdict: Verdict) -> String {
    format!("| {name} | {goal} | {verdict} |\n")
}

fn megabytes(bytes: u64) -> f64 {
    ratio(bytes, 1_000_000)
}

/// Numbers below 2^53, which floating point holds exactly.
#[allow(clippy::cast_precision_loss, reason = "file lengths and counts")]
fn ratio(a: u64, b: u64) -> f64 {
    a as f64 / b as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_strace_is_added_up() {
        let text = "% time     seconds  usecs/call     calls    errors syscall\n\
            ------ ----------- ----------- --------- --------- ----------------\n \
            60.00    0.000600           6       100         1 pwrite64\n \
            30.00    0.000300           6        50           pwritev\n \
            10.00    0.000100           6         7           pread64\n  \
            0.00    0.000000           0         2           fdatasync\n\
            ------ ----------- ----------- --------- --------- ----------------\n\
            100.00    0.001000           6       159         1 total\n";
        assert_eq!(parse(text), Calls { reads: 7, writes: 150, syncs: 2 });
    }
}
