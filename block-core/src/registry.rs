//! Which drivers there are, and how a name or a set of options becomes a node.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Component, Path};
use std::sync::Arc;

use async_trait::async_trait;
use futures::future::BoxFuture;

use crate::ability::Measurement;
use crate::budget::MemoryBudget;
use crate::buf::IoBuf;
use crate::driver::{BlockDriver, ChildRole};
use crate::error::{OpenError, Problem};
use crate::graph;
use crate::made::MadeFiles;
use crate::node::{DetectZeroes, Node, NodeOptions};
use crate::options::{OpenFlags, Options};
use crate::range::{Alignment, ByteRange, to_usize};

/// Longest chain of backing files.
pub const MAX_CHAIN: usize = 200;

/// Bytes that the metadata caches of one chain share, unless the caller says otherwise.
pub const DEFAULT_CACHE_BYTES: u64 = 32 << 20;

/// Makes drivers of one name.
#[async_trait]
pub trait DriverFactory: Send + Sync + 'static {
    /// Name as users write it: `qcow2`.
    fn name(&self) -> &'static str;

    /// For a format: how sure it is (0: not at all, 100: certain) that an image of this name that
    /// starts with `head` (at most [`crate::registry::PROBE_BYTES`]) is its own.
    fn probe(&self, head: &[u8], filename: &str) -> u8 {
        let _ = (head, filename);
        0
    }

    /// For a protocol: the schemes of the names that it opens, without the colon.
    fn schemes(&self) -> &'static [&'static str] {
        &[]
    }

    /// Opens a node. Takes its options, opens its children by `context`, refuses what is left over.
    async fn open(
        &self,
        options: Options,
        context: OpenContext,
    ) -> Result<Arc<dyn BlockDriver>, OpenError>;

    /// For what can be made: the options of [`DriverFactory::create`], in the order in which tools tell
    /// what they make. Empty: it cannot be made.
    fn create_options(&self) -> &'static [CreateOption] {
        &[]
    }

    /// Makes an empty image: `filename` (for a format also `file.*`, which must exist then), `size`, and
    /// what [`DriverFactory::create_options`] names. Replaces what the file held.
    ///
    /// [`OpenContext::create_image`] gives up what was made when this fails.
    async fn create(&self, options: Options, context: OpenContext) -> Result<(), OpenError> {
        let _ = (options, context);
        Err(OpenError::Unsupported { driver: self.name(), what: "creating an image" })
    }

    /// Whether its images take compressed writes, unless they were made in a way that cannot.
    fn compresses(&self) -> bool {
        false
    }

    /// What an image made with the creation `options` would need to hold what `source` holds; an empty
    /// disk of `options`' `size` without a source.
    async fn measure(
        &self,
        options: Options,
        source: Option<Node>,
    ) -> Result<Measurement, OpenError> {
        let _ = (options, source);
        Err(OpenError::Unsupported { driver: self.name(), what: "measuring an image" })
    }
}

/// An option of creation, for help.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct CreateOption {
    /// Its name: `cluster_size`.
    pub name: &'static str,
    /// What kind of value it takes: `<size>`, `<bool (on/off)>`, `<str>`, `<num>`.
    pub value: &'static str,
    /// What it is for.
    pub help: &'static str,
    /// The value that it has where the user gives none, if that is worth telling.
    pub default: Option<&'static str>,
}

/// Bytes that a format sees when it is probed.
pub const PROBE_BYTES: u64 = 2048;

/// The role of a backing file in [`OpenContext::open_reference`].
pub const BACKING_FILE: &str = "backing file";

/// Which names that stand inside an image (backing file, data file) are followed.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum ReferencePolicy {
    /// Plain file names, absolute or relative to the image; never `json:` or a protocol. What follows `file:` is
    /// such a name, whatever is in it.
    #[default]
    PlainFiles,
    /// Plain relative names without `..`: nothing outside of the image's directory.
    SameDirectory,
    /// None.
    Refuse,
}

/// What an opening driver needs: the registry, the flags, the budget.
#[derive(Clone)]
pub struct OpenContext {
    /// To open children with.
    pub registry: Arc<Registry>,
    /// How to open.
    pub flags: OpenFlags,
    /// Shared by the metadata caches of the chain.
    pub budget: Arc<MemoryBudget>,
    /// Which names inside images are followed.
    pub policy: ReferencePolicy,
    /// How many images are above this one.
    pub depth: usize,
    /// The backing files that are opened writable, whatever `flags` say, by how many images are above each.
    /// For a commit.
    pub writable_backing_depths: Range<usize>,
    /// How files are read and written whose options do not say it (`aio`).
    pub default_aio: Option<&'static str>,
    /// Called with whatever needs saying that is no error: a probed format, a clock that is off.
    pub warn: Arc<dyn Fn(&str) + Send + Sync>,
    /// The `file` child, where probing has already opened it.
    opened: Option<Node>,
    /// The files that were made so far for a new image.
    pub(crate) made: MadeFiles,
}

impl OpenContext {
    /// A context with the default budget and policy, and nobody to warn.
    pub fn new(registry: Arc<Registry>, flags: OpenFlags) -> Self {
        Self {
            registry,
            flags,
            budget: MemoryBudget::new(DEFAULT_CACHE_BYTES),
            policy: ReferencePolicy::default(),
            depth: 0,
            writable_backing_depths: 0..0,
            default_aio: None,
            warn: Arc::new(|_| ()),
            opened: None,
            made: MadeFiles::default(),
        }
    }

    /// Opens a node from `options` (`filename`, `driver`, and what the driver takes).
    ///
    /// The chain of children opens by recursion: each level is boxed and keeps little on the stack,
    /// so that the longest chain fits on the stack of a thread.
    pub fn open(&self, options: Options) -> BoxFuture<'static, Result<Node, OpenError>> {
        Box::pin(self.clone().open_here(options))
    }

    /// Opens the child `name` from its part of `options` (`name.filename`, ...), or from `filename`
    /// itself for the child named `file`.
    pub async fn open_child(
        &mut self,
        options: &mut Options,
        name: &'static str,
    ) -> Result<Node, OpenError> {
        let mut sub = options.take_sub(name);
        if name == "file" {
            if let Some(node) = self.opened.take() {
                return Ok(node);
            }
            if let Some(filename) = options.take("filename") {
                sub.set("filename", filename);
            }
        }
        if sub.is_empty() {
            let option = name.to_owned();
            return Err(OpenError::Option { option, problem: Problem::Missing });
        }
        if sub.peek("driver").is_none() {
            // A child named by an option is a protocol: it is not probed for a format.
            let filename = sub.peek("filename").unwrap_or_default().to_owned();
            sub.set("driver", self.registry.protocol_of(&filename)?);
        }
        let context = Self { opened: None, ..self.clone() };
        context.open(sub).await
    }

    /// Opens the child `name` from its part of `options`, as the user names an image: its format is probed
    /// where no driver is named.
    pub async fn open_image(
        &self,
        options: &mut Options,
        name: &'static str,
    ) -> Result<Node, OpenError> {
        let sub = options.take_sub(name);
        if sub.is_empty() {
            let option = name.to_owned();
            return Err(OpenError::Option { option, problem: Problem::Missing });
        }
        Self { opened: None, ..self.clone() }.open(sub).await
    }

    /// Makes an image with `driver` ([`DriverFactory::create`]). When that fails, files that it has made
    /// are removed, and those that it has overwritten are empty: nobody takes half an image for a raw disk.
    pub async fn create_image(&self, driver: &str, options: Options) -> Result<(), OpenError> {
        let made = MadeFiles::default();
        let context = Self { made: made.clone(), ..self.clone() };
        let created = self.registry.get(driver)?.create(options, context).await;
        if created.is_err() {
            made.give_up().await;
        }
        created
    }

    /// Makes the storage of a new image and opens it for writing: `filename`, which its protocol makes
    /// empty, or `file.*`, which exists. `options` are what the format has left of its own: one that
    /// neither takes is refused before anything is made.
    pub async fn create_file(&self, mut options: Options) -> Result<Node, OpenError> {
        let writable = OpenFlags { writable: true, ..self.flags };
        let mut context = Self { flags: writable, opened: None, ..self.clone() };
        match options.take("filename") {
            Some(filename) => {
                let protocol = self.registry.protocol_of(&filename)?;
                // The protocol refuses what it does not know either, before it makes anything.
                let new = options.with("filename", &*filename).with("size", "0");
                self.registry.get(protocol)?.create(new, context.clone()).await?;
                context.open(Options::filename(filename).with("driver", protocol)).await
            }
            None => {
                let file = options.take_sub("file");
                options.finish()?;
                let mut child = Options::new();
                for (name, value) in file.iter() {
                    child.set(format!("file.{name}"), value);
                }
                context.open_child(&mut child, "file").await
            }
        }
    }

    /// Opens what `name` inside the image `parent` refers to: the backing file (`format` probed if
    /// not given) or a data file. `options` are the user's for this child and override the name.
    pub async fn open_reference(
        &self,
        role: &'static str,
        parent: &Node,
        name: &str,
        format: Option<&str>,
        mut options: Options,
    ) -> Result<Node, OpenError> {
        if self.depth >= MAX_CHAIN {
            let problem = Problem::ChainTooLong(MAX_CHAIN);
            return Err(OpenError::Reference { name: name.to_owned(), problem });
        }
        if options.peek("filename").is_none() && options.peek("file.filename").is_none() {
            options.set("filename", self.resolve(parent, name)?);
        }
        if let (None, Some(format)) = (options.peek("driver"), format) {
            options.set("driver", format);
        }
        let mut context = Self { depth: self.depth + 1, opened: None, ..self.clone() };
        if role == BACKING_FILE {
            context.flags.writable = self.writable_backing_depths.contains(&context.depth);
        }
        context.open(options).await.map_err(|source| match source {
            // Else every image of the chain would stand in the message.
            long @ OpenError::Reference { problem: Problem::ChainTooLong(_), .. } => long,
            source => OpenError::Child { role, name: name.to_owned(), source: Box::new(source) },
        })
    }

    /// The path that `name` inside the image `parent` means, if the policy follows it.
    pub fn resolve(&self, parent: &Node, name: &str) -> Result<String, OpenError> {
        self.resolve_beside(&filename_of(parent).unwrap_or_default(), name)
    }

    /// The path that `name` means inside an image of the path `image`, if the policy follows it.
    pub fn resolve_beside(&self, image: &str, name: &str) -> Result<String, OpenError> {
        let refuse = |problem| Err(OpenError::Reference { name: name.to_owned(), problem });
        let plain = file_of(name).unwrap_or_default();
        if plain.is_empty() || self.policy == ReferencePolicy::Refuse {
            return refuse(Problem::NotPlainName);
        }
        let path = Path::new(plain);
        let inside =
            path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        if self.policy == ReferencePolicy::SameDirectory && !inside {
            return refuse(Problem::NotPlainName);
        }
        let directory = Path::new(file_of(image).unwrap_or(image)).parent();
        let beside = directory.unwrap_or(Path::new("")).join(path);
        match beside.into_os_string().into_string() {
            // Or it were taken for a protocol's.
            Ok(path) if has_scheme(&path) && file_of(image).is_some() => Ok(format!("./{path}")),
            Ok(path) => Ok(path),
            Err(_) => refuse(Problem::NotText),
        }
    }

    /// Whether the format being opened was guessed from the file's contents.
    pub fn is_probed(&self) -> bool {
        self.opened.is_some()
    }

    async fn open_here(mut self, mut options: Options) -> Result<Node, OpenError> {
        let node_options = self.take_node_options(&mut options)?;
        let factory = match options.take("driver") {
            Some(name) => Arc::clone(self.registry.get(&name)?),
            None => {
                let file = self.open_child(&mut options, "file").await?;
                let factory = self.probe(&file).await?;
                self.opened = Some(file);
                factory
            }
        };
        // Who looks at metadata only, or mends it, has no use for bitmaps.
        let bitmaps = !self.flags.no_io && !self.flags.check;
        let driver = factory.open(options, self).await?;
        let node = Node::new(driver, node_options);
        if bitmaps {
            let load: BoxFuture<'_, _> = Box::pin(graph::load_bitmaps(&node));
            load.await?;
        }
        Ok(node)
    }

    /// Takes the options that belong to every node, and changes the flags accordingly.
    fn take_node_options(&mut self, options: &mut Options) -> Result<NodeOptions, OpenError> {
        let unknown = |option: &str| OpenError::Option {
            option: option.to_owned(),
            problem: Problem::Unknown,
        };
        if let Some(read_only) = options.take_bool("read-only")? {
            self.flags.writable &= !read_only;
        }
        if let Some(direct) = options.take_bool("cache.direct")? {
            self.flags.direct = direct;
        }
        if let Some(no_flush) = options.take_bool("cache.no-flush")? {
            self.flags.no_flush = no_flush;
        }
        if let Some(force_share) = options.take_bool("force-share")? {
            self.flags.force_share = force_share;
        }
        match options.take("discard").as_deref() {
            None => {}
            Some("unmap" | "on") => self.flags.unmap = true,
            Some("ignore" | "off") => self.flags.unmap = false,
            Some(_) => return Err(unknown("discard")),
        }
        let detect_zeroes = match options.take("detect-zeroes").as_deref() {
            None | Some("off") => DetectZeroes::Off,
            Some("on") => DetectZeroes::On,
            Some("unmap") if self.flags.unmap => DetectZeroes::Unmap,
            Some(_) => return Err(unknown("detect-zeroes")),
        };
        Ok(NodeOptions {
            node_name: options.take("node-name").unwrap_or_default(),
            detect_zeroes,
            unmap: self.flags.unmap,
            no_flush: self.flags.no_flush,
        })
    }

    /// The format whose probe is surest of what `file` starts with; `raw` where none is.
    async fn probe(&self, file: &Node) -> Result<Arc<dyn DriverFactory>, OpenError> {
        let request = |error| OpenError::Request { what: "format probe", error };
        let range = ByteRange::up_to(PROBE_BYTES);
        let buf = IoBuf::zeroed(to_usize(PROBE_BYTES), Alignment::PAGE).map_err(request)?;
        file.read(range, buf.clone().into()).await.map_err(request)?;
        let mut head = buf.to_vec();
        head.truncate(to_usize(file.len().min(PROBE_BYTES)));
        let name = filename_of(file).unwrap_or_default();
        match self.registry.surest(&head, &name) {
            Some(factory) => Ok(Arc::clone(factory)),
            None => Ok(Arc::clone(self.registry.get("raw")?)),
        }
    }
}

/// The drivers by name.
#[derive(Default)]
pub struct Registry {
    factories: BTreeMap<&'static str, Arc<dyn DriverFactory>>,
}

impl Registry {
    /// No driver at all.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a driver, in place of one of the same name.
    #[must_use]
    pub fn with(mut self, factory: impl DriverFactory) -> Self {
        self.factories.insert(factory.name(), Arc::new(factory));
        self
    }

    /// The names of all drivers, sorted.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.factories.keys().copied()
    }

    /// The driver of this name.
    pub fn get(&self, name: &str) -> Result<&Arc<dyn DriverFactory>, OpenError> {
        let unknown = || OpenError::UnknownDriver { name: name.to_owned() };
        self.factories.get(name).ok_or_else(unknown)
    }

    /// The format whose probe is surest of `head`, if any is.
    fn surest(&self, head: &[u8], filename: &str) -> Option<&Arc<dyn DriverFactory>> {
        let scored = self.factories.values().map(|f| (f.probe(head, filename), f));
        scored.filter(|(score, _)| *score > 0).max_by_key(|(score, _)| *score).map(|(_, f)| f)
    }

    /// Whether a probe of `head` would see any format but raw.
    pub fn looks_like_a_format(&self, head: &[u8]) -> bool {
        self.surest(head, "").is_some()
    }

    /// The protocol that opens `filename`: by its scheme, or `file`.
    pub fn protocol_of(&self, filename: &str) -> Result<&'static str, OpenError> {
        if !has_scheme(filename) {
            return Ok(self.get("file")?.name());
        }
        let scheme = filename.split(':').next().unwrap_or_default();
        let found = self.factories.values().find(|f| f.schemes().contains(&scheme));
        let unknown = || OpenError::UnknownDriver { name: scheme.to_owned() };
        Ok(found.ok_or_else(unknown)?.name())
    }
}

/// The path that a name is, unless it is a protocol's: what follows `file:`, whatever is in it, or all of it.
fn file_of(name: &str) -> Option<&str> {
    name.strip_prefix("file:").or_else(|| Some(name).filter(|name| !has_scheme(name)))
}

/// Whether a name starts with `scheme:` rather than being a path.
fn has_scheme(name: &str) -> bool {
    name.split('/').next().is_some_and(|first| first.contains(':'))
}

/// The name by which the user knows the storage below `node`.
fn filename_of(node: &Node) -> Option<String> {
    let own = node.driver().info().filename;
    own.or_else(|| {
        let below = node.children().into_iter().find(|c| c.role != ChildRole::Cow)?;
        filename_of(&below.node)
    })
}
