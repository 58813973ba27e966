//! Makes a VMDK disk and writes to it.
//!
//! `create-vmdk IMAGE SIZE [SUBFORMAT]` makes `IMAGE`, of `SIZE` (as `20G`) and a subformat by the name that
//! tools have for it (`monolithicSparse`), and writes a line of text to its first sector.

#![forbid(unsafe_code)]

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

use block_core::graph;
use block_core::io::exec::block_on;
use block_core::proto::file::FileFactory;
use block_core::registry::{DriverFactory, OpenContext};
use block_core::{Alignment, ByteRange, IoBuf, OpenFlags, Options, Registry, RequestFlags};
use block_vmdk::VmdkFactory;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("create-vmdk: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (image, size, subformat) = match arguments.as_slice() {
        [image, size] => (image, size, "monolithicSparse"),
        [image, size, subformat] => (image, size, subformat.as_str()),
        _ => return Err("create-vmdk IMAGE SIZE [SUBFORMAT]".into()),
    };
    let registry = Arc::new(Registry::new().with(VmdkFactory).with(FileFactory));
    let context = OpenContext::new(registry, OpenFlags::READ_WRITE);
    block_on(async {
        // `VmdkFactory.create_options()` lists all options with a line of help for each.
        let options = Options::filename(image).with("size", size).with("subformat", subformat);
        VmdkFactory.create(options, context.clone()).await?;

        let disk = context.open(Options::filename(image).with("driver", "vmdk")).await?;
        let sector = IoBuf::zeroed(512, Alignment::PAGE)?;
        sector.copy_from(0, b"made by create-vmdk\n");
        disk.write(ByteRange::new(0, 512)?, sector.into(), RequestFlags::empty()).await?;
        // What a flush has made stable survives a crash, with the tables that lead to it.
        disk.flush().await?;
        println!("{image}: {subformat}, {} bytes", disk.len());
        graph::close(&disk).await?;
        Ok(())
    })
}
