//! Moves what the layers above a base hold into the base, so that the base reads as the top does.
//!
//! # Order
//! The base grows if it is shorter than the top; the data is copied; the base is flushed; only then is
//! the top emptied, if that was asked for. Whatever ends the job before, the top still reads as it did.
//!
//! Where the layer above the base names the base's state ([`Rebase::names_state`]), the state gets its new name
//! before all that, whether anything will be copied or not, and the layer follows at once. Only a crash between
//! these two writes leaves a layer that does not open: nothing else has changed by then, and it opens again once
//! its backing file is named anew ([`Rebase::change_backing`]).
//!
//! # Invariants
//! * What no layer above the base holds is neither read nor written.
//! * When `commit` returns, with whatever result, no request of it is in flight.
//!
//! Not here: making the base (and a layer above it that names its state) writable, and what becomes of layers
//! between top and base, which may read differently afterwards.
//!
//! [`Rebase::names_state`]: crate::ability::Rebase::names_state
//! [`Rebase::change_backing`]: crate::ability::Rebase::change_backing

use crate::cancel::Cancel;
use crate::driver::{Exactness, Prealloc};
use crate::error::Error;
use crate::node::Node;

use super::copy::{Copied, CopyError, CopyOptions, CopySource, Layers, Watch, copy};

/// What becomes of the top's own data.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum Afterwards {
    /// It stays.
    #[default]
    Keep,
    /// It is dropped: the top reads through to its backing file.
    Empty,
}

/// How to commit.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct CommitOptions {
    /// How the data is copied; what is known of the target is not used.
    pub copy: CopyOptions,
    /// What becomes of the top.
    pub afterwards: Afterwards,
}

/// Why a commit did not come to its end.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CommitError {
    /// The base is not among the backing files of the top.
    #[error("the base is not in the backing chain")]
    NotInChain,
    /// The top cannot drop its data.
    #[error("emptying an image is not supported by '{driver}'")]
    CannotEmpty {
        /// The top's driver.
        driver: &'static str,
    },
    /// The new state of the base has no name, or the layer above the base cannot have it.
    #[error("cannot name the new state of the base: {0}")]
    NewState(Error),
    /// The base is shorter than the top and cannot grow.
    #[error("cannot grow the base to {len} bytes: {error}")]
    Grow {
        /// Length of the top in bytes.
        len: u64,
        /// Why.
        error: Error,
    },
    /// The data could not be copied.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The base, or the top, could not be flushed.
    #[error("error while flushing: {0}")]
    Flush(Error),
    /// Everything is in the base, but the top could not be emptied.
    #[error("cannot empty the image: {0}")]
    Empty(Error),
}

/// Commits what the layers from `top` down to `base` (not included) hold into `base`, which must be
/// writable and below `top`. So must be the layer directly above `base` if it names the base's state.
///
/// `cancel` is looked at between pieces; what was copied by then stays in the base, where it changes
/// nothing that `top` reads.
pub async fn commit(
    top: &Node,
    base: &Node,
    options: CommitOptions,
    cancel: &Cancel,
    watch: impl Watch,
) -> Result<Copied, CommitError> {
    let below = std::iter::successors(top.backing(), Node::backing);
    if !below.take(crate::registry::MAX_CHAIN).any(|node| node.same(base)) {
        return Err(CommitError::NotInChain);
    }
    if options.afterwards == Afterwards::Empty && top.driver().as_rebase().is_none() {
        return Err(CommitError::CannotEmpty { driver: top.driver().name() });
    }
    name_new_state(top, base).await.map_err(CommitError::NewState)?;
    let len = top.len();
    if base.len() < len {
        let grown = base.truncate(len, Exactness::AtLeast, Prealloc::Off).await;
        grown.map_err(|error| CommitError::Grow { len, error })?;
    }
    let layers = Layers::Above(base.clone());
    let source = CopySource { layers, ..CopySource::new(top.clone(), len) };
    let copying = CopyOptions { target: Default::default(), ..options.copy };
    let copied = copy(vec![source], base, copying, cancel, watch).await?;
    base.flush().await.map_err(CommitError::Flush)?;
    if let (Afterwards::Empty, Some(rebase)) = (options.afterwards, top.driver().as_rebase()) {
        rebase.make_empty().await.map_err(CommitError::Empty)?;
        top.flush().await.map_err(CommitError::Flush)?;
    }
    Ok(copied)
}

/// Gives the base's state its new name, if the layer above the base names it, and has the layer follow.
async fn name_new_state(top: &Node, base: &Node) -> Result<(), Error> {
    let layers = std::iter::successors(Some(top.clone()), Node::backing);
    let mut layers = layers.take(crate::registry::MAX_CHAIN);
    let above = layers.find(|node| node.backing().is_some_and(|below| below.same(base)));
    let Some(above) = above else { return Ok(()) };
    let naming = above.driver().as_rebase().filter(|rebase| rebase.names_state());
    let (Some(naming), Some(named)) = (naming, base.driver().as_rebase()) else { return Ok(()) };
    if above.is_read_only() {
        return Err(Error::ReadOnly);
    }
    named.renew_state().await?;
    naming.follow_backing().await
}
