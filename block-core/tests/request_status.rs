//! Block status and allocation over chains of backing files, against the clusters themselves.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod request_support;

use std::sync::Arc;

use block_core::driver::{Exactness, Prealloc};
use block_core::format::raw::RawDriver;
use block_core::node::NodeOptions;
use block_core::proto::mem::MemDriver;
use block_core::request::status::{StatusDetail, StatusFlags};
use block_core::{ByteRange, Node};
use block_testkit::disk::overlay::{Cluster, Overlay};
use block_testkit::exec::Exec;
use proptest::prelude::*;
use request_support::{align, buffer, cases, span};

const CLUSTER: u64 = 1024;

/// A layer: its length, and what each cluster is (0: absent, 1: zero, 2: data, 3: zero data).
#[derive(Clone, Debug)]
struct Layer {
    len: u64,
    clusters: Vec<u8>,
}

fn layer() -> impl Strategy<Value = Layer> {
    (1..12 * CLUSTER, proptest::collection::vec(0..4u8, 12))
        .prop_map(|(len, clusters)| Layer { len, clusters })
}

/// The layers from the top down, and their nodes.
type Chain = Vec<(Arc<Overlay>, Node)>;

/// Builds a chain from the bottom up.
fn chain(layers: &[Layer]) -> Chain {
    let mut chain: Chain = Vec::new();
    for (depth, layer) in layers.iter().enumerate().rev() {
        let backing = chain.last().map(|(_, node)| node.clone());
        let overlay = Overlay::new(layer.len, align(CLUSTER), backing);
        let count = usize::try_from(layer.len.div_ceil(CLUSTER)).unwrap();
        for (index, kind) in layer.clusters.iter().enumerate().take(count) {
            let byte = u8::try_from(depth * 16 + index + 1).unwrap();
            let data = |byte| Cluster::Data(vec![byte; usize::try_from(CLUSTER).unwrap()]);
            let cluster = match kind {
                0 => Cluster::Absent,
                1 => Cluster::Zero,
                2 => data(byte),
                _ => data(0),
            };
            overlay.set(index, cluster);
        }
        let node = Node::new(overlay.clone(), NodeOptions::default());
        chain.push((overlay, node));
    }
    chain.reverse();
    chain
}

/// Which layer decides a byte: its depth, or `None` if none does. A layer that is too short decides
/// that there are zeroes.
fn decider(chain: &Chain, offset: u64, end: usize) -> Option<usize> {
    chain[..end].iter().position(|(overlay, node)| overlay.holds(offset) || offset >= node.len())
}

async fn bytes_of(node: &Node, range: ByteRange) -> Vec<u8> {
    let buf = buffer(node, range);
    node.read(range, buf.clone()).await.unwrap();
    buf.to_vec()
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn an_answer_is_true_of_every_byte_that_it_covers(
        layers in proptest::collection::vec(layer(), 1..4),
        asked in (0..13 * CLUSTER, 0..13 * CLUSTER),
    ) {
        Exec::run(0, |_| async move {
            let chain = chain(&layers);
            let top = chain[0].1.clone();
            let mut rest = span(asked.0.min(asked.1), asked.0.max(asked.1));
            while !rest.is_empty() && rest.offset() < top.len() {
                let whole = top.block_status_above(None, rest, StatusDetail::Zeroes).await.unwrap();
                let own = top.block_status(rest, StatusDetail::Zeroes).await.unwrap();
                for status in [&whole, &own] {
                    assert!(status.len > 0 && status.len <= rest.len());
                    let end = rest.offset() + status.len;
                    assert!(end <= top.len());
                    assert_eq!(status.flags.contains(StatusFlags::EOF), end == top.len());
                    if status.is_zero() {
                        let bytes = bytes_of(&top, rest.first(status.len)).await;
                        assert!(bytes.iter().all(|byte| *byte == 0), "said to be zero");
                    }
                }
                for offset in rest.offset()..rest.offset() + own.len {
                    assert_eq!(own.is_allocated(), chain[0].0.holds(offset), "byte {offset:#x}");
                }
                for offset in rest.offset()..rest.offset() + whole.len {
                    match decider(&chain, offset, chain.len()) {
                        Some(depth) => assert_eq!(whole.depth, depth, "byte {offset:#x}"),
                        None => assert!(whole.is_zero(), "nobody holds byte {offset:#x}"),
                    }
                }
                if let Some(mapping) = &whole.mapping {
                    let there = ByteRange::new(mapping.offset, whole.len).unwrap();
                    let expected = bytes_of(&top, rest.first(whole.len)).await;
                    assert_eq!(bytes_of(&mapping.node, there).await, expected);
                }
                rest = rest.split_at(whole.len.min(own.len)).1;
            }
        });
    }

    #[test]
    fn allocation_above_a_base_asks_the_layers_above_it_only(
        layers in proptest::collection::vec(layer(), 2..4),
        base in 1..3usize,
        start in 0..12 * CLUSTER,
    ) {
        Exec::run(0, |_| async move {
            let chain = chain(&layers);
            let top = chain[0].1.clone();
            let base = base.min(chain.len() - 1);
            let end = top.len();
            let mut rest = span(start.min(end), end);
            while !rest.is_empty() {
                let below = &chain[base].1;
                let (allocated, len) = top.is_allocated_above(Some(below), rest).await.unwrap();
                assert!(len > 0 && len <= rest.len());
                for offset in rest.offset()..rest.offset() + len {
                    let expected = decider(&chain, offset, base).is_some();
                    assert_eq!(allocated, expected, "byte {offset:#x} above layer {base}");
                }
                rest = rest.split_at(len).1;
            }
        });
    }

    #[test]
    fn growing_a_layer_never_shows_what_is_in_a_longer_backing_file(
        layers in proptest::collection::vec(layer(), 2..4),
        len in 0..14 * CLUSTER,
    ) {
        Exec::run(0, |_| async move {
            let chain = chain(&layers);
            let top = chain[0].1.clone();
            let old = top.len();
            let before = bytes_of(&top, ByteRange::up_to(old.min(len))).await;
            top.truncate(len, Exactness::Exact, Prealloc::Off).await.unwrap();
            assert_eq!(top.len(), len);
            assert_eq!(bytes_of(&top, ByteRange::up_to(old.min(len))).await, before);
            if len > old {
                let added = bytes_of(&top, span(old, len)).await;
                let shown = added.iter().position(|byte| *byte != 0);
                assert_eq!(shown, None, "of the {} bytes from {old:#x}", added.len());
            }
        });
    }
}

#[test]
fn a_filter_answers_as_the_node_below_with_offsets_of_that_node() {
    Exec::run(0, |_| async move {
        let disk = MemDriver::new(1 << 20);
        let below = Node::new(Arc::new(disk), NodeOptions::default());
        let data = request_support::data(&below, 1, span(128 << 10, 192 << 10));
        below.write(span(128 << 10, 192 << 10), data, Default::default()).await.unwrap();
        let part = RawDriver::part(below.clone(), 64 << 10, Some(256 << 10)).unwrap();
        let part = Node::new(Arc::new(part), NodeOptions::default());
        let mut rest = ByteRange::up_to(part.len());
        let mut seen = Vec::new();
        while !rest.is_empty() {
            let status = part.block_status(rest, StatusDetail::Zeroes).await.unwrap();
            let mapping = status.mapping.clone().unwrap();
            assert!(mapping.node.same(&below));
            assert_eq!(mapping.offset, rest.offset() + (64 << 10));
            seen.push((rest.offset() >> 10, status.len >> 10, status.is_data(), status.is_zero()));
            rest = rest.split_at(status.len).1;
        }
        let expected = [(0, 64, false, true), (64, 64, true, false), (128, 128, false, true)];
        assert_eq!(seen, expected);
    });
}

#[test]
fn beyond_the_end_there_is_nothing_to_say() {
    Exec::run(0, |_| async move {
        let chain = chain(&[Layer { len: 5000, clusters: vec![2; 12] }]);
        for range in [span(5000, 6000), span(9000, 9001), span(100, 100)] {
            let status = chain[0].1.block_status(range, StatusDetail::Zeroes).await.unwrap();
            assert_eq!(status.len, 0);
            let above = chain[0].1.block_status_above(None, range, StatusDetail::Zeroes);
            assert_eq!(above.await.unwrap().len, 0);
        }
    });
}

#[test]
fn a_filter_over_a_chain_speaks_for_all_of_it() {
    let kinds = [vec![0, 0, 2, 1], vec![0, 2, 0, 2]];
    let layers = kinds.map(|clusters| Layer { len: 4 * CLUSTER, clusters });
    let chain = chain(&layers);
    // From the middle of the second cluster on.
    let start = CLUSTER + CLUSTER / 2;
    let part = RawDriver::part(chain[0].1.clone(), start, None).unwrap();
    let part = Node::new(Arc::new(part), NodeOptions::default());
    block_core::io::exec::block_on(async move {
        let mut found = Vec::new();
        let mut offset = 0;
        while offset < part.len() {
            let rest = span(offset, part.len());
            let status = part.block_status_above(None, rest, StatusDetail::Zeroes).await.unwrap();
            found.push((offset + start, status.is_zero()));
            offset += status.len;
        }
        assert_eq!(found, [(start, false), (2 * CLUSTER, false), (3 * CLUSTER, true)]);
    });
}
