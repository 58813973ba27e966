//! Whatever the bytes, the naive qcow2 reader answers or names what is wrong: no panic, no endless
//! work, no memory beyond its limits.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, and these helpers run in tests only"
)]

use std::sync::LazyLock;

use block_testkit::naive::qcow2::Image;
use block_testkit::peer::ImageDir;
use proptest::prelude::*;
use proptest::sample::Index;

/// Small images with every structure of the format.
static IMAGES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let shapes = [
        "compat=0.10,cluster_size=512",
        "cluster_size=512,refcount_bits=1",
        "cluster_size=1k,compression_type=zstd,refcount_bits=64",
        "cluster_size=16k,extended_l2=on",
    ];
    shapes.map(image).into()
});

fn image(options: &str) -> Vec<u8> {
    let dir = ImageDir::new().unwrap();
    dir.qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, "v", "192k"]).unwrap();
    let writes = ["write -P 1 5k 9k", "write -z 32k 33k", "write -c -P 2 128k 48k"];
    dir.qemu_io("v", &writes).unwrap();
    if !options.contains("refcount_bits=1") {
        dir.qemu_img(&["snapshot", "-c", "one", "v"]).unwrap();
    }
    if !options.contains("0.10") {
        dir.qemu_img(&["bitmap", "--add", "-g", "512", "v", "b"]).unwrap();
    }
    dir.qemu_io("v", &["write -P 3 0 17k"]).unwrap();
    dir.bytes("v").unwrap()
}

/// Everything that the reader can do; the answers do not matter here.
fn read_all(file: &[u8]) {
    let Ok(image) = Image::open(file) else {
        return;
    };
    let header = image.header();
    header.feature_names();
    // The documented limits allow more than a test has time for.
    let small = header.size / header.granularity() < 1 << 14 && header.size < 16 << 20;
    if small {
        image.contents().ok();
        image.map().ok();
    }
    image.read(header.size / 2, 1 << 16).ok();
    image.check().ok();
    for snapshot in image.snapshots().unwrap_or_default() {
        if snapshot.disk_len.is_none_or(|len| len < 16 << 20) && small {
            image.snapshot_contents(&snapshot).ok();
        }
    }
    for bitmap in image.bitmaps().unwrap_or_default() {
        if header.size < 16 << 20 {
            image.bitmap_bits(&bitmap).ok();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn damaged_images_never_panic(
        which in 0..4usize,
        changes in prop::collection::vec((any::<Index>(), any::<u8>(), any::<bool>()), 1..8),
        cut in prop::option::weighted(0.1, any::<Index>()),
    ) {
        let mut file = IMAGES[which].clone();
        for (place, value, in_header) in changes {
            let end = if in_header { 256 } else { file.len() };
            file[place.index(end)] = value;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        read_all(&file);
    }

    #[test]
    fn any_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..2048), v in 2..4u8) {
        read_all(&bytes);
        for (place, value) in bytes.iter_mut().zip([b'Q', b'F', b'I', 0xfb, 0, 0, 0, v]) {
            *place = value;
        }
        read_all(&bytes);
    }
}

#[test]
fn every_header_byte_may_be_wrong() {
    for image in IMAGES.iter() {
        for at in 0..128 {
            let mut file = image.clone();
            file[at] ^= 0x81;
            read_all(&file);
        }
    }
}
