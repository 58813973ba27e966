//! Flat extents: whether they are in their files, and in nobody else's place.

use std::sync::Arc;

use block_core::ability::Repair;
use block_core::driver::{Exactness, Prealloc};
use block_core::{Node, Result};

use super::log::Log;
use crate::driver::VmdkDriver;
use crate::extent::Body;

/// A flat extent: its number, its file, and the bytes of the file that it is.
struct Flat<'a> {
    number: usize,
    node: &'a Node,
    start: u64,
    end: u64,
}

/// Checks the flat extents. A file that is too short is made longer, which changes nothing that is read.
pub(super) async fn check(driver: &VmdkDriver, repair: Repair, log: &mut Log<'_>) -> Result<()> {
    let mut all: Vec<Flat<'_>> = Vec::new();
    for (number, extent) in driver.extents.iter().enumerate() {
        if let Body::Flat { node, offset } = &extent.body {
            let end = offset.saturating_add(extent.range.len());
            all.push(Flat { number, node, start: *offset, end });
        }
    }
    for flat in &all {
        let Flat { number, node, end, .. } = flat;
        let len = node.len();
        if *end <= len {
            continue;
        }
        log.corruption(|| {
            format!("extent {number} ends at byte {end:#x} of its file, which has {len:#x}")
        });
        let may = repair == Repair::All && !node.is_read_only();
        if may && node.truncate(*end, Exactness::AtLeast, Prealloc::Off).await.is_ok() {
            node.flush().await?;
            log.report.corruptions -= 1;
            log.report.corruptions_fixed += 1;
            log.repaired(|| format!("the file of extent {number} was made {end:#x} bytes long"));
        }
    }
    find_overlaps(&mut all, log);
    Ok(())
}

/// Extents in the same bytes of a file. There are few files, and few extents.
fn find_overlaps(all: &mut [Flat<'_>], log: &mut Log<'_>) {
    all.sort_by_key(|flat| (Arc::as_ptr(flat.node.driver()).cast::<()>().addr(), flat.start));
    for pair in all.windows(2) {
        let [one, other] = pair else { continue };
        if one.node.same(other.node) && other.start < one.end {
            let (first, second) = (one.number, other.number);
            log.corruption(|| format!("extents {first} and {second} overlap in their file"));
        }
    }
}
