//! The test kit's iSCSI target before libiscsi's programs: its tools, and its conformance program
//! (`conformance.rs`).
//!
//! A unit for each kind of question, so that nothing has to be skipped. Invariant: each server is used
//! by one program at a time, since the programs write, reset and reserve.

mod conformance;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::failure::{Failure, Result};
use crate::served::Served;
use crate::{run, setup};

/// A kind of unit; its number is its place in [`UNITS`].
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Unit {
    Plain,
    Removable,
    Protected,
    /// What sanitizes for a while.
    Slow,
    /// Whose physical blocks are of several blocks, and where WRITE SAME may go to the end.
    Physical,
    /// Whose blocks have to be zeroes at first.
    Fresh,
}

/// The units, as the target takes them. The conformance program writes 32 MiB at once, whatever the limit.
const UNITS: [(Unit, &str); 6] = [
    (Unit::Plain, "thin:64M,serial=plain,max-transfer=65536"),
    (Unit::Removable, "thin:64M,serial=removable,removable"),
    (Unit::Protected, "thin:64M,serial=protected,wp"),
    (Unit::Slow, "thin:64M,serial=slow,sanitize-steps=5"),
    (Unit::Physical, "thin:64M,serial=physical,physical=3,write-same-zero,max-write-same=65536"),
    (Unit::Fresh, "thin:64M,serial=fresh"),
];

pub(super) fn start(program: &Path) -> Result<Served> {
    Served::start(program, &UNITS.map(|(_, unit)| unit))
}

/// The URL of a unit that is thin, without any speciality.
pub(super) fn plain(server: &Served) -> String {
    url(server, Unit::Plain)
}

fn url(server: &Served, unit: Unit) -> String {
    server.url(UNITS.iter().position(|(kind, _)| *kind == unit).unwrap_or(0))
}

/// What a tool must print, given arguments before the URL.
struct Tool {
    program: &'static str,
    arguments: &'static [&'static str],
    /// None: the portal alone.
    unit: Option<Unit>,
    /// Each must be in what is printed.
    prints: &'static [&'static str],
}

const fn tool(
    program: &'static str,
    arguments: &'static [&'static str],
    unit: Option<Unit>,
    prints: &'static [&'static str],
) -> Tool {
    Tool { program, arguments, unit, prints }
}

const PLAIN: Option<Unit> = Some(Unit::Plain);

/// In this order: write protection that is switched on is switched off again.
#[rustfmt::skip]
const TOOLS: &[Tool] = &[
    tool("iscsi-ls", &[], None, &["Target:iqn.2026-01.org.example:served Portal:127.0.0.1:"]),
    tool("iscsi-ls", &["-s"], None, &["Lun:0 ", "Lun:1 ", "Lun:2 ", "Lun:3 ", "Lun:4 ", "Lun:5 ", "Type:DIRECT_ACCESS (Size:63M)"]),
    tool("iscsi-inq", &[], PLAIN, &["Removable:0", "3PC:1", "Vendor:TESTKIT", "Version Descriptor:0460 SPC-4", "Version Descriptor:04c0 SBC-3", "Version Descriptor:0960 iSCSI"]),
    tool("iscsi-inq", &[], Some(Unit::Removable), &["Removable:1"]),
    tool("iscsi-inq", &["-e", "1", "-c", "0"], PLAIN, &["UNIT_SERIAL_NUMBER", "DEVICE_IDENTIFICATION", "BLOCK_LIMITS", "BLOCK_DEVICE_CHARACTERISTICS", "LOGICAL_BLOCK_PROVISIONING"]),
    tool("iscsi-inq", &["-e", "1", "-c", "128"], PLAIN, &["Unit Serial Number:[plain]"]),
    tool("iscsi-inq", &["-e", "1", "-c", "131"], PLAIN, &["Designator Type:(3) NAA", "Designator:[TESTKIT plain]"]),
    tool("iscsi-inq", &["-e", "1", "-c", "176"], PLAIN, &["wsnz:1", "maximum transfer length:65536", "optimal unmap granularity:1"]),
    tool("iscsi-inq", &["-e", "1", "-c", "178"], PLAIN, &["lbpu:1", "lbpws:1", "lbprz:1", "provisioning type:2"]),
    tool("iscsi-readcapacity16", &["-s"], PLAIN, &["67108864\n"]),
    tool("iscsi-readcapacity16", &[], Some(Unit::Physical), &["LENGTH IN BYTES:512", "BLOCK EXPONENT:3", "LBPME:1 LBPRZ:1"]),
    tool("iscsi-swp", &["--swp", "on"], PLAIN, &["SWP:0", "Turning SWP ON"]),
    tool("iscsi-swp", &["--swp", "off"], PLAIN, &["SWP:1", "Turning SWP OFF"]),
    tool("iscsi-swp", &[], PLAIN, &["SWP:0"]),
    tool("iscsi-perf", &["-t", "1", "-m", "32", "-b", "8", "-r"], PLAIN, &["iops average"]),
    tool("iscsi-perf", &["-t", "1", "-m", "1", "-b", "512"], Some(Unit::Protected), &["iops average"]),
];

impl Tool {
    fn name(&self) -> String {
        [&[self.program], self.arguments].concat().join(" ")
    }

    /// What is wrong with what it prints.
    fn check(&self, server: &Served) -> Result<Vec<String>> {
        let url = match self.unit {
            Some(unit) => url(server, unit),
            None => format!("iscsi://{}", server.portal()),
        };
        let (line, printed, status) = bounded(
            run::command("timeout").arg("30").arg(self.program).args(self.arguments).arg(url),
        )?;
        let lacking = self.prints.iter().filter(|text| !printed.contains(**text));
        let mut wrong: Vec<String> =
            lacking.map(|text| format!("`{line}` does not print {text:?}")).collect();
        if status != Some(0) {
            wrong.push(format!("`{line}` ended with {status:?}"));
        }
        if !wrong.is_empty() {
            wrong.push(printed);
        }
        Ok(wrong)
    }
}

/// Runs a command; its line, all that it printed, how it ended.
fn bounded(command: &mut Command) -> Result<(String, String, Option<i32>)> {
    let output = run::output(command)?;
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed).into_owned();
    Ok((run::line(command), printed, output.status.code()))
}

/// Everything whose name contains `only`, before the target that `program` is, or the test kit's; how
/// much was checked, and how much of it differs.
pub(super) fn check_all(program: Option<&Path>, only: &str) -> Result<(usize, usize)> {
    let tools: Vec<&Tool> = TOOLS.iter().filter(|tool| tool.name().contains(only)).collect();
    if tools.is_empty() && !conformance::may_contain(only) {
        return Ok((0, 0));
    }
    setup::peers(&[setup::LIBISCSI])?;
    let program = self::program(program)?;
    println!("{:<44} {:>6} {:>7} {:>6}  result", "libiscsi", "passed", "skipped", "s");
    let servers = [start(&program)?, start(&program)?];
    let (mut count, mut faults) = (tools.len(), 0);
    for tool in tools {
        let start = Instant::now();
        let wrong = tool.check(&servers[0])?;
        faults += usize::from(!wrong.is_empty());
        print(
            &tool.name(),
            [usize::from(wrong.is_empty()), 0],
            start.elapsed().as_secs_f64(),
            &wrong,
        );
    }
    let (tests, surprises) = conformance::check_all(&servers, only)?;
    (count, faults) = (count + tests, faults + surprises);
    Ok((count, faults))
}

/// The target that `program` is, or the test kit's.
pub(super) fn program(program: Option<&Path>) -> Result<PathBuf> {
    match program {
        Some(program) => std::path::absolute(program).map_err(Failure::io("find the target")),
        None => run::example(run::DEV, "block-testkit", "iscsi-target"),
    }
}

/// Prints a line, and what is wrong.
pub(super) fn print(name: &str, [passed, skipped]: [usize; 2], seconds: f64, wrong: &[String]) {
    let result = if wrong.is_empty() { "as expected" } else { "DIFFERENT" };
    println!("{name:<44} {passed:>6} {skipped:>7} {seconds:>6.2}  {result}");
    for text in wrong.iter().flat_map(|text| text.lines()) {
        println!("    {text}");
    }
}
