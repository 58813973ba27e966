//! Data in both directions: segments, bursts, what is sent unasked and what is asked for, and PDUs of
//! the initiator that are wrong.

use block_iscsi::keys::{DigestKind, Offer};
use block_iscsi::login::LoginConfig;
use block_iscsi::pdu::data::{DataInEnd, Sequence};
use block_iscsi::pdu::fields::Residual;
use block_iscsi::pdu::reject::RejectReason;
use block_iscsi::pdu::scsi::Direction;
use block_iscsi::pdu::{Request, Response};
use proptest::prelude::*;

use crate::wire::*;

const BURST: u32 = 4096;
const FIRST: u32 = 2048;

fn offer() -> Offer {
    Offer {
        max_recv_data_segment_len: 1024,
        max_burst_len: BURST,
        first_burst_len: FIRST,
        max_outstanding_r2t: 2,
        initial_r2t: false,
        ..Offer::default()
    }
}

fn wire() -> Wire {
    Wire::up(target(|_| {}), LoginConfig { offer: offer(), ..login() }).0
}

/// Asks for data until `len` bytes are there, of which `sent` were.
fn answer_all(wire: &mut Wire, all: &[u8], sent: u32) {
    let len = u32::try_from(all.len()).unwrap();
    let mut asked = sent;
    let mut sn = 0;
    while asked < len {
        let r2t = wire.hear_r2t();
        assert_eq!((r2t.buffer_offset, r2t.desired_len), (asked, BURST.min(len - asked)));
        assert_eq!(r2t.r2t_sn.value(), sn);
        asked += r2t.desired_len;
        sn += 1;
        wire.answer_r2t(&r2t, all);
    }
}

#[test]
fn reads_are_cut_to_segments_and_bursts() {
    let mut wire = wire();
    let data = pattern(20 * 512);
    let tag = wire.start(0, &range(0x2a, 8, 20), WRITE, 20 * 512, &[]);
    answer_all(&mut wire, &data, 0);
    assert_eq!(wire.hear_status(tag), (0, vec![], Residual::None));
    let tag = wire.start(0, &range(0x28, 8, 20), READ, 20 * 512, &[]);
    let (pdus, found, residual) = wire.hear_data(tag);
    assert_eq!((pdus.len(), found, residual), (10, data.clone(), Residual::None));
    let ends: Vec<_> = pdus.iter().map(|pdu| pdu.end).collect();
    let (on, end) = (DataInEnd::Open(Sequence::GoesOn), DataInEnd::Open(Sequence::Ends));
    assert_eq!(ends[..9], [on, on, on, end, on, on, on, end, on]);
    // A block of another unit, longer than a segment.
    let (found, _) = wire.read(1, &range(0x28, 0, 1), 4096);
    assert_eq!(found, [0; 4096]);
}

#[test]
fn residuals_say_what_did_not_fit() {
    let mut wire = wire();
    assert_eq!(wire.read(0, &range(0x28, 0, 2), 700).1, Residual::Overflow(324));
    let (data, residual) = wire.read(0, &range(0x28, 0, 1), 700);
    assert_eq!((data.len(), residual), (512, Residual::Underflow(188)));
    // Nothing is read, or nothing fits: the status comes alone.
    let (status, _, residual) = wire.status(0, &range(0x28, 0, 0), READ, 512, &[]);
    assert_eq!((status, residual), (0, Residual::Underflow(512)));
    let (status, _, residual) = wire.status(0, &range(0x28, 0, 1), Direction::None, 0, &[]);
    assert_eq!((status, residual), (0, Residual::Overflow(512)));
    // A write of less than the command says writes the blocks that came, but no part of a block.
    let data = pattern(700);
    let (status, sense, residual) = wire.status(0, &range(0x2a, 4, 2), WRITE, 700, &data);
    assert_eq!((status, sense_of(&sense)), (2, (5, 0x0e, 3)));
    assert_eq!(residual, Residual::Overflow(324));
    let (status, _, residual) = wire.status(0, &range(0x2a, 4, 2), WRITE, 512, &data[..512]);
    assert_eq!((status, residual), (0, Residual::Overflow(512)));
    assert_eq!(wire.read(0, &range(0x28, 4, 1), 512).0, data[..512]);
    // And of more: what is too much is not asked for.
    let (status, _, residual) = wire.status(0, &range(0x2a, 4, 1), WRITE, 700, &data);
    assert_eq!((status, residual), (0, Residual::Underflow(188)));
}

#[test]
fn sense_data_comes_with_the_status() {
    let mut wire = wire();
    let (status, sense, residual) = wire.status(0, &range(0x28, 8192, 1), READ, 512, &[]);
    assert_eq!((status, sense_of(&sense)), (2, (5, 0x21, 0)));
    assert_eq!(residual, Residual::Underflow(512));
    let (status, sense, _) = wire.status(9, &[0; 6], READ, 0, &[]);
    assert_eq!((status, sense_of(&sense)), (2, (5, 0x25, 0)));
}

#[test]
fn data_that_is_asked_for_comes_in_bursts_of_which_several_are_open() {
    let mut wire = wire();
    let data = pattern(32 * 512);
    let tag = wire.start(0, &range(0x2a, 0, 32), WRITE, 32 * 512, &data[..1000]);
    // Immediate data first, then two R2Ts at once.
    let (first, second) = (wire.hear_r2t(), wire.hear_r2t());
    wire.hear_nothing();
    assert_eq!((first.buffer_offset, second.buffer_offset), (1000, 1000 + BURST));
    assert_ne!(first.target_tag, second.target_tag);
    wire.answer_r2t(&first, &data);
    let third = wire.hear_r2t();
    assert_eq!(third.r2t_sn.value(), 2);
    wire.answer_r2t(&second, &data);
    wire.answer_r2t(&third, &data);
    let last = wire.hear_r2t();
    // In pieces, and other commands in between.
    let at = usize::try_from(last.buffer_offset).unwrap();
    let tags = (tag, Some(last.target_tag));
    wire.data_out(tags, 0, last.buffer_offset, &data[at..at + 700], Sequence::GoesOn);
    assert_eq!(wire.read(0, &range(0x28, 0, 1), 512).0, [0; 512]);
    wire.data_out(tags, 1, last.buffer_offset + 700, &data[at + 700..], Sequence::Ends);
    assert_eq!(wire.hear_status(tag).0, 0);
    assert_eq!(wire.read(0, &range(0x28, 0, 32), 32 * 512).0, data);
    assert_eq!(wire.target.device().counters().of(0x2a), 1);
}

#[test]
fn unsolicited_data_may_end_early_and_is_completed() {
    for (immediate, unsolicited) in [(0, 2048), (512, 1536), (512, 512), (512, 0)] {
        let mut wire = wire();
        let data = pattern(16 * 512);
        let tag = wire.start(0, &range(0x2a, 0, 16), WRITE_MORE, 16 * 512, &data[..immediate]);
        wire.hear_nothing();
        let (at, end) = (u32::try_from(immediate).unwrap(), immediate + unsolicited);
        wire.data_out((tag, None), 0, at, &data[immediate..end], Sequence::Ends);
        answer_all(&mut wire, &data, u32::try_from(end).unwrap());
        assert_eq!(wire.hear_status(tag).0, 0);
        assert_eq!(wire.read(0, &range(0x28, 0, 16), 16 * 512).0, data);
    }
}

#[test]
fn wrong_data_ends_the_command_and_nothing_is_written() {
    // Number and place, and what comes of it.
    let cases = [
        (1, 0, (0x0b, 0x47, 5)),
        (u32::MAX, 0, (0x0b, 0x47, 5)),
        (0, 512, (0x0b, 0x47, 5)),
        (0, 0, (0x0b, 0x0c, 0x0d)),
    ];
    for (sn, at, sense) in cases {
        let mut wire = wire();
        let data = pattern(2048);
        let tag = wire.start(0, &range(0x2a, 0, 4), WRITE, 2048, &[]);
        let r2t = wire.hear_r2t();
        // The last one is too short.
        let piece = if sense.1 == 0x0c { &data[..512] } else { &data };
        wire.data_out((tag, Some(r2t.target_tag)), sn, at, piece, Sequence::Ends);
        let (status, found, _) = wire.hear_status(tag);
        assert_eq!((status, sense_of(&found)), (2, sense));
        assert_eq!(wire.target.device().counters().of(0x2a), 0);
        assert_eq!(wire.read(0, &range(0x28, 0, 4), 2048).0, [0; 2048]);
    }
    // A wrong PDU amid a burst: the end of the burst is waited for.
    let mut wire = wire();
    let tag = wire.start(0, &range(0x2a, 0, 4), WRITE, 2048, &[]);
    let tags = (tag, Some(wire.hear_r2t().target_tag));
    wire.data_out(tags, 5, 0, &[1; 512], Sequence::GoesOn);
    wire.hear_nothing();
    wire.data_out(tags, 1, 512, &[1; 1536], Sequence::Ends);
    assert_eq!(sense_of(&wire.hear_status(tag).1), (0x0b, 0x47, 5));
}

#[test]
fn data_that_nobody_wants_is_rejected() {
    let mut wire = wire();
    wire.data_out((77, None), 0, 0, &[1; 512], Sequence::Ends);
    assert_eq!(rejected(&mut wire), RejectReason::ProtocolError);
    let tag = wire.start(0, &range(0x2a, 0, 4), WRITE, 2048, &[]);
    let r2t = wire.hear_r2t();
    wire.data_out((tag, Some(r2t.target_tag ^ 1)), 0, 0, &[1; 2048], Sequence::Ends);
    assert_eq!(rejected(&mut wire), RejectReason::InvalidField);
    wire.data_out((tag, None), 0, 0, &[1; 2048], Sequence::Ends);
    assert_eq!(rejected(&mut wire), RejectReason::InvalidField);
    wire.answer_r2t(&r2t, &[1; 2048]);
    assert_eq!(wire.hear_status(tag).0, 0);
}

fn rejected(wire: &mut Wire) -> RejectReason {
    match wire.hear() {
        (Response::Reject(pdu), header) => {
            assert_eq!(header.len(), 48);
            pdu.reason
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_was_not_agreed_on_fails() {
    let offer = Offer { immediate_data: false, initial_r2t: true, ..offer() };
    let (mut wire, _) = Wire::up(target(|_| {}), LoginConfig { offer, ..login() });
    let (status, sense, _) = wire.status(0, &range(0x2a, 0, 1), WRITE, 512, &[1; 512]);
    assert_eq!((status, sense_of(&sense)), (2, (0x0b, 0x0c, 0x0c)));
    let tag = wire.start(0, &range(0x2a, 0, 1), WRITE_MORE, 512, &[]);
    wire.hear_nothing();
    wire.data_out((tag, None), 0, 0, &[1; 512], Sequence::Ends);
    assert_eq!(sense_of(&wire.hear_status(tag).1), (0x0b, 0x0c, 0x0c));
    assert_eq!(wire.target.device().counters().of(0x2a), 0);
    // More than FirstBurstLength at once.
    let offer = Offer { max_burst_len: 4096, first_burst_len: 512, ..Offer::default() };
    let (mut wire, _) = Wire::up(target(|_| {}), LoginConfig { offer, ..login() });
    let (_, sense, _) = wire.status(0, &range(0x2a, 0, 2), WRITE, 1024, &[1; 1024]);
    assert_eq!(sense_of(&sense), (0x0b, 0x0c, 0x0d));
}

#[test]
fn a_wrong_digest_is_rejected_or_ends_the_connection() {
    let crc = vec![DigestKind::Crc32c];
    let offer = Offer { header_digest: crc.clone(), data_digest: crc, ..offer() };
    let config = || LoginConfig { offer: offer.clone(), ..login() };
    // Of the data: the PDU counts as not received.
    let (mut wire, _) = Wire::up(target(|_| {}), config());
    let cmd_sn = wire.cmd_sn;
    let command = wire.command(0, &range(0x2a, 0, 1), WRITE, 512, &[1; 512]);
    let mut bytes = wire.encode(&Request::from(command), &[1; 512]);
    *bytes.last_mut().unwrap() ^= 1;
    wire.say(&bytes);
    assert_eq!(rejected(&mut wire), RejectReason::DataDigestError);
    assert_eq!(wire.exp_cmd_sn, cmd_sn);
    wire.cmd_sn = cmd_sn;
    assert_eq!(wire.status(0, &range(0x2a, 0, 1), WRITE, 512, &[1; 512]).0, 0);
    // Of data that was asked for: the command fails at the end of the burst.
    let tag = wire.start(0, &range(0x2a, 0, 2), WRITE, 1024, &[]);
    let r2t = wire.hear_r2t();
    let tags = (tag, Some(r2t.target_tag));
    wire.digests.1 = false;
    wire.data_out(tags, 0, 0, &[1; 512], Sequence::GoesOn);
    wire.say(&[0; 4]);
    wire.digests.1 = true;
    assert_eq!(rejected(&mut wire), RejectReason::DataDigestError);
    wire.data_out(tags, 1, 512, &[1; 512], Sequence::Ends);
    assert_eq!(sense_of(&wire.hear_status(tag).1), (0x0b, 0x47, 5));
    // The same where the last PDU is the wrong one.
    let tag = wire.start(0, &range(0x2a, 0, 1), WRITE, 512, &[]);
    let tags = (tag, Some(wire.hear_r2t().target_tag));
    wire.digests.1 = false;
    wire.data_out(tags, 0, 0, &[1; 512], Sequence::Ends);
    wire.say(&[0; 4]);
    wire.digests.1 = true;
    assert_eq!(rejected(&mut wire), RejectReason::DataDigestError);
    assert_eq!(sense_of(&wire.hear_status(tag).1), (0x0b, 0x47, 5));
    // Of the header: nothing behind it can be found.
    let command = wire.command(0, &[0; 6], Direction::None, 0, &[]);
    let mut bytes = wire.encode(&Request::from(command), &[]);
    bytes[20] ^= 1;
    wire.say(&bytes);
    wire.hear_nothing();
    assert!(!wire.is_open());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    /// Whatever is agreed on, and however bytes come, what is written is read.
    #[test]
    fn what_is_written_is_read(
        segment in 512..5000_u32,
        burst in 512..9000_u32,
        first in 512..5000_u32,
        r2ts in 1..4_u16,
        flags in any::<[bool; 4]>(),
        blocks in 1..40_u16,
        piece in 1..3000_usize,
    ) {
        let kinds = |on| vec![if on { DigestKind::Crc32c } else { DigestKind::None }];
        let offer = Offer {
            max_recv_data_segment_len: segment,
            max_burst_len: burst,
            first_burst_len: first.min(burst),
            max_outstanding_r2t: r2ts,
            immediate_data: flags[0],
            initial_r2t: flags[1],
            header_digest: kinds(flags[2]),
            data_digest: kinds(flags[3]),
            ..Offer::default()
        };
        let (mut wire, parameters) = Wire::up(target(|_| {}), LoginConfig { offer, ..login() });
        let data = pattern(usize::from(blocks) * 512);
        let len = u32::try_from(data.len()).unwrap();
        let room = usize::try_from(parameters.negotiated.first_burst_len).unwrap();
        let immediate = if flags[0] { data.len().min(room) } else { 0 };
        let command = wire.command(0, &range(0x2a, 3, blocks), WRITE, len, &data[..immediate]);
        let tag = command.task_tag;
        let bytes = wire.encode(&Request::from(command), &data[..immediate]);
        for piece in bytes.chunks(piece) {
            wire.say(piece);
        }
        let mut left = data.len() - immediate;
        while left > 0 {
            let r2t = wire.hear_r2t();
            prop_assert!(r2t.desired_len <= burst);
            left -= usize::try_from(r2t.desired_len).unwrap();
            wire.answer_r2t(&r2t, &data);
        }
        prop_assert_eq!(wire.hear_status(tag).0, 0);
        let tag = wire.start(0, &range(0x28, 3, blocks), READ, len, &[]);
        let (pdus, found, _) = wire.hear_data(tag);
        prop_assert!(pdus.iter().all(|pdu| pdu.data_len.bytes() <= segment.min(burst)));
        prop_assert_eq!(found, data);
    }
}
