//! Running one script: its environment, its time, what it printed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::compare::{Comparison, compare};
use super::configuration::Configuration;
use super::read_text;
use crate::failure::{Failure, Result};
use crate::run;

/// Most seconds of one script.
const TIME: Duration = Duration::from_secs(180);

/// The first line of the scripts that are run; the others need an emulator's Python modules.
const SHELL: &str = "#!/usr/bin/env bash";

/// What a run of a script came to.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// As expected, line by line.
    Pass,
    /// As expected but for the words of messages.
    Wording(Vec<String>),
    /// Not as expected.
    Fail(Vec<String>),
    /// The script says that it is not for this configuration.
    NotRun(String),
}

impl Found {
    /// The outcome in a word.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Wording(_) => "wording",
            Self::Fail(_) => "fail",
            Self::NotRun(_) => "not run",
        }
    }

    /// What is to be said about it.
    pub(super) fn details(&self) -> &[String] {
        match self {
            Self::Pass => &[],
            Self::Wording(lines) | Self::Fail(lines) => lines,
            Self::NotRun(reason) => std::slice::from_ref(reason),
        }
    }
}

/// The suite: where it is, what it calls, where it may write.
pub(super) struct Suite {
    directory: PathBuf,
    programs: PathBuf,
    scratch: PathBuf,
    scripts: Vec<String>,
}

impl Suite {
    /// The suite of a source tree.
    pub(super) fn find(source: &Path, programs: &Path, scratch: &Path) -> Result<Self> {
        let directory = source.join("tests").join("qemu-iotests");
        let mut scripts = Vec::new();
        for (folder, numbered) in [("", true), ("tests", false)] {
            let folder = directory.join(folder);
            let what = format!("list {}", folder.display());
            for entry in fs::read_dir(&folder).map_err(Failure::io(what.clone()))? {
                let path = entry.map_err(Failure::io(what.clone()))?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let fits = if numbered { is_number(&name) } else { !name.contains('.') };
                if fits && path.is_file() && is_shell(&path)? {
                    scripts.push(if numbered { name } else { format!("tests/{name}") });
                }
            }
        }
        scripts.sort();
        let (programs, scratch) = (programs.to_owned(), scratch.to_owned());
        Ok(Self { directory, programs, scratch, scripts })
    }

    /// The scripts by name, in order.
    pub(super) fn scripts(&self) -> &[String] {
        &self.scripts
    }

    /// Runs one.
    pub(super) fn run(&self, configuration: &Configuration, script: &str) -> Result<Found> {
        let name = script.rsplit('/').next().unwrap_or(script);
        let place = self.scratch.join(configuration.name).join(name);
        let [test, sockets] = ["test", "sock"].map(|part| place.join(part));
        for directory in [&test, &sockets] {
            let what = format!("create {}", directory.display());
            fs::create_dir_all(directory).map_err(Failure::io(what))?;
        }
        let output = place.join("output");
        let status = self.execute(configuration, script, &test, &sockets, &output)?;
        let found = self.judge(configuration, script, status, &test, &output)?;
        if matches!(found, Found::Pass | Found::NotRun(_)) {
            let what = format!("remove {}", place.display());
            fs::remove_dir_all(&place).map_err(Failure::io(what))?;
        }
        Ok(found)
    }

    /// Starts the script and waits, to the end of its time; `None` if that came first.
    fn execute(
        &self,
        configuration: &Configuration,
        script: &str,
        test: &Path,
        sockets: &Path,
        output: &Path,
    ) -> Result<Option<ExitStatus>> {
        let what = format!("create {}", output.display());
        let output = File::create(output).map_err(Failure::io(what.clone()))?;
        let error = output.try_clone().map_err(Failure::io(what))?;
        let path = self.directory.join(script);
        let mut command = run::command("bash");
        command.arg(&path).current_dir(path.parent().unwrap_or(&self.directory));
        command.envs(self.environment(configuration, test, sockets));
        command.stdout(output).stderr(error).stdin(Stdio::null()).process_group(0);
        let start = Instant::now();
        let mut child = command.spawn().map_err(Failure::io(format!("start {script}")))?;
        loop {
            let status = child.try_wait().map_err(Failure::io(format!("wait for {script}")))?;
            if status.is_some() {
                kill_group(&child); // servers that it left behind
                return Ok(status);
            }
            if start.elapsed() > TIME {
                kill_group(&child);
                child.wait().map_err(Failure::io(format!("wait for {script}")))?;
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What the scripts look for in the environment.
    fn environment(
        &self,
        configuration: &Configuration,
        test: &Path,
        sockets: &Path,
    ) -> BTreeMap<&'static str, String> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let program = |name: &str| text(&self.programs.join(name));
        let io_options = "--cache writeback --aio threads";
        BTreeMap::from([
            ("PYTHONPATH", text(&self.directory)),
            ("TEST_DIR", text(test)),
            ("SOCK_DIR", text(sockets)),
            ("SAMPLE_IMG_DIR", text(&self.directory.join("sample_images"))),
            ("PYTHON", "python3".to_owned()),
            ("QEMU_PROG", program("qemu")),
            ("QEMU_IMG_PROG", program("qemu-img")),
            ("QEMU_IO_PROG", program("qemu-io")),
            ("QEMU_NBD_PROG", program("qemu-nbd")),
            ("QSD_PROG", program("qemu-storage-daemon")),
            ("QEMU_OPTIONS", String::new()),
            ("QEMU_IMG_OPTIONS", String::new()),
            ("QEMU_IO_OPTIONS", format!("{io_options} -f {}", configuration.format)),
            ("QEMU_IO_OPTIONS_NO_FMT", io_options.to_owned()),
            ("QEMU_NBD_OPTIONS", String::new()),
            ("IMGOPTS", configuration.options.to_owned()),
            ("IMGFMT", configuration.format.to_owned()),
            ("IMGPROTO", "file".to_owned()),
            ("AIOMODE", "threads".to_owned()),
            ("CACHEMODE", "writeback".to_owned()),
            ("CACHEMODE_IS_DEFAULT", "true".to_owned()),
            ("IMGFMT_GENERIC", "true".to_owned()),
            ("IMGOPTSSYNTAX", "false".to_owned()),
            ("QEMU_DEFAULT_MACHINE", "pc".to_owned()),
        ])
    }

    fn judge(
        &self,
        configuration: &Configuration,
        script: &str,
        status: Option<ExitStatus>,
        test: &Path,
        output: &Path,
    ) -> Result<Found> {
        let printed = read_text(output)?;
        let Some(status) = status else {
            let mut lines = vec![format!("killed after {} s, having printed", TIME.as_secs())];
            lines.extend(printed.lines().map(str::to_owned).rev().take(5));
            return Ok(Found::Fail(lines));
        };
        let name = script.rsplit('/').next().unwrap_or(script);
        let not_run = test.join(format!("{name}.notrun"));
        if status.success() && not_run.exists() {
            return Ok(Found::NotRun(read_text(&not_run)?.trim().to_owned()));
        }
        let path = self.directory.join(script);
        let with = |end: &str| PathBuf::from(format!("{}{end}", path.display()));
        let special = with(&format!(".out.{}", configuration.format));
        let reference = if special.is_file() { special } else { with(".out") };
        Ok(match compare(&read_text(&reference)?, &printed) {
            Comparison::Same if status.success() => Found::Pass,
            Comparison::Wording(lines) if status.success() => Found::Wording(lines),
            Comparison::Same => Found::Fail(vec![exit(status)]),
            Comparison::Wording(lines) | Comparison::Different(lines) => Found::Fail(lines),
        })
    }
}

fn exit(status: ExitStatus) -> String {
    match status.signal() {
        Some(signal) => format!("ended by signal {signal}"),
        None => format!("ended with {status}"),
    }
}

/// Kills what is left of the script and everything that it started.
fn kill_group(child: &Child) {
    let group = format!("-{}", child.id());
    run::works("kill", &["-KILL", "--", &group]);
}

fn is_number(name: &str) -> bool {
    name.len() == 3 && name.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_shell(path: &Path) -> Result<bool> {
    Ok(read_text(path)?.lines().next() == Some(SHELL))
}
