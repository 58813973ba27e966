//! Standard output for large amounts of data, written by a thread of its own: a reader that is slow
//! stops nobody but it.
//!
//! Invariants: bytes are written once and in order; at most [`QUEUED`] pieces and one wait to be written;
//! after an error nothing more is. A cancel ends a wait for a reader that does not read.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use block_core::Cancel;
use futures::channel::{mpsc, oneshot};
use futures::executor::block_on_stream;
use futures::io::AsyncWrite;
use futures::task::AtomicWaker;
use rustix::event::{PollFd, PollFlags, poll};

/// Pieces that wait for the thread.
const QUEUED: usize = 2;
/// How long nobody looks whether it was cancelled.
const NAP: Duration = Duration::from_millis(50);

/// Standard output as a sink. It is written to the end only if it is closed.
pub(super) struct Pipe {
    queue: mpsc::Sender<Vec<u8>>,
    /// What became of the thread.
    ended: oneshot::Receiver<io::Result<()>>,
    cancel: Cancel,
    /// Woken by a cancel.
    waiting: Arc<AtomicWaker>,
}

impl Pipe {
    /// The standard output of this process.
    pub(super) fn stdout(cancel: &Cancel) -> io::Result<Self> {
        let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        Self::new(file, cancel)
    }

    fn new(mut file: File, cancel: &Cancel) -> io::Result<Self> {
        let (queue, pieces) = mpsc::channel::<Vec<u8>>(QUEUED);
        let (end, ended) = oneshot::channel();
        let write = move || {
            let written =
                block_on_stream(pieces).try_for_each(|piece| write_all(&mut file, &piece));
            // Nobody listens if the command has failed otherwise.
            let _ = end.send(written);
        };
        std::thread::Builder::new().name("stdout".to_owned()).spawn(write)?;
        let waiting = Arc::new(AtomicWaker::new());
        let waker = Arc::downgrade(&waiting);
        let handle = cancel.clone();
        let watch = move || wake_when_cancelled(&handle, &waker);
        std::thread::Builder::new().name("stdout-cancel".to_owned()).spawn(watch)?;
        Ok(Self { queue, ended, cancel: cancel.clone(), waiting })
    }

    /// Why nothing more is taken, once the thread has said it.
    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.ended).poll(cx) {
            Poll::Ready(Ok(ended)) => Poll::Ready(ended),
            Poll::Ready(Err(_)) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Poll::Pending => self.poll_cancelled(cx),
        }
    }

    fn poll_cancelled(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        self.waiting.register(cx.waker());
        match self.cancel.is_cancelled() {
            true => Poll::Ready(Err(io::ErrorKind::Interrupted.into())),
            false => Poll::Pending,
        }
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let ready = match self.queue.poll_ready(cx) {
            Poll::Ready(Ok(())) if self.queue.start_send(bytes.to_vec()).is_ok() => {
                return Poll::Ready(Ok(bytes.len()));
            }
            // The thread has ended, which it does only after an error.
            Poll::Ready(_) => self.poll_ended(cx),
            Poll::Pending => self.poll_cancelled(cx),
        };
        ready.map(|ended| ended.and_then(|()| Err(io::ErrorKind::BrokenPipe.into())))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Nothing is held back.
        Poll::Ready(Ok(()))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.queue.close_channel();
        self.poll_ended(cx)
    }
}

/// Writes all of `bytes`, also where the pipe is one that does not wait.
fn write_all(file: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(len) => bytes = bytes.get(len..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                poll(&mut [PollFd::new(&*file, PollFlags::OUT)], None)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Wakes once when it is cancelled, unless the sink has gone.
pub(super) fn wake_when_cancelled(cancel: &Cancel, waker: &Weak<AtomicWaker>) {
    while let Some(waker) = waker.upgrade() {
        if cancel.is_cancelled() {
            waker.wake();
            return;
        }
        drop(waker);
        std::thread::sleep(NAP);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;

    use futures::io::AsyncWriteExt;

    use super::*;
    use crate::open::block_on;

    fn pipe() -> (File, File) {
        let (reader, writer) = io::pipe().unwrap();
        (File::from(OwnedFd::from(reader)), File::from(OwnedFd::from(writer)))
    }

    #[test]
    fn what_is_written_arrives_when_it_is_closed() {
        let (mut reader, writer) = pipe();
        let expect: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
        let reading = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            bytes
        });
        let mut sink = Pipe::new(writer, &Cancel::new()).unwrap();
        block_on(async {
            for part in expect.chunks(99_999) {
                sink.write_all(part).await.unwrap();
            }
            sink.close().await.unwrap();
        });
        drop(sink);
        assert!(reading.join().unwrap() == expect);
    }

    #[test]
    fn a_reader_that_goes_away_is_an_error() {
        let (reader, writer) = pipe();
        drop(reader);
        let mut sink = Pipe::new(writer, &Cancel::new()).unwrap();
        let error = block_on(async {
            loop {
                if let Err(error) = sink.write_all(&[0; 1000]).await {
                    return error;
                }
            }
        });
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_cancel_ends_the_wait_for_a_reader_that_does_not_read() {
        let (_reader, writer) = pipe();
        let cancel = Cancel::new();
        let mut sink = Pipe::new(writer, &cancel).unwrap();
        let later = std::thread::spawn(move || {
            std::thread::sleep(2 * NAP);
            cancel.cancel();
        });
        let error = block_on(async {
            loop {
                if let Err(error) = sink.write_all(&[0; 100_000]).await {
                    return error;
                }
            }
        });
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        later.join().unwrap();
    }
}
