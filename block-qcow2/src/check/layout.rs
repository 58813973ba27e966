//! What a check works from: the header as it stands, and how long the file is.
//!
//! Not here: whether the tables lie inside of the file or on each other, which is what a check is to
//! find out.

use block_core::{Error, Node, OpenError, Result};

use crate::geometry::Geometry;
use crate::spec::extension::Extensions;
use crate::spec::header::{HEADER_PREFIX, Header, UnverifiedHeader};
use crate::table::read_table;
use crate::units::HostOffset;

/// The header and the length of the file.
pub(super) struct Layout {
    pub(super) header: Header,
    pub(super) extensions: Extensions,
    /// Whether there is a backing file below, by name.
    pub(super) has_backing: bool,
    /// Clusters of the file, a last one that is cut short included.
    pub(super) clusters: u64,
}

impl Layout {
    /// Reads the header of the image in `file`.
    pub(super) async fn read(file: &Node) -> Result<Self> {
        Self::parse(file).await.map_err(refused)
    }

    async fn parse(file: &Node) -> Result<Self, OpenError> {
        let start = HostOffset::new(0);
        let prefix = read_table(file, "header", start, HEADER_PREFIX).await?;
        let header = UnverifiedHeader::parse(&prefix)?;
        let cluster = read_table(file, "header", start, header.cluster_size()).await?;
        let extensions = Extensions::parse(header.extension_area().of(&cluster))?;
        let has_backing = header.backing_name().is_some();
        let header = header.verify(&extensions)?;
        let clusters = file.len().div_ceil(header.geometry.cluster_size());
        Ok(Self { header, extensions, has_backing, clusters })
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.header.geometry
    }

    pub(super) fn cluster_size(&self) -> u64 {
        self.header.geometry.cluster_size()
    }

    /// Which cluster holds the byte at `offset`.
    pub(super) fn cluster_of(&self, offset: u64) -> u64 {
        offset >> self.header.geometry.cluster_bits()
    }

    /// Whether the cluster of the byte at `offset` starts inside of the file.
    pub(super) fn is_inside(&self, offset: u64) -> bool {
        self.cluster_of(offset) < self.clusters
    }
}

/// A header that no check can start from, as the error of a request.
pub(super) fn refused(error: OpenError) -> Error {
    match error {
        OpenError::Request { error, .. } => error,
        OpenError::Field { field, value, .. } => Error::Corrupt { what: field, value },
        _ => Error::Unsupported,
    }
}
