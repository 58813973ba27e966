//! What a full file is good for: grains that were let go are waited for.

use std::sync::Arc;

use block_core::Result;
use block_core::metadata::room;

use super::SparseExtent;
use super::writeback::WriteBack;

impl SparseExtent {
    /// Does `change`, again where grains that were let go make room: see [`room::with_room`].
    pub(super) async fn with_room<F: Future<Output = Result<()>>>(
        self: &Arc<Self>,
        change: impl Fn() -> F,
    ) -> Result<()> {
        room::with_room(change, || self.reclaim()).await
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
