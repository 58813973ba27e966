//! Writing and reading a stream takes the memory that was asked for, whatever the size of the disk.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers outside of #[test]")]

#[path = "../../block-testkit/tests/counting/mod.rs"]
mod counting;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use block_core::job::copy::{Progress, TargetContents};
use block_core::{Cancel, Node};
use block_testkit::disk::full::Full;
use block_vmdk::stream::{ReadError, ReadInto, StreamReader, StreamWriter};
use counting::{HELD, MOST};
use futures::executor::block_on;
use futures::io::{AsyncRead, Cursor};

/// Bytes of buffers that are asked for.
const MEMORY: usize = 2 << 20;
/// What encoders, threads and the tables take beside them.
const MORE: usize = 3 << 20;

/// The most that was allocated while `work` ran.
fn most_of<R>(work: impl FnOnce() -> R) -> (R, usize) {
    let before = HELD.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let result = work();
    (result, MOST.load(Ordering::Relaxed) - before)
}

/// A stream without an end: the same image over and over, its grains ever further on the disk.
struct Endless {
    head: Vec<u8>,
    grain: Vec<u8>,
    /// Grains from one to the next.
    step: u64,
    at: usize,
    number: u64,
}

impl AsyncRead for Endless {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let part = if this.number == 0 { &this.head } else { &this.grain };
        let part = &part[this.at..];
        let len = part.len().min(buf.len());
        buf[..len].copy_from_slice(&part[..len]);
        this.at += len;
        if len == part.len() {
            this.grain[..8].copy_from_slice(&(this.number * this.step * 128).to_le_bytes());
            (this.at, this.number) = (0, this.number + 1);
        }
        Poll::Ready(Ok(len))
    }
}

/// One test, because the allocator counts for all of them.
#[test]
fn the_buffers_take_what_was_asked_for() {
    let disk = || Node::new(Arc::new(Full(64 << 20)), Default::default());
    let mut file = Vec::with_capacity(1 << 20);
    let ((), most) = most_of(|| {
        let writer = StreamWriter::new(disk()).memory_bytes(2 << 20);
        block_on(writer.write_to(&mut file, &Cancel::new(), |_: Progress| {})).unwrap();
    });
    println!("written: {} bytes, {most} held at most", file.len());
    assert!(file.len() <= 1 << 20 && most < MEMORY + MORE, "{most}");

    let copy = file.clone();
    let ((), most) = most_of(|| {
        block_on(async {
            let reader = StreamReader::with_memory(Cursor::new(copy), 2 << 20).await.unwrap();
            let options = ReadInto { target: TargetContents::Zeroes, ..ReadInto::default() };
            reader.read_into(&disk(), options, &Cancel::new(), |_: Progress| {}).await.unwrap();
        });
    });
    println!("read: {most} held at most");
    // What is inflated and waits to be written comes beside what is being inflated.
    assert!(most < 2 * MEMORY + MORE, "{most}");

    // Grains that no table ever names, and as far from one another as they can be, end at the bound.
    let mut head = file[..128 * 512].to_vec();
    // As much as a directory may have entries for.
    head[12..20].copy_from_slice(&(1u64 << 40).to_le_bytes());
    let len = usize::try_from(u32::from_le_bytes(file[65544..65548].try_into().unwrap())).unwrap();
    let grain = file[65536..65536 + (12 + len).next_multiple_of(512)].to_vec();
    for step in [1, 1000, 70_000] {
        let endless = Endless { head: head.clone(), grain: grain.clone(), step, at: 0, number: 0 };
        let (error, most) = most_of(|| {
            block_on(async {
                let reader = StreamReader::with_memory(endless, 256 << 10).await.unwrap();
                let options = ReadInto { target: TargetContents::Zeroes, ..ReadInto::default() };
                let disk = Node::new(Arc::new(Full(1 << 49)), Default::default());
                reader.read_into(&disk, options, &Cancel::new(), |_: Progress| {}).await
            })
        });
        println!("endless, {step} apart: {most} held at most");
        assert!(matches!(error, Err(ReadError::Memory { budget: 0x4_0000 })), "{error:?}");
        assert!(most < 4 << 20, "{most}");
    }
}
