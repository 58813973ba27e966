//! Backing files as the command line names them: finding one in a chain, opening one for an overlay.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use block_core::registry::{MAX_CHAIN, OpenContext};
use block_core::{Node, OpenError, OpenFlags, Options};

use crate::open::{CacheMode, ImageSpec, registry};

use super::info::storage_name;

/// The backing files below `top`, nearest first.
pub(super) fn chain(top: &Node) -> impl Iterator<Item = Node> {
    std::iter::successors(top.backing(), Node::backing).take(MAX_CHAIN)
}

/// The backing file of `top` that is the file `path`, and how many images are above it.
pub(super) fn find_in_chain(top: &Node, path: &str) -> Option<(Node, usize)> {
    let wanted = identity(path)?;
    let found = |node: &Node| storage_name(node).and_then(|name| identity(&name)) == Some(wanted);
    chain(top).zip(1..).find(|(node, _)| found(node))
}

/// Where the name `name` in the header of the image `image` leads, which need not exist yet.
pub(super) fn beside(image: &str, name: &str) -> String {
    let image = Path::new(image.strip_prefix("file:").unwrap_or(image));
    let path = image.parent().unwrap_or(Path::new("")).join(name);
    path.into_os_string().into_string().unwrap_or_default()
}

/// Where `name` in the header of `overlay` leads.
pub(super) fn relative_to(overlay: &Node, name: &str) -> Result<String, OpenError> {
    OpenContext::new(registry(), OpenFlags::READ_ONLY).resolve(overlay, name)
}

/// The image `path`, which is a path whatever it looks like, to be read.
pub(super) fn spec_of_path(path: String, format: Option<&str>, cache: CacheMode) -> ImageSpec {
    ImageSpec {
        // As an option of its own: in the place of a name it could be taken for a protocol.
        options: Options::filename(path),
        format: format.map(str::to_owned),
        cache,
        ..ImageSpec::new("")
    }
}

/// What tells one file from all others.
fn identity(name: &str) -> Option<(u64, u64)> {
    let path = Path::new(name.strip_prefix("file:").unwrap_or(name));
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}
