//! Compressed images that block-img makes, read by others.
//!
//! Each must hold what it was made from, says every reader that can read it; `qemu-img check` must find
//! nothing wrong, and clusters that are compressed in truth.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use super::{Finding, attempt, attempt_json};
use crate::failure::{Failure, Result};
use crate::{run, setup};

/// Who takes part.
pub(super) struct Readers<'a> {
    /// The program that writes: block-img.
    pub(super) ours: &'a Path,
    /// bench-peers with imago, if it was asked for.
    pub(super) imago: Option<&'a Path>,
}

/// An image.
struct Written {
    name: String,
    /// The guest disk, whose length is no multiple of the cluster's: there is a tail.
    guest: &'static str,
    /// Of `-o`.
    options: String,
    /// Whether others than QEMU know such images: libqcow 20201213 and imago 0.2 both refuse the feature
    /// bits of the compression type (so that they have no Zstandard) and of extended L2 entries.
    widely_read: bool,
}

/// Opens an image with libqcow.
const LIBQCOW_OPENS: &str = r#"
import sys
import pyqcow

image = pyqcow.file()
image.open(sys.argv[1])
"#;

/// Reads such an `image` against a raw disk; prints where they differ, if anywhere.
pub(super) const COMPARES: &str = r#"
with open(sys.argv[2], "rb") as disk:
    raw = disk.read()
if image.get_media_size() != len(raw):
    sys.exit("the image has %d bytes" % image.get_media_size())
at = 0
while at < len(raw):
    read = image.read_buffer_at_offset(min(1 << 16, len(raw) - at), at)
    if not read or read != raw[at:at + len(read)]:
        sys.exit("they differ in the 64 KiB at %d" % at)
    at += len(read)
"#;

fn cases() -> Vec<Written> {
    let mut cases = Vec::new();
    let mut add = |name: &str, size: u32, options: &str, widely_read: bool| {
        cases.push(Written {
            name: format!("packed-{name}"),
            guest: if size < 8192 { "d.raw" } else { "a.raw" },
            options: format!("cluster_size={size}{options}"),
            widely_read,
        });
    };
    let (zlib_large, zstd) = (",compression_window=32k", ",compression_type=zstd");
    for size in [512, 4096, 64 << 10, 2 << 20] {
        add(&format!("{size}-zlib"), size, "", true);
        add(&format!("{size}-zlib-32k"), size, zlib_large, true);
        add(&format!("{size}-zstd"), size, zstd, false);
    }
    let usual = 64 << 10;
    for (window, option) in [("", ""), ("-32k", zlib_large)] {
        let (name, options) = (format!("v2-zlib{window}"), format!(",compat=0.10{option}"));
        add(&name, usual, &options, true);
        let (name, options) = (format!("l2-zlib{window}"), format!(",extended_l2=on{option}"));
        add(&name, usual, &options, false);
    }
    add("l2-zstd", usual, ",extended_l2=on,compression_type=zstd", false);
    for (level, kind, option) in
        [(1, "zlib", ""), (9, "zlib", ""), (1, "zstd", zstd), (9, "zstd", zstd)]
    {
        let options = format!("{option},compression_level={level}");
        add(&format!("{kind}-level-{level}"), usual, &options, kind == "zlib");
    }
    cases
}

/// Writes and reads the images whose name contains `only`, prints a line for each; how many there were, and how many
/// somebody did not read.
pub(super) fn check_all(
    readers: &Readers<'_>,
    directory: &Path,
    only: &str,
) -> Result<(usize, usize)> {
    let (mut count, mut faults) = (0, 0);
    println!("{:<28} {:>8} {:>14}  result", "written by block-img", "packed", "s");
    for case in cases().iter().filter(|case| case.name.contains(only)) {
        let start = Instant::now();
        let finding = check(readers, directory, case)?;
        let time = start.elapsed().as_secs_f64();
        let who = case.readers(readers).join(", ");
        let result = if finding.differences.is_empty() { "read by" } else { "NOT READ by all of" };
        println!("{:<28} {:>8} {time:>14.2}  {result} {who}", case.name, finding.extents);
        for difference in &finding.differences {
            println!("    {difference}");
        }
        count += 1;
        faults += usize::from(!finding.differences.is_empty());
    }
    Ok((count, faults))
}

/// The finding counts compressed clusters as its extents.
fn check(readers: &Readers<'_>, directory: &Path, case: &Written) -> Result<Finding> {
    let mut finding = Finding::default();
    let image = "written.qcow2";
    let in_directory = |mut command: Command| {
        command.current_dir(directory);
        command
    };
    if !attempt(&mut in_directory(case.command(readers.ours, image)), &mut finding)? {
        return Ok(finding);
    }
    for reader in case.readers(readers) {
        let mut command = match reader {
            "libqcow" => {
                let mut command = run::command(setup::PYTHON);
                command.args(["-c", &format!("{LIBQCOW_OPENS}{COMPARES}"), image, case.guest]);
                command
            }
            "imago" => {
                let mut command = run::command(readers.imago.unwrap_or(Path::new("bench-peers")));
                command.args(["same", case.guest, image]);
                command
            }
            _ => {
                let mut command = run::command("qemu-img");
                command.args(["compare", "-f", "raw", "-F", "qcow2", case.guest, image]);
                command
            }
        };
        attempt(command.current_dir(directory), &mut finding)?;
    }
    let mut command = in_directory(run::command("qemu-img"));
    command.args(["check", "--output", "json", "-f", "qcow2", image]);
    if let Some(report) = attempt_json(&mut command, &mut finding)? {
        let packed = report["compressed-clusters"].as_u64().unwrap_or(0);
        finding.extents = usize::try_from(packed).unwrap_or(usize::MAX);
        if packed == 0 {
            finding.differences.push("no cluster is compressed".to_owned());
        }
    }
    let path = directory.join(image);
    std::fs::remove_file(&path).map_err(Failure::io(format!("remove {}", path.display())))?;
    Ok(finding)
}

impl Written {
    /// Who must be able to read it.
    fn readers(&self, readers: &Readers<'_>) -> Vec<&'static str> {
        let mut all = vec!["qemu-img"];
        if self.widely_read {
            all.push("libqcow");
            all.extend(readers.imago.map(|_| "imago"));
        }
        all
    }

    /// What makes it.
    fn command(&self, ours: &Path, image: &str) -> Command {
        let convert =
            ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &self.options, self.guest];
        let mut command = run::command(ours);
        command.args(convert).arg(image);
        command
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_every_kind_is_there() {
        let cases = cases();
        let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(names.len(), cases.len());
        let widely = cases.iter().filter(|case| case.widely_read);
        let options: Vec<&str> = widely.map(|case| case.options.as_str()).collect();
        for part in ["512", "2097152,compression_window=32k", "compat=0.10", "level=9"] {
            assert!(options.iter().any(|options| options.ends_with(part)), "{part}");
        }
        assert!(options.iter().all(|o| !o.contains("zstd") && !o.contains("extended_l2")));
    }
}
