//! What `info` shows of an image.

use block_core::info::{DriverInfo, InfoValue};

use crate::driver::VmdkDriver;

/// What an open image says of itself.
pub(crate) fn of(driver: &VmdkDriver) -> DriverInfo {
    let cid = driver.identity.as_ref().and_then(|i| i.with(|d| d.content_id()));
    let grain = driver.sparse().map(|sparse| sparse.geometry().grain_size()).max();
    DriverInfo {
        cluster_size: grain,
        specific: cid.map(|cid| ("cid", InfoValue::Int(cid.0.into()))).into_iter().collect(),
        ..DriverInfo::default()
    }
}
