//! Conversions of a disk with a real file system to raw.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::report::{self, Goal};
use super::{Programs, Scale, median, number, sources};
use crate::failure::{Failure, Result};
use crate::run;
use crate::scratch::Scratch;

/// A row of the table.
struct Row {
    name: &'static str,
    /// How `qemu-img convert` makes the source from the raw disk.
    made_with: &'static [&'static str],
    goals: &'static [Goal<Counted>],
}

/// What a goal counts, of qemu-img's and ours.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Counted {
    /// qemu-img's wall clock over ours.
    Speed,
    /// Our user CPU over qemu-img's.
    UserCpu,
}

const ROWS: &[Row] = &[
    Row { name: "qcow2 -> raw", made_with: &[], goals: &[Goal::at_least(1.3, Counted::Speed)] },
    Row {
        name: "qcow2 zlib -> raw",
        made_with: &["-c"],
        goals: &[Goal::at_least(1.5, Counted::Speed), Goal::at_most(0.5, Counted::UserCpu)],
    },
    Row {
        name: "qcow2 zstd -> raw",
        made_with: &["-c", "-o", "compression_type=zstd"],
        goals: &[Goal::at_least(1.1, Counted::Speed)],
    },
];

/// One conversion, or the medians of several.
#[derive(Copy, Clone, Debug, Default)]
struct Sample {
    seconds: f64,
    user_seconds: f64,
    system_seconds: f64,
    peak_kib: f64,
}

/// Makes the disk and measures all rows whose name contains `only`.
pub(super) fn measure(
    programs: &Programs,
    scratch: &Scratch,
    scale: Scale,
    only: &str,
) -> Result<String> {
    let (disk, files) = (scale.choose(2400 << 20, 200 << 20), scale.choose(1490 << 20, 100 << 20));
    let raw = sources::file_system(scratch, "disk.raw", disk, files)?;
    let mut text = format!(
        "\n## Conversions\n\n{} MiB disk with an ext4 that holds {} MiB of files of the machine's \
         /usr. Seconds; user and system CPU seconds and peak memory in brackets. The target is new \
         each time, what was written before is on the disk (`sync`), the source is in the page cache.\n\n\
         | work | qemu-img | block-img | to reach | |\n|---|---|---|---|---|\n",
        disk >> 20,
        files >> 20
    );
    for row in ROWS.iter().filter(|row| row.name.contains(only)) {
        eprintln!("bench: {}", row.name);
        let source = scratch.file("source.qcow2");
        let mut make = run::command("qemu-img");
        make.args(["convert", "-m", "8", "-W", "-f", "raw", "-O", "qcow2"]);
        run::succeed(make.args(row.made_with).args([&raw, &source]))?;
        text += &row.measure(programs, scratch, scale, &source)?;
    }
    text += &format!("\nCommand of both: `{}`.\n", FLAGS.join(" "));
    Ok(text)
}

/// The best flags of qemu-img, and the same for block-img.
const FLAGS: &[&str] = &["convert", "-m", "8", "-W", "-f", "qcow2", "-O", "raw"];

impl Row {
    fn measure(
        &self,
        programs: &Programs,
        scratch: &Scratch,
        scale: Scale,
        source: &Path,
    ) -> Result<String> {
        let tools = [Path::new("qemu-img"), &programs.block_img];
        let targets = [scratch.file("theirs.raw"), scratch.file("ours.raw")];
        let mut samples: [Vec<Sample>; 2] = [Vec::new(), Vec::new()];
        for round in 0..scale.rounds {
            for turn in 0..tools.len() {
                let index = (round + turn) % tools.len();
                let mut convert = run::command(tools[index]);
                convert.args(FLAGS).arg(source).arg(&targets[index]);
                samples[index].push(convert_once(programs, &convert, &targets[index])?);
            }
        }
        let mut compare = run::command("qemu-img");
        compare.args(["compare", "-q", "-f", "raw", "-F", "raw"]);
        run::succeed(compare.args(&targets))?;
        let [theirs, ours] = samples.map(|samples| medians(&samples));
        let mut text = String::new();
        for (index, goal) in self.goals.iter().enumerate() {
            let (name, value) = match goal.against {
                Counted::Speed => ("times the speed", theirs.seconds / ours.seconds),
                Counted::UserCpu => ("of the user CPU", ours.user_seconds / theirs.user_seconds),
            };
            let cells = if index == 0 {
                format!("| {} | {} | {} ", self.name, theirs.show(), ours.show())
            } else {
                "| | | ".to_owned()
            };
            let verdict = goal.verdict(value.is_finite().then_some(value));
            text += &format!("{cells}| {} | {verdict} |\n", goal.words(name));
        }
        Ok(text)
    }
}

/// Converts into a new file.
fn convert_once(programs: &Programs, convert: &Command, target: &Path) -> Result<Sample> {
    if target.exists() {
        let what = format!("remove {}", target.display());
        fs::remove_file(target).map_err(Failure::io(what))?;
    }
    run::succeed(&mut run::command("sync"))?;
    eprintln!("  {}", report::short_line(convert));
    let value = programs.measure(convert, &run::root())?;
    Ok(Sample {
        seconds: number(&value, "seconds")?,
        user_seconds: number(&value, "user_seconds")?,
        system_seconds: number(&value, "system_seconds")?,
        peak_kib: number(&value, "peak_kib")?,
    })
}

fn medians(samples: &[Sample]) -> Sample {
    let of = |field: fn(&Sample) -> f64| median(samples.iter().map(field));
    Sample {
        seconds: of(|sample| sample.seconds),
        user_seconds: of(|sample| sample.user_seconds),
        system_seconds: of(|sample| sample.system_seconds),
        peak_kib: of(|sample| sample.peak_kib),
    }
}

impl Sample {
    fn show(&self) -> String {
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
}
