//! How large an image would be: empty, or with the contents of another.
//!
//! Not here: bitmaps that live in memory only; nobody converts them.

use block_core::ability::Measurement;
use block_core::driver::Prealloc;
use block_core::info::InfoValue;
use block_core::range::{Alignment, to_u64};
use block_core::request::status::StatusDetail;
use block_core::{ByteRange, Node, OpenError, Options};

use crate::create::{CreateOptions, Layout, Mapped};
use crate::geometry::{Geometry, Version};
use crate::spec::FORMAT;
use crate::spec::bitmap::FIXED_BYTES;

/// What an image made with the creation options would need for the contents of `source`, down its
/// chain; for nothing at all without one.
pub(crate) async fn measure(
    mut options: Options,
    source: Option<Node>,
) -> Result<Measurement, OpenError> {
    if let Some(source) = &source {
        options.set("size", Alignment::SECTOR.round_up(source.len()).to_string());
    }
    // That there will be a backing file is all that counts; nobody opens it.
    let has_backing = options.take("backing_file").is_some();
    options.take("backing_fmt");
    let new = CreateOptions::take(&mut options)?;
    options.finish()?;
    let plan = new.check()?;
    let layout = Layout::new(plan.geometry, plan.disk_len, Mapped::All);
    let fully_allocated = layout.len();
    let allocates_all = matches!(new.preallocation, Prealloc::Falloc | Prealloc::Full);
    let data = match &source {
        _ if allocates_all => layout.data_len(),
        Some(_) if has_backing => layout.data_len(),
        Some(source) => data_len(source, plan.geometry.cluster_alignment()).await?,
        None => 0,
    };
    let bitmaps = match &source {
        Some(source) if new.version == Version::V3 => bitmaps_len(source, plan.geometry),
        _ => None,
    };
    let required = fully_allocated - layout.data_len() + data;
    Ok(Measurement { required, fully_allocated, bitmaps })
}

/// Bytes of the clusters that hold data of `source`.
async fn data_len(source: &Node, clusters: Alignment) -> Result<u64, OpenError> {
    let mut total = 0;
    let mut rest = ByteRange::up_to(source.len());
    while !rest.is_empty() {
        let status = source.block_status_above(None, rest, StatusDetail::Zeroes).await;
        let failed = |error| OpenError::Request { what: "block status", error };
        let status = status.map_err(failed)?;
        let (mut found, _) = rest.split_at(status.len);
        if found.is_empty() {
            break;
        }
        if status.is_data() && status.is_allocated() && !status.is_zero() {
            // What follows in the last cluster is counted with it.
            found = found.expand(clusters);
            total += found.len();
        }
        rest = ByteRange::from_bounds(found.end().min(rest.end()), rest.end()).unwrap_or(rest);
    }
    Ok(total)
}

/// Bytes for the bitmaps of `source`: directory, tables and bits. `None` if its format has none.
fn bitmaps_len(source: &Node, geometry: Geometry) -> Option<u64> {
    let specific = source.driver().info().specific;
    let find = |wanted| specific.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value);
    let is_v3 = find("compat") == Some(&InfoValue::Text("1.1".to_owned()));
    if source.driver().name() != FORMAT || !is_v3 {
        return None;
    }
    let Some(InfoValue::List(bitmaps)) = find("bitmaps") else { return Some(0) };
    let clusters = geometry.cluster_alignment();
    let (mut directory, mut others) = (0, 0);
    for (name, granularity) in bitmaps.iter().filter_map(name_and_granularity) {
        let bits = source.len().div_ceil(granularity);
        let count = clusters.count_up(bits.div_ceil(8));
        others += count * clusters.bytes() + clusters.round_up(count * 8);
        directory += (to_u64(FIXED_BYTES) + to_u64(name.len())).next_multiple_of(8);
    }
    Some(clusters.round_up(directory) + others)
}

/// Of a bitmap that can be trusted.
fn name_and_granularity(bitmap: &InfoValue) -> Option<(&str, u64)> {
    let InfoValue::Map(fields) = bitmap else { return None };
    let find = |wanted| fields.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value);
    let in_use = InfoValue::Text("in-use".to_owned());
    match (find("name")?, find("granularity")?, find("flags")?) {
        (InfoValue::Text(name), InfoValue::Int(granularity), InfoValue::List(flags))
            if *granularity > 0 && !flags.contains(&in_use) =>
        {
            Some((name, *granularity))
        }
        _ => None,
    }
}
