//! imago built without `async`: one request after the other, whatever the depth.

use imago::file::File;
use imago::io_buffers::IoBuffer;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate, StorageOpenOptions};

use super::Times;
use crate::Failure;
use crate::stopwatch::Stopwatch;
use crate::work::{Direction, Work};

pub fn run(work: &Work) -> Result<Times, Failure> {
    let storage = StorageOpenOptions::new().direct(work.direct);
    let image = Qcow2::<File>::builder_path(&work.image)
        .storage_open_options(storage)
        .write(work.writes())
        .open(PermissiveImplicitOpenGate::default())?;
    let image = FormatAccess::new(image);
    let mut buf = IoBuffer::new(work.len, 4096)?;
    buf.as_mut().into_slice().fill(work.pattern);
    let watch = Stopwatch::start()?;
    for index in 0..work.count {
        match work.direction {
            Direction::Read => image.read(&mut buf, work.offset(index))?,
            Direction::Write => image.write(&buf, work.offset(index))?,
        }
    }
    let times = watch.stop()?;
    if work.writes() {
        image.flush()?;
    }
    Ok(times)
}
