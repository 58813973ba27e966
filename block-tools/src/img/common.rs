//! What several commands share: opening images, numbers and modes on the command line.

use block_core::Node;
use block_core::options::parse_size;
use block_core::range::{Alignment, SECTOR_SIZE};
use clap::ValueEnum;

use crate::open::{CacheMode, ImageSpec, open};
use crate::spec::{SpecError, shown};
use crate::surroundings::complain;

use super::Failure;

/// `--output`.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default, ValueEnum)]
pub(super) enum OutputFormat {
    /// For people.
    #[default]
    Human,
    /// For programs.
    Json,
}

/// Opens an image; a failure names it and has the exit status that the command gives for it.
pub(super) async fn open_image(spec: &ImageSpec, status: u8) -> Result<Node, Failure> {
    let opened = open(spec).await;
    opened.map_err(|error| cannot_open(&spec.name, &error).with_status(status))
}

/// The failure of an image that could not be opened.
pub(super) fn cannot_open(name: &str, error: &SpecError) -> Failure {
    Failure::new(format_args!("Could not open '{}': {error}", shown(name)))
}

/// Length of a disk as tools count it: in whole sectors.
pub(super) fn sector_len(node: &Node) -> u64 {
    Alignment::SECTOR.round_up(node.len())
}

/// The cache mode `name`; `what` begins what is said if there is none.
pub(super) fn cache_mode(
    name: Option<&str>,
    default: CacheMode,
    what: &str,
) -> Result<CacheMode, Failure> {
    match name {
        None => Ok(default),
        Some(name) => CacheMode::parse(name).ok_or_else(|| Failure::new(what.replace("{}", name))),
    }
}

/// A number of bytes with an optional suffix, in `min..=max`.
pub(super) fn size_argument(what: &str, text: &str, min: u64, max: u64) -> Result<u64, Failure> {
    in_range(what, text, parse_size(text), min, max)
}

/// A plain number in `min..=max`.
pub(super) fn count_argument(what: &str, text: &str, min: u64, max: u64) -> Result<u64, Failure> {
    let value = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    in_range(what, text, value, min, max)
}

fn in_range(
    what: &str,
    text: &str,
    value: Option<u64>,
    min: u64,
    max: u64,
) -> Result<u64, Failure> {
    // A number that is too small or too large is told its limits, anything else is quoted.
    let is_number = text.starts_with(|c: char| c.is_ascii_digit() || c == '-')
        && text.chars().skip(1).all(|c| c.is_ascii_digit());
    match value {
        Some(value) if (min..=max).contains(&value) => Ok(value),
        None if !is_number => {
            Err(Failure::new(format_args!("Invalid {what} specified: '{text}'.")))
        }
        _ => Err(Failure::new(format_args!(
            "Invalid {what} specified. Must be between {min} and {max}."
        ))),
    }
}

/// How many decimal digits a number has.
pub(super) fn decimal_digits(value: u128) -> usize {
    value.to_string().len()
}

/// Says that writes to a guessed raw image are restricted, as everybody should know who sees it.
pub(super) fn warn_of_guess(spec: &ImageSpec, node: &Node) {
    let guessed = spec.format.is_none() && !spec.image_opts && !spec.name.starts_with("json:");
    if guessed && node.driver().name() == "raw" && spec.flags.writable {
        complain(format_args!(
            "WARNING: Image format was not specified for '{}' and probing guessed raw.\n         \
             Automatically detecting the format is dangerous for raw images, write operations on \
             block 0 will be restricted.\n         \
             Specify the 'raw' format explicitly to remove the restrictions.",
            shown(&spec.name)
        ));
    }
}

/// The only argument of a command that takes one image.
pub(super) fn one_image<'a>(
    command: &'static str,
    files: &'a [String],
) -> Result<&'a str, Failure> {
    match files {
        [file] => Ok(file),
        _ => Err(Failure::usage(command, "Expecting one image file name")),
    }
}

/// How many bytes a sector has, for those who count in them.
pub(super) const SECTOR: u64 = SECTOR_SIZE;
