//! `block-io`: runs requests against a disk image from the command line or from lines of input, for
//! tests and for looking at images by hand.
//!
//! Standard output is fully buffered where it is no terminal, and shown at every prompt. The exit
//! status is 1 if any command failed.

#![forbid(unsafe_code)]

use std::io::{self, BufRead, BufReader, BufWriter, IsTerminal, LineWriter, Stdin, Write};
use std::process::ExitCode;

use block_core::OpenFlags;
use block_tools::io_cmd::{BufferPlace, MAX_LINE_BYTES, Outcome, Session};
use block_tools::open::{
    AioMode, BackingReads, CacheMode, DiscardMode, ImageSpec, Writes, block_on,
};
use block_tools::program::{self, TraceArgs};
use block_tools::signals;
use block_tools::spec::objects::{ObjectArgs, Secrets};
use clap::Parser;
use futures::channel::oneshot;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// Disk exerciser: reads, writes and asks about a disk image.
#[derive(Parser)]
#[command(name = "block-io", version, disable_version_flag = true, args_override_self = true)]
#[command(infer_long_args = true)]
#[command(after_help = "See 'block-io -c help' for the commands.")]
struct Cli {
    #[command(flatten)]
    objects: ObjectArgs,
    #[command(flatten)]
    _trace: TraceArgs,
    /// Treat FILE as options: driver=...,file.filename=...
    #[arg(long)]
    image_opts: bool,
    /// Execute a command; may stand more than once. Without one, commands are read from the input
    #[arg(short = 'c', long = "cmd", value_name = "COMMAND", action = clap::ArgAction::Append)]
    #[arg(allow_hyphen_values = true)]
    commands: Vec<String>,
    /// The image's format; probed if not given
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// Open the image for reading only
    #[arg(short, long)]
    read_only: bool,
    /// Write to a temporary overlay, so that the image stays as it is
    #[arg(short, long)]
    snapshot: bool,
    /// Bypass the host's page cache, the same as -t none
    #[arg(short, long, overrides_with = "cache")]
    nocache: bool,
    /// Write to the image what is read from its backing file
    #[arg(short = 'C', long)]
    copy_on_read: bool,
    /// Misalign buffers in memory, for O_DIRECT
    #[arg(short, long)]
    misalign: bool,
    /// The same as -i native
    #[arg(short = 'k', long, overrides_with = "aio")]
    native_aio: bool,
    /// How the file is read and written: threads, native or io_uring
    #[arg(short = 'i', long, value_name = "MODE")]
    aio: Option<String>,
    /// Cache mode: none, writeback, writethrough, directsync or unsafe
    #[arg(short = 't', long, value_name = "MODE")]
    cache: Option<String>,
    /// What becomes of discards: ignore or unmap
    #[arg(short, long, value_name = "MODE")]
    discard: Option<String>,
    /// Take no lock that keeps others out
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Show the version
    #[arg(short = 'V', long, action = clap::ArgAction::Version)]
    version: Option<bool>,
    /// The image
    file: Option<String>,
}

impl Cli {
    /// How to open the image, if one is named.
    fn spec(&self, secrets: &Secrets) -> Result<Option<ImageSpec>, String> {
        let Some(file) = &self.file else {
            return Ok(None);
        };
        if self.image_opts && self.format.is_some() {
            return Err("--image-opts and -f are mutually exclusive".to_owned());
        }
        let mut spec = ImageSpec::new(file);
        spec.image_opts = self.image_opts;
        spec.format.clone_from(&self.format);
        spec.flags = OpenFlags { writable: !self.read_only, ..OpenFlags::READ_WRITE };
        spec.force_share = self.force_share;
        spec.secrets = secrets.clone();
        if self.snapshot {
            spec.writes = Writes::TemporaryOverlay;
        }
        if self.copy_on_read {
            spec.backing_reads = BackingReads::Copy;
        }
        if self.nocache {
            spec.cache = CacheMode::NONE;
        }
        if self.native_aio {
            spec.aio = Some(AioMode::Native);
        }
        if let Some(name) = &self.cache {
            spec.cache = mode("cache", name, CacheMode::parse)?;
        }
        if let Some(name) = &self.aio {
            spec.aio = Some(mode("aio", name, AioMode::parse)?);
        }
        if let Some(name) = &self.discard {
            spec.discard = mode("discard", name, DiscardMode::parse)?;
        }
        Ok(Some(spec))
    }
}

fn mode<T>(what: &str, name: &str, parse: impl FnOnce(&str) -> Option<T>) -> Result<T, String> {
    parse(name).ok_or_else(|| format!("Invalid {what} option: {name}"))
}

fn main() -> ExitCode {
    signals::survive();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let wanted = error.exit_code() == 0;
            // Nobody is left to be told if this fails.
            let _ = error.print();
            return if wanted { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
    };
    let name = program::name_from_command_line("block-io");
    let secrets = cli.objects.secrets().map_err(|error| error.to_string());
    let found = secrets.and_then(|secrets| Ok((cli.spec(&secrets)?, secrets)));
    let (spec, secrets) = match found {
        Ok(found) => found,
        Err(what) => {
            let _ = writeln!(io::stderr(), "{name}: {what}");
            return ExitCode::FAILURE;
        }
    };
    block_on(run(name, &cli, spec, secrets))
}

async fn run(name: &'static str, cli: &Cli, spec: Option<ImageSpec>, secrets: Secrets) -> ExitCode {
    let out: Box<dyn Write> = if io::stdout().is_terminal() {
        Box::new(LineWriter::new(io::stdout()))
    } else {
        Box::new(BufWriter::with_capacity(64 << 10, io::stdout()))
    };
    let place = if cli.misalign { BufferPlace::Misaligned } else { BufferPlace::Aligned };
    let mut session = Session::new(name, out, Box::new(io::stderr()), place).with_secrets(secrets);
    if let Some(spec) = spec
        && session.open(&spec).await != Outcome::Done
    {
        return ExitCode::FAILURE;
    }
    let succeeded = if cli.commands.is_empty() {
        run_input(name, &mut session).await
    } else {
        run_commands(&mut session, &cli.commands).await
    };
    let finished = session.finish().await;
    if succeeded && finished == Outcome::Done { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs the commands of the command line, to the end or to `quit`, whatever fails.
async fn run_commands(session: &mut Session, commands: &[String]) -> bool {
    let mut succeeded = true;
    for command in commands {
        match session.run(command).await {
            Outcome::Done => {}
            Outcome::Failed => succeeded = false,
            Outcome::Stopped => return false,
            Outcome::Quit => break,
        }
    }
    succeeded
}

/// Runs the lines of the input, with a prompt before each.
async fn run_input(name: &str, session: &mut Session) -> bool {
    let mut input = BufReader::new(io::stdin());
    let mut succeeded = true;
    while !session.is_broken() {
        session.prompt();
        let line = match next_line(&mut input, session).await {
            Ok(Some(line)) => line,
            Ok(None) => break,
            Err(error) => {
                let _ = writeln!(io::stderr(), "{name}: cannot read the input: {error}");
                return false;
            }
        };
        match session.run(&line).await {
            Outcome::Done => {}
            Outcome::Failed => succeeded = false,
            Outcome::Stopped => return false,
            Outcome::Quit => break,
        }
    }
    succeeded
}

/// The next line of the input; `None` at its end. A line that is too long is an error.
async fn next_line(
    input: &mut BufReader<Stdin>,
    session: &mut Session,
) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    loop {
        if input.buffer().is_empty() {
            wait_for_input(session).await?;
        }
        let read = input.fill_buf()?;
        if read.is_empty() {
            break;
        }
        let newline = read.iter().position(|byte| *byte == b'\n');
        let taken = newline.map_or(read.len(), |at| at + 1);
        line.extend(read.iter().take(taken));
        input.consume(taken);
        if line.len() > MAX_LINE_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the line is too long"));
        }
        if newline.is_some() {
            break;
        }
    }
    Ok((!line.is_empty()).then(|| String::from_utf8_lossy(&line).into_owned()))
}

/// Waits until reading the input does not block. What is there already is not waited for, so that
/// the order of a script's output does not depend on how fast its requests are.
async fn wait_for_input(session: &mut Session) -> io::Result<()> {
    if input_is_ready(Some(&Timespec::default()))? {
        return Ok(());
    }
    // Requests in flight go on and are reported while somebody types: another thread waits.
    let (sender, ready) = oneshot::channel();
    std::thread::spawn(move || sender.send(input_is_ready(None)));
    session.wait(ready).await.map_err(io::Error::other)?.map(drop)
}

/// Whether the input has bytes, an end or an error, within a time (`None`: for ever).
fn input_is_ready(within: Option<&Timespec>) -> io::Result<bool> {
    let stdin = io::stdin();
    loop {
        let mut polled = [PollFd::new(&stdin, PollFlags::IN)];
        match poll(&mut polled, within) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
