//! Writing streamOptimized images to where nothing can be written twice, and reading them from where nothing can be
//! read twice: pipes, uploads, downloads.
//!
//! # The layout
//! Header, descriptor, and from sector 128 on the grains that hold data, in the guest's order. A grain is a marker
//! and a zlib stream. Behind the grains of a grain table stands its marker and the table; behind the last table the
//! grain directory, the footer (the header again, with the place of the grain directory) and the end-of-stream
//! marker, each behind its own. Tables without a grain are left out. The format's version is 3, as VMware's tools
//! write it.
//!
//! # Invariants
//! * The bytes depend on the source, the content id and the options only, not on processors, memory or time.
//! * Memory has a bound: the buffers take at most the bytes that were asked for (or one piece), and the grain
//!   directory 4 bytes for each 32 MiB of the disk.
//! * A grain that is all zero is not stored, whether the source knows it or not.
//! * When a writer or a reader returns, with whatever result, no request of it is in flight.
//!
//! What is not here: backing files. A reader of one grain out of many is [`crate::compress::GrainReader`].

mod pack;
mod read;
mod write;

pub use read::{GrainPiece, ReadError, ReadInto, StreamReader, TableProblem};

use block_core::job::copy::Watch;
use block_core::job::stream::{Disk, Forward, MEMORY_BYTES, Pieces, Report, StreamError};
use block_core::{Cancel, Error, Node};
use futures::io::AsyncWrite;

use crate::compress::Level;
use crate::descriptor::{AdapterType, CreateType, ExtentKind, NewDescriptor, NewExtent, Quoted};
use crate::spec::sparse::{GrainDirectory, HeaderError, SectorRange, SparseHeader};
use crate::units::{ContentId, Sector, SectorCount};
use pack::Grains;
use write::Image;

/// Sectors of a grain: 64 KiB.
const GRAIN: SectorCount = SectorCount(128);
/// Sectors that a descriptor has at least.
const DESCRIPTOR_SECTORS_MIN: u64 = 20;

/// Writes the contents of one disk, or several joined, as a streamOptimized VMDK to a sink that only goes forward.
///
/// ```
/// use std::sync::Arc;
///
/// use block_core::job::copy::Progress;
/// use block_core::proto::mem::MemDriver;
/// use block_core::{Cancel, Node};
/// use block_vmdk::stream::{StreamWriter, WriteError};
///
/// # fn main() -> Result<(), WriteError> {
/// # let disk = MemDriver::from_bytes(&[7; 300_000]).map_err(WriteError::Id)?;
/// let source = Node::new(Arc::new(disk), Default::default());
/// futures::executor::block_on(async {
///     let mut body = Vec::new();
///     let writer = StreamWriter::new(source);
///     writer.write_to(&mut body, &Cancel::new(), |_: Progress| {}).await?;
///     assert!(body.starts_with(b"KDMV") && body.len() < 100_000);
///     Ok(())
/// })
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct StreamWriter {
    disk: Disk,
    level: Level,
    cid: Option<ContentId>,
    file_name: Quoted,
    adapter: AdapterType,
    hw_version: Quoted,
    tools_version: Quoted,
    memory_bytes: u64,
}

/// Why an image was not written to its end.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// No extent has this length.
    #[error("the image cannot be made: {0}")]
    Header(#[from] HeaderError),
    /// There is no content id, because the system has no random numbers.
    #[error("no content id can be made: {0}")]
    Id(Error),
    /// Grains begin in the first 2^32 sectors of the file, and this one would not.
    #[error(
        "the image is too long: the grain at byte {offset} would stand beyond 2 TiB of the file"
    )]
    TooLong {
        /// Offset of the grain on the disk.
        offset: u64,
    },
    /// The source, the sink or the caller ended it.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

impl StreamWriter {
    /// The contents of `source`, in whole sectors, for IDE, with a new content id.
    pub fn new(source: Node) -> Self {
        let mut disk = Disk::default();
        disk.push(source);
        Self {
            disk,
            level: Level::default(),
            cid: None,
            file_name: Quoted::known("disk.vmdk"),
            adapter: AdapterType::default(),
            hw_version: Quoted::known("4"),
            tools_version: Quoted::known("2147483647"),
            memory_bytes: MEMORY_BYTES,
        }
    }

    /// With the contents of `source` behind what is there.
    #[must_use]
    pub fn followed_by(mut self, source: Node) -> Self {
        self.disk.push(source);
        self
    }

    /// Compressed this hard.
    #[must_use]
    pub fn level(self, level: Level) -> Self {
        Self { level, ..self }
    }

    /// With this content id, so that the same disk makes the same image.
    #[must_use]
    pub fn content_id(self, cid: ContentId) -> Self {
        Self { cid: Some(cid), ..self }
    }

    /// With this name for the file, which stands in the descriptor and which nobody opens by it.
    #[must_use]
    pub fn file_name(self, file_name: Quoted) -> Self {
        Self { file_name, ..self }
    }

    /// With buffers of at most so many bytes (64 MiB if nothing is said), or those of one piece.
    #[must_use]
    pub fn memory_bytes(self, bytes: u64) -> Self {
        Self { memory_bytes: bytes, ..self }
    }

    /// Writes the image to `sink`, from the first byte to the last, and flushes it; gives the number of bytes. The
    /// sink is not closed.
    ///
    /// Looks at `cancel` before each piece; `watch` hears of every piece. On an error what was written is no image,
    /// and pieces in flight are waited for.
    pub async fn write_to(
        self,
        sink: impl AsyncWrite + Unpin + Send,
        cancel: &Cancel,
        mut watch: impl Watch,
    ) -> Result<u64, WriteError> {
        let head = Head::new(&self)?;
        let report = Report { base: 0, total: self.disk.len() };
        let grains = Grains { level: self.level };
        let mut pieces = Pieces::new(self.disk, grains, self.memory_bytes, cancel.clone());
        let image = Image::new(Forward::new(sink, &mut watch), head);
        let written = image.write(&mut pieces, report).await;
        pieces.drain().await;
        written
    }
}

/// What stands before the grains.
#[derive(Clone, Debug)]
struct Head {
    descriptor: Vec<u8>,
    place: SectorRange,
    capacity: SectorCount,
    overhead: SectorCount,
}

impl Head {
    fn new(writer: &StreamWriter) -> Result<Self, WriteError> {
        let capacity = SectorCount::of_bytes(writer.disk.len());
        let cid = match writer.cid {
            Some(cid) => cid,
            None => ContentId::random().map_err(WriteError::Id)?,
        };
        let extent = NewExtent {
            sectors: capacity,
            kind: ExtentKind::Sparse,
            file_name: writer.file_name.clone(),
        };
        let descriptor = NewDescriptor {
            create_type: CreateType::StreamOptimized,
            cid,
            parent: None,
            extents: vec![extent],
            adapter: writer.adapter,
            hw_version: writer.hw_version.clone(),
            tools_version: writer.tools_version.clone(),
        };
        let descriptor = descriptor.to_bytes();
        let len = block_core::range::to_u64(descriptor.len());
        let sectors = SectorCount::of_bytes(len).0.max(DESCRIPTOR_SECTORS_MIN);
        let place = SectorRange { start: Sector(1), count: SectorCount(sectors) };
        let overhead = SectorCount((place.start.0 + sectors).next_multiple_of(GRAIN.0));
        let head = Self { descriptor, place, capacity, overhead };
        // What can be refused is refused before the source is read.
        head.header(GrainDirectory::InFooter)?;
        Ok(head)
    }

    /// The header or the footer.
    fn header(&self, gd: GrainDirectory) -> Result<SparseHeader, HeaderError> {
        SparseHeader::stream_optimized(self.capacity, GRAIN, self.place, self.overhead, gd)
    }
}
