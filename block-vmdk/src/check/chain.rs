//! The link to the parent: whether it is what the image was made on, and what a check met at opening.

use super::log::Log;
use crate::driver::VmdkDriver;
use crate::units::ContentId;

/// What is wrong with the link from an image to its parent.
#[derive(Clone, Debug)]
pub(crate) enum ParentFault {
    /// It cannot be opened.
    Missing(String),
    /// It has another content id.
    Changed {
        /// What the image says.
        expected: ContentId,
        /// What the parent says.
        found: ContentId,
    },
}

/// Says what was met when the image was opened for the check.
pub(super) fn check(driver: &VmdkDriver, log: &mut Log<'_>) {
    match &driver.opening.parent {
        None => {}
        Some(ParentFault::Missing(error)) => {
            log.check_error(|| format!("the parent cannot be opened: {error}"));
        }
        Some(ParentFault::Changed { expected, found }) => log.corruption(|| {
            format!(
                "parentCID is {expected}, the parent's CID is {found}: the parent was \
                 changed since (`rebase -u` to it takes it as it is)"
            )
        }),
    }
    for (number, has, wanted) in &driver.opening.short {
        log.corruption(|| {
            format!(
                "extent {number} has {wanted:#x} sectors in the descriptor, and its header says \
                 that its capacity is {has:#x}"
            )
        });
    }
}

/// What a check has to say of the opening, where others would have refused it.
#[derive(Clone, Debug, Default)]
pub(crate) struct OpeningFaults {
    pub(crate) parent: Option<ParentFault>,
    /// Number of an extent, sectors that it has, and sectors that the descriptor says.
    pub(crate) short: Vec<(usize, u64, u64)>,
}
