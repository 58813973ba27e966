//! `dd`: copies a part of one image to another.
//!
//! As users of `qemu-img dd` know it, `count` counts from the start of the input: `skip=1 count=3`
//! copies two blocks. The output is made anew.

use std::sync::Arc;

use block_core::format::raw::RawDriver;
use block_core::job::copy::{CopyOptions, CopySource, Progress, TargetContents};
use block_core::job::{CopyError, copy};
use block_core::{Cancel, Node, Options, graph};

use crate::open::{CacheMode, ImageSpec, block_on};
use crate::program;
use crate::spec::shown;
use crate::surroundings::complain;

use super::common::{count_argument, open_image, sector_len, size_argument};
use super::interrupt::{self, cancel_on_signal};
use super::target::Target;
use super::{Failure, Output};

/// Copy a part of one image to another.
#[derive(clap::Args)]
#[command(args_override_self = true)]
pub(super) struct Args {
    /// Format of the input (default: probed).
    #[arg(short, long, value_name = "FMT", conflicts_with = "image_opts")]
    format: Option<String>,
    /// The name of the input is options (driver=...,file.filename=...).
    #[arg(long)]
    image_opts: bool,
    /// Format of the output.
    #[arg(short = 'O', long, value_name = "OUTPUT_FMT", default_value = "raw")]
    output_format: String,
    /// Open the input without locks.
    #[arg(short = 'U', long)]
    force_share: bool,
    /// if=INPUT of=OUTPUT, bs=BLOCK_SIZE (default 512), count=BLOCKS, skip=BLOCKS.
    #[arg(value_name = "OPERAND=VALUE")]
    operands: Vec<String>,
}

/// What the operands say.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Operands<'a> {
    input: Option<&'a str>,
    output: Option<&'a str>,
    block: u64,
    count: Option<u64>,
    skip: u64,
}

/// Copies.
pub(super) fn run(args: &Args, _: &mut Output) -> Result<u8, Failure> {
    let operands = parse(&args.operands)?;
    let (Some(input), Some(output)) = (operands.input, operands.output) else {
        return Err(Failure::new("Must specify both input and output files"));
    };
    let cancel = Cancel::new();
    let _listening = cancel_on_signal(&cancel)?;
    let spec = ImageSpec {
        format: args.format.clone(),
        image_opts: args.image_opts,
        force_share: args.force_share,
        ..ImageSpec::new(input)
    };
    block_on(async {
        let source = open_image(&spec, 1).await?;
        let mut nodes = vec![source.clone()];
        let result = copy_part(args, &operands, &source, output, &cancel, &mut nodes).await;
        let mut closed = Ok(());
        for node in nodes {
            closed = closed.and(graph::close(&node).await);
        }
        result?;
        closed.map_err(|error| Failure::new(format_args!("error while closing: {error}")))?;
        Ok(0)
    })
}

fn parse(words: &[String]) -> Result<Operands<'_>, Failure> {
    const MAX_BLOCK: u64 = (1 << 31) - 1;
    const MAX_COUNT: u64 = (1 << 63) - 1;
    let mut operands = Operands { input: None, output: None, block: 512, count: None, skip: 0 };
    for word in words {
        let name = word.split('=').next().unwrap_or_default();
        let unknown = || Failure::new(format_args!("unrecognized operand {name}"));
        let (_, value) = word.split_once('=').ok_or_else(unknown)?;
        match name {
            "if" => operands.input = Some(value),
            "of" => operands.output = Some(value),
            "bs" => operands.block = size_argument("bs", value, 1, MAX_BLOCK)?,
            "count" => operands.count = Some(count_argument("count", value, 0, MAX_COUNT)?),
            "skip" => operands.skip = count_argument("skip", value, 0, MAX_COUNT)?,
            _ => return Err(unknown()),
        }
    }
    Ok(operands)
}

/// Makes the output, into `nodes`, and copies to it.
async fn copy_part(
    args: &Args,
    operands: &Operands<'_>,
    source: &Node,
    output: &str,
    cancel: &Cancel,
    nodes: &mut Vec<Node>,
) -> Result<(), Failure> {
    let Operands { block, count, skip, .. } = *operands;
    let end = count.map_or(u64::MAX, |count| count.saturating_mul(block)).min(sector_len(source));
    let start = skip.saturating_mul(block);
    let len = match end.checked_sub(start) {
        Some(len) => len,
        None => {
            let input = shown(operands.input.unwrap_or_default());
            let program = program::name();
            complain(format_args!("{program}: {input}: cannot skip to specified offset"));
            0
        }
    };
    let target = Target::new(output, &args.output_format, &Options::new(), len)?
        .make(CacheMode::WRITEBACK)
        .await?;
    nodes.push(target.clone());
    if len == 0 {
        return Ok(());
    }
    // What the last sector has beyond the end of the input reads as zeroes.
    let start = start.min(source.len());
    let part = RawDriver::part(source.clone(), start, None).map_err(Failure::new)?;
    let part = Node::new(Arc::new(part), source.options().clone());
    let contents = match target.capabilities().has_zero_init {
        true => TargetContents::Zeroes,
        false => TargetContents::Unknown,
    };
    let options = CopyOptions { target: contents, ..CopyOptions::default() };
    let sources = vec![CopySource::new(part, len)];
    let copied = copy(sources, &target, options, cancel, |_: Progress| ()).await;
    copied.map_err(|error| match error {
        CopyError::Cancelled { .. } => Failure::new("interrupted").with_status(interrupt::status()),
        error => Failure::new(error),
    })?;
    let flushed = target.flush().await;
    flushed.map_err(|error| Failure::new(format_args!("error while flushing: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operands_are_words_with_values() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let given = words("if=a of=b=c bs=1k count=3 skip=2");
        let parsed = parse(&given).unwrap();
        let expect = Operands {
            input: Some("a"),
            output: Some("b=c"),
            block: 1024,
            count: Some(3),
            skip: 2,
        };
        assert_eq!(parsed, expect);
        for (text, message) in [
            ("bogus=1", "unrecognized operand bogus"),
            ("foo", "unrecognized operand foo"),
            ("bs=0", "Invalid bs specified. Must be between 1 and 2147483647."),
            ("count=-1", "Invalid count specified. Must be between 0 and 9223372036854775807."),
        ] {
            assert_eq!(parse(&words(text)).unwrap_err().message(), message);
        }
    }
}
