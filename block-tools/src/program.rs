//! The name that a program goes by in its messages: the one that it was called by, so that a link or
//! a wrapper of another name speaks under that name.

use std::path::Path;
use std::sync::OnceLock;

/// Of `block-img`, where nothing else was said.
const DEFAULT: &str = "block-img";

static NAME: OnceLock<String> = OnceLock::new();

/// Takes the name from the first word of the command line, or `default` where that is no name; for
/// `main`, once.
pub fn name_from_command_line(default: &'static str) -> &'static str {
    let first = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&first).file_name().and_then(|name| name.to_str()).unwrap_or(default);
    NAME.get_or_init(|| name.to_owned())
}

/// The name.
pub(crate) fn name() -> &'static str {
    NAME.get().map_or(DEFAULT, String::as_str)
}
