//! Why a command failed: what it tells the user, and its exit status.
//!
//! Invariant: no message holds a password.

use std::fmt::Display;

use crate::program;
use crate::spec::shown;
use crate::surroundings::complain;

/// A failed command. The message does not name the program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    message: String,
    status: u8,
    /// The command to look up the usage of, for wrong usage.
    usage: Option<&'static str>,
}

impl Failure {
    /// A failure with exit status 1.
    pub fn new(message: impl Display) -> Self {
        Self { message: shown(&message.to_string()), status: 1, usage: None }
    }

    /// Wrong usage of `command` (empty: of the program), which exits with status 1 too.
    pub fn usage(command: &'static str, message: impl Display) -> Self {
        Self { usage: Some(command), ..Self::new(message) }
    }

    /// The same with another exit status.
    #[must_use]
    pub fn with_status(self, status: u8) -> Self {
        Self { status, ..self }
    }

    /// The exit status.
    pub fn status(&self) -> u8 {
        self.status
    }

    /// What the user is told.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Tells the user, beside the output.
    pub fn report(&self) {
        let program = program::name();
        complain(format_args!("{program}: {}", self.message));
        match self.usage {
            None => {}
            Some("") => complain(format_args!("Try '{program} --help' for more info")),
            Some(command) => {
                complain(format_args!("Try '{program} {command} --help' for more info"))
            }
        }
    }
}

impl From<std::io::Error> for Failure {
    /// Only standard output is written by way of `std::io`.
    fn from(error: std::io::Error) -> Self {
        Self::new(format_args!("cannot write to standard output: {error}"))
    }
}
