//! A check, and all that it says.

use std::sync::Arc;

use block_core::ability::{CheckReport, Finding, Repair};
use block_core::{Error, Node, Result};
use parking_lot::Mutex;

/// Checks the image of `node`, and mends what `repair` allows: the report, and the findings in their order.
/// `Unsupported` where the format has no check.
pub async fn check_node(node: &Node, repair: Repair) -> Result<(CheckReport, Vec<Finding>)> {
    let found = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&found);
    let check = node.driver().as_check().ok_or(Error::Unsupported)?;
    let report = check.check(repair, Arc::new(move |finding| sink.lock().push(finding))).await?;
    let found = std::mem::take(&mut *found.lock());
    Ok((report, found))
}
