//! Disks of any bytes: they are read, checked, mended and written to, and nothing worse happens than an error.

use std::sync::{Arc, LazyLock};

use block_core::ability::Repair;
use block_core::driver::BlockDriver;
use block_core::graph;
use block_core::options::OpenFlags;
use block_core::proto::mem::MemDriver;
use block_core::range::{to_u64, to_usize};
use block_testkit::campaign::Game;
use block_testkit::exec::Exec;
use block_testkit::fuzz::{
    Bytes, Target, Words, as_it_is, damaged as damage, look_at, noise, send,
};
use block_testkit::naive::vmdk::make::NAME;
use block_testkit::naive::vmdk::{Files, Report};
use block_testkit::op::OpSpace;
use block_vmdk::stream::{ReadError, StreamReader};
use futures::executor::block_on;
use futures::io::Cursor;
use futures::stream::TryStreamExt;

use super::damaged::{Sample, check_files, samples};
use super::games::model;
use super::kit::{Disks, World, judge};

const MAX_LEN: usize = 8192;
/// Files that are longer in the end are not looked at, in bytes.
const LONG: u64 = 64 << 20;

pub const STREAM: Target =
    Target { name: "vmdk-stream", body: stream, seeds: streams, max_len: MAX_LEN };
pub const READ: Target = Target { name: "vmdk-read", body: read, seeds: disks, max_len: MAX_LEN };
pub const REPAIR: Target =
    Target { name: "vmdk-repair", body: repair, seeds: disks, max_len: MAX_LEN };
pub const WRITE: Target =
    Target { name: "vmdk-write", body: write, seeds: disks, max_len: MAX_LEN };

/// Disks of every kind whose files are short.
static SAMPLES: LazyLock<Vec<Sample>> = LazyLock::new(|| {
    let is_short = |sample: &Sample| sample.setup.shape.size <= 1 << 20;
    samples().into_iter().filter(is_short).collect()
});
static FILES: LazyLock<Vec<Vec<u8>>> =
    LazyLock::new(|| SAMPLES.iter().map(|sample| sample.file().to_vec()).collect());
/// Those that are streams.
static STREAMS: LazyLock<Vec<Vec<u8>>> =
    LazyLock::new(|| SAMPLES.iter().filter(|s| s.is_stream()).map(|s| s.file().to_vec()).collect());

fn inputs(count: usize, seed: u64) -> Vec<Vec<u8>> {
    let numbered = |(at, mut input): (usize, Vec<u8>)| {
        input[0] = u8::try_from(at % count).unwrap_or(0);
        input
    };
    noise(3 * count, 60, seed).into_iter().enumerate().map(numbered).collect()
}

fn disks() -> Vec<Vec<u8>> {
    let mut inputs = inputs(FILES.len(), 4);
    inputs.extend(FILES.iter().filter(|file| file.len() < MAX_LEN).map(|file| as_it_is(file)));
    inputs
}

/// The disk, with another file in the place of one of its own.
fn disk(bytes: &mut Bytes<'_>) -> Sample {
    let (number, file) = damage(bytes, &FILES, Words::LittleEndian);
    let mut sample = SAMPLES[number].clone();
    *sample.file_mut() = file;
    sample
}

fn open(sample: &Sample) -> (Disks<MemDriver>, World) {
    let memory = |bytes: Vec<u8>| Arc::new(MemDriver::from_bytes(&bytes).expect("memory"));
    let disks = Disks::new(sample.files.clone(), memory);
    let world = disks.world(&sample.setup, |disk| -> Arc<dyn BlockDriver> { disk });
    (disks, world)
}

/// Reading, mapping and checking change nothing and end; where the disk has no damage, the naive reader sees the
/// same.
fn read(input: &[u8]) {
    read_disk(&disk(&mut Bytes::new(input)));
}

fn read_disk(sample: &Sample) {
    let (disks, world) = open(sample);
    let Ok(node) = block_on(world.open_with(OpenFlags::READ_ONLY)) else { return };
    let contents = block_on(look_at(&node));
    let len = node.len();
    let _ = block_on(graph::close(&node));
    assert!(disks.bytes(|disk| disk.to_bytes()) == sample.files, "reading has changed the disk");
    let checked = check_files(&sample.setup, &sample.files, Repair::Nothing);
    let Ok(Ok((report, _))) = checked.map(|checked| checked.result) else { return };
    if (report.corruptions, report.check_errors) != (0, 0) || len > 2 << 20 {
        return;
    }
    let Ok(judged) = judge(&sample.setup, &sample.files) else { return };
    // What names no parent any more has none, which the naive reader does not know.
    if sample.setup.shape.backing.as_ref().is_some_and(|(_, cid)| judged.parent != Some(*cid)) {
        return;
    }
    if let (Some(contents), 0) = (contents, judged.report.errors()) {
        assert!(contents == judged.contents, "the naive reader sees something else");
    }
}

/// A check of any damage ends; a repair says what remains, makes nothing worse, and stays; what is clean then is so
/// for the naive checker, and takes writes like any other disk.
fn repair(input: &[u8]) {
    let sample = disk(&mut Bytes::new(input));
    let (setup, files) = (&sample.setup, &sample.files);
    let Ok(checked) = check_files(setup, files, Repair::Nothing) else { return };
    assert!(checked.files == *files, "a check has changed the disk");
    let Ok((before, _)) = checked.result else { return };
    let checked = check_files(setup, files, Repair::All).expect("it opens again");
    let Ok((report, said)) = checked.result else { return };
    let after = checked.files;
    let again = check_files(setup, &after, Repair::Nothing).expect("what was mended opens");
    let (again, found) = again.result.expect("and can be checked");
    assert_eq!(
        (report.corruptions, report.leaks, report.check_errors),
        (again.corruptions, again.leaks, again.check_errors),
        "{found:#?}"
    );
    assert!(report.corruptions <= before.corruptions, "{said:#?}");
    if (again.corruptions, again.leaks, again.check_errors) != (0, 0, 0) {
        return;
    }
    let Ok(slow) = judge(setup, &after) else { return };
    // A grain that was lost is still in the stream.
    let is_fine = slow.clean().is_ok() || sample.is_stream() || is_only_text(&slow.report);
    assert!(is_fine, "{}\n{said:#?}", slow.report);
    let is_plain = slow.contents.len() == to_usize(setup.shape.size)
        && slow.report.leaks == 0
        && slow.cid.is_some();
    if is_plain && !sample.is_stream() && slow.clean().is_ok() {
        grow_old(&sample, &after);
    }
}

/// Whether all that the naive checker dislikes is the descriptor's text, which the driver reads more kindly.
fn is_only_text(report: &Report) -> bool {
    let text = report.to_string();
    let mut errors = text.lines().filter(|line| line.starts_with("error:"));
    report.errors() > 0 && errors.all(|error| error.contains("the descriptor"))
}

/// Plays a few operations on a disk without damage: none of them brings any.
fn grow_old(sample: &Sample, files: &Files) {
    // It may be of a kind that nobody writes.
    let (_, world) = open(&Sample { files: files.clone(), ..sample.clone() });
    let Ok(node) = block_on(world.open()) else { return };
    block_on(graph::close(&node)).expect("a disk without damage is closed");
    let setup = sample.setup.clone();
    let seed = setup.shape.size;
    let input = noise(1, 80, seed).remove(0);
    let ops = setup.space().decode(&mut Bytes::new(&input), 10);
    let game = Game { setup, ops, depth: 2, seed };
    if let Err(why) = model::play_on(&game, files) {
        panic!("a repaired disk goes wrong: {why}\n{game:?}");
    }
}

/// Writes to a disk of any damage succeed or fail, and end.
fn write(input: &[u8]) {
    let sample = disk(&mut Bytes::new(input));
    let (disks, world) = open(&sample);
    let seed = to_u64(input.len());
    let Ok(node) = block_on(world.open()) else { return };
    if node.len() > 64 << 20 || node.len() < 4096 {
        return;
    }
    let mut space = OpSpace { len: node.len(), max_request: 64 << 10, ..sample.setup.space() };
    space.edges.retain(|edge| *edge < node.len());
    let input = noise(1, 96, seed).remove(0);
    let ops = space.decode(&mut Bytes::new(&input), 12);
    Exec::run(seed, move |_| async move {
        send(&node, &ops).await;
        // Closing may fail, too.
        let _ = graph::close(&node).await;
    });
    // An entry may name a place far behind the end of the file, and what is written there makes it long.
    if disks.0.iter().any(|(_, disk)| disk.len() > LONG) {
        return;
    }
    let files = disks.bytes(|disk| disk.to_bytes());
    read_disk(&Sample { files, ..sample });
}

fn streams() -> Vec<Vec<u8>> {
    let mut inputs = inputs(STREAMS.len(), 5);
    inputs.extend(STREAMS.iter().map(|file| {
        let mut input = as_it_is(file);
        input.truncate(MAX_LEN);
        input
    }));
    inputs
}

/// A stream of any bytes ends or is refused, within its memory; what is taken whole, the naive reader sees, too.
fn stream(input: &[u8]) {
    let (_, file) = damage(&mut Bytes::new(input), &STREAMS, Words::LittleEndian);
    let Ok(contents) = block_on(read_stream(file.clone())) else { return };
    let files = Files::from([(NAME.to_owned(), file)]);
    let image = block_testkit::naive::vmdk::Image::open(&files, NAME);
    if let (Some(contents), Ok(Ok(naive))) = (contents, image.map(|image| image.contents())) {
        assert!(contents == naive, "the naive reader sees something else");
    }
}

/// The disk in a stream, if it is short.
async fn read_stream(file: Vec<u8>) -> Result<Option<Vec<u8>>, ReadError> {
    const MEMORY: u64 = 1 << 20;
    const SHORT: u64 = 4 << 20;
    let reader = StreamReader::with_memory(Cursor::new(file), MEMORY).await?;
    let len = reader.disk_len();
    let mut bytes = (len <= SHORT).then(|| vec![0; to_usize(len)]);
    let mut pieces = std::pin::pin!(reader.into_pieces());
    while let Some(piece) = pieces.try_next().await? {
        let end = piece.offset + to_u64(piece.data.len());
        assert!(end <= len, "a piece beyond the end of the disk");
        if let Some(bytes) = &mut bytes {
            piece.data.copy_to(0, &mut bytes[to_usize(piece.offset)..to_usize(end)]);
        }
    }
    Ok(bytes)
}
