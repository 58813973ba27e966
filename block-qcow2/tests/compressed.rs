//! Compressed writes, through the driver: what they leave in the file, in which order it gets there, and
//! what failures do. Each promise is tested with the write cache and without.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod kit;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use block_core::{Alignment, ByteRange, Error, IoBuf, Node, RequestFlags, Result, graph};
use block_testkit::disk::fault::{Fault, Rule};
use block_testkit::disk::hold::{Hold, Point};
use block_testkit::disk::mem::{MemConfig, MemDisk};
use block_testkit::disk::record::Record;
use block_testkit::disk::tap::Kind;
use block_testkit::exec::Exec;
use block_testkit::naive::qcow2::make::{Cluster, Made};
use block_testkit::naive::qcow2::{Image, Place};
use block_testkit::op::{contents, io_vec};
use block_testkit::race::Taps;
use futures::StreamExt;
use futures::executor::block_on;
use futures::future::join_all;
use futures::stream::FuturesOrdered;
use kit::setups::{Setup, empty, setup};
use kit::{World, judge};

const CACHED: &[(&str, &str)] = &[("compressed-cache-size", "64k")];
const UNCACHED: &[(&str, &str)] = &[("compressed-cache-size", "0")];
const BOTH: [&[(&str, &str)]; 2] = [CACHED, UNCACHED];
const CLUSTER: u64 = 4096;

/// An open image, and what lies below it.
struct Scene {
    setup: Setup,
    disk: Arc<MemDisk>,
    fault: Arc<Fault>,
    record: Arc<Record>,
    hold: Arc<Hold>,
    node: Node,
}

impl Scene {
    async fn new(setup: Setup, clusters: &[(u64, Cluster)]) -> Self {
        let clusters: BTreeMap<u64, Cluster> = clusters.iter().cloned().collect();
        let made = setup.shape.make(&clusters, None);
        let disk = MemConfig::file().aligned(setup.align).holding(&made.file);
        let (Taps { fault, record, hold }, below) = Taps::on(Arc::clone(&disk) as _);
        let node = World::new(&setup, below, None).open().await.unwrap();
        Self { setup, disk, fault, record, hold, node }
    }

    fn whole(&self, cluster: u64) -> ByteRange {
        let size = self.setup.shape.cluster_size();
        ByteRange::new(cluster * size, size).unwrap()
    }

    async fn write(&self, range: ByteRange, bytes: &[u8]) -> Result<()> {
        let iov = io_vec(bytes, Alignment::PAGE, 1);
        self.node.write(range, iov, RequestFlags::COMPRESSED).await
    }

    /// Writes bytes of one value to a cluster, compressed.
    async fn fill(&self, cluster: u64, byte: u8) -> Result<()> {
        let range = self.whole(cluster);
        self.write(range, &vec![byte; kit::index(range.len())]).await
    }

    async fn read(&self, range: ByteRange) -> Vec<u8> {
        let buf = IoBuf::zeroed(kit::index(range.len()), Alignment::PAGE).unwrap();
        self.node.read(range, buf.clone().into()).await.unwrap();
        buf.to_vec()
    }

    async fn reads_as(&self, cluster: u64, byte: u8) {
        let read = self.read(self.whole(cluster)).await;
        assert!(read.iter().all(|b| *b == byte), "cluster {cluster}: {:#x}", read[0]);
    }

    fn file(&self) -> Made {
        Made { file: self.disk.to_vec(), data: Vec::new() }
    }

    /// Closes the image; it must be clean and hold `expected`.
    async fn close(self, expected: &[(u64, u8)]) {
        graph::close(&self.node).await.unwrap();
        let judged = judge(&self.setup, &self.file()).unwrap();
        judged.clean().unwrap();
        let size = kit::index(self.setup.shape.cluster_size());
        for (cluster, byte) in expected {
            let start = kit::index(*cluster) * size;
            let end = (start + size).min(judged.contents.len());
            let wrong = judged.contents[start..end].iter().position(|b| b != byte);
            assert_eq!(wrong, None, "cluster {cluster}");
        }
    }

    /// How each cluster stands in the file.
    fn places(&self) -> Vec<(u64, Place)> {
        let made = self.file();
        let image = Image::open(&made.file).unwrap();
        let pieces = image.map().unwrap();
        pieces.iter().map(|piece| (piece.guest, piece.place)).collect()
    }

    fn is_compressed(&self, cluster: u64) -> bool {
        let at = cluster * self.setup.shape.cluster_size();
        let there = self.places().into_iter().find(|(offset, _)| *offset == at);
        matches!(there, Some((_, Place::Compressed { .. })))
    }
}

/// Bytes that no codec makes shorter.
fn noise(len: u64, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(kit::index(len)).collect()
}

#[test]
fn a_compressed_cluster_is_rewritten_and_its_place_given_back() {
    for options in BOTH {
        Exec::run(1, |_| async move {
            let packed = Cluster::Compressed(vec![7; 4096]);
            let scene = Scene::new(empty(options), &[(3, packed)]).await;
            for byte in 1..40 {
                scene.fill(3, byte).await.unwrap();
                scene.reads_as(3, byte).await;
            }
            scene.node.flush().await.unwrap();
            assert!(scene.is_compressed(3));
            let len = scene.disk.to_vec().len();
            for byte in 40..240 {
                scene.fill(3, byte).await.unwrap();
                scene.node.flush().await.unwrap();
            }
            // Two hundred times 20 bytes fit in one cluster more; given back, they need not grow it.
            assert!(scene.disk.to_vec().len() <= len + (2 << 20), "grows ahead once at most");
            scene.close(&[(3, 239)]).await;
        });
    }
}

#[test]
fn what_does_not_shrink_is_written_plain() {
    for options in BOTH {
        Exec::run(2, |_| async move {
            let scene = Scene::new(empty(options), &[]).await;
            let mut bytes = noise(CLUSTER, 1);
            bytes.extend(vec![5; 4096]);
            bytes.extend(noise(CLUSTER, 2));
            let range = ByteRange::new(CLUSTER, 3 * CLUSTER).unwrap();
            scene.write(range, &bytes).await.unwrap();
            assert!(scene.read(range).await == bytes);
            scene.node.flush().await.unwrap();
            let compressed = [1, 2, 3].map(|cluster| scene.is_compressed(cluster));
            assert_eq!(compressed, [false, true, false]);
            // Once more: what is plain is written where it is.
            scene.write(range, &bytes).await.unwrap();
            assert!(scene.read(range).await == bytes);
            scene.close(&[(2, 5)]).await;
        });
    }
}

/// Plain clusters between compressed ones do not cut these apart: no host cluster is left half empty.
#[test]
fn plain_clusters_in_between_leave_no_gaps() {
    for options in BOTH {
        Exec::run(10, |_| async move {
            let mut setup = empty(options);
            setup.shape.size = 640 * CLUSTER;
            let scene = Scene::new(setup, &[]).await;
            for n in 0..100u64 {
                // Five eighths of a cluster, then a whole one.
                let mut bytes = vec![1; 8192];
                bytes[..2500].copy_from_slice(&noise(2500, n));
                bytes[4096..].copy_from_slice(&noise(CLUSTER, 1000 + n));
                let range = ByteRange::new(n * 2 * CLUSTER, 2 * CLUSTER).unwrap();
                scene.write(range, &bytes).await.unwrap();
            }
            scene.node.flush().await.unwrap();
            let mut hosts = std::collections::BTreeSet::new();
            for (_, place) in scene.places() {
                if let Place::Compressed { host, len } = place {
                    hosts.extend(host / CLUSTER..=(host + len - 1) / CLUSTER);
                }
            }
            assert!((62..=70).contains(&hosts.len()), "{} for 100 times 2600 bytes", hosts.len());
            scene.close(&[]).await;
        });
    }
}

#[test]
fn only_whole_clusters_and_the_tail_are_taken() {
    for options in BOTH {
        Exec::run(3, |_| async move {
            let mut setup = empty(options);
            setup.shape.size = 9 * CLUSTER + 1536;
            let scene = Scene::new(setup, &[]).await;
            for (offset, len) in [(512, CLUSTER), (0, 512), (0, CLUSTER + 512), (9 * CLUSTER, 512)]
            {
                let range = ByteRange::new(offset, len).unwrap();
                let bytes = vec![1; kit::index(len)];
                assert_eq!(scene.write(range, &bytes).await, Err(Error::Invalid), "{range}");
            }
            let tail = ByteRange::new(8 * CLUSTER, CLUSTER + 1536).unwrap();
            scene.write(tail, &vec![9; kit::index(tail.len())]).await.unwrap();
            assert!(scene.read(tail).await.iter().all(|b| *b == 9));
            scene.node.flush().await.unwrap();
            assert!(scene.is_compressed(9));
            scene.close(&[(8, 9), (9, 9), (0, 0)]).await;
        });
    }
}

#[test]
fn a_host_cluster_is_shared_by_as_many_as_its_refcount_can_count() {
    // Refcounts of 1, 2 and 16 bits: at most 1, 3 and 65535 references.
    for (order, most) in [(0, 1), (1, 3), (4, 64)] {
        for options in BOTH {
            Exec::run(4, |_| async move {
                let mut setup = empty(options);
                setup.shape.refcount_order = order;
                let scene = Scene::new(setup, &[]).await;
                for cluster in 0..12 {
                    scene.fill(cluster, 3).await.unwrap();
                }
                scene.node.flush().await.unwrap();
                let mut hosts: BTreeMap<u64, usize> = BTreeMap::new();
                for (_, place) in scene.places() {
                    if let Place::Compressed { host, .. } = place {
                        *hosts.entry(host / CLUSTER).or_default() += 1;
                    }
                }
                assert_eq!(hosts.values().sum::<usize>(), 12);
                assert_eq!(hosts.values().max(), Some(&most.min(12)), "{hosts:?}");
                scene.close(&[(0, 3), (11, 3)]).await;
            });
        }
    }
}

/// Nothing but the order in which they begin decides where compressed clusters go.
#[test]
fn the_same_writes_make_the_same_image_however_they_interleave() {
    for options in BOTH {
        let image = |seed, width: u64| {
            Exec::run(seed, move |_| async move {
                let scene = Scene::new(empty(options), &[]).await;
                let mut writes: FuturesOrdered<_> = (0..60 / width)
                    .map(|n| {
                        let range = ByteRange::new(n * width * CLUSTER, width * CLUSTER).unwrap();
                        let mut bytes = contents(9, range);
                        if n % 3 == 1 {
                            bytes[..4096].copy_from_slice(&noise(CLUSTER, n));
                        }
                        let scene = &scene;
                        async move { scene.write(range, &bytes).await }
                    })
                    .collect();
                while let Some(done) = writes.next().await {
                    done.unwrap();
                }
                drop(writes);
                graph::close(&scene.node).await.unwrap();
                scene.disk.to_vec()
            })
        };
        let first = image(0, 4);
        for seed in 1..12 {
            assert!(image(seed, 4) == first, "seed {seed}");
        }
    }
}

/// The old contents stay, in this process and in the file, and so does the place of everybody else.
#[test]
fn a_failed_write_leaves_the_old_contents() {
    for options in BOTH {
        Exec::run(5, |_| async move {
            let packed = Cluster::Compressed(vec![7; 4096]);
            let clusters = [(3, packed), (4, Cluster::Data(vec![8; 4096]))];
            let scene = Scene::new(empty(options), &clusters).await;
            scene.fill(5, 1).await.unwrap();
            scene.node.flush().await.unwrap();
            scene.fault.add(Rule::new(Kind::Write));
            let failed = [scene.fill(3, 100).await, scene.fill(4, 100).await];
            let flushed = scene.node.flush().await;
            let cached = options == CACHED;
            // With the cache the writes are acknowledged, so that it is the flush which fails.
            assert_eq!(failed, if cached { [Ok(()); 2] } else { [Err(Error::IO); 2] });
            assert_eq!(flushed, if cached { Err(Error::IO) } else { flushed });
            let (third, fourth) = if cached { (100, 100) } else { (7, 8) };
            scene.reads_as(3, third).await;
            scene.reads_as(4, fourth).await;
            scene.reads_as(5, 1).await;
            // What is in the file still is the old disk, entry by entry.
            let judged = judge(&scene.setup, &scene.file()).unwrap();
            judged.no_errors().unwrap();
            let at = |cluster: usize| judged.contents[cluster * 4096];
            assert_eq!([at(3), at(4), at(5)], [7, 8, 1]);
            scene.fault.clear();
            // Nothing that was acknowledged is lost.
            scene.fill(6, 2).await.unwrap();
            scene.node.flush().await.unwrap();
            scene.close(&[(3, third), (4, fourth), (5, 1), (6, 2)]).await;
        });
    }
}

#[test]
fn closing_says_what_could_not_be_written_and_loses_nothing() {
    Exec::run(6, |_| async move {
        let scene = Scene::new(empty(CACHED), &[]).await;
        scene.fill(0, 1).await.unwrap();
        scene.fault.add(Rule::new(Kind::Write));
        let driver = Arc::clone(scene.node.driver());
        assert_eq!(Arc::clone(&driver).close().await, Err(Error::IO));
        scene.fault.clear();
        driver.close().await.unwrap();
        scene.close(&[(0, 1)]).await;
    });
}

/// With requests in blocks nothing is read for a compressed write, and a host cluster is written once.
#[test]
fn aligned_files_get_whole_host_clusters_and_no_reads() {
    Exec::run(7, |_| async move {
        let mut setup = setup("64k by pages");
        setup.shape.size = 16 << 20;
        let scene = Scene::new(setup, &[]).await;
        scene.fill(0, 1).await.unwrap();
        scene.node.flush().await.unwrap();
        scene.record.take();
        let pieces = (1..16u64).map(|n| async move {
            let range = ByteRange::new(n << 20, 1 << 20).unwrap();
            // Half of it is noise, which makes compressed clusters of half a cluster.
            let mut bytes = vec![3; 1 << 20];
            for (at, cluster) in bytes.chunks_mut(1 << 16).enumerate() {
                cluster[..1 << 15].copy_from_slice(&noise(1 << 15, n * 16 + at as u64));
            }
            (range, bytes)
        });
        for (range, bytes) in join_all(pieces).await {
            scene.write(range, &bytes).await.unwrap();
            assert!(scene.read(range).await == bytes);
        }
        scene.record.take();
        for n in 1..16u64 {
            let range = ByteRange::new(n << 20, 1 << 20).unwrap();
            let mut bytes = vec![4; 1 << 20];
            for (at, cluster) in bytes.chunks_mut(1 << 16).enumerate() {
                cluster[..1 << 15].copy_from_slice(&noise(1 << 15, 999 * n + at as u64));
            }
            scene.write(range, &bytes).await.unwrap();
        }
        let calls = scene.record.take();
        let count = |kind| calls.iter().filter(|call| call.kind == kind).count();
        let payload = 15 * 16 * ((1 << 15) + 60);
        let hosts = (payload >> 16) + 1;
        assert_eq!(count(Kind::Read), 0, "{calls:?}");
        assert!(count(Kind::Write) * 10 <= hosts * 11, "{} for {hosts}", count(Kind::Write));
        assert!(count(Kind::Write) + 2 >= hosts, "they were written before any flush");
        scene.node.flush().await.unwrap();
        scene.close(&[(0, 1)]).await;
    });
}

#[test]
fn what_is_only_in_the_cache_is_read_from_there() {
    Exec::run(8, |_| async move {
        let scene = Scene::new(empty(CACHED), &[]).await;
        scene.record.take();
        for cluster in 0..8 {
            scene.fill(cluster, 50 + u8::try_from(cluster).unwrap()).await.unwrap();
        }
        let parts = |range: ByteRange| [range.split_at(512).0, range.split_at(1024).1, range];
        for cluster in 0..8 {
            for part in parts(scene.whole(cluster)) {
                let read = scene.read(part).await;
                assert!(read.iter().all(|b| u64::from(*b) == 50 + cluster));
            }
        }
        let all = scene.read(ByteRange::up_to(8 * CLUSTER)).await;
        assert!((0..8).all(|n| all[n * 4096] == 50 + u8::try_from(n).unwrap()));
        assert_eq!(scene.record.count(Kind::Write), 0, "and nothing was written yet");
        // A part of such a cluster is rewritten: what stays is taken from the cache.
        let part = ByteRange::new(3 * CLUSTER + 512, 512).unwrap();
        let iov = io_vec(&[9; 512], Alignment::ONE, 1);
        scene.node.write(part, iov, RequestFlags::empty()).await.unwrap();
        let read = scene.read(scene.whole(3)).await;
        assert_eq!([read[0], read[512], read[1024], read[4095]], [53, 9, 53, 53]);
        scene.node.flush().await.unwrap();
        scene.close(&[(2, 52), (4, 54)]).await;
    });
}

/// A host cluster whose compressed clusters are all discarded is given out again: what waited to be
/// written to it must not be.
#[test]
fn what_was_discarded_is_not_written_over_what_came_after() {
    Exec::run(9, |_| async move {
        let scene = Scene::new(empty(CACHED), &[]).await;
        for round in 0..6u8 {
            for cluster in 0..20 {
                scene.fill(cluster, 10 + round).await.unwrap();
            }
            let all = ByteRange::up_to(20 * CLUSTER);
            scene.node.discard(all).await.unwrap();
            // Two flushes: the tables, then the freed clusters.
            scene.node.flush().await.unwrap();
            scene.node.flush().await.unwrap();
            scene.node.flush().await.unwrap();
            for cluster in 20..28 {
                let range = scene.whole(cluster);
                let iov = io_vec(&vec![100 + round; 4096], Alignment::PAGE, 1);
                scene.node.write(range, iov, RequestFlags::empty()).await.unwrap();
            }
            scene.node.flush().await.unwrap();
            for cluster in 20..28 {
                scene.reads_as(cluster, 100 + round).await;
            }
        }
        scene.close(&[(0, 0), (19, 0), (20, 105), (27, 105)]).await;
    });
}

/// The last compressed cluster of the host cluster that is being filled is freed, and its space is punched
/// out: what is written meanwhile goes elsewhere.
#[test]
fn a_punch_that_comes_late_hits_nothing_new() {
    for options in BOTH {
        Exec::run(11, |exec| async move {
            let scene = Arc::new(Scene::new(empty(options), &[]).await);
            scene.fill(0, 1).await.unwrap();
            scene.node.flush().await.unwrap();
            scene.node.discard(scene.whole(0)).await.unwrap();
            scene.hold.hold(Point::Before, |call| call.kind == Kind::Discard);
            let flusher = Arc::clone(&scene);
            let flushes = exec.spawn("flushes", async move {
                for cluster in 40..46 {
                    let iov = io_vec(&[7; 4096], Alignment::PAGE, 1);
                    let range = flusher.whole(cluster);
                    flusher.node.write(range, iov, RequestFlags::empty()).await.unwrap();
                    flusher.node.flush().await.unwrap();
                }
            });
            assert_eq!(scene.hold.arrived(1).await.len(), 1, "the punch is on its way");
            scene.fill(1, 9).await.unwrap();
            scene.hold.stop_holding();
            scene.hold.release_all();
            flushes.await;
            scene.node.flush().await.unwrap();
            scene.reads_as(1, 9).await;
            graph::close(&scene.node).await.unwrap();
            let judged = judge(&scene.setup, &scene.file()).unwrap();
            judged.clean().unwrap();
            assert!(judged.contents[4096..8192].iter().all(|b| *b == 9));
        });
    }
}

/// A flush waits for what others are writing of the cache: its promise covers all that was acknowledged.
#[test]
fn a_flush_waits_for_host_clusters_that_others_write() {
    for seed in 0..8 {
        Exec::run(seed, |exec| async move {
            let mut setup = empty(CACHED);
            setup.shape.size = 640 * CLUSTER;
            let scene = Arc::new(Scene::new(setup, &[]).await);
            scene
                .hold
                .hold(Point::Before, |call| call.kind == Kind::Write && call.label == Some(1));
            let writer = Arc::clone(&scene);
            let writes = exec.spawn_labelled(1, "writes", async move {
                // Three quarters of each cluster is noise: the second fills the first host cluster.
                for cluster in 0..2 {
                    let mut bytes = vec![1; 4096];
                    bytes[..3072].copy_from_slice(&noise(3072, cluster));
                    writer.write(writer.whole(cluster), &bytes).await.unwrap();
                }
            });
            assert_eq!(scene.hold.arrived(1).await.len(), 1, "a host cluster is on its way");
            let flusher = Arc::clone(&scene);
            let done = Arc::new(AtomicBool::new(false));
            let seen = Arc::clone(&done);
            let flush = exec.spawn("flush", async move {
                let flushed = flusher.node.flush().await;
                done.store(true, Ordering::Relaxed);
                flushed
            });
            exec.sleep(std::time::Duration::from_secs(1)).await;
            assert!(!seen.load(Ordering::Relaxed), "it waits");
            scene.hold.stop_holding();
            scene.hold.release_all();
            flush.await.unwrap();
            writes.await;
            let judged = judge(&scene.setup, &scene.file()).unwrap();
            assert_eq!(judged.contents[4095], 1, "the first one was acknowledged");
            graph::close(&scene.node).await.unwrap();
            judge(&scene.setup, &scene.file()).unwrap().clean().unwrap();
        });
    }
}

/// The entry of a compressed cluster has fewer bits for the offset than that of a plain one.
#[test]
fn a_place_too_far_for_a_compressed_cluster_holds_a_plain_one() {
    let mut setup = empty(UNCACHED);
    setup.shape.cluster_bits = 21;
    setup.shape.refcount_order = 6;
    setup.shape.size = 8 << 20;
    let cluster = setup.shape.cluster_size();
    let mut file = setup.make().file;
    let word = |file: &[u8], at: usize| u64::from_be_bytes(file[at..at + 8].try_into().unwrap());
    let table = kit::index(word(&file, 48));
    let block = kit::index(word(&file, table));
    // All that the first block counts is in use, and the next block counts what is behind 512 TiB.
    file[block..block + kit::index(cluster)].copy_from_slice(&1u64.to_be_bytes().repeat(1 << 18));
    let far = (file.len() as u64).to_be_bytes();
    file.resize(file.len() + kit::index(cluster), 0);
    file[table + 1100 * 8..table + 1101 * 8].copy_from_slice(&far);
    let node = block_on(World::new(&setup, kit::memory(&file), None).open()).unwrap();
    for (at, byte) in [(0, 7), (cluster, 8)] {
        let range = ByteRange::new(at, cluster).unwrap();
        let bytes = vec![byte; kit::index(cluster)];
        let iov = io_vec(&bytes, Alignment::PAGE, 1);
        block_on(node.write(range, iov, RequestFlags::COMPRESSED)).unwrap();
        let buf = IoBuf::zeroed(kit::index(cluster), Alignment::PAGE).unwrap();
        block_on(node.read(range, buf.clone().into())).unwrap();
        assert!(buf.to_vec() == bytes, "cluster at {at:#x}");
    }
    block_on(graph::close(&node)).unwrap();
}
