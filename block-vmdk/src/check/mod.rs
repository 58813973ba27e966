//! Consistency check: all that the header, the directories and the tables of each extent refer to is held
//! against the file, the redundant copy, and each other.
//!
//! A check reads the files itself, past the driver's caches, and goes on with what it can still understand.
//! Nothing else may write to them meanwhile.
//!
//! # Severities
//! * *Corruption*: data is lost, or the next write may lose some. Copies of a table that differ are this,
//!   unless the file says that it was not closed.
//! * *Leak*: lost space, in grains, and what a writer that was cut off leaves: the mark that the file was
//!   not closed, a redundant table that is behind or missing, a first free sector that is behind. All of it
//!   goes with [`Repair::Leaks`], but for lost space in the middle of the file, which takes
//!   [`Repair::All`].
//! * *Check error*: something could not be read, the parent for one.
//!
//! The sums of clusters in the report are zero: the field's tools show none for this format.

pub(crate) mod chain;
mod compact;
mod entries;
pub(crate) mod examine;
mod flat;
mod log;
mod mend;
mod places;
mod rewrite;
mod sesparse;
mod settle;
mod space;
mod stream;
mod tables;
mod walk;

use async_trait::async_trait;
use block_core::ability::{Check, CheckReport, FindingSink, Repair};
use block_core::io::exec::to_the_end;
use block_core::{Error, Node, OpenError, Result};

use crate::driver::VmdkDriver;
use crate::extent::Body;
use log::{Found, Log};

#[async_trait]
impl Check for VmdkDriver {
    /// An image that is open for writing is checked between requests; it must be opened for a check to be
    /// mended.
    async fn check(&self, repair: Repair, found: FindingSink) -> Result<CheckReport> {
        let mut turns = Vec::new();
        for sparse in self.sparse().filter(|sparse| sparse.writer().is_ok()) {
            if repair != Repair::Nothing {
                return Err(Error::Unsupported);
            }
            turns.push(sparse.finish_and_close().await?);
        }
        if repair == Repair::Nothing {
            return check_extents(self, repair, &*found).await;
        }
        let this = self.shared()?;
        to_the_end(async move { check_extents(&this, repair, &*found).await }).await
    }
}

async fn check_extents(
    driver: &VmdkDriver,
    repair: Repair,
    found: Found<'_>,
) -> Result<CheckReport> {
    let mut log = Log::new(Some(found), "");
    chain::check(driver, &mut log);
    flat::check(driver, repair, &mut log).await?;
    let mut sum = log.report;
    let mut seen: Vec<&Node> = Vec::new();
    for (number, extent) in driver.extents.iter().enumerate() {
        let Body::Sparse(sparse) = &extent.body else { continue };
        let prefix = match driver.extents.len() {
            1 => String::new(),
            _ => format!("extent {number}: "),
        };
        if seen.iter().any(|node| node.same(&sparse.file)) {
            let mut log = Log::new(Some(found), &prefix);
            log.corruption(|| "its file is that of another extent".to_owned());
            add(&mut sum, log.report);
            continue;
        }
        seen.push(&sparse.file);
        add(&mut sum, mend::check_file(&sparse.file, repair, found, &prefix).await?);
    }
    Ok(sum)
}

fn add(sum: &mut CheckReport, more: CheckReport) {
    sum.corruptions += more.corruptions;
    sum.leaks = sum.leaks.saturating_add(more.leaks);
    sum.check_errors += more.check_errors;
    sum.corruptions_fixed += more.corruptions_fixed;
    sum.leaks_fixed = sum.leaks_fixed.saturating_add(more.leaks_fixed);
}

/// A header that no check can start from, as the error of a request.
fn refused(error: OpenError) -> Error {
    match error {
        OpenError::Request { error, .. } => error,
        OpenError::Field { field, value, .. } => Error::Corrupt { what: field, value },
        _ => Error::Unsupported,
    }
}
