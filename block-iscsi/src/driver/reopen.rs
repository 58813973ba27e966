//! Reopening: read-only or not, direct or not. What is lost stays lost: flushes go on failing.

use std::sync::atomic::Ordering;

use block_core::driver::{ReopenOptions, ReopenState};
use block_core::error::{Error, OpenError};

use crate::scsi::mode::ModePage;

use super::{IscsiDriver, open, trust};

impl IscsiDriver {
    /// Looks whether the unit can be written, if that is wanted: it may be protected by now, or not any
    /// more.
    pub(super) async fn prepare_reopen(
        &self,
        options: ReopenOptions,
    ) -> Result<ReopenState, OpenError> {
        if options.read_only == Some(false) && self.read_only.load(Ordering::Acquire) {
            let what = "MODE SENSE";
            let protected = match self.unit.mode(ModePage::All).await {
                Ok(mode) => mode.write_protected,
                Err(error) if error.is_refusal() => false,
                Err(error) => return Err(open::refused(what, error)),
            };
            if protected {
                let path = self.filename.clone().into();
                return Err(OpenError::File { path, error: Error::Os(libc::EROFS) });
            }
        }
        Ok(Box::new(options))
    }

    pub(super) fn commit_reopen(&self, state: ReopenState) {
        let Ok(options) = state.downcast::<ReopenOptions>() else {
            debug_assert!(false, "a state of another driver");
            return;
        };
        if let Some(read_only) = options.read_only {
            self.read_only.store(read_only, Ordering::Release);
        }
        if let Some(no_flush) = options.no_flush {
            self.no_flush.store(no_flush, Ordering::Release);
        }
        // What is known stays known if nobody else writes, as before.
        if let Some(direct) = options.direct {
            self.knowledge.set_trust(trust(direct));
        }
        self.asking.start_anew();
    }
}
