//! Guest disks for comparisons: what real disks hold, made from a seed.
//!
//! Contents are a function of the seed and the length alone. Regions of random bytes, text, repeated
//! records, written zeroes and holes follow each other; most are a few kilobytes, some are large, and
//! their borders are sectors, so that they fall inside clusters of every size.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::failure::{Failure, Result};

const SECTOR: u64 = 512;

/// What a region holds.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Content {
    Random,
    Text,
    Records,
    Zeroes,
    Hole,
}

/// Writes a guest disk of `len` bytes to `path`.
pub(crate) fn write(path: &Path, len: u64, seed: u64) -> Result<()> {
    let what = || format!("write {}", path.display());
    let file = File::create(path).map_err(Failure::io(what()))?;
    file.set_len(len).map_err(Failure::io(what()))?;
    let mut rng = Rng::new(seed);
    let mut offset = 0;
    while offset < len {
        let region = region_len(&mut rng).min(len - offset);
        let content = choose(&mut rng);
        if content != Content::Hole {
            let bytes = fill(content, region, &mut rng);
            file.write_all_at(&bytes, offset).map_err(Failure::io(what()))?;
        }
        offset += region;
    }
    Ok(())
}

fn choose(rng: &mut Rng) -> Content {
    match rng.below(20) {
        0..=4 => Content::Random,
        5..=10 => Content::Text,
        11..=12 => Content::Records,
        13..=14 => Content::Zeroes,
        _ => Content::Hole,
    }
}

/// One region in sixteen is large, the others have up to 64 KiB.
fn region_len(rng: &mut Rng) -> u64 {
    let most = if rng.below(16) == 0 { 4096 } else { 128 };
    SECTOR * (1 + rng.below(most))
}

fn fill(content: Content, len: u64, rng: &mut Rng) -> Vec<u8> {
    let mut bytes = Vec::new();
    let wanted = usize::try_from(len).unwrap_or(usize::MAX);
    match content {
        Content::Zeroes | Content::Hole => bytes.resize(wanted, 0),
        Content::Random => {
            while bytes.len() < wanted {
                bytes.extend_from_slice(&rng.next().to_le_bytes());
            }
        }
        Content::Text => {
            while bytes.len() < wanted {
                push_line(&mut bytes, rng);
            }
        }
        Content::Records => {
            let (key, start) = (rng.next(), rng.below(1 << 32));
            let mut index = start;
            while bytes.len() < wanted {
                bytes.extend_from_slice(&key.to_be_bytes());
                bytes.extend_from_slice(&index.to_be_bytes());
                bytes.extend_from_slice(&[0; 16]);
                index += 1;
            }
        }
    }
    bytes.truncate(wanted);
    bytes
}

/// A line as in a log: it compresses about as well as one.
fn push_line(bytes: &mut Vec<u8>, rng: &mut Rng) {
    const WORDS: [&str; 16] = [
        "request", "finished", "waiting", "for", "the", "device", "error", "retry", "user",
        "session", "opened", "closed", "at", "block", "write", "read",
    ];
    bytes.extend_from_slice(format!("{:010} ", rng.below(10_000_000_000)).as_bytes());
    for _ in 0..4 + rng.below(9) {
        let index = usize::try_from(rng.below(16)).unwrap_or(0);
        bytes.extend_from_slice(WORDS[index].as_bytes());
        bytes.push(b' ');
    }
    bytes.extend_from_slice(format!("0x{:04x}\n", rng.below(1 << 16)).as_bytes());
}

/// SplitMix64: small, and good enough for disk contents.
pub(crate) struct Rng {
    state: u64,
}

impl Rng {
    /// Every seed gives its own sequence.
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not zero; the bias does not matter here.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_disk_is_a_function_of_its_seed() {
        let scratch = Scratch::new("guest-test").unwrap();
        let make = |name, seed| {
            let path = scratch.file(name);
            write(&path, 3 << 20, seed).unwrap();
            fs::read(path).unwrap()
        };
        let (a, again, b) = (make("a", 1), make("again", 1), make("b", 2));
        assert_eq!(a.len(), 3 << 20);
        assert!(a == again && a != b);
    }

    #[test]
    fn a_disk_holds_data_and_zero_sectors() {
        let scratch = Scratch::new("guest-test-kinds").unwrap();
        let path = scratch.file("a");
        write(&path, 8 << 20, 7).unwrap();
        let bytes = fs::read(path).unwrap();
        let zero = bytes.chunks(512).filter(|sector| sector.iter().all(|b| *b == 0)).count();
        let all = bytes.len() / 512;
        assert!(zero > all / 10 && zero < all * 9 / 10, "{zero} of {all}");
    }

    #[test]
    fn every_content_fills_exactly() {
        let mut rng = Rng::new(3);
        for content in [Content::Random, Content::Text, Content::Records, Content::Zeroes] {
            assert_eq!(fill(content, 1536, &mut rng).len(), 1536, "{content:?}");
        }
    }
}
