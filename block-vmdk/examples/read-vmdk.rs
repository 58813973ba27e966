//! Says what a VMDK disk is made of, and reads from it.
//!
//! `read-vmdk IMAGE [OFFSET]` prints the extents of the disk, without opening anything but the descriptor;
//! then it opens the disk, with its parents if it has any, and prints the text at `OFFSET` (0).

#![forbid(unsafe_code)]

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

use block_core::graph;
use block_core::info::InfoValue;
use block_core::io::exec::block_on;
use block_core::proto::file::FileFactory;
use block_core::registry::OpenContext;
use block_core::{Alignment, ByteRange, IoBuf, OpenFlags, Options, Registry};
use block_vmdk::VmdkFactory;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("read-vmdk: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (image, offset) = match arguments.as_slice() {
        [image] => (image, 0),
        [image, offset] => (image, offset.parse()?),
        _ => return Err("read-vmdk IMAGE [OFFSET]".into()),
    };
    let registry = Arc::new(Registry::new().with(VmdkFactory).with(FileFactory));
    let context = OpenContext::new(registry, OpenFlags::READ_ONLY);
    block_on(async {
        // The files of the extents are opened too: their names are plain ones beside the descriptor.
        let disk = context.open(Options::filename(image).with("driver", "vmdk")).await?;
        println!("{} bytes", disk.len());
        for (name, value) in disk.driver().info().specific {
            print(name, &value, 0);
        }
        let buf = IoBuf::zeroed(512, Alignment::PAGE)?;
        disk.read(ByteRange::new(offset, 512)?, buf.clone().into()).await?;
        let bytes = buf.to_vec();
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        println!("at {offset}: {:?}", String::from_utf8_lossy(text));
        graph::close(&disk).await?;
        Ok(())
    })
}

/// What the driver says of the image, as an indented list.
fn print(name: &str, value: &InfoValue, depth: usize) {
    let indent = "  ".repeat(depth);
    match value {
        InfoValue::List(values) => {
            values.iter().for_each(|value| print(name, value, depth));
        }
        InfoValue::Map(fields) => {
            println!("{indent}{name}:");
            fields.iter().for_each(|(name, value)| print(name, value, depth + 1));
        }
        value => println!("{indent}{name}: {value:?}"),
    }
}
