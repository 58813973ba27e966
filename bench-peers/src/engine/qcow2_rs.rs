//! qcow2-rs with tokio-uring, with its own default caches.

use std::rc::Rc;

use qcow2_rs::dev::Qcow2DevParams;
use qcow2_rs::helpers::Qcow2IoBuf;
use qcow2_rs::qcow2_default_params;
use qcow2_rs::utils::qcow2_setup_dev_uring;

use super::{Tickets, Times};
use crate::Failure;
use crate::stopwatch::Stopwatch;
use crate::work::Work;

pub fn run(work: &Work) -> Result<Times, Failure> {
    let work = Rc::new(work.clone());
    tokio_uring::start(read(work))
}

async fn read(work: Rc<Work>) -> Result<Times, Failure> {
    let params = qcow2_default_params!(true, work.direct);
    let image = qcow2_setup_dev_uring(&work.image, &params).await;
    let image = Rc::new(image.map_err(|error| format!("{error:?}"))?);
    let tickets = Rc::new(Tickets::new(&work));
    let bufs: Vec<_> = (0..work.depth).map(|_| Qcow2IoBuf::<u8>::new(work.len)).collect();
    let watch = Stopwatch::start()?;
    let loops = bufs.into_iter().map(|mut buf| {
        let (work, image, tickets) = (Rc::clone(&work), Rc::clone(&image), Rc::clone(&tickets));
        tokio_uring::spawn(async move {
            while let Some(index) = tickets.take() {
                match image.read_at(&mut buf, work.offset(index)).await {
                    Ok(len) if len == work.len => {}
                    Ok(len) => return Err(format!("a read gave {len} bytes")),
                    Err(error) => return Err(format!("{error:?}")),
                }
            }
            Ok(())
        })
    });
    for task in loops.collect::<Vec<_>>() {
        task.await??;
    }
    watch.stop()
}
