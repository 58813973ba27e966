//! Compressed copies: whole clusters, each written once and only if it holds something, begun in order.

use super::*;

/// A target of `len` bytes, all `fill`, that takes compressed writes of whole clusters.
fn target(len: usize, fill: u8, cluster: u64, delay: u64) -> Arc<Disk> {
    let cluster = Alignment::new(cluster);
    Arc::new(Disk { cluster, delay, ..Disk::target(len, fill) })
}

fn compressed(options: CopyOptions) -> CopyOptions {
    CopyOptions { write_flags: RequestFlags::COMPRESSED, ..options }
}

/// The clusters of `bytes` that have to be written as data, cluster by cluster.
fn slow_clusters(bytes: &[u8], cluster: usize, sparseness: Sparseness) -> Vec<usize> {
    let holds = |part: &[u8]| sparseness == Sparseness::Full || part.iter().any(|b| *b != 0);
    let clusters = bytes.chunks(cluster).enumerate();
    clusters.filter(|(_, part)| holds(part)).map(|(index, _)| index).collect()
}

/// The units of `bytes` each that `ranges` cover, in the order of the ranges.
fn units(ranges: &[ByteRange], bytes: u64) -> Vec<usize> {
    let of = |range: &ByteRange| range.offset() / bytes..range.end().div_ceil(bytes);
    ranges.iter().flat_map(of).map(to_usize).collect()
}

fn clusters() -> impl Strategy<Value = u64> {
    prop_oneof![
        3 => Just(512u64),
        2 => Just(1536),
        3 => Just(4096),
        3 => Just(64 << 10),
        1 => Just(2 << 20),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_cluster_that_holds_something_is_written_once_as_a_whole_and_in_order(
        sources in prop::collection::vec((disk(), 0..3000u64), 1..4),
        options in options(),
        cluster in clusters(),
        alignment in alignment(),
        delay in 0..4u64,
        room in prop_oneof![Just(0usize), Just(1), 1..1_500_000usize],
    ) {
        let disks: Vec<_> =
            sources.into_iter().map(|(disk, longer)| (Arc::new(disk), longer)).collect();
        let mut sources: Vec<_> = disks
            .iter()
            .map(|(disk, longer)| CopySource::new(node(disk), disk.len() + longer))
            .collect();
        // In whole blocks of the target: a rest of one would be padded.
        let ragged = sources.iter().map(|source| source.len).sum::<u64>() % alignment.bytes();
        let last = sources.last_mut().unwrap();
        last.len += (alignment.bytes() - ragged) % alignment.bytes();
        let mut expect = Vec::new();
        sources.iter().for_each(|source| expect.extend(contents(&source.node, source.len)));
        let fill = if options.target == TargetContents::Zeroes { 0 } else { 0xee };
        let len = (expect.len() + room).next_multiple_of(to_usize(alignment.bytes()));
        let disk = target(len, fill, cluster, delay);
        // Requests below a block would be padded, and read first.
        let disk = Arc::new(Disk { alignment, ..Arc::into_inner(disk).unwrap() });
        let options = compressed(options);
        let copied =
            block_on(copy(sources, &node(&disk), options, &Cancel::new(), |_| ())).unwrap();

        prop_assert!(disk.bytes.lock()[..expect.len()] == expect[..]);
        prop_assert!(disk.bytes.lock()[expect.len()..].iter().all(|byte| *byte == fill));
        let (packed, plain) = (disk.logged(Kind::Compressed), disk.logged(Kind::Write));
        // Whole clusters, or up to the end of the disk, in whole blocks.
        let unit = match cluster.max(alignment.bytes()) {
            larger if larger % cluster == 0 => larger,
            _ => cluster,
        };
        for range in packed.iter().filter(|_| unit % alignment.bytes() == 0) {
            prop_assert!(range.offset() % unit == 0, "{range}");
            prop_assert!(range.end() % unit == 0 || range.end() == disk.len(), "{range}");
        }
        if unit % alignment.bytes() != 0 {
            // Padded clusters overlap; the contents were compared.
            return Ok(());
        }
        prop_assert_eq!(plain, []);
        // What ends inside of a cluster keeps what is behind it.
        let total = to_u64(expect.len());
        let ragged = disk.len() != total && !total.is_multiple_of(unit);
        prop_assert!(disk.logged(Kind::Read).len() <= usize::from(ragged));
        // Exactly those that hold something, each once.
        let mut written = packed;
        written.sort_by_key(|range| range.offset());
        let expected = slow_clusters(&expect, to_usize(unit), options.sparseness);
        prop_assert_eq!(units(&written, unit), expected);
        // And everything else is zeroed or skipped, once.
        let zeroed: u64 = disk.logged(Kind::Zeroes).iter().map(|range| range.len()).sum();
        let copied_data = |range: &ByteRange| range.end().min(total) - range.offset();
        let data: u64 = written.iter().map(copied_data).sum();
        prop_assert_eq!((data, zeroed), (copied.data, copied.zeroes));
        prop_assert_eq!(copied.data + copied.zeroes + copied.skipped, total);
        if options.order == WriteOrder::InOrder {
            let log = disk.log.lock();
            let begun = log.iter().filter(|(kind, _)| !matches!(kind, Kind::Read | Kind::Status));
            let offsets: Vec<_> = begun.map(|(_, range)| range.offset()).collect();
            prop_assert!(offsets.is_sorted(), "{offsets:?}");
        }
    }

    #[test]
    fn layers_above_a_base_are_written_in_whole_clusters(
        top in disk(), base in disk(), options in options(), cluster in clusters(),
    ) {
        let base = Arc::new(base);
        let base_node = node(&base);
        let top = Arc::new(Disk { backing: Some(base_node.clone()), ..top });
        let len = top.len();
        let expect = contents(&node(&top), len);
        let mut before = contents(&base_node, base.len());
        before.resize(to_usize(len), 0);
        let disk = target(to_usize(len), 0, cluster, 1);
        let disk = Arc::new(Disk { bytes: Mutex::new(before), ..Arc::into_inner(disk).unwrap() });
        let options = compressed(CopyOptions { target: TargetContents::Unknown, ..options });
        let layers = Layers::Above(base_node);
        let sources = vec![CopySource { layers, ..CopySource::new(node(&top), len) }];
        block_on(copy(sources, &node(&disk), options, &Cancel::new(), |_| ())).unwrap();
        prop_assert!(*disk.bytes.lock() == expect);
        prop_assert_eq!(disk.logged(Kind::Write), []);
        for range in disk.logged(Kind::Compressed) {
            prop_assert!(range.offset() % cluster == 0, "{range}");
            prop_assert!(range.end() % cluster == 0 || range.end() == len, "{range}");
        }
    }
}

/// A turn that ends late for the first piece and at once for the others.
struct LateStarter {
    turns: u32,
}

impl Watch for LateStarter {
    fn progress(&mut self, _: Progress) {}
    fn before_write(&mut self, _: u64) -> Option<futures::future::BoxFuture<'static, ()>> {
        self.turns += 1;
        let naps = if self.turns == 1 { 50 } else { 0 };
        Some(Box::pin(async move {
            for _ in 0..naps {
                yield_once().await;
            }
        }))
    }
}

#[test]
fn a_piece_whose_turn_comes_late_is_still_the_first() {
    let disk = Arc::new(Disk::data(8 << 20));
    let to = target(8 << 20, 0, 64 << 10, 0);
    let (options, cancel) = (compressed(CopyOptions::default()), Cancel::new());
    let watch = LateStarter { turns: 0 };
    block_on(copy(vec![source(&disk)], &node(&to), options, &cancel, watch)).unwrap();
    let offsets: Vec<_> = to.logged(Kind::Compressed).iter().map(|r| r.offset()).collect();
    assert_eq!(offsets, (0..8).map(|piece| piece << 20).collect::<Vec<_>>());
}

#[test]
fn a_cluster_larger_than_a_piece_is_read_and_written_as_one() {
    let disk = Arc::new(Disk::data(5 << 20));
    let to = target(5 << 20, 0, 2 << 20, 0);
    for memory_bytes in [0, 64 << 20] {
        to.log.lock().clear();
        disk.log.lock().clear();
        let options = compressed(CopyOptions { memory_bytes, ..CopyOptions::default() });
        let cancel = Cancel::new();
        block_on(copy(vec![source(&disk)], &node(&to), options, &cancel, |_| ())).unwrap();
        let lens: Vec<_> = to.logged(Kind::Compressed).iter().map(|range| range.len()).collect();
        assert_eq!(lens, [2 << 20, 2 << 20, 1 << 20]);
        assert_eq!(disk.logged(Kind::Read), to.logged(Kind::Compressed));
    }
}

#[test]
fn a_cluster_that_sources_share_is_salvaged_from_each_of_them() {
    let areas = |len| vec![(len, Stored::Data)];
    let bad = Some((Kind::Read, 100));
    let first = Arc::new(Disk { areas: areas(70_000), ..Disk::data(70_000) });
    let second = Arc::new(Disk { fail: bad, ..Disk::data(1000) });
    let third = Arc::new(Disk { areas: areas(200_000), ..Disk::data(200_000) });
    let disks = [&first, &second, &third];
    let total: usize = disks.iter().map(|disk| disk.bytes.lock().len()).sum();
    let to = target(total, 0, 64 << 10, 1);
    let mut options = compressed(CopyOptions::default());
    let copied =
        block_on(copy(disks.map(source).to_vec(), &node(&to), options, &Cancel::new(), |_| ()));
    let error = CopyError::Read { source_index: 1, offset: 0, error: Error::IO };
    assert_eq!(copied.unwrap_err(), error);

    options.on_read_error = OnReadError::Salvage;
    let mut listener = Listener::default();
    let sources = disks.map(source).to_vec();
    block_on(copy(sources, &node(&to), options, &Cancel::new(), &mut listener)).unwrap();
    let lost = ByteRange::up_to(512);
    let unreadable = Unreadable { source_index: 1, range: lost, error: Error::IO };
    assert_eq!(listener.unreadable, [unreadable]);
    let mut expect = first.bytes.lock().clone();
    expect.extend([0; 512]);
    expect.extend(&second.bytes.lock()[512..]);
    expect.extend(&*third.bytes.lock());
    assert!(*to.bytes.lock() == expect);
}

#[test]
fn a_target_without_compressed_writes_is_refused_before_anything_is_written() {
    let (disk, to) = (Arc::new(Disk::data(4096)), Arc::new(Disk::target(4096, 0)));
    let options = compressed(CopyOptions::default());
    let (to_node, cancel) = (node(&to), Cancel::new());
    let copied = copy(vec![source(&disk)], &to_node, options, &cancel, |_| ());
    let error = CopyError::NoCompression { driver: "test" };
    assert_eq!(block_on(copied).unwrap_err(), error);
    assert!(to.log.lock().is_empty());
}
