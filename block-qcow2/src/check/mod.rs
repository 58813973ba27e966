//! Consistency check: every reference to every host cluster is counted and compared with the
//! refcounts and the COPIED flags.
//!
//! A check reads the tables itself, in pieces and past the driver's caches, and goes on with what it
//! can still understand. Nothing else may write to the file meanwhile.
//!
//! Invariants: memory is bounded by [`counts::MAX_BYTES`] for each of the sets that are counted, plus
//! a few MiB; no table is read twice in one walk ([`walk`]).

mod counts;
mod extras;
mod fix;
mod judge;
mod layout;
mod log;
mod rebuild;
mod refcounts;
mod repair;
mod tables;
mod walk;

use async_trait::async_trait;
use block_core::ability::{Check, CheckReport, FindingSink, Repair};
use block_core::io::exec::to_the_end;
use block_core::{Node, Result};

use crate::check::layout::Layout;
use crate::check::log::{Found, Log};
use crate::check::walk::Walk;
use crate::driver::Qcow2Driver;

/// Checks the image in `file`, and mends what `repair` allows.
///
/// Fails only where there is no header to start from, where memory is not enough, or where a repair
/// cannot write; everything else is in the report.
pub(crate) async fn check_image(
    file: &Node,
    data: Option<&Node>,
    repair: Repair,
    found: Found<'_>,
) -> Result<CheckReport> {
    // What stands in a data file has no refcount: its entries are checked, its bytes never read.
    let _ = data;
    let layout = Layout::read(file).await?;
    let report = Walk::run(file, &layout, Log::new(Some(found))).await?.log.report;
    match repair {
        Repair::Nothing => Ok(report),
        Repair::Leaks | Repair::Refcounts | Repair::All => {
            repair::mend(file, &layout, repair, report, found).await
        }
    }
}

#[async_trait]
impl Check for Qcow2Driver {
    async fn check(&self, repair: Repair, found: FindingSink) -> Result<CheckReport> {
        if self.writer().is_err() && repair == Repair::Nothing {
            return check_image(&self.file, self.data.as_ref(), repair, &*found).await;
        }
        let this = self.shared()?;
        to_the_end(async move { this.check_alone(repair, &*found).await }).await
    }
}

impl Qcow2Driver {
    async fn check_alone(&self, repair: Repair, found: Found<'_>) -> Result<CheckReport> {
        if self.writer.is_none() {
            return check_image(&self.file, self.data.as_ref(), repair, found).await;
        }
        let _exclusive = self.gate.exclusive().await;
        let is_written = self.writer().is_ok();
        if is_written {
            self.settle_all().await?;
        }
        if is_written && repair != Repair::Nothing {
            self.mark_unsure().await?;
        }
        let report = check_image(&self.file, self.data.as_ref(), repair, found).await;
        if repair != Repair::Nothing {
            self.read_again().await?;
        }
        report
    }
}
