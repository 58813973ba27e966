//! Making an image: an empty disk, with as much allocated as was asked for.
//!
//! Invariants: what is refused is refused before a byte of the file changes; the first sector of the
//! file is written last, behind a flush, so that a half-made image does not open; memory is bounded
//! whatever the size of the disk.

mod layout;
mod options;
mod write;

pub use options::CreateOptions;
pub use write::create_on;

pub(crate) use layout::{Layout, Mapped};
pub(crate) use options::{OPTIONS, Plan};
pub(crate) use write::first_cluster;

use block_core::registry::OpenContext;
use block_core::{Node, OpenError, Options};

/// Makes the image that `options` describe, in the file that they name, and its data file.
pub(crate) async fn create(mut options: Options, context: OpenContext) -> Result<(), OpenError> {
    let new = CreateOptions::take(&mut options)?;
    first_cluster(&new, &new.check()?)?;
    if let (Some(image), Some(data)) = (options.peek("filename"), &new.data_file) {
        context.resolve_beside(image, data)?;
    }
    let file = context.create_file(options).await?;
    let made = match make_data_file(&new, &file, &context).await {
        Ok(data) => {
            let made = create_on(&file, data.as_ref(), &new).await;
            match data {
                Some(data) => made.and(close(&data).await),
                None => made,
            }
        }
        Err(error) => Err(error),
    };
    made.and(close(&file).await)
}

/// Makes the data file, whose name counts from where the image is.
async fn make_data_file(
    new: &CreateOptions,
    file: &Node,
    context: &OpenContext,
) -> Result<Option<Node>, OpenError> {
    let Some(name) = &new.data_file else { return Ok(None) };
    let path = context.resolve(file, name)?;
    context.create_file(Options::filename(path)).await.map(Some)
}

async fn close(node: &Node) -> Result<(), OpenError> {
    node.close().await.map_err(|error| OpenError::Request { what: "closing the new image", error })
}
