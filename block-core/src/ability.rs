//! What only some formats can do, beside requests: each a trait of its own, reached by
//! `BlockDriver::as_*`.
//!
//! Everything here is control plane: the caller sees to it that nobody else changes the image
//! meanwhile. Requests may be in flight; a driver waits for them where it must.
//!
//! A change that was begun is finished, as a request is: if its future is dropped, the rest runs detached
//! ([`to_the_end`](crate::io::exec::to_the_end)). [`PersistentBitmaps`] borrow what they work on, and leave
//! that to [`graph`](crate::graph).

use std::sync::Arc;

use async_trait::async_trait;
use futures::future::BoxFuture;

use crate::buf::IoVec;
use crate::dirty::DirtyBitmaps;
use crate::error::{OpenError, Result};
use crate::info::SnapshotInfo;
use crate::options::Options;

/// A snapshot that is to be taken.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NewSnapshot {
    /// Its name.
    pub name: String,
    /// When: seconds since 1970. Libraries read no clock, so the caller says it.
    pub date_seconds: u32,
    /// Nanoseconds part of the date.
    pub date_nanoseconds: u32,
}

/// Internal snapshots of a format. `which` is an id or, if no snapshot has that id, a name.
#[async_trait]
pub trait Snapshots: Send + Sync {
    /// All of them, in the order of the image.
    fn list(&self) -> Vec<SnapshotInfo>;

    /// Takes a snapshot of the disk as it is once every write that has begun is done.
    async fn create(&self, new: &NewSnapshot) -> Result<()>;

    /// Makes the disk what it was when the snapshot was taken. `ENOENT` if there is none.
    async fn apply(&self, which: &str) -> Result<()>;

    /// Deletes a snapshot. `ENOENT` if there is none.
    async fn delete(&self, which: &str) -> Result<()>;
}

/// What a check may change.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum Repair {
    /// Nothing.
    #[default]
    Nothing,
    /// Space that nothing refers to is given back.
    Leaks,
    /// Refcounts, and the flags that follow from them: all that a writer which was cut off may have left
    /// wrong. No entry is dropped; an image with other damage is left as it is.
    Refcounts,
    /// Everything that can be told from what is there.
    All,
}

/// What a check found and mended.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct CheckReport {
    /// Errors that are still there.
    pub corruptions: u64,
    /// Leaked clusters that are still there.
    pub leaks: u64,
    /// Structures that could not be looked at.
    pub check_errors: u64,
    /// Errors that were mended.
    pub corruptions_fixed: u64,
    /// Leaked clusters that were given back.
    pub leaks_fixed: u64,
    /// One past the last byte of the image file that is in use.
    pub image_end_offset: u64,
    /// Clusters of the disk.
    pub total_clusters: u64,
    /// Of them, those that are allocated.
    pub allocated_clusters: u64,
    /// Of those, the ones that do not follow their neighbour in the file.
    pub fragmented_clusters: u64,
    /// Of the allocated ones, those that are compressed.
    pub compressed_clusters: u64,
}

/// How bad a finding is.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Severity {
    /// Data is at risk.
    Corruption,
    /// Space is lost, nothing else.
    Leak,
    /// Something could not be looked at.
    CheckError,
    /// A repair was made.
    Repaired,
}

/// One thing that a check has to say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What and where, for people.
    pub text: String,
}

/// Where the findings of a check go.
pub type FindingSink = Arc<dyn Fn(Finding) + Send + Sync>;

/// Consistency check of a format.
#[async_trait]
pub trait Check: Send + Sync {
    /// Checks the image and mends what `repair` allows. Each finding goes to `found` at once, so that
    /// nothing grows with the damage.
    ///
    /// Where nothing is written, a check that is dropped stops.
    async fn check(&self, repair: Repair, found: FindingSink) -> Result<CheckReport>;
}

/// How far a long change of an image is: `done` of `total`, in units of the change's own.
pub type ProgressSink = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// Changes of the format's own options.
#[async_trait]
pub trait Amend: Send + Sync {
    /// Changes what `options` name (`compat`, `size`, ...). Refuses before it changes anything what it
    /// cannot change.
    async fn amend(&self, options: Options, progress: ProgressSink) -> Result<(), OpenError>;
}

/// Dirty bitmaps that live in the image.
///
/// [`Registry`](crate::Registry) loads them into a node's bitmaps when it opens the node, and
/// [`Node::close`](crate::Node::close) stores them. Before the first change of the disk the image
/// marks them as in use, so that a crash is seen: who finds the mark lists them as inconsistent, and
/// they can only be removed.
///
/// Who makes a node without the registry calls [`graph::load_bitmaps`](crate::graph::load_bitmaps). A
/// driver that is written to without that has no bitmaps to record in: it marks those of the image as in
/// use all the same, and does not store, so they are never taken for good.
///
/// A bitmap is added to an open writable node like this, and is in the image once the node is closed:
///
/// ```
/// use block_core::Node;
/// use block_core::dirty::{DirtyBitmap, Granularity};
///
/// fn add(node: &Node, name: &str) -> Result<(), Box<dyn std::error::Error>> {
///     let storage = node.driver().as_bitmaps().ok_or("the format has no bitmaps")?;
///     let granularity = Granularity::for_cluster_size(node.driver().info().cluster_size);
///     storage.can_store(name, granularity.bytes())?;
///     let mut bitmap = DirtyBitmap::new(Some(name), granularity, node.len())?;
///     bitmap.make_persistent()?;
///     node.dirty_bitmaps().insert(bitmap)?;
///     Ok(())
/// }
/// ```
///
/// A disabled bitmap ([`DirtyBitmap::disable`](crate::dirty::DirtyBitmap::disable)) is stored as one
/// that does not record when the image is next opened.
#[async_trait]
pub trait PersistentBitmaps: Send + Sync {
    /// Puts the image's bitmaps into `into`, which has the disk's length: read-only ones if the image is
    /// open for reading. On an error `into` may have some of them.
    async fn load(&self, into: &DirtyBitmaps) -> Result<(), OpenError>;

    /// Writes the persistent ones of `from` to the image, in place of all that it has. The next change
    /// of the disk marks them as in use again. On an error the image has its old bitmaps, in use if
    /// the disk was changed.
    ///
    /// No write may be in flight, nor finished without having been marked: see
    /// [`graph::store_bitmaps`](crate::graph::store_bitmaps), which drains the node. Without a
    /// [`PersistentBitmaps::load`] before it, it fails with `Invalid` where it would lose bitmaps.
    async fn store(&self, from: &DirtyBitmaps) -> Result<()>;

    /// Whether a bitmap of this name and granularity (in bytes) could be stored beside those that the
    /// image has, before it is made: `ReadOnly`, `Unsupported` (version of the format), `Invalid` (name,
    /// granularity, empty disk), or `EFBIG`.
    fn can_store(&self, name: &str, granularity: u64) -> Result<()>;
}

/// Changes of what an image is to others: its backing file, its whole contents.
#[async_trait]
pub trait Rebase: Send + Sync {
    /// Writes another backing file name and format to the header; `None`: no backing file. What the
    /// node reads does not change until it is opened again.
    async fn change_backing(
        &self,
        name: Option<&str>,
        format: Option<&str>,
    ) -> Result<(), OpenError>;

    /// Refuses what [`Rebase::change_backing`] would refuse, as far as that can be told beforehand; changes
    /// nothing.
    async fn check_backing(&self, _: Option<&str>, _: Option<&str>) -> Result<(), OpenError> {
        Ok(())
    }

    /// Whether the image names a state of its backing file rather than a file: after the backing file was
    /// changed on purpose, it must be named again.
    fn names_state(&self) -> bool {
        false
    }

    /// Gives the state that the image will have after the changes to come another name than it has now, if images on
    /// top of it name its state and it was not done since it was opened. Stable when this returns.
    async fn renew_state(&self) -> Result<()> {
        Ok(())
    }

    /// Names the state that the backing file has now, where the image names states and the backing file is open for
    /// writing. Stable when this returns.
    async fn follow_backing(&self) -> Result<()> {
        Ok(())
    }

    /// Drops all of the image's own data, so that the backing file shows. Nothing else is lost:
    /// snapshots, bitmaps and unknown extensions stay.
    async fn make_empty(&self) -> Result<()>;
}

/// The state of a machine (its memory, its devices) beside the disk, as a snapshot of a running machine has
/// it. Its bytes have offsets of their own, from 0. Reached by
/// [`Node::save_vm_state`](crate::Node::save_vm_state) and [`Node::load_vm_state`](crate::Node::load_vm_state).
#[async_trait]
pub trait VmState: Send + Sync {
    /// Puts `iov` at `offset` of the state; stable after a flush. `EFBIG` where the format has no room.
    async fn save(&self, offset: u64, iov: IoVec) -> Result<()>;

    /// Reads what was saved at `offset`; what never was reads as zeroes.
    async fn load(&self, offset: u64, iov: IoVec) -> Result<()>;
}

/// What happened to a request at a breakpoint.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum BreakpointChange {
    /// It waits.
    Suspended,
    /// It goes on.
    Resumed,
}

/// Requests that are held at the events of [`BlockDriver::event`](crate::BlockDriver::event). A tag names the
/// breakpoint and what it holds; it need not be unique.
pub trait Breakpoints: Send + Sync {
    /// Holds the next request after `event`, once. `ENOENT` if there is no such event.
    fn set(&self, event: &str, tag: &str) -> Result<()>;

    /// Takes breakpoints away, and lets what they hold go on. `ENOENT` if none was still to come.
    fn remove(&self, tag: &str) -> Result<()>;

    /// Lets the request go on that was held first. `ENOENT` if there is none.
    fn resume(&self, tag: &str) -> Result<()>;

    /// Ready once a request is held under `tag`; at once if one is.
    fn suspended(&self, tag: &str) -> BoxFuture<'static, ()>;

    /// Takes all breakpoints away and lets everything go on.
    fn clear(&self);

    /// Calls `listener` for every request that is held or goes on, with its tag. It must not block. There is
    /// one listener.
    fn listen(&self, listener: BreakpointListener);
}

/// Who hears of requests at breakpoints: the tag, and what happened.
pub type BreakpointListener = Arc<dyn Fn(&str, BreakpointChange) + Send + Sync>;

/// What an image of a format would need.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Measurement {
    /// Bytes that the file needs for what is there.
    pub required: u64,
    /// Bytes that it can grow to.
    pub fully_allocated: u64,
    /// Bytes for the source's bitmaps, where it has any and the format can hold them.
    pub bitmaps: Option<u64>,
}
