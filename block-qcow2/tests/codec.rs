//! Compressed clusters hold what they were made from, keep to their window, and are always the same.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers outside of #[test]")]

use block_qcow2::compress::codec::Codec;
use block_qcow2::compress::{Encoding, Window};
use block_qcow2::spec::header::Compression;
use block_testkit::naive::inflate::{BadDeflate, inflate};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

const SMALL: usize = 4 << 10;
const LARGE: usize = 32 << 10;

const DEFLATE: Compression = Compression::Deflate;
const ZSTD: Compression = Compression::Zstd;
const KINDS: [Kind; 3] =
    [(DEFLATE, Window::Small), (DEFLATE, Window::Large), (ZSTD, Window::Small)];

type Kind = (Compression, Window);

fn encoding((compression, window): Kind, level: Option<u32>) -> Encoding {
    Encoding::new(compression, level, window).unwrap()
}

/// Every kind and level.
fn all() -> Vec<(Kind, u32)> {
    let levels = |kind: Kind| (1..=if kind.0 == ZSTD { 22 } else { 9 }).map(move |n| (kind, n));
    KINDS.into_iter().flat_map(levels).collect()
}

/// What the data looks like.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Data {
    Constant,
    /// Words out of a small dictionary: copies of all lengths and distances.
    Text,
    /// A short period first, then text: long copies that run over windows.
    Mixed,
    Random,
}

const ALL_DATA: [Data; 4] = [Data::Constant, Data::Text, Data::Mixed, Data::Random];

impl Data {
    fn bytes(self, len: usize, seed: u64) -> Vec<u8> {
        let mut random = StdRng::seed_from_u64(seed);
        let mut bytes = Vec::with_capacity(len + 16);
        let words: Vec<u32> = (0..2000).map(|_| random.random_range(0..90_000)).collect();
        while bytes.len() < len {
            match self {
                Self::Constant => bytes.push(0xa5),
                Self::Mixed if bytes.len() < len / 3 => bytes.extend(b"period!"),
                Self::Text | Self::Mixed => {
                    // Some words are common and some are rare.
                    let most = random.random_range(1..words.len());
                    let word = words[random.random_range(0..most)];
                    bytes.extend(word.to_string().bytes().chain([b' ']));
                }
                Self::Random => bytes.push(random.random()),
            }
        }
        bytes.truncate(len);
        bytes
    }
}

/// The payload in a cluster's room less one byte, which is what the format allows.
fn compress(codec: &mut Codec, encoding: Encoding, data: &[u8]) -> Option<Vec<u8>> {
    let mut payload = vec![0xee; data.len() - 1];
    let len = codec.compress(encoding, data, &mut payload)?;
    payload.truncate(len);
    Some(payload)
}

/// Compresses, inflates, compares. Returns the payload's length, if there is one.
fn round_trip(codec: &mut Codec, kind: Kind, level: Option<u32>, data: &[u8]) -> Option<usize> {
    let payload = compress(codec, encoding(kind, level), data)?;
    let mut back = vec![0; data.len()];
    codec.inflate(kind.0, &payload, &mut back).unwrap();
    assert!(back == data, "{kind:?} {level:?} {}", data.len());
    if kind.0 == DEFLATE {
        let window = if kind.1 == Window::Small { SMALL } else { LARGE };
        let strict = inflate(&payload, window, data.len()).unwrap();
        assert!(strict.bytes == data, "{kind:?} {level:?} {}", data.len());
        assert_eq!(strict.used, payload.len());
    }
    Some(payload.len())
}

/// Promise: a payload inflates to the data, for every cluster size and for tails; deflate keeps to its
/// window; random data has no payload.
#[test]
fn clusters_of_all_sizes_come_back() {
    let mut codec = Codec::new();
    for bits in 9..=21u32 {
        let cluster = 1usize << bits;
        let tails = [cluster / 2 + 512, cluster - 3];
        let lens = [cluster].into_iter().chain(tails.into_iter().filter(|_| bits < 18));
        for (len, kind) in lens.flat_map(|len| KINDS.map(|kind| (len, kind))) {
            for data in ALL_DATA {
                let bytes = data.bytes(len, u64::from(bits));
                let payload = round_trip(&mut codec, kind, None, &bytes);
                assert_eq!(payload.is_none(), data == Data::Random, "{kind:?} {data:?} {len}");
            }
        }
    }
}

/// The same for every level.
#[test]
fn clusters_of_all_levels_come_back() {
    let mut codec = Codec::new();
    for (kind, level) in all() {
        for data in ALL_DATA {
            let bytes = data.bytes(64 << 10, u64::from(level));
            let payload = round_trip(&mut codec, kind, Some(level), &bytes);
            assert_eq!(payload.is_none(), data == Data::Random, "{kind:?} {level} {data:?}");
        }
    }
}

/// Random bytes that come again after `distance`: nothing but copies of that distance helps.
fn echo(len: usize, distance: usize) -> Vec<u8> {
    let bytes = Data::Random.bytes(distance, 3);
    bytes.into_iter().cycle().take(len).collect()
}

/// Promise: the small window is 4 KiB in truth. The check is able to fail: with the large window the same data
/// reaches further back, and the strict inflater says so.
#[test]
fn the_small_window_is_kept_and_the_large_one_is_used() {
    let mut codec = Codec::new();
    let (near, edge, far) = (echo(65536, 3000), echo(65536, SMALL), echo(65536, SMALL + 1000));
    for level in 1..=9 {
        let mut payload = |window, data: &[u8]| {
            compress(&mut codec, encoding((DEFLATE, window), Some(level)), data)
        };
        let small = payload(Window::Small, &near).unwrap();
        assert_eq!(inflate(&small, SMALL, 65536).unwrap().reach, 3000, "level {level}");
        // Nothing to copy within the window, so that this is random data.
        assert_eq!(payload(Window::Small, &far), None, "level {level}");
        if let Some(small) = payload(Window::Small, &edge) {
            assert!(inflate(&small, SMALL, 65536).unwrap().reach <= SMALL, "level {level}");
        }

        let large = payload(Window::Large, &far).unwrap();
        let strict = inflate(&large, SMALL, 65536);
        let too_far = |bad| matches!(bad, BadDeflate::BeyondWindow { distance: 5096, .. });
        assert!(strict.is_err_and(too_far), "level {level}");
        assert!(inflate(&large, LARGE, 65536).unwrap().bytes == far);
    }
}

/// Promise: a room that is a byte too small gives nothing, and the exact room gives the payload.
#[test]
fn what_does_not_fit_is_none() {
    let mut codec = Codec::new();
    let data = Data::Text.bytes(64 << 10, 1);
    for (kind, level) in all().into_iter().filter(|(_, level)| *level <= 9) {
        let encoding = encoding(kind, Some(level));
        let payload = compress(&mut codec, encoding, &data).unwrap();
        let mut fits = |room: usize| codec.compress(encoding, &data, &mut vec![0; room]);
        // More often than the encoder's buffer is large, and every room near the payload's length.
        let near = (1..=20).map(|less| payload.len() - less);
        for room in [0, 1, payload.len() / 2].into_iter().chain(near) {
            assert_eq!(fits(room), None, "{kind:?} {level} {room}");
        }
        assert_eq!(fits(data.len() - 1), Some(payload.len()));
    }
}

/// Promise: a payload does not depend on what the codec did before, nor on the thread.
#[test]
fn payloads_are_the_same_in_any_order_and_thread() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut work: Vec<(Encoding, Vec<u8>)> = Vec::new();
    for (kind, level) in all() {
        for len in [4 << 10, 64 << 10, 128 << 10] {
            for data in [Data::Text, Data::Mixed, Data::Random] {
                work.push((encoding(kind, Some(level)), data.bytes(len, random.random())));
            }
        }
    }
    let fresh =
        |(encoding, data): &(Encoding, Vec<u8>)| compress(&mut Codec::new(), *encoding, data);
    let expected: Vec<_> = work.iter().map(fresh).collect();
    let mut orders: Vec<Vec<usize>> = vec![(0..work.len()).collect(); 3];
    for order in &mut orders[1..] {
        order.shuffle(&mut random);
    }
    let (work, expected) = (&work, &expected);
    std::thread::scope(|scope| {
        for order in orders {
            scope.spawn(move || {
                let mut codec = Codec::new();
                for index in order {
                    let (encoding, data) = &work[index];
                    let again = compress(&mut codec, *encoding, data);
                    assert!(again == expected[index], "{encoding:?} {}", data.len());
                }
            });
        }
    });
}
