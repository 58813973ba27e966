//! The filter `blkdebug`: errors come where the rules say, breakpoints hold one request and no other, and
//! requests have the shape that was asked for.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod request_support;

use std::sync::Arc;

use block_core::ability::BreakpointChange;
use block_core::driver::ReopenOptions;
use block_core::filter::blkdebug::BlkdebugFactory;
use block_core::format::raw::RawFactory;
use block_core::io::exec::block_on;
use block_core::proto::file::FileFactory;
use block_core::proto::mem::MemFactory;
use block_core::registry::OpenContext;
use block_core::request::status::StatusDetail;
use block_core::{
    ByteRange, Error, Node, OpenError, OpenFlags, Options, Registry, RequestFlags, graph,
};
use block_testkit::exec::{Exec, yield_now};
use parking_lot::Mutex;
use request_support::{align, buffer, data, span};

fn try_open(options: Options, flags: OpenFlags) -> Result<Node, OpenError> {
    let registry =
        Registry::new().with(BlkdebugFactory).with(FileFactory).with(MemFactory).with(RawFactory);
    block_on(OpenContext::new(Arc::new(registry), flags).open(options))
}

/// A raw image on the filter, which has these options, on 64 KiB of memory.
fn raw(options: &[(&str, &str)]) -> Node {
    let mut all = Options::new()
        .with("driver", "raw")
        .with("file.driver", "blkdebug")
        .with("file.image.driver", "mem")
        .with("file.image.size", "64k");
    for (name, value) in options {
        all.set(format!("file.{name}"), *value);
    }
    try_open(all, OpenFlags::READ_WRITE).unwrap()
}

fn write(node: &Node, range: ByteRange) -> Result<(), Error> {
    block_on(node.write(range, data(node, 1, range), RequestFlags::empty()))
}

fn read(node: &Node, range: ByteRange) -> Result<(), Error> {
    block_on(node.read(range, buffer(node, range)))
}

/// The node of the filter.
fn below(node: &Node) -> Node {
    node.children()[0].node.clone()
}

#[test]
fn an_event_fails_what_comes_next() {
    let node = raw(&[
        ("inject-error.0.event", "write_aio"),
        ("inject-error.0.errno", "28"),
        ("inject-error.0.once", "on"),
        ("inject-error.1.event", "read_aio"),
        ("inject-error.1.sector", "2"),
        ("inject-error.1.immediately", "on"),
    ]);
    let range = span(0, 512);
    assert_eq!(write(&node, range), Err(Error::NO_SPACE));
    assert_eq!(write(&node, range), Ok(()), "once is once");
    assert_eq!(read(&node, span(0, 1024)), Ok(()), "sector 2 is not in it");
    assert_eq!(read(&node, span(1000, 1025)), Err(Error::IO));
    assert_eq!(read(&node, span(1000, 1025)), Err(Error::IO), "again and again");
}

#[test]
fn every_kind_of_request_can_fail() {
    let range = span(0, 4096);
    let kinds = ["read", "write", "write-zeroes", "discard", "flush", "block-status"];
    for fails in kinds {
        let node = raw(&[
            ("inject-error.0.event", "none"),
            ("inject-error.0.iotype", fails),
            ("inject-error.0.errno", "22"),
        ]);
        for kind in kinds {
            let result = match kind {
                "read" => read(&node, range),
                "write" => write(&node, range),
                "write-zeroes" => block_on(node.write_zeroes(range, RequestFlags::empty())),
                "discard" => block_on(below(&node).driver().clone().pdiscard(range)),
                "flush" => block_on(node.flush()),
                _ => block_on(node.block_status(range, StatusDetail::Zeroes)).map(drop),
            };
            let expect = if kind == fails { Err(Error::Os(22)) } else { Ok(()) };
            assert_eq!(result, expect, "{kind} where {fails} fails");
        }
    }
}

#[test]
fn states_make_the_second_event_the_one_that_counts() {
    let node = raw(&[
        ("set-state.0.event", "write_aio"),
        ("set-state.0.state", "1"),
        ("set-state.0.new_state", "2"),
        ("inject-error.0.event", "write_aio"),
        ("inject-error.0.state", "2"),
    ]);
    assert_eq!(write(&node, span(0, 512)), Ok(()));
    assert_eq!(write(&node, span(0, 512)), Err(Error::IO));
}

#[test]
fn a_read_modify_write_fails_at_each_of_its_points_and_changes_nothing() {
    let points = [
        "pwritev_rmw_head",
        "pwritev_rmw_after_head",
        "pwritev_rmw_tail",
        "pwritev_rmw_after_tail",
        "pwritev",
    ];
    for point in points {
        let node =
            raw(&[("align", "4k"), ("inject-error.0.event", point), ("inject-error.0.once", "on")]);
        let whole = ByteRange::up_to(65_536);
        let range = span(1000, 20_000);
        assert_eq!(write(&node, range), Err(Error::IO), "{point}");
        let buf = buffer(&node, whole);
        block_on(node.read(whole, buf.clone())).unwrap();
        assert!(buf.is_zero(), "{point} changed something");
        assert_eq!(write(&node, range), Ok(()), "{point}, once is once");
    }
}

#[test]
fn requests_have_the_shape_that_was_asked_for() {
    let node = raw(&[
        ("align", "4k"),
        ("max-transfer", "8k"),
        ("opt-write-zero", "16k"),
        ("max-write-zero", "32k"),
        ("opt-discard", "8k"),
        ("max-discard", "16k"),
    ]);
    let limits = below(&node).limits();
    assert_eq!(limits.request_alignment, align(4096));
    assert_eq!(limits.max_transfer, Some(8192));
    assert_eq!(
        (limits.pwrite_zeroes_alignment, limits.max_pwrite_zeroes),
        (Some(align(16_384)), Some(32_768))
    );
    assert_eq!((limits.pdiscard_alignment, limits.max_pdiscard), (Some(align(8192)), Some(16_384)));
    let driver = below(&node).driver().clone();
    let short = driver.clone().pwrite_zeroes(span(0, 8192), RequestFlags::empty());
    assert_eq!(block_on(short), Err(Error::Unsupported), "left to the layer");
    assert_eq!(block_on(driver.pdiscard(span(0, 4096))), Ok(()), "the end of a longer one");
    assert_eq!(block_on(node.write_zeroes(span(100, 60_000), RequestFlags::empty())), Ok(()));
    assert_eq!(write(&node, span(1, 65_535)), Ok(()));
}

#[test]
fn a_breakpoint_holds_one_request_until_it_is_resumed() {
    Exec::run(7, |exec| async move {
        let node = raw(&[]);
        let filter = below(&node);
        let driver = filter.driver().clone();
        let points = driver.as_breakpoints().unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&told);
        points.listen(Arc::new(move |tag, change| log.lock().push((tag.to_owned(), change))));
        assert_eq!(points.set("bogus", "A"), Err(Error::Os(2)));
        points.set("write_aio", "A").unwrap();

        let range = span(0, 512);
        let held =
            exec.spawn("held", node.write(range, data(&node, 1, range), RequestFlags::empty()));
        points.suspended("A").await;
        assert_eq!(*told.lock(), [("A".to_owned(), BreakpointChange::Suspended)]);
        // Others pass, also writes.
        let other = span(512, 1024);
        node.write(other, data(&node, 2, other), RequestFlags::empty()).await.unwrap();
        let buf = buffer(&node, range);
        node.read(range, buf.clone()).await.unwrap();
        assert!(buf.is_zero(), "it was held before it did anything");
        for _ in 0..100 {
            yield_now().await;
        }
        assert_eq!(points.resume("B"), Err(Error::Os(2)));
        points.resume("A").unwrap();
        held.await.unwrap();
        assert_eq!(points.resume("A"), Err(Error::Os(2)));
        assert_eq!(told.lock().last().unwrap().1, BreakpointChange::Resumed);
        node.read(range, buf.clone()).await.unwrap();
        assert!(!buf.is_zero());
    });
}

#[test]
fn what_is_held_goes_on_when_its_breakpoint_is_removed_or_all_are_cleared() {
    Exec::run(8, |exec| async move {
        let node = raw(&[]);
        let filter = below(&node);
        let driver = filter.driver().clone();
        let points = driver.as_breakpoints().unwrap();
        for clears in [false, true] {
            points.set("pwritev_done", "A").unwrap();
            points.set("l2_load", "A").unwrap();
            let range = span(0, 512);
            let held =
                exec.spawn("held", node.write(range, data(&node, 1, range), RequestFlags::empty()));
            points.suspended("A").await;
            if clears {
                points.clear();
            } else {
                assert_eq!(points.remove("A"), Ok(()), "one was still to come");
            }
            held.await.unwrap();
            assert_eq!(points.remove("A"), Err(Error::Os(2)));
        }
    });
}

#[test]
fn a_configuration_file_is_read_by_the_name_of_the_image() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("image"), [7; 4096]).unwrap();
    std::fs::write(path("config"), "[inject-error]\nevent = \"read_aio\"\nonce = \"on\"\n")
        .unwrap();
    let name = format!("blkdebug:{}:{}", path("config"), path("image"));
    let open = |name: &str, flags| try_open(Options::filename(name).with("driver", "raw"), flags);
    let node = open(&name, OpenFlags::READ_WRITE).unwrap();
    assert_eq!(read(&node, span(0, 512)), Err(Error::IO));
    assert_eq!(read(&node, span(0, 512)), Ok(()));
    let read_only = ReopenOptions { read_only: Some(true), ..ReopenOptions::default() };
    block_on(graph::reopen(&graph::image_changes(&node, read_only))).unwrap();
    assert_eq!(write(&node, span(0, 512)), Err(Error::ReadOnly));
    block_on(graph::close(&node)).unwrap();

    let plain = format!("blkdebug::{}", path("image"));
    assert_eq!(read(&open(&plain, OpenFlags::READ_ONLY).unwrap(), span(0, 512)), Ok(()));
    let refused = |name: &str| open(name, OpenFlags::READ_ONLY).unwrap_err().to_string();
    assert!(refused(&format!("blkdebug:{}", path("image"))).contains("'image'"));
    assert!(refused(&format!("blkdebug:{}:{}", path("none"), path("image"))).contains("none"));
    std::fs::write(path("config"), vec![b'#'; (1 << 20) + 1]).unwrap();
    assert!(refused(&name).contains("File too large"));
    std::fs::write(path("config"), "[bogus]\n").unwrap();
    assert!(refused(&name).contains("'bogus'"));
}

#[test]
fn options_that_nobody_has_are_named() {
    let cases = [
        ("bogus", "1", "bogus"),
        ("inject-error.0.bogus", "1", "event"),
        ("inject-error.x.event", "none", "inject-error.x.event"),
        ("set-state.0.event", "bogus", "event=bogus"),
        ("align", "3", "align=3"),
        ("max-transfer", "abc", "max-transfer"),
    ];
    for (name, value, named) in cases {
        let options =
            Options::new().with("driver", "blkdebug").with("image.driver", "mem").with(name, value);
        let error = try_open(options, OpenFlags::READ_ONLY).unwrap_err().to_string();
        assert!(error.contains(named), "{name}={value}: {error}");
    }
}
