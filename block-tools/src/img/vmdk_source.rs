//! `convert` from a streamOptimized VMDK that comes from a pipe, from its first byte to its last.
//!
//! Invariant: what cannot be done without going back is refused before the target is made.

use block_core::{Cancel, Node};
use block_vmdk::stream::{ReadError, ReadInto, StreamReader};

use super::Failure;
use super::interrupt;
use super::pipe_source::PipeSource;
use super::watch::Watch;

/// A stream whose header was read.
pub(super) struct VmdkSource {
    name: String,
    reader: StreamReader<PipeSource>,
}

impl VmdkSource {
    /// Reads the header of what comes from `name`. Refuses `unfit` options that are given.
    pub(super) async fn open(
        name: &str,
        unfit: &[(&str, bool)],
        cancel: &Cancel,
    ) -> Result<Self, Failure> {
        if let Some((option, _)) = unfit.iter().find(|(_, given)| *given) {
            return Err(Failure::new(format_args!(
                "{option} cannot be used when the source is a pipe"
            )));
        }
        let failed = |error| failure(name, &error, cancel);
        let source = PipeSource::open(name, cancel)
            .map_err(|error| failed(ReadError::Source { offset: 0, error }))?;
        let reader = StreamReader::open(source).await.map_err(failed)?;
        Ok(Self { name: name.to_owned(), reader })
    }

    /// Length of the disk in bytes.
    pub(super) fn disk_len(&self) -> u64 {
        self.reader.disk_len()
    }

    /// Writes the disk to `target` and flushes it.
    pub(super) async fn write_to(
        self,
        target: &Node,
        options: ReadInto,
        cancel: &Cancel,
        watch: Watch<'_>,
    ) -> Result<(), Failure> {
        let read = self.reader.read_into(target, options, cancel, watch).await;
        read.map_err(|error| failure(&self.name, &error, cancel))?;
        let flushed = target.flush().await;
        flushed.map_err(|error| Failure::new(format_args!("error while flushing: {error}")))
    }
}

fn failure(name: &str, error: &ReadError, cancel: &Cancel) -> Failure {
    match error {
        // Whatever it broke off: the user knows why.
        _ if cancel.is_cancelled() => Failure::new("interrupted").with_status(interrupt::status()),
        ReadError::Write { .. } | ReadError::Clusters { .. } => Failure::new(error),
        error => Failure::new(format_args!("{name}: {error}")),
    }
}
