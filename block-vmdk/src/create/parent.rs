//! The image that a new one is made on.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use block_core::error::Problem;
use block_core::options::OpenFlags;
use block_core::registry::{BACKING_FILE, OpenContext};
use block_core::{Node, OpenError, Options, graph};

use super::options::refuse;
use crate::descriptor::DescriptorError;
use crate::error::FORMAT;
use crate::open::content_id_of;
use crate::units::ContentId;

/// What is to be known of the parent of a new image.
pub(super) struct ParentImage {
    pub(super) content_id: ContentId,
    /// The files that it is in.
    files: HashSet<FileId>,
}

/// What tells a file from others.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum FileId {
    /// Device and inode of one that is there.
    There(u64, u64),
    /// Its path, where there is no such file, or none that could be asked.
    Path(PathBuf),
}

impl FileId {
    fn of(name: &str) -> Self {
        let path = Path::new(name.strip_prefix("file:").unwrap_or(name));
        match std::fs::metadata(path) {
            Ok(there) => Self::There(there.dev(), there.ino()),
            Err(_) => {
                let parts = path.components().filter(|part| *part != Component::CurDir);
                Self::Path(parts.collect())
            }
        }
    }
}

impl ParentImage {
    /// Refuses to make files that are the parent's, which the option names as `name`.
    pub(super) fn spare(&self, name: &str, made: &[String]) -> Result<(), OpenError> {
        if made.iter().any(|file| self.files.contains(&FileId::of(file))) {
            let problem = Problem::Contradicts("the new image, one of whose files it is");
            return Err(refuse("backing_file", name, problem));
        }
        Ok(())
    }
}

/// Looks at the image `name`, which counts from where the new image `image` will be. The image must
/// open, but for its own parent.
pub(super) async fn look(
    context: &OpenContext,
    image: &str,
    name: &str,
) -> Result<ParentImage, OpenError> {
    let child = |source| OpenError::Child {
        role: BACKING_FILE,
        name: name.to_owned(),
        source: Box::new(source),
    };
    let mut reading = context.clone();
    reading.flags = OpenFlags { writable: false, no_backing: true, ..context.flags };
    let path = context.resolve_beside(image, name)?;
    let options = Options::filename(path.clone()).with("driver", FORMAT);
    let node = reading.open(options).await.map_err(child)?;
    let id = content_id_of(&node);
    let mut files = HashSet::from([FileId::of(&path)]);
    note_files(&node, &mut files);
    let closed = graph::close(&node).await;
    closed.map_err(|error| child(OpenError::Request { what: "closing", error }))?;
    // With the id of no parent, the new image would have none.
    let usable = id.filter(|id| *id != ContentId::NO_PARENT);
    let content_id =
        usable.ok_or_else(|| child(DescriptorError::Missing { name: "CID" }.into()))?;
    Ok(ParentImage { content_id, files })
}

fn note_files(node: &Node, files: &mut HashSet<FileId>) {
    let name = node.driver().info().filename;
    files.extend(name.map(|name| FileId::of(&name)));
    for child in node.children() {
        note_files(&child.node, files);
    }
}
