//! libiscsi's conformance program, `iscsi-test-cu`: one process per test, since all in one hang.
//!
//! What is not passed is known, by name and with its reason; a test that is not known to be skipped must
//! not be, and one that is must be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::{Unit, bounded, print, url};
use crate::failure::Result;
use crate::run;
use crate::served::Served;

const PROGRAM: &str = "iscsi-test-cu";
/// The longest test takes five seconds on an idle machine.
const SECONDS_MAX: &str = "60";

/// Tests that are skipped, and why. Version 1.19 has none of them; there is a unit for each of its own.
const SKIPPED: [(&str, &str); 7] = [
    ("ALL.ExtendedCopy.Large", "segments with byte offsets are not implemented"),
    ("ALL.iSCSICHAP.Base64", NO_ACCOUNT),
    ("ALL.iSCSICHAP.Base64Name", NO_ACCOUNT),
    ("ALL.iSCSICHAP.Base64Oversize", NO_ACCOUNT),
    ("ALL.iSCSICHAP.HexName", NO_ACCOUNT),
    ("ALL.iSCSICHAP.Invalid", NO_ACCOUNT),
    ("ALL.iSCSICHAP.Simple", NO_ACCOUNT),
];
const NO_ACCOUNT: &str = "the target asks for no account";

/// A test that some versions of the program fail before any target.
struct Broken {
    test: &'static str,
    /// How that failure is known from others.
    prints: &'static str,
    reason: &'static str,
}

const OWN_QUEUE: &str = "CU_ASSERT_EQUAL(iscsi_out_queue_length(sd->iscsi_ctx),1)";
const EMPTIED: &str = "1.20 looks for a request in a queue that libiscsi may have emptied already";

const BROKEN: [Broken; 6] = [
    Broken {
        test: "ALL.iSCSITMF.LUNResetSimpleAsync",
        prints: "CU_ASSERT_EQUAL(reconnect_succeeded,1)",
        reason: "1.19 looks for the answer to a reset that it has only queued",
    },
    Broken { test: "ALL.iSCSITMF.LUNResetSimpleAsync", prints: OWN_QUEUE, reason: EMPTIED },
    Broken { test: "ALL.iSCSITMF.AbortTaskSimpleAsync", prints: OWN_QUEUE, reason: EMPTIED },
    Broken {
        test: "ALL.CompareAndWrite.InvalidDataOutSize",
        prints: "(0x0e)/(0x1d00)",
        reason: "1.20 changes every PDU but the command, so that the command is right",
    },
    Broken {
        test: "ALL.iSCSISendTargets.Simple",
        prints: "CU_ASSERT_EQUAL(status,0)",
        reason: "1.20 wants SendTargets=All answered in a normal session, where RFC 7143 forbids it",
    },
    Broken {
        test: "ALL.iSCSISendTargets.Invalid",
        prints: "Test: Invalid ...",
        reason: "1.20 wants the same, and a failure where RFC 7143 has NotUnderstood",
    },
];

/// Tests, by the beginning of their names, that need a special unit.
const SPECIAL: [(&str, Unit); 13] = [
    ("ALL.NoMedia.", Unit::Removable),
    ("ALL.PreventAllow.", Unit::Removable),
    ("ALL.StartStopUnit.", Unit::Removable),
    ("ALL.ReadOnly.", Unit::Protected),
    ("ALL.Sanitize.Reset", Unit::Slow),
    ("ALL.CompareAndWrite.InvalidDataOutSize", Unit::Physical),
    ("ALL.WriteSame10.InvalidDataOutSize", Unit::Physical),
    ("ALL.WriteSame10.UnmapUnaligned", Unit::Physical),
    ("ALL.WriteSame10.ZeroBlocks", Unit::Physical),
    ("ALL.WriteSame16.InvalidDataOutSize", Unit::Physical),
    ("ALL.WriteSame16.UnmapUnaligned", Unit::Physical),
    ("ALL.WriteSame16.ZeroBlocks", Unit::Physical),
    // It clears 256 blocks and uses one more.
    ("ALL.MultipathIO.CompareAndWrite", Unit::Fresh),
];

/// How a test ended.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Verdict {
    Passed,
    Skipped,
    Failed(Vec<String>),
}

/// What came of the tests of a family.
#[derive(Default)]
struct Family {
    passed: usize,
    skipped: usize,
    time: Duration,
    surprises: usize,
    wrong: Vec<String>,
}

/// Whether a test's name may contain this; a name is `iscsi-test-cu ALL.Family.Test`.
pub(super) fn may_contain(only: &str) -> bool {
    only.is_empty() || only.contains("iscsi") || only.contains("ALL.")
}

/// Runs all tests whose name contains `only`, on all servers at once; how many, and how many surprises.
pub(super) fn check_all(servers: &[Served], only: &str) -> Result<(usize, usize)> {
    if !may_contain(only) {
        return Ok((0, 0));
    }
    let wanted = |test: &str| format!("{PROGRAM} {test}").contains(only);
    let listed = run::stdout(run::command(PROGRAM).arg("-l"))?;
    let all: BTreeSet<&str> = listed.lines().map(str::trim).filter(|line| is_test(line)).collect();
    let chosen: Vec<&str> = all.iter().copied().filter(|test| wanted(test)).collect();
    let queue = Mutex::new(chosen.iter().rev().copied().collect::<Vec<_>>());
    let next = || queue.lock().ok()?.pop();
    let ended: Vec<Result<Vec<Ended>>> = std::thread::scope(|scope| {
        let jobs: Vec<_> = servers
            .iter()
            .map(|server| {
                scope.spawn(move || {
                    std::iter::from_fn(next).map(|test| run_test(server, test)).collect()
                })
            })
            .collect();
        jobs.into_iter().filter_map(|job| job.join().ok()).collect()
    });
    let ended = ended.into_iter().collect::<Result<Vec<_>>>()?.concat();
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    for test in &ended {
        families.entry(family(test.name).to_owned()).or_default().add(test);
    }
    let mut surprises = chosen.len() - ended.len();
    for (name, family) in &families {
        let counts = [family.passed, family.skipped];
        print(&format!("{PROGRAM} {name}"), counts, family.time.as_secs_f64(), &family.wrong);
        surprises += family.surprises;
    }
    Ok((chosen.len(), surprises))
}

/// A test that has ended.
#[derive(Clone)]
struct Ended<'a> {
    name: &'a str,
    verdict: Verdict,
    time: Duration,
}

impl Family {
    fn add(&mut self, test: &Ended<'_>) {
        self.time += test.time;
        let name = test.name;
        let skipped = SKIPPED.iter().find(|(known, _)| *known == name);
        match (&test.verdict, skipped) {
            (Verdict::Passed, None) => self.passed += 1,
            (Verdict::Passed, Some(_)) => {
                self.surprise(format!("{name} passed and is known to be skipped"));
            }
            (Verdict::Skipped, Some((_, reason))) => {
                self.skipped += 1;
                println!("{name} is skipped: {reason}");
            }
            (Verdict::Skipped, None) => self.surprise(format!("{name} was skipped")),
            (Verdict::Failed(said), _) => match excuse(name, said) {
                Some(reason) => println!("{name} fails whatever the target does: {reason}"),
                None => self.surprise(format!("{name} failed:\n{}", said.join("\n"))),
            },
        }
    }

    fn surprise(&mut self, what: String) {
        self.surprises += 1;
        self.wrong.push(what);
    }
}

/// Why a test may fail, if it fails in the way that is known.
fn excuse(name: &str, said: &[String]) -> Option<&'static str> {
    let known = |broken: &&Broken| {
        broken.test == name && said.iter().any(|line| line.contains(broken.prints))
    };
    BROKEN.iter().find(known).map(|broken| broken.reason)
}

/// Runs one test. Both URLs are of one unit: the second is another way to it.
fn run_test<'a>(server: &Served, name: &'a str) -> Result<Ended<'a>> {
    let start = Instant::now();
    let url = url(server, unit(name));
    let mut command = run::command("timeout");
    command.args([SECONDS_MAX, PROGRAM, "-d", "-S", "-f", "-v", "-t", name, &url, &url]);
    let (line, printed, status) = bounded(&mut command)?;
    let verdict = verdict(&line, &printed, status);
    Ok(Ended { name, verdict, time: start.elapsed() })
}

fn verdict(line: &str, printed: &str, status: Option<i32>) -> Verdict {
    match status {
        Some(0) if printed.contains("[SKIPPED]") => Verdict::Skipped,
        Some(0) => Verdict::Passed,
        // 124 is of `timeout`; 255 says that the program could not begin.
        _ => {
            let told = printed.lines().map(str::trim).filter(|line| !line.is_empty());
            let ended = format!("`{line}` ended with {status:?}");
            Verdict::Failed(std::iter::once(ended).chain(told.map(str::to_owned)).collect())
        }
    }
}

fn unit(name: &str) -> Unit {
    let special = SPECIAL.iter().find(|(prefix, _)| name.starts_with(prefix));
    special.map_or(Unit::Plain, |(_, unit)| *unit)
}

/// `ALL.Family.Test`: the other lines are families and parts of them.
fn is_test(line: &str) -> bool {
    line.starts_with("ALL.") && line.split('.').count() == 3
}

fn family(test: &str) -> &str {
    test.split('.').nth(1).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(name: &str, verdict: Verdict) -> Ended<'_> {
        Ended { name, verdict, time: Duration::ZERO }
    }

    #[test]
    fn a_skip_is_no_pass_and_a_timeout_is_a_failure() {
        assert_eq!(verdict("x", "Suite: A\n  Test: B ... passed", Some(0)), Verdict::Passed);
        assert_eq!(verdict("x", "Test: B ... [SKIPPED] no medium", Some(0)), Verdict::Skipped);
        for status in [Some(1), Some(124), Some(255), None] {
            assert!(matches!(verdict("x", "passed", status), Verdict::Failed(_)));
        }
    }

    #[test]
    fn what_is_not_known_is_a_surprise() {
        let mut family = Family::default();
        family.add(&ended("ALL.Read6.Simple", Verdict::Passed));
        assert_eq!((family.passed, family.surprises), (1, 0));
        family.add(&ended("ALL.Read6.Simple", Verdict::Skipped));
        family.add(&ended("ALL.Read6.Simple", Verdict::Failed(vec!["no".to_owned()])));
        assert_eq!((family.passed, family.surprises, family.wrong.len()), (1, 2, 2));
        let (skipped, _) = SKIPPED[0];
        family.add(&ended(skipped, Verdict::Skipped));
        assert_eq!((family.skipped, family.surprises), (1, 2));
        family.add(&ended(skipped, Verdict::Passed));
        assert_eq!((family.passed, family.surprises), (1, 3));
    }

    #[test]
    fn only_a_failure_of_the_known_kind_is_excused() {
        let mut family = Family::default();
        let Broken { test, prints, .. } = &BROKEN[0];
        family.add(&ended(test, Verdict::Failed(vec![format!("1. x.c:1 - {prints}")])));
        family.add(&ended(test, Verdict::Passed));
        assert_eq!((family.passed, family.surprises), (1, 0));
        family.add(&ended(test, Verdict::Failed(vec!["1. x.c:2 - something else".to_owned()])));
        assert_eq!(family.surprises, 1);
    }

    #[test]
    fn tests_get_the_unit_that_they_need() {
        for (name, expected) in [
            ("ALL.NoMedia.NoMediaSBC", Unit::Removable),
            ("ALL.Sanitize.Reset", Unit::Slow),
            ("ALL.Sanitize.Readonly", Unit::Plain),
            ("ALL.WriteSame16.UnmapUnaligned", Unit::Physical),
            ("ALL.WriteSame10.ZeroBlocks", Unit::Physical),
            ("ALL.WriteSame10.Unmap", Unit::Plain),
            ("ALL.MultipathIO.Simple", Unit::Plain),
            ("ALL.Read10.ZeroBlocks", Unit::Plain),
        ] {
            assert_eq!(unit(name), expected, "{name}");
        }
        assert!(
            is_test("ALL.Read6.Simple") && !is_test("ALL.Read6") && !is_test("SCSI.Read6.Simple")
        );
    }
}
