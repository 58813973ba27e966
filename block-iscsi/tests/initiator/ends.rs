//! How sessions, commands and attempts end.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use block_core::io::exec;
use block_core::{Alignment, IoBuf};
use block_iscsi::initiator::Initiator;
use block_iscsi::login::SessionTarget;
use block_iscsi::nexus::{Command, Nexus, TaskError};
use block_iscsi::scsi::luns::Lun;
use block_iscsi::session::{Awaited, ConnectionError, SessionError};

use crate::kit::{BLOCK, config, everywhere, read, server, tcp, write, write_command};

#[test]
fn a_dropped_command_runs_to_its_end_and_leaves_room() {
    everywhere(|server, place| async move {
        let initiator = place.connect(config(&server)).await.unwrap();
        read(&initiator, 0, BLOCK).await.unwrap();
        for i in 0..100u8 {
            let buf = IoBuf::zeroed(BLOCK, Alignment::PAGE).unwrap();
            buf.fill(i);
            let (cdb, data) = write_command(u64::from(i), buf.clone());
            let lun = Lun::from_number(0).unwrap();
            let command =
                Command { lun, cdb: cdb.encode(), data, replay: cdb.replay(), session: None };
            let mut future = initiator.execute(command);
            let _polled = futures::poll!(&mut future);
            drop(future);
            // Its place, or another one, is used by the next command.
            if i % 7 == 0 {
                read(&initiator, 0, BLOCK).await.unwrap();
            }
        }
        initiator.close().await;
        let mapped = |lba| server.with(|target| target.device().is_mapped(0, lba));
        assert!((0..100).all(mapped), "a dropped write did not run");
    });
}

#[test]
fn closing_waits_for_what_is_under_way_and_takes_nothing_more() {
    everywhere(|server, place| async move {
        let initiator = Arc::new(place.connect(config(&server)).await.unwrap());
        read(&initiator, 0, BLOCK).await.unwrap();
        let last = write(&initiator, 5, &[5; 64 * BLOCK]);
        let mut last = std::pin::pin!(last);
        let polled = futures::poll!(&mut last);
        initiator.close().await;
        if polled.is_pending() {
            assert_eq!(last.await, Ok(()));
        }
        assert_eq!(initiator.ended(), Some(SessionError::Closed));
        assert_eq!(read(&initiator, 0, BLOCK).await, Err(TaskError::Ended));
        // Again is no harm.
        initiator.close().await;
    });
}

#[test]
fn dropping_an_initiator_ends_its_session() {
    everywhere(|server, place| async move {
        let initiator = place.connect(config(&server)).await.unwrap();
        read(&initiator, 0, BLOCK).await.unwrap();
        assert_eq!(server.connections(), 1);
        drop(initiator);
    });
}

#[test]
fn commands_end_when_nobody_moves_the_session_on_any_more() {
    let server = server();
    let (initiator, pump) = Initiator::new(config(&server), tcp()).unwrap();
    futures::executor::block_on(async {
        let command = read(&initiator, 0, BLOCK);
        let mut command = std::pin::pin!(command);
        assert!(futures::poll!(&mut command).is_pending());
        drop(pump);
        assert_eq!(command.await, Err(TaskError::Ended));
        assert_eq!(read(&initiator, 0, BLOCK).await, Err(TaskError::Ended));
        assert_eq!(initiator.opened().await, Err(SessionError::Closed));
        initiator.close().await;
    });
}

#[test]
fn commands_before_the_first_login_wait_for_it() {
    let server = server();
    let (initiator, pump) = Initiator::new(config(&server), tcp()).unwrap();
    exec::block_on(async {
        let work = async {
            let bytes = read(&initiator, 0, BLOCK).await.unwrap();
            assert_eq!(bytes, [0; BLOCK]);
            initiator.close().await;
        };
        futures::join!(work, pump);
    });
}

#[test]
fn a_session_that_cannot_be_had_says_why() {
    everywhere(|server, place| async move {
        let mut unknown = config(&server);
        unknown.target = SessionTarget::Normal("iqn.2026-01.org.example:other".to_owned());
        let error = place.connect(unknown).await.err().unwrap();
        assert!(matches!(error, SessionError::Login(_)), "{error:?}");
        let mut nobody = config(&server);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        nobody.portal.port = listener.local_addr().unwrap().port();
        drop(listener);
        let error = place.connect(nobody).await.err().unwrap();
        let SessionError::Connection(ConnectionError::Io { kind, .. }) = error else {
            panic!("{error:?}")
        };
        assert_eq!(kind, std::io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn a_target_that_says_nothing_is_given_up_in_time() {
    everywhere(|server, place| async move {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut config = config(&server);
        config.portal.port = silent.local_addr().unwrap().port();
        config.patience.login = Duration::from_millis(100);
        let start = Instant::now();
        let error = place.connect(config).await.err();
        assert_eq!(error, Some(SessionError::TimedOut(Awaited::Login)));
        assert!((100..5000).contains(&start.elapsed().as_millis()));
    });
}
