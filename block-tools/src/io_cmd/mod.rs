//! The commands of `block-io`, one line at a time: a [`Session`] holds the open image and the
//! requests in flight, and prints what users of `qemu-io` expect.
//!
//! Invariants: no line panics or allocates more than the request that it names; a request beyond the
//! end of the disk is refused before memory is allocated for it.
//!
//! What is not here: zones, which no driver has.

mod args;
mod breakpoint;
mod image;
mod inquiry;
mod number;
mod pending;
mod report;
mod table;
mod transfer;

use std::future::Future;
use std::io::Write;

use block_core::backend::BlockBackend;
use block_core::{Result, graph};

use crate::open::ImageSpec;
use crate::spec::objects::Secrets;
use crate::spec::{SpecError, shown};
use args::Parsed;
use pending::Pending;
use report::{Described, Output};
use table::{COMMANDS, Command, Needs, Verb};

/// Longest line of commands, in bytes.
pub const MAX_LINE_BYTES: usize = 64 << 10;

/// Why a command failed, and what is still to be said about it.
#[derive(Debug)]
enum Failure {
    /// A line on standard output.
    Line(String),
    /// A line on standard error.
    Complaint(String),
    /// The command's help line on standard output, after a line on standard error if there is one.
    Usage(Option<String>),
    /// Nothing: it was said already.
    Told,
}

/// What happened to a line of commands.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It succeeded, or held no command.
    Done,
    /// It failed, and said why.
    Failed,
    /// It met what makes all that follows pointless, and said so: the program ends.
    Stopped,
    /// It asks to end the program.
    Quit,
}

/// Where buffers start in memory.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum BufferPlace {
    /// At a page.
    #[default]
    Aligned,
    /// 16 bytes past a page (`-m`), so that the layer has to bounce them for O_DIRECT.
    Misaligned,
}

/// The state between commands.
pub struct Session {
    image: Option<BlockBackend>,
    /// How the image was opened, with what was changed since.
    spec: Option<ImageSpec>,
    pending: Pending,
    out: Output,
    err: Box<dyn Write>,
    place: BufferPlace,
    /// What options of `open` may name.
    secrets: Secrets,
    /// What its own messages start with.
    name: &'static str,
}

impl Session {
    /// A session of the program `name` without an image. `out` does its own buffering.
    pub fn new(
        name: &'static str,
        out: Box<dyn Write>,
        err: Box<dyn Write>,
        place: BufferPlace,
    ) -> Self {
        let (image, spec, pending) = (None, None, Pending::default());
        let secrets = Secrets::default();
        Self { image, spec, pending, out: Output::new(out), err, place, secrets, name }
    }

    /// The same, with secrets that options of `open` may name.
    #[must_use]
    pub fn with_secrets(self, secrets: Secrets) -> Self {
        Self { secrets, ..self }
    }

    /// Opens an image; says why if it cannot.
    pub async fn open(&mut self, spec: &ImageSpec) -> Outcome {
        let opened = self.open_image(spec).await;
        self.outcome(opened, None)
    }

    /// Runs one line. Requests in flight go on only while it waits for something.
    pub async fn run(&mut self, line: &str) -> Outcome {
        let mut words = line.split([' ', '\t', '\n']).filter(|word| !word.is_empty());
        let Some(name) = words.next() else {
            return Outcome::Done;
        };
        let words: Vec<&str> = words.collect();
        let Some(command) = Command::named(name) else {
            let unknown = Failure::Complaint(format!("command \"{name}\" not found"));
            return self.outcome(Err(unknown), None);
        };
        if command.verb == Verb::Quit {
            return Outcome::Quit;
        }
        let result = match self.refuse(command, words.len()) {
            Some(complaint) => Err(Failure::Complaint(complaint)),
            None => self.dispatch(command, &words).await,
        };
        self.outcome(result, Some(command.line(name)))
    }

    /// Shows the prompt and everything before it.
    pub fn prompt(&mut self) {
        let prompt = format!("{}> ", self.name);
        self.out.prompt(&prompt);
    }

    /// Waits for something outside, reporting requests as they end.
    pub async fn wait<T>(&mut self, future: impl Future<Output = T>) -> T {
        let value = self.pending.wait(&mut self.out, future).await;
        // Somebody who looks at the terminal meanwhile sees what was reported.
        self.out.flush();
        value
    }

    /// Waits for every request, closes the image and shows everything.
    pub async fn finish(&mut self) -> Outcome {
        let closed = self.close_image().await;
        self.out.flush();
        let outcome = self.outcome(closed, None);
        if self.out.broken && outcome == Outcome::Done { Outcome::Failed } else { outcome }
    }

    /// Whether standard output is gone.
    pub fn is_broken(&self) -> bool {
        self.out.broken
    }

    fn refuse(&self, command: &Command, count: usize) -> Option<String> {
        let image = match (&self.image, command.needs) {
            (_, Needs::Nothing) => None,
            (None, _) => return Some("no file open, try 'help open'".to_owned()),
            (Some(image), _) => Some(image),
        };
        if let Some(refused) = command.refuse_count(count) {
            return Some(refused);
        }
        let read_only = image.is_some_and(|image| image.node().is_read_only());
        (read_only && command.needs == Needs::WritableImage)
            .then(|| format!("{}: Block node is read-only", self.name))
    }

    async fn dispatch(&mut self, command: &Command, words: &[&str]) -> Result<(), Failure> {
        match command.verb {
            Verb::Abort => std::process::abort(),
            Verb::AioFlush => self.aio_flush().await,
            Verb::AioRead => self.aio_read(words).await,
            Verb::AioWrite => self.aio_write(words).await,
            Verb::Alloc => self.alloc(words).await,
            Verb::Break => self.set_breakpoint(words),
            Verb::Close => self.close_image().await,
            Verb::Discard => self.discard(words).await,
            Verb::Flush => self.flush().await,
            Verb::Help => self.help(words),
            Verb::Info => self.info(),
            Verb::Length => self.length(),
            Verb::Map => self.map().await,
            Verb::Open => self.open_command(words).await,
            Verb::Quit => Ok(()),
            Verb::Read => self.read(words).await,
            Verb::Readv => self.readv(words).await,
            Verb::RemoveBreak => self.remove_breakpoint(words),
            Verb::Reopen => self.reopen(words).await,
            Verb::Resume => self.resume(words),
            Verb::Sigraise => self.sigraise(words),
            Verb::Sleep => self.sleep(words).await,
            Verb::Truncate => self.truncate(words).await,
            Verb::WaitBreak => self.wait_for_breakpoint(words).await,
            Verb::Write => self.write(words).await,
            Verb::Writev => self.writev(words).await,
        }
    }

    /// Says what is left to say about a command.
    fn outcome(&mut self, result: Result<(), Failure>, usage: Option<String>) -> Outcome {
        if let Some(line) = self.out.fatal.take() {
            self.out.flush();
            self.complain(&line);
            return Outcome::Stopped;
        }
        let failure = match result {
            Ok(()) => return Outcome::Done,
            Err(failure) => failure,
        };
        match failure {
            Failure::Line(line) => self.out.line(line),
            Failure::Complaint(line) => self.complain(&line),
            Failure::Usage(complaint) => {
                if let Some(line) = complaint {
                    self.complain(&line);
                }
                if let Some(usage) = usage {
                    self.out.line(usage);
                }
            }
            Failure::Told => {}
        }
        Outcome::Failed
    }

    fn complain(&mut self, line: &str) {
        // Nobody is left to be told if this fails.
        let _ = writeln!(self.err, "{}", shown(line));
    }

    /// A complaint that starts with the program's name.
    fn named(&self, what: impl std::fmt::Display) -> Failure {
        Failure::Complaint(format!("{}: {what}", self.name))
    }

    /// The open image. Commands that need one are refused before they come here without.
    fn image(&self) -> Result<&BlockBackend, Failure> {
        self.image.as_ref().ok_or(Failure::Told)
    }

    /// Waits for a request and reports it.
    async fn finish_request(
        &mut self,
        described: Described,
        request: impl Future<Output = Result<()>>,
    ) -> Result<(), Failure> {
        let started = std::time::Instant::now();
        let result = self.pending.wait(&mut self.out, request).await;
        described.report(result, started.elapsed(), &mut self.out)
    }

    async fn close_image(&mut self) -> Result<(), Failure> {
        self.clear_breakpoints();
        self.pending.finish(&mut self.out).await;
        self.spec = None;
        let Some(image) = self.image.take() else {
            return Ok(());
        };
        let closed = graph::close(image.node()).await;
        closed.map_err(|error| self.named(format_args!("can't close: {}", error.errno_text())))
    }

    fn help(&mut self, words: &[&str]) -> Result<(), Failure> {
        let Some(name) = words.first() else {
            for command in &COMMANDS {
                self.out.line(command.line(command.names[0]));
            }
            self.out.line("\nUse 'help commandname' for extended help.");
            return Ok(());
        };
        let Some(command) = Command::named(name) else {
            return Err(Failure::Line(format!("command {name} not found")));
        };
        self.out.line(command.line(name));
        if !command.options.is_empty() {
            self.out.line("");
            command.options.iter().for_each(|option| self.out.line(format_args!(" {option}")));
            self.out.line("");
        }
        Ok(())
    }
}

/// Sorts the words of a command, or fails with its help line.
fn sort<'a>(name: &str, words: &[&'a str], letters: &str) -> Result<Parsed<'a>, Failure> {
    args::parse(words, letters).map_err(|error| Failure::Usage(Some(format!("{name}: {error}"))))
}

/// Reads a size among the arguments, or fails with the line that names it.
fn size(text: &str) -> Result<u64, Failure> {
    number::parse_size(text).map_err(|error| Failure::Line(error.line(text)))
}

/// What opening said, as the tools print it.
fn open_failure(name: &'static str, spec: &ImageSpec, error: &SpecError) -> Failure {
    let image = match spec.name.as_str() {
        "" => String::new(),
        image => format!(" device {}", shown(image)),
    };
    Failure::Complaint(format!("{name}: can't open{image}: {error}"))
}
