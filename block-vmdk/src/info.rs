//! What `info` says of an image, in the names and the order that scripts know.

use block_core::Node;
use block_core::info::{DriverInfo, InfoValue};

use crate::descriptor::{Descriptor, Extent, ExtentKind, PARENT_HINT};
use crate::driver::VmdkDriver;
use crate::error::FORMAT;
use crate::extent::{Body, DiskExtent};
use crate::identity::{Identity, Place};
use crate::units::ContentId;

/// What an open image says of itself.
pub(crate) fn of(driver: &VmdkDriver) -> DriverInfo {
    let hint = driver.identity.as_ref().and_then(|identity| {
        identity.with(|descriptor| {
            let hint = descriptor.value(PARENT_HINT).filter(|_| descriptor.has_parent())?;
            Some(String::from_utf8_lossy(hint).into_owned())
        })
    });
    DriverInfo {
        cluster_size: driver.sparse().map(|sparse| sparse.geometry().grain_size()).max(),
        backing_format: hint.as_ref().map(|_| FORMAT.to_owned()),
        backing_filename: hint,
        specific: specific(driver.identity.as_deref(), &driver.extents),
        ..DriverInfo::default()
    }
}

fn specific(identity: Option<&Identity>, extents: &[DiskExtent]) -> Vec<(&'static str, InfoValue)> {
    let mut all = Vec::new();
    let mut kinds = Vec::new();
    if let Some(identity) = identity {
        identity.with(|descriptor| {
            all.extend(ids(descriptor));
            if identity.place() == Place::File {
                // The disk has none of no length.
                let there = descriptor.extents().iter().filter(|extent| extent.sectors.0 > 0);
                kinds.extend(there.map(|extent: &Extent| extent.kind));
            }
        });
    }
    let kinds = kinds.into_iter().map(Some).chain(std::iter::repeat(None));
    let listed = extents.iter().zip(kinds).map(|(extent, kind)| extent_info(extent, kind));
    all.push(("extents", InfoValue::List(listed.collect())));
    all
}

/// The content ids as numbers, and how the files are laid out.
fn ids(descriptor: &Descriptor) -> Vec<(&'static str, InfoValue)> {
    let id = |id: u32| InfoValue::Int(id.into());
    let parent = descriptor.parent_content_id().unwrap_or(ContentId::NO_PARENT);
    let create_type = descriptor.value("createType").unwrap_or_default();
    let create_type = String::from_utf8_lossy(create_type).into_owned();
    let own = descriptor.content_id().map(|own| ("cid", id(own.0)));
    own.into_iter()
        .chain([("parent-cid", id(parent.0)), ("create-type", InfoValue::Text(create_type))])
        .collect()
}

/// An extent; without a `kind` it is the file that holds the descriptor.
fn extent_info(extent: &DiskExtent, kind: Option<ExtentKind>) -> InfoValue {
    let mut all = Vec::new();
    let (node, grain) = match &extent.body {
        Body::Zero => (None, None),
        Body::Flat { node, .. } => (Some(node), None),
        Body::Sparse(sparse) => {
            if sparse.layout.is_compressed() {
                all.push(("compressed", InfoValue::Bool(true)));
            }
            (Some(&sparse.file), Some(sparse.geometry().grain_size()))
        }
    };
    let filename = node.and_then(|node: &Node| node.driver().info().filename);
    all.push(("virtual-size", InfoValue::Int(extent.range.len())));
    all.push(("filename", InfoValue::Text(filename.unwrap_or_default())));
    all.extend(grain.map(|grain| ("cluster-size", InfoValue::Int(grain))));
    let kind = kind.map_or("", ExtentKind::name);
    all.push(("format", InfoValue::Text(kind.to_owned())));
    InfoValue::Map(all)
}
