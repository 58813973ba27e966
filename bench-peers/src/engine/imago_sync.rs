//! imago built without `async`: one request after the other, whatever the depth.

use imago::file::File;
use imago::io_buffers::IoBuffer;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate, StorageOpenOptions};

use super::Times;
use crate::Failure;
use crate::stopwatch::Stopwatch;
use crate::work::Work;

pub fn run(work: &Work) -> Result<Times, Failure> {
    let storage = StorageOpenOptions::new().direct(work.direct);
    let image = Qcow2::<File>::builder_path(&work.image)
        .storage_open_options(storage)
        .open(PermissiveImplicitOpenGate::default())?;
    let image = FormatAccess::new(image);
    let mut buf = IoBuffer::new(work.len, 4096)?;
    let watch = Stopwatch::start()?;
    for index in 0..work.count {
        image.read(&mut buf, work.offset(index))?;
    }
    watch.stop()
}
