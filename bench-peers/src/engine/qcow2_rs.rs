//! qcow2-rs with tokio-uring, with its own default caches.

use std::rc::Rc;

use qcow2_rs::dev::Qcow2DevParams;
use qcow2_rs::helpers::Qcow2IoBuf;
use qcow2_rs::qcow2_default_params;
use qcow2_rs::utils::qcow2_setup_dev_uring;

use super::{Tickets, Times};
use crate::Failure;
use crate::stopwatch::Stopwatch;
use crate::work::{Direction, Work};

pub fn run(work: &Work) -> Result<Times, Failure> {
    let work = Rc::new(work.clone());
    tokio_uring::start(send(work))
}

async fn send(work: Rc<Work>) -> Result<Times, Failure> {
    let params = qcow2_default_params!(!work.writes(), work.direct);
    let image = qcow2_setup_dev_uring(&work.image, &params).await;
    let image = Rc::new(image.map_err(|error| format!("{error:?}"))?);
    let tickets = Rc::new(Tickets::new(&work));
    let mut bufs = Vec::new();
    for _ in 0..work.depth {
        let mut buf = Qcow2IoBuf::<u8>::new(work.len);
        buf.fill(work.pattern);
        bufs.push(buf);
    }
    let watch = Stopwatch::start()?;
    let loops = bufs.into_iter().map(|mut buf| {
        let (work, image, tickets) = (Rc::clone(&work), Rc::clone(&image), Rc::clone(&tickets));
        tokio_uring::spawn(async move {
            while let Some(index) = tickets.take() {
                let offset = work.offset(index);
                let len = match work.direction {
                    Direction::Read => image.read_at(&mut buf, offset).await,
                    Direction::Write => image.write_at(&buf, offset).await.map(|()| work.len),
                };
                let len = len.map_err(|error| format!("{error:?}"))?;
                if len != work.len {
                    return Err(format!("a read gave {len} bytes"));
                }
            }
            Ok(())
        })
    });
    for task in loops.collect::<Vec<_>>() {
        task.await??;
    }
    let times = watch.stop()?;
    if work.writes() {
        image.flush_meta().await.map_err(|error| format!("{error:?}"))?;
    }
    Ok(times)
}
