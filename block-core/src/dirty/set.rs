//! The dirty bitmaps of one node.
//!
//! Invariants: names are unique; every bitmap has the node's length; `state` tells whether any
//! bitmap records or is read-only, as of the last change under the lock.
//!
//! Lock order: `list` is a leaf; the closures given to [`DirtyBitmaps::with`] and
//! [`DirtyBitmaps::update`] run under it and must not call back into the node.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::bitmap::{BitmapInfo, DirtyBitmap};
use super::error::BitmapError;
use super::granules::Granularity;
use crate::range::ByteRange;

/// Some bitmap records.
const RECORDING: u8 = 1 << 0;
/// Some bitmap is read-only, so the disk must not be written.
const READ_ONLY: u8 = 1 << 1;

/// Names one bitmap of a node for as long as it exists; never used again for another.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BitmapId(u64);

/// The dirty bitmaps of one node.
#[derive(Debug)]
pub struct DirtyBitmaps {
    /// What there is to do for a write, read without the lock.
    state: AtomicU8,
    /// Counts the changes that are not made by writes.
    revision: AtomicU64,
    /// Guards the bitmaps, in the order in which they were added.
    list: Mutex<List>,
}

#[derive(Debug)]
struct List {
    /// Length of the node in bytes.
    len: u64,
    next_id: u64,
    bitmaps: Vec<(BitmapId, DirtyBitmap)>,
}

impl DirtyBitmaps {
    /// No bitmap yet, on a disk of `len` bytes.
    pub fn new(len: u64) -> Self {
        let list = List { len, next_id: 0, bitmaps: Vec::new() };
        Self { state: AtomicU8::new(0), revision: AtomicU64::new(0), list: Mutex::new(list) }
    }

    /// Whether any bitmap records writes. One atomic load.
    pub fn is_recording(&self) -> bool {
        self.state.load(Ordering::Acquire) & RECORDING != 0
    }

    /// Whether the node must refuse writes, because a bitmap could not record them. One atomic load.
    pub fn refuses_writes(&self) -> bool {
        self.state.load(Ordering::Acquire) & READ_ONLY != 0
    }

    /// Records a write, whether it succeeded or not; to be called when it ends, before its caller
    /// hears of it. One atomic load while nothing records.
    ///
    /// A write that grows the disk calls [`DirtyBitmaps::truncate`] first: what is beyond the length
    /// known here is not recorded.
    pub fn mark(&self, range: ByteRange) {
        if self.is_recording() {
            let mut list = self.list.lock();
            for (_, bitmap) in &mut list.bitmaps {
                bitmap.mark(range);
            }
        }
    }

    /// Follows the node to a new length. Bits beyond the end are dropped; what is added is clean
    /// until it is marked.
    pub fn truncate(&self, len: u64) {
        self.change(|list| list.truncate(len));
    }

    /// Follows a node that a write has made at least `len` bytes long. Never makes it shorter, so
    /// writes that grow the node together may report in any order.
    pub fn grow(&self, len: u64) {
        self.change(|list| {
            if len > list.len {
                list.truncate(len);
            }
        });
    }

    /// Adds a clean, enabled bitmap.
    pub fn create(
        &self,
        name: Option<&str>,
        granularity: Granularity,
    ) -> Result<BitmapId, BitmapError> {
        self.change(|list| {
            let bitmap = DirtyBitmap::new(name, granularity, list.len)?;
            list.add(bitmap)
        })
    }

    /// Adds a bitmap that was made elsewhere: loaded from an image, or removed before.
    pub fn insert(&self, bitmap: DirtyBitmap) -> Result<BitmapId, BitmapError> {
        self.change(|list| {
            if bitmap.len() != list.len {
                return Err(BitmapError::LengthDiffers {
                    target_len: list.len,
                    source_len: bitmap.len(),
                });
            }
            list.add(bitmap)
        })
    }

    /// Takes a bitmap out, if [`DirtyBitmap::check_removable`] allows it.
    pub fn remove(&self, id: BitmapId) -> Result<DirtyBitmap, BitmapError> {
        self.change(|list| {
            let at = list.position(id)?;
            list.bitmaps[at].1.check_removable()?;
            Ok(list.bitmaps.remove(at).1)
        })
    }

    /// The bitmap of this name.
    pub fn find(&self, name: &str) -> Option<BitmapId> {
        let list = self.list.lock();
        let found = list.bitmaps.iter().find(|(_, b)| b.name() == Some(name));
        found.map(|(id, _)| *id)
    }

    /// Every bitmap, in the order in which they were added.
    pub fn list(&self) -> Vec<(BitmapId, BitmapInfo)> {
        let list = self.list.lock();
        list.bitmaps.iter().map(|(id, b)| (*id, b.info())).collect()
    }

    /// Looks at a bitmap, under the lock.
    pub fn with<R>(
        &self,
        id: BitmapId,
        look: impl FnOnce(&DirtyBitmap) -> R,
    ) -> Result<R, BitmapError> {
        let list = self.list.lock();
        let at = list.position(id)?;
        Ok(look(&list.bitmaps[at].1))
    }

    /// Changes a bitmap, under the lock.
    pub fn update<R>(
        &self,
        id: BitmapId,
        change: impl FnOnce(&mut DirtyBitmap) -> R,
    ) -> Result<R, BitmapError> {
        self.change(|list| {
            let at = list.position(id)?;
            Ok(change(&mut list.bitmaps[at].1))
        })
    }

    /// Merges `sources` into `target`: all of them, or on an error none.
    pub fn merge(&self, target: BitmapId, sources: &[BitmapId]) -> Result<(), BitmapError> {
        self.change(|list| {
            let target = list.position(target)?;
            let mut positions = Vec::with_capacity(sources.len());
            for source in sources {
                let source = list.position(*source)?;
                list.bitmaps[target].1.check_merge(&list.bitmaps[source].1)?;
                positions.push(source);
            }
            for source in positions {
                // A bitmap merged into itself is what it was.
                if let Ok([(_, target), (_, source)]) =
                    list.bitmaps.get_disjoint_mut([target, source])
                {
                    target.merge(source)?;
                }
            }
            Ok(())
        })
    }

    /// A number that is another one after every change but the marks of writes. Who stores bitmaps tells
    /// by it whether there is anything new.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// The bitmaps that are to be stored in the image, in order.
    pub fn persistent(&self) -> Vec<BitmapId> {
        let list = self.list.lock();
        list.bitmaps.iter().filter(|(_, b)| b.is_persistent()).map(|(id, _)| *id).collect()
    }

    /// The image of the persistent ones is read-only from now on; see [`DirtyBitmaps::refuses_writes`].
    pub fn make_read_only(&self) {
        self.change(|list| list.persistent().for_each(DirtyBitmap::make_read_only));
    }

    /// The image of the persistent ones is writable from now on.
    pub fn make_writable(&self) {
        self.change(|list| list.persistent().for_each(DirtyBitmap::make_writable));
    }

    /// Runs `change` under the lock and brings `state` up to date before the lock is released.
    fn change<R>(&self, change: impl FnOnce(&mut List) -> R) -> R {
        let mut list = self.list.lock();
        let result = change(&mut list);
        self.revision.fetch_add(1, Ordering::AcqRel);
        self.state.store(list.state(), Ordering::Release);
        result
    }
}

impl List {
    fn persistent(&mut self) -> impl Iterator<Item = &mut DirtyBitmap> {
        self.bitmaps.iter_mut().map(|(_, bitmap)| bitmap).filter(|b| b.is_persistent())
    }

    fn truncate(&mut self, len: u64) {
        self.len = len;
        for (_, bitmap) in &mut self.bitmaps {
            bitmap.truncate(len);
        }
    }

    fn add(&mut self, bitmap: DirtyBitmap) -> Result<BitmapId, BitmapError> {
        if let Some(name) = bitmap.name()
            && self.bitmaps.iter().any(|(_, b)| b.name() == Some(name))
        {
            let name = name.to_owned();
            return Err(BitmapError::Exists { name });
        }
        let id = BitmapId(self.next_id);
        self.next_id += 1;
        self.bitmaps.push((id, bitmap));
        Ok(id)
    }

    fn position(&self, id: BitmapId) -> Result<usize, BitmapError> {
        let position = self.bitmaps.iter().position(|(i, _)| *i == id);
        position.ok_or(BitmapError::NotFound)
    }

    fn state(&self) -> u8 {
        let mut state = 0;
        for (_, bitmap) in &self.bitmaps {
            if bitmap.is_recording() {
                state |= RECORDING;
            }
            if bitmap.is_read_only() {
                state |= READ_ONLY;
            }
        }
        state
    }
}
