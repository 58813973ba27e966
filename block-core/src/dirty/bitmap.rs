//! One dirty bitmap: granules, a name, a state, and perhaps a successor.
//!
//! A job that copies what is dirty *freezes* its bitmap: [`DirtyBitmap::create_successor`]. From
//! then on guest writes mark the successor, and the bits that the job works on change only by its
//! own [`DirtyBitmap::set`] and [`DirtyBitmap::reset`]. When the job succeeded, the successor takes
//! the place ([`DirtyBitmap::abdicate`]); when it failed, both are merged
//! ([`DirtyBitmap::reclaim`]), so that nothing is lost.
//!
//! Invariants: a bitmap with a successor is busy; both have the same granularity and length; an
//! inconsistent or read-only bitmap never records.

use super::error::BitmapError;
use super::granules::{Areas, Granularity, Granules};
use crate::range::ByteRange;

/// Longest name of a bitmap, in bytes.
pub const MAX_NAME_BYTES: usize = 1023;

/// A dirty bitmap of one disk. Ranges beyond the end of the disk are cut.
#[derive(Clone, PartialEq, Debug)]
pub struct DirtyBitmap {
    name: Option<String>,
    granules: Granules,
    successor: Option<Granules>,
    enabled: bool,
    busy: bool,
    read_only: bool,
    persistent: bool,
    inconsistent: bool,
}

/// What `info` shows of a bitmap.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BitmapInfo {
    /// Name; `None` for those that belong to a job.
    pub name: Option<String>,
    /// Bytes in a granule.
    pub granularity: u64,
    /// Dirty bytes.
    pub count: u64,
    /// Whether writes are recorded.
    pub recording: bool,
    /// Whether a job or an export uses it.
    pub busy: bool,
    /// Whether it is stored in the image.
    pub persistent: bool,
    /// Whether it was not saved properly and can only be removed.
    pub inconsistent: bool,
}

impl DirtyBitmap {
    /// A clean, enabled bitmap for a disk of `len` bytes. A name is unique in a node and has from
    /// one to [`MAX_NAME_BYTES`] bytes; jobs use bitmaps without one.
    pub fn new(
        name: Option<&str>,
        granularity: Granularity,
        len: u64,
    ) -> Result<Self, BitmapError> {
        if let Some(name) = name {
            check_name(name)?;
        }
        Ok(Self {
            name: name.map(str::to_owned),
            granules: Granules::new(granularity, len)?,
            successor: None,
            enabled: true,
            busy: false,
            read_only: false,
            persistent: false,
            inconsistent: false,
        })
    }

    /// A persistent bitmap that was not saved properly: it records nothing and can only be removed. The
    /// disk may have more granules than a bitmap in memory could.
    pub fn new_inconsistent(
        name: &str,
        granularity: Granularity,
        len: u64,
    ) -> Result<Self, BitmapError> {
        check_name(name)?;
        Ok(Self {
            name: Some(name.to_owned()),
            granules: Granules::untouchable(granularity, len),
            successor: None,
            enabled: false,
            busy: false,
            read_only: false,
            persistent: true,
            inconsistent: true,
        })
    }

    /// The name; `None` for those that belong to a job.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The size of a granule.
    pub fn granularity(&self) -> Granularity {
        self.granules.granularity()
    }

    /// Length of the disk in bytes.
    pub fn len(&self) -> u64 {
        self.granules.len()
    }

    /// Whether the disk has no bytes.
    pub fn is_empty(&self) -> bool {
        self.granules.is_empty()
    }

    /// The bits. Those of a successor are not among them.
    pub fn granules(&self) -> &Granules {
        &self.granules
    }

    /// Dirty bytes; see [`Granules::count`].
    pub fn count(&self) -> u64 {
        self.granules.count()
    }

    /// Whether the byte at `offset` is dirty.
    pub fn contains(&self, offset: u64) -> bool {
        self.granules.contains(offset)
    }

    /// See [`Granules::next_dirty`].
    pub fn next_dirty(&self, offset: u64) -> Option<u64> {
        self.granules.next_dirty(offset)
    }

    /// See [`Granules::next_zero`].
    pub fn next_zero(&self, offset: u64) -> Option<u64> {
        self.granules.next_zero(offset)
    }

    /// See [`Granules::next_dirty_area`].
    pub fn next_dirty_area(&self, range: ByteRange, max_len: u64) -> Option<ByteRange> {
        self.granules.next_dirty_area(range, max_len)
    }

    /// See [`Granules::areas`].
    pub fn areas(&self) -> Areas<'_> {
        self.granules.areas()
    }

    /// What `info` shows.
    pub fn info(&self) -> BitmapInfo {
        BitmapInfo {
            name: self.name.clone(),
            granularity: self.granularity().bytes(),
            count: self.count(),
            recording: self.is_recording(),
            busy: self.busy,
            persistent: self.persistent,
            inconsistent: self.inconsistent,
        }
    }
}

/// What writes to the disk do.
impl DirtyBitmap {
    /// Whether guest writes are recorded, here or in the successor.
    pub fn is_recording(&self) -> bool {
        self.enabled && !self.read_only && !self.inconsistent
    }

    /// Records a guest write: the touched granules of the successor, if there is one, or else of
    /// this bitmap become dirty. Does nothing while not recording.
    pub fn mark(&mut self, range: ByteRange) {
        if self.is_recording() {
            self.successor.as_mut().unwrap_or(&mut self.granules).set(range);
        }
    }

    /// Follows the disk to a new length: bits beyond the end are dropped, and what is added is clean
    /// until it is marked. A disk that outgrows the bitmap makes it inconsistent.
    pub fn truncate(&mut self, len: u64) {
        let successor = self.successor.as_mut().map_or(Ok(()), |s| s.truncate(len));
        if successor.and(self.granules.truncate(len)).is_err() {
            self.inconsistent = true;
        }
    }
}

/// What the owner of the bits does: a job that froze the bitmap, or a format that loads it.
impl DirtyBitmap {
    /// Makes the granules dirty that `range` touches, also in a frozen or disabled bitmap.
    pub fn set(&mut self, range: ByteRange) -> Result<(), BitmapError> {
        self.check_changeable()?;
        self.granules.set(range);
        Ok(())
    }

    /// Makes the granules dirty whose bits are set in `bytes`, as [`Granules::set_bits`] does.
    pub fn set_bits(&mut self, first: u64, bytes: &[u8]) -> Result<(), BitmapError> {
        self.check_changeable()?;
        self.granules.set_bits(first, bytes);
        Ok(())
    }

    /// Makes the granules clean that `range` covers wholly, also in a frozen or disabled bitmap.
    pub fn reset(&mut self, range: ByteRange) -> Result<(), BitmapError> {
        self.check_changeable()?;
        self.granules.reset(range);
        Ok(())
    }

    /// Makes it busy: until [`DirtyBitmap::unlock`] users can neither change nor remove it.
    pub fn lock(&mut self) -> Result<(), BitmapError> {
        self.check_idle()?;
        self.busy = true;
        Ok(())
    }

    /// Ends what [`DirtyBitmap::lock`] began. A frozen bitmap stays busy.
    pub fn unlock(&mut self) {
        self.busy = self.successor.is_some();
    }

    /// Freezes the bits: guest writes go to a new, clean successor.
    pub fn create_successor(&mut self) -> Result<(), BitmapError> {
        if self.successor.is_some() {
            return Err(BitmapError::HasSuccessor { name: self.display_name() });
        }
        self.check_user_change()?;
        self.successor = Some(Granules::new(self.granularity(), self.len())?);
        self.busy = true;
        Ok(())
    }

    /// Thaws with the successor's bits alone: what was dirty before has been dealt with.
    pub fn abdicate(&mut self) -> Result<(), BitmapError> {
        self.granules = self.take_successor()?;
        Ok(())
    }

    /// Thaws with the bits of both: what was dirty before is still so.
    pub fn reclaim(&mut self) -> Result<(), BitmapError> {
        let successor = self.take_successor()?;
        self.granules.merge(&successor);
        Ok(())
    }

    fn take_successor(&mut self) -> Result<Granules, BitmapError> {
        let Some(successor) = self.successor.take() else {
            return Err(BitmapError::NoSuccessor { name: self.display_name() });
        };
        self.busy = false;
        Ok(successor)
    }
}

/// What users do. All of it is refused while the bitmap is busy.
impl DirtyBitmap {
    /// Starts recording.
    pub fn enable(&mut self) -> Result<(), BitmapError> {
        self.check_user_change()?;
        self.enabled = true;
        Ok(())
    }

    /// Stops recording; the bits stay.
    pub fn disable(&mut self) -> Result<(), BitmapError> {
        self.check_user_change()?;
        self.enabled = false;
        Ok(())
    }

    /// Makes everything clean.
    pub fn clear(&mut self) -> Result<(), BitmapError> {
        self.check_user_change()?;
        self.granules.clear();
        Ok(())
    }

    /// Makes everything dirty here that is dirty in `source`, whatever its granularity. A frozen
    /// source gives the bits that are frozen.
    pub fn merge(&mut self, source: &Self) -> Result<(), BitmapError> {
        self.check_merge(source)?;
        self.granules.merge(&source.granules);
        Ok(())
    }

    /// Whether [`DirtyBitmap::merge`] would do it.
    pub fn check_merge(&self, source: &Self) -> Result<(), BitmapError> {
        self.check_user_change()?;
        source.check_consistent()?;
        if self.len() != source.len() {
            return Err(BitmapError::LengthDiffers {
                target_len: self.len(),
                source_len: source.len(),
            });
        }
        Ok(())
    }

    /// Whether it may be removed: inconsistent ones may, those in use may not, and persistent ones
    /// of a read-only image may not.
    pub fn check_removable(&self) -> Result<(), BitmapError> {
        self.check_idle()?;
        self.check_writable()
    }
}

/// State.
impl DirtyBitmap {
    /// Whether recording is on; see [`DirtyBitmap::is_recording`] for whether it happens.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Whether a job or an export uses it.
    pub fn is_busy(&self) -> bool {
        self.busy
    }

    /// Whether writes go to a successor.
    pub fn is_frozen(&self) -> bool {
        self.successor.is_some()
    }

    /// Whether its image is read-only: it cannot record, so the disk must not be written.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether it is to be stored in the image.
    pub fn is_persistent(&self) -> bool {
        self.persistent
    }

    /// Whether its bits cannot be trusted.
    pub fn is_inconsistent(&self) -> bool {
        self.inconsistent
    }

    /// Stores it in the image from now on.
    pub fn make_persistent(&mut self) -> Result<(), BitmapError> {
        if self.name.is_none() {
            return Err(BitmapError::Anonymous);
        }
        self.persistent = true;
        Ok(())
    }

    /// Does not store it in the image any more.
    pub fn make_transient(&mut self) {
        self.persistent = false;
    }

    /// Its image is read-only now.
    pub fn make_read_only(&mut self) {
        self.read_only = true;
    }

    /// Its image is writable now.
    pub fn make_writable(&mut self) {
        self.read_only = false;
    }

    /// Its bits cannot be trusted: it was in use when the image was last closed.
    pub fn make_inconsistent(&mut self) {
        self.inconsistent = true;
    }

    /// The name for messages.
    fn display_name(&self) -> String {
        self.name.clone().unwrap_or_else(|| "#job".to_owned())
    }

    fn check_user_change(&self) -> Result<(), BitmapError> {
        self.check_idle()?;
        self.check_changeable()
    }

    fn check_idle(&self) -> Result<(), BitmapError> {
        match self.busy {
            true => Err(BitmapError::Busy { name: self.display_name() }),
            false => Ok(()),
        }
    }

    fn check_changeable(&self) -> Result<(), BitmapError> {
        self.check_writable()?;
        self.check_consistent()
    }

    fn check_writable(&self) -> Result<(), BitmapError> {
        match self.read_only {
            true => Err(BitmapError::ReadOnly { name: self.display_name() }),
            false => Ok(()),
        }
    }

    fn check_consistent(&self) -> Result<(), BitmapError> {
        match self.inconsistent {
            true => Err(BitmapError::Inconsistent { name: self.display_name() }),
            false => Ok(()),
        }
    }
}

fn check_name(name: &str) -> Result<(), BitmapError> {
    match name.len() {
        0 => Err(BitmapError::EmptyName),
        len if len > MAX_NAME_BYTES => Err(BitmapError::NameTooLong { len }),
        _ => Ok(()),
    }
}
