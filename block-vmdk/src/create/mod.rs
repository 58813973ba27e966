//! Making an image: an empty disk, in one file or several.
//!
//! Invariants: what is refused is refused before a byte of any file changes; extents come before the
//! descriptor that names them, and the first sector of each file is written last, behind a flush, so
//! that a half-made image does not open; memory is bounded whatever the size of the disk.

mod layout;
mod names;
mod options;
mod parent;
mod stream;
mod write;

pub use options::CreateOptions;
pub use write::{ExtentFiles, create_on};

pub(crate) use layout::{COWD_GRAIN_SECTORS, Embedded, GRAIN_SECTORS, HostedLayout};
pub(crate) use options::{OPTIONS, Plan};
pub(crate) use stream::{
    OVERHEAD as STREAM_OVERHEAD, TAIL_SECTORS as STREAM_TAIL_SECTORS, header as stream_header,
};
pub(crate) use write::{descriptor_len, embedded_descriptor, new_content_id};

use async_trait::async_trait;
use block_core::error::Problem;
use block_core::metadata::new_file::close;
use block_core::registry::OpenContext;
use block_core::{Node, OpenError, Options};

use names::Names;

use crate::open::extent_file;

/// What an image is called where nobody knows its name.
pub(crate) const NAMELESS: &str = "disk.vmdk";

/// Makes the image that `options` describe, in the file that they name, and the files of its extents
/// beside it.
pub(crate) async fn create(mut options: Options, context: OpenContext) -> Result<(), OpenError> {
    let mut new = CreateOptions::take(&mut options)?;
    let plan = new.plan()?;
    let name = match options.peek("filename").or_else(|| options.peek("file.filename")) {
        Some(name) => name.to_owned(),
        None if plan.has_own_extents() => {
            let option = "filename".to_owned();
            return Err(OpenError::Option { option, problem: Problem::Missing });
        }
        None => NAMELESS.to_owned(),
    };
    write::check_descriptor(&plan, &Names::of_image(&name)?)?;
    if plan.has_own_extents() {
        // Whether any name of an extent is followed does not depend on its number.
        context.resolve_beside(&name, NAMELESS)?;
    }
    if let Some(backing) = &mut new.backing {
        let parent = parent::look(&context, &name, &backing.name).await?;
        let names = write::extent_names(&plan, &Names::of_image(&name)?)?;
        let mut made = vec![name.clone()];
        for extent in names.into_iter().filter(|_| plan.has_own_extents()) {
            made.push(context.resolve_beside(&name, &extent_file(&extent))?);
        }
        parent.spare(&backing.name, &made)?;
        backing.cid = parent.content_id;
    }
    let file = context.create_file(options).await?;
    let files = Beside { context, image: name };
    let made = create_on(&file, &files.image, &files, &new).await;
    made.and(close(&file).await)
}

/// Makes files in the directory of an image.
struct Beside {
    context: OpenContext,
    image: String,
}

#[async_trait]
impl ExtentFiles for Beside {
    async fn make(&self, name: &str) -> Result<Node, OpenError> {
        let path = self.context.resolve_beside(&self.image, &extent_file(name))?;
        self.context.create_file(Options::filename(path)).await
    }
}
