//! block-core and block-qcow2, used as a library, on block-core's own executor.

use std::sync::Arc;

use block_core::format::raw::RawFactory;
use block_core::io::exec::block_on;
use block_core::proto::file::FileFactory;
use block_core::registry::OpenContext;
use block_core::{Alignment, ByteRange, IoBuf, OpenFlags, Options, Registry, RequestFlags};
use block_qcow2::Qcow2Factory;
use futures::future::try_join_all;

use super::{Tickets, Times};
use crate::Failure;
use crate::stopwatch::Stopwatch;
use crate::work::{Direction, Work};

pub fn run(work: &Work) -> Result<Times, Failure> {
    block_on(send(work))
}

async fn send(work: &Work) -> Result<Times, Failure> {
    let registry = Registry::new().with(FileFactory).with(RawFactory).with(Qcow2Factory);
    let flags = match work.direction {
        Direction::Read => OpenFlags::READ_ONLY,
        Direction::Write => OpenFlags::READ_WRITE,
    };
    let flags = OpenFlags { direct: work.direct, ..flags };
    let context = OpenContext::new(Arc::new(registry), flags);
    let name = work.image.to_str().ok_or("the image's name is no text")?;
    let image = context.open(Options::filename(name)).await?;
    let tickets = Tickets::new(work);
    let mut bufs = Vec::new();
    for _ in 0..work.depth {
        let buf = IoBuf::zeroed(work.len, Alignment::PAGE)?;
        buf.fill(work.pattern);
        bufs.push(buf);
    }
    let watch = Stopwatch::start()?;
    try_join_all(bufs.iter().map(async |buf| {
        while let Some(index) = tickets.take() {
            let range = ByteRange::new(work.offset(index), work.len.try_into()?)?;
            match work.direction {
                Direction::Read => image.read(range, buf.clone().into()).await?,
                Direction::Write => {
                    image.write(range, buf.clone().into(), RequestFlags::default()).await?;
                }
            }
        }
        Ok::<_, Failure>(())
    }))
    .await?;
    let times = watch.stop()?;
    image.close().await?;
    Ok(times)
}
