//! How large an image would be: empty, or with the contents of another.
//!
//! All files of the image count together. The length of a descriptor depends on the name of the image by a
//! few bytes, and what a stream needs on how well its grains compress: it is measured as if they did not.

use block_core::ability::Measurement;
use block_core::range::{Alignment, SECTOR_SIZE};
use block_core::request::status::StatusDetail;
use block_core::{ByteRange, Node, OpenError, Options};

use crate::create::{
    COWD_GRAIN_SECTORS, CreateOptions, Embedded, GRAIN_SECTORS, HostedLayout, NAMELESS, Plan,
    STREAM_OVERHEAD, STREAM_TAIL_SECTORS, descriptor_len,
};
use crate::descriptor::CreateType;
use crate::spec::cowd;
use crate::spec::marker::GrainMarker;
use crate::units::{Sector, SectorCount};

/// Entries of a table of a hosted extent, and the sectors that it takes.
const HOSTED_GT: (u64, u64) = (512, 4);
/// Most bytes that a zlib stream is longer than a grain of a hosted extent: a head, a sum, and heads of
/// blocks that are stored as they are.
const STREAM_EXCESS: u64 = 128;

/// What an image made with the creation options would need for the contents of `source`, down its
/// chain; for nothing at all without one.
pub(crate) async fn measure(
    mut options: Options,
    source: Option<Node>,
) -> Result<Measurement, OpenError> {
    if let Some(source) = &source {
        options.set("size", Alignment::SECTOR.round_up(source.len()).to_string());
    }
    let new = CreateOptions::take(&mut options)?;
    options.finish()?;
    let plan = new.plan()?;
    let shape = Shape::of(&plan)?;
    let mut everything = shape.nothing();
    everything.add(ByteRange::up_to(plan.sectors.0.saturating_mul(SECTOR_SIZE)));
    let fully_allocated = shape.with(&everything);
    let required = match &source {
        _ if new.backing.is_some() => fully_allocated,
        Some(source) => shape.with(&data_of(source, &shape).await?),
        None => shape.with(&shape.nothing()),
    };
    Ok(Measurement { required, fully_allocated, bitmaps: None })
}

/// What takes space in an image.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
struct Shape {
    /// Bytes in any case.
    fixed: u64,
    /// Bytes of the disk in a grain.
    grain_len: u64,
    /// Bytes of a file for a grain.
    grain: u64,
    /// Bytes of the disk that a table maps.
    coverage: u64,
    /// Bytes of a file for a table that is there only if a grain of it is.
    table: u64,
}

impl Shape {
    fn of(plan: &Plan) -> Result<Self, OpenError> {
        let bytes = |sectors: u64| sectors.saturating_mul(SECTOR_SIZE);
        let descriptor = descriptor_len(plan, NAMELESS)?;
        let hosted = Self {
            fixed: descriptor,
            grain_len: bytes(GRAIN_SECTORS),
            grain: bytes(GRAIN_SECTORS),
            coverage: bytes(GRAIN_SECTORS * HOSTED_GT.0),
            table: 0,
        };
        let overhead = |sectors, embedded| bytes(HostedLayout::new(sectors, embedded).overhead().0);
        Ok(match plan.create_type {
            CreateType::MonolithicSparse => {
                Self { fixed: overhead(plan.sectors, Embedded::Yes), ..hosted }
            }
            CreateType::TwoGbMaxExtentSparse => {
                let extents = plan.extents().map(|sectors| overhead(sectors, Embedded::No));
                Self { fixed: descriptor + extents.sum::<u64>(), ..hosted }
            }
            CreateType::StreamOptimized => {
                let entries = plan.sectors.0.div_ceil(GRAIN_SECTORS * HOSTED_GT.0);
                let directory = SectorCount::of_bytes(entries * 4).0;
                let fixed = STREAM_OVERHEAD.0 + 1 + directory + STREAM_TAIL_SECTORS;
                let len = hosted.grain_len + STREAM_EXCESS;
                let grain =
                    GrainMarker { lba: Sector(0), len: u32::try_from(len).unwrap_or(u32::MAX) };
                Self {
                    fixed: bytes(fixed),
                    grain: bytes(grain.stored_sectors().0),
                    table: bytes(1 + HOSTED_GT.1),
                    ..hosted
                }
            }
            CreateType::VmfsSparse => {
                let entries = u64::from(cowd::GTES_PER_GT);
                let coverage = COWD_GRAIN_SECTORS * entries;
                let directory = SectorCount::of_bytes(plan.sectors.0.div_ceil(coverage) * 4).0;
                Self {
                    fixed: descriptor + bytes(cowd::HEADER_SECTORS + directory),
                    grain_len: bytes(COWD_GRAIN_SECTORS),
                    grain: bytes(COWD_GRAIN_SECTORS),
                    coverage: bytes(coverage),
                    table: entries * 4,
                }
            }
            CreateType::MonolithicFlat
            | CreateType::TwoGbMaxExtentFlat
            | CreateType::Vmfs
            | CreateType::SeSparse => {
                Self { fixed: descriptor.saturating_add(bytes(plan.sectors.0)), grain: 0, ..hosted }
            }
        })
    }

    fn nothing(&self) -> Use {
        let touched = |unit| Touched { unit, count: 0, next: 0 };
        Use { grains: touched(self.grain_len), tables: touched(self.coverage) }
    }

    /// Bytes of an image with these grains and tables.
    fn with(&self, used: &Use) -> u64 {
        let grains = used.grains.count.saturating_mul(self.grain);
        let tables = used.tables.count.saturating_mul(self.table);
        self.fixed.saturating_add(grains).saturating_add(tables)
    }
}

/// Grains and tables that hold something.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Use {
    grains: Touched,
    tables: Touched,
}

impl Use {
    fn add(&mut self, data: ByteRange) {
        self.grains.add(data);
        self.tables.add(data);
    }
}

/// Counts the units that ranges touch, which come in order.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Touched {
    /// Bytes of a unit.
    unit: u64,
    count: u64,
    /// The first unit that is not counted.
    next: u64,
}

impl Touched {
    fn add(&mut self, range: ByteRange) {
        if range.is_empty() {
            return;
        }
        let start = (range.offset() / self.unit).max(self.next);
        let end = range.end().div_ceil(self.unit);
        self.count += end.saturating_sub(start);
        self.next = self.next.max(end);
    }
}

/// What holds data of `source`.
async fn data_of(source: &Node, shape: &Shape) -> Result<Use, OpenError> {
    let mut used = shape.nothing();
    let mut rest = ByteRange::up_to(source.len());
    while !rest.is_empty() {
        let status = source.block_status_above(None, rest, StatusDetail::Zeroes).await;
        let status = status.map_err(|error| OpenError::Request { what: "block status", error })?;
        let (found, after) = rest.split_at(status.len);
        if found.is_empty() {
            break;
        }
        if status.is_data() && status.is_allocated() && !status.is_zero() {
            used.add(found);
        }
        rest = after;
    }
    Ok(used)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_counted_once() {
        let mut touched = Touched { unit: 10, count: 0, next: 0 };
        let ranges = [(0, 0), (5, 1), (7, 1), (9, 2), (35, 5), (40, 0), (40, 20), (41, 3)];
        for (offset, len) in ranges {
            touched.add(ByteRange::new(offset, len).unwrap());
        }
        assert_eq!((touched.count, touched.next), (5, 6));
    }
}
