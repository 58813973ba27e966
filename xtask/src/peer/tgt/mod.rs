//! Our initiator before targets of others and our own: block-img and block-io with `tgtd`, and with the test
//! kit's target; QEMU's initiator with the test kit's target (`--qemu-initiator`).
//!
//! What was written is compared by qemu-img with the file behind a unit. One line per case; what differs is
//! printed and fails the run.

mod daemon;
mod load;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use self::daemon::Daemon;
use super::iscsi;
use super::{Finding, attempt, attempt_json};
use crate::failure::{Failure, Result};
use crate::scratch::Scratch;
use crate::served::Served;
use crate::{guest, run, setup};

const MIB: u64 = 1 << 20;
const SECRET: &str = "correct-horse-9";
const THEIR_SECRET: &str = "battery-staple-7";

/// The targets.
const PLAIN: u32 = 1;
const CHAP: u32 = 2;
const MUTUAL: u32 = 3;
const DIGESTS: u32 = 4;

/// The units of [`PLAIN`]; the other targets have the first.
const DISK: u32 = 1;
const THIN: u32 = 2;
const PROTECTED: u32 = 3;
const BLOCKS_OF_4096: u32 = 4;
const LOAD: u32 = 5;
const GROWING: u32 = 6;

/// Where the sparse disk holds data, each time one MiB.
const DATA: [u64; 4] = [0, 17, 100, 255];
const SPARSE_LEN: u64 = 256 * MIB;
/// File systems take more than what was written.
const SLACK: u64 = MIB;

type Check = fn(&mut Lab, &mut Finding) -> Result<()>;

/// With tgtd. A name says which promise.
const CASES: [(&str, Check); 10] = [
    ("tgt: targets and units as iscsi-ls lists them", Lab::lists),
    ("tgt: what a unit is, as libiscsi's tools say", Lab::inquiries),
    ("tgt: contents", Lab::contents),
    ("tgt: blocks of 4096 bytes", Lab::large_blocks),
    ("tgt: CHAP one-way, mutual, wrong secrets", Lab::chap),
    ("tgt: digests of headers and data", Lab::digests),
    ("tgt: thin unit: map, discard", Lab::thin),
    ("tgt: a unit that cannot be written", Lab::protected),
    ("tgt: a unit that grows", Lab::grows),
    ("tgt: restarted under load", load::restarts),
];

/// The programs, the target, the disks.
struct Lab {
    ours: PathBuf,
    io: PathBuf,
    scratch: Scratch,
    daemon: Daemon,
}

/// Everything whose name contains `only`; how much was checked, and how much of it differs.
pub(super) fn check_all(ours: &Path, arguments: &super::Arguments) -> Result<(usize, usize)> {
    let cases = || CASES.iter().filter(|(name, _)| name.contains(&arguments.only));
    let own = "own target: contents and list";
    let theirs = "qemu initiator: contents, map, discard";
    let qemu = arguments.qemu_initiator && theirs.contains(&arguments.only);
    let own = own.contains(&arguments.only).then_some(own);
    let (mut count, mut faults) = (0, 0);
    let mut report = |name: &str, start: Instant, finding: &Finding| {
        count += 1;
        faults += usize::from(!finding.differences.is_empty());
        iscsi::print(name, [1, 0], start.elapsed().as_secs_f64(), &finding.differences);
    };
    if cases().next().is_some() {
        setup::peers(&[setup::TGT, setup::LIBISCSI])?;
        let mut lab = Lab::new(ours)?;
        for (name, check) in cases() {
            let (start, mut finding) = (Instant::now(), Finding::default());
            check(&mut lab, &mut finding)?;
            report(name, start, &finding);
        }
    }
    if own.is_some() || qemu {
        let scratch = Scratch::new("own-target")?;
        let disk = scratch.file("disk.raw");
        guest::write(&disk, 16 * MIB, 7)?;
        let server = iscsi::start(&iscsi::program(arguments.iscsi_target.as_deref())?)?;
        if let Some(name) = own {
            let (start, mut finding) = (Instant::now(), Finding::default());
            own_target(ours, &server, &disk, &mut finding)?;
            report(name, start, &finding);
        }
        if qemu {
            let (start, mut finding) = (Instant::now(), Finding::default());
            qemu_initiator(ours, &server, &disk, &mut finding)?;
            report(theirs, start, &finding);
        }
    }
    Ok((count, faults))
}

impl Lab {
    fn new(ours: &Path) -> Result<Self> {
        let io = match ours.with_file_name("block-io") {
            io if io.exists() => io,
            _ => run::binary(run::DEV, "block-tools", "block-io")?,
        };
        let scratch = Scratch::new("tgt")?;
        let mut daemon = Daemon::start(scratch.path())?;
        guest::write(&scratch.file("disk.raw"), 16 * MIB, 3)?;
        for (name, secret) in
            [("secret", SECRET), ("theirs", THEIR_SECRET), ("wrong", "neither-of-them")]
        {
            write(&scratch.file(name), secret.as_bytes())?;
        }
        let file = |name: &str, len: u64| -> Result<PathBuf> {
            sparse_file(&scratch.file(name), len, &[])?;
            Ok(scratch.file(name))
        };
        for (target, name) in
            [(PLAIN, "plain"), (CHAP, "chap"), (MUTUAL, "mutual"), (DIGESTS, "digests")]
        {
            daemon.target(target)?;
            daemon.unit(target, DISK, &file(name, 64 * MIB)?, &[])?;
        }
        daemon.unit(PLAIN, THIN, &file("thin", SPARSE_LEN)?, &[])?;
        daemon.change_unit(PLAIN, THIN, "thin_provisioning=1")?;
        daemon.unit(PLAIN, PROTECTED, &file("protected", 64 * MIB)?, &[])?;
        daemon.change_unit(PLAIN, PROTECTED, "readonly=1")?;
        let large = ["--blocksize", "4096"];
        daemon.unit(PLAIN, BLOCKS_OF_4096, &file("large", 64 * MIB)?, &large)?;
        daemon.unit(PLAIN, LOAD, &file("load", 64 * MIB)?, &[])?;
        daemon.unit(PLAIN, GROWING, &file("growing", 64 * MIB)?, &[])?;
        for (user, secret) in [("joe", SECRET), ("target", THEIR_SECRET)] {
            let account =
                ["--mode", "account", "--op", "new", "--user", user, "--password", secret];
            daemon.set(&account)?;
        }
        for (target, user, outgoing) in
            [("2", "joe", &[][..]), ("3", "joe", &[]), ("3", "target", &["--outgoing"])]
        {
            let bind = ["--mode", "account", "--op", "bind", "--tid", target, "--user", user];
            daemon.set(&[&bind[..], outgoing].concat())?;
        }
        for name in ["HeaderDigest", "DataDigest"] {
            let update = ["--mode", "target", "--op", "update", "--tid", "4", "--name", name];
            daemon.set(&[&update[..], &["--value", "CRC32C"]].concat())?;
        }
        daemon.open_portal()?;
        Ok(Self { ours: ours.to_owned(), io, scratch, daemon })
    }

    /// A command in the directory of the disks.
    fn command(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = run::command("timeout");
        command.arg("60").arg(program).args(arguments).current_dir(self.scratch.path());
        command
    }

    /// Runs block-img, which has to succeed.
    fn img(&self, arguments: &[&str], finding: &mut Finding) -> Result<bool> {
        attempt(&mut self.command(&self.ours, arguments), finding)
    }

    /// Runs block-img, which has to fail and to say this.
    fn refused(&self, arguments: &[&str], says: &str, finding: &mut Finding) -> Result<()> {
        let mut command = self.command(&self.ours, arguments);
        let output = run::output(&mut command)?;
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.code() != Some(1) || !said.contains(says) {
            let line = run::line(&command);
            let difference = format!("`{line}`: {}, {said}; not {says:?}", output.status);
            finding.differences.push(difference);
        }
        Ok(())
    }

    /// Writes the disk to a unit and reads it back; qemu-img compares both with the disk.
    fn there_and_back(
        &self,
        unit: &[&str],
        file: &str,
        disk: &str,
        finding: &mut Finding,
    ) -> Result<()> {
        let there = match unit {
            [url] => vec!["convert", "-n", "-f", "raw", "-O", "raw", disk, url],
            _ => {
                [&["convert", "-n", "--target-image-opts", "-f", "raw", disk], &unit[1..]].concat()
            }
        };
        if !self.img(&there, finding)? {
            return Ok(());
        }
        let qemu_img = Path::new("qemu-img");
        let same = ["compare", "-f", "raw", "-F", "raw", disk, file];
        attempt(&mut self.command(qemu_img, &same), finding)?;
        let back = match unit {
            [url] => vec!["convert", "-f", "raw", "-O", "raw", url, "back.raw"],
            _ => [&["convert", "-O", "raw"], unit, &["back.raw"]].concat(),
        };
        if self.img(&back, finding)? {
            let same = ["compare", "-f", "raw", "-F", "raw", disk, "back.raw"];
            attempt(&mut self.command(qemu_img, &same), finding)?;
        }
        Ok(())
    }

    fn lists(&mut self, finding: &mut Finding) -> Result<()> {
        // Some targets want to know; those that do not are asked as well.
        let url = format!("iscsi://joe%{SECRET}@{}", self.daemon.portal());
        same_lists(&self.ours, &url, finding)
    }

    fn inquiries(&mut self, finding: &mut Finding) -> Result<()> {
        for lun in [DISK, THIN, PROTECTED, BLOCKS_OF_4096] {
            let url = self.daemon.url("", PLAIN, lun);
            let info = ["info", "-f", "raw", "--output", "json", &url];
            let Some(info) = attempt_json(&mut self.command(&self.ours, &info), finding)? else {
                continue;
            };
            let len = run::stdout(run::command("iscsi-readcapacity16").args(["-s", &url]))?;
            expect("length", &info["virtual-size"].to_string(), len.trim(), finding);
            let inquiry = run::stdout(run::command("iscsi-inq").arg(&url))?;
            let data = &info["children"][0]["info"]["format-specific"]["data"];
            for (ours, theirs) in
                [("vendor", "Vendor:"), ("product", "Product:"), ("revision", "Revision:")]
            {
                let found = inquiry.lines().find_map(|line| line.strip_prefix(theirs));
                let ours = data[ours].as_str().unwrap_or_default();
                expect(theirs, ours, found.unwrap_or_default().trim(), finding);
            }
            let serial = ["-e", "1", "-c", "128", &url];
            let serial = run::stdout(run::command("iscsi-inq").args(serial))?;
            let ours = data["serial"].as_str().unwrap_or_default();
            let found = serial.lines().find_map(|line| line.strip_prefix("Unit Serial Number:["));
            let found = found.unwrap_or_default().trim_end_matches(']');
            expect("serial number", ours, found.trim(), finding);
        }
        Ok(())
    }

    fn contents(&mut self, finding: &mut Finding) -> Result<()> {
        self.there_and_back(&[&self.daemon.url("", PLAIN, DISK)], "plain", "disk.raw", finding)
    }

    fn large_blocks(&mut self, finding: &mut Finding) -> Result<()> {
        let url = self.daemon.url("", PLAIN, BLOCKS_OF_4096);
        self.there_and_back(&[&url], "large", "disk.raw", finding)?;
        // Parts of blocks, too.
        let commands = ["-c", "write -P 9 5000 100", "-c", "read -P 9 5000 100"];
        let arguments = [&["-f", "raw", &url], &commands[..]].concat();
        attempt(&mut self.command(&self.io, &arguments), finding)?;
        Ok(())
    }

    fn chap(&mut self, finding: &mut Finding) -> Result<()> {
        let (portal, name) = (self.daemon.portal(), daemon::NAME);
        let opts = |target: u32, more: &str| {
            format!(
                "driver=raw,file.driver=iscsi,file.portal={portal},file.target={name}{target},\
                 file.lun={DISK}{more}"
            )
        };
        let joe = ",file.user=joe,file.password-file=secret";
        let mutual = format!("{joe},file.target-user=target,file.target-password-file=theirs");
        for (target, file, more) in
            [(CHAP, "chap", joe), (MUTUAL, "mutual", &mutual), (MUTUAL, "mutual", joe)]
        {
            let opts = opts(target, more);
            self.there_and_back(&["--image-opts", &opts], file, "disk.raw", finding)?;
        }
        let url = self.daemon.url(&format!("joe%{SECRET}@"), CHAP, DISK);
        self.img(&["info", &url], finding)?;
        let wrong = joe.replace("=secret", "=wrong");
        let impostor = mutual.replace("=theirs", "=wrong");
        for (target, more) in [(CHAP, ""), (CHAP, &*wrong), (MUTUAL, &impostor), (CHAP, &mutual)] {
            self.refused(&["info", "--image-opts", &opts(target, more)], "login", finding)?;
        }
        let url = self.daemon.url("joe%neither-of-them@", CHAP, DISK);
        self.refused(&["info", &url], "iscsi://joe@127.0.0.1", finding)
    }

    fn digests(&mut self, finding: &mut Finding) -> Result<()> {
        let (portal, name) = (self.daemon.portal(), daemon::NAME);
        for (header, data) in [("crc32c", "crc32c"), ("crc32c", "none"), ("none", "crc32c")] {
            let opts = format!(
                "driver=raw,file.driver=iscsi,file.portal={portal},file.target={name}{DIGESTS},\
                 file.lun={DISK},file.header-digest={header},file.data-digest={data}"
            );
            self.there_and_back(&["--image-opts", &opts], "digests", "disk.raw", finding)?;
        }
        // A target that does none refuses who insists.
        let opts = format!(
            "driver=iscsi,portal={portal},target={name}{PLAIN},lun={DISK},header-digest=crc32c"
        );
        self.refused(&["info", "--image-opts", &opts], "HeaderDigest", finding)
    }

    fn thin(&mut self, finding: &mut Finding) -> Result<()> {
        let url = self.daemon.url("", PLAIN, THIN);
        sparse_file(&self.scratch.file("sparse.raw"), SPARSE_LEN, &DATA)?;
        sparse_file(&self.scratch.file("zero.raw"), SPARSE_LEN, &[])?;
        let there = ["convert", "-f", "raw", "-O", "raw", "sparse.raw", &url];
        for (disk, data) in [("sparse.raw", &DATA[..]), ("zero.raw", &[])] {
            let mut there = there;
            there[5] = disk;
            self.img(&there, finding)?;
            let same = ["compare", "-f", "raw", "-F", "raw", disk, "thin"];
            attempt(&mut self.command(Path::new("qemu-img"), &same), finding)?;
            let map = ["map", "--output", "json", "-f", "raw", &url];
            if let Some(map) = attempt_json(&mut self.command(&self.ours, &map), finding)? {
                let expected: Vec<_> = data.iter().map(|mib| (mib * MIB, MIB)).collect();
                expect("map", &format!("{:?}", extents(&map)), &format!("{expected:?}"), finding);
            }
            let held = held(&self.scratch.file("thin"))?;
            let most = MIB * u64::try_from(data.len()).unwrap_or(u64::MAX) + SLACK;
            if held > most {
                finding.differences.push(format!("after {disk} the file holds {held} bytes"));
            }
        }
        Ok(())
    }

    fn protected(&mut self, finding: &mut Finding) -> Result<()> {
        let url = self.daemon.url("", PLAIN, PROTECTED);
        self.img(&["info", "-f", "raw", &url], finding)?;
        self.img(&["convert", "-f", "raw", "-O", "raw", &url, "back.raw"], finding)?;
        for arguments in [
            &["convert", "-n", "-f", "raw", "-O", "raw", "disk.raw", &url][..],
            &["create", "-f", "raw", &url, "1M"],
            &["bench", "-w", "-f", "raw", &url],
        ] {
            self.refused(arguments, "Read-only file system", finding)?;
        }
        Ok(())
    }

    /// tgtd tells nobody that a unit has grown: who asks is answered.
    fn grows(&mut self, finding: &mut Finding) -> Result<()> {
        let url = self.daemon.url("", PLAIN, GROWING);
        let commands = [
            "length",
            "sleep 2000",
            "truncate 96M",
            "length",
            "write -P 7 95M 1M",
            "read -P 7 95M 1M",
        ];
        let commands = commands.iter().flat_map(|command| ["-c", command]);
        let arguments: Vec<_> = ["-f", "raw", &url].into_iter().chain(commands).collect();
        let mut command = self.command(&self.io, &arguments);
        let growing = self.scratch.file("growing");
        let (output, grown) = std::thread::scope(|scope| {
            let session = scope.spawn(|| run::output(&mut command));
            std::thread::sleep(Duration::from_millis(700));
            let grown = sparse_file(&growing, 96 * MIB, &[])
                .and_then(|()| self.daemon.replace_unit(PLAIN, GROWING, &growing));
            (session.join(), grown)
        });
        grown?;
        let Ok(output) = output else {
            return Err(Failure::Faults { check: "tgt: a thread", count: 1 });
        };
        let output = output?;
        let said = String::from_utf8_lossy(&output.stdout);
        let lengths: Vec<_> = said.lines().filter(|line| line.ends_with(" MiB")).collect();
        expect("lengths", &lengths.join(", "), "64 MiB, 96 MiB", finding);
        if !output.status.success() {
            finding.differences.push(format!("block-io ended with {}: {said}", output.status));
        }
        self.img(&["resize", "-f", "raw", &url, "96M"], finding)?;
        self.refused(&["resize", "-f", "raw", &url, "128M"], "not supported", finding)
    }
}

/// block-img and the test kit's target.
fn own_target(ours: &Path, server: &Served, disk: &Path, finding: &mut Finding) -> Result<()> {
    same_lists(ours, &format!("iscsi://{}", server.portal()), finding)?;
    let (url, disk) = (iscsi::plain(server), disk.to_string_lossy());
    let mut attempt_ours =
        |arguments: &[&str]| attempt(run::command(ours).args(arguments), finding);
    attempt_ours(&["convert", "-f", "raw", "-O", "raw", &disk, &url])?;
    attempt_ours(&["compare", "-f", "raw", "-F", "raw", &disk, &url])?;
    attempt_ours(&["convert", "-f", "raw", "-O", "qcow2", &disk, &url])?;
    attempt_ours(&["check", "-f", "qcow2", &url])?;
    attempt_ours(&["compare", "-f", "raw", "-F", "qcow2", &disk, &url])?;
    Ok(())
}

/// QEMU's initiator and the test kit's target.
fn qemu_initiator(ours: &Path, server: &Served, disk: &Path, finding: &mut Finding) -> Result<()> {
    let (url, disk) = (iscsi::plain(server), disk.to_string_lossy());
    if !run::works("qemu-img", &["info", "-f", "raw", &url]) {
        return Err(Failure::Missing {
            program: "the iSCSI module of QEMU",
            hint: "install the package qemu-block-extra in the version of the package qemu-utils \
                   (Debian, Ubuntu; elsewhere: qemu-block-iscsi); with another version it takes the \
                   place of QEMU, so nothing here does"
                .to_owned(),
        });
    }
    let (qemu_img, qemu_io) = (Path::new("qemu-img"), Path::new("qemu-io"));
    let same = ["compare", "-f", "raw", "-F", "raw", &disk, &url];
    for (program, arguments) in [
        (qemu_img, &["convert", "-n", "-f", "raw", "-O", "raw", &disk, &url][..]),
        (qemu_img, &same),
        (ours, &same),
        (ours, &["convert", "-n", "-f", "raw", "-O", "raw", &disk, &url]),
        (qemu_img, &same),
        (
            qemu_io,
            &["-f", "raw", "-d", "unmap", &url, "-c", "write -P 5 20M 2M", "-c", "discard 1M 4M"],
        ),
        (qemu_io, &["-f", "raw", &url, "-c", "write -z -u 24M 1M", "-c", "read -P 0 24M 1M"]),
        (qemu_io, &["-f", "raw", &url, "-c", "read -P 5 20M 2M", "-c", "read -P 0 1M 4M"]),
    ] {
        attempt(run::command(program).args(arguments), finding)?;
    }
    let map = ["map", "--output", "json", "-f", "raw", &url];
    let theirs = extents(&run::json(run::command("qemu-img").args(map))?);
    if let Some(ours) = attempt_json(run::command(ours).args(map), finding)? {
        // Ours looks at pages: what it calls zero is, and around data there may be a little more.
        let ours = extents(&ours);
        let inside = |(start, len): &(u64, u64)| {
            ours.iter().any(|(from, most)| from <= start && start + len <= from + most)
        };
        if theirs.is_empty() || !theirs.iter().all(inside) {
            finding.differences.push(format!("map: {ours:?} does not hold {theirs:?}"));
        }
    }
    Ok(())
}

/// What block-img lists of a portal and what iscsi-ls does, which turns the order of targets round and
/// counts a block too few.
fn same_lists(ours: &Path, url: &str, finding: &mut Finding) -> Result<()> {
    for arguments in [&[url][..], &["-s", url]] {
        let mut ours = run::command(ours);
        ours.args(["iscsi", "ls"]).args(arguments);
        if attempt(&mut ours, finding)? {
            let ours = blocks(&run::stdout(&mut ours)?);
            let theirs = blocks(&run::stdout(run::command("iscsi-ls").args(arguments))?);
            expect("list", &ours.join("\n"), &theirs.join("\n"), finding);
            if ours.is_empty() {
                finding.differences.push("nothing is listed".to_owned());
            }
        }
    }
    Ok(())
}

/// The targets of a list, each with its units, sorted, without sizes.
fn blocks(list: &str) -> Vec<String> {
    let mut blocks: Vec<String> = Vec::new();
    for line in list.lines() {
        let line = line.split(" (Size").next().unwrap_or_default();
        match blocks.last_mut() {
            Some(block) if !line.starts_with("Target:") => {
                block.push('\n');
                block.push_str(line);
            }
            _ => blocks.push(line.to_owned()),
        }
    }
    blocks.sort();
    blocks
}

fn expect(what: &str, ours: &str, theirs: &str, finding: &mut Finding) {
    if ours != theirs {
        finding.differences.push(format!("{what}: {ours}, not {theirs}"));
    }
}

/// Offset and length of what a map says to be data, joined.
fn extents(map: &Value) -> Vec<(u64, u64)> {
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for extent in map.as_array().into_iter().flatten().filter(|extent| extent["data"] == true) {
        let number = |name: &str| extent[name].as_u64().unwrap_or_default();
        let (start, len) = (number("start"), number("length"));
        match joined.last_mut() {
            Some((before, sum)) if *before + *sum == start => *sum += len,
            _ => joined.push((start, len)),
        }
    }
    joined
}

/// Makes a file longer, or new, and writes one MiB at each place.
fn sparse_file(path: &Path, len: u64, data: &[u64]) -> Result<()> {
    let failed = || format!("write {}", path.display());
    let file = fs::File::options().create(true).truncate(false).write(true).open(path);
    let file = file.map_err(Failure::io(failed()))?;
    file.set_len(len).map_err(Failure::io(failed()))?;
    for mib in data {
        file.write_all_at(&[0x5a; 1 << 20], mib * MIB).map_err(Failure::io(failed()))?;
    }
    Ok(())
}

/// Bytes that the file system holds of a file.
fn held(path: &Path) -> Result<u64> {
    let metadata =
        fs::metadata(path).map_err(Failure::io(format!("look at {}", path.display())))?;
    Ok(metadata.blocks() * 512)
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(Failure::io(format!("write {}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_compared_by_targets() {
        let list = "Target:b\nLun:0 Type:X (Size:1M)\nTarget:a\nLun:1 Type:Y\nLun:2 Type:Z\n";
        assert_eq!(
            blocks(list),
            ["Target:a\nLun:1 Type:Y\nLun:2 Type:Z", "Target:b\nLun:0 Type:X"]
        );
    }

    #[test]
    fn data_that_touches_is_joined() {
        let map = serde_json::json!([
            {"start": 0, "length": 4, "data": true}, {"start": 4, "length": 4, "data": true},
            {"start": 8, "length": 4, "data": false}, {"start": 12, "length": 4, "data": true}]);
        assert_eq!(extents(&map), [(0, 8), (12, 4)]);
    }
}
