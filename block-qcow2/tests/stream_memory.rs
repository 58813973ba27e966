//! Writing a stream takes the memory that was asked for, whatever the size of the disk.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers outside of #[test]")]

#[path = "../../block-testkit/tests/counting/mod.rs"]
mod counting;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use block_core::job::copy::Progress;
use block_core::{Cancel, Node};
use block_qcow2::compress::Window;
use block_qcow2::create::CreateOptions;
use block_qcow2::spec::header::Compression;
use block_qcow2::stream::StreamWriter;
use block_testkit::disk::full::Full;
use counting::{HELD, MOST};
use futures::executor::block_on;

/// Bytes of buffers that are asked for.
const MEMORY: usize = 2 << 20;
/// What encoders, threads, the list and the tables take beside them.
const MORE: usize = 3 << 20;

#[test]
fn the_buffers_take_what_was_asked_for() {
    let kinds = [
        (128 << 20, 65536, None),
        (128 << 20, 2 << 20, None),
        (32 << 20, 65536, Some(Compression::Zstd)),
        (32 << 20, 4096, Some(Compression::Zstd)),
    ];
    for (len, cluster_size, compression) in kinds {
        let node = Node::new(Arc::new(Full(len)), Default::default());
        let mut options = CreateOptions::new(0).cluster_size(cluster_size);
        let mut writer = StreamWriter::new(node).memory_bytes(2 << 20);
        if let Some(compression) = compression {
            options = options.compression(compression);
            writer = writer.compressed(Some(1), Window::Small);
        }
        let before = HELD.load(Ordering::Relaxed);
        MOST.store(before, Ordering::Relaxed);
        let writing = async {
            let sink = futures::io::sink();
            writer.options(options).write_to(sink, &Cancel::new(), |_: Progress| {}).await
        };
        let written = block_on(writing).unwrap();
        let most = MOST.load(Ordering::Relaxed) - before;
        println!("{len} bytes, clusters of {cluster_size}: {written} written, {most} held at most");
        // The buffers of one piece are the least: twice a cluster, and a cluster on its way out.
        let least = 3 * usize::try_from(cluster_size).unwrap();
        assert!(most < MEMORY.max(least) + MORE, "{most}");
    }
}
