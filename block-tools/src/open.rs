//! The one way in which the tools open an image: from a name and the options that every tool has
//! (`-f -t -i -d -U --image-opts`), to a [`Node`].
//!
//! Options inside the name (`json:`, `--image-opts`) win over the tool's own, except the format.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;

use block_core::filter::blkdebug::BlkdebugFactory;
use block_core::filter::blkverify::BlkverifyFactory;
use block_core::filter::compress::CompressFactory;
use block_core::filter::copy_on_read::{CopyOnReadDriver, CopyOnReadFactory};
use block_core::format::raw::RawFactory;
use block_core::node::DetectZeroes;
use block_core::proto::file::{FileFactory, HostDeviceFactory};
use block_core::proto::mem::MemFactory;
use block_core::proto::null::{NullAioFactory, NullFactory};
use block_core::registry::OpenContext;
use block_core::{Node, OpenFlags, Options, Registry};
use block_iscsi::factory::IscsiFactory;
use block_iscsi::transport::tcp::TcpConnector;
use block_qcow2::Qcow2Factory;
use block_vmdk::VmdkFactory;

use crate::spec::objects::Secrets;
use crate::spec::{SpecError, image_opts, json, shown};
use crate::surroundings::{self, complain};
use crate::temporary;

/// Every driver that the tools know, or those of the thread's [`surroundings`].
pub fn registry() -> Arc<Registry> {
    surroundings::registry().unwrap_or_else(|| Arc::new(drivers()))
}

/// Every driver that the tools know, for who puts another in the place of one.
pub fn drivers() -> Registry {
    Registry::new()
        .with(BlkdebugFactory)
        .with(BlkverifyFactory)
        .with(CompressFactory)
        .with(CopyOnReadFactory)
        .with(FileFactory)
        .with(HostDeviceFactory)
        .with(IscsiFactory::new(Arc::new(TcpConnector::new())))
        .with(MemFactory)
        .with(NullAioFactory)
        .with(NullFactory)
        .with(Qcow2Factory)
        .with(VmdkFactory)
        .with(RawFactory)
}

/// Runs a future to its end on this thread.
pub fn block_on<F: Future>(future: F) -> F::Output {
    block_core::io::exec::block_on(future)
}

/// What the host caches, and which writes are stable when they complete (`-t`).
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct CacheMode {
    /// The host's page cache is bypassed.
    pub direct: bool,
    /// Flushes do not reach the disk.
    pub no_flush: bool,
    /// Every write is stable when it completes: whoever writes to the node adds `FUA` to its
    /// requests, since this is no property of the node.
    pub writethrough: bool,
}

impl CacheMode {
    /// Through the page cache, stable when flushed.
    pub const WRITEBACK: Self = Self { direct: false, no_flush: false, writethrough: false };
    /// Through the page cache, never flushed: for data that can be made again.
    pub const UNSAFE: Self = Self { no_flush: true, ..Self::WRITEBACK };
    /// Past the page cache, stable when flushed.
    pub const NONE: Self = Self { direct: true, ..Self::WRITEBACK };

    /// The mode of this name: `none` (`off`), `directsync`, `writeback`, `unsafe`, `writethrough`.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "none" | "off" => Self::NONE,
            "directsync" => Self { writethrough: true, ..Self::NONE },
            "writeback" => Self::WRITEBACK,
            "unsafe" => Self::UNSAFE,
            "writethrough" => Self { writethrough: true, ..Self::WRITEBACK },
            _ => return None,
        })
    }
}

/// How the file driver does its requests (`-i`).
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum AioMode {
    /// A pool of threads.
    Threads,
    /// The kernel's older interface.
    Native,
    /// io_uring.
    IoUring,
}

impl AioMode {
    /// The mode of this name: `threads`, `native`, `io_uring`.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "threads" => Self::Threads,
            "native" => Self::Native,
            "io_uring" => Self::IoUring,
            _ => return None,
        })
    }

    /// The name that [`AioMode::parse`] reads.
    pub fn name(self) -> &'static str {
        match self {
            Self::Threads => "threads",
            Self::Native => "native",
            Self::IoUring => "io_uring",
        }
    }
}

/// Whether discards reach the storage (`-d`).
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum DiscardMode {
    /// They succeed and do nothing.
    Ignore,
    /// They are passed down.
    #[default]
    Unmap,
}

impl DiscardMode {
    /// The mode of this name: `ignore` (`off`), `unmap` (`on`).
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "ignore" | "off" => Self::Ignore,
            "unmap" | "on" => Self::Unmap,
            _ => return None,
        })
    }
}

/// An image as the command line names it, and how to open it.
#[derive(Clone, Debug)]
pub struct ImageSpec {
    /// File name, `scheme:name`, `json:{...}`, or options (see [`ImageSpec::image_opts`]).
    pub name: String,
    /// The driver (`-f`); probed where neither this nor the name's options say it.
    pub format: Option<String>,
    /// The name is `driver=...,file.filename=...`.
    pub image_opts: bool,
    /// More options of the node, which win over those in the name.
    pub options: Options,
    /// What the options name by `password-secret`: the secrets of the command line (`--object`).
    pub secrets: Secrets,
    /// Everything that no field below decides: `writable`, `no_io`, `no_backing`, `check`.
    pub flags: OpenFlags,
    /// Decides `flags.direct` and `flags.no_flush`.
    pub cache: CacheMode,
    /// `None`: the file driver chooses.
    pub aio: Option<AioMode>,
    /// Decides `flags.unmap`.
    pub discard: DiscardMode,
    /// What becomes of written zeroes.
    pub detect_zeroes: DetectZeroes,
    /// Decides `flags.force_share` (`-U`).
    pub force_share: bool,
    /// Opens the backing files writable too that so many images are above.
    pub writable_backing_depths: Range<usize>,
    /// Where writes go.
    pub writes: Writes,
    /// What becomes of data that is read from a backing file.
    pub backing_reads: BackingReads,
}

/// What becomes of data that is read from a backing file.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum BackingReads {
    /// Nothing.
    #[default]
    Pass,
    /// It is written to the image (`-C`).
    Copy,
}

/// Where the writes to an image go.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum Writes {
    /// To the image.
    #[default]
    Image,
    /// To an overlay that is gone when it is closed; the image itself is opened for reading.
    TemporaryOverlay,
}

impl ImageSpec {
    /// The image `name`, to be read, through the page cache, its format probed.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            format: None,
            image_opts: false,
            options: Options::new(),
            secrets: surroundings::secrets(),
            flags: OpenFlags::READ_ONLY,
            cache: CacheMode::WRITEBACK,
            aio: None,
            discard: DiscardMode::default(),
            detect_zeroes: DetectZeroes::Off,
            force_share: false,
            writable_backing_depths: 0..0,
            writes: Writes::Image,
            backing_reads: BackingReads::Pass,
        }
    }

    /// The flags with everything that the other fields decide.
    pub fn open_flags(&self) -> OpenFlags {
        OpenFlags {
            direct: self.cache.direct,
            no_flush: self.cache.no_flush,
            unmap: self.discard == DiscardMode::Unmap,
            force_share: self.force_share,
            ..self.flags
        }
    }

    /// The options of the node, flat.
    pub fn node_options(&self) -> Result<Options, SpecError> {
        let mut options = if self.image_opts {
            image_opts::parse(&self.name)?
        } else if let Some(text) = self.name.strip_prefix(json::PREFIX) {
            json::parse(text)?
        } else if self.name.is_empty() {
            Options::new()
        } else {
            Options::filename(self.name.clone())
        };
        if let Some(format) = &self.format {
            if self.image_opts {
                return Err(SpecError::FormatWithImageOpts);
            }
            options.set("driver", format.clone());
        }
        for (name, value) in self.options.iter() {
            options.set(name, value);
        }
        let detect_zeroes = match self.detect_zeroes {
            DetectZeroes::Off => None,
            DetectZeroes::On => Some("on"),
            DetectZeroes::Unmap => Some("unmap"),
        };
        if let (Some(mode), None) = (detect_zeroes, options.peek("detect-zeroes")) {
            options.set("detect-zeroes", mode);
        }
        self.secrets.reveal(&mut options)?;
        Ok(options)
    }
}

/// Opens an image with every driver that the tools know; warnings go to standard error.
pub async fn open(spec: &ImageSpec) -> Result<Node, SpecError> {
    let mut context = OpenContext::new(registry(), spec.open_flags());
    context.warn = Arc::new(|warning| complain(format_args!("WARNING: {}", shown(warning))));
    open_in(context, spec).await
}

/// [`open`] with a registry, budget and warnings of the caller's. The spec decides the flags.
pub async fn open_in(mut context: OpenContext, spec: &ImageSpec) -> Result<Node, SpecError> {
    context.flags = spec.open_flags();
    if context.flags.force_share && context.flags.writable && spec.writes == Writes::Image {
        return Err(SpecError::SharedWriter);
    }
    context.writable_backing_depths = spec.writable_backing_depths.clone();
    context.default_aio = spec.aio.map(AioMode::name);
    if spec.backing_reads == BackingReads::Copy {
        if !spec.flags.writable {
            return Err(SpecError::CopyToReadOnly);
        }
        let below = ImageSpec { backing_reads: BackingReads::Pass, ..spec.clone() };
        let node = Box::pin(open_in(context, &below)).await?;
        let options = node.options().clone();
        return Ok(Node::new(Arc::new(CopyOnReadDriver::new(node)), options));
    }
    if spec.writes == Writes::TemporaryOverlay {
        return temporary::open(context, spec).await;
    }
    let options = spec.node_options()?;
    let probed = options.peek("driver").is_none();
    let node = context.open(options).await?;
    if probed && node.driver().name() == "raw" && !node.is_read_only() {
        let name = shown(&spec.name);
        (context.warn)(&format!(
            "the format of '{name}' was not given and its contents look like none, so it is taken \
             as raw: writes that would make it look like another format are refused. Name the \
             format (-f raw) to lift this."
        ));
    }
    Ok(node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_names_of_modes_are_those_users_know() {
        assert_eq!(CacheMode::parse("writeback"), Some(CacheMode::WRITEBACK));
        assert_eq!(CacheMode::parse("off"), Some(CacheMode::NONE));
        let sync = CacheMode::parse("directsync").unwrap();
        assert!(sync.direct && sync.writethrough && !sync.no_flush);
        assert_eq!(CacheMode::parse("bogus"), None);
        for aio in [AioMode::Threads, AioMode::Native, AioMode::IoUring] {
            assert_eq!(AioMode::parse(aio.name()), Some(aio));
        }
        assert_eq!(DiscardMode::parse("on"), Some(DiscardMode::Unmap));
    }

    #[test]
    fn a_format_names_the_driver_even_of_a_json_name() {
        let mut spec = ImageSpec::new(r#"json:{"driver":"qcow2","file.filename":"x"}"#);
        assert_eq!(spec.node_options().unwrap().peek("driver"), Some("qcow2"));
        spec.format = Some("raw".to_owned());
        let options = spec.node_options().unwrap();
        assert_eq!(options.peek("driver"), Some("raw"));
        assert_eq!(options.peek("file.filename"), Some("x"));
    }

    #[test]
    fn image_opts_name_their_driver_themselves() {
        let mut spec = ImageSpec::new("driver=null-co,size=1M");
        spec.image_opts = true;
        let node = block_on(open(&spec)).unwrap();
        assert_eq!(node.len(), 1 << 20);
        spec.format = Some("raw".to_owned());
        let err = block_on(open(&spec)).unwrap_err();
        assert_eq!(err, SpecError::FormatWithImageOpts);
    }

    #[test]
    fn raw_opens_on_any_protocol() {
        let mut spec = ImageSpec::new("json:{'driver':'raw','file':{'driver':'mem','size':65536}}");
        spec.flags = OpenFlags::READ_WRITE;
        let node = block_on(open(&spec)).unwrap();
        assert_eq!((node.len(), node.is_read_only()), (65536, false));
    }

    proptest! {
        #[test]
        fn any_name_opens_or_is_refused(name in "(json:)?[{}\"',=:a-z0-9./]{0,40}") {
            let mut spec = ImageSpec::new(name);
            let _ = spec.node_options();
            spec.image_opts = true;
            let _ = spec.node_options();
        }
    }
}
