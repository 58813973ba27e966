//! Targets that misbehave by a script: a session notices, gives the connection up, and goes on with the
//! next one; or the answer is what it is, and nothing is written where it does not belong.

use block_core::IoVec;
use block_iscsi::keys::{DigestKind, Offer};
use block_iscsi::nexus::{Data, TaskError};
use block_iscsi::pdu::bhs::Opcode;
use block_iscsi::pdu::digest::Part;
use block_iscsi::pdu::fields::Residual;
use block_iscsi::pdu::reject::RejectReason;
use block_iscsi::scsi::cdb::Cdb;
use block_iscsi::scsi::sense::Status;
use block_iscsi::session::{SessionConfig, SessionError, SessionEvent, Violation};
use block_testkit::iscsi::script::{Fault, On, Script};
use proptest::prelude::*;

use super::side::*;

const READ: u8 = 0x28;
const WRITE: u8 = 0x2a;

/// A session that has met the unit attention of its beginning, with four blocks written.
fn ready(config: SessionConfig) -> (Net, Vec<u8>) {
    let mut pair = up(config, target(|_| {}), 1);
    let data: Vec<u8> = (0..2048).map(|at| u8::try_from(at % 249).unwrap()).collect();
    loop {
        let (cdb, out) = write(8, &data);
        let id = submit(&mut pair, cdb, out);
        if !met_attention(&finish(&mut pair, id).unwrap()) {
            events(&mut pair);
            return (pair, data);
        }
    }
}

/// Small segments, so that reads have four PDUs; all writes are asked for.
fn small() -> SessionConfig {
    let crc = vec![DigestKind::Crc32c];
    let offer = Offer {
        max_recv_data_segment_len: 512,
        initial_r2t: true,
        immediate_data: false,
        max_burst_len: 1024,
        first_burst_len: 512,
        max_outstanding_r2t: 1,
        header_digest: crc.clone(),
        data_digest: crc,
        ..Offer::default()
    };
    SessionConfig { offer, ..config() }
}

/// Reads the four blocks into the midst of a buffer, with unit attentions met.
fn read_back(pair: &mut Net) -> Vec<u8> {
    loop {
        let guarded = buffer(4096);
        let (cdb, data) = read(8, &guarded.slice(1024, 2048));
        let id = submit(pair, cdb, data);
        let completion = finish(pair, id).unwrap();
        let bytes = guarded.to_vec();
        assert!(bytes[..1024].iter().chain(&bytes[3072..]).all(|byte| *byte == 0));
        if !met_attention(&completion) {
            assert_eq!((completion.status, completion.received), (Status::Good, 2048));
            return bytes[1024..3072].to_vec();
        }
    }
}

fn losses(pair: &mut Net) -> Vec<SessionError> {
    let down = |event| match event {
        SessionEvent::Down(error) => Some(error),
        _ => None,
    };
    events(pair).into_iter().filter_map(down).collect()
}

/// Every fault of a read is noticed, costs one connection, and the read succeeds over the next one.
#[test]
fn a_fault_in_a_read_costs_a_connection_and_nothing_else() {
    let answer = On::Answer(READ);
    let faults = [
        (4, Fault::StatSn(1)),
        (4, Fault::StatSn(u32::MAX)),
        (2, Fault::DataSn(1)),
        (2, Fault::BufferOffset(512)),
        (2, Fault::BufferOffset(1 << 20)),
        (2, Fault::BufferOffset(0u32.wrapping_sub(512))),
        (2, Fault::TaskTag(0x0010_0000)),
        (2, Fault::TaskTag(u32::MAX)),
        (2, Fault::Twice),
        (2, Fault::Late(1)),
        (2, Fault::Swallow),
        (4, Fault::Length(1 << 20)),
        (2, Fault::ShortData(4)),
        (2, Fault::Data(vec![1; 600])),
        (4, Fault::Data(vec![1; 512 + 4])),
        (2, Fault::Digest(Part::Header)),
        (2, Fault::Digest(Part::Data)),
        (2, Fault::Garbage(vec![0xff; 48])),
        (2, Fault::Cut(0)),
        (2, Fault::Cut(48)),
        (4, Fault::Cut(100)),
        (4, Fault::Count(7)),
        (2, Fault::Header { at: 0, bits: 0x3f ^ 0x25 }),
        (2, Fault::Header { at: 1, bits: 0x01 }),
        (2, Fault::Header { at: 4, bits: 0x01 }),
        (1, Fault::Silence),
    ];
    for (nth, fault) in faults {
        // A residual count without its bit means nothing.
        let noticed = !matches!(fault, Fault::Count(_));
        let (mut pair, data) = ready(small());
        pair.target.set_script(Script::new().with(answer, nth, fault.clone()));
        assert!(read_back(&mut pair) == data, "{fault:?}");
        assert_eq!(pair.target.script().unwrap().pending(), 0, "{fault:?}");
        let losses = losses(&mut pair);
        assert_eq!(losses.len(), usize::from(noticed), "{fault:?}: {losses:?}");
        assert_eq!(pair.tally().connections, 1 + u32::from(noticed));
    }
}

/// The same of a write that is asked for its data.
#[test]
fn a_fault_in_a_write_costs_a_connection_and_nothing_else() {
    let asks = On::Pdu(Opcode::ReadyToTransfer);
    let faults = [
        (asks, Fault::DataSn(1)),
        (asks, Fault::BufferOffset(4)),
        (asks, Fault::BufferOffset(u32::MAX)),
        (asks, Fault::Count(1)),
        (asks, Fault::Count(1 << 24)),
        (asks, Fault::Count(0u32.wrapping_sub(1024))),
        (asks, Fault::MoreR2ts(1)),
        (asks, Fault::MoreR2ts(300)),
        (asks, Fault::TaskTag(0x0010_0000)),
        (asks, Fault::Twice),
        (asks, Fault::Swallow),
        (On::Pdu(Opcode::ScsiResponse), Fault::StatSn(1)),
        (On::Pdu(Opcode::ScsiResponse), Fault::Swallow),
        (On::Pdu(Opcode::ScsiResponse), Fault::Twice),
        (On::Pdu(Opcode::ScsiResponse), Fault::Header { at: 2, bits: 0x40 }),
    ];
    for (on, fault) in faults {
        let (mut pair, _) = ready(small());
        pair.target.set_script(Script::new().with(on, 1, fault.clone()));
        let new = vec![9; 2048];
        // Whoever never answers is found out by pings only if nothing else is heard; here the patience
        // with a command ends.
        let (cdb, out) = write(8, &new);
        let id = submit(&mut pair, cdb, out);
        let silent = matches!(fault, Fault::Swallow) && on == asks;
        if silent {
            // Pings are answered: only an abort helps.
            let now = pair.now();
            pair.initiator.session.abort(id, now);
            assert_eq!(finish(&mut pair, id), Err(TaskError::Aborted));
            assert_eq!(losses(&mut pair), []);
            continue;
        }
        if matches!(fault, Fault::Swallow) {
            // A status that is missing shows with the next one.
            read_back(&mut pair);
        }
        let attention = met_attention(&finish(&mut pair, id).unwrap());
        if attention {
            let (cdb, out) = write(8, &new);
            let id = submit(&mut pair, cdb, out);
            assert_eq!(finish(&mut pair, id).unwrap().status, Status::Good);
        }
        assert!(read_back(&mut pair) == new, "{fault:?}");
        assert_eq!(pair.target.script().unwrap().pending(), 0, "{fault:?}");
        let losses = losses(&mut pair);
        assert_eq!(losses.len(), 1, "{fault:?}: {losses:?}");
        assert!(matches!(losses[0], SessionError::Violation(_)), "{losses:?}");
    }
}

/// The last one of a read may be short; that is no breach of the protocol, but the read has not all it
/// asked for.
#[test]
fn data_that_is_missing_at_the_end_is_told() {
    let (mut pair, _) = ready(small());
    pair.target.set_script(Script::new().with(On::Answer(READ), 4, Fault::ShortData(4)));
    let (cdb, data) = read(8, &buffer(2048));
    let id = submit(&mut pair, cdb, data);
    let short = TaskError::Short { received: 2044, expected: 2048 };
    assert_eq!(finish(&mut pair, id), Err(short));
    assert_eq!(pair.tally().connections, 1);
}

#[test]
fn an_r2t_that_comes_late_is_answered() {
    let (mut pair, data) = ready(small());
    let late = Script::new().with(On::Pdu(Opcode::ReadyToTransfer), 1, Fault::Late(4));
    pair.target.set_script(late);
    let (cdb, out) = write(8, &[7; 2048]);
    let id = submit(&mut pair, cdb, out);
    assert!(read_back(&mut pair) == data, "the read overtakes the write");
    assert_eq!(finish(&mut pair, id).unwrap().status, Status::Good);
    assert!(read_back(&mut pair) == [7; 2048]);
    assert_eq!(pair.tally().connections, 1);
}

#[test]
fn a_command_that_is_rejected_says_so_and_others_go_on() {
    let (mut pair, data) = ready(small());
    let reason = RejectReason::CommandNotSupported;
    pair.target.set_script(Script::new().with(On::Answer(WRITE), 2, Fault::Reject(reason)));
    // The second answer is the second R2T of the write.
    let (cdb, out) = write(8, &data);
    let id = submit(&mut pair, cdb, out);
    assert_eq!(finish(&mut pair, id), Err(TaskError::Rejected { reason }));
    assert!(read_back(&mut pair) == data);
}

#[test]
fn who_breaks_the_protocol_again_and_again_is_given_up() {
    let (mut pair, _) = ready(small());
    let script = (1..20).fold(Script::new(), |script, nth| {
        script.with(On::Answer(READ), nth, Fault::TaskTag(0x0010_0000))
    });
    pair.target.set_script(script);
    let to = buffer(512);
    let (cdb, data) = read(8, &to);
    let id = submit(&mut pair, cdb, data);
    assert_eq!(finish(&mut pair, id), Err(TaskError::Ended));
    let last = events(&mut pair).pop().unwrap();
    let task = SessionEvent::Ended(SessionError::Violation(Violation::Task {
        opcode: Opcode::DataIn,
        tag: 0,
    }));
    assert_eq!(std::mem::discriminant(&last), std::mem::discriminant(&task), "{last:?}");
    assert_eq!(to.to_vec(), [0; 512]);
}

/// What a session cannot know is what the answer means: it passes it on as it is.
#[test]
fn answers_that_lie_are_passed_on_with_their_true_length() {
    let cases = [
        (Fault::empty_lba_status(), 8),
        (Fault::lba_status(0, 0), 24),
        (Fault::lba_status(1 << 40, u32::MAX), 24),
        (Fault::Data(Vec::new()), 0),
    ];
    for (fault, len) in cases {
        let (mut pair, _) = ready(config());
        pair.target.set_script(Script::new().with(On::Action(0x9e, 0x12), 1, fault.clone()));
        let to = buffer(1024);
        let cdb = Cdb::GetLbaStatus { lba: 0, allocation: 1024 };
        let id = submit(&mut pair, cdb, Data::In(IoVec::from(to.clone())));
        let completion = finish(&mut pair, id).unwrap();
        assert_eq!((completion.received, completion.status), (len, Status::Good));
        let missing = u32::try_from(1024 - len).unwrap();
        assert_eq!(completion.residual, Residual::Underflow(missing));
        assert_eq!(pair.tally().connections, 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..Default::default() })]

    /// Any bits of any PDU: nothing panics, nothing is written outside of the buffer, and what ends well
    /// has read what there is, or what the PDU said with a digest.
    #[test]
    fn any_bits_of_any_header_do_no_harm(
        nth in 1..7_u64,
        at in 0..48_usize,
        bits in 1..=255_u8,
        is_write in any::<bool>(),
    ) {
        let (mut pair, data) = ready(small());
        pair.target.set_script(Script::new().with(On::Any, nth, Fault::Header { at, bits }));
        let guarded = buffer(4096);
        let (cdb, moved) =
            if is_write { write(8, &data) } else { read(8, &guarded.slice(1024, 2048)) };
        let id = submit(&mut pair, cdb, moved);
        // A header that still can be may make the session wait; pings find out, or patience ends.
        let mut result = None;
        pair.run_until(HOUR / 60, |pair| {
            result = result.take().or_else(|| pair.initiator.session.take(id));
            result.is_some()
        });
        if result.is_none() {
            let now = pair.now();
            pair.initiator.session.abort(id, now);
            result = Some(Err(TaskError::Aborted));
        }
        let bytes = guarded.to_vec();
        prop_assert!(bytes[..1024].iter().chain(&bytes[3072..]).all(|byte| *byte == 0));
        let came = matches!(
            scsi(result.unwrap()),
            Ok(completion) if completion.status == Status::Good
                && completion.received == 2048 && completion.residual == Residual::None
        );
        if came && !is_write {
            prop_assert_eq!(&bytes[1024..3072], &data[..]);
        }
    }
}
