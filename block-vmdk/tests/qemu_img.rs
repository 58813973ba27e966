//! Descriptors and headers of images that `qemu-img` makes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, and these helpers run in tests only"
)]

use block_core::range::to_usize;
use block_testkit::peer::ImageDir;
use block_vmdk::descriptor::{CreateType, Descriptor, ExtentKind};
use block_vmdk::spec::sparse::{GrainDirectory, SparseHeader};
use block_vmdk::{FileKind, probe};

fn create(dir: &ImageDir, subformat: &str, size: &str) -> Vec<u8> {
    let options = format!("subformat={subformat}");
    dir.qemu_img(&["create", "-q", "-f", "vmdk", "-o", &options, "v.vmdk", size]).unwrap();
    dir.bytes("v.vmdk").unwrap()
}

#[test]
fn descriptor_files_are_read() {
    let shapes = [
        ("monolithicFlat", CreateType::MonolithicFlat, ExtentKind::Flat, 1),
        ("twoGbMaxExtentFlat", CreateType::TwoGbMaxExtentFlat, ExtentKind::Flat, 3),
        ("twoGbMaxExtentSparse", CreateType::TwoGbMaxExtentSparse, ExtentKind::Sparse, 3),
    ];
    for (name, create_type, kind, count) in shapes {
        let dir = ImageDir::new().unwrap();
        let size = if count == 1 { "5000k" } else { "5G" };
        let file = create(&dir, name, size);
        assert_eq!(probe(&file), Some(FileKind::Descriptor));
        let descriptor = Descriptor::parse(&file).unwrap();
        assert_eq!(descriptor.create_type(), Ok(create_type));
        assert_eq!(descriptor.extents().len(), count);
        assert!(descriptor.extents().iter().all(|e| e.kind == kind));
        let bytes = if count == 1 { 5000 << 10 } else { 5 << 30 };
        assert_eq!(descriptor.capacity().bytes(), Some(bytes));
        assert_eq!(descriptor.to_bytes(), file);
        assert!(descriptor.content_id().is_some() && !descriptor.has_parent());
    }
}

#[test]
fn sparse_headers_and_embedded_descriptors_are_read() {
    for name in ["monolithicSparse", "streamOptimized"] {
        let dir = ImageDir::new().unwrap();
        let file = create(&dir, name, "70M");
        assert_eq!(probe(&file), Some(FileKind::HostedSparse));
        let header = SparseHeader::parse(&file).unwrap();
        header.check_file_len(u64::try_from(file.len()).unwrap()).unwrap();
        assert_eq!(header.capacity().bytes(), Some(70 << 20));
        assert_eq!(header.is_compressed(), name == "streamOptimized");
        assert_eq!(header.has_markers(), name == "streamOptimized");
        assert!(matches!(header.grain_directory(), GrainDirectory::At(_)));
        assert_eq!(header.gd_entries(), 3);
        assert_eq!(header.to_bytes(), file[..512]);

        let place = header.descriptor().unwrap();
        let start = to_usize(place.start.offset().unwrap());
        let end = start + to_usize(place.count.bytes().unwrap());
        let descriptor = Descriptor::parse(&file[start..end]).unwrap();
        assert_eq!(descriptor.create_type().unwrap().name(), name);
        assert_eq!(descriptor.extents()[0].kind, ExtentKind::Sparse);
        assert_eq!(descriptor.extents()[0].sectors, header.capacity());
    }
}

#[test]
fn a_child_names_its_parents_content_id() {
    let dir = ImageDir::new().unwrap();
    let parent = create(&dir, "monolithicSparse", "10M");
    dir.qemu_img(&["create", "-q", "-f", "vmdk", "-b", "v.vmdk", "-F", "vmdk", "c.vmdk"]).unwrap();
    let embedded = |file: &[u8]| Descriptor::parse(&file[512..512 + 20 * 512]).unwrap();
    let child = embedded(&dir.bytes("c.vmdk").unwrap());
    assert_eq!(child.parent_content_id(), embedded(&parent).content_id());
    assert_eq!(child.value("parentFileNameHint"), Some(&b"v.vmdk"[..]));
}
