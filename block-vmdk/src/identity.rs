//! Who an image is: its descriptor in the file, with the content ids.
//!
//! **Invariants.** Before the first change of an open image its content id in the file is a new one, and
//! that is stable: whoever was made on top of it sees that it changed. A change of the descriptor
//! touches the sectors that differ and no others; after a failed one the old text is in memory, and the next
//! one writes every sector that the failed one may have touched. A change that has begun is finished, also where
//! nobody waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use block_core::driver::{Exactness, Prealloc};
use block_core::error::Problem;
use block_core::metadata::bytes::{read_bytes, write_bytes};
use block_core::range::to_u64;
use block_core::{ByteRange, Error, Node, OpenError, Result};
use parking_lot::RwLock;

use crate::descriptor::Descriptor;
use crate::error::bad_field;
use crate::spec::sparse::SectorRange;
use crate::units::ContentId;
use block_core::io::exec::to_the_end;

/// Sectors are what a crash leaves old or new.
const SECTOR: usize = 512;

/// Where a descriptor stands.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// It is the file.
    File,
    /// Inside of a sparse extent, followed by zeroes.
    Embedded {
        /// Byte of the file.
        at: u64,
        /// Bytes that are reserved for it.
        room: u64,
    },
}

/// The descriptor of an open image.
pub(crate) struct Identity {
    file: Node,
    place: Place,
    /// What the file holds. Held for a look or to put a new one in place.
    descriptor: RwLock<Descriptor>,
    /// Bytes from the start of the text of which that is not known, as a change of them failed.
    unknown: AtomicUsize,
    /// Whether the content id was changed since the image was opened.
    renewed: AtomicBool,
    /// Held by the one change that is under way.
    turn: Arc<futures::lock::Mutex<()>>,
}

impl Identity {
    pub(crate) fn new(file: Node, place: Place, descriptor: Descriptor) -> Self {
        Self {
            file,
            place,
            descriptor: RwLock::new(descriptor),
            unknown: AtomicUsize::new(0),
            renewed: AtomicBool::new(false),
            turn: Arc::default(),
        }
    }

    /// The descriptor inside of a sparse extent whose header says that it is at `place`.
    pub(crate) async fn read_embedded(
        file: &Node,
        place: Option<SectorRange>,
    ) -> std::result::Result<Option<Self>, OpenError> {
        let failed = |error| OpenError::Request { what: "descriptor", error };
        let Some(range) = place.filter(|range| range.count.0 > 0) else {
            return Ok(None);
        };
        let truncated =
            || bad_field("descriptorOffset", range.start.0, Problem::Truncated(file.len()));
        let at = range.start.offset().ok_or_else(truncated)?;
        let room = range.count.bytes().ok_or_else(truncated)?;
        let place = ByteRange::new(at, room).map_err(|_| truncated())?;
        let bytes = read_bytes(file, place).await.map_err(failed)?;
        let descriptor = Descriptor::parse(&bytes)?;
        Ok(Some(Self::new(file.clone(), Place::Embedded { at, room }, descriptor)))
    }

    /// Where the descriptor stands.
    pub(crate) fn place(&self) -> Place {
        self.place
    }

    /// What `look` says of the descriptor.
    pub(crate) fn with<R>(&self, look: impl FnOnce(&Descriptor) -> R) -> R {
        look(&self.descriptor.read())
    }

    /// Whether the image was changed since it was opened.
    pub(crate) fn is_renewed(&self) -> bool {
        self.renewed.load(Ordering::Acquire)
    }

    /// Gives the image a new content id, if it has not got one since it was opened.
    pub(crate) async fn renew(self: &Arc<Self>) -> Result<()> {
        if self.is_renewed() {
            return Ok(());
        }
        let turn = self.turn.clone().lock_owned().await;
        if self.is_renewed() {
            return Ok(());
        }
        let mut changed = self.descriptor.read().clone();
        if let Some(old) = changed.content_id() {
            let new = loop {
                let new = ContentId::random()?;
                if new != old {
                    break new;
                }
            };
            changed.set_content_id(new).map_err(|_| Error::Invalid)?;
            self.write(changed, turn).await?;
        }
        self.renewed.store(true, Ordering::Release);
        Ok(())
    }

    /// Changes the descriptor as `change` says, and makes that stable.
    pub(crate) async fn update(
        self: &Arc<Self>,
        change: impl FnOnce(&mut Descriptor) -> Result<(), OpenError> + Send,
    ) -> Result<(), OpenError> {
        let failed = |error| OpenError::Request { what: "descriptor", error };
        let turn = self.turn.clone().lock_owned().await;
        let mut changed = self.descriptor.read().clone();
        change(&mut changed)?;
        let len = to_u64(changed.to_bytes().len());
        if let Place::Embedded { room, .. } = self.place
            && len > room
        {
            let problem = Problem::Above(room);
            return Err(bad_field("length of the descriptor", len, problem));
        }
        self.write(changed, turn).await.map_err(failed)
    }

    /// Puts `changed` in place, and makes that stable.
    async fn write(self: &Arc<Self>, changed: Descriptor, turn: Turn) -> Result<()> {
        let this = Arc::clone(self);
        to_the_end(async move {
            let _turn = turn;
            this.write_here(changed).await
        })
        .await
    }

    async fn write_here(&self, changed: Descriptor) -> Result<()> {
        let (mut old, mut new) = (self.descriptor.read().to_bytes(), changed.to_bytes());
        let unknown = self.unknown.load(Ordering::Acquire);
        let len = old.len().max(new.len()).max(unknown);
        let at = match self.place {
            Place::File => 0,
            Place::Embedded { at, room } => {
                if to_u64(new.len()) > room {
                    return Err(Error::NO_SPACE);
                }
                old.resize(len, 0);
                new.resize(len, 0);
                at
            }
        };
        self.unknown.store(len, Ordering::Release);
        for (start, bytes) in (0..).step_by(SECTOR).zip(new.chunks(SECTOR)) {
            if start < unknown || old.get(start..start + bytes.len()) != Some(bytes) {
                write_bytes(&self.file, at + to_u64(start), bytes).await?;
            }
        }
        if self.place == Place::File && new.len() < len {
            self.file.truncate(to_u64(new.len()), Exactness::AtLeast, Prealloc::Off).await?;
        }
        self.file.flush().await?;
        *self.descriptor.write() = changed;
        self.unknown.store(0, Ordering::Release);
        Ok(())
    }
}

/// The turn of a change, which outlives whoever asked for it.
type Turn = futures::lock::OwnedMutexGuard<()>;
