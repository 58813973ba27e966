//! Making the target of a command that copies: `convert`, `dd`.

use block_core::registry::OpenContext;
use block_core::{Node, OpenFlags, Options};

use crate::open::{CacheMode, ImageSpec, open, registry};
use crate::spec::{SpecError, image_opts};

use super::Failure;

/// An image that is to be made.
pub(super) struct NewImage<'a> {
    /// Its file.
    pub(super) name: &'a str,
    /// Its format.
    pub(super) format: &'a str,
    /// Options of the format, without the size.
    pub(super) options: Options,
    /// Length of the disk in bytes.
    pub(super) size: u64,
}

impl<'a> NewImage<'a> {
    /// The image that the texts of all `-o` describe. Fails if images of the format cannot be made or
    /// have no such option.
    pub(super) fn new(
        name: &'a str,
        format: &'a str,
        texts: &[String],
        size: u64,
    ) -> Result<Self, Failure> {
        let registry = registry();
        let unknown = || Failure::new(format_args!("Unknown file format '{format}'"));
        let factory = registry.get(format).map_err(|_| unknown())?;
        if factory.create_options().is_empty() && format != "raw" {
            return Err(Failure::new(format_args!(
                "Format driver '{format}' does not support image creation"
            )));
        }
        let mut options = image_opts::parse(&texts.join(",")).map_err(Failure::new)?;
        for (name, _) in options.iter() {
            if !factory.create_options().iter().any(|option| option.name == name) && format != "raw"
            {
                return Err(Failure::new(format_args!("Invalid parameter '{name}'")));
            }
        }
        let given = options.take_size("size").map_err(Failure::new)?;
        Ok(Self { name, format, options, size: given.unwrap_or(size) })
    }

    /// Names the backing file, unless the format has none.
    pub(super) fn set_backing(&mut self, name: &str, format: &str) -> Result<(), Failure> {
        if !has_option(self.format, "backing_file") {
            let format = self.format;
            return Err(Failure::new(format_args!(
                "Backing file not supported for file format '{format}'"
            )));
        }
        self.options.set("backing_file", name);
        self.options.set("backing_fmt", format);
        Ok(())
    }

    /// Makes it, in place of what its file held, and opens it.
    pub(super) async fn make(&self, cache: CacheMode) -> Result<Node, Failure> {
        let Self { name, format, .. } = self;
        let fail = |error: SpecError| {
            Failure::new(format_args!("{name}: error while converting {format}: {error}"))
        };
        let registry = registry();
        let factory = registry.get(format).map_err(|error| fail(error.into()))?.clone();
        if *format == "raw" {
            let mut options = self.options.clone();
            let prealloc = match options.take("preallocation").as_deref() {
                Some("full") => block_core::driver::Prealloc::Full,
                Some("falloc") => block_core::driver::Prealloc::Falloc,
                _ => block_core::driver::Prealloc::Off,
            };
            super::create::create_raw(name, self.size, prealloc)
                .await
                .map_err(|e| Failure::new(e))?;
            let spec = ImageSpec {
                format: Some((*format).to_owned()),
                flags: OpenFlags::READ_WRITE,
                cache,
                ..ImageSpec::new(*name)
            };
            return open(&spec).await.map_err(fail);
        }
        let plain = name.strip_prefix("file:").unwrap_or(name);
        let options =
            self.options.clone().with("filename", plain).with("size", self.size.to_string());
        let context = OpenContext::new(registry, OpenFlags::READ_WRITE);
        factory.create(options, context).await.map_err(|error| fail(error.into()))?;
        let spec = ImageSpec {
            format: Some((*format).to_owned()),
            flags: OpenFlags::READ_WRITE,
            cache,
            ..ImageSpec::new(*name)
        };
        open(&spec).await.map_err(fail)
    }
}

/// Whether images of `format` are made with the option `name`.
fn has_option(format: &str, name: &str) -> bool {
    let registry = registry();
    let factory = registry.get(format);
    factory.is_ok_and(|f| f.create_options().iter().any(|option| option.name == name))
}
