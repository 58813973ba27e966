//! Whether imago reads from an image what a raw disk holds.

use std::fs::File as RawFile;
use std::io::Read;
use std::path::PathBuf;

use clap::Args;
use imago::file::File;
use imago::io_buffers::IoBuffer;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate};
use serde_json::{Value, json};

use crate::Failure;

const CHUNK: usize = 1 << 20;

/// Options of `same`.
#[derive(Args)]
pub struct Arguments {
    /// A raw disk, whose length is a multiple of 512.
    raw: PathBuf,
    /// A qcow2 image.
    image: PathBuf,
}

/// Fails where they differ; else says how many bytes are the same.
pub fn run(arguments: &Arguments) -> Result<Value, Failure> {
    let mut raw = RawFile::open(&arguments.raw)?;
    let len = raw.metadata()?.len();
    let image = Qcow2::<File>::builder_path(&arguments.image)
        .open(PermissiveImplicitOpenGate::default())?;
    let image = FormatAccess::new(image);
    if image.size() != len {
        return Err(format!("the image has {} bytes and the disk {len}", image.size()).into());
    }
    let mut at = 0;
    while at < len {
        let part = usize::try_from((len - at).min(CHUNK as u64))?;
        let mut expected = vec![0; part];
        raw.read_exact(&mut expected)?;
        let mut buf = IoBuffer::new(part, 4096)?;
        image.read(&mut buf, at)?;
        let read = buf.as_ref().into_slice();
        if let Some(place) = expected.iter().zip(read).position(|(a, b)| a != b) {
            return Err(format!("they differ at {}", at + place as u64).into());
        }
        at += part as u64;
    }
    Ok(json!({ "bytes": len }))
}
