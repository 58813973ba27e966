//! `-l` of commands that read: a snapshot of the source in place of its disk.

use block_core::{OpenFlags, graph};

use crate::open::ImageSpec;

use super::Failure;
use super::common::open_image;

/// How a snapshot is named.
enum Wanted<'a> {
    /// By id, or else by name.
    Any(&'a str),
    /// By both, where given.
    Exactly { id: Option<&'a str>, name: Option<&'a str> },
}

/// Makes `spec` open the snapshot that `text` names instead of the disk.
pub(super) async fn select(spec: &mut ImageSpec, text: &str) -> Result<(), Failure> {
    let wanted = parse(text)?;
    let flags = OpenFlags { no_io: true, no_backing: true, ..OpenFlags::READ_ONLY };
    let node = open_image(&ImageSpec { flags, ..spec.clone() }, 1).await?;
    let format = node.driver().name();
    let list = node.driver().as_snapshots().map(|snapshots| snapshots.list());
    graph::close(&node).await.map_err(Failure::new)?;
    let Some(list) = list else {
        return Err(Failure::new(format_args!(
            "Failed to load snapshot: '{format}' has no internal snapshots"
        )));
    };
    let found = match wanted {
        Wanted::Any(text) => {
            list.iter().find(|s| s.id == text).or_else(|| list.iter().find(|s| s.name == text))
        }
        Wanted::Exactly { id, name } => list
            .iter()
            .find(|s| id.is_none_or(|id| s.id == id) && name.is_none_or(|name| s.name == name)),
    };
    let missing = || Failure::new("Failed to load snapshot: Can't find snapshot");
    let id = found.ok_or_else(missing)?.id.clone();
    spec.options.set("snapshot", id);
    Ok(())
}

fn parse(text: &str) -> Result<Wanted<'_>, Failure> {
    if !text.starts_with("snapshot.") {
        return Ok(Wanted::Any(text));
    }
    let (mut id, mut name) = (None, None);
    for item in text.split(',') {
        match item.split_once('=') {
            Some(("snapshot.id", value)) => id = Some(value),
            Some(("snapshot.name", value)) => name = Some(value),
            _ => {
                let item = item.split('=').next().unwrap_or_default();
                return Err(Failure::new(format_args!("Invalid parameter '{item}'")));
            }
        }
    }
    Ok(Wanted::Exactly { id, name })
}
