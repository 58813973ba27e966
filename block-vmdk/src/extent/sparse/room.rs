//! What a full file is good for: grains that were let go are waited for.
//!
//! They are free again only when no stable table refers to them and no request from before is inside, so
//! nobody waits for them from inside of the gate.

use std::sync::Arc;

use block_core::{Error, Result};

use super::SparseExtent;
use super::writeback::WriteBack;

/// How often a change is tried again when grains that were let go are free again.
const RETRIES: usize = 8;

impl SparseExtent {
    /// Does `change`, which enters the gate, and may be done again after it failed in part. Does it again where
    /// there was no room and grains that were let go make some.
    pub(super) async fn with_room<F: Future<Output = Result<()>>>(
        self: &Arc<Self>,
        change: impl Fn() -> F,
    ) -> Result<()> {
        let mut tries = 0;
        loop {
            let changed = change().await;
            // Others may take what is free again before this one comes to it.
            let again = changed == Err(Error::NO_SPACE) && tries < RETRIES;
            if !again || !self.reclaim().await? {
                return changed;
            }
            tries += 1;
        }
    }

    /// Waits until grains that were let go are free again, if there are any; says whether there were.
    async fn reclaim(self: &Arc<Self>) -> Result<bool> {
        if !self.writer()?.meta.lock().await.has_waiting() {
            return Ok(false);
        }
        self.write_back(WriteBack::Reclaim).await?;
        // Whoever was inside may use them.
        let _alone = self.gate.exclusive().await;
        self.release().await.map(|()| true)
    }
}
