//! Images of any bytes: they are read, checked, mended and written to, and nothing worse happens than an error.

use std::sync::{Arc, LazyLock};

use block_core::ability::{CheckReport, Finding, Repair};
use block_core::driver::BlockDriver;
use block_core::graph;
use block_core::options::OpenFlags;
use block_core::proto::mem::MemDriver;
use block_core::range::to_u64;
use block_qcow2::spec::extension::{BitmapsExtension, Extensions};
use block_qcow2::spec::header::UnverifiedHeader;
use block_qcow2::units::HostOffset;
use block_testkit::campaign::Game;
use block_testkit::check::check_node;
use block_testkit::exec::Exec;
use block_testkit::fuzz::{Bytes, Target, Words, as_it_is, damaged, look_at, noise, send};
use block_testkit::naive::qcow2::Image;
use block_testkit::naive::qcow2::make::Made;
use block_testkit::op::{Op, OpSpace, Snapshots};
use futures::executor::block_on;

use super::games::{crash, model};
use super::kit::{Setup, World, judge};

const MAX_LEN: usize = 8192;

pub const READ: Target = Target { name: "qcow2-read", body: read, seeds: images, max_len: MAX_LEN };
pub const REPAIR: Target =
    Target { name: "qcow2-repair", body: repair, seeds: images, max_len: MAX_LEN };
pub const WRITE: Target =
    Target { name: "qcow2-write", body: write, seeds: images, max_len: MAX_LEN };

/// A setup, and its files at the start.
struct Base {
    setup: Setup,
    made: Made,
}

/// Small ones of every kind.
static BASES: LazyLock<Vec<Base>> = LazyLock::new(|| {
    let small = crash::small_setups().into_iter();
    small.map(|setup| Base { made: setup.make(), setup }).collect()
});
static FILES: LazyLock<Vec<Vec<u8>>> =
    LazyLock::new(|| BASES.iter().map(|base| base.made.file.clone()).collect());

/// Damages of each image, and whole images that are short.
fn images() -> Vec<Vec<u8>> {
    let numbered = |(at, mut input): (usize, Vec<u8>)| {
        input[0] = u8::try_from(at % BASES.len()).unwrap_or(0);
        input
    };
    let mut inputs: Vec<_> =
        noise(2 * BASES.len(), 60, 4).into_iter().enumerate().map(numbered).collect();
    inputs.extend(FILES.iter().filter(|file| file.len() < MAX_LEN).map(|file| as_it_is(file)));
    let mut tiny = BASES[0].setup.shape.clone();
    tiny.size = 4096;
    let cluster = block_testkit::naive::qcow2::make::Cluster::Data(vec![7; 512]);
    inputs.push(as_it_is(&tiny.make(&[(1, cluster)].into(), None).file));
    inputs
}

/// The setup that says what is beside the image, and the image.
fn image(bytes: &mut Bytes<'_>) -> (&'static Base, Vec<u8>) {
    let (base, file) = damaged(bytes, &FILES, Words::BigEndian);
    (&BASES[base], file)
}

/// The image's file, and the way to open it.
fn world(base: &Base, file: &[u8]) -> (Arc<MemDriver>, World) {
    let memory = |bytes| Arc::new(MemDriver::from_bytes(bytes).expect("memory"));
    let (disk, data) = (memory(file), memory(&base.made.data));
    let data: Arc<dyn BlockDriver> = data;
    (disk.clone(), World::new(&base.setup, disk, Some(data)))
}

/// A check of bytes: what it finds, and what they are afterwards. `None` if the image does not open or the check
/// cannot end.
fn check_bytes(file: &[u8], repair: Repair) -> Option<(CheckReport, Vec<Finding>, Vec<u8>)> {
    let flags = OpenFlags { no_backing: true, no_io: true, check: true, ..OpenFlags::READ_WRITE };
    let (disk, world) = world(&BASES[0], file);
    let node = block_on(world.open_with(flags)).ok()?;
    let (report, found) = block_on(check_node(&node, repair)).ok()?;
    Some((report, found, disk.to_bytes()))
}

/// Reading, mapping and checking change nothing and end; where the image has no damage, the naive reader sees the
/// same.
fn read(input: &[u8]) {
    let (base, file) = image(&mut Bytes::new(input));
    read_file(base, &file);
}

fn read_file(base: &Base, file: &[u8]) {
    let (disk, world) = world(base, file);
    let Ok(node) = block_on(world.open_with(OpenFlags::READ_ONLY)) else { return };
    let driver = Arc::clone(node.driver());
    if let Some(snapshots) = driver.as_snapshots() {
        snapshots.list();
    }
    let contents = block_on(look_at(&node));
    let len = node.len();
    let _ = block_on(graph::close(&node));
    assert!(disk.to_bytes() == file, "reading has changed the image");
    let Some((report, ..)) = check_bytes(file, Repair::Nothing) else { return };
    let made = Made { file: file.to_vec(), data: base.made.data.clone() };
    if (report.corruptions, report.check_errors) != (0, 0) || len > 1 << 20 {
        return;
    }
    let Ok(judged) = judge(&base.setup, &made) else { return };
    if let (Some(contents), 0) = (contents, judged.report.errors()) {
        assert!(contents == judged.contents, "the naive reader sees something else");
    }
}

/// A check of any damage ends; a repair says what remains, makes nothing worse, and stays; what is clean then is
/// so for the naive checker, and takes writes like any other image.
fn repair(input: &[u8]) {
    let bytes = &mut Bytes::new(input);
    let (base, file) = image(bytes);
    let Some((before, _, same)) = check_bytes(&file, Repair::Nothing) else { return };
    assert!(same == file, "a check has changed the image");
    let Some((report, said, after)) = check_bytes(&file, Repair::All) else { return };
    let Some((again, found, _)) = check_bytes(&after, Repair::Nothing) else {
        panic!("a repaired image cannot be checked: {said:#?}");
    };
    assert_eq!(
        (report.corruptions, report.leaks, report.check_errors),
        (again.corruptions, again.leaks, again.check_errors),
        "{found:#?}"
    );
    assert!(report.corruptions <= before.corruptions, "{said:#?}");
    let is_clean = again.corruptions == 0 && again.leaks == 0 && again.check_errors == 0;
    let Ok(image) = Image::open(&after) else { return };
    if !is_clean || image.header().size > 1 << 20 {
        return;
    }
    let slow = image.check().expect("a naive check");
    assert!(slow.is_clean(), "{slow}\n{said:#?}");
    grow_old(base, &after);
}

/// Plays a few operations on an image without damage: none of them brings any.
fn grow_old(base: &Base, file: &[u8]) {
    let mut setup = base.setup.clone();
    let made = Made { file: file.to_vec(), data: base.made.data.clone() };
    let Ok(judged) = judge(&setup, &made) else { return };
    let len = to_u64(judged.contents.len());
    let is_sound = judged.clean().is_ok() && !judged.report.shares_with_itself;
    if !is_sound || len < 4096 || !len.is_multiple_of(512) || !is_like(&setup, file) {
        return;
    }
    // It may have features that nobody writes.
    let (_, world) = world(base, file);
    let Ok(node) = block_on(world.open()) else { return };
    block_on(graph::close(&node)).expect("an image without damage is closed");
    setup.shape.size = len;
    setup.snapshots = Snapshots::Never;
    let input = noise(1, 80, len).remove(0);
    let ops = setup.space().decode(&mut Bytes::new(&input), 10);
    let rare = |op: &Op| matches!(op, Op::Truncate { .. });
    let ops = ops.into_iter().filter(|op| !rare(op)).collect();
    let game = Game { setup, ops, depth: 2, seed: len };
    if let Err(why) = model::play_on(&game, &made) {
        panic!("a repaired image goes wrong: {why}\n{game:?}");
    }
}

/// Whether the header still says what the setup does.
fn is_like(setup: &Setup, file: &[u8]) -> bool {
    let parsed = |file: &[u8]| {
        let header = UnverifiedHeader::parse(file).ok()?;
        let extensions = Extensions::parse(header.extension_area().of(file)).ok()?;
        header.verify(&extensions).ok()
    };
    let (Some(now), Some(then)) = (parsed(file), parsed(&setup.make().file)) else { return false };
    now.geometry == then.geometry && now.features == then.features
}

/// Writes to an image of any damage succeed or fail, and end.
fn write(input: &[u8]) {
    let bytes = &mut Bytes::new(input);
    let (base, file) = image(bytes);
    let (disk, world) = world(base, &file);
    let seed = to_u64(input.len());
    let Ok(node) = block_on(world.open()) else { return };
    if node.len() > 64 << 20 || node.len() < 4096 {
        return;
    }
    let space = OpSpace {
        len: node.len(),
        max_request: 64 << 10,
        truncates: Some(node.len() + 8192),
        ..base.setup.space()
    };
    let noise = noise(1, 96, seed).remove(0);
    let ops = space.decode(&mut Bytes::new(&noise), 12);
    Exec::run(seed, move |_| async move {
        send(&node, &ops).await;
        // Closing may fail, too.
        let _ = graph::close(&node).await;
    });
    // An entry may name a place far behind the end of the file, and what is written there makes it long.
    if disk.len() <= 64 << 20 {
        read_file(base, &disk.to_bytes());
    }
}

/// An image whose snapshot table is these bytes.
pub fn with_snapshot_table(count: u8, table: &[u8]) {
    let base = base_with("4k shared");
    let mut file = base.made.file.clone();
    let at = to_u64(file.len()).next_multiple_of(base.setup.shape.cluster_size());
    file.resize(block_core::range::to_usize(at), 0);
    file.extend_from_slice(table);
    file.resize(file.len().next_multiple_of(4096), 0);
    file[60..64].copy_from_slice(&u32::from(count).to_be_bytes());
    file[64..72].copy_from_slice(&at.to_be_bytes());
    read_file(base, &file);
    check_bytes(&file, Repair::All);
}

/// An image whose bitmap directory is these bytes.
pub fn with_bitmap_directory(count: u8, directory: &[u8]) {
    let base = base_with("4k shared");
    let mut file = base.made.file.clone();
    let at = to_u64(file.len()).next_multiple_of(base.setup.shape.cluster_size());
    file.resize(block_core::range::to_usize(at), 0);
    file.extend_from_slice(directory);
    file.resize(file.len().next_multiple_of(4096), 0);
    let parsed = UnverifiedHeader::parse(&file).expect("our own header");
    let mut extensions =
        Extensions::parse(parsed.extension_area().of(&file)).expect("and extensions");
    extensions.bitmaps = Some(BitmapsExtension {
        count: count.into(),
        reserved: 0,
        directory_size: to_u64(directory.len()),
        directory_offset: HostOffset::new(at),
    });
    let mut header = parsed.verify(&extensions).expect("our own header");
    header.features.bitmaps = true;
    let Ok(cluster) = header.encode(&extensions, None) else { return };
    file[..cluster.len()].copy_from_slice(&cluster);
    read_file(base, &file);
    if let Some((.., mended)) = check_bytes(&file, Repair::All) {
        let (_, world) = world(base, &mended);
        if let Ok(node) = block_on(world.open()) {
            let _ = block_on(graph::close(&node));
        }
    }
}

fn base_with(name: &str) -> &'static Base {
    BASES.iter().find(|base| base.setup.name == name).expect("a setup")
}
