//! Creations that stop half-way: whatever fails, and whenever a crash comes, what is left is the old image
//! untouched, the new one whole, or none. And what storage held before does not show.

#![allow(clippy::unwrap_used, reason = "test helpers outside of #[test]")]

mod making;

use std::sync::{Arc, Mutex, Weak};

use async_trait::async_trait;
use block_core::driver::BlockDriver;
use block_core::io::exec::block_on;
use block_core::options::OpenFlags;
use block_core::proto::mem::MemDriver;
use block_core::{Node, OpenError, Support};
use block_testkit::disk::crash::CrashDisk;
use block_testkit::disk::fault::{Fault, Rule};
use block_testkit::disk::mem::{MemConfig, MemDisk};
use block_testkit::disk::tap::{Kind, Tapped};
use block_testkit::naive::vmdk::{Files, Image};
use block_testkit::peer::ImageDir;
use block_vmdk::create::{CreateOptions, ExtentFiles, create_on};
use block_vmdk::descriptor::{AdapterType, CreateType, Descriptor};
use block_vmdk::units::ContentId;
use making::{Disks, create, create_at};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

const SUBFORMATS: [&str; 7] = [
    "monolithicSparse",
    "monolithicFlat",
    "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat",
    "streamOptimized",
    "vmfsSparse",
    "vmfs",
];
/// The disks that were made, by their names.
type Named<T> = Arc<Mutex<Vec<(String, T)>>>;

const OLD_LEN: usize = 200 << 10;
const NEW_LEN: usize = 100 << 10;

/// The files of an image of [`OLD_LEN`] bytes, not all of them zero where it can be written.
fn old_image(subformat: &str) -> Files {
    let dir = ImageDir::new().unwrap();
    create(&dir, "a.vmdk", &format!("size={OLD_LEN},subformat={subformat}")).unwrap();
    if !["streamOptimized", "vmfsSparse"].contains(&subformat) {
        dir.qemu_io("a.vmdk", &["write -P 7 10k 100k"]).unwrap();
    }
    let names = std::fs::read_dir(dir.path("")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.map(|name| (name.clone(), dir.bytes(&name).unwrap())).collect()
}

/// What files are an image of: nothing, the old disk, the new one, which then has no errors.
fn kind_of(files: &Files, old: &[u8]) -> usize {
    let image = Image::open(files, "a.vmdk");
    match image.and_then(|image| Ok((image.contents()?, image.check()?))) {
        Err(_) => 0,
        Ok((found, _)) if found == old => 1,
        Ok((found, report)) => {
            assert!(found.len() == NEW_LEN && found.iter().all(|b| *b == 0), "{}", found.len());
            assert!(report.errors.is_empty() && !report.unclean, "{report:?}");
            2
        }
    }
}

/// Creates over an old image and crashes at every moment.
fn crash_everywhere(subformat: &str, seed: u64) -> [usize; 3] {
    let old = old_image(subformat);
    let old_contents = Image::open(&old, "a.vmdk").unwrap().contents().unwrap();
    let all: Named<Weak<CrashDisk>> = Arc::default();
    let crashed: Arc<Mutex<Vec<Files>>> = Arc::default();
    let rng = Arc::new(Mutex::new(ChaCha8Rng::seed_from_u64(seed)));
    let maker = {
        let (all, crashed, old) = (Arc::clone(&all), Arc::clone(&crashed), old.clone());
        move |name: &str| -> Arc<dyn BlockDriver> {
            let disk = CrashDisk::new(old.get(name).cloned().unwrap_or_default());
            all.lock().unwrap().push((name.to_owned(), Arc::downgrade(&disk)));
            let (all, crashed, rng) = (Arc::clone(&all), Arc::clone(&crashed), Arc::clone(&rng));
            disk.watch(move |_| {
                let mut rng = rng.lock().unwrap();
                for _ in 0..4 {
                    let all = all.lock().unwrap();
                    let disks = all.iter().filter_map(|(name, disk)| Some((name, disk.upgrade()?)));
                    let files = disks.map(|(n, disk)| (n.clone(), disk.crash(&mut *rng).bytes));
                    crashed.lock().unwrap().push(files.collect());
                }
            });
            disk
        }
    };
    let disks = Disks::new(maker);
    // All of the old image is there from the start.
    old.keys().for_each(|name| drop(disks.disk(name)));
    let options = format!("size={NEW_LEN},subformat={subformat}");
    create_at("a.vmdk", &options, disks.context(OpenFlags::READ_WRITE)).unwrap();
    let mut seen = [0; 3];
    for files in crashed.lock().unwrap().iter() {
        seen[kind_of(files, &old_contents)] += 1;
    }
    let stable = all.lock().unwrap();
    let stable = stable.iter().map(|(n, disk)| (n.clone(), disk.upgrade().unwrap().stable()));
    assert_eq!(kind_of(&stable.collect(), &old_contents), 2, "{subformat}");
    seen
}

#[test]
fn a_crash_leaves_the_old_image_the_new_one_or_none() {
    for subformat in SUBFORMATS {
        let mut seen = [0; 3];
        for seed in 0..4 {
            println!("{subformat}, seed {seed}");
            let more = crash_everywhere(subformat, seed);
            seen.iter_mut().zip(more).for_each(|(all, more)| *all += more);
        }
        // Each of the three was reached.
        assert!(seen.iter().all(|count| *count > 3), "{subformat}: {seen:?}");
    }
}

#[test]
fn a_creation_that_fails_half_way_leaves_no_image() {
    for subformat in SUBFORMATS {
        let old = old_image(subformat);
        let old_contents = Image::open(&old, "a.vmdk").unwrap().contents().unwrap();
        let mut failed = [0; 3];
        for kind in [Kind::Truncate, Kind::Write, Kind::FlushToDisk] {
            for skip in 0.. {
                let fault = Fault::new();
                fault.add(Rule::new(kind).skip(skip).once());
                let memory: Named<Arc<MemDriver>> = Arc::default();
                let maker = {
                    let (fault, memory, old) = (fault.clone(), memory.clone(), old.clone());
                    move |name: &str| -> Arc<dyn BlockDriver> {
                        let bytes = old.get(name).cloned().unwrap_or_default();
                        let disk = Arc::new(MemDriver::from_bytes(&bytes).unwrap());
                        memory.lock().unwrap().push((name.to_owned(), Arc::clone(&disk)));
                        Tapped::new(disk, Arc::clone(&fault))
                    }
                };
                let disks = Disks::new(maker);
                old.keys().for_each(|name| drop(disks.disk(name)));
                let options = format!("size={NEW_LEN},subformat={subformat}");
                let made = create_at("a.vmdk", &options, disks.context(OpenFlags::READ_WRITE));
                if fault.injected() == 0 {
                    made.unwrap();
                    break;
                }
                made.unwrap_err();
                let memory = memory.lock().unwrap();
                let files = memory.iter().map(|(name, disk)| {
                    let node =
                        Node::new(Arc::clone(disk) as Arc<dyn BlockDriver>, Default::default());
                    (name.clone(), making::contents(&node))
                });
                failed[kind_of(&files.collect(), &old_contents)] += 1;
            }
        }
        // The old one is there as long as nothing was done. The new one is whole already when the flush
        // behind it fails, or one of closing.
        assert!(failed[0] >= 5 && failed[1] == 1 && failed[2] <= 3, "{subformat}: {failed:?}");
    }
}

/// A disk like a device: it keeps its length, and holds something.
fn device(len: usize) -> Arc<MemDisk> {
    let mut config = MemConfig::new(u64::try_from(len).unwrap());
    config.capabilities.truncate = Support::None;
    config.capabilities.has_zero_init = false;
    let disk = config.build();
    disk.load(0, &vec![0xee; len]);
    disk
}

#[test]
fn what_a_device_held_does_not_show() {
    for subformat in SUBFORMATS {
        let made: Named<Arc<MemDisk>> = Arc::default();
        let maker = {
            let made = Arc::clone(&made);
            move |name: &str| -> Arc<dyn BlockDriver> {
                let disk = device(1 << 20);
                made.lock().unwrap().push((name.to_owned(), Arc::clone(&disk)));
                disk
            }
        };
        let disks = Disks::new(maker);
        let options = format!("size={NEW_LEN},subformat={subformat}");
        create_at("a.vmdk", &options, disks.context(OpenFlags::READ_WRITE)).unwrap();
        let files =
            made.lock().unwrap().iter().map(|(n, disk)| (n.clone(), disk.to_vec())).collect();
        // The footer of a stream is at the end of its file: there is none on a device.
        if subformat == "streamOptimized" {
            continue;
        }
        assert_eq!(kind_of(&files, &[]), 2, "{subformat}");
        let head = &files["a.vmdk"];
        let text = if head.starts_with(b"KDMV") { &head[512..] } else { &head[..] };
        assert_eq!(Descriptor::parse(text).unwrap().create_type().unwrap().name(), subformat);
    }
    // Too short a device is an error, and no image.
    let disks = Disks::new(|_| device(32 << 10));
    let context = disks.context(OpenFlags::READ_WRITE);
    create_at("a.vmdk", "size=1M", context).unwrap_err();
    let head = Node::new(disks.disk("a.vmdk"), Default::default());
    assert!(!making::contents(&head).starts_with(b"KDMV"));
}

/// Extents that nobody asks for.
struct NoFiles;

#[async_trait]
impl ExtentFiles for NoFiles {
    async fn make(&self, name: &str) -> Result<Node, OpenError> {
        Err(OpenError::UnknownDriver { name: name.to_owned() })
    }
}

#[test]
fn the_builder_makes_what_the_options_make() {
    let check = |new: &CreateOptions, text: &str| {
        let dir = ImageDir::new().unwrap();
        create(&dir, "a.vmdk", text).unwrap();
        let node = Node::new(Arc::new(MemDriver::new(0)), Default::default());
        block_on(create_on(&node, "a.vmdk", &NoFiles, new)).unwrap();
        let (ours, theirs) = (making::contents(&node), dir.bytes("a.vmdk").unwrap());
        let text = |file: &[u8]| {
            let mut descriptor = Descriptor::parse(&file[512..21 * 512]).unwrap();
            let old = descriptor.content_id().unwrap();
            descriptor.set_content_id(ContentId(1)).unwrap();
            (old, String::from_utf8(descriptor.to_bytes()).unwrap())
        };
        let ((our_id, ours_text), (their_id, their_text)) = (text(&ours), text(&theirs));
        assert_eq!(ours_text, their_text);
        // Each image has an id of its own.
        assert_ne!(our_id, their_id);
        assert!(ours.len() == theirs.len() && ours[21 * 512..] == theirs[21 * 512..]);
        assert!(ours[..512] == theirs[..512]);
    };
    check(&CreateOptions::new(1 << 20), "size=1M");
    let new = CreateOptions::new(70_000)
        .adapter(AdapterType::BusLogic)
        .hw_version("11")
        .tools_version("7")
        .zeroed_grains();
    let text = "size=70000,adapter_type=buslogic,hwversion=11,toolsversion=7,zeroed_grain=on";
    check(&new, text);
    let new = CreateOptions::new(1 << 20).create_type(CreateType::StreamOptimized);
    check(&new, "size=1M,subformat=streamOptimized");

    let node = Node::new(Arc::new(MemDriver::new(0)), Default::default());
    let new = CreateOptions::new(1 << 20).create_type(CreateType::SeSparse);
    let err = block_on(create_on(&node, "a.vmdk", &NoFiles, &new)).unwrap_err();
    assert_eq!(err.to_string(), "Invalid option 'subformat=seSparse': unknown value");
    let new = CreateOptions::new(1 << 20).backing("parent.vmdk", ContentId(5));
    block_on(create_on(&node, "a.vmdk", &NoFiles, &new)).unwrap();
    let descriptor = Descriptor::parse(&making::contents(&node)[512..21 * 512]).unwrap();
    assert_eq!(descriptor.parent_content_id(), Some(ContentId(5)));
    // Without its extents there is no image.
    let new = CreateOptions::new(1 << 20).create_type(CreateType::MonolithicFlat);
    block_on(create_on(&node, "a.vmdk", &NoFiles, &new)).unwrap_err();
    assert!(making::contents(&node).is_empty());
}
