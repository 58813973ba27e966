//! Rebase: the overlay reads the same over its new backing file, whatever the two hold.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod job_support;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use block_core::io::exec::block_on;
use block_core::job::rebase::{NewBacking, RebaseError, RebaseOptions, rebase};
use block_core::{Cancel, Node, RequestFlags};
use job_support::{CLUSTER, Layer, Spec, contents, node, spec};
use proptest::prelude::*;

fn options(parallel: usize) -> RebaseOptions {
    RebaseOptions { parallel, memory_bytes: 0, ..RebaseOptions::default() }
}

/// What the overlay will read as once it is opened over `new`.
fn reopened(overlay: &Arc<Layer>, overlay_node: &Node, new: Option<&Node>) -> Vec<u8> {
    let len = overlay_node.len();
    let own = contents(overlay_node, len);
    let below = new.map_or_else(|| vec![0; own.len()], |node| contents(node, len));
    let byte = |at: usize| {
        let held = overlay.overlay.holds(u64::try_from(at).unwrap());
        if held { own[at] } else { below[at] }
    };
    (0..own.len()).map(byte).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

    #[test]
    fn the_overlay_reads_the_same_over_another_backing_file(
        specs in (spec(60), spec(60), spec(60)),
        with_old in any::<bool>(),
        with_new in any::<bool>(),
        lazy_zeroes in any::<bool>(),
        parallel in 1..5usize,
    ) {
        let old = Layer::of(&specs.0, None, false);
        let new = node(&Layer::of(&specs.1, None, false));
        let top = Layer::of(&specs.2, with_old.then(|| node(&old)), lazy_zeroes);
        let top_node = node(&top);
        let expect = contents(&top_node, top_node.len());
        let backing = NewBacking {
            node: with_new.then(|| new.clone()),
            in_chain: None,
            name: with_new.then(|| "new".to_owned()),
            format: with_new.then(|| "test-layer".to_owned()),
        };
        let mut last = 0;
        let done = block_on(rebase(&top_node, &backing, options(parallel), &Cancel::new(), |p| {
            last = p.done;
        })).unwrap();

        prop_assert!(reopened(&top, &top_node, backing.node.as_ref()) == expect);
        prop_assert!(contents(&top_node, top_node.len()) == expect);
        prop_assert_eq!(done.skipped + done.same + done.written, top_node.len());
        prop_assert_eq!(last, top_node.len());
        let header = top.header.lock().clone().unwrap();
        prop_assert_eq!(header.0, backing.name);
        // Everything is stable before the header says so.
        prop_assert_eq!(top.flushes.lock().last().copied(), Some("flush"));
        prop_assert!(done.written == 0 || top.flushes.lock()[..2] == ["flush", "header"]);
    }

    #[test]
    fn compressed_clusters_are_written_as_a_whole(
        specs in (spec(40), spec(40), spec(40), spec(40)),
        with_new in any::<bool>(),
        onto_base in any::<bool>(),
        units in 1..5u64,
        parallel in 1..5usize,
    ) {
        // The overlay holds units of its clusters, and so do the layers below.
        let cluster = units * CLUSTER;
        let base = Layer::of(&specs.0, None, false);
        let middle = Layer::of(&specs.1, Some(node(&base)), false);
        let top = Layer::packing(&specs.2, Some(node(&middle)), cluster);
        let top_node = node(&top);
        let expect = contents(&top_node, top_node.len());
        let old = top_node.backing().unwrap();
        let (new, in_chain) = match onto_base {
            true => (Some(node(&base)), old.backing()),
            false => (with_new.then(|| node(&Layer::of(&specs.3, None, false))), None),
        };
        let backing = NewBacking { node: new, in_chain, ..NewBacking::default() };
        let options = RebaseOptions { write_flags: RequestFlags::COMPRESSED, ..options(parallel) };
        let done = block_on(rebase(&top_node, &backing, options, &Cancel::new(), |_| ())).unwrap();

        prop_assert!(reopened(&top, &top_node, backing.node.as_ref()) == expect);
        prop_assert!(contents(&top_node, top_node.len()) == expect);
        prop_assert_eq!(done.skipped + done.same + done.written, top_node.len());
        let packed = top.packed.lock().clone();
        for range in &packed {
            prop_assert!(range.offset() % cluster == 0, "{range}");
            prop_assert!(range.end() % cluster == 0 || range.end() == top_node.len(), "{range}");
        }
        // Nothing but zeroes is written plain.
        for range in top.writes.lock().iter().filter(|range| !packed.contains(*range)) {
            let bytes = usize::try_from(range.offset()).unwrap()..usize::try_from(range.end()).unwrap();
            prop_assert!(expect[bytes].iter().all(|byte| *byte == 0), "{range}");
        }
    }

    #[test]
    fn onto_a_file_of_its_own_chain_only_what_is_above_it_is_looked_at(
        specs in (spec(60), spec(60), spec(60), spec(60)),
        onto in 0..3usize,
        parallel in 1..5usize,
    ) {
        let bottom = Layer::of(&specs.0, None, false);
        let base = Layer::of(&specs.1, Some(node(&bottom)), false);
        let middle = Layer::of(&specs.2, Some(node(&base)), false);
        let top = Layer::of(&specs.3, Some(node(&middle)), false);
        let top_node = node(&top);
        let expect = contents(&top_node, top_node.len());
        let chain: Vec<_> = std::iter::successors(top_node.backing(), Node::backing).collect();
        let in_chain = chain[onto].clone();
        // The same image, opened again.
        let again = match onto {
            0 => node(&middle),
            1 => node(&base),
            _ => node(&bottom),
        };
        let backing = NewBacking {
            node: Some(again.clone()),
            in_chain: Some(in_chain),
            ..NewBacking::default()
        };
        let done =
            block_on(rebase(&top_node, &backing, options(parallel), &Cancel::new(), |_| ())).unwrap();
        prop_assert!(reopened(&top, &top_node, Some(&again)) == expect);
        if onto == 0 {
            prop_assert_eq!(done.written + done.same, 0);
        }
    }
}

/// An overlay with nothing in it, between two backing files that differ in every second cluster.
fn stripes() -> (Arc<Layer>, Node, NewBacking) {
    let clusters: Vec<u8> = (0..64).map(|index| 2 + index % 2).collect();
    let old = Layer::of(&Spec { len: 64 * CLUSTER, clusters }, None, false);
    let new = Layer::of(&Spec { len: 64 * CLUSTER, clusters: vec![2; 64] }, None, false);
    let top = Layer::new(64 * CLUSTER, Some(node(&old)));
    let top_node = node(&top);
    let backing = NewBacking { node: Some(node(&new)), ..NewBacking::default() };
    (top, top_node, backing)
}

#[test]
fn only_clusters_that_differ_are_written_and_each_as_a_whole() {
    let (top, top_node, backing) = stripes();
    let done = block_on(rebase(&top_node, &backing, options(2), &Cancel::new(), |_| ())).unwrap();
    assert_eq!((done.written, done.same), (32 * CLUSTER, 32 * CLUSTER));
    let writes = top.writes.lock();
    assert_eq!(writes.len(), 32);
    assert!(writes.iter().all(|range| range.len() == CLUSTER && range.offset() % CLUSTER == 0));
}

#[test]
fn an_overlay_that_cannot_be_written_keeps_its_header() {
    let (top, top_node, backing) = stripes();
    top.fails.store(true, Ordering::Relaxed);
    let result = block_on(rebase(&top_node, &backing, options(2), &Cancel::new(), |_| ()));
    assert!(matches!(result, Err(RebaseError::Write { .. })), "{result:?}");
    assert_eq!(*top.header.lock(), None);
}

#[test]
fn an_overlay_without_compressed_writes_is_refused_before_anything_is_written() {
    let (top, top_node, backing) = stripes();
    let options = RebaseOptions { write_flags: RequestFlags::COMPRESSED, ..options(2) };
    let result = block_on(rebase(&top_node, &backing, options, &Cancel::new(), |_| ()));
    assert_eq!(result, Err(RebaseError::NoCompression { driver: "test-layer" }));
    assert!(top.writes.lock().is_empty() && top.header.lock().is_none());
}

#[test]
fn a_cancelled_rebase_keeps_its_header() {
    let (top, top_node, backing) = stripes();
    let cancel = Cancel::new();
    let mut pieces = 0;
    let result = block_on(rebase(&top_node, &backing, options(1), &cancel, |_| {
        pieces += 1;
        if pieces == 2 {
            cancel.cancel();
        }
    }));
    assert_eq!(result, Err(RebaseError::Cancelled));
    assert!(top.overlay.holds(CLUSTER) && !top.overlay.holds(63 * CLUSTER));
    assert_eq!(*top.header.lock(), None);
}
