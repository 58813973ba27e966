//! What `info` says of an image, in the names and the order that scripts know.

use block_core::info::{DriverInfo, InfoValue};

use crate::driver::{Lists, Qcow2Driver};
use crate::geometry::{L2Format, Version};
use crate::header_store::Parts;
use crate::spec::bitmap::Bitmap;
use crate::spec::header::CryptMethod;

pub(crate) fn of(driver: &Qcow2Driver) -> DriverInfo {
    let lists = driver.lists.read();
    driver.header.with(|parts| {
        let name = parts.backing_name.as_deref().map(String::from_utf8_lossy);
        let geometry = parts.header.geometry;
        let (cluster, subcluster) = (geometry.cluster_size(), geometry.subcluster_size());
        DriverInfo {
            cluster_size: Some(cluster),
            subcluster_size: (subcluster < cluster).then_some(subcluster),
            backing_filename: name.map(|name| name.into_owned()),
            backing_format: parts.extensions.backing_format.clone(),
            dirty: parts.header.features.dirty,
            encrypted: parts.header.crypt_method != CryptMethod::None,
            specific: specific(parts, &lists),
            ..DriverInfo::default()
        }
    })
}

fn specific(parts: &Parts, lists: &Lists) -> Vec<(&'static str, InfoValue)> {
    let header = &parts.header;
    let (features, geometry) = (header.features, header.geometry);
    let v3 = geometry.version() == Version::V3;
    let text = |text: &str| InfoValue::Text(text.to_owned());
    let mut all = vec![
        ("compat", text(if v3 { "1.1" } else { "0.10" })),
        ("compression-type", text(header.compression.name())),
    ];
    if v3 {
        all.push(("lazy-refcounts", InfoValue::Bool(features.lazy_refcounts)));
        if !lists.bitmaps.is_empty() {
            let bitmaps = lists.bitmaps.iter().map(bitmap).collect();
            all.push(("bitmaps", InfoValue::List(bitmaps)));
        }
    }
    all.push(("refcount-bits", InfoValue::Int(geometry.refcount_bits())));
    let encryption = match header.crypt_method {
        CryptMethod::None => None,
        CryptMethod::Aes => Some("aes"),
        CryptMethod::Luks => Some("luks"),
    };
    if let Some(format) = encryption {
        all.push(("encrypt", InfoValue::Map(vec![("format", text(format))])));
    }
    if v3 {
        if let (true, Some(name)) = (features.data_file, &parts.extensions.data_file) {
            all.push(("data-file", text(name)));
        }
        if features.data_file {
            all.push(("data-file-raw", InfoValue::Bool(features.raw_data_file)));
        }
        let extended = geometry.l2_format() == L2Format::Extended;
        all.push(("corrupt", InfoValue::Bool(features.corrupt)));
        all.push(("extended-l2", InfoValue::Bool(extended)));
    }
    all
}

fn bitmap(bitmap: &Bitmap) -> InfoValue {
    let flags = [("in-use", bitmap.in_use), ("auto", bitmap.auto)];
    let set = flags.iter().filter(|(_, set)| *set);
    let flags = set.map(|(name, _)| InfoValue::Text((*name).to_owned()));
    InfoValue::Map(vec![
        ("flags", InfoValue::List(flags.collect())),
        ("name", InfoValue::Text(bitmap.name.clone())),
        ("granularity", InfoValue::Int(bitmap.granularity)),
    ])
}
