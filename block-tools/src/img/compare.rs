//! `compare`: whether a guest would see the same disk.
//!
//! Exit status: 0 the same, 1 different, 2 an image could not be opened, 3 a block status failed, 4 a
//! read failed.

use std::io::Write;

use block_core::range::{Alignment, to_u64, to_usize};
use block_core::request::status::{BlockStatus, StatusDetail, StatusFlags};
use block_core::{ByteRange, Error, IoBuf, Node, OwnedBuf, graph};

use crate::open::{CacheMode, ImageSpec, block_on};

use super::common::{SECTOR, cache_mode, open_image, sector_len};
use super::progress::{Outcome, Progress};
use super::{Failure, Output};

/// Check if two images have the same contents.
#[derive(clap::Args)]
#[command(args_override_self = true)]
pub(super) struct Args {
    /// Print nothing but errors.
    #[arg(short, long)]
    quiet: bool,
    /// Show the progress.
    #[arg(short, long)]
    progress: bool,
    /// Format of the first image (default: probed).
    #[arg(short = 'f', long, value_name = "FMT", conflicts_with = "image_opts")]
    a_format: Option<String>,
    /// Format of the second image (default: probed).
    #[arg(short = 'F', long, value_name = "FMT", conflicts_with = "image_opts")]
    b_format: Option<String>,
    /// The names are options (driver=...,file.filename=...).
    #[arg(long)]
    image_opts: bool,
    /// Lengths and allocation must be the same too.
    #[arg(short, long)]
    strict: bool,
    /// Cache mode of both images.
    #[arg(short = 'T', long, value_name = "CACHE_MODE")]
    cache: Option<String>,
    /// Open the images without locks.
    #[arg(short = 'U', long)]
    force_share: bool,
    /// The two images.
    #[arg(value_name = "FILENAME1 FILENAME2")]
    files: Vec<String>,
}

const DIFFERENT: u8 = 1;
const OPEN_FAILED: u8 = 2;
const STATUS_FAILED: u8 = 3;
const READ_FAILED: u8 = 4;

/// Bytes that are read of each image at once.
const CHUNK_BYTES: u64 = 2 << 20;

/// Compares.
pub(super) fn run(args: &Args, out: &mut Output) -> Result<u8, Failure> {
    let [a, b] = args.files.as_slice() else {
        return Err(Failure::usage("compare", "Expecting two image file names"));
    };
    let cache =
        cache_mode(args.cache.as_deref(), CacheMode::WRITEBACK, "Invalid source cache option: {}")
            .map_err(|failure| failure.with_status(OPEN_FAILED))?;
    let spec = |name: &String, format: &Option<String>| ImageSpec {
        format: format.clone(),
        image_opts: args.image_opts,
        cache,
        force_share: args.force_share,
        ..ImageSpec::new(name)
    };
    let specs = [spec(a, &args.a_format), spec(b, &args.b_format)];
    block_on(async {
        let a = open_image(&specs[0], OPEN_FAILED).await?;
        let b = open_image(&specs[1], OPEN_FAILED).await?;
        let mut progress = Progress::new(args.progress && !args.quiet, out);
        let mut comparison = Comparison {
            images: [Image::new(&args.files, 0, &a)?, Image::new(&args.files, 1, &b)?],
            strict: args.strict,
            quiet: args.quiet,
            progress: &mut progress,
            out,
        };
        let result = comparison.run().await;
        let outcome = match &result {
            Ok(verdict) if verdict.status == 0 => Outcome::Done,
            _ => Outcome::Stopped,
        };
        progress.finish(outcome, out);
        let closed = graph::close(&a).await.and(graph::close(&b).await);
        let verdict = result?;
        if !args.quiet {
            writeln!(out, "{}", verdict.text)?;
        }
        closed.map_err(|error| Failure::new(error).with_status(READ_FAILED))?;
        Ok(verdict.status)
    })
}

/// One of the two.
struct Image {
    name: String,
    node: Node,
    len: u64,
    buf: IoBuf,
}

impl Image {
    fn new(names: &[String], index: usize, node: &Node) -> Result<Self, Failure> {
        let align = node.limits().opt_mem_alignment;
        let buf = IoBuf::zeroed(to_usize(CHUNK_BYTES), align).map_err(Failure::new)?;
        let name = names.get(index).cloned().unwrap_or_default();
        Ok(Self { name, node: node.clone(), len: sector_len(node), buf })
    }

    /// How the bytes from `offset` to `end` start. Beyond the end of the node they are zero.
    async fn status(&self, offset: u64, end: u64) -> Result<BlockStatus, Failure> {
        let range = ByteRange::from_bounds(offset, end).map_err(Failure::new)?;
        let asked = self.node.block_status_above(None, range, StatusDetail::Zeroes).await;
        let mut status = asked.map_err(|error| {
            let text = format_args!("Sector allocation test failed for {}: {error}", self.name);
            Failure::new(text).with_status(STATUS_FAILED)
        })?;
        if status.len == 0 {
            status.len = range.len();
            status.flags |= StatusFlags::ZERO;
        }
        if status.is_zero() && range.offset() + status.len == self.node.len() {
            // What is left of the last sector is the hole's, too.
            status.len = self.len.min(range.end()) - range.offset();
        }
        Ok(status)
    }

    /// Reads `range` into the start of the buffer, unless it is known to be zero.
    async fn read(&self, range: ByteRange, is_zero: bool) -> Result<(), Failure> {
        let part = self.buf.slice(0, to_usize(range.len()));
        if is_zero {
            part.fill(0);
            return Ok(());
        }
        let read = self.node.read(range, part.into()).await;
        read.map_err(|error: Error| {
            let offset = range.offset();
            let text =
                format_args!("Error while reading offset {offset} of {}: {error}", self.name);
            Failure::new(text).with_status(READ_FAILED)
        })
    }

    /// The buffer as plain memory, which nobody else uses between two reads.
    fn take_bytes(&mut self) -> Result<OwnedBuf, Failure> {
        let empty = IoBuf::zeroed(0, Alignment::ONE).map_err(Failure::new)?;
        let buf = std::mem::replace(&mut self.buf, empty);
        match buf.try_into_owned() {
            Ok(bytes) => Ok(bytes),
            // A driver that still holds a handle on it: a copy does as well.
            Err(shared) => {
                let align = self.node.limits().opt_mem_alignment;
                OwnedBuf::copy_of(&shared.to_vec(), align).map_err(Failure::new)
            }
        }
    }
}

/// How a comparison ended.
struct Verdict {
    text: String,
    status: u8,
}

impl Verdict {
    fn different(text: impl Into<String>) -> Self {
        Self { text: text.into(), status: DIFFERENT }
    }
}

struct Comparison<'a> {
    images: [Image; 2],
    strict: bool,
    quiet: bool,
    progress: &'a mut Progress,
    out: &'a mut Output,
}

impl Comparison<'_> {
    async fn run(&mut self) -> Result<Verdict, Failure> {
        let [a, b] = &self.images;
        let (short, long) = (a.len.min(b.len), a.len.max(b.len));
        if short != long && self.strict {
            return Ok(Verdict::different("Strict mode: Image size mismatch!"));
        }
        let mut offset = 0;
        if short == 0 && long > 0 {
            self.say("Warning: Image size mismatch!")?;
        }
        while offset < long {
            self.progress.show(offset, long, self.out);
            offset = match self.step(offset, if offset < short { short } else { long }).await? {
                Step::Same(end) => end,
                Step::Different(text) => return Ok(Verdict::different(text)),
            };
            if offset == short && short != long {
                self.say("Warning: Image size mismatch!")?;
            }
        }
        self.progress.show(long, long, self.out);
        Ok(Verdict { text: "Images are identical.".to_owned(), status: 0 })
    }

    /// Compares a piece from `offset`, up to `end` at most.
    async fn step(&mut self, offset: u64, end: u64) -> Result<Step, Failure> {
        let [a, b] = &self.images;
        let (status_a, status_b) = (a.status(offset, end).await?, b.status(offset, end).await?);
        if self.strict && stored_as(&status_a) != stored_as(&status_b) {
            let text = format!("Strict mode: Offset {offset} block status mismatch!");
            return Ok(Step::Different(text));
        }
        let len = status_a.len.min(status_b.len);
        if status_a.is_zero() && status_b.is_zero() {
            return Ok(Step::Same(offset + len));
        }
        let range = ByteRange::new(offset, len.min(CHUNK_BYTES)).map_err(Failure::new)?;
        futures::try_join!(a.read(range, status_a.is_zero()), b.read(range, status_b.is_zero()))?;
        let len = to_usize(range.len());
        let [a, b] = &mut self.images;
        let (bytes_a, bytes_b) = (a.take_bytes()?, b.take_bytes()?);
        let found = first_difference(&bytes_a[..len], &bytes_b[..len]);
        (a.buf, b.buf) = (bytes_a.into_shared(), bytes_b.into_shared());
        Ok(match found {
            Some(at) => Step::Different(format!("Content mismatch at offset {}!", offset + at)),
            None => Step::Same(range.end()),
        })
    }

    fn say(&mut self, text: &str) -> Result<(), Failure> {
        if !self.quiet {
            self.progress.line(text, self.out)?;
        }
        Ok(())
    }
}

/// What a piece turned out to be.
enum Step {
    /// The same up to here.
    Same(u64),
    /// Not the same, as this says.
    Different(String),
}

/// What strict mode compares of a status; not where the bytes stand.
fn stored_as(status: &BlockStatus) -> (StatusFlags, bool) {
    (status.flags - StatusFlags::EOF, status.mapping.is_some())
}

/// Offset of the first sector in which two buffers of one length differ.
fn first_difference(a: &[u8], b: &[u8]) -> Option<u64> {
    // Most are the same, which one comparison of everything finds out fastest.
    if a == b {
        return None;
    }
    let sector = to_usize(SECTOR);
    let index = a.chunks(sector).zip(b.chunks(sector)).position(|(a, b)| a != b)?;
    Some(to_u64(index) * SECTOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_sector_that_differs_is_found() {
        let a = vec![7; 2048];
        let mut b = a.clone();
        assert_eq!(first_difference(&a, &b), None);
        b[2047] = 0;
        assert_eq!(first_difference(&a, &b), Some(1536));
        b[700] = 0;
        assert_eq!(first_difference(&a, &b), Some(512));
    }
}
