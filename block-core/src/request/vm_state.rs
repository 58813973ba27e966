//! Requests for the state of a machine, which formats keep beside the disk.
//!
//! They pass filters, count as in flight for drains, and a flush after a save has something to do. They
//! conflict with nothing: the state is no part of the disk.

use crate::buf::IoVec;
use crate::error::{Error, Result};
use crate::flags::RequestFlags;
use crate::node::Node;
use crate::range::ByteRange;

use super::tracked::Claim;

impl Node {
    /// Saves `iov` at `offset` of the machine state; see [`VmState`](crate::ability::VmState).
    /// `Unsupported` where the format has none.
    pub async fn save_vm_state(&self, offset: u64, iov: IoVec) -> Result<()> {
        let _ticket = self.begin(nothing(), RequestFlags::empty()).await?;
        if self.is_read_only() {
            return Err(Error::ReadOnly);
        }
        let saved = match (self.driver().as_vm_state(), self.driver().filtered()) {
            (Some(state), _) => state.save(offset, iov).await,
            (None, Some(below)) => Box::pin(below.save_vm_state(offset, iov)).await,
            (None, None) => return Err(Error::Unsupported),
        };
        self.finish_write(ByteRange::default(), RequestFlags::empty());
        saved
    }

    /// Loads the machine state from `offset` on into `iov`; see [`VmState`](crate::ability::VmState).
    /// `Unsupported` where the format has none.
    pub async fn load_vm_state(&self, offset: u64, iov: IoVec) -> Result<()> {
        let _ticket = self.begin(nothing(), RequestFlags::empty()).await?;
        match (self.driver().as_vm_state(), self.driver().filtered()) {
            (Some(state), _) => state.load(offset, iov).await,
            (None, Some(below)) => Box::pin(below.load_vm_state(offset, iov)).await,
            (None, None) => Err(Error::Unsupported),
        }
    }
}

/// A place among the requests in flight that conflicts with none.
fn nothing() -> Claim {
    Claim::shared(ByteRange::default())
}
