//! What compressing clusters costs, and how small they become: the codecs of block-qcow2, and those that
//! were not chosen.
//!
//! A disk is cut into clusters and those that are zero are left out. A cluster that does not shrink counts
//! with its own length, as a writer leaves it as it is.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use block_qcow2::compress::codec::Codec;
use block_qcow2::compress::{Encoding, Window};
use block_qcow2::spec::header::Compression;
use clap::Args;
use serde_json::{Value, json};
use zlib_rs::{Deflate, DeflateFlush, Status};

use crate::Failure;
use crate::stopwatch::Stopwatch;

const CLUSTER: usize = 64 << 10;

/// Options of `codecs`.
#[derive(Args)]
pub struct Arguments {
    /// A raw disk.
    disk: PathBuf,
}

/// A library, a level, a window.
struct Candidate {
    codec: &'static str,
    level: u32,
    window: &'static str,
    /// The payload's length; `None` if there is none.
    compress: Box<dyn FnMut(&[u8], &mut [u8]) -> Option<usize>>,
}

/// Compresses the disk by one candidate after the other.
pub fn run(arguments: &Arguments) -> Result<Value, Failure> {
    let clusters = clusters(File::open(&arguments.disk)?)?;
    let data: usize = clusters.iter().map(Vec::len).sum();
    let mut room = vec![0; CLUSTER];
    let mut rows = Vec::new();
    for mut candidate in candidates()? {
        // What it allocates, it allocates before the clock starts.
        let _ = (candidate.compress)(&[1; CLUSTER], &mut room);
        let watch = Stopwatch::start()?;
        let mut bytes = 0;
        for cluster in &clusters {
            let most = cluster.len().saturating_sub(1);
            let payload = (candidate.compress)(cluster, &mut room[..most]);
            bytes += payload.unwrap_or(cluster.len());
        }
        let (_, cpu) = watch.stop()?;
        rows.push(candidate.row(bytes, cpu));
    }
    Ok(json!({ "bytes": data, "codecs": rows }))
}

/// The clusters that are not zero.
fn clusters(mut disk: impl Read) -> Result<Vec<Vec<u8>>, Failure> {
    let mut clusters = Vec::new();
    loop {
        let mut cluster = Vec::with_capacity(CLUSTER);
        disk.by_ref().take(CLUSTER as u64).read_to_end(&mut cluster)?;
        if cluster.is_empty() {
            return Ok(clusters);
        }
        if cluster.iter().any(|byte| *byte != 0) {
            clusters.push(cluster);
        }
    }
}

fn candidates() -> Result<Vec<Candidate>, Failure> {
    let (deflate, zstd) = (Compression::Deflate, Compression::Zstd);
    let mut all = Vec::new();
    for level in [1, 3, 4, 5, 6, 7, 9] {
        all.push(ours("zlib-rs", deflate, level, Window::Small)?);
    }
    for level in [5, 6] {
        all.push(zlib_rs_large(level)?);
    }
    for level in [1, 3, 5, 6, 9] {
        all.push(ours("libdeflate", deflate, level, Window::Large)?);
    }
    for level in [1, 3, 5, 9] {
        all.push(ours("zstd", zstd, level, Window::Small)?);
    }
    Ok(all)
}

/// What block-qcow2 has.
fn ours(
    library: &'static str,
    compression: Compression,
    level: u32,
    window: Window,
) -> Result<Candidate, Failure> {
    let encoding = Encoding::new(compression, Some(level), window)?;
    let mut codec = Codec::new();
    let compress = Box::new(move |src: &[u8], dst: &mut [u8]| codec.compress(encoding, src, dst));
    let window = match (compression, window) {
        (Compression::Zstd, _) => "cluster",
        (_, Window::Small) => "4 KiB",
        (_, Window::Large) => "32 KiB",
    };
    Ok(Candidate { codec: library, level, window, compress })
}

/// What it does not have: zlib-rs with the window that libdeflate has.
fn zlib_rs_large(level: u32) -> Result<Candidate, Failure> {
    let number = i32::try_from(level)?;
    let make = move || Deflate::new(number, false, 15);
    let mut encoder = make();
    let compress = Box::new(move |src: &[u8], dst: &mut [u8]| {
        let done = encoder.compress(src, dst, DeflateFlush::Finish);
        let len = matches!(done, Ok(Status::StreamEnd)).then(|| encoder.total_out());
        match len {
            Some(_) => encoder.reset(),
            None => encoder = make(),
        }
        len.and_then(|len| usize::try_from(len).ok())
    });
    Ok(Candidate { codec: "zlib-rs", level, window: "32 KiB", compress })
}

impl Candidate {
    fn row(&self, bytes: usize, cpu: Duration) -> Value {
        json!({
            "codec": self.codec,
            "level": self.level,
            "window": self.window,
            "bytes": bytes,
            "cpu_seconds": cpu.as_secs_f64(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_clusters_are_left_out_and_the_tail_is_not() {
        let mut disk = vec![0; 3 * CLUSTER + 5];
        disk[CLUSTER + 7] = 1;
        disk[3 * CLUSTER] = 1;
        let lens: Vec<usize> = clusters(&disk[..]).unwrap().iter().map(Vec::len).collect();
        assert_eq!(lens, [CLUSTER, 5]);
    }

    #[test]
    fn every_candidate_makes_text_smaller() {
        let text: Vec<u8> = (0..9000u32).flat_map(|n| n.to_string().into_bytes()).collect();
        for mut candidate in candidates().unwrap() {
            let len = (candidate.compress)(&text, &mut vec![0; text.len()]);
            assert!(len.is_some_and(|len| len < text.len() / 2), "{}", candidate.codec);
        }
    }
}
