//! imago with `async`, on tokio's current thread.

use futures::future::try_join_all;
use imago::file::File;
use imago::io_buffers::IoBuffer;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate, StorageOpenOptions};

use super::{Tickets, Times};
use crate::Failure;
use crate::stopwatch::Stopwatch;
use crate::work::{Direction, Work};

pub fn run(work: &Work) -> Result<Times, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(send(work))
}

async fn send(work: &Work) -> Result<Times, Failure> {
    let storage = StorageOpenOptions::new().direct(work.direct);
    let image = Qcow2::<File>::builder_path(&work.image)
        .storage_open_options(storage)
        .write(work.writes())
        .open(PermissiveImplicitOpenGate::default())
        .await?;
    let image = FormatAccess::new(image);
    let tickets = Tickets::new(work);
    let mut bufs = Vec::new();
    for _ in 0..work.depth {
        let mut buf = IoBuffer::new(work.len, 4096)?;
        buf.as_mut().into_slice().fill(work.pattern);
        bufs.push(buf);
    }
    let watch = Stopwatch::start()?;
    try_join_all(bufs.iter_mut().map(async |buf| {
        while let Some(index) = tickets.take() {
            match work.direction {
                Direction::Read => image.read(&mut *buf, work.offset(index)).await?,
                Direction::Write => image.write(&*buf, work.offset(index)).await?,
            }
        }
        Ok::<_, Failure>(())
    }))
    .await?;
    let times = watch.stop()?;
    if work.writes() {
        image.flush().await?;
    }
    Ok(times)
}
