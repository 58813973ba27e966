//! Requests for the state of a machine, which formats keep beside the disk.
//!
//! They pass filters, count as in flight for drains, and a flush after a save has something to do. They
//! conflict with nothing: the state is no part of the disk.

use crate::buf::IoVec;
use crate::error::{Error, Result};
use crate::flags::RequestFlags;
use crate::io::exec::{ToTheEnd, to_the_end};
use crate::node::Node;
use crate::range::ByteRange;

use super::tracked::Claim;

impl Node {
    /// Saves `iov` at `offset` of the machine state; see [`VmState`](crate::ability::VmState).
    /// `Unsupported` where the format has none.
    ///
    /// Once polled it runs to its end, as requests do.
    pub fn save_vm_state(&self, offset: u64, iov: IoVec) -> ToTheEnd<Result<()>> {
        let node = self.clone();
        to_the_end(async move {
            let _ticket = node.begin(nothing(), RequestFlags::empty()).await?;
            if node.is_read_only() {
                return Err(Error::ReadOnly);
            }
            let saved = match (node.driver().as_vm_state(), node.driver().filtered()) {
                (Some(state), _) => state.save(offset, iov).await,
                (None, Some(below)) => below.save_vm_state(offset, iov).await,
                (None, None) => return Err(Error::Unsupported),
            };
            node.finish_write(ByteRange::default(), RequestFlags::empty());
            saved
        })
    }

    /// Loads the machine state from `offset` on into `iov`; see [`VmState`](crate::ability::VmState).
    /// `Unsupported` where the format has none.
    ///
    /// Once polled it runs to its end, as requests do.
    pub fn load_vm_state(&self, offset: u64, iov: IoVec) -> ToTheEnd<Result<()>> {
        let node = self.clone();
        to_the_end(async move {
            let _ticket = node.begin(nothing(), RequestFlags::empty()).await?;
            match (node.driver().as_vm_state(), node.driver().filtered()) {
                (Some(state), _) => state.load(offset, iov).await,
                (None, Some(below)) => below.load_vm_state(offset, iov).await,
                (None, None) => Err(Error::Unsupported),
            }
        })
    }
}

/// A place among the requests in flight that conflicts with none.
fn nothing() -> Claim {
    Claim::shared(ByteRange::default())
}
