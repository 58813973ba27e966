//! Tests of reading compressed grains.

use std::sync::Arc;

use block_core::IoBuf;
use block_core::proto::mem::MemDriver;
use futures::executor::block_on;

use super::*;
use crate::compress::{Level, deflate};
use crate::spec::sparse::{GrainDirectory, SectorRange};

const GRAIN: u64 = 8;
const GRAIN_LEN: usize = 4096;

fn header(capacity: u64, grain: u64, has_markers: bool) -> SparseHeader {
    let descriptor = SectorRange { start: Sector(1), count: SectorCount(20) };
    let (capacity, grain) = (SectorCount(capacity), SectorCount(grain));
    let gd = GrainDirectory::InFooter;
    let header = SparseHeader::stream_optimized(capacity, grain, descriptor, grain, gd).unwrap();
    let mut bytes = header.to_bytes();
    assert_eq!(bytes[10], 3, "compressed, with markers");
    bytes[10] = 1 | u8::from(has_markers) << 1;
    SparseHeader::parse(&bytes).unwrap()
}

/// A file of grains behind one another, and where each is.
#[derive(Default)]
struct File {
    bytes: Vec<u8>,
    grains: Vec<StoredGrain>,
}

impl File {
    fn push(&mut self, lba: u64, data: &[u8], has_marker: bool) {
        let mut stream = Vec::new();
        let len = u32::try_from(deflate(Level::default(), data, &mut stream)).unwrap();
        let at = Sector(to_u64(self.bytes.len()) / 512);
        let lba = Sector(lba);
        self.grains.push(StoredGrain { at, lba });
        match has_marker {
            true => self.bytes.extend(GrainMarker { lba, len }.to_bytes()),
            false => self.bytes.extend(len.to_le_bytes()),
        }
        self.bytes.extend(stream);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
    }

    fn reader(&self, capacity: u64, has_markers: bool) -> GrainReader {
        let file = Arc::new(MemDriver::from_bytes(&self.bytes).unwrap());
        GrainReader::new(Node::new(file, Default::default()), &header(capacity, GRAIN, has_markers))
            .unwrap()
    }
}

fn noise(seed: u32, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

fn wanted(grain: StoredGrain, skip: usize, len: usize) -> (Wanted, IoBuf) {
    let buf = IoBuf::zeroed(len, Alignment::ONE).unwrap();
    (Wanted { grain, skip, iov: buf.clone().into() }, buf)
}

#[test]
fn grains_are_read_one_by_one_and_together() {
    for has_markers in [true, false] {
        let mut file = File::default();
        let data: Vec<Vec<u8>> =
            (0..300u32)
                .map(|n| {
                    if n % 3 == 0 {
                        noise(n, GRAIN_LEN)
                    } else {
                        vec![n.to_le_bytes()[0]; GRAIN_LEN]
                    }
                })
                .collect();
        for (n, data) in (0..).zip(&data) {
            file.push(n * GRAIN, data, has_markers);
        }
        // The grain of noise at the end is longer than a grain: a second read fetches the rest.
        file.push(300 * GRAIN, &noise(1, GRAIN_LEN), has_markers);
        let reader = file.reader(301 * GRAIN, has_markers);
        let (all, bufs): (Vec<_>, Vec<_>) =
            file.grains[..300].iter().map(|grain| wanted(*grain, 0, GRAIN_LEN)).unzip();
        block_on(reader.fill(all)).unwrap();
        for (buf, data) in bufs.iter().zip(&data) {
            assert!(buf.to_vec() == *data);
        }
        for n in [0, 1, 299] {
            let (one, buf) = wanted(file.grains[n], 100, 1000);
            block_on(reader.fill(vec![one])).unwrap();
            assert!(buf.to_vec() == data[n][100..1100], "{n}");
        }
        let whole = block_on(reader.whole(file.grains[300])).unwrap();
        assert!(**whole == noise(1, GRAIN_LEN));
        assert_eq!(reader.in_flight.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn a_grain_is_given_only_if_its_marker_is_right() {
    let mut file = File::default();
    file.push(0, &[1; GRAIN_LEN], true);
    file.push(GRAIN, &noise(7, GRAIN_LEN), true);
    file.push(2 * GRAIN, &[3; 600], true);
    let read = |file: &File, capacity, grain| block_on(file.reader(capacity, true).whole(grain));
    let what = |result: Result<_>| match result {
        Err(Error::Corrupt { what, .. }) => what,
        other => panic!("{:?}", other.map(|_: Arc<OwnedBuf>| ())),
    };
    let [first, second, last] = file.grains[..] else { panic!("three grains") };
    let capacity = 2 * GRAIN + 1;
    assert!(read(&file, capacity, first).is_ok() && read(&file, capacity, last).is_ok());
    let asked = |at, lba| StoredGrain { at, lba };
    assert_eq!(what(read(&file, 24, asked(first.at, second.lba))), "grain marker LBA");
    assert_eq!(what(read(&file, 8, second)), "grain marker LBA");
    // Its stream ends after 600 bytes, and two sectors are needed.
    assert_eq!(what(read(&file, capacity + 1, last)), "damaged compressed grain at sector");
    let end = Sector(to_u64(file.bytes.len()) / 512);
    let beyond = "compressed grain beyond the end of the file";
    for at in [end, Sector(end.0 + 1000), Sector(u64::from(u32::MAX))] {
        assert_eq!(what(read(&file, 24, asked(at, Sector(0)))), beyond);
    }
    assert_eq!(what(read(&file, 24, asked(Sector(u64::MAX), Sector(0)))), "grain table entry");

    // The stream starts twelve bytes in: two grains from there on are too much.
    let place = to_usize(second.at.0 * 512) + 8;
    let mut set = |len: u32| file.bytes[place..place + 4].copy_from_slice(&len.to_le_bytes());
    set(8192 - 11);
    assert_eq!(what(read(&file, 24, second)), "grain marker size");
    let mut set = |len: u32| file.bytes[place..place + 4].copy_from_slice(&len.to_le_bytes());
    set(8192 - 12);
    assert_eq!(what(read(&file, 24, second)), beyond);
    file.bytes[place..place + 4].fill(0);
    assert_eq!(what(read(&file, 24, second)), "marker type");
}

#[test]
fn an_error_of_one_grain_is_that_of_all_and_damage_never_panics() {
    let mut file = File::default();
    for n in 0..4u32 {
        file.push(u64::from(n) * GRAIN, &noise(n, GRAIN_LEN), true);
    }
    for at in (0..file.bytes.len()).step_by(97) {
        file.bytes[at] ^= 0x41;
        let reader = file.reader(4 * GRAIN, true);
        let (all, bufs): (Vec<_>, Vec<_>) =
            file.grains.iter().map(|grain| wanted(*grain, 0, GRAIN_LEN)).unzip();
        if block_on(reader.fill(all)).is_ok() {
            // A byte between the grains.
            for (n, buf) in (0..).zip(bufs) {
                assert!(buf.to_vec() == noise(n, GRAIN_LEN), "{at}");
            }
        }
        file.bytes[at] ^= 0x41;
    }
}

#[test]
fn grains_that_are_too_long_are_refused() {
    let header = header(1 << 20, 0x1_0000, true);
    let file = Node::new(Arc::new(MemDriver::from_bytes(&[]).unwrap()), Default::default());
    assert_eq!(GrainReader::new(file, &header).err(), Some(Problem::Above(0x8000)));
}
