//! What the commands that compress (`-c`) ask of their targets, and the options of `-o` that say how.

use block_core::flags::Support;
use block_core::{Node, Options};

use super::Failure;
use super::create::format_of;

/// Options of `-o` that no image keeps: they become options of how the target is opened.
const OPEN_OPTIONS: [(&str, &str); 2] =
    [("compression_level", "compression-level"), ("compression_window", "compression-window")];

/// One of the options of `-o` that say how to compress, if there is one.
pub(super) fn option_in(options: &Options) -> Option<&'static str> {
    OPEN_OPTIONS.iter().map(|(name, _)| *name).find(|name| options.peek(name).is_some())
}

/// Takes from the options of `-o` those that say how to compress; gives them as options of opening.
pub(super) fn take_options(options: &mut Options) -> Options {
    let mut taken = Options::new();
    for (name, open_name) in OPEN_OPTIONS {
        if let Some(value) = options.take(name) {
            taken.set(open_name, value);
        }
    }
    taken
}

/// Refuses a format whose images cannot be compressed, or not if they are made with `options`.
pub(super) fn check_format(format: &str, options: &Options) -> Result<(), Failure> {
    if !format_of(format).map_err(Failure::new)?.compresses() {
        return Err(unsupported());
    }
    match options.peek("preallocation") {
        None | Some("off") => Ok(()),
        Some(_) => {
            Err(Failure::new("Compression and preallocation not supported at the same time"))
        }
    }
}

/// Refuses a node that takes no compressed writes.
pub(super) fn check_node(node: &Node) -> Result<(), Failure> {
    match node.capabilities().compressed_write {
        Support::Native => Ok(()),
        _ => Err(unsupported()),
    }
}

fn unsupported() -> Failure {
    Failure::new("Compression not supported for this file format")
}
