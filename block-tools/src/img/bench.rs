//! `bench`: how fast an image answers requests of one size at regular distances.
//!
//! The queue is kept at its depth: a request that completes at once is followed by the next without a
//! detour, and nothing is allocated for a request but what the node allocates.

use std::future::poll_fn;
use std::io::Write;
use std::task::{Context, Poll};
use std::time::Instant;

use block_core::range::to_usize;
use block_core::request::Request;
use block_core::{ByteRange, Error, IoBuf, IoVec, Node, OpenFlags, RequestFlags, graph};

use crate::open::{AioMode, CacheMode, ImageSpec, block_on};

use super::common::{
    cache_mode, count_argument, one_image, open_image, sector_len, size_argument, warn_of_guess,
};
use super::slots::Slots;
use super::{Failure, Output};

/// Run a simple image benchmark.
#[derive(clap::Args)]
#[command(args_override_self = true)]
pub(super) struct Args {
    /// Print nothing but the results.
    #[arg(short, long)]
    quiet: bool,
    /// Format of the image (default: probed).
    #[arg(short, long, value_name = "FMT", conflicts_with = "image_opts")]
    format: Option<String>,
    /// The name is options (driver=...,file.filename=...).
    #[arg(long)]
    image_opts: bool,
    /// Cache mode of the image.
    #[arg(short = 't', long, value_name = "CACHE")]
    cache: Option<String>,
    /// Number of requests.
    #[arg(short, long, value_name = "COUNT", default_value = "75000")]
    count: String,
    /// Bytes of each request.
    #[arg(short = 's', long, value_name = "BUFFER_SIZE", default_value = "4k")]
    buffer_size: String,
    /// Requests in flight.
    #[arg(short, long, value_name = "DEPTH", default_value = "64")]
    depth: String,
    /// Offset of the first request.
    #[arg(short, long, value_name = "OFFSET", default_value = "0")]
    offset: String,
    /// Distance of the next request (default: the size of a request).
    #[arg(short = 'S', long, value_name = "STEP_SIZE")]
    step_size: Option<String>,
    /// How requests reach the kernel (threads, native, io_uring).
    #[arg(short = 'i', long, value_name = "AIO")]
    aio: Option<String>,
    /// The same as `-i native`.
    #[arg(short, long)]
    native: bool,
    /// Write instead of reading.
    #[arg(short, long)]
    write: bool,
    /// Value of the bytes to write.
    #[arg(long, value_name = "PATTERN")]
    pattern: Option<String>,
    /// Flush after this many requests.
    #[arg(long, value_name = "INTERVAL")]
    flush_interval: Option<String>,
    /// Do not wait for the requests in flight before a flush.
    #[arg(long)]
    no_drain: bool,
    /// Open the image without locks.
    #[arg(short = 'U', long)]
    force_share: bool,
    /// The image.
    #[arg(value_name = "FILENAME")]
    files: Vec<String>,
}

/// What to do to the image.
#[derive(Copy, Clone, Debug)]
struct Load {
    count: u64,
    depth: usize,
    bytes: u64,
    offset: u64,
    step: u64,
    kind: Kind,
    /// Requests between two flushes.
    flush_interval: Option<u64>,
    before_flush: BeforeFlush,
}

#[derive(Copy, Clone, Debug)]
enum Kind {
    Read,
    Write { pattern: u8, flags: RequestFlags },
}

/// What happens to the requests in flight when a flush is due.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum BeforeFlush {
    /// They are waited for.
    Drain,
    /// They go on beside it.
    GoOn,
}

/// Runs the benchmark.
pub(super) fn run(args: &Args, out: &mut Output) -> Result<u8, Failure> {
    let name = one_image("bench", &args.files)?;
    let cache = cache_mode(args.cache.as_deref(), CacheMode::WRITEBACK, "Invalid cache mode")?;
    let load = load(args, cache)?;
    let aio = match args.aio.as_deref().or(args.native.then_some("native")) {
        None => None,
        Some(name) => Some(
            AioMode::parse(name)
                .ok_or_else(|| Failure::new(format_args!("Invalid aio option: {name}")))?,
        ),
    };
    if aio == Some(AioMode::Native) && !cache.direct {
        return Err(Failure::new(format_args!(
            "Could not open '{name}': aio=native was specified, but it requires cache.direct=on, \
             which was not specified."
        )));
    }
    let spec = ImageSpec {
        format: args.format.clone(),
        image_opts: args.image_opts,
        flags: if args.write { OpenFlags::READ_WRITE } else { OpenFlags::READ_ONLY },
        cache,
        aio,
        force_share: args.force_share,
        ..ImageSpec::new(name)
    };
    block_on(async {
        let node = open_image(&spec, 1).await?;
        warn_of_guess(&spec, &node);
        let result = bench(&node, load, out).await;
        let closed = graph::close(&node).await;
        result?;
        closed.map_err(Failure::new)?;
        Ok(0)
    })
}

/// Reads the numbers.
fn load(args: &Args, cache: CacheMode) -> Result<Load, Failure> {
    let max = u64::try_from(i32::MAX).unwrap_or(u64::MAX);
    let max_offset = u64::try_from(i64::MAX).unwrap_or(u64::MAX);
    let bytes = size_argument("buffer size", &args.buffer_size, 1, max)?;
    let step = match &args.step_size {
        Some(text) => size_argument("step size", text, 0, max)?,
        None => 0,
    };
    let pattern = match &args.pattern {
        Some(text) => count_argument("pattern byte", text, 0, u64::from(u8::MAX))?,
        None => 0,
    };
    let flush_interval = match &args.flush_interval {
        Some(text) => count_argument("flush interval", text, 0, max)?,
        None => 0,
    };
    if flush_interval > 0 && !args.write {
        return Err(Failure::new("--flush-interval is only available in write tests"));
    }
    let depth = count_argument("queue depth", &args.depth, 1, max)?;
    if flush_interval > 0 && flush_interval < depth {
        return Err(Failure::new("Flush interval can't be smaller than depth"));
    }
    let flags = if cache.writethrough { RequestFlags::FUA } else { RequestFlags::empty() };
    Ok(Load {
        count: count_argument("request count", &args.count, 1, max)?,
        depth: to_usize(depth),
        bytes,
        offset: size_argument("offset", &args.offset, 0, max_offset)?,
        step: if step == 0 { bytes } else { step },
        kind: if args.write {
            Kind::Write { pattern: u8::try_from(pattern).unwrap_or_default(), flags }
        } else {
            Kind::Read
        },
        flush_interval: Some(flush_interval).filter(|n| *n > 0),
        before_flush: if args.no_drain { BeforeFlush::GoOn } else { BeforeFlush::Drain },
    })
}

async fn bench(node: &Node, load: Load, out: &mut Output) -> Result<(), Failure> {
    let kind = match load.kind {
        Kind::Read => "read",
        Kind::Write { .. } => "write",
    };
    writeln!(
        out,
        "Sending {} {kind} requests, {} bytes each, {} in parallel (starting at offset {}, step size {})",
        load.count, load.bytes, load.depth, load.offset, load.step
    )?;
    if let Some(interval) = load.flush_interval {
        writeln!(out, "Sending flush every {interval} requests")?;
    }
    out.flush()?;
    let mut run = Run::new(node, load)?;
    let start = Instant::now();
    let result = poll_fn(|cx| run.poll(cx)).await;
    let seconds = start.elapsed().as_secs_f64();
    result.map_err(|error| Failure::new(format_args!("Failed request: {}", error.errno_text())))?;
    writeln!(out, "Run completed in {seconds:.3} seconds.")?;
    Ok(())
}

/// A benchmark under way.
struct Run<'a> {
    node: &'a Node,
    load: Load,
    len: u64,
    bufs: Vec<IoBuf>,
    slots: Slots<Request>,
    flushes: Slots<Request>,
    /// Requests not yet begun.
    left: u64,
    /// Requests not yet begun when the last flush was due.
    left_at_flush: u64,
    offset: u64,
    failed: Option<Error>,
}

impl<'a> Run<'a> {
    fn new(node: &'a Node, load: Load) -> Result<Self, Failure> {
        let depth = load.depth.min(to_usize(load.count));
        let align = node.limits().opt_mem_alignment;
        let buffer = |_| {
            let buf = IoBuf::zeroed(to_usize(load.bytes), align)?;
            if let Kind::Write { pattern, .. } = load.kind {
                buf.fill(pattern);
            }
            Ok(buf)
        };
        let bufs = (0..depth).map(buffer).collect::<Result<_, Error>>().map_err(Failure::new)?;
        Ok(Self {
            node,
            load,
            len: sector_len(node),
            bufs,
            slots: Slots::new(depth),
            flushes: Slots::new(depth.max(1)),
            left: load.count,
            left_at_flush: load.count,
            offset: load.offset,
            failed: None,
        })
    }

    /// Ready when every request has completed; with the first error, when nothing is in flight.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        loop {
            self.fill();
            let mut done = None;
            if self.slots.len() > 0
                && let Poll::Ready(result) = self.slots.poll_next(cx)
            {
                done = Some(result);
            } else if self.flushes.len() > 0
                && let Poll::Ready(result) = self.flushes.poll_next(cx)
            {
                done = Some(result);
            }
            match done {
                Some(result) => self.note(result),
                None if self.slots.len() + self.flushes.len() > 0 => return Poll::Pending,
                None => return Poll::Ready(self.failed.map_or(Ok(()), Err)),
            }
        }
    }

    /// Starts what may be started.
    fn fill(&mut self) {
        while self.failed.is_none() {
            let started = if self.flush_is_due() {
                let draining = self.load.before_flush == BeforeFlush::Drain;
                if draining && self.slots.len() > 0 {
                    return;
                }
                self.start_flush()
            } else if self.left == 0 || self.waits_for_flush() {
                return;
            } else {
                self.start_request()
            };
            match started {
                None => return,
                Some(Poll::Ready(result)) => self.note(result),
                Some(Poll::Pending) => {}
            }
        }
    }

    fn flush_is_due(&self) -> bool {
        let since = self.left_at_flush - self.left;
        self.load.flush_interval.is_some_and(|interval| since >= interval)
    }

    fn waits_for_flush(&self) -> bool {
        self.load.before_flush == BeforeFlush::Drain && self.flushes.len() > 0
    }

    fn start_flush(&mut self) -> Option<Poll<Result<(), Error>>> {
        let node = self.node;
        let started = self.flushes.start(|_| node.flush())?;
        self.left_at_flush = self.left;
        Some(started)
    }

    fn start_request(&mut self) -> Option<Poll<Result<(), Error>>> {
        let Ok(range) = ByteRange::new(self.offset, self.load.bytes) else {
            return Some(Poll::Ready(Err(Error::Invalid)));
        };
        if range.end() > self.len {
            return Some(Poll::Ready(Err(Error::OutOfRange { range, len: self.len })));
        }
        let (node, kind, bufs) = (self.node, self.load.kind, &self.bufs);
        let started = self.slots.start(|index| {
            let iov = bufs.get(index).cloned().map(IoVec::from).unwrap_or_default();
            match kind {
                Kind::Read => node.read(range, iov),
                Kind::Write { flags, .. } => node.write(range, iov, flags),
            }
        })?;
        self.left -= 1;
        self.offset = (self.offset + self.load.step) % self.len.max(1);
        Some(started)
    }

    /// Keeps the first error.
    fn note(&mut self, result: Result<(), Error>) {
        if let Err(error) = result {
            self.failed.get_or_insert(error);
        }
    }
}
