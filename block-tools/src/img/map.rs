//! `map`: which layer of a chain holds which part of the disk, and where.

use std::io::Write;

use block_core::range::MAX_LEN;
use block_core::request::status::{BlockStatus, Mapping, StatusDetail, StatusFlags};
use block_core::{ByteRange, Node, graph};

use crate::open::{ImageSpec, block_on};

use super::common::{OutputFormat, one_image, open_image, sector_len, size_argument};
use super::{Failure, Output};

/// Show how the contents of an image are stored.
#[derive(clap::Args)]
#[command(args_override_self = true)]
pub(super) struct Args {
    /// Format of the image (default: probed).
    #[arg(short, long, value_name = "FMT", conflicts_with = "image_opts")]
    format: Option<String>,
    /// The name is options (driver=...,file.filename=...).
    #[arg(long)]
    image_opts: bool,
    /// First byte to show.
    #[arg(short, long, value_name = "OFFSET", default_value = "0")]
    start_offset: String,
    /// Bytes to show at most.
    #[arg(short = 'l', long, value_name = "LENGTH")]
    max_length: Option<String>,
    /// Layout of the output.
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
    /// Open the image without locks.
    #[arg(short = 'U', long)]
    force_share: bool,
    /// The image.
    #[arg(value_name = "FILENAME")]
    files: Vec<String>,
}

/// A part of the disk that is stored in one way.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Entry {
    start: u64,
    len: u64,
    flags: StatusFlags,
    depth: usize,
    /// Offset in the file that holds it, and that file's name.
    at: Option<(u64, Option<String>)>,
}

/// Shows the map.
pub(super) fn run(args: &Args, out: &mut Output) -> Result<u8, Failure> {
    let name = one_image("map", &args.files)?;
    let max = u64::try_from(i64::MAX).unwrap_or(u64::MAX);
    let start = size_argument("start offset", &args.start_offset, 0, max)?;
    let max_len = match &args.max_length {
        Some(text) => size_argument("max length", text, 0, max)?,
        None => MAX_LEN,
    };
    let spec = ImageSpec {
        format: args.format.clone(),
        image_opts: args.image_opts,
        force_share: args.force_share,
        ..ImageSpec::new(name)
    };
    block_on(async {
        let node = open_image(&spec, 1).await?;
        let shown = show(&node, start, max_len, args.output, out).await;
        let closed = graph::close(&node).await;
        shown?;
        closed.map_err(Failure::new)?;
        Ok(0)
    })
}

async fn show(
    node: &Node,
    start: u64,
    max_len: u64,
    format: OutputFormat,
    out: &mut Output,
) -> Result<(), Failure> {
    match format {
        OutputFormat::Human => {
            writeln!(out, "{:<16}{:<16}{:<16}File", "Offset", "Length", "Mapped to")?;
        }
        OutputFormat::Json => write!(out, "[")?,
    }
    let end = sector_len(node).min(start.saturating_add(max_len));
    let mut current = Entry { start, len: 0, flags: StatusFlags::empty(), depth: 0, at: None };
    let mut position = start;
    while position < end {
        let entry = look(node, position, end).await?;
        position += entry.len;
        if !merge(&mut current, &entry) {
            if current.len > 0 {
                print(&current, format, out)?;
                if format == OutputFormat::Json {
                    writeln!(out, ",")?;
                }
            }
            current = entry;
        }
    }
    print(&current, format, out)?;
    if format == OutputFormat::Json {
        writeln!(out, "]")?;
    }
    Ok(())
}

/// How the bytes from `start` on are stored, by the first layer that decides.
async fn look(node: &Node, start: u64, end: u64) -> Result<Entry, Failure> {
    let mut layer = node.clone();
    let mut range = ByteRange::from_bounds(start, end).map_err(Failure::new)?;
    let mut depth = 0;
    let status = loop {
        let status = layer_status(&layer, range).await?;
        if status.is_data() || status.is_zero() || status.is_allocated() {
            break status;
        }
        match layer.backing() {
            Some(below) => {
                range = range.first(status.len);
                layer = below;
                depth += 1;
            }
            None => break status,
        }
    };
    let at = status.mapping.map(|mapping| (mapping.offset, mapping.node.driver().info().filename));
    Ok(Entry { start, len: status.len, flags: status.flags - StatusFlags::EOF, depth, at })
}

/// The status of `range` in `layer` alone. What is left of the last sector reads as zeroes.
async fn layer_status(layer: &Node, range: ByteRange) -> Result<BlockStatus, Failure> {
    let mut status = ask(layer, range).await?;
    if status.len > 0 {
        // Storage that is read and written by whole blocks has the rest of the last one, too.
        let align = layer.limits().request_alignment;
        if range.offset() + status.len == layer.len() && status.mapping.is_some() {
            status.len = align.round_up(layer.len()).min(range.end()) - range.offset();
        }
        return Ok(status);
    }
    // It stands where the bytes before it end, if they stand anywhere.
    let before = match range.offset().checked_sub(1).map(|offset| ByteRange::new(offset, 1)) {
        Some(Ok(last)) => ask(layer, last).await?.mapping,
        _ => None,
    };
    let mapping = before.map(|mapping| Mapping { offset: mapping.offset + 1, ..mapping });
    let flags = StatusFlags::ZERO | StatusFlags::ALLOCATED;
    Ok(BlockStatus { len: range.len(), flags, mapping, depth: 0 })
}

async fn ask(layer: &Node, range: ByteRange) -> Result<BlockStatus, Failure> {
    let asked = layer.block_status(range, StatusDetail::Zeroes).await;
    asked.map_err(|error| {
        let offset = range.offset();
        Failure::new(format_args!("error while reading block status at offset {offset}: {error}"))
    })
}

/// Appends `next` to `current` if both are stored alike and next to each other.
fn merge(current: &mut Entry, next: &Entry) -> bool {
    let follows = match (&current.at, &next.at) {
        (None, None) => true,
        (Some((a, file_a)), Some((b, file_b))) => a + current.len == *b && file_a == file_b,
        _ => false,
    };
    let alike = current.flags == next.flags && current.depth == next.depth;
    let merges = current.len > 0 && alike && follows;
    if merges {
        current.len += next.len;
    }
    merges
}

fn print(entry: &Entry, format: OutputFormat, out: &mut Output) -> Result<(), Failure> {
    match format {
        OutputFormat::Human => print_human(entry, out),
        OutputFormat::Json => print_json(entry, out),
    }
}

fn print_human(entry: &Entry, out: &mut Output) -> Result<(), Failure> {
    let data = entry.flags.contains(StatusFlags::DATA) && !entry.flags.contains(StatusFlags::ZERO);
    if !data {
        return Ok(());
    }
    let Some((offset, file)) = &entry.at else {
        let text = "File contains external, encrypted or compressed clusters.";
        return Err(Failure::new(text));
    };
    let hex = |value: u64| if value == 0 { "0".to_owned() } else { format!("{value:#x}") };
    let columns = [entry.start, entry.len, *offset].map(hex);
    for column in columns {
        write!(out, "{column:<16}")?;
    }
    writeln!(out, "{}", file.as_deref().unwrap_or_default())?;
    Ok(())
}

fn print_json(entry: &Entry, out: &mut Output) -> Result<(), Failure> {
    let has = |flag| entry.flags.contains(flag);
    write!(
        out,
        "{{ \"start\": {}, \"length\": {}, \"depth\": {}, \"present\": {}, \"zero\": {}, \
         \"data\": {}, \"compressed\": {}",
        entry.start,
        entry.len,
        entry.depth,
        has(StatusFlags::ALLOCATED),
        has(StatusFlags::ZERO),
        has(StatusFlags::DATA),
        has(StatusFlags::COMPRESSED),
    )?;
    if let Some((offset, _)) = entry.at {
        write!(out, ", \"offset\": {offset}")?;
    }
    write!(out, "}}")?;
    Ok(())
}
