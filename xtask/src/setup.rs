//! The peers' tools: are they there, and if not, can the system's package manager bring them?

use crate::failure::{Failure, Result};
use crate::run;

/// A tool of somebody else that the harness compares with.
#[derive(Copy, Clone)]
pub(crate) struct Peer {
    programs: &'static [Program],
    /// Its package in Debian and Ubuntu.
    package: &'static str,
    /// What it is called elsewhere.
    elsewhere: &'static str,
}

/// What a peer is made of.
#[derive(Copy, Clone)]
struct Program {
    name: &'static str,
    /// The command that succeeds where it is installed.
    probe: &'static [&'static str],
}

/// Everything that any command compares with.
pub(crate) const ALL: [Peer; 8] =
    [QEMU, LIBQCOW, LIBVMDK, VMDKINFO, LIBISCSI, TGT, STRACE, E2FSPROGS];

/// qemu-img and qemu-io.
pub(crate) const QEMU: Peer = Peer {
    programs: &[
        Program { name: "qemu-img", probe: &["qemu-img", "--version"] },
        Program { name: "qemu-io", probe: &["qemu-io", "--version"] },
    ],
    package: "qemu-utils",
    elsewhere: "qemu-img in Fedora and Arch Linux, qemu-tools in openSUSE, qemu-img in Alpine",
};

/// strace, which counts the calls of a conversion.
pub(crate) const STRACE: Peer = Peer {
    programs: &[Program { name: "strace", probe: &["strace", "--version"] }],
    package: "strace",
    elsewhere: "strace everywhere",
};

/// By its path: `/sbin` is on the search path of administrators only.
pub(crate) const MKE2FS: &str = "/sbin/mke2fs";

/// mke2fs, which fills the file system that conversions are measured on.
pub(crate) const E2FSPROGS: Peer = Peer {
    programs: &[Program { name: MKE2FS, probe: &[MKE2FS, "-V"] }],
    package: "e2fsprogs",
    elsewhere: "e2fsprogs nearly everywhere",
};

/// By its path: the system's packages are for the system's Python, which need not be the first.
pub(crate) const PYTHON: &str = "/usr/bin/python3";

/// libqcow, a reader for forensics that shares nothing with QEMU. Its own tools show no contents.
pub(crate) const LIBQCOW: Peer = Peer {
    programs: &[Program { name: "pyqcow", probe: &[PYTHON, "-c", "import pyqcow"] }],
    package: "python3-libqcow",
    elsewhere: "the Python bindings of libqcow, from github.com/libyal/libqcow",
};

/// libvmdk, a reader for forensics that shares nothing with QEMU.
pub(crate) const LIBVMDK: Peer = Peer {
    programs: &[Program { name: "pyvmdk", probe: &[PYTHON, "-c", "import pyvmdk"] }],
    package: "python3-libvmdk",
    elsewhere: "the Python bindings of libvmdk, from github.com/libyal/libvmdk",
};

/// libvmdk's own tool, which shows what an image is made of.
pub(crate) const VMDKINFO: Peer = Peer {
    programs: &[Program { name: "vmdkinfo", probe: &["vmdkinfo", "-V"] }],
    package: "libvmdk-utils",
    elsewhere: "libvmdk, from github.com/libyal/libvmdk",
};

/// By their paths: `/usr/sbin` is on the search path of administrators only.
pub(crate) const TGTD: &str = "/usr/sbin/tgtd";
pub(crate) const TGTADM: &str = "/usr/sbin/tgtadm";

/// libiscsi's tools: an initiator of its own, and a conformance program for targets.
pub(crate) const LIBISCSI: Peer = Peer {
    programs: &[
        Program { name: "iscsi-test-cu", probe: &["iscsi-test-cu", "-l"] },
        Program { name: "iscsi-ls", probe: &["iscsi-ls", "--help"] },
        Program { name: "iscsi-inq", probe: &["iscsi-inq", "--help"] },
        Program { name: "iscsi-readcapacity16", probe: &["iscsi-readcapacity16", "--help"] },
        Program { name: "iscsi-swp", probe: &["iscsi-swp", "--help"] },
        Program { name: "iscsi-perf", probe: &["sh", "-c", "command -v iscsi-perf"] },
    ],
    package: "libiscsi-bin",
    elsewhere: "libiscsi-utils in Fedora and openSUSE, libiscsi in Arch Linux",
};

/// tgt, an iSCSI target in user space.
pub(crate) const TGT: Peer = Peer {
    programs: &[
        Program { name: TGTD, probe: &[TGTD, "-V"] },
        Program { name: TGTADM, probe: &[TGTADM, "--version"] },
    ],
    package: "tgt",
    elsewhere: "scsi-target-utils in Fedora, tgt in openSUSE and Arch Linux",
};

impl Peer {
    /// The first of its programs that does not start.
    fn missing(&self) -> Option<&'static str> {
        let absent = |program: &&Program| match program.probe {
            [command, arguments @ ..] => !run::works(command, arguments),
            [] => true,
        };
        self.programs.iter().find(absent).map(|program| program.name)
    }
}

/// Makes sure that `peers` are installed, by apt-get where they are not.
pub(crate) fn peers(peers: &[Peer]) -> Result<()> {
    let missing: Vec<Peer> =
        peers.iter().filter(|peer| peer.missing().is_some()).copied().collect();
    if !missing.is_empty() {
        install(&missing)?;
    }
    for peer in peers {
        if let Some(program) = peer.missing() {
            return Err(absent(peer, program));
        }
    }
    Ok(())
}

fn install(peers: &[Peer]) -> Result<()> {
    let Some(prefix) = apt_prefix() else {
        return Ok(()); // The caller finds the program still missing, and says how to get it.
    };
    let packages: Vec<&str> = peers.iter().map(|peer| peer.package).collect();
    println!("installing {}", packages.join(" "));
    let apt = |arguments: &[&str]| {
        let words: Vec<&str> = prefix
            .iter()
            .chain(&["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y"])
            .chain(arguments)
            .copied()
            .collect();
        let mut command = run::command(words[0]);
        run::succeed(command.args(&words[1..]))
    };
    apt(&["update"])?;
    let mut install = vec!["install", "--no-install-recommends"];
    install.extend(packages);
    apt(&install)
}

/// What must stand before `apt-get`: nothing for root, `sudo` where it asks no password.
fn apt_prefix() -> Option<&'static [&'static str]> {
    if !run::works("apt-get", &["--version"]) {
        None
    } else if run::works("sh", &["-c", "test \"$(id -u)\" = 0"]) {
        Some(&[])
    } else if run::works("sudo", &["-n", "true"]) {
        Some(&["sudo", "-n"])
    } else {
        None
    }
}

fn absent(peer: &Peer, program: &'static str) -> Failure {
    let hint = format!(
        "install the package {} (Debian, Ubuntu; elsewhere: {})",
        peer.package, peer.elsewhere
    );
    Failure::Missing { program, hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABSENT: Peer = Peer {
        programs: &[
            Program { name: "true", probe: &["true"] },
            Program { name: "no-such-program", probe: &["no-such-program", "--version"] },
        ],
        package: "no-such-package",
        elsewhere: "nothing",
    };

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        assert_eq!(ABSENT.missing(), Some("no-such-program"));
        let text = absent(&ABSENT, "no-such-program").to_string();
        assert!(text.contains("no-such-program") && text.contains("no-such-package"));
    }
}
