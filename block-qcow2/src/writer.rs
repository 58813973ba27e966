//! What an image has only if it is open for writing, and the options for that.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use block_core::budget::MemoryBudget;
use block_core::error::Problem;
use block_core::{OpenError, Options};

use crate::alloc::{Meta, Reason};
use crate::geometry::{Geometry, Version};
use crate::overlap::{Guard, Guarded, OverlapMap};
use crate::persist_bitmap::BitmapGuard;

/// The state of a writable image.
pub(crate) struct Writer {
    /// The metadata lock: planning and linking, never data. After `writeback` in the lock order.
    pub(crate) meta: futures::lock::Mutex<Meta>,
    /// Held by the one write-back that is under way. First in the lock order.
    pub(crate) writeback: futures::lock::Mutex<()>,
    pub(crate) overlap: Arc<OverlapMap>,
    pub(crate) discards: PassDiscards,
    pub(crate) freeing: Freeing,
    pub(crate) lazy: LazyRefcounts,
    /// Whether the corrupt bit was set.
    pub(crate) marked_corrupt: AtomicBool,
    pub(crate) options: WriterOptions,
    pub(crate) budget: Arc<MemoryBudget>,
    pub(crate) bitmaps: BitmapGuard,
}

/// Which freed clusters are punched out of the file.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct PassDiscards {
    request: bool,
    snapshot: bool,
    other: bool,
}

impl PassDiscards {
    pub(crate) fn passes(self, reason: Reason) -> bool {
        match reason {
            Reason::Request => self.request,
            Reason::Snapshot => self.snapshot,
            Reason::Other => self.other,
        }
    }
}

/// What a discard does with the host cluster.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Freeing {
    /// It is given back.
    GiveBack,
    /// It stays where it is, punched out (`discard-no-unref`).
    Keep,
}

/// When refcounts are written.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum LazyRefcounts {
    /// When the image is closed; until then the image is marked dirty.
    On,
    /// At every flush.
    Off,
}

/// Options of a writable image.
#[derive(Clone, Debug)]
pub(crate) struct WriterOptions {
    lazy: Option<bool>,
    request: Option<bool>,
    snapshot: bool,
    other: bool,
    no_unref: bool,
    pub(crate) guarded: Guarded,
    pub(crate) refcount_cache_bytes: Option<u64>,
}

impl WriterOptions {
    /// Takes them from `options`. Good for images that are opened for reading, too.
    pub(crate) fn take(options: &mut Options) -> Result<Self, OpenError> {
        Ok(Self {
            lazy: options.take_bool("lazy-refcounts")?,
            request: options.take_bool("pass-discard-request")?,
            snapshot: options.take_bool("pass-discard-snapshot")?.unwrap_or(true),
            other: options.take_bool("pass-discard-other")?.unwrap_or(false),
            no_unref: options.take_bool("discard-no-unref")?.unwrap_or(false),
            guarded: take_guarded(options)?,
            refcount_cache_bytes: options.take_size("refcount-cache-size")?,
        })
    }

    /// What they say for an image of this geometry.
    pub(crate) fn apply(
        &self,
        geometry: Geometry,
        lazy_in_header: bool,
        unmap: bool,
    ) -> Result<(PassDiscards, Freeing, LazyRefcounts), OpenError> {
        let v2 = geometry.version() == Version::V2;
        for (set, name) in
            [(self.lazy, "lazy-refcounts"), (Some(self.no_unref), "discard-no-unref")]
        {
            if v2 && set == Some(true) {
                let problem = Problem::Contradicts("version 2 of the format");
                return Err(OpenError::Option { option: name.to_owned(), problem });
            }
        }
        let discards = PassDiscards {
            request: self.request.unwrap_or(unmap),
            snapshot: self.snapshot,
            other: self.other,
        };
        let freeing = if self.no_unref { Freeing::Keep } else { Freeing::GiveBack };
        let lazy = if self.lazy.unwrap_or(lazy_in_header) {
            LazyRefcounts::On
        } else {
            LazyRefcounts::Off
        };
        Ok((discards, freeing, lazy))
    }
}

/// `overlap-check`, or `overlap-check.template` and one option for each section.
fn take_guarded(options: &mut Options) -> Result<Guarded, OpenError> {
    let short = options.take("overlap-check");
    let long = options.take("overlap-check.template");
    let mut guarded = match short.or(long).as_deref() {
        None => Guarded::CACHED,
        Some(name) => Guarded::template(name).ok_or_else(|| OpenError::Option {
            option: "overlap-check".to_owned(),
            problem: Problem::Unknown,
        })?,
    };
    for (section, name) in Guarded::names() {
        let single = options.take_bool(&format!("overlap-check.{name}"))?;
        guarded = match single {
            None => guarded,
            Some(true) => guarded.with(section, Guard::On),
            Some(false) => guarded.with(section, Guard::Off),
        };
    }
    Ok(guarded)
}
