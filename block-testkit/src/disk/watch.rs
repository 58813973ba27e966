//! Reports the reads and changes at a driver to [`Overlap`].

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use block_core::error::Result;
use parking_lot::Mutex;

use super::tap::{Call, Kind, Tap, Verdict};
use crate::model::overlap::{CallId, Overlap};

/// A tap that reports to an [`Overlap`].
#[derive(Debug)]
pub struct Watch {
    overlap: Arc<Overlap>,
    open: Mutex<HashMap<u64, CallId>>,
}

impl Watch {
    /// Reports to `overlap`.
    pub fn new(overlap: Arc<Overlap>) -> Arc<Self> {
        Arc::new(Self { overlap, open: Mutex::default() })
    }
}

#[async_trait]
impl Tap for Watch {
    async fn before(&self, call: &Call) -> Verdict {
        if matches!(call.kind, Kind::Read | Kind::Write | Kind::Zero | Kind::Discard) {
            let id = self.overlap.enter(call.label, call.range);
            self.open.lock().insert(call.number, id);
        }
        Verdict::Pass
    }

    async fn after(&self, call: &Call, _: Result<()>) {
        if let Some(id) = self.open.lock().remove(&call.number) {
            self.overlap.leave(id);
        }
    }
}
