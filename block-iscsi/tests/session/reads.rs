//! Data-In: where it lands, and what is refused.

use block_core::{IoBuf, IoVec};
use block_iscsi::nexus::{Completion, Data, TaskError};
use block_iscsi::pdu::fields::{DataLen, Residual};
use block_iscsi::pdu::scsi::{CommandOutcome, Direction, ScsiResponse, SenseSegment};
use block_iscsi::scsi::cdb::Cdb;
use block_iscsi::scsi::sense::Status;
use block_iscsi::serial::Serial;
use block_iscsi::session::{Answer, SessionEvent};

use crate::peer::{KEYS, Peer, buffer, command, config, pattern, read};

fn good(received: usize) -> Answer {
    Answer::Scsi(Completion {
        status: Status::Good,
        sense: Vec::new(),
        residual: Residual::None,
        received,
    })
}

const DIGESTS: &[(&str, &str)] = &[
    ("HeaderDigest", "CRC32C"),
    ("DataDigest", "CRC32C"),
    ("InitialR2T", "Yes"),
    ("MaxRecvDataSegmentLength", "1024"),
];

fn with_digests() -> block_iscsi::session::SessionConfig {
    let mut config = config();
    config.offer.header_digest = vec![block_iscsi::keys::DigestKind::Crc32c];
    config.offer.data_digest = vec![block_iscsi::keys::DigestKind::Crc32c];
    config
}

/// However the bytes are cut, with and without digests.
#[test]
fn data_lands_in_the_buffers_of_the_read() {
    for (config, keys) in [(config(), KEYS), (with_digests(), DIGESTS)] {
        for piece in [1, 7, 47, 48, 49, 52, 100, 5000, usize::MAX] {
            let mut peer = Peer::up(config.clone(), keys);
            peer.piece = piece;
            let (a, b) = (buffer(100), buffer(1436));
            let iov: IoVec = [a.clone(), b.clone()].into_iter().collect();
            let cdb = Cdb::read(0, 3, Default::default());
            let id = peer.submit(command(cdb, Data::In(iov)));
            let (sent, data) = peer.hear_command();
            assert_eq!((sent.direction, sent.expected_len), (Direction::Read, 1536));
            assert_eq!((sent.lun, data), ([0, 5, 0, 0, 0, 0, 0, 0], vec![]));
            let bytes = pattern(1536);
            peer.data_in(sent.task_tag, 0, 0, &bytes[..511], false);
            peer.data_in(sent.task_tag, 1, 511, &bytes[511..1533], false);
            assert_eq!(peer.events(), []);
            peer.data_in(sent.task_tag, 2, 1533, &bytes[1533..], true);
            assert_eq!(peer.events(), [SessionEvent::Done(id)]);
            assert_eq!(peer.result(id), Some(Ok(good(1536))));
            assert_eq!([a.to_vec(), b.to_vec()].concat(), bytes);
        }
    }
}

#[test]
fn reads_that_run_together_end_in_any_order() {
    let mut peer = Peer::up(config(), KEYS);
    let bufs: Vec<IoBuf> = (0..3).map(|_| buffer(512)).collect();
    let ids: Vec<_> = bufs.iter().map(|buf| peer.submit(read(buf))).collect();
    let tags: Vec<_> = (0..3).map(|_| peer.hear_command().0.task_tag).collect();
    for (at, byte) in [(2, 3_u8), (0, 1), (1, 2)] {
        peer.data_in(tags[at], 0, 0, &[byte; 512], true);
        assert_eq!(peer.events(), [SessionEvent::Done(ids[at])]);
    }
    let firsts: Vec<_> = bufs.iter().map(|buf| buf.to_vec()[0]).collect();
    assert_eq!(firsts, [1, 2, 3]);
}

/// A response of its own, with sense data and a residual.
#[test]
fn what_the_target_says_of_a_failed_read_is_handed_on() {
    let mut peer = Peer::up(config(), KEYS);
    let buf = buffer(1024);
    let id = peer.submit(read(&buf));
    let tag = peer.hear_command().0.task_tag;
    peer.data_in(tag, 0, 0, &[9; 512], false);
    let sense = [0x70, 0, 3, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x11, 0, 0, 0, 0, 0];
    let data = SenseSegment { sense: &sense, rest: &[1, 2] }.to_bytes().unwrap();
    let response = ScsiResponse {
        outcome: CommandOutcome::Completed {
            status: 2,
            residual: Residual::Underflow(512),
            read_residual: Residual::None,
        },
        task_tag: tag,
        snack_tag: None,
        serials: peer.next_status(),
        exp_data_sn: Serial::new(1),
        data_len: DataLen::of(&data).unwrap(),
    };
    peer.say(response, &data);
    let expected = Completion {
        status: Status::CheckCondition,
        sense: sense.to_vec(),
        residual: Residual::Underflow(512),
        received: 512,
    };
    assert_eq!(peer.result(id), Some(Ok(Answer::Scsi(expected))));
}

#[test]
fn a_good_status_without_all_of_the_data_is_an_error() {
    let mut peer = Peer::up(config(), KEYS);
    let buf = buffer(1024);
    let id = peer.submit(read(&buf));
    let tag = peer.hear_command().0.task_tag;
    peer.data_in(tag, 0, 0, &[9; 512], true);
    let short = TaskError::Short { received: 512, expected: 1024 };
    assert_eq!(peer.result(id), Some(Err(short)));
}
