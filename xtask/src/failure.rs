//! What can go wrong while the harness runs.

use std::fmt;
use std::io;

/// Result of everything here.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// Why a step stopped.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A file or directory could not be used.
    Io {
        /// What was being done, with the name.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// A program could not be started.
    Start {
        /// The program.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// A program ended with an error.
    Exit {
        /// The whole command.
        command: String,
        /// How it ended.
        status: String,
        /// What it wrote to standard error, where that was captured.
        stderr: String,
    },
    /// A program printed something that cannot be understood.
    Output {
        /// The whole command.
        command: String,
        /// What is wrong with the output.
        problem: String,
    },
    /// A program that is needed is not installed and could not be installed.
    Missing {
        /// The program.
        program: &'static str,
        /// How to install it.
        hint: String,
    },
    /// A game of a soak failed.
    Soak {
        /// The soak.
        name: &'static str,
        /// How its test ended.
        how: String,
        /// The seed of the game, if one had begun.
        seed: Option<u64>,
    },
    /// A check found this many faults and has printed them.
    Faults {
        /// The check.
        check: &'static str,
        /// How many.
        count: usize,
    },
    /// A list of the harness's own is wrong.
    List {
        /// The file, or what is listed.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The user has asked to stop.
    Interrupted,
}

impl Failure {
    /// For `map_err` on file operations.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { what, source } => write!(f, "{what}: {source}"),
            Self::Start { program, source } => write!(f, "cannot start {program}: {source}"),
            Self::Exit { command, status, stderr } => {
                write!(f, "`{command}` ended with {status}")?;
                match stderr.trim() {
                    "" => Ok(()),
                    text => write!(f, "\n{text}"),
                }
            }
            Self::Output { command, problem } => write!(f, "`{command}` printed {problem}"),
            Self::Missing { program, hint } => write!(f, "{program} is not installed: {hint}"),
            Self::Soak { name, how, seed: None } => write!(f, "{name} {how} before its first game"),
            Self::Soak { name, how, seed: Some(seed) } => write!(
                f,
                "{name} {how}, see above; to play the game again: \
                 cargo xtask soak --only {name} --seed {seed}"
            ),
            Self::Faults { check, count } => write!(f, "{check}: {count} found, see above"),
            Self::List { name, problem } => write!(f, "{name}: {problem}"),
            Self::Interrupted => write!(f, "interrupted"),
        }
    }
}
