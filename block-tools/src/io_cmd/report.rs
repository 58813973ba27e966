//! What a request leaves on standard output: the hex dump, the verification of a pattern, and the
//! lines with its figures.

use std::fmt::Display;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use block_core::range::{to_u64, to_usize};
use block_core::{Error, IoVec, Result};

use super::Failure;
use super::number::Figures;

/// Lines from drivers, which come while a command runs.
pub(super) type Notes = Arc<Mutex<Vec<String>>>;

/// Where the lines go. A write that fails ends the session: nobody reads any more.
pub(super) struct Output {
    writer: Box<dyn Write>,
    /// Whether a write failed.
    pub(super) broken: bool,
    /// Why nothing that follows makes sense.
    pub(super) fatal: Option<String>,
    /// Printed before whatever comes next.
    notes: Notes,
}

impl Output {
    /// Lines go to `writer`, which does its own buffering.
    pub(super) fn new(writer: Box<dyn Write>) -> Self {
        Self { writer, broken: false, fatal: None, notes: Notes::default() }
    }

    /// Where drivers put lines.
    pub(super) fn notes(&self) -> Notes {
        Arc::clone(&self.notes)
    }

    /// Prints a line.
    pub(super) fn line(&mut self, text: impl Display) {
        self.print_notes();
        self.broken |= writeln!(self.writer, "{text}").is_err();
    }

    /// Prints a prompt and shows everything before it.
    pub(super) fn prompt(&mut self, text: &str) {
        self.print_notes();
        self.broken |= write!(self.writer, "{text}").is_err();
        self.flush();
    }

    /// Shows everything.
    pub(super) fn flush(&mut self) {
        self.print_notes();
        self.broken |= self.writer.flush().is_err();
    }

    fn print_notes(&mut self) {
        let notes = match self.notes.lock() {
            Ok(mut notes) => std::mem::take(&mut *notes),
            // Who panicked had nothing half done.
            Err(poisoned) => std::mem::take(&mut *poisoned.into_inner()),
        };
        for note in notes {
            self.broken |= writeln!(self.writer, "{note}").is_err();
        }
    }
}

/// Which lines about a request are wanted.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub(super) enum Style {
    /// Two lines for people.
    #[default]
    People,
    /// One line for programs (`-C`).
    Machines,
    /// None (`-q`).
    Quiet,
}

/// The part of what was read that must hold one byte only.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Check {
    /// The byte.
    pub(super) pattern: u8,
    /// Where the part starts in what was read.
    pub(super) start: u64,
    /// Its length in bytes.
    pub(super) len: u64,
}

/// A request as its report describes it.
#[derive(Clone, Debug)]
pub(super) struct Described {
    /// What it did, for the report: `read`, `wrote`, `discard`.
    pub(super) done: &'static str,
    /// What failed, if it did: `read`, `aio_write`.
    pub(super) failed: &'static str,
    /// First byte.
    pub(super) offset: u64,
    /// Length in bytes.
    pub(super) len: u64,
    /// Which lines.
    pub(super) style: Style,
    /// For a read: its data.
    pub(super) data: IoVec,
    /// For a read: what to verify.
    pub(super) check: Option<Check>,
    /// For a read: whether the data is shown (`-v`).
    pub(super) dump: bool,
}

impl Described {
    /// Says how the request ended.
    pub(super) fn report(
        &self,
        result: Result<()>,
        took: Duration,
        out: &mut Output,
    ) -> Result<(), Failure> {
        if let Err(Error::Mismatch { range, offset: at }) = result {
            let (offset, bytes) = (range.offset(), range.len());
            out.fatal = Some(format!(
                "blkverify: read offset={offset} bytes={bytes} contents mismatch at offset {at}"
            ));
            return Err(Failure::Told);
        }
        if let Err(Error::Diverged { range, .. }) = result {
            let (what, offset, bytes) = (self.failed, range.offset(), range.len());
            out.fatal = Some(format!(
                "blkverify: {what} offset={offset} bytes={bytes} return value mismatch"
            ));
            return Err(Failure::Told);
        }
        if let Err(error) = result {
            return Err(Failure::Line(format!("{} failed: {}", self.failed, error.errno_text())));
        }
        let verified = self.verify(out);
        if self.style == Style::Quiet {
            return verified;
        }
        if self.dump {
            dump(&self.data, self.offset, out);
        }
        let figures = Figures { bytes: self.len, took };
        if self.style == Style::Machines {
            out.line(figures.for_machines());
        } else {
            let Self { done, offset, len, .. } = self;
            out.line(format_args!("{done} {len}/{len} bytes at offset {offset}"));
            out.line(figures.for_people());
        }
        verified
    }

    fn verify(&self, out: &mut Output) -> Result<(), Failure> {
        let Some(Check { pattern, start, len }) = self.check else {
            return Ok(());
        };
        let mut chunk = [0; CHUNK];
        let mut done = 0;
        while done < len {
            let n = to_usize((len - done).min(to_u64(CHUNK)));
            let part = &mut chunk[..n];
            self.data.copy_to(to_usize(start + done), part);
            if part.iter().any(|byte| *byte != pattern) {
                let at = self.offset.saturating_add(start);
                out.line(format_args!("Pattern verification failed at offset {at}, {len} bytes"));
                return Err(Failure::Told);
            }
            done += to_u64(n);
        }
        Ok(())
    }
}

/// Bytes that are looked at in one go; a multiple of [`ROW`].
const CHUNK: usize = 4096;

/// Bytes in one line of a dump.
const ROW: usize = 16;

/// Shows bytes as sixteen hex numbers a line, with the offset before and letters and digits after.
fn dump(data: &IoVec, offset: u64, out: &mut Output) {
    let mut row = [0; ROW];
    let mut done = 0;
    while done < data.len() && !out.broken {
        let n = (data.len() - done).min(ROW);
        let part = &mut row[..n];
        data.copy_to(done, part);
        let hex: String = part.iter().map(|byte| format!("{byte:02x} ")).collect();
        let plain = |byte: &u8| if byte.is_ascii_alphanumeric() { char::from(*byte) } else { '.' };
        let text: String = part.iter().map(plain).collect();
        let at = offset.saturating_add(to_u64(done));
        out.line(format_args!("{at:08x}:  {hex} {text}"));
        done += n;
    }
}
