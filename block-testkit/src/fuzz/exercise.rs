//! What the ordinary tests do with fuzz targets.

use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Target;

/// How many inputs are made beside those that are there.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Cases(pub u32);

/// Plays what once failed, the inputs to start from, and `cases` that are made of these by chance.
///
/// # Panics
/// If a body does, with the input; and if a target is not in the list of all targets.
pub fn exercise(target: &Target, cases: Cases) {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let list = package.join("targets.txt");
    let names = std::fs::read_to_string(&list).unwrap_or_default();
    let is_listed = names.lines().any(|line| line.split_whitespace().next() == Some(target.name));
    assert!(is_listed, "{} does not name {}", list.display(), target.name);
    for path in files(&package.join("regressions").join(target.name)) {
        let input = std::fs::read(&path);
        let input = input.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        play(target, &input, &format!("the input in {}", path.display()));
    }
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty(), "{} has nothing to start from", target.name);
    for (at, seed) in seeds.iter().enumerate() {
        play(target, seed, &format!("seed {at}"));
    }
    let mut rng = ChaCha8Rng::seed_from_u64(cases.0.into());
    for case in 0..cases.0 {
        let input = mutate(&seeds, target.max_len, &mut rng);
        play(target, &input, &format!("case {case}"));
    }
}

fn play(target: &Target, input: &[u8], what: &str) {
    let played = catch_unwind(AssertUnwindSafe(|| (target.body)(input)));
    if played.is_err() {
        let mut hex = String::new();
        for byte in input {
            let _ = write!(hex, "{byte:02x}");
        }
        panic!("{} fails for {what}, {} bytes: {hex}", target.name, input.len());
    }
}

/// The files of a directory in the order of their names; none if there is no such directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut files: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    files
}

/// One of the seeds with a few changes, as a fuzzer makes them that knows nothing of coverage.
fn mutate(seeds: &[Vec<u8>], max_len: usize, rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut input = seeds[rng.random_range(0..seeds.len())].clone();
    for _ in 0..1 << rng.random_range(0..4u32) {
        let at = rng.random_range(0..=input.len());
        let end = (at + (1 << rng.random_range(0..5u32))).min(input.len());
        match rng.random_range(0..6u8) {
            0 => rng.fill_bytes(&mut input[at..end]),
            1 if at < end => input[at] ^= 1 << rng.random_range(0..8u32),
            2 => input[at..end].fill(*[0, 1, 0x7f, 0x80, 0xff].get(end % 5).unwrap_or(&0)),
            3 => drop(input.drain(at..end)),
            4 => {
                let piece = input[at..end].to_vec();
                input.splice(at..at, piece);
            }
            _ => {
                let other = &seeds[rng.random_range(0..seeds.len())];
                let from = rng.random_range(0..=other.len());
                let to = (from + 16).min(other.len());
                input.splice(at..end, other[from..to].iter().copied());
            }
        }
    }
    input.truncate(max_len);
    input
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mutations_differ_and_keep_to_their_length() {
        let seeds = vec![vec![7; 40], (0..60).collect()];
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let made: std::collections::BTreeSet<_> =
            (0..100).map(|_| mutate(&seeds, 50, &mut rng)).collect();
        assert!(made.len() > 80 && made.iter().all(|input| input.len() <= 50));
    }

    #[test]
    fn a_failure_shows_its_input() {
        let body = |input: &[u8]| assert!(input.len() < 3, "too long");
        let target = Target { name: "t", body, seeds: Vec::new, max_len: 9 };
        let failed = catch_unwind(|| play(&target, &[1, 2, 0xff], "a test"));
        let text = failed.unwrap_err().downcast::<String>().unwrap();
        assert_eq!(*text, "t fails for a test, 3 bytes: 0102ff");
    }
}
