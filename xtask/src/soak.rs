//! The long runs: random operations, faults and crashes on every driver, until the time is up.
//!
//! What is played stands in ignored tests of the crates. Each plays random games by ever new seeds for as long as
//! it is told to. Here they take turns, a slice of time each, so that a short soak has seen all of them too.
//! A game that fails is made small and printed by its test; the harness adds its seed and the command that
//! plays it again.
//!
//! Invariants: no slice of one run plays a seed that another has played; a test that dies or hangs is a
//! failure of the seed that it played last.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;

use crate::failure::{Failure, Result};
use crate::run;
use crate::scratch::Scratch;

/// Options of `cargo xtask soak`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// How long games are played, without the time that compiling takes [default: 10; with --only and
    /// --seed: the game of that seed only].
    #[arg(long, value_name = "N", value_parser = minutes)]
    minutes: Option<Duration>,
    /// The first seed; other seeds are other games [default: one that was never used].
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Plays one of the soaks only; `--list` names them.
    #[arg(long, value_name = "NAME", value_parser = known)]
    only: Option<&'static Soak>,
    /// Names the soaks and ends.
    #[arg(long)]
    list: bool,
    /// The profile of cargo to build with. `dev` has all assertions on, `release` plays more games.
    #[arg(long, value_name = "NAME", default_value = "dev")]
    profile: String,
}

/// A soak: an ignored test that plays games.
#[derive(Debug)]
struct Soak {
    name: &'static str,
    package: &'static str,
    /// The file in the package's `tests`.
    file: &'static str,
    test: &'static str,
    what: &'static str,
}

/// All of them, in the order in which they take turns.
const SOAKS: &[Soak] = &[
    Soak {
        name: "core-layer",
        package: "block-core",
        file: "request_interleave",
        test: "soak_layer",
        what: "the request layer over disks of all limits, against the flat disk",
    },
    Soak {
        name: "qcow2-model",
        package: "block-qcow2",
        file: "model",
        test: "soak_model",
        what: "qcow2 images against the flat disk, the naive reader and checker",
    },
    Soak {
        name: "qcow2-crash",
        package: "block-qcow2",
        file: "crash",
        test: "soak_crash",
        what: "qcow2 images as crashes may leave them",
    },
    Soak {
        name: "qcow2-faults",
        package: "block-qcow2",
        file: "faults",
        test: "soak_faults",
        what: "qcow2 images on files whose requests fail",
    },
    Soak {
        name: "vmdk-model",
        package: "block-vmdk",
        file: "model",
        test: "soak_model",
        what: "VMDK images against the flat disk, the naive reader and checker",
    },
    Soak {
        name: "vmdk-crash",
        package: "block-vmdk",
        file: "crash",
        test: "soak_crash",
        what: "VMDK images as crashes may leave them",
    },
    Soak {
        name: "vmdk-faults",
        package: "block-vmdk",
        file: "faults",
        test: "soak_faults",
        what: "VMDK images on files whose requests fail",
    },
    Soak {
        name: "iscsi-network",
        package: "block-iscsi",
        file: "pair",
        test: "network::soak_network",
        what: "iSCSI sessions over networks that cut, delay and lie",
    },
    Soak {
        name: "iscsi-model",
        package: "block-iscsi",
        file: "driver_model",
        test: "soak_iscsi_model",
        what: "iSCSI units of all kinds against the flat disk",
    },
];

/// Longest turn of a soak.
const SLICE_MAX: Duration = Duration::from_secs(30);
/// Shortest turn of a soak.
const SLICE_MIN: Duration = Duration::from_secs(2);
/// Seeds between two turns of a soak: more games than one turn can play.
const STRIDE: u64 = 1 << 32;
/// How long a game may go on after its turn has ended. What fails is made small in this time, too.
const GRACE: Duration = Duration::from_secs(600);
/// How often a test is looked at.
const TICK: Duration = Duration::from_millis(50);

/// Whether somebody wants the run to end.
static STOP: AtomicBool = AtomicBool::new(false);

/// Plays until the time is up, a game fails, or somebody presses Ctrl-C.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.list {
        for Soak { name, what, .. } in SOAKS {
            println!("{name:<14}  {what}");
        }
        return Ok(());
    }
    ctrlc::set_handler(|| STOP.store(true, Ordering::SeqCst)).map_err(|error| Failure::Io {
        what: "listen to signals".to_owned(),
        source: std::io::Error::other(error),
    })?;
    let soaks: Vec<&Soak> = match arguments.only {
        Some(soak) => vec![soak],
        None => SOAKS.iter().collect(),
    };
    let scratch = Scratch::new("soak")?;
    let built = build(&soaks, &arguments.profile, &scratch);
    if stopped() {
        println!("soak: stopped while it was compiling");
        return Ok(());
    }
    let built = built?;
    if let (Some(_), Some(seed), None) = (arguments.only, arguments.seed, arguments.minutes) {
        return built.first().map_or(Ok(()), |soak| soak.again(seed));
    }
    let time = arguments.minutes.unwrap_or(Duration::from_secs(600));
    let seed = arguments.seed.unwrap_or_else(fresh_seed);
    println!("soak: {} from seed {seed} on", text_of(time));
    take_turns(&built, time, seed)
}

fn take_turns(soaks: &[Built], time: Duration, seed: u64) -> Result<()> {
    let start = Instant::now();
    let slice = slice(time, soaks.len());
    let mut turns = 0u64;
    for (round, soak) in (0u64..).flat_map(|round| soaks.iter().map(move |soak| (round, soak))) {
        let left = time.saturating_sub(start.elapsed());
        if left.is_zero() {
            break;
        }
        let first = seed.wrapping_add(round.wrapping_mul(STRIDE));
        let end = soak.play(Games::From { first, time: slice.min(left) }, GRACE)?;
        let line = |text: &str| {
            println!("[{} of {}] {}: {text}", text_of(start.elapsed()), text_of(time), soak.name);
        };
        match end {
            End::Passed { summary } => line(&summary),
            End::Stopped => break,
            End::Failed { .. } => return Err(soak.report(&end)),
        }
        turns += 1;
    }
    let how = if stopped() { "stopped" } else { "over" };
    println!("soak: {how} after {}, {turns} turns, nothing failed", text_of(start.elapsed()));
    Ok(())
}

/// Compiles the tests of the soaks: as a part of the workspace, as `cargo test --workspace` does.
fn build(soaks: &[&Soak], profile: &str, scratch: &Scratch) -> Result<Vec<Built>> {
    let mut cargo = run::cargo();
    cargo.args(["test", "--no-run", "--workspace", "--profile", profile]);
    let files: BTreeSet<&str> = soaks.iter().map(|soak| soak.file).collect();
    for file in files {
        cargo.args(["--test", file]);
    }
    let programs = run::built(&mut cargo)?;
    let built = soaks.iter().map(|soak| {
        let Soak { name, package, file, test, .. } = soak;
        let program = programs.get(&(package.to_string(), file.to_string()));
        Ok(Built {
            name,
            program: program.cloned().ok_or_else(|| Failure::Output {
                command: run::line(&cargo),
                problem: format!("no test {file} of {package}"),
            })?,
            arguments: vec!["--ignored", "--exact", "--nocapture", test],
            note: scratch.file(&format!("{name}.seed")),
            output: scratch.file(&format!("{name}.output")),
        })
    });
    built.collect()
}

/// A soak and its compiled test.
struct Built {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<&'static str>,
    /// Where the test says which game it plays.
    note: PathBuf,
    /// What the test prints.
    output: PathBuf,
}

/// Which games a test plays.
#[derive(Copy, Clone)]
enum Games {
    /// That of this seed.
    Only(u64),
    /// Those of this seed and the ones after it, for a time.
    From { first: u64, time: Duration },
}

/// How a turn ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// Nothing failed; the test's own line about it.
    Passed { summary: String },
    /// Something did, in the game of this seed if the test had begun one.
    Failed { seed: Option<u64>, how: String },
    /// Somebody wanted the run to end.
    Stopped,
}

impl Built {
    /// Plays one game.
    fn again(&self, seed: u64) -> Result<()> {
        let end = self.play(Games::Only(seed), GRACE)?;
        match &end {
            End::Passed { summary } => println!("{}: {summary}, nothing failed", self.name),
            End::Stopped => println!("soak: stopped"),
            End::Failed { .. } => return Err(self.report(&end)),
        }
        Ok(())
    }

    /// Runs the test, for no longer than it should take and `grace`.
    fn play(&self, games: Games, grace: Duration) -> Result<End> {
        let io = |what: &str| Failure::io(format!("{what} {}", self.output.display()));
        remove(&self.note)?;
        let output = File::create(&self.output).map_err(io("create"))?;
        let also = output.try_clone().map_err(io("open"))?;
        let mut test = run::command(&self.program);
        test.args(&self.arguments).stdout(output).stderr(also).env("BLOCK_NOTE", &self.note);
        for variable in ["BLOCK_SEED", "BLOCK_FIRST", "BLOCK_SECONDS", "BLOCK_CASES"] {
            test.env_remove(variable);
        }
        let time = match games {
            Games::Only(seed) => {
                test.env("BLOCK_SEED", seed.to_string());
                Duration::ZERO
            }
            Games::From { first, time } => {
                // Whole seconds, and not none.
                let seconds = time.as_secs().max(1);
                test.env("BLOCK_FIRST", first.to_string());
                test.env("BLOCK_SECONDS", seconds.to_string());
                Duration::from_secs(seconds)
            }
        };
        // Ctrl-C is for the harness, which ends the test.
        test.process_group(0);
        let started = test.spawn();
        let mut child = started.map_err(|source| Failure::Start {
            program: self.program.display().to_string(),
            source,
        })?;
        let ended = wait(&mut child, Instant::now() + time + grace);
        let how = match ended.map_err(io("wait for the test of"))? {
            Waited::Ended(status) if status.success() => {
                return Ok(End::Passed { summary: self.summary()? });
            }
            Waited::Ended(status) => format!("ended with {status}"),
            Waited::Late => format!("did not end {} after its time", text_of(grace)),
            Waited::Stopped => return Ok(End::Stopped),
        };
        Ok(End::Failed { seed: self.playing(), how })
    }

    /// The seed of the last game that was begun.
    fn playing(&self) -> Option<u64> {
        fs::read_to_string(&self.note).ok()?.trim().parse().ok()
    }

    /// What a test says at its end of the games that it has played.
    fn summary(&self) -> Result<String> {
        let what = format!("read {}", self.output.display());
        let text = fs::read_to_string(&self.output).map_err(Failure::io(what))?;
        let line = text.lines().rfind(|line| line.contains(" games from seed "));
        line.map(|line| line.trim().to_owned()).ok_or_else(|| Failure::Output {
            command: self.program.display().to_string(),
            problem: "nothing about its games: no such test?".to_owned(),
        })
    }

    /// Prints what the test printed; the failure names the seed and the command that plays it again.
    fn report(&self, end: &End) -> Failure {
        let text = fs::read(&self.output).unwrap_or_default();
        print!("{}", String::from_utf8_lossy(&text));
        let (seed, how) = match end {
            End::Failed { seed, how } => (*seed, how.as_str()),
            End::Passed { .. } | End::Stopped => (None, "did not fail"),
        };
        Failure::Soak { name: self.name, how: how.to_owned(), seed }
    }
}

enum Waited {
    Ended(ExitStatus),
    Late,
    Stopped,
}

/// Waits for the end of a child, which is killed at `deadline` or when somebody wants the run to end.
fn wait(child: &mut Child, deadline: Instant) -> std::io::Result<Waited> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(if stopped() { Waited::Stopped } else { Waited::Ended(status) });
        }
        let why = match () {
            () if stopped() => Waited::Stopped,
            () if Instant::now() >= deadline => Waited::Late,
            () => {
                std::thread::sleep(TICK);
                continue;
            }
        };
        child.kill()?;
        child.wait()?;
        return Ok(why);
    }
}

fn stopped() -> bool {
    STOP.load(Ordering::SeqCst)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::io(format!("remove {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}

/// How long a turn is, so that within `time` each of `count` soaks has one.
fn slice(time: Duration, count: usize) -> Duration {
    let even = time / u32::try_from(count.max(1)).unwrap_or(u32::MAX);
    even.clamp(SLICE_MIN, SLICE_MAX)
}

/// A seed whose games were not played yet, most likely: the present second, with room between two.
fn fresh_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs()).wrapping_mul(1 << 16)
}

fn minutes(text: &str) -> std::result::Result<Duration, String> {
    let wrong = || format!("{text:?} is not a number of minutes above 0");
    let minutes: f64 = text.parse().map_err(|_| wrong())?;
    let time = Duration::try_from_secs_f64(minutes * 60.0).map_err(|_| wrong())?;
    if time < Duration::from_secs(1) { Err(wrong()) } else { Ok(time) }
}

fn known(name: &str) -> std::result::Result<&'static Soak, String> {
    SOAKS.iter().find(|soak| soak.name == name).ok_or_else(|| {
        let names: Vec<&str> = SOAKS.iter().map(|soak| soak.name).collect();
        format!("there are {}", names.join(", "))
    })
}

fn text_of(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds => format!("{:.1} min", Duration::from_secs(seconds).as_secs_f64() / 60.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A soak whose test is a script; `$BLOCK_...` is there as for a real one.
    fn scripted(scratch: &Scratch, script: &'static str) -> Built {
        Built {
            name: "core-layer",
            program: "sh".into(),
            arguments: vec!["-c", script],
            note: scratch.file("seed"),
            output: scratch.file("output"),
        }
    }

    const TURN: Games = Games::From { first: 40, time: Duration::from_secs(1) };

    #[test]
    fn a_game_that_fails_is_reported_with_the_command_that_plays_it_again() {
        let scratch = Scratch::new("soak-test-failing").unwrap();
        let fails_at_43 = "if [ -n \"$BLOCK_SEED\" ]; then echo $BLOCK_SEED >$BLOCK_NOTE; \
                           else echo 43 >$BLOCK_NOTE; fi; \
                           [ $(cat $BLOCK_NOTE) != 43 ] || exit 101; \
                           echo 'x: 1 games from seed 0 on'";
        let soak = scripted(&scratch, fails_at_43);
        let end = soak.play(TURN, GRACE).unwrap();
        assert!(matches!(end, End::Failed { seed: Some(43), .. }), "{end:?}");
        let text = soak.report(&end).to_string();
        let command = "cargo xtask soak --only core-layer --seed 43";
        assert!(text.contains(command) && text.contains("101"), "{text}");
        // What is reported is a command line that plays that game.
        let words = command.split_whitespace().skip(2);
        let arguments = <Parsed as clap::Parser>::try_parse_from(words).unwrap().arguments;
        assert_eq!(arguments.only.map(|soak| soak.name), Some("core-layer"));
        assert_eq!((arguments.seed, arguments.minutes), (Some(43), None));
        assert!(soak.again(43).is_err());
        soak.again(44).unwrap();
    }

    #[derive(clap::Parser)]
    struct Parsed {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn a_test_that_dies_or_hangs_is_a_failure_of_the_seed_that_it_played() {
        let scratch = Scratch::new("soak-test-dying").unwrap();
        for script in ["echo 7 >$BLOCK_NOTE; kill -SEGV $$", "echo 7 >$BLOCK_NOTE; exec sleep 60"] {
            let end = scripted(&scratch, script).play(TURN, Duration::from_millis(100)).unwrap();
            assert!(matches!(end, End::Failed { seed: Some(7), .. }), "{script}: {end:?}");
        }
        // Before its first game.
        let end = scripted(&scratch, "exit 1").play(TURN, GRACE).unwrap();
        assert!(matches!(end, End::Failed { seed: None, .. }), "{end:?}");
        // A name that no test has makes a program that passes and has played nothing.
        assert!(scripted(&scratch, "exit 0").play(TURN, GRACE).is_err());
    }

    #[test]
    fn turns_go_round_by_new_seeds_until_the_time_is_up() {
        let scratch = Scratch::new("soak-test-turns").unwrap();
        let script = "echo $BLOCK_FIRST $BLOCK_SECONDS >>$BLOCK_NOTE.all; sleep 0.4; \
                      echo 'x: 1 games from seed 0 on'";
        let soaks = [scripted(&scratch, script), scripted(&scratch, script)];
        let start = Instant::now();
        take_turns(&soaks, Duration::from_secs(1), 5).unwrap();
        assert!(start.elapsed() >= Duration::from_secs(1));
        let seen = fs::read_to_string(scratch.file("seed.all")).unwrap();
        let seen: Vec<&str> = seen.lines().collect();
        let next = 5 + STRIDE;
        assert_eq!(seen[..3], ["5 1", "5 1", format!("{next} 1").as_str()]);
    }

    #[test]
    fn every_soak_has_a_turn_in_a_short_time() {
        assert_eq!(slice(Duration::from_secs(60), 9), Duration::from_secs(60) / 9);
        assert_eq!(slice(Duration::from_secs(6000), 9), SLICE_MAX);
        assert_eq!(slice(Duration::from_secs(3), 9), SLICE_MIN);
    }

    #[test]
    fn minutes_may_have_a_fraction_and_are_above_zero() {
        assert_eq!(minutes("0.5"), Ok(Duration::from_secs(30)));
        for wrong in ["0", "-1", "x", "inf", "nan", "1e300"] {
            assert!(minutes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn each_soak_has_its_own_name_and_its_test_is_there() {
        for soak in SOAKS {
            assert_eq!(SOAKS.iter().filter(|other| other.name == soak.name).count(), 1);
            let tests = run::root().join(soak.package).join("tests");
            let (file, name) = match soak.test.split_once("::") {
                Some((module, name)) => (format!("{}/{module}.rs", soak.file), name),
                None => (format!("{}.rs", soak.file), soak.test),
            };
            let text = fs::read_to_string(tests.join(file)).unwrap();
            assert!(text.contains(&format!("fn {name}()")), "{}", soak.name);
        }
    }
}
