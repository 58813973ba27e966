//! The tools of the field that tests compare with: images made and read by `qemu-img` and `qemu-io`
//! in a temporary directory.
//!
//! A test that needs a tool fails where it is missing, and its message says how to install it: a
//! comparison that did not take place must not look like one that passed.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The command that installs the tools, as users of Debian and its relatives type it.
pub const INSTALL: &str = "apt-get install qemu-utils";

/// Why a tool's answer is not there.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The tool could not be started.
    #[error("`{tool}` could not be started ({error}); install it with `{INSTALL}`")]
    Missing {
        /// Its name.
        tool: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// The tool reported a failure.
    #[error("`{command}` ended with {code:?}: {message}")]
    Failed {
        /// The command line.
        command: String,
        /// Its exit code; `None` if a signal ended it.
        code: Option<i32>,
        /// What it wrote to standard output and standard error.
        message: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {error}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// What `qemu-img check` said.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Nothing is wrong.
    Clean,
    /// Clusters are lost, and nothing else is wrong.
    Leaks,
    /// There are errors, perhaps leaks too.
    Errors,
}

/// A command that runs `program` with no signal ignored: what was started with `nohup`, or in the background
/// of a shell, passes on that hangups and Ctrl-C are. It is GNU's `env` that does it.
pub fn with_default_signals(program: &str) -> Command {
    let mut command = Command::new("env");
    command.args(["--default-signal", program]);
    command
}

/// A temporary directory of images; the tools run inside of it, so that names are plain.
#[derive(Debug)]
pub struct ImageDir {
    dir: tempfile::TempDir,
}

impl ImageDir {
    /// An empty directory.
    pub fn new() -> Result<Self, PeerError> {
        let failed = |error| PeerError::File { path: std::env::temp_dir(), error };
        let dir = tempfile::tempdir().map_err(failed)?;
        Ok(Self { dir })
    }

    /// The path of the file `name`.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The bytes of the file `name`.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>, PeerError> {
        let path = self.path(name);
        std::fs::read(&path).map_err(|error| PeerError::File { path, error })
    }

    /// Makes the file `name`, or replaces it.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), PeerError> {
        let path = self.path(name);
        std::fs::write(&path, bytes).map_err(|error| PeerError::File { path, error })
    }

    /// Runs `qemu-img`, which must succeed; its standard output.
    pub fn qemu_img(&self, args: &[&str]) -> Result<String, PeerError> {
        self.succeed("qemu-img", args)
    }

    /// Runs `qemu-io` commands on `image`, which must succeed; its standard output.
    pub fn qemu_io(&self, image: &str, commands: &[&str]) -> Result<String, PeerError> {
        // Nothing here must survive a crash of the machine, so no time is spent on flushes.
        let mut args = vec!["-t", "unsafe", image];
        for command in commands {
            args.extend(["-c", command]);
        }
        self.succeed("qemu-io", &args)
    }

    /// What the guest of `image` sees, as `qemu-img convert` reads it. `options` come before the
    /// name (`-l`, `snapshot`).
    pub fn raw_contents(&self, image: &str, options: &[&str]) -> Result<Vec<u8>, PeerError> {
        let target = format!("{image}.converted");
        let mut args = vec!["convert", "-O", "raw"];
        args.extend_from_slice(options);
        args.extend([image, &target]);
        self.qemu_img(&args)?;
        self.bytes(&target)
    }

    /// What `qemu-img check` says of `image`.
    pub fn check(&self, image: &str) -> Result<Verdict, PeerError> {
        let args = ["check", image];
        let output = self.run("qemu-img", &args)?;
        match output.status.code() {
            Some(0) => Ok(Verdict::Clean),
            Some(2) => Ok(Verdict::Errors),
            Some(3) => Ok(Verdict::Leaks),
            _ => Err(failure("qemu-img", &args, &output)),
        }
    }

    /// Runs `tool` in the directory, however it ends.
    pub fn run<S: AsRef<OsStr>>(
        &self,
        tool: &'static str,
        args: &[S],
    ) -> Result<Output, PeerError> {
        let mut command = Command::new(tool);
        command.args(args).current_dir(self.dir.path());
        let missing = |error| PeerError::Missing { tool, error };
        command.output().map_err(missing)
    }

    fn succeed(&self, tool: &'static str, args: &[&str]) -> Result<String, PeerError> {
        let output = self.run(tool, args)?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(failure(tool, args, &output))
        }
    }
}

fn failure(tool: &str, args: &[&str], output: &Output) -> PeerError {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    PeerError::Failed {
        command: format!("{tool} {}", args.join(" ")),
        code: output.status.code(),
        message: text(&output.stdout) + &text(&output.stderr),
    }
}
