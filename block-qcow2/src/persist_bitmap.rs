//! Persistent dirty bitmaps: listing them.
//!
//! Not here: their bits. An image opened for reading records nothing.

use block_core::error::Problem;
use block_core::{Node, OpenError};

use crate::geometry::Geometry;
use crate::spec::bad_field;
use crate::spec::bitmap::{Bitmap, FIXED_BYTES, entry_len, parse};
use crate::spec::extension::BitmapsExtension;
use crate::table::EntryReader;

/// Reads the bitmap directory.
pub(crate) async fn load(
    file: &Node,
    geometry: Geometry,
    extension: BitmapsExtension,
) -> Result<Vec<Bitmap>, OpenError> {
    extension.verify(geometry)?;
    let (offset, size) = (extension.directory_offset, extension.directory_size);
    let mut entries = EntryReader::new(file, "bitmap directory", offset, size);
    let mut all = Vec::new();
    for _ in 0..extension.count {
        all.push(entries.next_entry(FIXED_BYTES, entry_len, parse).await?);
    }
    if !entries.is_at_end() {
        let problem = Problem::Contradicts("the bitmap directory's size");
        return Err(bad_field("bitmap count", extension.count.into(), problem));
    }
    Ok(all)
}
