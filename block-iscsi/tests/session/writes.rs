//! Data of writes: with the command, unasked, asked for.

use block_iscsi::pdu::Request;
use block_iscsi::pdu::data::{DataOut, Sequence};
use block_iscsi::pdu::scsi::{Direction, Unsolicited};
use block_iscsi::serial::Serial;
use block_iscsi::session::{SessionConfig, SessionEvent};

use crate::peer::{KEYS, Peer, config, pattern, write};

/// Data segments of 1024 bytes, 2048 bytes unasked, and the data digest on demand.
fn keys(initial_r2t: &'static str, immediate: &'static str) -> Vec<(&'static str, &'static str)> {
    let replaced = KEYS.iter().map(|(key, value)| match *key {
        "InitialR2T" => (*key, initial_r2t),
        "ImmediateData" => (*key, immediate),
        _ => (*key, *value),
    });
    replaced.collect()
}

fn hear_data(peer: &mut Peer) -> (DataOut, Vec<u8>) {
    match peer.hear() {
        (Request::DataOut(pdu), data) => (pdu, data),
        other => panic!("{other:?}"),
    }
}

fn digests() -> (SessionConfig, Vec<(&'static str, &'static str)>) {
    let mut config = config();
    config.offer.header_digest = vec![block_iscsi::keys::DigestKind::Crc32c];
    config.offer.data_digest = vec![block_iscsi::keys::DigestKind::Crc32c];
    let mut keys = keys("No", "Yes");
    keys[0].1 = "CRC32C";
    keys[1].1 = "CRC32C";
    (config, keys)
}

#[test]
fn a_command_carries_and_is_followed_by_what_was_agreed_on() {
    let cases = [
        (config(), keys("Yes", "Yes"), 1024, 0),
        (config(), keys("No", "Yes"), 1024, 1024),
        (config(), keys("No", "No"), 0, 2048),
        (config(), keys("Yes", "No"), 0, 0),
        (digests().0, digests().1, 1024, 1024),
    ];
    for (config, keys, immediate, unsolicited) in cases {
        let mut peer = Peer::up(config, &keys);
        let bytes = pattern(6144);
        let id = peer.submit(write(&bytes));
        let (sent, data) = peer.hear_command();
        let follows = if unsolicited > 0 { Unsolicited::Follows } else { Unsolicited::None };
        assert_eq!((sent.direction, sent.expected_len), (Direction::Write(follows), 6144));
        assert_eq!(data, bytes[..immediate]);
        let mut at = immediate;
        let mut sn = 0;
        while at < immediate + unsolicited {
            let (pdu, data) = hear_data(&mut peer);
            assert_eq!((pdu.target_tag, pdu.data_sn), (None, Serial::new(sn)));
            assert_eq!(data, bytes[at..at + 1024]);
            at += 1024;
            let ends = at == immediate + unsolicited;
            assert_eq!(pdu.sequence == Sequence::Ends, ends);
            sn += 1;
        }
        peer.hear_nothing();
        // The rest is asked for, in two bursts at the same time.
        let asked = u32::try_from(at).unwrap();
        peer.ask(sent.task_tag, 0, asked, 2100);
        peer.ask(sent.task_tag, 1, asked + 2100, 6144 - asked - 2100);
        peer.listen();
        let mut got = vec![0; 6144];
        let mut ends = 0;
        let mut next = at;
        while let Some((request, data)) = peer.heard.pop_front() {
            let Request::DataOut(pdu) = request else { panic!("{request:?}") };
            assert!(data.len() <= 1024);
            assert_eq!(pdu.lun, [0, 5, 0, 0, 0, 0, 0, 0]);
            let offset = usize::try_from(pdu.buffer_offset).unwrap();
            // In the order in which it was asked for.
            assert_eq!(offset, next);
            next += data.len();
            let tag = if offset < at + 2100 { 100 } else { 101 };
            assert_eq!(pdu.target_tag, Some(tag));
            got[offset..offset + data.len()].copy_from_slice(&data);
            ends += usize::from(pdu.sequence == Sequence::Ends);
        }
        assert!(ends == 2 && got[at..] == bytes[at..]);
        peer.say_status(sent.task_tag, 0, &[]);
        assert_eq!(peer.events(), [SessionEvent::Done(id)]);
    }
}

/// Two writes of four pieces: what the first sends unasked comes before what the second does.
#[test]
fn unasked_data_goes_in_the_order_of_the_commands() {
    let mut keys = keys("No", "No");
    keys.iter_mut().filter(|(key, _)| *key == "FirstBurstLength").for_each(|key| key.1 = "4096");
    let mut peer = Peer::up(config(), &keys);
    let ids = [peer.submit(write(&pattern(4096))), peer.submit(write(&pattern(4096)))];
    peer.listen();
    let mut order = Vec::new();
    for (request, _) in peer.heard.drain(..) {
        match request {
            Request::DataOut(pdu) => order.push(pdu.task_tag),
            Request::ScsiCommand(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((order.len(), ids.len()), (8, 2));
    assert!(order[..4].iter().all(|tag| *tag == order[0]), "{order:x?}");
    assert!(order[4..].iter().all(|tag| *tag == order[4]) && order[0] != order[4]);
}

/// A write that ends early sends no more data.
#[test]
fn a_write_that_has_ended_sends_nothing_more() {
    let mut peer = Peer::up(config(), KEYS);
    let id = peer.submit(write(&pattern(6144)));
    let (sent, _) = peer.hear_command();
    peer.ask(sent.task_tag, 0, 1024, 4096);
    peer.say_status(sent.task_tag, 8, &[]);
    assert_eq!(peer.events(), [SessionEvent::Done(id)]);
    peer.hear_nothing();
}

#[test]
fn a_closed_window_holds_commands_back() {
    let mut peer = Peer::up(config(), KEYS);
    peer.window = 2;
    let first = peer.submit(write(&pattern(512)));
    let (sent, _) = peer.hear_command();
    peer.say_status(sent.task_tag, 0, &[]);
    // The window only ever grows: 32 were promised at the login, one was used.
    let ids: Vec<_> = (0..40).map(|_| peer.submit(write(&pattern(512)))).collect();
    peer.listen();
    assert_eq!(peer.heard.len(), 31);
    let mut done = 1;
    while let Some((request, _)) = peer.heard.pop_front() {
        let Request::ScsiCommand(command) = request else { panic!("{request:?}") };
        peer.exp_cmd_sn = command.serials.cmd_sn.next();
        peer.say_status(command.task_tag, 0, &[]);
        done += 1;
        peer.listen();
    }
    assert_eq!(done, 41);
    let events = peer.events();
    assert_eq!(events.len(), 41);
    assert_eq!(events[0], SessionEvent::Done(first));
    assert!(ids.iter().all(|id| events.contains(&SessionEvent::Done(*id))));
}
