//! Standard input, or another pipe, for large amounts of data, read by a thread of its own: a writer that is slow stops
//! nobody but it.
//!
//! Invariants: bytes are given once and in order; at most [`QUEUED`] pieces and one wait to be taken. A cancel ends a
//! wait for a writer that does not write.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use block_core::Cancel;
use futures::channel::mpsc;
use futures::executor::block_on;
use futures::io::AsyncRead;
use futures::sink::SinkExt;
use futures::stream::StreamExt;
use futures::task::AtomicWaker;
use rustix::event::{PollFd, PollFlags, poll};

use super::pipe::wake_when_cancelled;

/// Bytes of a piece.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces that wait to be taken.
const QUEUED: usize = 2;

/// The name of a source that means standard input. A file of this name is `./-`.
pub(super) const STDIN: &str = "-";
/// The name of standard input as a file.
const DEV_STDIN: &str = "/dev/stdin";

/// A pipe as a source.
pub(super) struct PipeSource {
    pieces: mpsc::Receiver<io::Result<Vec<u8>>>,
    /// The piece that is being taken, and how much of it was.
    piece: Vec<u8>,
    taken: usize,
    cancel: Cancel,
    /// Woken by a cancel.
    waiting: Arc<AtomicWaker>,
}

/// Whether `name` is that of something that only goes forward.
pub(super) fn is_pipe(name: &str) -> bool {
    if name == STDIN {
        return true;
    }
    let kind = std::fs::metadata(name).map(|found| found.file_type());
    kind.is_ok_and(|kind| kind.is_fifo() || kind.is_socket() && name == DEV_STDIN)
}

impl PipeSource {
    /// Opens what [`is_pipe`] has found.
    pub(super) fn open(name: &str, cancel: &Cancel) -> io::Result<Self> {
        let file = match name {
            STDIN | DEV_STDIN => File::from(io::stdin().as_fd().try_clone_to_owned()?),
            name => File::open(name)?,
        };
        Self::new(file, cancel)
    }

    fn new(mut file: File, cancel: &Cancel) -> io::Result<Self> {
        let (mut queue, pieces) = mpsc::channel(QUEUED);
        let read = move || {
            loop {
                let piece = read_piece(&mut file);
                let is_last = !matches!(&piece, Ok(piece) if !piece.is_empty());
                // Nobody listens if the command has ended.
                let gone = block_on(queue.send(piece)).is_err();
                if is_last || gone {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("source".to_owned()).spawn(read)?;
        let waiting = Arc::new(AtomicWaker::new());
        let waker = Arc::downgrade(&waiting);
        let handle = cancel.clone();
        let watch = move || wake_when_cancelled(&handle, &waker);
        std::thread::Builder::new().name("source-cancel".to_owned()).spawn(watch)?;
        Ok(Self { pieces, piece: Vec::new(), taken: 0, cancel: cancel.clone(), waiting })
    }
}

impl AsyncRead for PipeSource {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if self.taken == self.piece.len() {
            match self.pieces.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(piece))) => (self.piece, self.taken) = (piece, 0),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) => return Poll::Ready(Ok(0)),
                Poll::Pending => {
                    self.waiting.register(cx.waker());
                    if self.cancel.is_cancelled() {
                        return Poll::Ready(Err(io::ErrorKind::Interrupted.into()));
                    }
                    return Poll::Pending;
                }
            }
        }
        let rest = self.piece.get(self.taken..).unwrap_or_default();
        let len = Read::read(&mut &*rest, buf)?;
        self.taken += len;
        Poll::Ready(Ok(len))
    }
}

/// The next bytes, no more than a piece; none at the end.
fn read_piece(file: &mut File) -> io::Result<Vec<u8>> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut piece) {
            Ok(len) => {
                piece.truncate(len);
                return Ok(piece);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                poll(&mut [PollFd::new(&*file, PollFlags::IN)], None)?;
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::OwnedFd;
    use std::time::Duration;

    use futures::io::AsyncReadExt;

    use super::*;
    use crate::open::block_on;

    #[test]
    fn what_is_written_arrives_in_order() {
        let (reader, mut writer) = io::pipe().unwrap();
        let expect: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251).to_le_bytes()[0]).collect();
        let written = expect.clone();
        let writing = std::thread::spawn(move || {
            written.chunks(33_333).for_each(|part| writer.write_all(part).unwrap());
        });
        let mut source =
            PipeSource::new(File::from(OwnedFd::from(reader)), &Cancel::new()).unwrap();
        let mut bytes = Vec::new();
        block_on(source.read_to_end(&mut bytes)).unwrap();
        writing.join().unwrap();
        assert!(bytes == expect);
    }

    #[test]
    fn a_cancel_ends_the_wait_for_a_writer_that_does_not_write() {
        let (reader, _writer) = io::pipe().unwrap();
        let cancel = Cancel::new();
        let mut source = PipeSource::new(File::from(OwnedFd::from(reader)), &cancel).unwrap();
        let later = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            cancel.cancel();
        });
        // Whoever reads on after an interrupt waits again, so this looks only once.
        let read = futures::future::poll_fn(|cx| Pin::new(&mut source).poll_read(cx, &mut [0; 9]));
        assert_eq!(block_on(read).unwrap_err().kind(), io::ErrorKind::Interrupted);
        later.join().unwrap();
    }

    #[test]
    fn files_are_no_pipes() {
        assert!(is_pipe("-") && !is_pipe("/dev/zero") && !is_pipe("/etc/passwd"));
        assert!(!is_pipe("a file that does not exist"));
    }
}
