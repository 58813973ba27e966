//! Promises of the registry and of `raw`: what a name or a guess may lead to.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test fails by panicking")]

use std::sync::Arc;

use async_trait::async_trait;
use block_core::driver::{BlockDriver, Exactness, Prealloc, ReopenOptions};
use block_core::format::raw::{RawDriver, RawFactory};
use block_core::proto::file::FileFactory;
use block_core::proto::mem::{MemDriver, MemFactory};
use block_core::proto::null::NullFactory;
use block_core::registry::{DriverFactory, OpenContext, ReferencePolicy};
use block_core::request::status::StatusDetail;
use block_core::{
    Alignment, ByteRange, Error, IoBuf, Node, OpenError, OpenFlags, Options, Problem, Registry,
    RequestFlags, graph,
};
use block_testkit::disk::hold::{Hold, Point};
use block_testkit::disk::tap::{Kind, Tapped};
use block_testkit::exec::Exec;
use futures::executor::block_on;

/// A "file" of 4 KiB whose contents are its name.
struct NamedFile;

#[async_trait]
impl DriverFactory for NamedFile {
    fn name(&self) -> &'static str {
        "file"
    }

    async fn open(
        &self,
        mut options: Options,
        _: OpenContext,
    ) -> Result<Arc<dyn BlockDriver>, OpenError> {
        let mut bytes = options.take("filename").unwrap_or_default().into_bytes();
        options.finish()?;
        bytes.resize(4096, 0);
        Ok(Arc::new(MemDriver::from_bytes(&bytes).unwrap()))
    }
}

/// A format whose magic is `MAGIC`, or zeroes behind `ZEROES`.
struct Magic;

#[async_trait]
impl DriverFactory for Magic {
    fn name(&self) -> &'static str {
        "magic"
    }

    fn probe(&self, head: &[u8], _: &str) -> u8 {
        let zeroes = head.starts_with(b"ZEROES") && head[8..16] == [0; 8];
        if head.starts_with(b"MAGIC") || zeroes { 100 } else { 0 }
    }

    async fn open(
        &self,
        mut options: Options,
        mut context: OpenContext,
    ) -> Result<Arc<dyn BlockDriver>, OpenError> {
        let file = context.open_child(&mut options, "file").await?;
        options.finish()?;
        Ok(Arc::new(RawDriver::part(file, 512, None)?))
    }
}

/// A "file" like [`NamedFile`]'s, whose requests can be held.
struct HeldFile(Arc<Hold>);

#[async_trait]
impl DriverFactory for HeldFile {
    fn name(&self) -> &'static str {
        "file"
    }

    async fn open(
        &self,
        options: Options,
        context: OpenContext,
    ) -> Result<Arc<dyn BlockDriver>, OpenError> {
        Ok(Tapped::new(NamedFile.open(options, context).await?, Arc::clone(&self.0)))
    }
}

fn context(flags: OpenFlags) -> OpenContext {
    let registry = Registry::new()
        .with(RawFactory)
        .with(MemFactory)
        .with(NullFactory)
        .with(NamedFile)
        .with(Magic);
    OpenContext::new(Arc::new(registry), flags)
}

fn open(options: Options) -> Result<Node, OpenError> {
    block_on(context(OpenFlags::READ_WRITE).open(options))
}

fn buf(bytes: &[u8]) -> IoBuf {
    let buf = IoBuf::zeroed(bytes.len(), Alignment::SECTOR).unwrap();
    buf.copy_from(0, bytes);
    buf
}

fn write(node: &Node, offset: u64, bytes: &[u8]) -> Result<(), Error> {
    let range = ByteRange::new(offset, bytes.len() as u64).unwrap();
    block_on(node.write(range, buf(bytes).into(), RequestFlags::empty()))
}

fn read(node: &Node, offset: u64, len: usize) -> Vec<u8> {
    let into = buf(&vec![0xee; len]);
    let range = ByteRange::new(offset, len as u64).unwrap();
    block_on(node.read(range, into.clone().into())).unwrap();
    into.to_vec()
}

#[test]
fn a_format_is_probed_only_where_none_is_given() {
    let probed = open(Options::filename("MAGIC")).unwrap();
    // The test's format is what follows its header.
    assert_eq!(probed.len(), 4096 - 512);
    let given = open(Options::filename("MAGIC").with("driver", "raw")).unwrap();
    assert_eq!(read(&given, 0, 5), b"MAGIC");
    assert_eq!(open(Options::filename("other")).unwrap().len(), 4096);
}

#[test]
fn a_guest_cannot_make_its_probed_raw_disk_another_format() {
    let probed = open(Options::filename("other")).unwrap();
    assert_eq!(write(&probed, 0, b"MAGIC and more"), Err(Error::ReadOnly));
    assert_eq!(read(&probed, 0, 5), b"other");
    write(&probed, 0, b"harmless").unwrap();
    write(&probed, 1024, b"MAGIC").unwrap();
    let given = open(Options::filename("other").with("driver", "raw")).unwrap();
    write(&given, 0, b"MAGIC").unwrap();
}

#[test]
fn a_magic_is_refused_in_pieces_too() {
    let probed = open(Options::filename("other")).unwrap();
    write(&probed, 1, b"AGIC").unwrap();
    assert_eq!(write(&probed, 0, b"M"), Err(Error::ReadOnly));
    assert_eq!(read(&probed, 0, 5), b"oAGIC");
}

#[test]
fn what_was_looked_at_is_what_is_written() {
    Exec::run(1, |exec| async move {
        let hold = Hold::new();
        let registry = Registry::new().with(RawFactory).with(Magic).with(HeldFile(hold.clone()));
        let context = OpenContext::new(Arc::new(registry), OpenFlags::READ_WRITE);
        let probed = context.open(Options::filename("other")).await.unwrap();
        hold.hold(Point::Before, |call| call.kind == Kind::Write);
        let all = ByteRange::up_to(4096);
        let memory = buf(&[b'.'; 4096]);
        let write =
            exec.spawn("write", probed.write(all, memory.clone().into(), RequestFlags::empty()));
        hold.arrived(1).await;
        // The guest changes its memory while the disk reads from it.
        memory.copy_from(0, b"MAGIC");
        hold.release_all();
        assert_eq!(write.await, Ok(()));
        let into = buf(&[0; 4096]);
        probed.read(all, into.clone().into()).await.unwrap();
        assert!(into.to_vec() == [b'.'; 4096]);
    });
}

#[test]
fn zeroes_and_discards_make_no_format_either() {
    let probed = open(Options::filename("other")).unwrap();
    write(&probed, 0, b"ZEROES and none of them").unwrap();
    let head = ByteRange::new(0, 512).unwrap();
    let tail = ByteRange::new(8, 504).unwrap();
    let zeroed = block_on(probed.write_zeroes(tail, RequestFlags::empty()));
    assert_eq!(zeroed, Err(Error::ReadOnly));
    assert_eq!(read(&probed, 0, 10), b"ZEROES and");
    block_on(probed.write_zeroes(head, RequestFlags::empty())).unwrap();
    assert_eq!(read(&probed, 0, 10), [0; 10]);
}

#[test]
fn names_inside_images_are_plain() {
    let parent = open(Options::filename("x")).unwrap();
    let context = context(OpenFlags::READ_ONLY);
    for name in ["json:{\"driver\":\"null-co\"}", "nbd:localhost", "null-co://", ""] {
        let problem = Problem::NotPlainName;
        let expect = Err(OpenError::Reference { name: name.to_owned(), problem });
        assert_eq!(context.resolve(&parent, name), expect, "{name}");
    }
    assert_eq!(context.resolve(&parent, "dir/a:b").unwrap(), "dir/a:b");
    assert_eq!(context.resolve(&parent, "file:nbd:b").unwrap(), "./nbd:b");
    assert_eq!(context.resolve_beside("file:a:b", "c").unwrap(), "c");
    assert_eq!(context.resolve_beside("file:a:b/x", "c").unwrap(), "./a:b/c");
    // Beside what a protocol has.
    assert_eq!(
        context.resolve_beside("iscsi://host/target/1", "0").unwrap(),
        "iscsi://host/target/0"
    );
    let mut strict = context.clone();
    strict.policy = ReferencePolicy::SameDirectory;
    for name in ["/etc/passwd", "../x", "a/../../x"] {
        assert!(context.resolve(&parent, name).is_ok(), "{name}");
        assert!(strict.resolve(&parent, name).is_err(), "{name}");
    }
    let mut closed = context.clone();
    closed.policy = ReferencePolicy::Refuse;
    assert!(closed.resolve(&parent, "plain").is_err());
}

#[test]
fn an_option_that_nobody_knows_is_an_error_that_names_it() {
    let err = open(Options::filename("x").with("bogus", "1")).unwrap_err();
    assert_eq!(err, OpenError::Option { option: "bogus".to_owned(), problem: Problem::Unknown });
    assert_eq!(
        open(Options::filename("x").with("driver", "nope")).unwrap_err(),
        OpenError::UnknownDriver { name: "nope".to_owned() }
    );
    assert_eq!(
        open(Options::filename("nope:x")).unwrap_err(),
        OpenError::UnknownDriver { name: "nope".to_owned() }
    );
}

#[test]
fn a_part_of_a_file_stays_a_part() {
    let options = |offset: &str, size: &str| {
        Options::filename("0123456789")
            .with("driver", "raw")
            .with("offset", offset)
            .with("size", size)
    };
    let part = open(options("2", "4")).unwrap();
    assert_eq!(part.len(), 4);
    assert_eq!(read(&part, 0, 4), b"2345");
    assert_eq!(read(&part, 0, 6), b"2345\0\0");
    assert!(matches!(write(&part, 2, b"abc"), Err(Error::OutOfRange { .. })));
    write(&part, 2, b"ab").unwrap();
    assert_eq!(read(&part.children()[0].node, 0, 8), b"0123ab67");
    let truncate = part.truncate(2, Exactness::Exact, Prealloc::Off);
    assert_eq!(block_on(truncate), Err(Error::Unsupported));
    for (offset, size, field) in [("4097", "0", "offset"), ("4096", "1", "size")] {
        let err = open(options(offset, size)).unwrap_err();
        assert!(matches!(err, OpenError::Field { field: f, .. } if f == field), "{err}");
    }
}

#[test]
fn status_goes_through_raw_to_the_storage_with_its_offset() {
    let mem = Node::new(Arc::new(MemDriver::new(1 << 20)), Default::default());
    write(&mem, 128 << 10, &[1; 512]).unwrap();
    let raw = Node::new(
        Arc::new(RawDriver::part(mem.clone(), 64 << 10, None).unwrap()),
        Default::default(),
    );
    let status = |offset| {
        let range = ByteRange::new(offset, raw.len() - offset).unwrap();
        block_on(raw.block_status(range, StatusDetail::Zeroes)).unwrap()
    };
    let hole = status(0);
    assert!(hole.is_zero() && hole.is_allocated() && !hole.is_data());
    assert_eq!(hole.len, 64 << 10);
    let data = status(hole.len + 1);
    assert!(data.is_data() && !data.is_zero());
    assert_eq!(data.len, (64 << 10) - 1);
    let mapping = data.mapping.unwrap();
    assert!(mapping.node.same(&mem));
    assert_eq!(mapping.offset, (128 << 10) + 1);
}

#[test]
fn reopening_changes_all_or_nothing() {
    let raw = open(Options::filename("x").with("driver", "raw")).unwrap();
    let read_only = ReopenOptions { read_only: Some(true), ..ReopenOptions::default() };
    // The file below is `mem`, which cannot be reopened: so raw must not change either.
    let changes = graph::image_changes(&raw, read_only);
    assert_eq!(changes.len(), 2);
    block_on(graph::reopen(&changes)).unwrap_err();
    write(&raw, 0, b"still writable").unwrap();
    block_on(graph::reopen(&changes[..1])).unwrap();
    assert_eq!(write(&raw, 0, b"no"), Err(Error::ReadOnly));
}

/// A context that knows the drivers which make files.
fn making() -> OpenContext {
    let registry = Registry::new().with(RawFactory).with(FileFactory).with(MemFactory).with(Magic);
    OpenContext::new(Arc::new(registry), OpenFlags::READ_ONLY)
}

#[test]
fn raw_images_are_made_by_their_protocol_or_on_a_file_that_exists() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a").to_str().unwrap().to_owned();
    let make = |options: Options| {
        let context = making();
        let factory = Arc::clone(context.registry.get("raw").unwrap());
        block_core::io::exec::block_on(factory.create(options, context))
    };
    std::fs::write(&path, [7; 5000]).unwrap();
    make(Options::filename(&path).with("size", "1000").with("preallocation", "full")).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), [0; 1024]);

    std::fs::write(&path, [7; 5000]).unwrap();
    let on_file = Options::new().with("file.driver", "file").with("file.filename", &*path);
    make(on_file.clone().with("size", "8k")).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), [0; 8192]);

    // What is refused leaves the file as it is.
    for (options, expect) in [
        (Options::filename(&path), "Invalid option 'size': is missing"),
        (Options::filename(&path).with("size", "8E"), "must be at most 0x7fffffffc0000000"),
        (Options::filename(&path).with("size", "1M").with("bogus", "1"), "'bogus': unknown"),
        (on_file.with("size", "1M").with("preallocation", "full"), "'preallocation': unknown"),
        (
            Options::filename(&path).with("size", "1M").with("preallocation", "metadata"),
            "Invalid option 'preallocation=metadata': unknown value",
        ),
    ] {
        let err = make(options).unwrap_err().to_string();
        assert!(err.contains(expect), "{err}");
        assert_eq!(std::fs::read(&path).unwrap(), [0; 8192]);
    }
    let magic = Arc::clone(making().registry.get("magic").unwrap());
    let err = block_on(magic.create(Options::new(), making())).unwrap_err();
    assert_eq!(err.to_string(), "creating an image is not supported by 'magic'");
}
