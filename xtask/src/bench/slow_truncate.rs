//! A conversion to VMDK onto a file system on which changing a file's length takes long, as over NFS.
//!
//! strace holds each `ftruncate` and `fallocate` before it begins. A library in `LD_PRELOAD` would not do: our
//! file driver makes its system calls itself. It never changes a length through io_uring, which strace
//! would not see.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::report::{self, Goal};
use super::{Programs, Scale, disks, median, number, sources};
use crate::failure::{Failure, Result};
use crate::run;
use crate::scratch::Scratch;

/// As `--row` finds it.
pub(super) const NAME: &str = "onto a slow file system";

/// How long each call is held, in microseconds.
const DELAY_MICROS: u64 = 50_000;

/// What one contender needed.
#[derive(Copy, Clone, Debug, Default)]
struct Outcome {
    /// Not held.
    seconds: f64,
    /// Held.
    slow_seconds: f64,
    /// Calls that were held.
    calls: usize,
}

/// Measures, and returns the table.
pub(super) fn measure(programs: &Programs, scratch: &Scratch, scale: Scale) -> Result<String> {
    eprintln!("bench: {NAME}");
    let (disk, files) = (scale.choose(400 << 20, 100 << 20), scale.choose(296 << 20, 50 << 20));
    let raw = sources::file_system(scratch, "slow.raw", disk, files)?;
    disks::read_whole(&raw)?;
    let programs_of = [Path::new("qemu-img"), &programs.block_img];
    let mut outcomes = [Outcome::default(); 2];
    let mut seconds: [[Vec<f64>; 2]; 2] = Default::default();
    for round in 0..scale.rounds {
        for turn in 0..2 {
            let index = (round + turn) % 2;
            let target = scratch.file("slow.vmdk");
            let convert = convert(programs_of[index], &raw, &target);
            let log = scratch.file("slow.log");
            for (held, command) in [(0, &convert), (1, &under_strace(&convert, &log))] {
                remove(&target)?;
                run::succeed(&mut run::command("sync"))?;
                eprintln!("  {}", report::short_line(command));
                let value = programs.measure(command, &run::root())?;
                seconds[index][held].push(number(&value, "seconds")?);
            }
            let text = fs::read_to_string(&log).map_err(Failure::io("read what strace wrote"))?;
            outcomes[index].calls = text.lines().filter(|line| line.contains('(')).count();
            verify(&raw, &target)?;
            remove(&target)?;
            remove(&log)?;
        }
    }
    for (outcome, [plain, slow]) in outcomes.iter_mut().zip(seconds) {
        (outcome.seconds, outcome.slow_seconds) = (median(plain), median(slow));
    }
    Ok(show(files, &outcomes))
}

fn show(files: u64, [theirs, ours]: &[Outcome; 2]) -> String {
    let mut text = format!(
        "\n## VMDK: {NAME}\n\nraw -> monolithicSparse, an ext4 that holds {} MiB of files; seconds. In the \
         third column `strace --seccomp-bpf` holds every ftruncate and fallocate for {} ms; the other calls \
         run as they are.\n\n\
         | who | seconds | with calls held | calls held |\n|---|---|---|---|\n",
        files >> 20,
        DELAY_MICROS / 1000
    );
    for (who, outcome) in [("qemu-img", theirs), ("block-img", ours)] {
        let Outcome { seconds, slow_seconds, calls } = outcome;
        text += &format!("| {who} | {seconds:.2} | {slow_seconds:.2} | {calls} |\n");
    }
    let goal = Goal::at_least(1.5, ());
    let verdict = goal.verdict(Some(theirs.slow_seconds / ours.slow_seconds));
    text + &format!(
        "\n| to reach | |\n|---|---|\n| {} | {verdict} |\n",
        goal.words("times the speed")
    )
}

fn convert(program: &Path, raw: &Path, target: &Path) -> Command {
    let mut command = run::command(program);
    command.args(["convert", "-f", "raw", "-O", "vmdk"]).arg(raw).arg(target);
    command
}

fn under_strace(convert: &Command, log: &Path) -> Command {
    let mut command = run::command("strace");
    let calls = "ftruncate,fallocate";
    command.args(["-f", "--seccomp-bpf", "-e", &format!("trace={calls}")]);
    command.args(["-e", &format!("inject={calls}:delay_enter={DELAY_MICROS}"), "-o"]).arg(log);
    command.arg(convert.get_program()).args(convert.get_args());
    command
}

/// Fails unless the target holds what the disk holds, and nothing is wrong with it.
fn verify(raw: &Path, target: &Path) -> Result<()> {
    let mut compare = run::command("qemu-img");
    compare.args(["compare", "-q", "-f", "raw", "-F", "vmdk"]);
    run::succeed(compare.arg(raw).arg(target))?;
    run::succeed(run::command("qemu-img").args(["check", "-q", "-f", "vmdk"]).arg(target))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::io(format!("remove {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_is_for_what_is_traced() {
        let convert = convert(Path::new("x"), Path::new("a"), Path::new("b"));
        let line = run::line(&under_strace(&convert, Path::new("log")));
        let expected = "strace -f --seccomp-bpf -e trace=ftruncate,fallocate \
            -e inject=ftruncate,fallocate:delay_enter=50000 -o log x convert -f raw -O vmdk a b";
        assert_eq!(line, expected);
    }

    #[test]
    fn the_slow_runs_are_compared() {
        let outcome = |slow_seconds| Outcome { seconds: 1.0, slow_seconds, calls: 3 };
        let text = show(1 << 20, &[outcome(6.0), outcome(2.0)]);
        assert!(text.contains("| block-img | 1.00 | 2.00 | 3 |"), "{text}");
        assert!(text.contains("3.00, reached"), "{text}");
    }
}
