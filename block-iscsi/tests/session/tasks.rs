//! Aborts, resets, texts, pings of the target, rejects.

use block_iscsi::keys::Pair;
use block_iscsi::keys::text::encode;
use block_iscsi::nexus::{Data, NexusEvent, TaskError};
use block_iscsi::pdu::fields::{DataLen, Delivery};
use block_iscsi::pdu::nop::NopIn;
use block_iscsi::pdu::reject::RejectReason;
use block_iscsi::pdu::scsi::SenseSegment;
use block_iscsi::pdu::task_mgmt::{
    TaskFunction, TaskManagementRequest, TaskManagementResponse, TaskResult,
};
use block_iscsi::pdu::text::{TextReply, TextResponse};
use block_iscsi::pdu::{Pdu, Request};
use block_iscsi::scsi::cdb::Cdb;
use block_iscsi::scsi::luns::Lun;
use block_iscsi::session::{
    Answer, Awaited, Patience, SessionConfig, SessionError, SessionEvent, TaskId,
};

use crate::peer::{KEYS, Peer, SECOND, buffer, command, config, pairs, pattern, read, write};

fn say_managed(peer: &mut Peer, task_tag: u32, result: TaskResult) {
    let serials = peer.next_status();
    peer.say(TaskManagementResponse { result, task_tag, serials }, &[]);
}

/// Has the time of a command run out; the abort, and the command's tag.
fn timed_out(peer: &mut Peer) -> (TaskId, TaskManagementRequest, u32) {
    let id = peer.submit(write(&pattern(512)));
    let (sent, _) = peer.hear_command();
    peer.wait(SECOND);
    let (Request::TaskManagement(abort), _) = peer.hear() else { panic!("no abort") };
    let function = TaskFunction::AbortTask { task_tag: sent.task_tag, cmd_sn: sent.serials.cmd_sn };
    assert_eq!((abort.function, abort.delivery), (function, Delivery::Immediate));
    assert_eq!(abort.lun, sent.lun);
    (id, abort, sent.task_tag)
}

fn impatient() -> SessionConfig {
    let command = Some(SECOND);
    SessionConfig { patience: Patience { command, ..Patience::default() }, ..config() }
}

#[test]
fn a_command_that_takes_too_long_is_aborted() {
    let mut peer = Peer::up(impatient(), KEYS);
    let (id, abort, _) = timed_out(&mut peer);
    assert_eq!(peer.events(), []);
    say_managed(&mut peer, abort.task_tag, TaskResult::Complete);
    assert_eq!(peer.events(), [SessionEvent::Done(id)]);
    assert_eq!(peer.result(id), Some(Err(TaskError::TimedOut)));
}

#[test]
fn a_command_that_ends_before_its_abort_has_ended_well() {
    let mut peer = Peer::up(impatient(), KEYS);
    let (id, abort, tag) = timed_out(&mut peer);
    peer.say_status(tag, 0, &[]);
    assert_eq!(peer.events(), [SessionEvent::Done(id)]);
    assert!(matches!(peer.result(id), Some(Ok(Answer::Scsi(_)))));
    say_managed(&mut peer, abort.task_tag, TaskResult::NoSuchTask);
    assert_eq!(peer.events(), []);
}

#[test]
fn an_abort_without_an_answer_ends_the_connection() {
    let mut peer = Peer::up(impatient(), KEYS);
    let (id, _, _) = timed_out(&mut peer);
    // It answers pings, so that only the abort is overdue.
    peer.now += SECOND * 4;
    peer.say_bytes(&[]);
    peer.wait(SECOND * 2);
    let down = SessionEvent::Down(SessionError::TimedOut(Awaited::TaskManagement));
    assert_eq!(peer.events(), [SessionEvent::Done(id), down]);
    assert_eq!(peer.result(id), Some(Err(TaskError::TimedOut)));
}

#[test]
fn an_abort_that_is_rejected_ends_the_connection() {
    let mut peer = Peer::up(impatient(), KEYS);
    let (id, abort, _) = timed_out(&mut peer);
    peer.say_rejected(&abort.to_bhs(), RejectReason::CommandNotSupported);
    let down = SessionEvent::Down(SessionError::TimedOut(Awaited::TaskManagement));
    assert_eq!(peer.events(), [SessionEvent::Done(id), down]);
    assert_eq!(peer.result(id), Some(Err(TaskError::TimedOut)));
    // It is of no importance where the command has ended meanwhile.
    let mut peer = Peer::up(impatient(), KEYS);
    let (id, abort, tag) = timed_out(&mut peer);
    peer.say_status(tag, 0, &[]);
    peer.say_rejected(&abort.to_bhs(), RejectReason::CommandNotSupported);
    assert_eq!(peer.events(), [SessionEvent::Done(id)]);
}

/// Nobody waits for the next session.
#[test]
fn a_command_that_is_put_off_while_it_is_aborted_ends() {
    let mut peer = Peer::up(impatient(), KEYS);
    let id = peer.submit(write(&pattern(512)));
    let (sent, _) = peer.hear_command();
    peer.wait(SECOND);
    assert!(matches!(peer.hear(), (Request::TaskManagement(_), _)));
    let reason = RejectReason::WaitingForLogout;
    peer.say_rejected(&sent.to_bhs(), reason);
    assert_eq!(peer.events(), [SessionEvent::Done(id)]);
    assert_eq!(peer.result(id), Some(Err(TaskError::Rejected { reason })));
}

#[test]
fn a_command_that_was_never_sent_just_ends() {
    let mut peer = Peer::up(impatient(), KEYS);
    peer.session.handle_disconnected(block_iscsi::session::ConnectionError::Closed, peer.now);
    let id = peer.submit(write(&pattern(512)));
    peer.session.abort(id, peer.now);
    assert_eq!(peer.result(id), Some(Err(TaskError::Aborted)));
}

#[test]
fn a_reset_ends_the_tasks_of_its_unit() {
    let mut peer = Peer::up(config(), KEYS);
    let here = peer.submit(write(&pattern(512)));
    let other = Lun::from_number(6).unwrap();
    let there = peer.submit(block_iscsi::nexus::Command { lun: other, ..write(&pattern(512)) });
    peer.hear_command();
    let tag = peer.hear_command().0.task_tag;
    let lun = Lun::from_number(5).unwrap();
    let reset = peer.session.submit_reset(lun, peer.now).unwrap();
    let (Request::TaskManagement(request), _) = peer.hear() else { panic!("no reset") };
    assert_eq!((request.function, request.lun), (TaskFunction::LogicalUnitReset, lun.0));
    say_managed(&mut peer, request.task_tag, TaskResult::Complete);
    let event = SessionEvent::Nexus(NexusEvent::Reset { lun: Some(lun) });
    // Whoever sends it again has heard why.
    let expected = [event, SessionEvent::Done(here), SessionEvent::Done(reset)];
    assert_eq!(peer.events(), expected);
    assert_eq!(peer.result(here), Some(Err(TaskError::Aborted)));
    assert_eq!(peer.result(reset), Some(Ok(Answer::Reset)));
    peer.say_status(tag, 0, &[]);
    assert!(matches!(peer.result(there), Some(Ok(Answer::Scsi(_)))));
}

fn start_reset(peer: &mut Peer) -> (TaskId, TaskManagementRequest) {
    let lun = Lun::from_number(5).unwrap();
    let id = peer.session.submit_reset(lun, peer.now).unwrap();
    let (Request::TaskManagement(request), _) = peer.hear() else { panic!("no reset") };
    (id, request)
}

/// The target may run them after the reset, so the reset's answer must not end them.
#[test]
fn commands_wait_for_the_answer_to_a_reset() {
    let mut peer = Peer::up(config(), KEYS);
    let before = peer.submit(write(&pattern(6144)));
    let (sent, _) = peer.hear_command();
    let (first, first_request) = start_reset(&mut peer);
    let behind = peer.submit(write(&pattern(512)));
    peer.hear_nothing();
    let (second, second_request) = start_reset(&mut peer);
    peer.hear_nothing();
    // Data that is asked for is still sent.
    peer.ask(sent.task_tag, 0, 1024, 1024);
    assert!(matches!(peer.hear(), (Request::DataOut(_), _)));
    say_managed(&mut peer, first_request.task_tag, TaskResult::Complete);
    assert_eq!(peer.result(before), Some(Err(TaskError::Aborted)));
    assert_eq!(peer.result(first), Some(Ok(Answer::Reset)));
    peer.hear_nothing();
    say_managed(&mut peer, second_request.task_tag, TaskResult::Complete);
    assert_eq!(peer.result(second), Some(Ok(Answer::Reset)));
    assert_eq!(peer.result(behind), None);
    let tag = peer.hear_command().0.task_tag;
    peer.say_status(tag, 0, &[]);
    assert!(matches!(peer.result(behind), Some(Ok(Answer::Scsi(_)))));
}

#[test]
fn a_reset_that_is_not_carried_out_holds_nothing_back() {
    let refuse = |peer: &mut Peer, request: &TaskManagementRequest| {
        say_managed(peer, request.task_tag, TaskResult::NotSupported);
    };
    let reject = |peer: &mut Peer, request: &TaskManagementRequest| {
        peer.say_rejected(&request.to_bhs(), RejectReason::CommandNotSupported);
    };
    let say_nothing = |peer: &mut Peer, _: &TaskManagementRequest| {
        peer.wait(SECOND);
        peer.reconnect();
        peer.log_in(KEYS);
    };
    let endings: [fn(&mut Peer, &TaskManagementRequest); 3] = [refuse, reject, say_nothing];
    for ending in endings {
        let mut peer = Peer::up(impatient(), KEYS);
        let (reset, request) = start_reset(&mut peer);
        peer.now += SECOND / 2;
        let behind = peer.submit(write(&pattern(512)));
        peer.hear_nothing();
        ending(&mut peer, &request);
        assert!(matches!(peer.result(reset), Some(Err(_))));
        let tag = peer.hear_command().0.task_tag;
        peer.say_status(tag, 0, &[]);
        assert!(matches!(peer.result(behind), Some(Ok(Answer::Scsi(_)))));
    }
}

/// In three parts, the second of which ends within a key.
#[test]
fn a_text_is_put_together_from_its_parts() {
    const LUNS: [[u8; 8]; 3] = [[0, 7, 0, 0, 0, 0, 0, 0], [9; 8], [0; 8]];
    let mut peer = Peer::up(config(), KEYS);
    let all = Pair::new("SendTargets", "All");
    let id = peer.session.submit_text(std::slice::from_ref(&all), peer.now).unwrap();
    let found =
        vec![Pair::new("TargetName", "iqn.a:b"), Pair::new("TargetAddress", "[::1]:3260,1")];
    let text = encode(&found);
    let parts = [&text[..3], &text[3..25], &text[25..]];
    for (number, part) in parts.into_iter().enumerate() {
        let (Request::Text(request), data) = peer.hear() else { panic!("no text") };
        peer.exp_cmd_sn = peer.exp_cmd_sn.next();
        let expected = if number == 0 { vec![all.clone()] } else { Vec::new() };
        assert_eq!(pairs(&data), expected);
        // Each names what the last response named.
        let named = if number == 0 { ([0; 8], None) } else { (LUNS[number - 1], Some(44)) };
        assert_eq!((request.lun, request.target_tag), named);
        let last = number == 2;
        let response = TextResponse {
            reply: if last { TextReply::Final } else { TextReply::Partial { target_tag: 44 } },
            lun: LUNS[number],
            task_tag: request.task_tag,
            serials: peer.next_status(),
            data_len: DataLen::of(part).unwrap(),
        };
        peer.say(response, part);
    }
    assert_eq!(peer.events(), [SessionEvent::Done(id)]);
    assert_eq!(peer.result(id), Some(Ok(Answer::Text(found))));
}

#[test]
fn a_ping_of_the_target_is_answered_with_its_data() {
    let mut peer = Peer::up(config(), KEYS);
    let ping = NopIn {
        lun: [1; 8],
        task_tag: None,
        target_tag: Some(77),
        serials: peer.serials(),
        data_len: DataLen::new(3).unwrap(),
    };
    peer.say(ping, b"abc");
    let (Request::NopOut(pong), data) = peer.hear() else { panic!("no answer") };
    assert_eq!((pong.target_tag, pong.task_tag, pong.lun), (Some(77), None, [1; 8]));
    assert_eq!((pong.serials.exp_stat_sn, data), (peer.stat_sn, b"abc".to_vec()));
}

#[test]
fn a_rejected_command_fails_alone() {
    let mut peer = Peer::up(config(), KEYS);
    let buf = buffer(512);
    let ids = [peer.submit(read(&buf)), peer.submit(write(&pattern(512)))];
    let (first, _) = peer.hear_command();
    let (second, _) = peer.hear_command();
    peer.say_rejected(&first.to_bhs(), RejectReason::InvalidField);
    let reason = RejectReason::InvalidField;
    assert_eq!(peer.result(ids[0]), Some(Err(TaskError::Rejected { reason })));
    peer.say_status(second.task_tag, 0, &[]);
    assert!(matches!(peer.result(ids[1]), Some(Ok(_))));
}

#[test]
fn a_task_that_nobody_waits_for_runs_to_its_end() {
    let mut peer = Peer::up(config(), KEYS);
    let id = peer.submit(write(&pattern(512)));
    let (sent, _) = peer.hear_command();
    peer.session.abandon(id);
    peer.say_status(sent.task_tag, 0, &[]);
    assert_eq!(peer.events(), []);
    assert_eq!(peer.result(id), None);
}

/// Ends a command with CHECK CONDITION.
fn say_sense(peer: &mut Peer, task_tag: u32, sense: &[u8]) -> SessionEvent {
    let data = SenseSegment { sense, rest: &[] }.to_bytes().unwrap();
    peer.say_status(task_tag, 2, &data);
    let lun = Lun::from_number(5).unwrap();
    SessionEvent::Nexus(NexusEvent::Sense { lun, sense: sense.to_vec() })
}

/// A write that was acknowledged is lost, and the flush behind the read that hears of it ends well.
#[test]
fn sense_data_is_told_before_any_command_ends_that_was_answered_later() {
    let mut peer = Peer::up(config(), KEYS);
    let read = peer.submit(read(&buffer(512)));
    let flush = peer.submit(command(Cdb::SynchronizeCache10, Data::None));
    let tags = [peer.hear_command().0.task_tag, peer.hear_command().0.task_tag];
    let told = say_sense(&mut peer, tags[0], &[0x71, 0, 3, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0x0c, 0]);
    peer.say_status(tags[1], 0, &[]);
    let done = [read, flush].map(SessionEvent::Done);
    assert_eq!(peer.events(), [[told].as_slice(), &done].concat());
}

#[test]
fn sense_data_of_a_command_that_nobody_waits_for_is_told() {
    let attention: &[u8] = &[0x70, 0, 6, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0x29, 0];
    // Without any, something has happened all the same.
    for sense in [attention, &[]] {
        let mut peer = Peer::up(config(), KEYS);
        let id = peer.submit(write(&pattern(512)));
        let (sent, _) = peer.hear_command();
        peer.session.abandon(id);
        let told = say_sense(&mut peer, sent.task_tag, sense);
        assert_eq!(peer.events(), [told]);
    }
}

#[test]
fn a_reset_that_is_never_answered_ends_the_connection() {
    let mut peer = Peer::up(config(), KEYS);
    let (reset, _) = start_reset(&mut peer);
    let held = peer.submit(write(&pattern(512)));
    let end = peer.now + Patience::default().reset;
    while peer.now + SECOND < end {
        peer.wait(SECOND);
        // The target is there all the time.
        let serials = peer.serials();
        let (lun, data_len) = ([0; 8], DataLen::ZERO);
        peer.say(NopIn { lun, task_tag: None, target_tag: None, serials, data_len }, &[]);
    }
    assert_eq!(peer.events(), []);
    peer.wait(SECOND);
    let down = SessionError::TimedOut(Awaited::TaskManagement);
    assert_eq!(peer.events(), [SessionEvent::Done(reset), SessionEvent::Down(down)]);
    assert_eq!(peer.result(reset), Some(Err(TaskError::TimedOut)));
    assert_eq!(peer.result(held), None, "it is sent over the next connection");
}

/// With as many commands under way as there may be, and more that wait.
#[test]
fn a_reset_waits_for_nothing() {
    let mut peer = Peer::up(SessionConfig { depth: 1, ..config() }, KEYS);
    let first = peer.submit(write(&pattern(512)));
    peer.submit(write(&pattern(512)));
    peer.hear_command();
    peer.hear_nothing();
    let lun = Lun::from_number(5).unwrap();
    let reset = peer.session.submit_reset(lun, peer.now).unwrap();
    let (Request::TaskManagement(_), _) = peer.hear() else { panic!("no reset") };
    // It survives a lost connection, too, and still comes before what waits.
    peer.session.handle_disconnected(block_iscsi::session::ConnectionError::Closed, peer.now);
    peer.reconnect();
    peer.log_in(KEYS);
    let (Request::TaskManagement(request), _) = peer.hear() else { panic!("no reset") };
    say_managed(&mut peer, request.task_tag, TaskResult::Complete);
    assert_eq!(peer.result(reset), Some(Ok(Answer::Reset)));
    assert_eq!(peer.result(first), None, "it was not sent again before the reset");
}
