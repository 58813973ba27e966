//! Opening, reopening and resizing: `open`, `reopen`, `truncate`, `flush`.
//!
//! What a driver cannot change while its image is open is changed by opening the image again.

use block_core::backend::{BlockBackend, WriteCache};
use block_core::driver::{Exactness, Prealloc, ReopenOptions};
use block_core::{Node, OpenError, OpenFlags, Options, graph};

use super::{Failure, Session, open_failure, size, sort};
use crate::open::{self, AioMode, BackingReads, CacheMode, DiscardMode, ImageSpec, Writes};
use crate::spec::image_opts;

impl Session {
    pub(super) async fn open_image(&mut self, spec: &ImageSpec) -> Result<(), Failure> {
        if self.image.is_some() {
            return Err(self.named("file open already, try 'help close'"));
        }
        let opened = open::open(spec).await;
        let node = opened.map_err(|error| open_failure(self.name, spec, &error))?;
        self.hold(node, spec.clone());
        Ok(())
    }

    /// Makes an open image that of the session.
    fn hold(&mut self, node: Node, spec: ImageSpec) {
        self.listen_to_breakpoints(&node);
        self.image = Some(BlockBackend::new(node, write_cache(spec.cache)).in_sectors());
        self.spec = Some(spec);
    }

    pub(super) async fn open_command(&mut self, words: &[&str]) -> Result<(), Failure> {
        let parsed = sort("open", words, "rsnCkUi:t:d:o:")?;
        let mut spec = ImageSpec::new("");
        spec.flags = OpenFlags::READ_WRITE;
        spec.secrets = self.secrets.clone();
        for (letter, value) in parsed.options() {
            match letter {
                'r' => spec.flags.writable = false,
                's' => spec.writes = Writes::TemporaryOverlay,
                'n' => spec.cache = CacheMode::NONE,
                'C' => spec.backing_reads = BackingReads::Copy,
                'k' => spec.aio = Some(AioMode::Native),
                'U' => spec.force_share = true,
                'i' => spec.aio = Some(self.mode("aio", value, AioMode::parse)?),
                't' => spec.cache = self.mode("cache", value, CacheMode::parse)?,
                'd' => spec.discard = self.mode("discard", value, DiscardMode::parse)?,
                _ => spec.options = image_opts::parse(value).map_err(|error| self.named(error))?,
            }
        }
        match parsed.args.as_slice() {
            [] if !spec.options.is_empty() => {}
            [name] => spec.name = (*name).to_owned(),
            _ => return Err(Failure::Usage(None)),
        }
        self.open_image(&spec).await
    }

    /// A mode by its name.
    fn mode<T>(
        &self,
        what: &str,
        name: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, Failure> {
        parse(name).ok_or_else(|| self.named(format_args!("Invalid {what} option: {name}")))
    }

    pub(super) async fn reopen(&mut self, words: &[&str]) -> Result<(), Failure> {
        let parsed = sort("reopen", words, "rwc:o:")?;
        if !parsed.args.is_empty() {
            return Err(Failure::Usage(None));
        }
        if parsed.has('r') && parsed.has('w') {
            return Err(self.named("Only one -r/-w option may be given"));
        }
        let mut change = ReopenOptions::default();
        if parsed.has('r') || parsed.has('w') {
            change.read_only = Some(parsed.has('r'));
        }
        let mut spec = self.spec.clone().ok_or(Failure::Told)?;
        if let Some(name) = parsed.value('c') {
            spec.cache = self.mode("cache", name, CacheMode::parse)?;
            change.direct = Some(spec.cache.direct);
            change.no_flush = Some(spec.cache.no_flush);
        }
        let mut options = Options::new();
        if let Some(text) = parsed.value('o') {
            options = image_opts::parse(text).map_err(|error| self.named(error))?;
            self.take_reopen_options(&mut options, &mut change)?;
        }
        spec.flags.writable = change.read_only.map_or(spec.flags.writable, |read_only| !read_only);
        spec.cache.direct = change.direct.unwrap_or(spec.cache.direct);
        spec.cache.no_flush = change.no_flush.unwrap_or(spec.cache.no_flush);
        self.pending.finish(&mut self.out).await;
        let node = self.image()?.node().clone();
        self.drop_unchanged(&node, &mut options)?;
        if !options.is_empty() {
            return self.open_again(spec, &options).await;
        }
        match graph::reopen(&graph::image_changes(&node, change)).await {
            Ok(()) => {
                self.hold(node, spec);
                Ok(())
            }
            // What writing needs may be read only when an image is opened.
            Err(OpenError::Unsupported { .. }) if change.read_only == Some(false) => {
                self.open_again(spec, &options).await
            }
            Err(error) => Err(self.named(error)),
        }
    }

    /// Moves what every driver can change from `-o` to a change; a setting asked for twice is refused.
    fn take_reopen_options(
        &self,
        options: &mut Options,
        change: &mut ReopenOptions,
    ) -> Result<(), Failure> {
        let settings = [
            ("read-only", "Cannot set both -r/-w and 'read-only'", &mut change.read_only),
            ("cache.direct", "Cannot set both -c and the cache options", &mut change.direct),
            ("cache.no-flush", "Cannot set both -c and the cache options", &mut change.no_flush),
        ];
        for (name, twice, setting) in settings {
            let value = options.take_bool(name).map_err(|error| self.named(error))?;
            if value.is_some() && setting.is_some() {
                return Err(self.named(twice));
            }
            *setting = setting.or(value);
        }
        Ok(())
    }

    /// Takes from `options` the names of nodes and drivers that are what they were; others are refused.
    fn drop_unchanged(&self, root: &Node, options: &mut Options) -> Result<(), Failure> {
        let names: Vec<String> = options.iter().map(|(name, _)| name.to_owned()).collect();
        for name in names {
            let (path, option) = name.rsplit_once('.').unwrap_or(("", &name));
            if !matches!(option, "driver" | "node-name") {
                continue;
            }
            let found = below(root, path);
            let is = found.as_ref().map(|node| match option {
                "driver" => node.driver().name(),
                _ => node.options().node_name.as_str(),
            });
            if is != options.take(&name).as_deref() {
                return Err(self.named(format_args!("Cannot change the option '{option}'")));
            }
        }
        Ok(())
    }

    /// Opens the image again with other options of its drivers, which do not change while it is open. If
    /// it cannot be opened with them, it is opened as it was.
    async fn open_again(&mut self, mut spec: ImageSpec, more: &Options) -> Result<(), Failure> {
        if spec.writes == Writes::TemporaryOverlay {
            return Err(self.named("a temporary overlay keeps its options"));
        }
        let before = self.spec.clone().ok_or(Failure::Told)?;
        for (name, value) in more.iter() {
            spec.options.set(name, value);
        }
        self.close_image().await?;
        let refused = match open::open(&spec).await {
            Ok(node) => {
                self.hold(node, spec);
                return Ok(());
            }
            Err(error) => self.named(error),
        };
        // If this fails, too, it says so, and there is no image any more.
        self.open_image(&before).await?;
        Err(refused)
    }

    pub(super) async fn truncate(&mut self, words: &[&str]) -> Result<(), Failure> {
        let parsed = sort("truncate", words, "m:")?;
        let prealloc = match parsed.value('m') {
            None | Some("off") => Prealloc::Off,
            Some("metadata") => Prealloc::Metadata,
            Some("falloc") => Prealloc::Falloc,
            Some("full") => Prealloc::Full,
            Some(other) => {
                return Err(self.named(format_args!("Invalid preallocation mode '{other}'")));
            }
        };
        let Some(text) = parsed.args.first() else {
            return Err(Failure::Usage(None));
        };
        let len = size(text)?;
        if prealloc != Prealloc::Off && len < self.image()?.len() {
            return Err(self.named("a disk that shrinks takes no preallocation"));
        }
        let request = self.image()?.truncate(len, Exactness::AtLeast, prealloc);
        let result = self.pending.wait(&mut self.out, request).await;
        result.map_err(|error| {
            self.named(format_args!("Could not resize the image: {}", error.errno_text()))
        })
    }

    pub(super) async fn flush(&mut self) -> Result<(), Failure> {
        let request = self.image()?.flush();
        let result = self.pending.wait(&mut self.out, request).await;
        result.map_err(|error| self.named(format_args!("flush failed: {}", error.errno_text())))
    }
}

/// The node at the end of a path of children's names; `root` itself if it is empty.
fn below(root: &Node, path: &str) -> Option<Node> {
    let mut node = root.clone();
    for name in path.split('.').filter(|name| !name.is_empty()) {
        node = node.children().into_iter().find(|child| child.name == name)?.node;
    }
    Some(node)
}

/// When writes through a backend count as done under a cache mode.
fn write_cache(mode: CacheMode) -> WriteCache {
    if mode.writethrough { WriteCache::Writethrough } else { WriteCache::Writeback }
}
