//! Standard output: buffered whole lines on a terminal, in large pieces elsewhere, as programs that
//! read it through a pipe expect.

use std::io::{self, BufWriter, IsTerminal, Stderr, Stdout, Write};

use indicatif::ProgressDrawTarget;

use super::Failure;

/// Where a command writes its results.
pub struct Output {
    sink: Sink,
    is_terminal: bool,
}

enum Sink {
    /// Flushed after every line by itself.
    Terminal(Stdout),
    Pipe(BufWriter<Stdout>),
    /// Not held back at all.
    Error(Stderr),
    Memory(Vec<u8>),
}

/// Bytes that are held back for a pipe or a file.
const BUFFER_BYTES: usize = 64 << 10;

impl Output {
    /// The standard output of this process.
    pub fn stdout() -> Self {
        let stdout = io::stdout();
        let is_terminal = stdout.is_terminal();
        let sink = if is_terminal {
            Sink::Terminal(stdout)
        } else {
            Sink::Pipe(BufWriter::with_capacity(BUFFER_BYTES, stdout))
        };
        Self { sink, is_terminal }
    }

    /// The standard error of this process: for progress, while standard output carries an image.
    pub(super) fn stderr() -> Self {
        let stderr = io::stderr();
        let is_terminal = stderr.is_terminal();
        Self { sink: Sink::Error(stderr), is_terminal }
    }

    /// Where a bar is drawn that is shown beside this.
    pub(super) fn draw_target(&self) -> ProgressDrawTarget {
        match self.sink {
            Sink::Error(_) => ProgressDrawTarget::stderr(),
            _ => ProgressDrawTarget::stdout(),
        }
    }

    /// Kept in memory, to be had by [`Output::text`].
    pub fn buffer() -> Self {
        Self { sink: Sink::Memory(Vec::new()), is_terminal: false }
    }

    /// Whether a user is looking at it.
    pub fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// What was written to a buffer.
    pub fn text(&self) -> String {
        match &self.sink {
            Sink::Memory(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            _ => String::new(),
        }
    }

    /// Writes out what is held back.
    pub fn finish(&mut self) -> Result<(), Failure> {
        Ok(self.flush()?)
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.sink {
            Sink::Terminal(stdout) => stdout.write(bytes),
            Sink::Pipe(pipe) => pipe.write(bytes),
            Sink::Error(stderr) => stderr.write(bytes),
            Sink::Memory(memory) => memory.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.sink {
            Sink::Terminal(stdout) => stdout.flush(),
            Sink::Pipe(pipe) => pipe.flush(),
            Sink::Error(stderr) => stderr.flush(),
            Sink::Memory(_) => Ok(()),
        }
    }
}
