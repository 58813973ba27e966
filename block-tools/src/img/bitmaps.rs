//! Copying persistent bitmaps from one image to another (`convert --bitmaps`).

use block_core::Node;
use block_core::dirty::{BitmapId, BitmapInfo, Granularity};

use crate::program;
use crate::surroundings::complain;

use super::Failure;

/// What becomes of bitmaps that were not saved properly.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Broken {
    /// Nothing is copied at all.
    Refuse,
    /// They are left out.
    Skip,
}

/// Fails unless the bitmaps of `source` can be copied, before anything is.
pub(super) fn check_source(source: &Node, broken: Broken) -> Result<(), Failure> {
    if source.driver().as_bitmaps().is_none() {
        return Err(Failure::new("Source lacks bitmap support"));
    }
    for (_, name, info) in persistent(source) {
        if info.inconsistent && broken == Broken::Refuse {
            let program = program::name();
            return Err(Failure::new(format_args!(
                "Cannot copy inconsistent bitmap '{name}'\n\
                 Try --skip-broken-bitmaps, or use '{program} bitmap --remove' to delete it"
            )));
        }
    }
    Ok(())
}

/// Fails unless `target` can hold bitmaps.
pub(super) fn check_target(target: &Node) -> Result<(), Failure> {
    if target.driver().as_bitmaps().is_some() {
        return Ok(());
    }
    let format = target.driver().name();
    Err(Failure::new(format_args!("Format driver '{format}' does not support bitmaps")))
}

/// Copies the persistent bitmaps; they record where those of the source do.
pub(super) fn copy(source: &Node, target: &Node, broken: Broken) -> Result<(), Failure> {
    for (id, name, info) in persistent(source) {
        if info.inconsistent {
            if broken == Broken::Skip {
                let program = program::name();
                complain(format_args!("{program}: warning: Skipping inconsistent bitmap '{name}'"));
            }
            continue;
        }
        let failed = |error: &dyn std::fmt::Display| {
            Failure::new(format_args!("Failed to create bitmap {name}: {error}"))
        };
        if let Some(storage) = target.driver().as_bitmaps() {
            storage.can_store(&name, info.granularity).map_err(|error| failed(&error))?;
        }
        let granularity = Granularity::new(info.granularity).map_err(|error| failed(&error))?;
        let bitmaps = target.dirty_bitmaps();
        let new = bitmaps.create(Some(&name), granularity).map_err(|error| failed(&error))?;
        let merged = source.dirty_bitmaps().with(id, |from| {
            bitmaps.update(new, |to| {
                to.make_persistent()?;
                to.merge(from)?;
                if from.is_enabled() { Ok(()) } else { to.disable() }
            })
        });
        let merged = merged.and_then(|updated| updated).and_then(|changed| changed);
        merged.map_err(|error| {
            Failure::new(format_args!("Failed to populate bitmap {name}: {error}"))
        })?;
    }
    Ok(())
}

/// The persistent bitmaps of a node.
pub(super) fn persistent(node: &Node) -> impl Iterator<Item = (BitmapId, String, BitmapInfo)> {
    let all = node.dirty_bitmaps().list().into_iter();
    all.filter(|(_, info)| info.persistent)
        .filter_map(|(id, info)| info.name.clone().map(|name| (id, name, info)))
}
