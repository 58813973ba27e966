//! The name that a program goes by in its messages: the one that it was called by, so that a link or
//! a wrapper of another name speaks under that name. And what every program takes, whatever it does.

use std::path::Path;
use std::sync::OnceLock;

/// What programs take and have no use for.
#[derive(clap::Args)]
pub struct TraceArgs {
    /// Accepted for scripts that give it: there are no trace points
    #[arg(short = 'T', long = "trace", value_name = "POINTS", action = clap::ArgAction::Append)]
    _points: Vec<String>,
}

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
