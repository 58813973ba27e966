//! Making the target of a command that copies: `convert`, `dd`.

use block_core::{Node, OpenFlags, Options};

use crate::open::{CacheMode, ImageSpec, open};
use crate::spec::shown;

use super::Failure;
use super::create::{CreateError, NewImage, format_of};

/// An image that is to be made and written to.
pub(super) struct Target<'a> {
    name: &'a str,
    format: &'a str,
    new: NewImage,
    /// How it is opened to be written, beside what is said in other ways.
    open_options: Options,
}

impl<'a> Target<'a> {
    /// The image that the options of creation describe, of `size` bytes whatever they say.
    pub(super) fn new(
        name: &'a str,
        format: &'a str,
        options: &Options,
        size: u64,
    ) -> Result<Self, Failure> {
        let new =
            format_of(format).and_then(|factory| NewImage::with_options(factory, name, options));
        let mut new = new.map_err(Failure::new)?;
        new.set_size(size);
        Ok(Self { name, format, new, open_options: Options::new() })
    }

    /// Has it opened with these options.
    pub(super) fn set_open_options(&mut self, options: Options) {
        self.open_options = options;
    }

    /// Names the backing file and its format, unless the format has none.
    pub(super) fn set_backing(
        &mut self,
        file: Option<&str>,
        format: Option<&str>,
    ) -> Result<(), Failure> {
        self.new.set_backing(file, format).map_err(|error| self.failed(&error))
    }

    /// Makes it, in place of what its file held, and opens it.
    pub(super) async fn make(&self, cache: CacheMode) -> Result<Node, Failure> {
        self.new.create().await.map_err(|error| self.failed(&error))?;
        let spec = ImageSpec {
            format: Some(self.format.to_owned()),
            flags: OpenFlags::READ_WRITE,
            cache,
            options: self.open_options.clone(),
            ..ImageSpec::new(self.name)
        };
        open(&spec).await.map_err(|error| self.failed(&error.into()))
    }

    fn failed(&self, error: &CreateError) -> Failure {
        let (name, format) = (shown(self.name), self.format);
        Failure::new(format_args!("{name}: error while converting {format}: {error}"))
    }
}
