//! What a full file is good for: clusters that were dropped are waited for.
//!
//! They are free again only when no stable table refers to them and no request from before is inside, so
//! nobody waits for them from inside of the gate.

use std::future::Future;
use std::sync::Arc;

use block_core::{Error, Result};

use crate::driver::Qcow2Driver;
use crate::writeback::Extent;

/// How often a change is tried again when clusters that were dropped are free again.
const RETRIES: usize = 8;

impl Qcow2Driver {
    /// Does `change` inside of the gate; it may be done again after it failed in part. Does it again where
    /// there was no room and clusters that were dropped make some.
    pub(crate) async fn with_room<F: Future<Output = Result<()>>>(
        self: &Arc<Self>,
        change: impl Fn(Arc<Self>) -> F,
    ) -> Result<()> {
        let mut tries = 0;
        loop {
            let pass = self.gate.enter().await;
            let changed = change(Arc::clone(self)).await;
            drop(pass);
            // Others may take what is free again before this one comes to it.
            let again = changed == Err(Error::NO_SPACE) && tries < RETRIES;
            if !again || !self.reclaim().await? {
                return changed;
            }
            tries += 1;
        }
    }

    /// Waits until clusters that were dropped are free again, if there are any; says whether there were.
    async fn reclaim(&self) -> Result<bool> {
        if !self.writer()?.meta.lock().await.has_waiting() {
            return Ok(false);
        }
        // Whoever is inside may use them.
        let _alone = self.gate.exclusive().await;
        self.write_back(Extent::Reclaim).await.map(|()| true)
    }
}
