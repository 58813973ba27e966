//! How an image is named on the command line: a file name, `json:{...}`, or `--image-opts`.
//!
//! Only the command line reaches this module. A name that stands inside an image is never parsed
//! here: it is a plain file name or refused ([`block_core::registry::ReferencePolicy`]).
//!
//! Invariants: any text gives options or an error, in time and memory proportional to its length;
//! option names are at most [`MAX_NAME_BYTES`] long.

pub mod image_opts;
pub mod json;
pub mod objects;
mod shown;

pub use shown::{shown, shown_value};

use block_core::{OpenError, Options};

/// Longest text that is read as options, in bytes.
pub const MAX_TEXT_BYTES: usize = 64 << 10;

/// Longest name of a flattened option, in bytes.
pub const MAX_NAME_BYTES: usize = 1024;

/// Why an image named on the command line could not be opened.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SpecError {
    /// The text after `json:` is no JSON object.
    #[error("Could not parse the JSON options at byte {at}: {problem}")]
    Json {
        /// Where in the text after `json:`.
        at: usize,
        /// What is wrong there.
        problem: JsonProblem,
    },
    /// An option stands twice, or both as a value and as a group of values.
    #[error("Option '{0}' is given twice")]
    Twice(String),
    /// The name of an option is empty or too long.
    #[error("Option name '{0}' is not valid")]
    Name(String),
    /// The text is longer than [`MAX_TEXT_BYTES`].
    #[error("The options are {0} bytes long, more than {MAX_TEXT_BYTES}")]
    TooLong(usize),
    /// A format was named beside options that name the driver themselves.
    #[error("--image-opts and --format are mutually exclusive")]
    FormatWithImageOpts,
    /// What is read from a backing file is to be copied to an image that is opened for reading only.
    #[error("Can't use copy-on-read on read-only device")]
    CopyToReadOnly,
    /// An image that is to be written, without the locks that would keep others from it.
    #[error("force-share=on can only be used with read-only images")]
    SharedWriter,
    /// A list of options (`-o`) that is empty, or has an empty one at either end.
    #[error("Invalid option list: {0}")]
    List(String),
    /// An object of the command line.
    #[error("--object: {0}")]
    Object(#[from] objects::ObjectError),
    /// Opening failed.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// What is wrong with a JSON text.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum JsonProblem {
    /// The text ends too early.
    #[error("the text ends too early")]
    End,
    /// Something else should stand here.
    #[error("expected {0}")]
    Expected(&'static str),
    /// An escape sequence that does not exist.
    #[error("unknown escape sequence")]
    Escape,
    /// A control character in a string.
    #[error("control character in a string")]
    Control,
    /// Objects and arrays are nested too deeply.
    #[error("nested more than {} levels deep", json::MAX_DEPTH)]
    Depth,
    /// Text after the end of the object.
    #[error("text after the end of the object")]
    Trailing,
}

/// Adds an option and checks its name.
fn add(options: &mut Options, name: &str, value: String) -> Result<(), SpecError> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        let shown = name.chars().take(64).collect();
        return Err(SpecError::Name(shown));
    }
    if options.peek(name).is_some() {
        return Err(SpecError::Twice(name.to_owned()));
    }
    options.set(name, value);
    Ok(())
}
