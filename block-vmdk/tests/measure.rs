//! What `measure` says of an image is what the image takes: empty, with the contents of another, and full.

#![allow(clippy::unwrap_used, reason = "test helpers outside of #[test]")]

mod making;

use std::sync::Arc;

use block_core::ability::Measurement;
use block_core::io::exec::block_on;
use block_core::options::OpenFlags;
use block_core::proto::mem::MemDriver;
use block_core::range::to_usize;
use block_core::request::status::StatusDetail;
use block_core::{Alignment, ByteRange, IoBuf, Node, OpenError, graph};
use block_testkit::peer::ImageDir;
use making::{context, create, open, options, write};

fn measure(text: &str, source: Option<&Node>) -> Result<Measurement, OpenError> {
    let context = context(OpenFlags::READ_ONLY);
    let factory = Arc::clone(context.registry.get("vmdk").unwrap());
    block_on(factory.measure(options(text), source.cloned()))
}

/// Bytes of all files of a directory.
fn total(dir: &ImageDir) -> u64 {
    let entries = std::fs::read_dir(dir.path("")).unwrap();
    entries.map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

/// A disk with data here and there.
fn source() -> Node {
    let node = Node::new(Arc::new(MemDriver::new(70 << 20)), Default::default());
    for (offset, len) in [(0, 1), (70_000, 700), (131_071, 2), (40 << 20, 300_000)] {
        write(&node, offset, len, 5);
    }
    node
}

/// Writes what `source` says is data into the image.
fn copy(source: &Node, image: &Node) {
    let (all, mut copied) = (making::contents(source), 0);
    let mut rest = ByteRange::up_to(source.len());
    while !rest.is_empty() {
        let status = source.block_status_above(None, rest, StatusDetail::Zeroes);
        let status = block_on(status).unwrap();
        let (found, after) = rest.split_at(status.len);
        if status.is_data() && !status.is_zero() {
            let bytes = &all[to_usize(found.offset())..to_usize(found.end())];
            let buf = IoBuf::zeroed(bytes.len(), Alignment::PAGE).unwrap();
            buf.copy_from(0, bytes);
            block_on(image.write(found, buf.into(), Default::default())).unwrap();
            copied += found.len();
        }
        rest = after;
    }
    assert!(copied > 300_000 && copied < 1 << 20, "{copied}");
    block_on(graph::close(image)).unwrap();
}

#[test]
fn empty_and_filled_images_are_as_long_as_was_said() {
    for subformat in ["monolithicSparse", "twoGbMaxExtentSparse", "vmfsSparse"] {
        let text = format!("size=70M,subformat={subformat}");
        let dir = ImageDir::new().unwrap();
        // The names are as long as that of the image that is measured.
        create(&dir, "disk.vmdk", &text).unwrap();
        let empty = measure(&text, None).unwrap();
        assert_eq!(empty.required, total(&dir), "{subformat}");
        assert!(empty.fully_allocated > 70 << 20 && empty.bitmaps.is_none(), "{subformat}");

        let source = source();
        let filled = measure(&format!("subformat={subformat}"), Some(&source)).unwrap();
        assert_eq!(filled.fully_allocated, empty.fully_allocated);
        let image = open(&dir.path("disk.vmdk"), OpenFlags::READ_WRITE).unwrap();
        copy(&source, &image);
        assert_eq!(filled.required, total(&dir), "{subformat}");
        let image = open(&dir.path("disk.vmdk"), OpenFlags::READ_WRITE).unwrap();
        for piece in 0..70 {
            write(&image, piece << 20, 1 << 20, 9);
        }
        block_on(graph::close(&image)).unwrap();
        assert_eq!(filled.fully_allocated, total(&dir), "{subformat}");
    }
}

#[test]
fn flat_images_always_take_all() {
    for subformat in ["monolithicFlat", "twoGbMaxExtentFlat", "vmfs"] {
        let text = format!("size=5000000,subformat={subformat}");
        let dir = ImageDir::new().unwrap();
        create(&dir, "disk.vmdk", &text).unwrap();
        let measured = measure(&text, None).unwrap();
        assert_eq!((measured.required, measured.fully_allocated), (total(&dir), total(&dir)));
        let source = Node::new(Arc::new(MemDriver::new(5_000_000)), Default::default());
        let again = measure(&format!("subformat={subformat}"), Some(&source)).unwrap();
        assert_eq!(again, measured);
    }
}

#[test]
fn streams_take_at_most_what_was_said() {
    let text = "subformat=streamOptimized";
    let dir = ImageDir::new().unwrap();
    create(&dir, "disk.vmdk", &format!("size=70M,{text}")).unwrap();
    let empty = measure(&format!("size=70M,{text}"), None).unwrap();
    assert_eq!(empty.required, total(&dir));
    let source = source();
    let filled = measure(text, Some(&source)).unwrap();
    // 0 and 70,000 and 131,071 touch three grains, the last write five or six, in two tables.
    let grains = 3 + 5;
    assert_eq!(filled.required, empty.required + grains * 129 * 512 + 2 * 5 * 512);
    assert_eq!(filled.fully_allocated, empty.required + 1120 * 129 * 512 + 3 * 5 * 512);
}

#[test]
fn a_child_may_hold_all() {
    let text = "size=70M,backing_file=x,backing_fmt=vmdk";
    let measured = measure(text, None).unwrap();
    assert_eq!(measured.required, measured.fully_allocated);
    let err = measure("subformat=x,size=1", None).unwrap_err().to_string();
    assert_eq!(err, "Invalid option 'subformat=x': unknown value");
    assert!(measure("bogus=1,size=1", None).is_err() && measure("", None).is_err());
}
