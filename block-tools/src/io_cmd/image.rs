//! Opening, reopening and resizing: `open`, `reopen`, `truncate`, `flush`.

use block_core::backend::{BlockBackend, WriteCache};
use block_core::driver::{Exactness, Prealloc, ReopenOptions};
use block_core::{OpenError, OpenFlags, graph};

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
        self.listen_to_breakpoints(&node);
        self.image = Some(BlockBackend::new(node, write_cache(spec.cache)));
        self.spec = Some(spec.clone());
        Ok(())
    }

    /// Opens the image for writing that is open for reading, as a driver cannot that has not read what
    /// writing needs. If that fails, the image is open as it was.
    async fn open_for_writing(&mut self, change: &ReopenOptions) -> Result<(), Failure> {
        let old = self.spec.clone().ok_or(Failure::Told)?;
        let mut new = old.clone();
        new.flags.writable = true;
        new.cache.direct = change.direct.unwrap_or(old.cache.direct);
        new.cache.no_flush = change.no_flush.unwrap_or(old.cache.no_flush);
        self.close_image().await?;
        let opened = self.open_image(&new).await;
        if opened.is_err() {
            self.open_image(&old).await?;
        }
        opened
    }

    pub(super) async fn open_command(&mut self, words: &[&str]) -> Result<(), Failure> {
        let parsed = sort("open", words, "rsnCkUi:t:d:o:")?;
        let mut spec = ImageSpec::new("");
        spec.flags = OpenFlags::READ_WRITE;
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
        let mut cache = None;
        if parsed.has('r') || parsed.has('w') {
            change.read_only = Some(parsed.has('r'));
        }
        if let Some(name) = parsed.value('c') {
            let mode = self.mode("cache", name, CacheMode::parse)?;
            change.direct = Some(mode.direct);
            change.no_flush = Some(mode.no_flush);
            cache = Some(write_cache(mode));
        }
        if let Some(text) = parsed.value('o') {
            self.reopen_options(text, &mut change)?;
        }
        self.pending.finish(&mut self.out).await;
        let node = self.image()?.node().clone();
        match graph::reopen(&graph::image_changes(&node, change)).await {
            Err(OpenError::Unsupported { .. })
                if change.read_only == Some(false) && node.is_read_only() =>
            {
                drop(node);
                self.open_for_writing(&change).await?;
            }
            changed => changed.map_err(|error| self.named(error))?,
        }
        if let Some(cache) = cache {
            let node = self.image()?.node().clone();
            self.image = Some(BlockBackend::new(node, cache));
        }
        Ok(())
    }

    /// Adds what `-o` asks for to a change; a setting asked for twice is refused.
    fn reopen_options(&self, text: &str, change: &mut ReopenOptions) -> Result<(), Failure> {
        let mut options = image_opts::parse(text).map_err(|error| self.named(error))?;
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
        match options.iter().next() {
            None => Ok(()),
            Some((name, _)) => Err(self.named(format_args!("Cannot change the option '{name}'"))),
        }
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

/// When writes through a backend count as done under a cache mode.
fn write_cache(mode: CacheMode) -> WriteCache {
    if mode.writethrough { WriteCache::Writethrough } else { WriteCache::Writeback }
}
