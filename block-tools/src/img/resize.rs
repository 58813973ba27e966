//! `resize`: changes the length of a disk.

use std::ffi::OsString;
use std::io::Write;

use block_core::driver::{Exactness, Prealloc};
use block_core::info::InfoValue;
use block_core::options::parse_size;
use block_core::{Error, Node, OpenFlags, graph};

use crate::open::{ImageSpec, block_on};
use crate::program;

use super::common::{open_image, sector_len};
use super::{Failure, Output};

/// Change the length of a disk.
#[derive(clap::Args)]
#[command(args_override_self = true)]
pub(super) struct Args {
    /// Print nothing but errors.
    #[arg(short, long)]
    quiet: bool,
    /// Format of the image (default: probed).
    #[arg(short, long, value_name = "FMT", conflicts_with = "image_opts")]
    format: Option<String>,
    /// The name is options (driver=...,file.filename=...).
    #[arg(long)]
    image_opts: bool,
    /// Allow a length that is less than before.
    #[arg(long)]
    shrink: bool,
    /// What is allocated of the bytes that are added: off, metadata, falloc, full.
    #[arg(long, value_name = "PREALLOC")]
    preallocation: Option<String>,
    /// The image, and its new length or, with + or -, the change; with an optional suffix (b, k, M, G,
    /// T, P, E: multiples of 1024).
    #[arg(value_name = "FILENAME [+-]SIZE")]
    files: Vec<String>,
}

/// A length as the command line gives it.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum NewLen {
    Absolute(u64),
    More(u64),
    Less(u64),
}

/// Tells a length to take off, the last word of the command line `words`, from an option, as users write it.
pub(super) fn mark_size(words: &mut Vec<OsString>) {
    let is_less = |word: &OsString| {
        let digits = word.to_str().and_then(|word| word.strip_prefix('-'));
        digits.is_some_and(|digits| digits.starts_with(|c: char| c.is_ascii_digit()))
    };
    if words.last().is_some_and(is_less) && !words.iter().any(|word| word == "--") {
        words.insert(words.len() - 1, OsString::from("--"));
    }
}

/// Resizes.
pub(super) fn run(args: &Args, out: &mut Output) -> Result<u8, Failure> {
    let [name, size] = args.files.as_slice() else {
        return Err(Failure::usage("resize", "Expecting image file name and size"));
    };
    let new = parse(size).ok_or_else(|| {
        Failure::new(format_args!(
            "Parameter 'size' expects a non-negative number below 2^64, not '{size}'\n\
             Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n\
             and exabytes, respectively."
        ))
    })?;
    let prealloc = match args.preallocation.as_deref() {
        None | Some("off") => Prealloc::Off,
        Some("metadata") => Prealloc::Metadata,
        Some("falloc") => Prealloc::Falloc,
        Some("full") => Prealloc::Full,
        Some(other) => {
            return Err(Failure::new(format_args!("Invalid preallocation mode '{other}'")));
        }
    };
    let spec = ImageSpec {
        format: args.format.clone(),
        image_opts: args.image_opts,
        flags: OpenFlags::READ_WRITE,
        ..ImageSpec::new(name)
    };
    block_on(async {
        let node = open_image(&spec, 1).await?;
        let result = resize(args, &node, new, prealloc).await;
        let closed = graph::close(&node).await;
        result?;
        closed.map_err(|error| Failure::new(format_args!("error while closing: {error}")))?;
        if !args.quiet {
            writeln!(out, "Image resized.")?;
        }
        Ok(0)
    })
}

fn parse(text: &str) -> Option<NewLen> {
    match text.split_at_checked(1) {
        Some(("+", size)) => parse_size(size).map(NewLen::More),
        Some(("-", size)) => parse_size(size).map(NewLen::Less),
        _ => parse_size(text).map(NewLen::Absolute),
    }
}

async fn resize(args: &Args, node: &Node, new: NewLen, prealloc: Prealloc) -> Result<(), Failure> {
    let old = sector_len(node);
    let len = match new {
        NewLen::Absolute(len) => Some(len),
        NewLen::More(bytes) => old.checked_add(bytes),
        NewLen::Less(bytes) => old.checked_sub(bytes),
    };
    let len = len.filter(|len| *len > 0);
    let len = len.ok_or_else(|| Failure::new("New image size must be positive"))?;
    if len <= old && prealloc != Prealloc::Off {
        return Err(Failure::new("Preallocation can only be used for growing images"));
    }
    if len < old && !args.shrink {
        let program = program::name();
        return Err(Failure::new(format_args!(
            "Use the --shrink option to perform a shrink operation.\n\
             {program}: warning: Shrinking an image will delete all data beyond the shrunken image's \
             end. Before performing such an operation, make sure there is no important data there."
        )));
    }
    let resized = node.truncate(len, Exactness::Exact, prealloc).await;
    resized.map_err(|error| {
        let refused = "Can't resize an image of version 2 (compat=0.10) that has snapshots";
        match error {
            Error::Unsupported if is_old_with_snapshots(node) => Failure::new(refused),
            error => Failure::new(format_args!("Could not resize the image: {error}")),
        }
    })?;
    let flushed = node.flush().await;
    flushed.map_err(|error| Failure::new(format_args!("error while flushing: {error}")))
}

/// Whether the image has snapshots, and a format that does not say how long they are.
fn is_old_with_snapshots(node: &Node) -> bool {
    let old = InfoValue::Text("0.10".to_owned());
    let is_old = node.driver().info().specific.iter().any(|(n, v)| *n == "compat" && *v == old);
    is_old && node.driver().as_snapshots().is_some_and(|snapshots| !snapshots.list().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_to_take_off_is_no_option() {
        for (words, expect) in [
            ("a -1M", "a -- -1M"),
            ("a --shrink -1M", "a --shrink -- -1M"),
            ("a -- -1M", "a -- -1M"),
            ("-- a -1M", "-- a -1M"),
            ("a -1M -q", "a -1M -q"),
            ("a -q", "a -q"),
            ("a +1M", "a +1M"),
        ] {
            let mut given = words.split(' ').map(OsString::from).collect();
            mark_size(&mut given);
            assert_eq!(given.join(" ".as_ref()), expect);
        }
    }

    #[test]
    fn lengths_are_absolute_or_changes() {
        let cases = [
            ("1M", Some(NewLen::Absolute(1 << 20))),
            ("+1k", Some(NewLen::More(1024))),
            ("-512", Some(NewLen::Less(512))),
            ("--512", None),
            ("+", None),
            ("", None),
            ("abc", None),
            ("é", None),
        ];
        for (text, expect) in cases {
            assert_eq!(parse(text), expect, "{text:?}");
        }
    }
}
