//! Targets that break the protocol: the error names the field, and no byte lands outside of the buffers.

use block_iscsi::nexus::TaskError;
use block_iscsi::pdu::bhs::Opcode;
use block_iscsi::pdu::data::ReadyToTransfer;
use block_iscsi::pdu::{Pdu, PduError};
use block_iscsi::serial::Serial;
use block_iscsi::session::{SessionError, SessionEvent, Violation};
use proptest::prelude::*;

use crate::peer::{KEYS, Peer, buffer, config, pattern, read, write};

/// What the connection was given up for.
fn violation(peer: &mut Peer) -> Violation {
    let events = peer.events();
    let violation = events.iter().find_map(|event| match event {
        SessionEvent::Down(SessionError::Violation(violation)) => Some(violation.clone()),
        _ => None,
    });
    violation.unwrap_or_else(|| panic!("{events:?}"))
}

fn field_of(violation: &Violation) -> &'static str {
    match violation {
        Violation::Mismatch { field, .. } | Violation::Beyond { field, .. } => field,
        other => panic!("{other:?}"),
    }
}

#[test]
fn data_that_does_not_follow_is_refused() {
    // Number, place and length of a Data-In that should be number 1 and have the second half.
    let cases = [
        (2, 512, 512, "DataSN"),
        (0, 512, 512, "DataSN"),
        (1, 0, 512, "Buffer Offset"),
        (1, 1024, 512, "Buffer Offset"),
        (1, 513, 511, "Buffer Offset"),
        (1, 512, 513, "DataSegmentLength"),
        (1, 512, 100_000, "DataSegmentLength"),
    ];
    for (sn, at, len, field) in cases {
        let mut peer = Peer::up(config(), KEYS);
        let guarded = buffer(4096);
        let id = peer.submit(read(&guarded.slice(1024, 1024)));
        let tag = peer.hear_command().0.task_tag;
        peer.data_in(tag, 0, 0, &[1; 512], false);
        let pdu = peer.data_in_pdu(tag, sn, at, &vec![2; len], true);
        let bytes = peer.encode(&pdu.into(), &vec![2; len]);
        // Only the header: the data would be received by nobody.
        peer.say_bytes(&bytes[..48]);
        assert_eq!(field_of(&violation(&mut peer)), field);
        let mut expected = vec![0; 4096];
        expected[1024..1536].fill(1);
        assert_eq!(guarded.to_vec(), expected);
        assert_eq!(peer.result(id), None, "it will be tried again");
    }
}

#[test]
fn what_belongs_to_no_task_is_refused() {
    type Say = fn(&mut Peer, u32);
    let cases: [(Say, Opcode); 4] = [
        (|peer, tag| peer.data_in(tag ^ 1, 0, 0, &[1; 512], true), Opcode::DataIn),
        (|peer, tag| peer.say_status(tag ^ 1, 0, &[]), Opcode::ScsiResponse),
        (|peer, tag| peer.ask(tag ^ 1, 0, 0, 512), Opcode::ReadyToTransfer),
        // A read is asked for data.
        (|peer, tag| peer.ask(tag, 0, 0, 512), Opcode::ReadyToTransfer),
    ];
    for (say, expected) in cases {
        let mut peer = Peer::up(config(), KEYS);
        let buf = buffer(512);
        peer.submit(read(&buf));
        let tag = peer.hear_command().0.task_tag;
        say(&mut peer, tag);
        match violation(&mut peer) {
            Violation::Task { opcode, .. } => assert_eq!(opcode, expected),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_belongs_to_a_task_that_has_ended_is_refused() {
    let mut peer = Peer::up(config(), KEYS);
    let tags = [0, 1].map(|_| {
        let id = peer.submit(write(&pattern(512)));
        let tag = peer.hear_command().0.task_tag;
        peer.say_status(tag, 0, &[]);
        assert!(matches!(peer.result(id), Some(Ok(_))));
        tag
    });
    let buf = buffer(512);
    peer.submit(read(&buf));
    // Every one of them has had the same place.
    let now = peer.hear_command().0.task_tag;
    assert!(tags[0] < tags[1] && tags[1] < now, "{tags:x?}, then {now:x}");
    peer.data_in(tags[1], 0, 0, &[1; 512], true);
    assert!(matches!(violation(&mut peer), Violation::Task { opcode: Opcode::DataIn, .. }));
}

#[test]
fn a_status_number_that_is_not_the_next_is_refused() {
    for skew in [1, u32::MAX] {
        let mut peer = Peer::up(config(), KEYS);
        peer.submit(write(&pattern(512)));
        let tag = peer.hear_command().0.task_tag;
        peer.stat_sn = peer.stat_sn.plus(skew);
        peer.say_status(tag, 0, &[]);
        assert_eq!(field_of(&violation(&mut peer)), "StatSN");
    }
}

#[test]
fn requests_for_data_are_checked() {
    type Asked = &'static [(u32, u32, u32)];
    let r2ts: [(Asked, &str); 5] = [
        (&[(1, 1024, 1024)], "R2TSN"),
        (&[(0, 0, 1024)], "Buffer Offset"),
        (&[(0, 1024, 4097)], "Desired Data Transfer Length"),
        (&[(0, 1024, 4096), (1, 5120, 1025)], "Desired Data Transfer Length"),
        (&[(0, 1024, 512), (1, 1536, 512), (2, 2048, 512)], "MaxOutstandingR2T"),
    ];
    for (asked, field) in r2ts {
        let mut peer = Peer::up(config(), KEYS);
        peer.submit(write(&pattern(6144)));
        let tag = peer.hear_command().0.task_tag;
        for (sn, at, len) in asked {
            peer.ask(tag, *sn, *at, *len);
        }
        assert_eq!(field_of(&violation(&mut peer)), field);
    }
}

#[test]
fn a_pdu_that_is_too_long_is_refused_before_it_is_there() {
    let mut peer = Peer::up(config(), KEYS);
    let buf = buffer(512);
    peer.submit(read(&buf));
    let tag = peer.hear_command().0.task_tag;
    let pdu = peer.data_in_pdu(tag, 0, 0, &vec![0; (1 << 18) + 1], true);
    peer.say_bytes(&pdu.to_bytes());
    let limit = 1 << 18;
    let expected = Violation::Pdu(PduError::DataTooLong { len: limit + 1, limit });
    assert_eq!(violation(&mut peer), expected);
}

#[test]
fn a_digest_that_does_not_fit_ends_the_connection_and_the_read_starts_anew() {
    let keys = [("HeaderDigest", "CRC32C"), ("DataDigest", "CRC32C"), ("InitialR2T", "Yes")];
    let mut config = config();
    config.offer.header_digest = vec![block_iscsi::keys::DigestKind::Crc32c];
    config.offer.data_digest = vec![block_iscsi::keys::DigestKind::Crc32c];
    for flipped in [10, 50, 60, 48 + 4 + 512 + 1] {
        let mut peer = Peer::up(config.clone(), &keys);
        let buf = buffer(512);
        let id = peer.submit(read(&buf));
        let tag = peer.hear_command().0.task_tag;
        let pdu = peer.data_in_pdu(tag, 0, 0, &[3; 512], true);
        let mut bytes = peer.encode(&pdu.into(), &[3; 512]);
        bytes[flipped] ^= 0x40;
        peer.say_bytes(&bytes);
        assert!(matches!(violation(&mut peer), Violation::Digest(_)), "{flipped}");
        assert_eq!(peer.result(id), None);
    }
}

#[test]
fn a_status_that_does_not_exist_fails_the_command() {
    let mut peer = Peer::up(config(), KEYS);
    let id = peer.submit(write(&pattern(512)));
    let tag = peer.hear_command().0.task_tag;
    peer.say_status(tag, 0x77, &[]);
    assert_eq!(peer.result(id), Some(Err(TaskError::Status { status: 0x77 })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever comes, nothing panics, nothing is written outside of the buffers, and a session
    /// that goes on keeps its promises.
    #[test]
    fn any_bytes_end_the_connection_or_change_nothing(
        opcode in 0x20_u8..0x40,
        flags in any::<u8>(),
        rest in prop::collection::vec(any::<u8>(), 46),
        tag_fits in any::<bool>(),
        data_len in 0_u32..2000,
        noise in prop::collection::vec(any::<u8>(), 0..3000),
        piece in 1_usize..400,
    ) {
        let mut peer = Peer::up(config(), KEYS);
        peer.piece = piece;
        let guarded = buffer(2048);
        peer.submit(read(&guarded.slice(512, 1024)));
        peer.submit(write(&pattern(4096)));
        let tag = peer.hear_command().0.task_tag;
        let mut bytes = [vec![opcode, flags], rest].concat();
        bytes[4] = 0;
        bytes[5..8].copy_from_slice(&data_len.to_be_bytes()[1..]);
        if tag_fits {
            bytes[16..20].copy_from_slice(&tag.to_be_bytes());
            bytes[24..28].copy_from_slice(&peer.stat_sn.value().to_be_bytes());
        }
        bytes.extend_from_slice(&noise);
        for chunk in bytes.chunks(97) {
            if peer.session.wanted(peer.now) == block_iscsi::session::Wanted::Stream {
                peer.say_bytes(chunk);
            }
        }
        peer.listen();
        prop_assert_eq!(guarded.slice(0, 512).to_vec(), vec![0; 512]);
        prop_assert_eq!(guarded.slice(1536, 512).to_vec(), vec![0; 512]);
    }

    /// A read is good only if all of its data has come, in its place.
    #[test]
    fn a_read_that_ends_well_has_its_data(
        parts in prop::collection::vec((0_u32..4, 0_u32..5, 0_usize..5, any::<bool>()), 1..6),
    ) {
        let mut peer = Peer::up(config(), KEYS);
        let buf = buffer(1024);
        let id = peer.submit(read(&buf));
        let tag = peer.hear_command().0.task_tag;
        let bytes = pattern(1024);
        for (sn, at, len, last) in parts {
            if peer.session.wanted(peer.now) != block_iscsi::session::Wanted::Stream {
                break;
            }
            let (at, len) = (at * 256, len * 256);
            let from = usize::try_from(at).unwrap().min(1024);
            let to = (from + len).min(1024);
            let data = &bytes[from..to];
            let pdu = peer.data_in_pdu(tag, sn, at, data, last);
            let encoded = peer.encode(&pdu.into(), data);
            let whole = encoded.len();
            peer.say_bytes(&encoded[..48]);
            if peer.session.wanted(peer.now) == block_iscsi::session::Wanted::Stream {
                peer.say_bytes(&encoded[48..whole]);
            }
            if let Some(Ok(_)) = peer.result(id) {
                prop_assert_eq!(buf.to_vec(), bytes);
                break;
            }
        }
    }

    /// R2Ts in any order and of any length: what is sent was asked for, and comes from there.
    #[test]
    fn what_is_sent_was_asked_for(
        asked in prop::collection::vec((0_u32..4, 0_u32..14, 1_u32..10), 1..5),
    ) {
        let mut peer = Peer::up(config(), KEYS);
        let bytes = pattern(6144);
        peer.submit(write(&bytes));
        let tag = peer.hear_command().0.task_tag;
        let mut wanted = vec![false; 6144];
        for (sn, at, len) in asked {
            if peer.session.wanted(peer.now) != block_iscsi::session::Wanted::Stream {
                break;
            }
            let (at, len) = (at * 512, len * 512);
            let r2t = ReadyToTransfer {
                lun: [0; 8],
                task_tag: tag,
                target_tag: 7,
                serials: peer.serials(),
                r2t_sn: Serial::new(sn),
                buffer_offset: at,
                desired_len: len,
            };
            let (from, to) = (usize::try_from(at).unwrap(), usize::try_from(at + len).unwrap());
            wanted[from.min(6144)..to.min(6144)].fill(true);
            peer.say(r2t, &[]);
            peer.listen();
            for (request, data) in std::mem::take(&mut peer.heard) {
                let block_iscsi::pdu::Request::DataOut(pdu) = request else { continue };
                let from = usize::try_from(pdu.buffer_offset).unwrap();
                prop_assert!(wanted[from..from + data.len()].iter().all(|wanted| *wanted));
                prop_assert_eq!(&data[..], &bytes[from..from + data.len()]);
            }
        }
    }
}
