//! Connections that are lost while there is much to do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use block_core::io::exec;
use block_iscsi::initiator::Initiator;
use block_iscsi::nexus::{Nexus, NexusEvent};
use block_testkit::iscsi::serve::{Mischief, Server};
use futures::future::join_all;
use parking_lot::Mutex;

use crate::kit::{BLOCK, config, eventually, everywhere, read, server, target, tcp, write};

/// Writes and reads blocks of its own until `stop`, and counts. Nothing may fail.
async fn load(initiator: &Initiator, lane: u64, stop: &AtomicBool, count: &AtomicU64) {
    let mut round = 0u8;
    while !stop.load(Ordering::Relaxed) {
        round = round.wrapping_add(1);
        let lba = lane * 64 + u64::from(round % 8) * 8;
        write(initiator, lba, &[round; 8 * BLOCK]).await.unwrap();
        let back = read(initiator, lba, 8 * BLOCK).await.unwrap();
        assert!(back.iter().all(|byte| *byte == round), "lane {lane}, round {round}");
        count.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn no_command_fails_while_connections_are_cut() {
    everywhere(|server, place| async move {
        let initiator = place.connect(config(&server)).await.unwrap();
        let reinstated = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&reinstated);
        initiator.listen(Arc::new(move |event| match event {
            NexusEvent::Reinstated => drop(seen.fetch_add(1, Ordering::Relaxed)),
            // The target says that there is a new session, too.
            NexusEvent::Sense { .. } => {}
            NexusEvent::Reset { .. } => panic!("{event:?}"),
        }));
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let cutter = {
            let (stop, count, reinstated) = (stop.clone(), count.clone(), reinstated.clone());
            std::thread::spawn(move || {
                for cut in 1..=5 {
                    let before = count.load(Ordering::Relaxed);
                    eventually("commands run", || count.load(Ordering::Relaxed) > before + 20);
                    server.cut();
                    eventually("it is back", || reinstated.load(Ordering::Relaxed) >= cut);
                }
                stop.store(true, Ordering::Relaxed);
            })
        };
        join_all((0..8).map(|lane| load(&initiator, lane, &stop, &count))).await;
        cutter.join().unwrap();
        assert!(reinstated.load(Ordering::Relaxed) >= 5);
    });
}

#[test]
fn commands_wait_for_a_target_that_is_away_and_go_on_soon_after() {
    for away in [200, 1500] {
        let server = server();
        let address = server.addr();
        let config = config(&server);
        let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let (stop, count) = (&stop, &count);
            let restarted = scope.spawn(move || {
                eventually("commands run", || count.load(Ordering::Relaxed) > 20);
                let target = server.stop();
                std::thread::sleep(Duration::from_millis(away));
                let before = count.load(Ordering::Relaxed);
                let server = Server::start_at(address, target, Mischief::default()).unwrap();
                let back = Instant::now();
                eventually("commands run again", || count.load(Ordering::Relaxed) > before);
                let time = back.elapsed();
                stop.store(true, Ordering::Relaxed);
                (server, time)
            });
            exec::block_on(async {
                let initiator = Initiator::connect(config, tcp()).await.unwrap();
                join_all((0..8).map(|lane| load(&initiator, lane, stop, count))).await;
            });
            // The target is there until the last command has ended.
            let (_server, time) = restarted.join().unwrap();
            assert!(time < Duration::from_millis(500), "back after {time:?}");
        });
    }
}

#[test]
fn a_listener_hears_of_a_new_session_before_the_commands_of_it_end() {
    let server = server();
    exec::block_on(async {
        let initiator = Initiator::connect(config(&server), tcp()).await.unwrap();
        read(&initiator, 0, BLOCK).await.unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let list = Arc::clone(&heard);
        initiator.listen(Arc::new(move |event| list.lock().push(event.clone())));
        for cuts in 1..=3 {
            server.cut();
            eventually("it is cut", || server.connections() == 0);
            read(&initiator, 0, BLOCK).await.unwrap();
            let heard = heard.lock();
            assert_eq!(heard.len(), 2 * cuts);
            for both in heard.chunks(2) {
                let [NexusEvent::Reinstated, NexusEvent::Sense { lun, sense }] = both else {
                    panic!("{both:?}")
                };
                // The attention that the first command of the new session met.
                assert_eq!((lun.number(), sense[2], sense[12]), (Some(0), 6, 0x29));
            }
        }
    });
}

#[test]
fn a_target_that_cuts_every_connection_after_some_commands_is_used_all_the_same() {
    let mischief = Mischief { cut_after: Some(20) };
    let server = Server::start_at("127.0.0.1:0", target(), mischief).unwrap();
    exec::block_on(async {
        let initiator = Initiator::connect(config(&server), tcp()).await.unwrap();
        for i in 0..30u8 {
            let lba = u64::from(i);
            write(&initiator, lba, &[i; BLOCK]).await.unwrap();
            assert_eq!(read(&initiator, lba, BLOCK).await.unwrap(), [i; BLOCK]);
        }
    });
}
