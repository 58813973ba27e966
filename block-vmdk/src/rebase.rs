//! Another parent in the descriptor, and an image without data of its own.
//!
//! **Invariants.** The parent's content id in the descriptor is the one that the parent has when it is
//! named; a name that cannot stand in a descriptor, and a parent that has no content id, are refused before
//! anything is changed. A crash while the image is emptied leaves every grain either as it was or as the
//! backing file has it.

use std::sync::Arc;

use async_trait::async_trait;
use block_core::ability::Rebase;
use block_core::error::Problem;
use block_core::io::exec::to_the_end;
use block_core::registry::BACKING_FILE;
use block_core::{ByteRange, Error, OpenError, OpenFlags, Options, Result, graph};

use crate::descriptor::{PARENT_HINT, Quoted};
use crate::driver::VmdkDriver;
use crate::error::FORMAT;
use crate::extent::Body;
use crate::identity::Identity;
use crate::open::content_id_of;
use crate::units::ContentId;

#[async_trait]
impl Rebase for VmdkDriver {
    async fn change_backing(
        &self,
        name: Option<&str>,
        format: Option<&str>,
    ) -> Result<(), OpenError> {
        if block_core::driver::BlockDriver::is_read_only(self) {
            return Err(OpenError::Request { what: BACKING_FILE, error: Error::ReadOnly });
        }
        let Some((identity, hint)) = self.parent_to_be(name, format)? else {
            return self.identity()?.update(|descriptor| Ok(descriptor.remove_parent()?)).await;
        };
        let id = self.content_id_of_file(hint.as_str()).await?;
        identity.update(|descriptor| Ok(descriptor.set_parent(&hint, id)?)).await
    }

    async fn check_backing(
        &self,
        name: Option<&str>,
        format: Option<&str>,
    ) -> Result<(), OpenError> {
        match self.parent_to_be(name, format)? {
            Some((_, hint)) => self.content_id_of_file(hint.as_str()).await.map(drop),
            None => self.identity().map(drop),
        }
    }

    fn names_state(&self) -> bool {
        true
    }

    async fn renew_state(&self) -> Result<()> {
        self.begin_change(ByteRange::up_to(0)).await
    }

    async fn follow_backing(&self) -> Result<()> {
        self.follow_parent().await
    }

    async fn make_empty(&self) -> Result<()> {
        let this = self.shared()?;
        to_the_end(async move { this.drop_all_data().await }).await
    }
}

impl VmdkDriver {
    async fn drop_all_data(&self) -> Result<()> {
        if !self.extents.iter().all(|extent| matches!(extent.body, Body::Sparse(_))) {
            return Err(Error::Unsupported);
        }
        self.begin_change(ByteRange::up_to(block_core::driver::BlockDriver::len(self))).await?;
        for extent in &self.extents {
            extent.make_empty().await?;
        }
        self.follow_parent().await
    }

    /// The descriptor, which there must be.
    fn identity(&self) -> Result<&Arc<Identity>, OpenError> {
        let what = "a backing file of an image without a descriptor";
        self.identity.as_ref().ok_or(unsupported(what))
    }

    /// The name of a parent as it can stand in the descriptor; `None` if there shall be none.
    fn parent_to_be(
        &self,
        name: Option<&str>,
        format: Option<&str>,
    ) -> Result<Option<(&Arc<Identity>, Quoted)>, OpenError> {
        let identity = self.identity()?;
        let Some(name) = name else { return Ok(None) };
        if format.is_some_and(|format| format != FORMAT) {
            return Err(unsupported("a backing file of another format"));
        }
        if !self.extents.iter().all(|extent| matches!(extent.body, Body::Sparse(_))) {
            return Err(unsupported("a backing file of an image that is not sparse"));
        }
        let hint = Quoted::new(name).ok_or_else(|| OpenError::Reference {
            name: name.escape_default().to_string(),
            problem: Problem::NotPlainName,
        })?;
        Ok(Some((identity, hint)))
    }

    /// The content id of the image `name`, seen from where this one is.
    async fn content_id_of_file(&self, name: &str) -> Result<ContentId, OpenError> {
        let mut context = self.context.clone();
        let flags = context.flags;
        context.flags = OpenFlags { writable: false, no_io: true, ..flags };
        context.writable_backing_depths = 0..0;
        let node =
            context.open_reference(BACKING_FILE, &self.file, name, Some(FORMAT), Options::new());
        let node = node.await?;
        let id = content_id_of(&node);
        let closed = graph::close(&node).await;
        closed.map_err(|error| OpenError::Request { what: BACKING_FILE, error })?;
        // With the id of no parent, the image would have none.
        id.filter(|id| *id != ContentId::NO_PARENT).ok_or_else(|| OpenError::Option {
            option: PARENT_HINT.to_owned(),
            problem: Problem::Contradicts("the backing file's lack of a content id"),
        })
    }
}

fn unsupported(what: &'static str) -> OpenError {
    OpenError::Unsupported { driver: FORMAT, what }
}
