//! Reads of an image whose clusters are all allocated, its mapping cached.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::contender::{Contender, Disk, Requests, Sample};
use super::report::{self, Goal};
use super::{Programs, Scale, median};
use crate::failure::{Failure, Result};
use crate::run;
use crate::scratch::Scratch;

/// A row of the table.
struct Row {
    name: &'static str,
    len: u64,
    depth: u64,
    direct: bool,
    /// Far from each other, rather than one after the other.
    scattered: bool,
    /// In a real run.
    count: u64,
    goals: &'static [Goal<Against>],
}

/// With whom a goal compares.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Against {
    /// The better of the raw loops.
    Raw,
    /// The raw loop over io_uring.
    RawUring,
    /// qemu-img bench with the best of its engines.
    Qemu,
    /// imago with async.
    ImagoAsync,
    /// Everybody else, the limits among them.
    Best,
    /// Nobody: microseconds of CPU per request, at most.
    CpuMicros,
}

const ROWS: &[Row] = &[
    Row {
        name: "random 4 KiB, page cache, QD1",
        len: 4096,
        depth: 1,
        direct: false,
        scattered: true,
        count: 1_000_000,
        goals: &[
            Goal::at_least(0.85, Against::Raw),
            Goal::at_least(2.0, Against::Qemu),
            Goal::at_least(1.0, Against::ImagoAsync),
        ],
    },
    Row {
        name: "random 4 KiB, page cache, QD32",
        len: 4096,
        depth: 32,
        direct: false,
        scattered: true,
        count: 1_000_000,
        goals: &[Goal::at_least(0.85, Against::Raw), Goal::at_least(1.6, Against::Qemu)],
    },
    Row {
        name: "random 4 KiB, O_DIRECT, QD1",
        len: 4096,
        depth: 1,
        direct: true,
        scattered: true,
        count: 30_000,
        goals: &[Goal::at_least(0.95, Against::Raw)],
    },
    Row {
        name: "random 4 KiB, O_DIRECT, QD32",
        len: 4096,
        depth: 32,
        direct: true,
        scattered: true,
        count: 150_000,
        goals: &[Goal::at_least(0.95, Against::RawUring), Goal::at_most(3.5, Against::CpuMicros)],
    },
    Row {
        name: "sequential 1 MiB, page cache, QD8",
        len: 1 << 20,
        depth: 8,
        direct: false,
        scattered: false,
        count: 8192,
        goals: &[Goal::at_least(0.97, Against::Best)],
    },
    Row {
        name: "sequential 1 MiB, O_DIRECT, QD8",
        len: 1 << 20,
        depth: 8,
        direct: true,
        scattered: false,
        count: 4096,
        goals: &[Goal::at_least(0.97, Against::Best)],
    },
];

/// Medians of one contender.
#[derive(Copy, Clone, Debug)]
struct Medians {
    contender: Contender,
    per_second: f64,
    cpu_micros: f64,
}

/// Makes the disk and measures all rows whose name contains `only`.
pub(super) fn measure(
    programs: &Programs,
    scratch: &Scratch,
    scale: Scale,
    only: &str,
) -> Result<String> {
    let disk = make_disk(scratch, scale.choose(1 << 30, 128 << 20))?;
    let mut text = format!(
        "\n## Reads\n\n{} MiB qcow2 image, 64 KiB clusters, all allocated, random bytes; the limits \
         read the same bytes from a raw file. Thousands of requests per second for 4 KiB, MB/s for \
         1 MiB; CPU µs per request in brackets.\n",
        disk.len >> 20
    );
    for row in ROWS.iter().filter(|row| row.name.contains(only)) {
        let requests = row.requests(&disk, scale);
        eprintln!("bench: {}", row.name);
        let results = measure_row(programs, &disk, row, &requests, scale)?;
        text += &row.show(programs, &disk, &requests, &results);
    }
    Ok(text)
}

/// A raw file of random bytes, and the same as qcow2.
fn make_disk(scratch: &Scratch, len: u64) -> Result<Disk> {
    let disk = Disk { raw: scratch.file("reads.raw"), qcow2: scratch.file("reads.qcow2"), len };
    let what = || format!("fill {}", disk.raw.display());
    let random = File::open("/dev/urandom").map_err(Failure::io(what()))?;
    let mut file = File::create(&disk.raw).map_err(Failure::io(what()))?;
    io::copy(&mut random.take(len), &mut file).map_err(Failure::io(what()))?;
    let mut convert = run::command("qemu-img");
    convert.args(["convert", "-f", "raw", "-O", "qcow2"]);
    run::succeed(convert.args([&disk.raw, &disk.qcow2]))?;
    run::succeed(&mut run::command("sync"))?;
    Ok(disk)
}

fn measure_row(
    programs: &Programs,
    disk: &Disk,
    row: &Row,
    requests: &Requests,
    scale: Scale,
) -> Result<Vec<Medians>> {
    if !row.direct {
        read_whole(&disk.raw)?;
        read_whole(&disk.qcow2)?;
    }
    let contenders = able(programs, disk, requests)?;
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); contenders.len()];
    for round in 0..scale.rounds {
        for turn in 0..contenders.len() {
            let index = (round + turn) % contenders.len();
            samples[index].push(contenders[index].sample(programs, disk, requests)?);
        }
    }
    let results = contenders.iter().zip(&samples).map(|(contender, samples)| Medians {
        contender: *contender,
        per_second: median(samples.iter().map(|sample| sample.count as f64 / sample.seconds)),
        cpu_micros: median(samples.iter().map(|s| s.cpu_seconds * 1e6 / s.count as f64)),
    });
    Ok(results.collect())
}

/// Those who can send `requests` here: an engine may be refused (io_uring in containers) or not built
/// in. We must be able to.
fn able(programs: &Programs, disk: &Disk, requests: &Requests) -> Result<Vec<Contender>> {
    let few = Requests { count: requests.depth, ..requests.clone() };
    let mut able = Vec::new();
    for contender in Contender::all(requests) {
        match contender.sample(programs, disk, &few) {
            Ok(_) => able.push(contender),
            Err(failure) if contender.is_ours() => return Err(failure),
            Err(failure) => eprintln!("bench: without {}: {failure}", contender.name()),
        }
    }
    Ok(able)
}

/// Brings a file into the page cache.
fn read_whole(path: &Path) -> Result<()> {
    let what = || format!("read {}", path.display());
    let mut file = File::open(path).map_err(Failure::io(what()))?;
    io::copy(&mut file, &mut io::sink()).map_err(Failure::io(what()))?;
    Ok(())
}

impl Row {
    fn requests(&self, disk: &Disk, scale: Scale) -> Requests {
        Requests {
            len: self.len,
            step: if self.scattered { scattered_step(disk.len, self.len) } else { self.len },
            depth: self.depth,
            count: scale.choose(self.count, (self.count / 50).max(64)),
            direct: self.direct,
        }
    }

    /// The row's own table: who, how fast, by which command; then the goals.
    fn show(
        &self,
        programs: &Programs,
        disk: &Disk,
        requests: &Requests,
        results: &[Medians],
    ) -> String {
        let mut text =
            format!("\n### {}\n\n| who | speed (CPU µs) | command |\n|---|---|---|\n", self.name);
        for result in results {
            let command = result.contender.command(programs, disk, requests);
            text += &format!(
                "| {} | {} ({:.1}) | `{}` |\n",
                result.contender.name(),
                self.speed(result.per_second),
                result.cpu_micros,
                report::short_line(&command),
            );
        }
        text += "\n| to reach | block-img bench | block-core |\n|---|---|---|\n";
        for goal in self.goals {
            let verdict = |contender| goal.verdict(ratio(goal.against, contender, results));
            text += &format!(
                "| {} | {} | {} |\n",
                goal.words(goal.against.name()),
                verdict(Contender::BlockImg),
                verdict(Contender::BlockCore),
            );
        }
        text
    }

    fn speed(&self, per_second: f64) -> String {
        if self.len < 1 << 20 {
            format!("{:.1}k", per_second / 1e3)
        } else {
            format!("{:.0} MB/s", per_second * self.len as f64 / 1e6)
        }
    }
}

impl Against {
    fn name(self) -> &'static str {
        match self {
            Self::Raw => "of the better raw loop",
            Self::RawUring => "of the raw loop over io_uring",
            Self::Qemu => "times qemu-img at its best",
            Self::ImagoAsync => "times imago-async",
            Self::Best => "of the best",
            Self::CpuMicros => "µs of CPU per request",
        }
    }

    fn includes(self, contender: Contender) -> bool {
        match (self, contender) {
            (Self::Raw, Contender::Limit(_)) | (Self::Qemu, Contender::Qemu(_)) => true,
            (Self::RawUring, Contender::Limit(engine)) => engine == "uring",
            (Self::ImagoAsync, Contender::Library(engine)) => engine == "imago-async",
            (Self::Best, Contender::BlockImg | Contender::BlockCore) => false,
            (Self::Best, _) => true,
            _ => false,
        }
    }
}

/// Our value as the goal counts it.
fn ratio(against: Against, ours: Contender, results: &[Medians]) -> Option<f64> {
    let ours = results.iter().find(|result| result.contender == ours)?;
    if against == Against::CpuMicros {
        return Some(ours.cpu_micros);
    }
    let others = results.iter().filter(|result| against.includes(result.contender));
    let best = others.map(|result| result.per_second).reduce(f64::max)?;
    Some(ours.per_second / best)
}

/// About 0.618 of the disk, as an odd number of requests: coprime to the number of requests that the
/// disk holds, which is a power of two.
fn scattered_step(disk: u64, len: u64) -> u64 {
    let requests = disk / len;
    ((requests * 618 / 1000) | 1) * len
}

#[cfg(test)]
mod tests {
    use super::super::report::Verdict;
    use super::*;

    #[test]
    fn a_scattered_step_is_odd_and_less_than_the_disk() {
        for disk in [128 << 20, 1 << 30] {
            let step = scattered_step(disk, 4096);
            assert!((step / 4096) % 2 == 1 && step < disk && step > disk / 2);
            assert!(step < 1 << 31, "qemu-img bench takes 31 bits");
        }
    }

    #[test]
    fn ratios_compare_with_the_right_ones() {
        let result = |contender, per_second| Medians { contender, per_second, cpu_micros: 3.0 };
        let results = [
            result(Contender::Limit("pread"), 100.0),
            result(Contender::Limit("uring"), 50.0),
            result(Contender::Qemu("threads"), 20.0),
            result(Contender::Qemu("io_uring"), 40.0),
            result(Contender::BlockCore, 80.0),
        ];
        let of = |against| ratio(against, Contender::BlockCore, &results);
        assert_eq!(of(Against::Raw), Some(0.8));
        assert_eq!(of(Against::RawUring), Some(1.6));
        assert_eq!(of(Against::Qemu), Some(2.0));
        assert_eq!(of(Against::Best), Some(0.8));
        assert_eq!(of(Against::CpuMicros), Some(3.0));
        assert_eq!(of(Against::ImagoAsync), None);
        assert_eq!(ratio(Against::Raw, Contender::BlockImg, &results), None);
    }

    #[test]
    fn each_row_has_a_goal_and_a_name_of_its_own() {
        let mut names: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ROWS.len());
        assert!(ROWS.iter().all(|row| !row.goals.is_empty()));
        assert!(matches!(ROWS[0].goals[0].verdict(None), Verdict::Unknown));
    }
}
