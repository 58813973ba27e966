//! What is opened, and what is refused: extents outside of the directory, changed parents, images that are
//! written once, files that others write to.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod kit;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use block_core::io::exec::block_on;
use block_core::options::OpenFlags;
use block_core::proto::file::FileFactory;
use block_core::registry::OpenContext;
use block_core::{
    Alignment, ByteRange, Error, IoBuf, Node, OpenError, Options, Problem, Registry, RequestFlags,
    graph,
};
use block_testkit::naive::vmdk::Files;
use block_testkit::naive::vmdk::make::{Directory, Grain, LineEnds, NAME, Shape, Subformat};
use block_vmdk::VmdkFactory;
use kit::index;
use tempfile::TempDir;

const GRAIN: u64 = 64 << 10;

/// The files of a disk in a directory of their own.
struct Disk {
    dir: TempDir,
}

impl Disk {
    fn new(files: &Files) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        Self { dir }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    /// Changes the descriptor, or the only file, as text.
    fn edit(&self, from: &str, to: &str) {
        let text = String::from_utf8(self.bytes(NAME)).unwrap();
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from}");
        std::fs::write(self.path(NAME), changed).unwrap();
    }

    fn open(&self, flags: OpenFlags) -> Result<Node, OpenError> {
        open(&self.path(NAME), flags, Options::new())
    }
}

fn open(path: &Path, flags: OpenFlags, mut options: Options) -> Result<Node, OpenError> {
    let registry = Registry::new()
        .with(VmdkFactory)
        .with(FileFactory)
        .with(block_core::format::raw::RawFactory);
    options.set("driver", "vmdk");
    options.set("filename", path.to_str().unwrap());
    block_on(OpenContext::new(Arc::new(registry), flags).open(options))
}

fn read(node: &Node, offset: u64, len: u64) -> Result<Vec<u8>, Error> {
    let buf = IoBuf::zeroed(index(len), Alignment::PAGE).unwrap();
    block_on(node.read(ByteRange::new(offset, len).unwrap(), buf.clone().into()))?;
    Ok(buf.to_vec())
}

fn write(node: &Node, offset: u64, len: u64, byte: u8) -> Result<(), Error> {
    let buf = IoBuf::zeroed(index(len), Alignment::PAGE).unwrap();
    buf.fill(byte);
    let range = ByteRange::new(offset, len).unwrap();
    block_on(node.write(range, buf.into(), RequestFlags::empty()))
}

fn filled(byte: u8) -> Grain {
    Grain::Data(vec![byte; index(GRAIN)])
}

/// A disk of two flat extents of 1 MiB, the first all of ones, the second all of twos.
fn flat() -> Disk {
    let sectors = (1 << 20) / 512;
    let subformat = Subformat::TwoGbFlat(vec![sectors, sectors]);
    let grains = (0..32).map(|n| (n, filled(if n < 16 { 1 } else { 2 })));
    Disk::new(&Shape { subformat, ..Shape::new(2 << 20) }.make(&grains.collect()))
}

#[test]
fn what_is_written_once_is_refused_for_writing_and_not_changed() {
    for directory in [Directory::InHeader, Directory::InFooter] {
        let subformat = Subformat::StreamOptimized(directory);
        let shape = Shape { subformat, ..Shape::new(1 << 20) };
        let disk = Disk::new(&shape.make(&BTreeMap::from([(3, filled(9))])));
        let before = disk.bytes(NAME);
        let error = disk.open(OpenFlags::READ_WRITE).unwrap_err();
        assert!(
            matches!(&error, OpenError::UnsupportedFeature { names, .. }
            if names.contains("streamOptimized")),
            "{error}"
        );
        let node = disk.open(OpenFlags::READ_ONLY).unwrap();
        assert_eq!(read(&node, 3 * GRAIN, GRAIN), Ok(vec![9; index(GRAIN)]));
        assert_eq!(write(&node, 0, 512, 1), Err(Error::ReadOnly));
        block_on(graph::close(&node)).unwrap();
        assert_eq!(disk.bytes(NAME), before);
    }
}

/// Two writers would give one grain to two places.
#[test]
fn a_second_writer_is_refused() {
    let disk = Disk::new(&Shape::new(1 << 20).empty());
    let node = disk.open(OpenFlags::READ_WRITE).unwrap();
    let error = disk.open(OpenFlags::READ_WRITE).unwrap_err();
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    block_on(graph::close(&node)).unwrap();
}

#[test]
fn access_modes_are_kept_and_the_disk_keeps_its_length() {
    let disk = flat();
    disk.edit("RW", "RDONLY");
    let node = disk.open(OpenFlags::READ_WRITE).unwrap();
    assert_eq!(node.len(), 2 << 20);
    assert_eq!(read(&node, (1 << 20) - 512, 1024).unwrap()[..512], [1; 512]);
    assert_eq!(write(&node, 0, 512, 7), Err(Error::ReadOnly));
    assert_eq!(write(&node, (1 << 20) - 512, 1024, 7), Err(Error::ReadOnly), "nor a part");
    assert_eq!(read(&node, 1 << 20, 512), Ok(vec![2; 512]));
    write(&node, 1 << 20, 512, 7).unwrap();
    block_on(graph::close(&node)).unwrap();

    disk.edit("RDONLY", "NOACCESS");
    let node = disk.open(OpenFlags::READ_ONLY).unwrap();
    assert_eq!(node.len(), 2 << 20);
    let denied = Error::Os(rustix::io::Errno::ACCESS.raw_os_error());
    assert_eq!(read(&node, 0, 512), Err(denied));
    assert_eq!(read(&node, 1 << 20, 512), Ok(vec![7; 512]));
}

#[test]
fn blank_lines_and_extents_of_no_length_change_nothing() {
    let disk = flat();
    disk.edit("RW", "\n \t\n\nRW 0 FLAT \"v-f001.vmdk\" 0\nRW 0 ZERO\nRW");
    let node = disk.open(OpenFlags::READ_WRITE).unwrap();
    assert_eq!(node.len(), 2 << 20);
    assert_eq!(read(&node, (1 << 20) - 512, 512), Ok(vec![1; 512]));
    assert_eq!(read(&node, 1 << 20, 512), Ok(vec![2; 512]));
    write(&node, (1 << 20) - 512, 1024, 7).unwrap();
    block_on(graph::close(&node)).unwrap();
    assert_eq!(disk.bytes("v-f002.vmdk")[..512], [7; 512]);
}

#[test]
fn an_extent_of_zeroes_reads_as_zeroes() {
    let disk = flat();
    let sectors = (1 << 20) / 512;
    disk.edit(&format!("RW {sectors} FLAT \"v-f001.vmdk\" 0"), &format!("RW {sectors} ZERO"));
    let node = disk.open(OpenFlags::READ_ONLY).unwrap();
    assert_eq!(read(&node, (1 << 20) - 512, 512), Ok(vec![0; 512]));
    assert_eq!(read(&node, 1 << 20, 512), Ok(vec![2; 512]));
}

#[test]
fn a_colon_in_the_name_of_an_extent_is_no_protocol() {
    let disk = flat();
    disk.edit("v-f001.vmdk", "nbd:x");
    std::fs::rename(disk.path("v-f001.vmdk"), disk.path("nbd:x")).unwrap();
    let node = disk.open(OpenFlags::READ_ONLY).unwrap();
    assert_eq!(read(&node, 0, 512), Ok(vec![1; 512]));
}

#[test]
fn extents_are_beside_the_descriptor_unless_the_user_allows_others() {
    let elsewhere = flat();
    for name in [elsewhere.path("v-f001.vmdk").to_str().unwrap(), "../x.vmdk", "json:{}", "nbd://x"]
    {
        let disk = flat();
        disk.edit("v-f001.vmdk", name);
        let error = disk.open(OpenFlags::READ_ONLY).unwrap_err();
        let refused = matches!(&error, OpenError::Reference { name: found, problem }
            if found == name && *problem == Problem::NotPlainName);
        assert!(refused, "{error}");
        if name.starts_with('/') {
            let options = Options::new().with("allow-outside-extents", "on");
            let node = open(&disk.path(NAME), OpenFlags::READ_ONLY, options).unwrap();
            assert_eq!(read(&node, 0, 512), Ok(vec![1; 512]));
        }
    }
}

/// A disk over a parent of ones.
fn child() -> Disk {
    let parent = Shape { cid: 0xabc, ..Shape::new(1 << 20) };
    let parent = parent.make(&(0..16).map(|n| (n, filled(1))).collect());
    let backing = Some(("base.vmdk".to_owned(), 0xabc));
    let line_ends = LineEnds::CrLf;
    let mut files = Shape { backing, line_ends, ..Shape::new(1 << 20) }.empty();
    files.insert("base.vmdk".to_owned(), parent[NAME].clone());
    Disk::new(&files)
}

#[test]
fn a_parent_that_was_changed_is_refused_before_anything_is_copied_from_it() {
    let disk = child();
    let before = disk.bytes(NAME);
    let parent = open(&disk.path("base.vmdk"), OpenFlags::READ_WRITE, Options::new()).unwrap();
    write(&parent, 0, 512, 5).unwrap();
    block_on(graph::close(&parent)).unwrap();
    for flags in [OpenFlags::READ_ONLY, OpenFlags::READ_WRITE] {
        let error = disk.open(flags).unwrap_err();
        let field = matches!(error, OpenError::Field { field: "parentCID", value: 0xabc, .. });
        assert!(field, "{error}");
    }
    assert_eq!(disk.bytes(NAME), before);
}

/// A parent of another format has no content id to compare.
#[test]
fn a_parent_of_another_format_is_taken_where_the_user_names_it() {
    let disk = child();
    std::fs::write(disk.path("base.raw"), vec![3; 1 << 20]).unwrap();
    let options = Options::new()
        .with("backing.driver", "raw")
        .with("backing.file.filename", disk.path("base.raw").to_str().unwrap());
    let node = open(&disk.path(NAME), OpenFlags::READ_WRITE, options).unwrap();
    write(&node, 512, 512, 4).unwrap();
    assert_eq!(read(&node, 0, 512), Ok(vec![3; 512]));
    block_on(graph::close(&node)).unwrap();
    let node = disk.open(OpenFlags::READ_ONLY).unwrap();
    assert_eq!(read(&node, 0, 1536).unwrap(), [[3; 512], [4; 512], [3; 512]].concat());
    assert_eq!(read(&node, GRAIN, 512), Ok(vec![1; 512]));
}
