//! The examples of the crates, run as their users would, each held to what it is to print.
//!
//! They are built in the profile that the tests are built in, so that after those little is left to compile.
//! An example that is not named here is an error: what nobody runs is soon wrong.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{Failure, Result};
use crate::run;
use crate::scratch::Scratch;
use crate::served::Served;

/// An example, and how it is tried.
struct Example {
    name: &'static str,
    try_it: fn(&Stage) -> Result<()>,
}

const EXAMPLES: &[Example] = &[
    Example { name: "custom-driver", try_it: custom_driver },
    Example { name: "read-qcow2", try_it: read_qcow2 },
    Example { name: "create-vmdk", try_it: vmdk },
    Example { name: "read-vmdk", try_it: vmdk },
    Example { name: "convert", try_it: convert },
    Example { name: "tokio-reader", try_it: iscsi },
    Example { name: "iscsi-target", try_it: iscsi },
    Example { name: "iscsi-load", try_it: iscsi },
    Example { name: "test-my-driver", try_it: test_my_driver },
];

/// Programs of the harness that are examples only because they need the test kit.
const OTHERS: &[&str] = &["iotests"];

/// The programs, and a directory for their images.
struct Stage {
    programs: BTreeMap<String, PathBuf>,
    scratch: Scratch,
}

/// Builds and tries all of them.
pub(crate) fn run() -> Result<()> {
    let mut build = run::cargo();
    build.args(["build", "--workspace", "--examples", "--locked"]);
    let programs = run::built(&mut build)?.into_iter().map(|((_, name), path)| (name, path));
    let programs: BTreeMap<String, PathBuf> = programs.collect();
    let unknown = |name: &&String| {
        let mut known = EXAMPLES.iter().map(|example| example.name).chain(OTHERS.iter().copied());
        known.all(|known| known != **name)
    };
    if let Some(name) = programs.keys().find(unknown) {
        return Err(wrong(&build, format!("an example that is not tried: {name}")));
    }
    let stage = Stage { programs, scratch: Scratch::new("examples")? };
    let mut tried: Vec<fn(&Stage) -> Result<()>> = Vec::new();
    for Example { name, try_it } in EXAMPLES {
        // Some are tried together.
        if !tried.iter().any(|other| std::ptr::fn_addr_eq(*other, *try_it)) {
            try_it(&stage)?;
            tried.push(*try_it);
        }
        println!("{name:<16} works");
    }
    Ok(())
}

impl Stage {
    fn program(&self, name: &str) -> Result<&Path> {
        let path = self.programs.get(name).map(PathBuf::as_path);
        path.ok_or_else(|| wrong(&run::cargo(), format!("no example {name}")))
    }

    /// The example as a command, in the directory of the images.
    fn command(&self, name: &str, arguments: &[&str]) -> Result<Command> {
        let mut command = run::command(self.program(name)?);
        command.args(arguments).current_dir(self.scratch.path());
        Ok(command)
    }

    /// Runs an example to a successful end; all of `expected` must be in what it prints.
    fn prints(&self, name: &str, arguments: &[&str], expected: &[&str]) -> Result<String> {
        let mut command = self.command(name, arguments)?;
        let text = run::stdout(&mut command)?;
        match expected.iter().find(|part| !text.contains(**part)) {
            Some(part) => Err(wrong(&command, format!("no {part:?}:\n{text}"))),
            None => Ok(text),
        }
    }

    /// Runs an example that has to fail and to say why.
    fn fails(&self, name: &str, arguments: &[&str], expected: &str) -> Result<()> {
        let mut command = self.command(name, arguments)?;
        let output = run::output(&mut command)?;
        let text = String::from_utf8_lossy(&output.stderr);
        if output.status.success() || !text.contains(expected) {
            let status = output.status;
            return Err(wrong(&command, format!("no {expected:?} ({status}):\n{text}")));
        }
        Ok(())
    }
}

fn wrong(command: &Command, problem: String) -> Failure {
    Failure::Output { command: run::line(command), problem }
}

fn custom_driver(stage: &Stage) -> Result<()> {
    let below = "below: [30, 2d, 34, 38, 25, 39, 30]"; // the text, each byte XOR 0x55
    let expected = ["above: example", below, "zeroes below: [55, 55]", "the driver read "];
    stage.prints("custom-driver", &[], &expected).map(drop)
}

fn read_qcow2(stage: &Stage) -> Result<()> {
    let dump = "00100000  [5a, 5a, 5a, 5a,";
    let expected = ["1073741824 bytes in clusters of 65536", "\n65536 bytes are stored", dump];
    stage.prints("read-qcow2", &[], &expected)?;
    stage.fails("read-qcow2", &["no-such-image"], "no-such-image")?;
    stage.fails("read-qcow2", &["no-such-image", "x"], "x is not a number")
}

fn vmdk(stage: &Stage) -> Result<()> {
    for (image, subformat) in
        [("a.vmdk", "monolithicSparse"), ("b.vmdk", "twoGbMaxExtentFlat"), ("c.vmdk", "vmfsSparse")]
    {
        let made = format!("{image}: {subformat}, 67108864 bytes");
        stage.prints("create-vmdk", &[image, "64M", subformat], &[&made])?;
        let text = "at 0: \"made by create-vmdk\\n\"";
        stage.prints("read-vmdk", &[image], &["67108864 bytes", subformat, text])?;
        stage.prints("read-vmdk", &[image, "1024"], &["at 1024: \"\""])?;
    }
    stage.fails("create-vmdk", &["d.vmdk", "64M", "fast"], "subformat=fast")
}

fn convert(stage: &Stage) -> Result<()> {
    // There and back through every format it knows.
    let text = "converted without a loss\n";
    let mut disk = vec![0; 8 << 20];
    for (at, byte) in text.bytes().cycle().take(3 << 20).enumerate() {
        disk[at] = byte;
    }
    let file = stage.scratch.file("disk.raw");
    std::fs::write(&file, &disk).map_err(Failure::io("write disk.raw"))?;
    let steps =
        [("disk.raw", "disk.qcow2"), ("disk.qcow2", "disk.vmdk"), ("disk.vmdk", "back.raw")];
    for (from, to) in steps {
        let format = to.rsplit('.').next().unwrap_or_default();
        let done = "8388608 of 8388608 bytes";
        let counts = "3145728 bytes of data, 5242880 left out as zeroes";
        stage.prints("convert", &[from, to, format], &[done, counts])?;
    }
    let back =
        std::fs::read(stage.scratch.file("back.raw")).map_err(Failure::io("read back.raw"))?;
    if back != disk {
        return Err(wrong(&stage.command("convert", &[])?, "another disk".to_owned()));
    }
    // Stopped on the way: it says so, and leaves nothing.
    let stopped = ["disk.raw", "stopped.qcow2", "qcow2", "1048576"];
    stage.fails("convert", &stopped, "stopped after ")?;
    if stage.scratch.file("stopped.qcow2").exists() {
        return Err(wrong(&stage.command("convert", &stopped)?, "half a disk".to_owned()));
    }
    Ok(())
}

fn iscsi(stage: &Stage) -> Result<()> {
    let target = Served::start(stage.program("iscsi-target")?, &["thin:64M"])?;
    let url = target.url(0);
    stage.prints(
        "tokio-reader",
        &[&url],
        &["67108864 bytes in blocks of 512", "at 0: [00, 00,"],
    )?;
    // Writes blocks that say who wrote them, in an order that it always keeps: 0xfb is the second one.
    stage.prints("iscsi-load", &[&url, "check", "512", "1", "0.1"], &["commands/s"])?;
    stage.prints("tokio-reader", &[&url, "4054528"], &["at 4054528: [fb, fb,"])?;
    target.stop()?;
    stage.fails("tokio-reader", &[&url], "")
}

fn test_my_driver(stage: &Stage) -> Result<()> {
    stage.prints("test-my-driver", &[], &["stripe: 200 games from seed 0 on"]).map(drop)
}
