//! Opens a qcow2 image, with its backing files if it has any, and reads from it.
//!
//! `read-qcow2 [IMAGE [OFFSET [LEN]]]` prints what the image is and what of it is stored, and `LEN` bytes
//! (512) from `OFFSET` (0) on. Without an image it makes one to read from.

#![forbid(unsafe_code)]

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

use block_core::format::raw::RawFactory;
use block_core::graph;
use block_core::io::exec::block_on;
use block_core::proto::file::FileFactory;
use block_core::registry::{DriverFactory, OpenContext};
use block_core::request::status::StatusDetail;
use block_core::{Alignment, ByteRange, IoBuf, Node, OpenFlags, Options, Registry, RequestFlags};
use block_qcow2::Qcow2Factory;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("read-qcow2: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default| match arguments.get(at) {
        Some(text) => text.parse().map_err(|_| format!("{text} is not a number")),
        None => Ok(default),
    };
    let (offset, len) = (number(1, 0)?, number(2, 512)?);
    // The drivers that images may need: the format, its backing files' formats, and where they are stored.
    let drivers = Registry::new().with(Qcow2Factory).with(RawFactory).with(FileFactory);
    let drivers = Arc::new(drivers);
    // Any executor can poll requests. This one sleeps where the I/O completes.
    block_on(async {
        match arguments.first() {
            Some(image) => read(&drivers, image, offset, len).await,
            None => {
                let directory = tempfile::tempdir()?;
                let path = directory.path().join("example.qcow2");
                let image = path.to_str().ok_or("the temporary directory's name is no text")?;
                make(&drivers, image).await?;
                read(&drivers, image, 1 << 20, 16).await
            }
        }
    })
}

async fn read(drivers: &Arc<Registry>, image: &str, offset: u64, len: u64) -> Result<()> {
    let context = OpenContext::new(Arc::clone(drivers), OpenFlags::READ_ONLY);
    // With the format's name, the file is not guessed at: what a guest wrote cannot make another format of it.
    let disk = context.open(Options::filename(image).with("driver", "qcow2")).await?;
    let info = disk.driver().info();
    println!("{} bytes in clusters of {:?}", disk.len(), info.cluster_size.unwrap_or(0));
    println!("{} bytes are stored in the image or its backing files", stored(&disk).await?);

    // Memory of any alignment will do; a page is what O_DIRECT takes without a copy.
    let buf = IoBuf::zeroed(usize::try_from(len)?, Alignment::PAGE)?;
    disk.read(ByteRange::new(offset, len)?, buf.clone().into()).await?;
    for (line, bytes) in buf.to_vec().chunks(16).enumerate() {
        println!("{:08x}  {bytes:02x?}", offset + u64::try_from(line * 16)?);
    }
    // A node alone does not close what is below it.
    graph::close(&disk).await?;
    Ok(())
}

/// How many bytes of the disk are not known to be zero.
async fn stored(disk: &Node) -> Result<u64> {
    let (mut at, mut stored) = (0, 0);
    while at < disk.len() {
        let rest = ByteRange::from_bounds(at, disk.len())?;
        let status = disk.block_status_above(None, rest, StatusDetail::Zeroes).await?;
        stored += if status.is_zero() { 0 } else { status.len };
        at += status.len;
    }
    Ok(stored)
}

/// A disk of 1 GiB with 64 KiB in it.
async fn make(drivers: &Arc<Registry>, image: &str) -> Result<()> {
    let context = OpenContext::new(Arc::clone(drivers), OpenFlags::READ_WRITE);
    let options = Options::filename(image).with("size", "1G");
    Qcow2Factory.create(options, context.clone()).await?;
    let disk = context.open(Options::filename(image).with("driver", "qcow2")).await?;
    let data = IoBuf::zeroed(65536, Alignment::PAGE)?;
    data.fill(0x5a);
    disk.write(ByteRange::new(1 << 20, 65536)?, data.into(), RequestFlags::empty()).await?;
    // Flushes, too, and says if that failed.
    graph::close(&disk).await?;
    Ok(())
}
