//! The content id of an image that a new one is made on.

use block_core::options::OpenFlags;
use block_core::registry::{BACKING_FILE, OpenContext};
use block_core::{OpenError, Options, graph};

use crate::descriptor::DescriptorError;
use crate::error::FORMAT;
use crate::open::content_id_of;
use crate::units::ContentId;

/// The content id of the image `name`, which counts from where the new image `image` will be. The image
/// must open, but for its own parent.
pub(super) async fn content_id(
    context: &OpenContext,
    image: &str,
    name: &str,
) -> Result<ContentId, OpenError> {
    let child = |source| OpenError::Child {
        role: BACKING_FILE,
        name: name.to_owned(),
        source: Box::new(source),
    };
    let mut reading = context.clone();
    reading.flags = OpenFlags { writable: false, no_backing: true, ..context.flags };
    let options = Options::filename(context.resolve_beside(image, name)?).with("driver", FORMAT);
    let node = reading.open(options).await.map_err(child)?;
    let id = content_id_of(&node);
    let closed = graph::close(&node).await;
    closed.map_err(|error| child(OpenError::Request { what: "closing", error }))?;
    // With the id of no parent, the new image would have none.
    let usable = id.filter(|id| *id != ContentId::NO_PARENT);
    usable.ok_or_else(|| child(DescriptorError::Missing { name: "CID" }.into()))
}
