//! Interoperability with installed tools: block-img against qemu-img on images that qemu-img makes, and
//! compressed images that block-img makes before everybody who can read them (`written.rs`).
//!
//! For each image of qemu-img: the conversion to raw is the one of qemu-img (`compare -s`: contents, length and
//! holes) and what the image holds (`compare`); `map` and `info` as JSON agree on every field that
//! both have. One line per image; any difference is printed and fails the run.
//!
//! And the test kit's iSCSI target before libiscsi's programs (`iscsi/`), and our initiator before tgtd (`tgt/`).

mod agree;
mod images;
mod iscsi;
mod tgt;
mod vmdk;
mod written;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use clap::Args;
use serde_json::Value;

use self::images::{Case, Place};
use crate::failure::{Failure, Result};
use crate::scratch::Scratch;
use crate::{bench, guest, run, setup};

/// Options of `cargo xtask peer`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Seed of the guest disks' contents.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only images, iscsi tools, tests of `iscsi-test-cu` (`ALL.Family.Test`) and cases of iSCSI targets (`tgt:
    /// ...`, `own target: ...`, `qemu initiator: ...`) whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Test this program instead of building block-img (qemu-img itself must pass).
    #[arg(long)]
    program: Option<PathBuf>,
    /// Let imago read our images, too: builds bench-peers, which takes minutes.
    #[arg(long)]
    imago: bool,
    /// Serve with this program instead of building the test kit's iSCSI target.
    #[arg(long)]
    iscsi_target: Option<PathBuf>,
    /// Let QEMU's iSCSI initiator use that target, too: needs its module, which is not installed here.
    #[arg(long)]
    qemu_initiator: bool,
}

impl Default for Arguments {
    fn default() -> Self {
        Self {
            seed: 1,
            only: String::new(),
            program: None,
            imago: false,
            iscsi_target: None,
            qemu_initiator: false,
        }
    }
}

/// What was found for one image.
#[derive(Debug, Default)]
struct Finding {
    /// Extents of the map, joined.
    extents: usize,
    /// Fields of `info` that both have.
    fields: usize,
    /// What differs.
    differences: Vec<String>,
}

/// Makes the images, compares, prints the table.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    setup::peers(&[setup::QEMU, setup::LIBQCOW, setup::LIBVMDK, setup::VMDKINFO])?;
    let ours = match &arguments.program {
        Some(program) if program.components().count() == 1 => program.clone(),
        Some(program) => std::path::absolute(program).map_err(Failure::io("find the program"))?,
        None => run::binary(run::DEV, "block-tools", "block-img")?,
    };
    let scratch = Scratch::new("peer")?;
    let theirs = run::stdout(run::command("qemu-img").arg("--version"))?;
    println!("peer: {}", theirs.lines().next().unwrap_or_default());
    println!("seed: {} (cargo xtask peer --seed {0})", arguments.seed);
    for (field, reason) in agree::MAY_DIFFER {
        println!("may differ: {field}: {reason}");
    }
    let guests = [
        ("a.raw", images::A_LEN),
        ("b.raw", images::B_LEN),
        ("c.raw", images::C_LEN),
        ("d.raw", images::D_LEN),
    ];
    for (index, (name, len)) in (0..).zip(guests) {
        guest::write(&scratch.file(name), len, arguments.seed.wrapping_mul(4).wrapping_add(index))?;
    }

    let start = Instant::now();
    let cases = images::cases();
    let chosen = cases.iter().filter(|case| case.name.contains(&arguments.only));
    let (mut count, mut faults) = (0, 0);
    println!("{:<28} {:>8} {:>7} {:>6}  result", "image", "extents", "fields", "s");
    for case in chosen {
        faults += usize::from(!check(&ours, scratch.path(), case)?);
        count += 1;
    }
    let imago = if arguments.imago { Some(bench::synchronous_peers()?) } else { None };
    let readers = written::Readers { ours: &ours, imago: imago.as_deref() };
    let (written, refused) = written::check_all(&readers, scratch.path(), &arguments.only)?;
    (count, faults) = (count + written, faults + refused);
    let (mut tests, mut surprises) =
        iscsi::check_all(arguments.iscsi_target.as_deref(), &arguments.only)?;
    // qemu-img in the place of block-img knows neither our options nor our commands.
    if ours.components().count() > 1 {
        let (more, wrong) = tgt::check_all(&ours, arguments)?;
        (tests, surprises) = (tests + more, surprises + wrong);
    }
    println!(
        "peer: {count} images, {faults} with differences; {tests} iSCSI tests, {surprises} with \
         surprises; {:.1} s",
        start.elapsed().as_secs_f64()
    );
    match faults + surprises {
        0 => Ok(()),
        count => Err(Failure::Faults { check: "peer: differences and surprises", count }),
    }
}

/// Makes and checks one image, prints its line; whether nothing differs.
fn check(ours: &Path, directory: &Path, case: &Case) -> Result<bool> {
    let start = Instant::now();
    let mut finding = Finding::default();
    if make(ours, directory, case, &mut finding)? {
        compare(ours, directory, case, &mut finding)?;
    }
    let time = start.elapsed().as_secs_f64();
    let result = if finding.differences.is_empty() { "identical" } else { "DIFFERENT" };
    println!(
        "{:<28} {:>8} {:>7} {time:>6.2}  {result}",
        case.name, finding.extents, finding.fields
    );
    for difference in &finding.differences {
        println!("    {difference}");
    }
    if !finding.differences.is_empty() {
        println!("    made by:");
        for command in &case.commands {
            println!("      {command}");
        }
    }
    let path = directory.join(&case.name);
    std::fs::remove_dir_all(&path).map_err(Failure::io(format!("remove {}", path.display())))?;
    Ok(finding.differences.is_empty())
}

/// Makes an image; whether the program under test did its part.
fn make(ours: &Path, directory: &Path, case: &Case, finding: &mut Finding) -> Result<bool> {
    let path = directory.join(&case.name);
    std::fs::create_dir(&path).map_err(Failure::io(format!("create {}", path.display())))?;
    for (name, text) in &case.files {
        let file = path.join(name);
        std::fs::write(&file, text).map_err(Failure::io(format!("write {}", file.display())))?;
    }
    for text in &case.commands {
        let mut command = run::words(text);
        if command.get_program() != "block-img" {
            run::stdout(command.current_dir(&path))?;
            continue;
        }
        let arguments: Vec<_> = command.get_args().map(OsString::from).collect();
        command = run::command(ours);
        if !attempt(command.args(arguments).current_dir(&path), finding)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Lets everybody read the image.
fn compare(ours: &Path, directory: &Path, case: &Case, finding: &mut Finding) -> Result<()> {
    let (from, prefix) = match case.opened_from {
        Place::Above => (directory.to_path_buf(), format!("{}/", case.name)),
        Place::Beside => (directory.join(&case.name), String::new()),
    };
    let [image, our_raw, their_raw] =
        ["image", "ours", "theirs"].map(|name| format!("{prefix}{name}"));
    let tool = |program: &Path, arguments: &[&str]| {
        let mut command = run::command(program);
        command.args(arguments).current_dir(&from);
        command
    };
    let qemu_img = Path::new("qemu-img");

    let convert = |to| ["convert", "-f", case.format, "-O", "raw", &image, to];
    run::stdout(&mut tool(qemu_img, &convert(&their_raw)))?;
    let done = attempt(&mut tool(ours, &convert(&our_raw)), finding)?;
    if done {
        let same = ["compare", "-s", "-f", "raw", "-F", "raw", &their_raw, &our_raw];
        attempt(&mut tool(qemu_img, &same), finding)?;
        let whole = ["compare", "-f", case.format, "-F", "raw", &image, &our_raw];
        attempt(&mut tool(qemu_img, &whole), finding)?;
        if case.libvmdk {
            vmdk::read_by_libvmdk(&from, &image, &our_raw, finding)?;
        }
    }

    if let Some(guest) = case.holds {
        let guest = directory.join(guest).with_extension("raw");
        let guest = guest.to_string_lossy();
        let same = ["compare", "-f", "raw", "-F", case.format, &guest, &image];
        attempt(&mut tool(qemu_img, &same), finding)?;
    }
    if case.checked {
        for program in [qemu_img, ours] {
            attempt(&mut tool(program, &["check", "-f", case.format, &image]), finding)?;
        }
    }

    let map = ["map", "--output", "json", "-f", case.format, &image];
    let theirs = agree::joined(&run::json(&mut tool(qemu_img, &map))?);
    if let Some(ours) = attempt_json(&mut tool(ours, &map), finding)? {
        let ours = agree::joined(&ours);
        finding.extents = ours.as_array().map_or(0, Vec::len);
        let differences = agree::differences("map", &ours, &theirs);
        finding.differences.extend(differences.into_iter().take(8));
    }
    for extra in [&[][..], &["--backing-chain"]] {
        let info = [&["info", "--output", "json", "-f", case.format], extra, &[&image]].concat();
        let theirs = run::json(&mut tool(qemu_img, &info))?;
        if let Some(ours) = attempt_json(&mut tool(ours, &info), finding)? {
            finding.fields += agree::count_common(&ours, &theirs);
            finding.differences.extend(agree::differences("info", &ours, &theirs));
        }
    }
    Ok(())
}

/// Whether a command succeeds; what it says else is a difference.
fn attempt(command: &mut Command, finding: &mut Finding) -> Result<bool> {
    let output = run::output(command)?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let line = run::line(command);
        let difference = format!("`{line}`: {}, {}", output.status, said.trim());
        finding.differences.push(difference);
    }
    Ok(output.status.success())
}

/// What a command prints as JSON; a failure, or text that is none, is a difference.
fn attempt_json(command: &mut Command, finding: &mut Finding) -> Result<Option<Value>> {
    match run::json(command) {
        Ok(value) => Ok(Some(value)),
        Err(failure @ (Failure::Exit { .. } | Failure::Output { .. })) => {
            finding.differences.push(failure.to_string());
            Ok(None)
        }
        Err(other) => Err(other),
    }
}
