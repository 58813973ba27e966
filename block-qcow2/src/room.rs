//! What a full file is good for: clusters that were dropped are waited for.

use std::future::Future;
use std::sync::Arc;

use block_core::Result;
use block_core::metadata::room;

use crate::driver::Qcow2Driver;
use crate::writeback::Extent;

impl Qcow2Driver {
    /// Does `change` inside of the gate, again where clusters that were dropped make room: see
    /// [`room::with_room`].
    pub(crate) async fn with_room<F: Future<Output = Result<()>>>(
        self: &Arc<Self>,
        change: impl Fn(Arc<Self>) -> F,
    ) -> Result<()> {
        let inside = || async {
            let _pass = self.gate.enter().await;
            change(Arc::clone(self)).await
        };
        room::with_room(inside, || self.reclaim()).await
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
