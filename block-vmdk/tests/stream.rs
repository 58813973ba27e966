//! Images that are written as a stream and read back: by QEMU, by a walker that knows the format's layout only, and by
//! the reader of streams.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers outside of #[test]")]

mod walker;

use std::collections::BTreeMap;
use std::sync::Arc;

use block_core::job::copy::{Progress, TargetContents};
use block_core::job::stream::StreamError;
use block_core::proto::mem::MemDriver;
use block_core::range::{to_u64, to_usize};
use block_core::{Alignment, ByteRange, Cancel, IoBuf, Node};
use block_testkit::disk::fault::{Fault, Rule};
use block_testkit::disk::tap::{Kind, Tapped};
use block_testkit::naive::vmdk::make::{self, Directory, Grain, Shape, Subformat, ZeroedGrains};
use block_testkit::naive::vmdk::{Files, Image};
use block_testkit::peer::ImageDir;
use block_vmdk::compress::Level;
use block_vmdk::stream::{ReadError, ReadInto, StreamReader, StreamWriter, WriteError};
use block_vmdk::units::ContentId;
use futures::executor::block_on;
use futures::io::Cursor;
use futures::stream::TryStreamExt;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use walker::walk;

const GRAIN: usize = 64 << 10;

/// A disk with holes, text, and noise that no compression makes shorter.
fn disk(seed: u64, len: usize) -> Vec<u8> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut bytes = vec![0; len];
    let mut at = 0;
    while at < len {
        let run = random.random_range(1..6 * GRAIN).min(len - at);
        let part = &mut bytes[at..at + run];
        match random.random_range(0..4) {
            0 => random.fill(part),
            1 => part
                .iter_mut()
                .enumerate()
                .for_each(|(n, byte)| *byte = (n / 97 % 251).to_le_bytes()[0]),
            _ => {}
        }
        at += run;
    }
    bytes
}

fn node(bytes: &[u8]) -> Node {
    Node::new(Arc::new(MemDriver::from_bytes(bytes).unwrap()), Default::default())
}

/// A disk on which requests of this kind fail at 5 MiB.
fn broken(bytes: &[u8], kind: Kind) -> Node {
    let fault = Fault::new();
    fault.add(Rule::new(kind).at(ByteRange::new(5 << 20, 512).unwrap()));
    let disk = Tapped::new(Arc::new(MemDriver::from_bytes(bytes).unwrap()), fault);
    Node::new(disk, Default::default())
}

fn writer(bytes: &[u8]) -> StreamWriter {
    StreamWriter::new(node(bytes)).content_id(ContentId(0x1234_5678))
}

fn write(writer: StreamWriter) -> Vec<u8> {
    let mut file = Vec::new();
    let written = block_on(writer.write_to(&mut file, &Cancel::new(), |_: Progress| {}));
    assert_eq!(written.unwrap(), to_u64(file.len()));
    file
}

/// The disk in a stream, as the reader gives it.
fn read(file: Vec<u8>, memory: u64) -> Result<Vec<u8>, ReadError> {
    block_on(async {
        let reader = StreamReader::with_memory(Cursor::new(file), memory).await?;
        let mut bytes = vec![0; to_usize(reader.disk_len())];
        let mut pieces = std::pin::pin!(reader.into_pieces());
        while let Some(piece) = pieces.try_next().await? {
            let at = to_usize(piece.offset);
            piece.data.copy_to(0, &mut bytes[at..at + piece.data.len()]);
        }
        Ok(bytes)
    })
}

fn contents(node: &Node) -> Vec<u8> {
    let buf = IoBuf::zeroed(to_usize(node.len()), Alignment::ONE).unwrap();
    block_on(node.read(ByteRange::up_to(node.len()), buf.clone().into())).unwrap();
    buf.to_vec()
}

/// The promise: whatever the disk, the image is laid out as the format says, and everybody reads the same from it.
#[test]
fn any_disk_is_an_image_that_the_format_the_reader_and_qemu_agree_on() {
    let dir = ImageDir::new().unwrap();
    // Odd lengths, a last grain that is cut, more than one grain table.
    let lens = [512, 65536, 65536 + 512, 3 << 20, (33 << 20) + 1536];
    for (seed, len) in (1..).zip(lens) {
        println!("seed {seed}, {len} bytes");
        let bytes = disk(seed, len);
        let file = write(writer(&bytes));
        let walked = walk(&file);
        assert!(walked.disk == bytes);
        let grains = bytes.chunks(GRAIN).filter(|grain| grain.iter().any(|b| *b != 0)).count();
        assert_eq!(walked.grains, grains);
        assert!(read(file.clone(), 64 << 20).unwrap() == bytes);
        let files = Files::from([("disk.vmdk".to_owned(), file.clone())]);
        let image = Image::open(&files, "disk.vmdk").unwrap();
        assert!(image.contents().unwrap() == bytes);
        let report = image.check().unwrap();
        assert!(report.is_clean() && report.grains == to_u64(grains), "{report}");
        dir.write("s.vmdk", &file).unwrap();
        assert!(dir.raw_contents("s.vmdk", &[]).unwrap() == bytes);
        let info = dir.qemu_img(&["info", "s.vmdk"]).unwrap();
        assert!(
            info.contains("create type: streamOptimized") && info.contains("cid: 305419896"),
            "{info}"
        );
        dir.qemu_img(&["check", "s.vmdk"]).unwrap();
    }
}

#[test]
fn a_disk_of_zeroes_has_no_tables_and_is_read() {
    let dir = ImageDir::new().unwrap();
    let bytes = vec![0; 40 << 20];
    let file = write(writer(&bytes));
    // Header and descriptor, directory, footer and end, each with its marker.
    assert_eq!(file.len(), (128 + 2 + 2 + 1) * 512);
    assert!(walk(&file).disk == bytes && read(file.clone(), 1 << 20).unwrap() == bytes);
    dir.write("z.vmdk", &file).unwrap();
    assert!(dir.raw_contents("z.vmdk", &[]).unwrap() == bytes);
}

#[test]
fn a_disk_without_sectors_is_an_image_too() {
    let file = write(writer(&[]));
    assert!(walk(&file).disk.is_empty());
    assert!(read(file, 1 << 20).unwrap().is_empty());
}

#[test]
fn several_disks_are_joined_at_whole_sectors() {
    let (first, second) = (disk(5, 100_000), disk(6, 200_000));
    let file = write(writer(&first).followed_by(node(&second)));
    let mut expect = first.clone();
    expect.resize(first.len().next_multiple_of(512), 0);
    expect.extend(&second);
    expect.resize(expect.len().next_multiple_of(512), 0);
    assert!(walk(&file).disk == expect && read(file, 64 << 20).unwrap() == expect);
}

/// How many pieces are in flight is decided by the memory: one, or as many as there are threads for.
#[test]
fn the_bytes_depend_on_the_disk_and_the_options_only() {
    let bytes = disk(7, 6 << 20);
    let file = write(writer(&bytes));
    assert!(write(writer(&bytes).memory_bytes(0)) == file);
    assert!(write(writer(&bytes).memory_bytes(2 << 20)) == file);
    let small = write(writer(&bytes).level(Level::new(9).unwrap()));
    assert!(small != file && walk(&small).disk == bytes);
    // Without a content id it is another image each time.
    let node = node(&bytes[..GRAIN]);
    assert!(write(StreamWriter::new(node.clone())) != write(StreamWriter::new(node)));
}

#[test]
fn a_sink_that_fails_and_a_cancel_end_the_write() {
    let bytes = disk(8, 8 << 20);
    for room in [0, 1000, 300_000] {
        let mut file = vec![0; room];
        let sink = Cursor::new(&mut file[..]);
        let error = block_on(writer(&bytes).write_to(sink, &Cancel::new(), |_: Progress| {}));
        assert!(matches!(error, Err(WriteError::Stream(StreamError::Sink { .. }))), "{error:?}");
    }
    for after in [0, 2 << 20, 5 << 20] {
        let (cancel, handle) = (Cancel::new(), Cancel::new());
        let handle = if after == 0 {
            cancel.cancel();
            handle
        } else {
            cancel.clone()
        };
        let watch = move |progress: Progress| {
            if progress.done >= after {
                handle.cancel();
            }
        };
        let error = block_on(writer(&bytes).write_to(futures::io::sink(), &cancel, watch));
        assert!(matches!(error, Err(WriteError::Stream(StreamError::Cancelled))), "{error:?}");
    }
}

#[test]
fn progress_goes_from_the_start_to_the_end() {
    let bytes = disk(9, 10 << 20);
    let mut seen = Vec::new();
    let watch = |progress: Progress| {
        assert_eq!(progress.total, 10 << 20);
        seen.push(progress.done);
    };
    block_on(writer(&bytes).write_to(futures::io::sink(), &Cancel::new(), watch)).unwrap();
    assert!(seen.is_sorted() && seen.len() > 3);
    assert_eq!((seen.first(), seen.last()), (Some(&0), Some(&(10 << 20))));
}

#[test]
fn a_stream_is_written_into_a_node_whatever_it_held() {
    let bytes = disk(10, (9 << 20) + 512);
    let file = write(writer(&bytes));
    for target in [TargetContents::Unknown, TargetContents::Zeroes] {
        let byte = if target == TargetContents::Zeroes { 0 } else { 0xaa };
        let into = node(&vec![byte; bytes.len()]);
        let mut last = 0;
        let watch = |progress: Progress| last = progress.done;
        block_on(async {
            let reader = StreamReader::open(Cursor::new(file.clone())).await.unwrap();
            let options = ReadInto { target, ..ReadInto::default() };
            reader.read_into(&into, options, &Cancel::new(), watch).await.unwrap();
        });
        assert!(contents(&into) == bytes);
        assert_eq!(last, to_u64(bytes.len()));
    }
}

#[test]
fn images_of_qemu_are_read_although_their_tables_stand_at_the_front() {
    let dir = ImageDir::new().unwrap();
    for (seed, len) in [(11, 1 << 20), (12, (5 << 20) + 512)] {
        let bytes = disk(seed, len);
        dir.write("r.raw", &bytes).unwrap();
        let options = ["-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"];
        dir.qemu_img(&[&["convert"][..], &options, &["r.raw", "q.vmdk"]].concat()).unwrap();
        let file = dir.bytes("q.vmdk").unwrap();
        assert!(read(file.clone(), 64 << 20).unwrap() == bytes);
        // Not all of it: the tables name more than comes.
        let cut = file[..file.len() / 1024 * 512].to_vec();
        let error = read(cut, 64 << 20).unwrap_err();
        assert!(matches!(error, ReadError::Truncated { .. }), "{error}");
    }
}

/// Every cut is an error that says where, and nobody panics.
#[test]
fn a_stream_that_is_cut_anywhere_is_an_error() {
    let bytes = disk(13, 600 << 10);
    let file = write(writer(&bytes));
    assert!(walk(&file).grains > 3);
    for cut in (0..file.len()).step_by(2999).chain((file.len() - 2000..file.len()).step_by(7)) {
        match read(file[..cut].to_vec(), 64 << 20) {
            Err(ReadError::Truncated { offset, .. }) => assert_eq!(offset, to_u64(cut)),
            other => panic!("{cut}: {:?}", other.map(|bytes| bytes.len())),
        }
    }
    let mut longer = file.clone();
    longer.push(0);
    let error = read(longer, 64 << 20).unwrap_err();
    assert!(matches!(error, ReadError::Trailing { offset } if offset == to_u64(file.len())));
}

/// A byte that is changed is noticed, or is one that means nothing.
#[test]
fn a_damaged_stream_is_an_error_or_reads_the_same() {
    let bytes = disk(14, 400 << 10);
    let file = write(writer(&bytes));
    let mut random = ChaCha8Rng::seed_from_u64(14);
    let mut noticed = 0;
    for _ in 0..500 {
        let mut damaged = file.clone();
        // Half of them in the metadata at the end.
        let from = if random.random() { 0 } else { file.len() - 10 * 512 };
        let at = random.random_range(from..file.len());
        damaged[at] ^= 1 << random.random_range(0..8);
        match read(damaged, 64 << 20) {
            Err(_) => noticed += 1,
            Ok(read) => assert!(read == bytes || at < 512, "byte {at}"),
        }
    }
    assert!(noticed > 100, "{noticed}");
}

#[test]
fn grains_may_come_in_any_order_and_none_twice() {
    let bytes = disk(15, 3 << 20);
    let file = write(writer(&bytes));
    let walked = walk(&file);
    // The grains backwards, with the places in the only table changed.
    let turned = walked.rebuild(|grains| grains.reverse());
    assert!(turned != file && walk(&turned).disk == bytes);
    assert!(read(turned, 64 << 20).unwrap() == bytes);
    let twice = walked.rebuild(|grains| grains.push(grains[0].clone()));
    let error = read(twice, 64 << 20).unwrap_err();
    assert!(matches!(error, ReadError::Repeated { .. }), "{error}");
}

/// Grains of all sizes, tables of all lengths, entries for zeroes, tables in front and behind.
#[test]
fn whatever_the_format_allows_is_read() {
    for seed in 0..25 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut shape = Shape::new(random.random_range(1..6000) * 512);
        let front = random.random();
        let directory = if front { Directory::InHeader } else { Directory::InFooter };
        shape.subformat = Subformat::StreamOptimized(directory);
        shape.grain_sectors = 8 << random.random_range(0..6);
        shape.gtes_per_gt = random.random_range(1..=512);
        if random.random() {
            shape.zeroed_grains = ZeroedGrains::Yes;
        }
        println!("seed {seed}: {shape:?}");
        let mut bytes = vec![0; to_usize(shape.size)];
        let mut grains = BTreeMap::new();
        for (number, place) in (0..).zip(shape.grains()) {
            let range = to_usize(place.offset)..to_usize(place.offset + place.len);
            match random.random_range(0..4) {
                0 => {}
                1 if shape.zeroed_grains == ZeroedGrains::Yes => {
                    grains.insert(number, Grain::Zero);
                }
                _ => {
                    let step = random.random_range(1..50);
                    let data = (0..range.len()).map(|n| (n / step).to_le_bytes()[0]);
                    let data: Vec<u8> = data.collect();
                    bytes[range].copy_from_slice(&data);
                    grains.insert(number, Grain::Data(data));
                }
            }
        }
        let file = shape.make(&grains).remove(make::NAME).unwrap();
        assert!(read(file, 64 << 20).unwrap() == bytes);
    }
}

#[test]
fn a_stream_with_a_parent_or_of_another_kind_is_refused() {
    let mut shape = Shape::new(1 << 20);
    shape.subformat = Subformat::StreamOptimized(Directory::InFooter);
    shape.backing = Some(("parent.vmdk".to_owned(), 1));
    let file = shape.empty().remove(make::NAME).unwrap();
    assert!(matches!(read(file, 64 << 20), Err(ReadError::Parent)));
    let file = Shape::new(1 << 20).empty().remove(make::NAME).unwrap();
    let error = read(file, 64 << 20).unwrap_err();
    assert!(matches!(error, ReadError::NotAStream { .. }), "{error}");
    assert!(matches!(read(vec![0; 4096], 64 << 20), Err(ReadError::Header(_))));
    // Tables at the front that do not fit into the memory.
    shape.subformat = Subformat::StreamOptimized(Directory::InHeader);
    shape.backing = None;
    let file = shape.empty().remove(make::NAME).unwrap();
    assert!(matches!(read(file.clone(), 1000), Err(ReadError::Memory { budget: 1000 })));
    assert!(read(file, 1 << 20).is_ok());
}

#[test]
fn a_source_that_cannot_be_read_ends_the_write_and_names_the_place() {
    let bytes = vec![7; 9 << 20];
    let writer = StreamWriter::new(broken(&bytes, Kind::Read));
    let error = block_on(writer.write_to(futures::io::sink(), &Cancel::new(), |_: Progress| {}));
    let at = 5 << 20;
    match error {
        Err(WriteError::Stream(StreamError::Read { offset, .. })) => assert_eq!(offset, at),
        other => panic!("{other:?}"),
    }
}

/// What fails to be written ends the reading, and nothing is in flight then.
#[test]
fn a_target_that_cannot_be_written_and_a_cancel_end_the_reading() {
    let bytes = vec![7; 9 << 20];
    let file = write(writer(&bytes));
    let node = broken(&vec![0; bytes.len()], Kind::Write);
    let run = |cancel: Cancel, stop: u64| {
        let handle = cancel.clone();
        let watch = move |progress: Progress| {
            if progress.done >= stop {
                handle.cancel();
            }
        };
        let options = ReadInto { target: TargetContents::Zeroes, ..ReadInto::default() };
        let (file, node) = (file.clone(), node.clone());
        block_on(async move {
            let reader = StreamReader::open(Cursor::new(file)).await?;
            reader.read_into(&node, options, &cancel, watch).await
        })
    };
    let error = run(Cancel::new(), u64::MAX);
    assert!(matches!(error, Err(ReadError::Write { offset: 0x50_0000, .. })), "{error:?}");
    let error = run(Cancel::new(), 1 << 20);
    assert!(matches!(error, Err(ReadError::Cancelled)), "{error:?}");
}
