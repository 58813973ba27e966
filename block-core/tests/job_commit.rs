//! Commit: the base reads as the top did, and nothing is lost on the way there.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod job_support;

use std::sync::atomic::Ordering;

use block_core::io::exec::block_on;
use block_core::job::commit::{Afterwards, CommitError, CommitOptions, commit};
use block_core::job::copy::CopyOptions;
use block_core::{Cancel, Error, Node};
use job_support::{Layer, Spec, contents, node, spec};
use proptest::prelude::*;

fn options(afterwards: Afterwards, parallel: usize) -> CommitOptions {
    let copy = CopyOptions { parallel, memory_bytes: 0, ..CopyOptions::default() };
    CommitOptions { copy, afterwards }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

    #[test]
    fn the_base_reads_as_the_top_did(
        specs in (spec(60), spec(60), spec(60), spec(60)),
        to_the_middle in any::<bool>(),
        empty in any::<bool>(),
        parallel in 1..5usize,
    ) {
        let bottom = Layer::of(&specs.0, None, false);
        let base = Layer::of(&specs.1, Some(node(&bottom)), false);
        let middle = Layer::of(&specs.2, Some(node(&base)), false);
        let top = Layer::of(&specs.3, Some(node(&middle)), false);
        let top_node = node(&top);
        let middle_node = top_node.backing().unwrap();
        let target = if to_the_middle { middle_node.clone() } else { middle_node.backing().unwrap() };
        let expect = contents(&top_node, top_node.len());
        let before = contents(&target, target.len());

        // Emptying makes the top read through to its own backing file, so only then.
        let empty = empty && to_the_middle;
        let afterwards = if empty { Afterwards::Empty } else { Afterwards::Keep };
        let options = options(afterwards, parallel);
        let copied = block_on(commit(&top_node, &target, options, &Cancel::new(), |_| ())).unwrap();

        let after = contents(&target, target.len());
        prop_assert!(after[..expect.len()] == expect[..]);
        if before.len() > expect.len() {
            prop_assert!(after[expect.len()..] == before[expect.len()..]);
        }
        prop_assert!(contents(&top_node, top_node.len()) == expect);
        prop_assert_eq!(copied.data + copied.zeroes + copied.below, top_node.len());
        if empty {
            prop_assert!((0..top_node.len()).step_by(512).all(|at| !top.overlay.holds(at)));
            // Stable in the base before anything leaves the top.
            prop_assert_eq!(&middle.flushes.lock()[..], ["flush"]);
            prop_assert_eq!(top.flushes.lock().first().copied(), Some("empty"));
        }
    }
}

/// A top over a base, both with data.
fn pair() -> (std::sync::Arc<Layer>, std::sync::Arc<Layer>, Node, Node) {
    let base = Layer::of(&Spec { len: 8 * 4096, clusters: vec![2; 8] }, None, false);
    let spec = Spec { len: 16 * 4096, clusters: [vec![0; 4], vec![3; 12]].concat() };
    let top = Layer::of(&spec, Some(node(&base)), false);
    let top_node = node(&top);
    let base_node = top_node.backing().unwrap();
    (top, base, top_node, base_node)
}

#[test]
fn what_the_top_does_not_hold_is_not_written() {
    let (_, base, top_node, base_node) = pair();
    let options = options(Afterwards::Keep, 2);
    let copied = block_on(commit(&top_node, &base_node, options, &Cancel::new(), |_| ())).unwrap();
    assert_eq!((copied.below, copied.data), (4 * 4096, 12 * 4096));
    assert!(base.writes.lock().iter().all(|range| range.offset() >= 4 * 4096));
    assert_eq!(base_node.len(), top_node.len());
}

#[test]
fn a_base_that_cannot_be_written_leaves_the_top_alone() {
    let (top, base, top_node, base_node) = pair();
    let expect = contents(&top_node, top_node.len());
    base.fails.store(true, Ordering::Relaxed);
    let options = options(Afterwards::Empty, 2);
    let result = block_on(commit(&top_node, &base_node, options, &Cancel::new(), |_| ()));
    assert!(matches!(result, Err(CommitError::Grow { len: 65536, .. })), "{result:?}");
    assert_eq!(contents(&top_node, top_node.len()), expect);
    assert!(top.flushes.lock().is_empty());
}

#[test]
fn a_base_that_cannot_be_flushed_leaves_the_top_alone() {
    let (top, base, top_node, base_node) = pair();
    let expect = contents(&top_node, top_node.len());
    base.flushes_fail.store(true, Ordering::Relaxed);
    let options = options(Afterwards::Empty, 2);
    let result = block_on(commit(&top_node, &base_node, options, &Cancel::new(), |_| ()));
    assert_eq!(result, Err(CommitError::Flush(Error::IO)));
    assert!(base.flushes.lock().contains(&"flush"));
    assert!(top.flushes.lock().is_empty() && top.overlay.holds(4 * 4096));
    assert_eq!(contents(&top_node, top_node.len()), expect);
}

#[test]
fn the_layer_above_names_the_new_state_before_anything_is_copied() {
    let empty = Spec { len: 8 * 4096, clusters: vec![0; 8] };
    for names_state in [true, false] {
        let base = Layer::of(&empty, None, false);
        let middle = Layer::of(&empty, Some(node(&base)), false);
        let top =
            Layer::of(&Spec { clusters: vec![3; 8], ..empty.clone() }, Some(node(&middle)), false);
        for layer in [&middle, &top] {
            layer.names_state.store(names_state, Ordering::Relaxed);
        }
        let top_node = node(&top);
        let base_node = top_node.backing().unwrap().backing().unwrap();
        // Nothing is copied, as it is cancelled by then.
        let cancel = Cancel::new();
        cancel.cancel();
        let result =
            block_on(commit(&top_node, &base_node, options(Afterwards::Keep, 2), &cancel, |_| ()));
        assert!(matches!(result, Err(CommitError::Copy(_))), "{result:?}");
        let expect: [&[&str]; 3] =
            if names_state { [&["renew"], &["follow"], &[]] } else { [&[]; 3] };
        let found = [&base, &middle, &top].map(|layer| layer.flushes.lock().clone());
        assert_eq!(found.each_ref().map(|events| &events[..]), expect);
    }
}

#[test]
fn a_layer_that_cannot_name_another_state_keeps_the_base_as_it_is() {
    let (top, base, top_node, base_node) = pair();
    top.names_state.store(true, Ordering::Relaxed);
    top.fails.store(true, Ordering::Relaxed);
    let result = block_on(commit(
        &top_node,
        &base_node,
        options(Afterwards::Keep, 2),
        &Cancel::new(),
        |_| (),
    ));
    assert_eq!(result, Err(CommitError::NewState(Error::NO_SPACE)));
    assert!(base.writes.lock().is_empty() && base_node.len() < top_node.len());
}

#[test]
fn a_cancelled_commit_empties_nothing() {
    let (top, _, top_node, base_node) = pair();
    let expect = contents(&top_node, top_node.len());
    let cancel = Cancel::new();
    cancel.cancel();
    let options = options(Afterwards::Empty, 2);
    let result = block_on(commit(&top_node, &base_node, options, &cancel, |_| ()));
    assert!(matches!(result, Err(CommitError::Copy(_))), "{result:?}");
    assert_eq!(contents(&top_node, top_node.len()), expect);
    assert!(top.flushes.lock().is_empty());
}

#[test]
fn a_base_outside_of_the_chain_is_refused() {
    let (_, base, top_node, _) = pair();
    // Another node on the same layer is not the node of the chain.
    for other in [node(&base), top_node.clone()] {
        let options = CommitOptions::default();
        let result = block_on(commit(&top_node, &other, options, &Cancel::new(), |_| ()));
        assert_eq!(result, Err(CommitError::NotInChain));
    }
}
