//! `convert` to an image that is written from its first byte to its last: with the target `-` to standard
//! output, and as a streamOptimized VMDK to a file.
//!
//! Invariants: nothing but the image goes to standard output; what cannot be done without going back is
//! refused before a source is read or a file is made.

use block_core::driver::{Exactness, Prealloc};
use block_core::error::Problem;
use block_core::job::copy::{CopySource, Progress as Step, Watch as _};
use block_core::job::stream as job;
use block_core::range::{to_u64, to_usize};
use block_core::request::status::StatusDetail;
use block_core::{
    Alignment, ByteRange, Cancel, Error, IoBuf, Node, OpenError, Options, RequestFlags,
};
use block_qcow2::compress::Window;
use block_qcow2::create::CreateOptions;
use block_qcow2::stream::{StreamError, StreamWriter};
use block_vmdk::compress::Level;
use block_vmdk::create::CreateOptions as VmdkOptions;
use block_vmdk::stream::{StreamWriter as VmdkWriter, WriteError};
use futures::io::{AsyncWrite, AsyncWriteExt};
use futures::stream::{self, StreamExt};

use super::create::{CreateError, check_options, format_of, known_options};
use super::interrupt;
use super::node_sink::NodeSink;
use super::pipe::Pipe;
use super::progress::{Outcome, Progress};
use super::watch::{Rate, Watch};
use super::{Failure, Output};

/// The name of the target that means standard output. A file of this name is `./-`.
pub(super) const STDOUT: &str = "-";

const VMDK: &str = "vmdk";
const STREAM_OPTIMIZED: &str = "streamOptimized";

/// Bytes of a raw image that are read at once.
const RAW_PIECE: u64 = 1 << 20;

/// An image that is written forward.
pub(super) struct Target<'a> {
    /// Name of the file, or [`STDOUT`].
    pub(super) name: &'a str,
    /// Name of the format.
    pub(super) format: &'a str,
    /// What `-o` says of the image.
    pub(super) options: Options,
    /// How data is compressed, if it is: `compression-level`, `compression-window`.
    pub(super) compress: Option<Options>,
    /// Whether the progress is shown, on standard error.
    pub(super) progress: bool,
    /// Requests in flight, where the format does not decide that.
    pub(super) parallel: usize,
}

impl Target<'_> {
    /// Whether it is standard output.
    fn is_stdout(&self) -> bool {
        self.name == STDOUT
    }

    /// What it is called when something is wrong with it.
    fn place(&self) -> &str {
        if self.is_stdout() { "standard output" } else { "a streamOptimized image" }
    }
}

/// Whether a target of this format with these options is written forward wherever it is.
pub(super) fn is_forward(format: &str, options: &Options) -> bool {
    format == VMDK && options.peek("subformat") == Some(STREAM_OPTIMIZED)
}

/// Refuses what a target that is written forward cannot have, `unfit` options among it that are given,
/// and a terminal.
pub(super) fn check(
    target: &Target<'_>,
    unfit: &[(&str, bool)],
    out: &Output,
) -> Result<(), Failure> {
    if target.is_stdout() && out.is_terminal() {
        return Err(Failure::new(
            "standard output is a terminal: an image is written to a file or a pipe only",
        ));
    }
    if let Some((option, _)) = unfit.iter().find(|(_, given)| *given) {
        return Err(Failure::new(format_args!(
            "{option} cannot be used when the target is {}",
            target.place()
        )));
    }
    format_of(target.format).map_err(Failure::new)?;
    match target.format {
        "qcow2" => Ok(()),
        VMDK if is_forward(target.format, &target.options) => {
            vmdk_writer_options(target).map(drop).map_err(|error| failed(target, &error))
        }
        VMDK => Err(Failure::new(format_args!(
            "Format 'vmdk' can be written to standard output with -o subformat={STREAM_OPTIMIZED} only"
        ))),
        "raw" if target.compress.is_some() => {
            Err(Failure::new("Compression not supported for file format 'raw'"))
        }
        "raw" if !target.options.is_empty() => {
            Err(Failure::new("-o cannot be used when a raw image is written to standard output"))
        }
        "raw" => Ok(()),
        other => Err(Failure::new(format_args!(
            "Format '{other}' cannot be written to standard output, only 'qcow2', 'raw' and 'vmdk' can"
        ))),
    }
}

/// Writes the sources, joined, to standard output.
pub(super) async fn write(
    target: &Target<'_>,
    sources: Vec<CopySource>,
    cancel: &Cancel,
    rate: Option<Rate>,
) -> Result<u8, Failure> {
    let mut pipe = Pipe::stdout(cancel)?;
    let mut shown = Output::stderr();
    let mut progress = Progress::new(target.progress, &shown);
    let watch = Watch { progress: &mut progress, out: &mut shown, quiet: false, rate };
    let written = match target.format {
        "raw" => write_raw(target, sources, &mut pipe, cancel, watch).await,
        VMDK => match write_vmdk(target, sources, &mut pipe, cancel, watch).await {
            Ok(_) => Ok(()),
            Err(VmdkFailure::Sink(error)) => Err(error.into()),
            Err(VmdkFailure::Other(failure)) => Err(failure),
        },
        _ => write_qcow2(target, sources, &mut pipe, cancel, watch).await,
    };
    let closed = match written {
        Ok(()) => pipe.close().await.map_err(Failure::from),
        Err(failure) => Err(failure),
    };
    let outcome = if closed.is_ok() { Outcome::Done } else { Outcome::Stopped };
    progress.finish(outcome, &mut shown);
    outcome_of(closed, cancel).map(|()| 0)
}

/// Writes the sources, joined, to a file that is empty; gives its length.
pub(super) async fn write_file(
    target: &Target<'_>,
    sources: Vec<CopySource>,
    file: &Node,
    flags: RequestFlags,
    cancel: &Cancel,
    watch: Watch<'_>,
) -> Result<(), Failure> {
    let mut sink = NodeSink::new(file.clone(), flags);
    let written = match write_vmdk(target, sources, &mut sink, cancel, watch).await {
        Ok(len) => end_file(file, len).await,
        Err(VmdkFailure::Sink(error)) => {
            Err(Failure::new(format_args!("error while writing '{}': {error}", target.name)))
        }
        Err(VmdkFailure::Other(failure)) => Err(failure),
    };
    // Nothing is in flight when the file is closed.
    sink.drain().await;
    outcome_of(written, cancel)
}

/// What padded the last write goes: the footer is found from the end of the file.
async fn end_file(file: &Node, len: u64) -> Result<(), Failure> {
    let failed = |error| Failure::new(format_args!("error while writing the end: {error}"));
    if file.len() != len {
        file.truncate(len, Exactness::Exact, Prealloc::Off).await.map_err(failed)?;
    }
    let flushed = file.flush().await;
    flushed.map_err(|error| Failure::new(format_args!("error while flushing: {error}")))
}

/// Whatever a cancel broke off: the user knows why.
fn outcome_of(done: Result<(), Failure>, cancel: &Cancel) -> Result<(), Failure> {
    match done {
        Err(_) if cancel.is_cancelled() => {
            Err(Failure::new("interrupted").with_status(interrupt::status()))
        }
        other => other,
    }
}

/// Why a VMDK was not written.
enum VmdkFailure {
    /// The sink took no more.
    Sink(std::io::Error),
    Other(Failure),
}

/// Writes a streamOptimized VMDK; gives its length.
async fn write_vmdk(
    target: &Target<'_>,
    sources: Vec<CopySource>,
    sink: impl AsyncWrite + Unpin + Send,
    cancel: &Cancel,
    watch: Watch<'_>,
) -> Result<u64, VmdkFailure> {
    let other = |failure| VmdkFailure::Other(failure);
    let mut nodes = sources.into_iter().map(|source| source.node);
    let Some(first) = nodes.next() else { return Ok(0) };
    let (options, level) =
        vmdk_writer_options(target).map_err(|error| other(failed(target, &error)))?;
    let mut writer = nodes.fold(VmdkWriter::new(first), VmdkWriter::followed_by);
    writer = writer.options(options).level(level);
    if !target.is_stdout() {
        writer = writer.file_name(target.name);
    }
    writer.write_to(sink, cancel, watch).await.map_err(|error| match error {
        WriteError::Stream(job::StreamError::Sink { error, .. }) => VmdkFailure::Sink(error),
        WriteError::Options(error) => other(failed(target, &error.into())),
        error => other(Failure::new(error)),
    })
}

/// The options of a VMDK, whose size is not known here and set later, and how hard it is compressed.
fn vmdk_writer_options(target: &Target<'_>) -> Result<(VmdkOptions, Level), CreateError> {
    let options = VmdkOptions::from_options(image_options(target)?)?;
    block_vmdk::stream::check_options(&options)?;
    let Some(how) = &target.compress else { return Ok((options, Level::default())) };
    if let Some(value) = how.peek("compression-window") {
        let (option, value) = ("compression_window", value.to_owned());
        let problem = Problem::Contradicts("a format that has no choice");
        return Err(OpenError::OptionValue { option, value, problem }.into());
    }
    let level = how.clone().take_size("compression-level")?;
    let Some(level) = level else { return Ok((options, Level::default())) };
    let known = Level::new(u32::try_from(level).unwrap_or(u32::MAX));
    let level = known.map_err(|problem| {
        let (option, value) = ("compression_level", level.to_string());
        OpenError::OptionValue { option, value, problem }
    })?;
    Ok((options, level))
}

async fn write_qcow2(
    target: &Target<'_>,
    sources: Vec<CopySource>,
    pipe: &mut Pipe,
    cancel: &Cancel,
    watch: Watch<'_>,
) -> Result<(), Failure> {
    let mut nodes = sources.into_iter().map(|source| source.node);
    let Some(first) = nodes.next() else { return Ok(()) };
    let options = create_options(target).map_err(|error| failed(target, &error))?;
    let mut writer = nodes.fold(StreamWriter::new(first), StreamWriter::followed_by);
    writer = writer.options(options);
    if let Some(how) = &target.compress {
        let (level, window) = compression(how).map_err(|error| failed(target, &error.into()))?;
        writer = writer.compressed(level, window);
    }
    match writer.write_to(pipe, cancel, watch).await {
        Ok(_) => Ok(()),
        Err(StreamError::Stream(job::StreamError::Sink { error, .. })) => Err(error.into()),
        Err(StreamError::Options(error)) => Err(failed(target, &error.into())),
        Err(error) => Err(Failure::new(error)),
    }
}

fn failed(target: &Target<'_>, error: &CreateError) -> Failure {
    let (format, place) = (target.format, target.place());
    Failure::new(format_args!("error while converting {format} to {place}: {error}"))
}

/// Level and window of the compression.
fn compression(how: &Options) -> Result<(Option<u32>, Window), OpenError> {
    let mut how = how.clone();
    let level = how.take_size("compression-level")?;
    let level = level.map(|level| u32::try_from(level).unwrap_or(u32::MAX));
    let window = match how.take("compression-window") {
        None => Window::default(),
        Some(value) => Window::from_name(&value).ok_or_else(|| {
            let (option, problem) = ("compression_window", Problem::Unknown);
            OpenError::OptionValue { option, value, problem }
        })?,
    };
    Ok((level, window))
}

/// The options of a qcow2 image; its size is not known here and set later.
fn create_options(target: &Target<'_>) -> Result<CreateOptions, CreateError> {
    Ok(CreateOptions::from_options(image_options(target)?)?)
}

/// The options of the image as texts.
fn image_options(target: &Target<'_>) -> Result<Options, CreateError> {
    let factory = format_of(target.format)?;
    let known = known_options(&*factory, None)?;
    let mut options = check_options(&known, &target.options)?;
    options.set("size", "0");
    if let (Some(backing), None) = (options.peek("backing_file"), options.peek("backing_fmt")) {
        let problem = Problem::Contradicts("a target that is written forward");
        let value = backing.to_owned();
        return Err(OpenError::OptionValue { option: "backing_file", value, problem }.into());
    }
    Ok(options)
}

/// Writes a raw image: what is zero as zeroes.
async fn write_raw(
    target: &Target<'_>,
    sources: Vec<CopySource>,
    pipe: &mut Pipe,
    cancel: &Cancel,
    mut watch: Watch<'_>,
) -> Result<(), Failure> {
    let total = sources.iter().fold(0, |sum, source| sum + source.len);
    let pieces = sources.into_iter().flat_map(|CopySource { node, len, .. }| {
        (0..len.div_ceil(RAW_PIECE)).map(move |index| {
            let start = index * RAW_PIECE;
            (node.clone(), start, RAW_PIECE.min(len - start))
        })
    });
    let mut read = stream::iter(pieces)
        .map(|(node, start, len)| read(node, start, len))
        .buffered(target.parallel);
    let mut done = 0;
    watch.progress(Step { done, total });
    while let Some(piece) = read.next().await {
        let bytes = piece?;
        if cancel.is_cancelled() {
            return Err(Failure::new("interrupted"));
        }
        if let Some(turn) = watch.before_write(to_u64(bytes.len())) {
            turn.await;
        }
        pipe.write_all(&bytes).await?;
        done += to_u64(bytes.len());
        watch.progress(Step { done, total });
    }
    Ok(())
}

/// Reads a piece of a node, which may end within it.
async fn read(node: Node, start: u64, len: u64) -> Result<Vec<u8>, Failure> {
    let failed =
        |error: Error| Failure::new(format_args!("error while reading at byte {start}: {error}"));
    let range = ByteRange::new(start, len).map_err(|error| failed(error.into()))?;
    let status = node.block_status_above(None, range, StatusDetail::Zeroes).await;
    let status = status.map_err(failed)?;
    if status.is_zero() && status.len >= len {
        return Ok(vec![0; to_usize(len)]);
    }
    let buf = IoBuf::zeroed(to_usize(len), Alignment::PAGE).map_err(failed)?;
    node.read(range, buf.clone().into()).await.map_err(failed)?;
    Ok(buf.to_vec())
}
