//! `block-img` and `block-io` on units of iSCSI targets: the test kit's target, on the network in this
//! process.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, and these helpers run in tests only"
)]

mod formats;
mod io;
mod ls;
mod secrets;
mod thin;

use std::process::{Command, Output};

use block_testkit::iscsi::serve::Server;
use block_testkit::iscsi::target::{Target, TargetConfig};
use block_testkit::iscsi::{Counters, Device, LunConfig, SenseFormat};
use block_testkit::peer::ImageDir;

const BLOCK_IMG: &str = env!("CARGO_BIN_EXE_block-img");
const BLOCK_IO: &str = env!("CARGO_BIN_EXE_block-io");
const NAME: &str = "iqn.2026-01.org.example:disk";
const MIB: u64 = 1 << 20;

/// Commands by which a medium changes (SBC-3 clause 5).
const WRITE: [u8; 2] = [0x2a, 0x8a];
const WRITE_SAME: [u8; 2] = [0x41, 0x93];
const UNMAP: [u8; 1] = [0x42];

/// A target with units, and a directory for images beside it.
struct Place {
    server: Server,
    dir: ImageDir,
}

/// How a command ended.
#[derive(Debug)]
struct Ended {
    status: i32,
    out: String,
    err: String,
}

impl Place {
    /// Everybody may log in; the units are numbered from 0.
    fn new(luns: &[LunConfig]) -> Self {
        Self::with(luns, |_| ())
    }

    fn with(luns: &[LunConfig], change: impl FnOnce(&mut TargetConfig)) -> Self {
        let mut device = Device::new(SenseFormat::Fixed);
        for (number, lun) in (0..).zip(luns) {
            device.add(number, lun.clone()).unwrap();
        }
        let mut config = TargetConfig::new(NAME);
        change(&mut config);
        let server = Server::start(Target::new(config, device)).unwrap();
        Self { server, dir: ImageDir::new().unwrap() }
    }

    /// The URL of a unit.
    fn url(&self, lun: u16) -> String {
        self.url_as("", lun)
    }

    /// The URL of a unit with `credentials` (`user%password@`).
    fn url_as(&self, credentials: &str, lun: u16) -> String {
        format!("iscsi://{credentials}{}/{NAME}/{lun}", self.server.addr())
    }

    fn run_with(&self, program: &str, env: &[(&str, &str)], args: &[&str]) -> Ended {
        let mut command = Command::new(program);
        for name in ["USERNAME", "PASSWORD", "TARGET_USERNAME", "TARGET_PASSWORD"] {
            command.env_remove(format!("LIBISCSI_CHAP_{name}"));
        }
        command.envs(env.iter().copied()).current_dir(self.dir.path(""));
        let Output { status, stdout, stderr } = command.args(args).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ended { status: status.code().unwrap(), out: text(&stdout), err: text(&stderr) }
    }

    /// Runs `block-img`, however it ends.
    fn run(&self, args: &[&str]) -> Ended {
        self.run_with(BLOCK_IMG, &[], args)
    }

    /// Runs `block-img`, which must succeed; its standard output.
    fn img(&self, args: &[&str]) -> String {
        let ended = self.run(args);
        assert_eq!(ended.status, 0, "{args:?}: {ended:?}");
        ended.out
    }

    /// Runs commands of `block-io`, which must succeed; its standard output.
    fn io(&self, args: &[&str], commands: &[&str]) -> String {
        let commands = commands.iter().flat_map(|command| ["-c", command]);
        let args: Vec<_> = args.iter().copied().chain(commands).collect();
        let ended = self.run_with(BLOCK_IO, &[], &args);
        assert_eq!((ended.status, ended.err.as_str()), (0, ""), "{args:?}: {ended:?}");
        ended.out
    }

    /// Two images hold the same.
    fn same(&self, a: (&str, &str), b: (&str, &str)) {
        self.img(&["compare", "-f", a.0, "-F", b.0, a.1, b.1]);
    }

    /// What arrived at the target since the last time.
    fn counted(&self) -> Counters {
        self.server.with(|target| {
            let counters = target.device().counters().clone();
            target.device_mut().reset_counters();
            counters
        })
    }

    /// The bytes of a unit of blocks of 512 bytes that have a place, in whole MiB.
    fn mapped(&self, lun: u16, mib: u64) -> Vec<u64> {
        let first = |mib: u64| mib * MIB / 512;
        self.server.with(|target| {
            let mapped = |lba: u64| target.device().is_mapped(lun, lba);
            (0..mib).filter(|mib| (first(*mib)..first(*mib + 1)).any(mapped)).collect()
        })
    }
}

/// How many of these commands there were.
fn count(counters: &Counters, opcodes: &[u8]) -> u64 {
    opcodes.iter().map(|opcode| counters.of(*opcode)).sum()
}

fn thick(mib: u64) -> LunConfig {
    LunConfig::thick(512, mib * MIB / 512)
}

fn thin(mib: u64) -> LunConfig {
    LunConfig::thin(512, mib * MIB / 512)
}
