//! `create`: a new image. `convert` makes its target here too.
//!
//! Invariants: a file that somebody else has open as an image is not changed; a name that will stand in
//! the image is looked at the way it will be when the image is opened.

use std::fmt::{self, Write as _};
use std::io::Write;
use std::sync::Arc;

use block_core::error::Problem;
use block_core::options::parse_size;
use block_core::registry::{CreateOption, DriverFactory, OpenContext};
use block_core::{OpenError, OpenFlags, Options, graph};

use crate::open::{ImageSpec, block_on, open, registry};
use crate::spec::{SpecError, image_opts, shown};

use super::common::{sector_len, size_argument};
use super::{Failure, Output};

/// Create a new image file.
#[derive(clap::Args)]
#[command(args_override_self = true)]
pub(super) struct Args {
    /// Do not print what is made.
    #[arg(short, long)]
    quiet: bool,
    /// Format of the new image.
    #[arg(short, long, value_name = "FMT", default_value = "raw")]
    format: String,
    /// Options of the format (-o help lists them).
    #[arg(short, long, value_name = "FMT_OPTS")]
    options: Vec<String>,
    /// Backing file of the new image.
    #[arg(short, long, value_name = "BACKING_FILE")]
    backing: Option<String>,
    /// Format of the backing file.
    #[arg(short = 'F', long, alias = "backing-fmt", value_name = "BACKING_FMT")]
    backing_format: Option<String>,
    /// Do not open the backing file, which may be missing.
    #[arg(short = 'u', long)]
    backing_unsafe: bool,
    /// File to create, which is overwritten if it exists, and size of the disk (default: that of the
    /// backing file), with an optional suffix (b, k, M, G, T, P, E: multiples of 1024).
    #[arg(value_name = "FILENAME [SIZE]", allow_negative_numbers = true)]
    files: Vec<String>,
}

/// Creates the image.
pub(super) fn run(args: &Args, out: &mut Output) -> Result<u8, Failure> {
    if wants_help(&args.options) {
        let name = args.files.first().map(String::as_str);
        return print_help(&args.format, name, out).map_err(Failure::new);
    }
    let (name, size) = match args.files.as_slice() {
        [] => return Err(Failure::usage("create", "Expecting image file name")),
        [name] => (name, None),
        [name, size] => (name, Some(size)),
        [_, _, more, ..] => {
            return Err(Failure::usage("create", format_args!("Unexpected argument: {more}")));
        }
    };
    let max = u64::try_from(i64::MAX).unwrap_or(u64::MAX);
    let size = match size {
        Some(text) => Some(size_argument("image size", text, 0, max)?),
        None => None,
    };
    let fail = |error: CreateError| Failure::new(format_args!("{}: {error}", shown(name)));
    let new = prepare(args, name, size).map_err(fail)?;
    if !args.quiet {
        writeln!(out, "{new}")?;
    }
    block_on(new.create()).map_err(|error| match error {
        CreateError::Open(SpecError::Open(OpenError::File { path, error })) => {
            let path = path.display();
            let name = shown(name);
            Failure::new(format_args!("{name}: Could not create '{path}': {error}"))
        }
        other => fail(other),
    })?;
    Ok(0)
}

fn prepare(args: &Args, name: &str, size: Option<u64>) -> Result<NewImage, CreateError> {
    let mut new = NewImage::new(&args.format, name, &args.options)?;
    if let Some(size) = size {
        if new.get("size").is_some() {
            return Err(CreateError::TwoSizes);
        }
        new.set_size(size);
    }
    let set = new.set_backing(args.backing.as_deref(), args.backing_format.as_deref());
    if let (Err(CreateError::NoBackingFormat), false) = (&set, args.backing_unsafe) {
        // A file that is not there at all is what the user has to hear of first.
        block_on(new.backing_len())?;
    }
    set?;
    if !args.backing_unsafe && new.get("backing_file").is_some() {
        let len = block_on(new.backing_len())?;
        if new.get("size").is_none() {
            new.set_size(len);
        }
    }
    match new.get("size") {
        Some(_) => Ok(new),
        None => Err(CreateError::NoSize),
    }
}

/// Why an image could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum CreateError {
    /// A format whose images cannot be made.
    #[error("Format driver '{0}' does not support image creation")]
    NoCreation(&'static str),
    /// A protocol whose files cannot be made.
    #[error("Protocol driver '{0}' does not support image creation")]
    NoProtocolCreation(&'static str),
    /// A format that nobody knows.
    #[error("Unknown file format '{0}'")]
    UnknownFormat(String),
    /// An option that the format does not have.
    #[error("Invalid parameter '{0}'")]
    UnknownOption(String),
    /// An option with a value that it cannot have.
    #[error("Parameter '{0}' does not accept value '{1}'")]
    OptionValue(String, String),
    /// An option that takes numbers.
    #[error("Parameter '{0}' expects a number")]
    NotNumber(&'static str),
    /// An option that takes numbers of bytes.
    #[error("Parameter '{0}' expects a non-negative number below 2^64")]
    NotSize(&'static str),
    /// An option that is on or off.
    #[error("Parameter '{0}' expects 'on' or 'off'")]
    NotBool(&'static str),
    /// `SIZE` beside `-o size=`.
    #[error("The image size must be specified only once")]
    TwoSizes,
    /// Neither.
    #[error("Image creation needs a size parameter")]
    NoSize,
    /// `-b` or `-F` for a format that knows nothing of it.
    #[error("Backing {0} not supported for file format '{1}'")]
    NoBacking(&'static str, &'static str),
    /// A backing file whose format would have to be guessed.
    #[error("Backing file specified without backing format")]
    NoBackingFormat,
    /// A backing format alone.
    #[error("Backing format cannot be used without backing file")]
    NoBackingFile,
    /// An image on top of itself.
    #[error("Error: Trying to create an image with the same filename as the backing file")]
    OwnBacking,
    /// The backing file cannot be opened.
    #[error("{0}\nCould not open backing image.")]
    Backing(SpecError),
    /// The options cannot be read, or the file cannot be made.
    #[error(transparent)]
    Open(#[from] SpecError),
}

impl From<OpenError> for CreateError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::OptionValue { option, value, problem: Problem::Unknown } => {
                Self::OptionValue(option.to_owned(), value)
            }
            other => Self::Open(other.into()),
        }
    }
}

/// The format `name`, if there is one.
pub(super) fn format_of(name: &str) -> Result<Arc<dyn DriverFactory>, CreateError> {
    let found = registry().get(name).cloned();
    found.map_err(|_| CreateError::UnknownFormat(name.to_owned()))
}

/// An image that is to be made.
pub(super) struct NewImage {
    name: String,
    factory: Arc<dyn DriverFactory>,
    known: Vec<CreateOption>,
    options: Options,
}

impl NewImage {
    /// The image `name` of this format, with the options of all `-o`.
    pub(super) fn new(format: &str, name: &str, texts: &[String]) -> Result<Self, CreateError> {
        let factory = format_of(format)?;
        let given = option_list(texts, &known_options(&*factory, Some(name))?)?;
        Self::with_options(factory, name, &given)
    }

    /// [`NewImage::new`] with options that have been read.
    pub(super) fn with_options(
        factory: Arc<dyn DriverFactory>,
        name: &str,
        given: &Options,
    ) -> Result<Self, CreateError> {
        let known = known_options(&*factory, Some(name))?;
        let options = check_options(&known, given)?;
        Ok(Self { name: name.to_owned(), factory, known, options })
    }

    /// Sets the length of the disk in bytes.
    pub(super) fn set_size(&mut self, size: u64) {
        self.options.set("size", size.to_string());
    }

    /// Makes it, in place of what the file held.
    pub(super) async fn create(&self) -> Result<(), CreateError> {
        let context = OpenContext::new(registry(), OpenFlags::READ_WRITE);
        let options = self.options.clone().with("filename", &*self.name);
        Ok(context.create_image(self.factory.name(), options).await?)
    }

    /// The value of an option, if it was given.
    pub(super) fn get(&self, option: &str) -> Option<&str> {
        self.options.peek(option)
    }

    /// Sets what `-b` and `-F` say, and checks what is said of the backing file at all.
    pub(super) fn set_backing(
        &mut self,
        file: Option<&str>,
        format: Option<&str>,
    ) -> Result<(), CreateError> {
        for (option, what, value) in
            [("backing_file", "file", file), ("backing_fmt", "file format", format)]
        {
            let Some(value) = value else { continue };
            if self.known.iter().all(|known| known.name != option) {
                return Err(CreateError::NoBacking(what, self.factory.name()));
            }
            self.options.set(option, value);
        }
        match (self.get("backing_file"), self.get("backing_fmt")) {
            (None, None) => Ok(()),
            (None, Some(_)) => Err(CreateError::NoBackingFile),
            (Some(file), _) if file == self.name => Err(CreateError::OwnBacking),
            (Some(_), None) => Err(CreateError::NoBackingFormat),
            (Some(_), Some(format)) => format_of(format).map(drop),
        }
    }

    /// Length of the backing file in whole sectors; it must open.
    async fn backing_len(&self) -> Result<u64, CreateError> {
        let file = self.get("backing_file").unwrap_or_default();
        let context = OpenContext::new(registry(), OpenFlags::READ_ONLY);
        let path = context
            .resolve_beside(&self.name, file)
            .map_err(|error| CreateError::Backing(error.into()))?;
        let format = self.get("backing_fmt").map(str::to_owned);
        // An overlay over the image of a machine that runs is no rarity, and its length is all that is asked.
        let spec = ImageSpec { format, force_share: true, ..ImageSpec::new(path) };
        let node = open(&spec).await.map_err(CreateError::Backing)?;
        let len = sector_len(&node);
        let closed = graph::close(&node).await;
        closed.map_err(|error| OpenError::Request { what: "closing the backing file", error })?;
        Ok(len)
    }
}

impl fmt::Display for NewImage {
    /// What is being made, in one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Formatting '{}', fmt={}", shown(&self.name), self.factory.name())?;
        for option in &self.known {
            if let Some(value) = self.get(option.name).or(option.default) {
                write!(f, " {}={}", option.name, shown(value))?;
            }
        }
        Ok(())
    }
}

/// The options of a format, and those of the protocol of `name` that the format does not have itself.
pub(super) fn known_options(
    factory: &dyn DriverFactory,
    name: Option<&str>,
) -> Result<Vec<CreateOption>, CreateError> {
    let mut known = factory.create_options().to_vec();
    if known.is_empty() {
        return Err(CreateError::NoCreation(factory.name()));
    }
    let Some(name) = name else { return Ok(known) };
    let registry = registry();
    let protocol = registry.get(registry.protocol_of(name)?)?;
    if protocol.create_options().is_empty() {
        return Err(CreateError::NoProtocolCreation(protocol.name()));
    }
    for option in protocol.create_options() {
        if known.iter().all(|own| own.name != option.name) {
            known.push(*option);
        }
    }
    Ok(known)
}

/// Reads the values of all `-o`, numbers in one way of writing them.
pub(super) fn parse_options(
    known: &[CreateOption],
    texts: &[String],
) -> Result<Options, CreateError> {
    check_options(known, &option_list(texts, known)?)
}

/// The options of all `-o`, of which a boolean one that is `known` may be switched off by `noNAME`.
pub(super) fn option_list(texts: &[String], known: &[CreateOption]) -> Result<Options, SpecError> {
    if let Some(text) = texts.iter().find(|text| !is_list(text)) {
        return Err(SpecError::List(text.clone()));
    }
    image_opts::parse_known(&texts.join(","), |name| known.iter().any(|k| k.name == name))
}

/// Whether every option of a list has a name, as far as its ends tell: those of several `-o` are joined.
fn is_list(text: &str) -> bool {
    // Two commas stand for one that belongs to a value.
    let commas = text.len() - text.trim_end_matches(',').len();
    !text.is_empty() && !text.starts_with(',') && commas.is_multiple_of(2)
}

/// Looks at options that have been read: numbers are written in one way afterwards.
pub(super) fn check_options(
    known: &[CreateOption],
    given: &Options,
) -> Result<Options, CreateError> {
    let mut options = Options::new();
    for (name, text) in given.iter() {
        let unknown = || CreateError::UnknownOption(name.to_owned());
        let option = known.iter().find(|option| option.name == name).ok_or_else(unknown)?;
        options.set(name, value_of(option, text)?);
    }
    Ok(options)
}

fn value_of(option: &CreateOption, text: &str) -> Result<String, CreateError> {
    let name = option.name;
    match option.value {
        "<size>" => Ok(parse_size(text).ok_or(CreateError::NotSize(name))?.to_string()),
        "<num>" => {
            let value = match text.strip_prefix("0x") {
                Some(hex) => u64::from_str_radix(hex, 16).ok(),
                None => text.parse().ok(),
            };
            Ok(value.ok_or(CreateError::NotNumber(name))?.to_string())
        }
        "<str>" => Ok(text.to_owned()),
        _ => {
            let is_bool = Options::new().with(name, text).take_bool(name).is_ok();
            if is_bool { Ok(text.to_owned()) } else { Err(CreateError::NotBool(name)) }
        }
    }
}

/// Whether one of the `-o` asks for a list of options.
pub(super) fn wants_help(texts: &[String]) -> bool {
    texts.iter().flat_map(|text| text.split(',')).any(|item| matches!(item, "help" | "?"))
}

/// Lists the options of a format, with those of the protocol of `name`.
pub(super) fn print_help(
    format: &str,
    name: Option<&str>,
    out: &mut Output,
) -> Result<u8, CreateError> {
    let factory = format_of(format)?;
    let known = known_options(&*factory, name)?;
    let mut text = match name {
        Some(_) => list("Supported options:", known),
        None => list(&format!("Supported {format} options:"), known),
    };
    if name.is_none() {
        text.push_str(
            "\nThe protocol level may support further options.\n\
             Specify the target filename to include those options.\n",
        );
    }
    out.write_all(text.as_bytes()).map_err(|error| {
        let (what, error) = ("standard output", error.into());
        CreateError::from(OpenError::Request { what, error })
    })?;
    Ok(0)
}

/// Options below a `title`, by name.
pub(super) fn list(title: &str, mut options: Vec<CreateOption>) -> String {
    options.sort_by_key(|option| option.name);
    let mut text = format!("{title}\n");
    for option in options {
        let named = format!("{}={}", option.name, option.value);
        // Writing to a text does not fail.
        let _ = writeln!(text, "  {named:<22} - {}", option.help);
    }
    text
}
