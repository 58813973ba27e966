//! Conversions of a disk with a real file system: to raw and qcow2, to raw and VMDK.
//!
//! What ours made last is compared with the disk it comes from, once per row.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::report::{self, Goal};
use super::{Programs, Scale, disks, median, number, sources};
use crate::failure::{Failure, Result};
use crate::run;
use crate::scratch::Scratch;

/// A table.
pub(super) struct Table {
    heading: &'static str,
    rows: &'static [Row],
}

/// qcow2 and raw.
pub(super) const QCOW2: Table = Table { heading: "Conversions", rows: ROWS };

/// VMDK and raw.
pub(super) const VMDK: Table = Table { heading: "VMDK: conversions", rows: VMDK_ROWS };

/// A row of a table.
struct Row {
    name: &'static str,
    source: Source,
    /// Format of the target.
    target: &'static str,
    /// Flags of qemu-img; where there are several sets, the fastest counts.
    theirs: &'static [&'static [&'static str]],
    ours: &'static [&'static str],
    limit: Option<Limit>,
    goals: &'static [Goal<Counted>],
}

/// What is converted.
enum Source {
    /// The raw disk.
    Raw,
    /// What `qemu-img convert` with these flags makes of it.
    Qcow2(&'static [&'static str]),
    /// The same.
    Vmdk(&'static [&'static str]),
}

/// What the system can give.
enum Limit {
    /// A copy that finds zeroes.
    Cp,
}

/// What a goal counts.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Counted {
    /// qemu-img's wall clock over ours.
    Speed,
    /// Our user CPU over qemu-img's.
    UserCpu,
    /// Our wall clock over the limit's.
    Limit,
    /// The length of our file over that of qemu-img's.
    Length,
}

/// The flags that make qemu-img fastest, mostly.
const MANY: &[&str] = &["-m", "8", "-W"];

const TO_RAW: Row = Row {
    name: "",
    source: Source::Raw,
    target: "raw",
    theirs: &[MANY],
    ours: MANY,
    limit: None,
    goals: &[],
};

const ROWS: &[Row] = &[
    Row {
        name: "raw -> qcow2",
        target: "qcow2",
        theirs: &[&[], MANY],
        ours: &[],
        limit: Some(Limit::Cp),
        goals: &[Goal::at_least(1.3, Counted::Speed), Goal::at_most(1.25, Counted::Limit)],
        ..TO_RAW
    },
    Row {
        name: "raw -> qcow2, both O_DIRECT",
        target: "qcow2",
        theirs: &[&["-t", "none", "-T", "none"], &["-t", "none", "-T", "none", "-m", "8", "-W"]],
        ours: &["-t", "none", "-T", "none"],
        goals: &[Goal::at_least(1.1, Counted::Speed)],
        ..TO_RAW
    },
    Row {
        name: "qcow2 -> raw",
        source: Source::Qcow2(&[]),
        goals: &[Goal::at_least(1.3, Counted::Speed)],
        ..TO_RAW
    },
    Row {
        name: "qcow2 zlib -> raw",
        source: Source::Qcow2(&["-c"]),
        goals: &[Goal::at_least(1.5, Counted::Speed), Goal::at_most(0.5, Counted::UserCpu)],
        ..TO_RAW
    },
    Row {
        name: "qcow2 zstd -> raw",
        source: Source::Qcow2(&["-c", "-o", "compression_type=zstd"]),
        goals: &[Goal::at_least(1.1, Counted::Speed)],
        ..TO_RAW
    },
];

const STREAM: &[&str] = &["-o", "subformat=streamOptimized"];

const VMDK_ROWS: &[Row] = &[
    Row {
        name: "raw -> monolithicSparse",
        target: "vmdk",
        theirs: &[&[], MANY],
        ours: &[],
        goals: &[Goal::at_least(1.5, Counted::Speed)],
        ..TO_RAW
    },
    Row {
        name: "raw -> streamOptimized",
        target: "vmdk",
        theirs: &[STREAM],
        ours: STREAM,
        goals: &[Goal::at_least(4.0, Counted::Speed), Goal::at_most(1.0, Counted::Length)],
        ..TO_RAW
    },
    Row {
        name: "monolithicSparse -> raw",
        source: Source::Vmdk(&[]),
        goals: &[Goal::at_least(1.3, Counted::Speed)],
        ..TO_RAW
    },
    Row {
        name: "streamOptimized -> raw",
        source: Source::Vmdk(STREAM),
        goals: &[Goal::at_least(2.0, Counted::Speed)],
        ..TO_RAW
    },
];

/// One conversion, or the medians of several.
#[derive(Copy, Clone, Debug, Default)]
struct Sample {
    seconds: f64,
    user_seconds: f64,
    system_seconds: f64,
    peak_kib: f64,
    /// Of the target, in bytes.
    len: f64,
}

/// Makes the disk and measures all rows of a table whose name contains `only`.
pub(super) fn measure(
    programs: &Programs,
    scratch: &Scratch,
    scale: Scale,
    table: &Table,
    only: &str,
) -> Result<String> {
    let (disk, files) = (scale.choose(2400 << 20, 200 << 20), scale.choose(1490 << 20, 100 << 20));
    let raw = sources::file_system(scratch, "disk.raw", disk, files)?;
    let mut text = format!(
        "\n## {}\n\n{} MiB disk with an ext4 that holds {} MiB of files of the machine's \
         /usr. Seconds; user and system CPU seconds and peak memory in brackets. The target is new \
         each time, what was written before is on the disk (`sync`), the source is in the page cache.\n\n\
         | work | limit | qemu-img | block-img | to reach | |\n|---|---|---|---|---|---|\n",
        table.heading,
        disk >> 20,
        files >> 20
    );
    let mut commands = String::new();
    for row in table.rows.iter().filter(|row| row.name.contains(only)) {
        eprintln!("bench: {}", row.name);
        let source = row.make_source(scratch, &raw)?;
        disks::read_whole(&source)?;
        let contenders = row.contenders(programs, scratch, &source);
        let results = measure_row(programs, scale, &contenders)?;
        row.verify(&raw, &contenders)?;
        text += &row.show(&contenders, &results);
        commands += &format!("- {}: {}\n", row.name, lines(&contenders));
        for contender in &contenders {
            remove(&contender.target)?;
        }
    }
    Ok(format!("{text}\nCommands; where qemu-img has two, the faster one counts:\n\n{commands}"))
}

/// Who converts, by which command.
struct Contender {
    who: Who,
    command: Command,
    target: PathBuf,
}

#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Who {
    Limit,
    Qemu,
    Ours,
}

impl Source {
    fn format(&self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2(_) => "qcow2",
            Self::Vmdk(_) => "vmdk",
        }
    }
}

impl Row {
    fn make_source(&self, scratch: &Scratch, raw: &Path) -> Result<PathBuf> {
        let (Source::Qcow2(flags) | Source::Vmdk(flags)) = self.source else {
            return Ok(raw.to_path_buf());
        };
        let format = self.source.format();
        let source = scratch.file(&format!("source.{format}"));
        let mut make = run::command("qemu-img");
        make.args(["convert", "-m", "8", "-W", "-f", "raw", "-O", format]);
        run::succeed(make.args(flags).arg(raw).arg(&source))?;
        Ok(source)
    }

    /// Ours is the last.
    fn contenders(&self, programs: &Programs, scratch: &Scratch, source: &Path) -> Vec<Contender> {
        let mut all = Vec::new();
        if let Some(Limit::Cp) = self.limit {
            let mut command = run::command("cp");
            command.args(["--sparse=always", "--reflink=never"]).arg(source);
            all.push((Who::Limit, command));
        }
        for flags in self.theirs {
            all.push((Who::Qemu, self.convert(Path::new("qemu-img"), flags, source)));
        }
        all.push((Who::Ours, self.convert(&programs.block_img, self.ours, source)));
        let contenders = all.into_iter().enumerate().map(|(index, (who, mut command))| {
            let target = scratch.file(&format!("target{index}.{}", self.target));
            command.arg(&target);
            Contender { who, command, target }
        });
        contenders.collect()
    }

    fn convert(&self, program: &Path, flags: &[&str], source: &Path) -> Command {
        let from = self.source.format();
        let mut command = run::command(program);
        command.arg("convert").args(flags).args(["-f", from, "-O", self.target]).arg(source);
        command
    }

    /// Fails unless our target holds what the disk holds, and nothing is wrong with it.
    fn verify(&self, raw: &Path, contenders: &[Contender]) -> Result<()> {
        for ours in contenders.iter().filter(|contender| contender.who == Who::Ours) {
            let mut compare = run::command("qemu-img");
            compare.args(["compare", "-q", "-f", "raw", "-F", self.target]);
            run::succeed(compare.arg(raw).arg(&ours.target))?;
            if self.target != "raw" {
                let mut check = run::command("qemu-img");
                run::succeed(check.args(["check", "-q", "-f", self.target]).arg(&ours.target))?;
            }
        }
        Ok(())
    }

    /// The row of the table; one more line per further goal.
    fn show(&self, contenders: &[Contender], results: &[Sample]) -> String {
        let fastest = |who| {
            let of = contenders.iter().zip(results).filter(|(contender, _)| contender.who == who);
            of.map(|(_, sample)| *sample).min_by(|a, b| a.seconds.total_cmp(&b.seconds))
        };
        let [limit, theirs, ours] = [Who::Limit, Who::Qemu, Who::Ours].map(fastest);
        let cell = |sample: Option<Sample>| sample.map_or(String::new(), Sample::show);
        let mut text = String::new();
        for (index, goal) in self.goals.iter().enumerate() {
            let ratio = |a: Option<Sample>, b: Option<Sample>, of: fn(&Sample) -> f64| {
                let ratio = of(&a?) / of(&b?);
                ratio.is_finite().then_some(ratio)
            };
            let (name, value) = match goal.against {
                Counted::Speed => ("times the speed", ratio(theirs, ours, |s| s.seconds)),
                Counted::UserCpu => ("of the user CPU", ratio(ours, theirs, |s| s.user_seconds)),
                Counted::Limit => ("times the limit's time", ratio(ours, limit, |s| s.seconds)),
                Counted::Length => ("of the length", ratio(ours, theirs, |s| s.len)),
            };
            let cells = if index == 0 {
                format!("| {} | {} | {} | {} ", self.name, cell(limit), cell(theirs), cell(ours))
            } else {
                "| | | | ".to_owned()
            };
            text += &format!("{cells}| {} | {} |\n", goal.words(name), goal.verdict(value));
        }
        text
    }
}

/// The medians of each.
fn measure_row(programs: &Programs, scale: Scale, contenders: &[Contender]) -> Result<Vec<Sample>> {
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); contenders.len()];
    for round in 0..scale.rounds {
        for turn in 0..contenders.len() {
            let index = (round + turn) % contenders.len();
            samples[index].push(convert_once(programs, &contenders[index])?);
        }
    }
    Ok(samples.iter().map(|samples| medians(samples)).collect())
}

fn lines(contenders: &[Contender]) -> String {
    let line = |contender: &Contender| format!("`{}`", report::short_line(&contender.command));
    contenders.iter().map(line).collect::<Vec<_>>().join(", ")
}

/// Converts into a new file.
fn convert_once(programs: &Programs, contender: &Contender) -> Result<Sample> {
    if contender.target.exists() {
        remove(&contender.target)?;
    }
    run::succeed(&mut run::command("sync"))?;
    eprintln!("  {}", report::short_line(&contender.command));
    let value = programs.measure(&contender.command, &run::root())?;
    let target = fs::metadata(&contender.target).map_err(Failure::io("look at a target"))?;
    Ok(Sample {
        seconds: number(&value, "seconds")?,
        user_seconds: number(&value, "user_seconds")?,
        system_seconds: number(&value, "system_seconds")?,
        peak_kib: number(&value, "peak_kib")?,
        len: bytes(target.len()),
    })
}

fn remove(path: &Path) -> Result<()> {
    fs::remove_file(path).map_err(Failure::io(format!("remove {}", path.display())))
}

fn medians(samples: &[Sample]) -> Sample {
    let of = |field: fn(&Sample) -> f64| median(samples.iter().map(field));
    Sample {
        seconds: of(|sample| sample.seconds),
        user_seconds: of(|sample| sample.user_seconds),
        system_seconds: of(|sample| sample.system_seconds),
        peak_kib: of(|sample| sample.peak_kib),
        len: of(|sample| sample.len),
    }
}

/// Below 2^53, which floating point holds exactly.
#[allow(clippy::cast_precision_loss, reason = "file lengths")]
fn bytes(len: u64) -> f64 {
    len as f64
}

impl Sample {
    fn show(self) -> String {
        format!(
            "{:.2} ({:.2} + {:.2}, {:.0} MiB)",
            self.seconds,
            self.user_seconds,
            self.system_seconds,
            self.peak_kib / 1024.0
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_taken_field_by_field() {
        let sample = |seconds, user_seconds| Sample { seconds, user_seconds, ..Sample::default() };
        let median = medians(&[sample(1.0, 9.0), sample(2.0, 8.0), sample(3.0, 7.0)]);
        assert_eq!((median.seconds, median.user_seconds), (2.0, 8.0));
        assert_eq!(median.show(), "2.00 (8.00 + 0.00, 0 MiB)");
    }

    #[test]
    fn the_faster_of_theirs_counts() {
        let contender = |who| Contender { who, command: run::command("x"), target: PathBuf::new() };
        let contenders = [Who::Limit, Who::Qemu, Who::Qemu, Who::Ours].map(contender);
        let seconds = |seconds| Sample { seconds, ..Sample::default() };
        let text = ROWS[0].show(&contenders, &[2.0, 8.0, 4.0, 2.5].map(seconds));
        assert!(text.contains("| 2.00 (") && text.contains("| 4.00 ("), "{text}");
        assert!(text.contains("1.60, reached") && text.contains("1.25, reached"), "{text}");
    }

    #[test]
    fn each_row_has_a_goal_and_a_name_of_its_own() {
        for rows in [ROWS, VMDK_ROWS] {
            let mut names: Vec<&str> = rows.iter().map(|row| row.name).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), rows.len());
            assert!(rows.iter().all(|row| !row.goals.is_empty()));
        }
    }
}
