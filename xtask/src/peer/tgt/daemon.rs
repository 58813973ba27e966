//! A `tgtd` of our own: on a free port, with a control socket that nobody else uses.
//!
//! Invariants: it goes with the value, and with this process, however that ends; when it is started
//! again it is what it was, and its portal opens when everything behind it is there.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::failure::{Failure, Result};
use crate::scratch::Scratch;
use crate::{run, setup};

/// What the names of its targets begin with; the number follows.
pub(super) const NAME: &str = "iqn.2026-01.org.example:tgt";

const CONTROL: &str = "1";
/// Longest time until it listens to its control socket.
const START_MAX: Duration = Duration::from_secs(20);

pub(super) struct Daemon {
    child: Option<Child>,
    /// Short, since the path of a socket is.
    socket: Scratch,
    log: PathBuf,
    portal: String,
    /// What has made it what it is.
    commands: Vec<Vec<String>>,
}

impl Daemon {
    /// Without targets, and without a portal that anybody knows.
    pub(super) fn start(directory: &Path) -> Result<Self> {
        let socket = Scratch::inside(&std::env::temp_dir(), "tgt")?;
        let log = directory.join("tgtd.log");
        let portal = free_port()?;
        let mut daemon = Self { child: None, socket, log, portal, commands: Vec::new() };
        daemon.spawn()?;
        Ok(daemon)
    }

    /// `host:port` of its portal.
    pub(super) fn portal(&self) -> &str {
        &self.portal
    }

    /// The URL of a unit.
    pub(super) fn url(&self, credentials: &str, target: u32, lun: u32) -> String {
        format!("iscsi://{credentials}{}/{NAME}{target}/{lun}", self.portal)
    }

    /// A new target, for every initiator.
    pub(super) fn target(&mut self, target: u32) -> Result<()> {
        let (tid, name) = (target.to_string(), format!("{NAME}{target}"));
        self.set(&["--mode", "target", "--op", "new", "--tid", &tid, "-T", &name])?;
        self.set(&["--mode", "target", "--op", "bind", "--tid", &tid, "-I", "ALL"])
    }

    /// A new unit in `file`, which exists, with more options.
    pub(super) fn unit(&mut self, target: u32, lun: u32, file: &Path, more: &[&str]) -> Result<()> {
        let (tid, lun, file) = (target.to_string(), lun.to_string(), file.to_string_lossy());
        let new =
            ["--mode", "logicalunit", "--op", "new", "--tid", &tid, "--lun", &lun, "-b", &file];
        self.set(&[&new, more].concat())
    }

    /// Changes what a unit is like: `name=value`.
    pub(super) fn change_unit(&mut self, target: u32, lun: u32, change: &str) -> Result<()> {
        let (tid, lun) = (target.to_string(), lun.to_string());
        let unit = ["--mode", "logicalunit", "--op", "update", "--tid", &tid, "--lun", &lun];
        self.set(&[&unit[..], &["--params", change]].concat())
    }

    /// Puts a unit in the place of another one.
    pub(super) fn replace_unit(&mut self, target: u32, lun: u32, file: &Path) -> Result<()> {
        let (tid, number) = (target.to_string(), lun.to_string());
        let unit = ["--mode", "logicalunit", "--op", "delete", "--tid", &tid, "--lun", &number];
        self.set(&unit)?;
        self.unit(target, lun, file, &[])
    }

    /// Runs `tgtadm`, now and whenever the daemon is started again.
    pub(super) fn set(&mut self, words: &[&str]) -> Result<()> {
        self.tgtadm(words)?;
        self.commands.push(words.iter().map(|word| (*word).to_owned()).collect());
        Ok(())
    }

    /// Lets initiators in.
    pub(super) fn open_portal(&self) -> Result<()> {
        let portal = format!("portal={}", self.portal);
        self.tgtadm(&["--mode", "portal", "--op", "new", "--param", &portal])
    }

    /// Ends it on the spot.
    pub(super) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended already.
            let _killed = child.kill();
            let _ended = child.wait();
        }
    }

    /// Starts it again, as it was.
    pub(super) fn start_again(&mut self) -> Result<()> {
        self.spawn()?;
        for words in &self.commands {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            self.tgtadm(&words)?;
        }
        self.open_portal()
    }

    fn tgtadm(&self, words: &[&str]) -> Result<()> {
        let mut command = run::command(setup::TGTADM);
        command.env("TGT_IPC_SOCKET", self.socket.file("tgt"));
        command.args(["-C", CONTROL, "--lld", "iscsi"]).args(words);
        run::stdout(&mut command).map(drop)
    }

    fn spawn(&mut self) -> Result<()> {
        let log = std::fs::File::options().create(true).append(true).open(&self.log);
        let log = log.map_err(Failure::io(format!("open {}", self.log.display())))?;
        let copy = log.try_clone().map_err(Failure::io("copy a descriptor"))?;
        // It has to have a portal; this one is nobody's.
        let portal = format!("portal={}", free_port()?);
        let mut command = run::command("setpriv");
        command.env("TGT_IPC_SOCKET", self.socket.file("tgt"));
        command.args(["--pdeathsig", "KILL", setup::TGTD, "-f", "-C", CONTROL, "--iscsi", &portal]);
        let child = command.stdin(Stdio::null()).stdout(log).stderr(copy).spawn();
        self.child = Some(child.map_err(Failure::io("start tgtd"))?);
        let start = Instant::now();
        loop {
            match self.tgtadm(&["--mode", "target", "--op", "show"]) {
                Err(failure) if start.elapsed() > START_MAX => return Err(failure),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
                Ok(()) => return Ok(()),
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// `host:port` of a port that nobody has now.
fn free_port() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    Ok(listener.map_err(Failure::io("find a free port"))?.to_string())
}
