//! Promises of the initiator on a network: the same bytes on every executor, nothing lost with a lost
//! connection, and an end to everything.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test fails by panicking")]

mod ends;
mod kit;
mod loss;
mod still;

use std::sync::Arc;

use block_iscsi::initiator::{Initiator, discover};
use block_iscsi::keys::DigestKind;
use block_iscsi::nexus::Nexus;
use block_iscsi::scsi::luns::Lun;
use block_testkit::iscsi::target::Moved;
use futures::stream::{FuturesUnordered, StreamExt};
use kit::{BLOCK, NAME, config, everywhere, read, server, tcp, with_digests, write};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Writes all over a part of the disk, many commands at a time, and reads it back.
async fn writes_then_reads(initiator: &Initiator, rng: &mut SmallRng, lens: &[usize]) {
    let mut lba = 0;
    let mut pieces = Vec::new();
    for len in lens {
        let mut bytes = vec![0; len * BLOCK];
        rng.fill(&mut bytes[..]);
        pieces.push((lba, bytes));
        lba += u64::try_from(*len).unwrap();
    }
    let writes = pieces.iter().map(|(lba, bytes)| write(initiator, *lba, bytes));
    let mut writes: FuturesUnordered<_> = writes.collect();
    while let Some(written) = writes.next().await {
        written.unwrap();
    }
    let reads = pieces.iter().map(|(lba, bytes)| read(initiator, *lba, bytes.len()));
    let read = futures::future::join_all(reads).await;
    for ((lba, bytes), read) in pieces.iter().zip(read) {
        assert!(read.unwrap() == *bytes, "block {lba} and those behind it");
    }
}

#[test]
fn many_commands_at_once_keep_their_data_apart_wherever_they_run() {
    let seed = rand::random();
    println!("seed {seed}");
    everywhere(|server, place| async move {
        let mut rng = SmallRng::seed_from_u64(seed);
        let initiator = place.connect(config(&server)).await.unwrap();
        let lens: Vec<_> = (0..300).map(|_| rng.random_range(1..=16)).collect();
        writes_then_reads(&initiator, &mut rng, &lens).await;
        // Longer than what comes unasked, than a PDU, than a burst.
        writes_then_reads(&initiator, &mut rng, &[200, 1, 700, 2000, 3, 4096]).await;
        initiator.close().await;
    });
}

#[test]
fn digests_cover_what_is_sent_and_received() {
    let server = server();
    block_core::io::exec::block_on(async {
        let initiator = Initiator::connect(with_digests(config(&server)), tcp()).await.unwrap();
        let negotiated = initiator.negotiated().unwrap();
        let digests = (negotiated.header_digest, negotiated.data_digest);
        assert_eq!(digests, (DigestKind::Crc32c, DigestKind::Crc32c));
        let mut rng = SmallRng::seed_from_u64(1);
        writes_then_reads(&initiator, &mut rng, &[1, 8, 64, 3000, 5, 1]).await;
        initiator.close().await;
    });
}

#[test]
fn commands_of_several_threads_go_over_one_session() {
    let server = server();
    let initiator = futures::executor::block_on(Initiator::connect(config(&server), tcp()));
    let initiator = Arc::new(initiator.unwrap());
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let initiator = Arc::clone(&initiator);
            scope.spawn(move || {
                let work = async {
                    for i in 0..50u8 {
                        let lba = u64::from(thread) * 1000 + u64::from(i);
                        write(&initiator, lba, &[thread * 50 + i; BLOCK]).await.unwrap();
                        let back = read(&initiator, lba, BLOCK).await.unwrap();
                        assert_eq!(back, [thread * 50 + i; BLOCK]);
                    }
                };
                // Half of them wait in their own ring.
                if thread % 2 == 0 {
                    block_core::io::exec::block_on(work);
                } else {
                    futures::executor::block_on(work);
                }
            });
        }
    });
    assert_eq!(server.connections(), 1);
    futures::executor::block_on(initiator.close());
}

#[test]
fn a_unit_is_reset_between_commands() {
    let server = server();
    block_core::io::exec::block_on(async {
        let initiator = Initiator::connect(config(&server), tcp()).await.unwrap();
        write(&initiator, 0, &[1; BLOCK]).await.unwrap();
        initiator.reset(Lun::from_number(0).unwrap()).await.unwrap();
        assert_eq!(read(&initiator, 0, BLOCK).await.unwrap(), [1; BLOCK]);
        assert!(initiator.depth() > 1);
    });
}

#[test]
fn discovery_tells_the_targets_and_leaves() {
    everywhere(|server, place| async move {
        let targets = discover(config(&server), place.connector).await.unwrap();
        let [target] = targets.as_slice() else { panic!("{targets:?}") };
        assert_eq!(target.name, NAME);
        assert_eq!(target.addresses[0].portal.port, server.addr().port());
    });
}

#[test]
fn a_login_follows_a_target_that_has_moved() {
    let (old, new) = (server(), server());
    let address = new.addr().to_string();
    old.with(|target| target.config().moved = Some(Moved::Temporarily(address)));
    block_core::io::exec::block_on(async {
        let initiator = Initiator::connect(config(&old), tcp()).await.unwrap();
        write(&initiator, 7, &[9; BLOCK]).await.unwrap();
        initiator.close().await;
    });
    assert!(new.with(|target| target.device().is_mapped(0, 7)));
}
