//! What a full file is good for: what was let go is waited for.
//!
//! It is free again only when no stable table refers to it and no request from before is inside of the
//! gate, so nobody waits for it from inside.

use std::future::Future;

use crate::error::{Error, Result};

/// How often a change is tried again when what was let go is free again.
const RETRIES: usize = 8;

/// Does `change`, which enters the gate, and may be done again after it failed in part. Does it again where
/// there was no room and `reclaim` makes some: it says whether there was anything to wait for.
pub async fn with_room<C, R>(change: impl Fn() -> C, reclaim: impl Fn() -> R) -> Result<()>
where
    C: Future<Output = Result<()>>,
    R: Future<Output = Result<bool>>,
{
    let mut tries = 0;
    loop {
        let changed = change().await;
        // Others may take what is free again before this one comes to it.
        let again = changed == Err(Error::NO_SPACE) && tries < RETRIES;
        if !again || !reclaim().await? {
            return changed;
        }
        tries += 1;
    }
}
