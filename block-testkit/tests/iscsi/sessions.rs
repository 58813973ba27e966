//! Sessions: the order of commands, pings, texts, task management, logout, messages, and bytes that
//! make no sense.

use block_iscsi::keys::Pair;
use block_iscsi::keys::text::{TextBuffer, encode};
use block_iscsi::login::{LoginConfig, SessionTarget};
use block_iscsi::pdu::async_event::AsyncEvent;
use block_iscsi::pdu::data::Sequence;
use block_iscsi::pdu::fields::{DataLen, Delivery};
use block_iscsi::pdu::logout::{LogoutReason, LogoutRequest, LogoutResult};
use block_iscsi::pdu::nop::NopOut;
use block_iscsi::pdu::reject::{Reject, RejectReason};
use block_iscsi::pdu::scsi::SenseSegment;
use block_iscsi::pdu::task_mgmt::{TaskFunction, TaskManagementRequest, TaskResult};
use block_iscsi::pdu::text::{TextReply, TextRequest, TextStep};
use block_iscsi::pdu::{Request, Response};
use block_iscsi::serial::Serial;
use block_testkit::iscsi::script::{Fault, On, Script};
use proptest::prelude::*;

use crate::wire::*;

const READY: [u8; 6] = [0; 6];

#[test]
fn commands_run_in_their_order_and_each_once() {
    let mut wire = Wire::plain();
    let start = wire.cmd_sn;
    let make = |wire: &mut Wire, lba, byte| {
        let command = wire.command(0, &range(0x2a, lba, 1), WRITE, 512, &[byte; 512]);
        (command.task_tag, wire.encode(&Request::from(command), &[byte; 512]))
    };
    let all = [make(&mut wire, 0, 1), make(&mut wire, 0, 2), make(&mut wire, 0, 3)];
    // The third and the second wait for the first; what comes twice is ignored.
    for index in [2, 1, 2] {
        wire.say(&all[index].1);
    }
    wire.hear_nothing();
    assert_eq!(wire.target.device().counters().of(0x2a), 0);
    wire.say(&all[0].1);
    for (tag, _) in &all {
        assert_eq!(wire.hear_status(*tag).0, 0);
    }
    wire.say(&all[1].1);
    wire.hear_nothing();
    assert_eq!(wire.exp_cmd_sn, start.plus(3));
    assert_eq!(wire.read(0, &range(0x28, 0, 1), 512).0, [3; 512]);
    assert_eq!(wire.target.device().counters().of(0x2a), 3);
}

#[test]
fn the_window_is_as_long_as_there_is_room_and_what_is_outside_is_ignored() {
    let (mut wire, _) = Wire::up(target(|config| config.limits.window = 4), login());
    wire.status(0, &READY, READ, 0, &[]);
    assert_eq!(wire.max_cmd_sn, wire.exp_cmd_sn.plus(3));
    // Commands that wait for data take places.
    for _ in 0..3 {
        wire.start(0, &range(0x2a, 0, 4), WRITE, 2048, &[]);
        wire.hear_r2t();
    }
    assert_eq!(wire.max_cmd_sn, wire.exp_cmd_sn);
    wire.start(0, &range(0x2a, 0, 4), WRITE, 2048, &[]);
    wire.hear_r2t();
    assert_eq!(wire.max_cmd_sn, wire.exp_cmd_sn.minus(1));
    let closed = wire.cmd_sn;
    wire.start(0, &READY, READ, 0, &[]);
    wire.hear_nothing();
    // Immediate commands do not need room.
    wire.cmd_sn = closed;
    let command = wire.command(0, &READY, READ, 0, &[]);
    wire.cmd_sn = closed;
    let tag = command.task_tag;
    wire.send(
        block_iscsi::pdu::scsi::ScsiCommand { delivery: Delivery::Immediate, ..command },
        &[],
    );
    assert_eq!(wire.hear_status(tag).0, 0);
    assert_eq!(wire.exp_cmd_sn, closed);
}

#[test]
fn a_tag_that_is_in_use_is_rejected() {
    let mut wire = Wire::plain();
    let tag = wire.start(0, &range(0x2a, 0, 4), WRITE, 2048, &[]);
    let r2t = wire.hear_r2t();
    let mut command = wire.command(0, &READY, READ, 0, &[]);
    command.task_tag = tag;
    wire.send(command, &[]);
    assert_eq!(rejected(&mut wire).reason, RejectReason::TaskInProgress);
    wire.answer_r2t(&r2t, &[1; 2048]);
    assert_eq!(wire.hear_status(tag).0, 0);
}

fn rejected(wire: &mut Wire) -> Reject {
    match wire.hear() {
        (Response::Reject(pdu), _) => pdu,
        other => panic!("{other:?}"),
    }
}

fn nop(wire: &mut Wire, task_tag: Option<u32>, target_tag: Option<u32>, data: &[u8]) {
    let serials = wire.immediate_serials();
    let delivery = Delivery::Immediate;
    let data_len = DataLen::of(data).unwrap();
    let nop = NopOut { delivery, lun: [0; 8], task_tag, target_tag, serials, data_len };
    wire.send(nop, data);
}

#[test]
fn pings_are_answered_in_both_directions() {
    let mut wire = Wire::plain();
    nop(&mut wire, Some(5), None, b"are you there");
    let (Response::NopIn(pong), data) = wire.hear() else { panic!("no NOP-In") };
    assert_eq!((pong.task_tag, pong.target_tag, data), (Some(5), None, b"are you there".to_vec()));
    let link = wire.link;
    wire.target.ping(link);
    wire.take_bytes();
    let (Response::NopIn(ping), _) = wire.hear() else { panic!("no NOP-In") };
    assert_eq!((ping.task_tag, ping.serials.stat_sn), (None, wire.exp_stat_sn));
    assert_eq!(wire.target.pongs(link), 0);
    nop(&mut wire, None, ping.target_tag, &[]);
    wire.hear_nothing();
    assert_eq!(wire.target.pongs(link), 1);
    // One that only tells numbers.
    nop(&mut wire, None, None, &[]);
    wire.hear_nothing();
    assert_eq!(wire.target.pongs(link), 1);
}

/// Sends a text, or asks for more of its answer.
fn say_text(wire: &mut Wire, text: &[u8], target_tag: Option<u32>, lun: [u8; 8]) {
    let request = TextRequest {
        delivery: Delivery::Ordered,
        step: TextStep::Final,
        lun,
        task_tag: 9,
        target_tag,
        serials: wire.serials(),
        data_len: DataLen::of(text).unwrap(),
    };
    wire.send(request, text);
}

fn ask(wire: &mut Wire, pairs: &[(&str, &str)]) -> Vec<Pair> {
    let pairs: Vec<_> = pairs.iter().map(|(key, value)| Pair::new(key, value)).collect();
    let mut text = encode(&pairs);
    let (mut target_tag, mut lun, mut all) = (None, [0; 8], TextBuffer::new(1 << 16));
    loop {
        say_text(wire, &text, target_tag, lun);
        let (Response::Text(response), data) = wire.hear() else { panic!("no text") };
        all.push(&data).unwrap();
        match response.reply {
            TextReply::Final => return all.take_pairs().unwrap(),
            TextReply::Partial { target_tag: tag } => {
                (target_tag, lun) = (Some(tag), response.lun);
            }
            TextReply::Open { .. } => panic!("it was final"),
        }
        text.clear();
    }
}

#[test]
fn discovery_tells_all_targets_and_where_they_are() {
    for text_len in [8192, 7] {
        let two = target(|config| {
            config.names.push("iqn.2026-01.org.example:two".to_owned());
            config.portal = "[::1]:3260".to_owned();
        });
        let mut wire = Wire::new(two);
        wire.log_in(LoginConfig { target: SessionTarget::Discovery, ..login() }).unwrap();
        wire.target.config().limits.text_len = text_len;
        let found = ask(&mut wire, &[("SendTargets", "All")]);
        let address = Pair::new("TargetAddress", "[::1]:3260,1");
        let names = [NAME, "iqn.2026-01.org.example:two"];
        let expected = names.map(|name| [Pair::new("TargetName", name), address.clone()]).concat();
        assert_eq!(found, expected);
        assert_eq!(ask(&mut wire, &[("SendTargets", names[1])]), expected[2..]);
        assert_eq!(ask(&mut wire, &[("SendTargets", "iqn.2026-01.org.example:three")]), []);
        let unknown = Pair::new("X-org.example", "NotUnderstood");
        assert_eq!(ask(&mut wire, &[("X-org.example", "1")]), [unknown]);
    }
    // A normal session is told of its own target.
    let mut wire = Wire::plain();
    assert_eq!(ask(&mut wire, &[("SendTargets", "")])[0], Pair::new("TargetName", NAME));
    assert_eq!(ask(&mut wire, &[("SendTargets", "All")]), [Pair::new("SendTargets", "Reject")]);
    assert_eq!(ask(&mut wire, &[("MaxRecvDataSegmentLength", "600")]), []);
    assert_eq!(wire.target.agreed(wire.link).unwrap().max_send_data_segment_len, 600);
}

#[test]
fn more_of_a_text_is_told_to_who_names_the_lun_of_the_answer() {
    let mut wire = Wire::plain();
    wire.target.config().limits.text_len = 7;
    let text = encode(&[Pair::new("SendTargets", "")]);
    say_text(&mut wire, &text, None, [0; 8]);
    let (Response::Text(response), _) = wire.hear() else { panic!("no text") };
    let TextReply::Partial { target_tag } = response.reply else { panic!("{response:?}") };
    assert_ne!(response.lun, [0; 8]);
    say_text(&mut wire, &[], Some(target_tag), [0; 8]);
    let (Response::Reject(reject), _) = wire.hear() else { panic!("no reject") };
    assert_eq!(reject.reason, RejectReason::ProtocolError);
    say_text(&mut wire, &[], Some(target_tag), response.lun);
    assert!(matches!(wire.hear(), (Response::Text(_), _)));
}

fn manage(wire: &mut Wire, unit: u8, function: TaskFunction) -> TaskResult {
    let request = TaskManagementRequest {
        delivery: Delivery::Immediate,
        function,
        lun: [0, unit, 0, 0, 0, 0, 0, 0],
        task_tag: 0x7777,
        serials: wire.immediate_serials(),
    };
    wire.send(request, &[]);
    match wire.hear() {
        (Response::TaskManagement(response), _) => {
            assert_eq!(response.task_tag, 0x7777);
            response.result
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn tasks_are_aborted_and_their_late_data_is_ignored() {
    let mut wire = Wire::plain();
    let cmd_sn = wire.cmd_sn;
    let tag = wire.start(0, &range(0x2a, 0, 4), WRITE, 2048, &[]);
    let r2t = wire.hear_r2t();
    let abort = TaskFunction::AbortTask { task_tag: tag, cmd_sn };
    assert_eq!(manage(&mut wire, 0, abort), TaskResult::Complete);
    wire.answer_r2t(&r2t, &[1; 2048]);
    wire.hear_nothing();
    assert_eq!(manage(&mut wire, 0, abort), TaskResult::NoSuchTask);
    assert_eq!(wire.target.device().counters().of(0x2a), 0);
    // A command that is held has run, and is not answered any more.
    wire.target.hold(0x28);
    let cmd_sn = wire.cmd_sn;
    let tag = wire.start(0, &range(0x28, 0, 1), READ, 512, &[]);
    wire.hear_nothing();
    assert_eq!(wire.target.held(), 1);
    let abort = TaskFunction::AbortTask { task_tag: tag, cmd_sn };
    assert_eq!(manage(&mut wire, 0, abort), TaskResult::Complete);
    wire.target.release();
    wire.take_bytes();
    wire.hear_nothing();
    // One that has not come takes up its number, and never runs.
    let early = wire.command(0, &range(0x2a, 0, 1), WRITE, 512, &[1; 512]);
    let late = wire.command(0, &range(0x2a, 0, 1), WRITE, 512, &[2; 512]);
    wire.send(late.clone(), &[2; 512]);
    let abort = TaskFunction::AbortTask { task_tag: late.task_tag, cmd_sn: late.serials.cmd_sn };
    assert_eq!(manage(&mut wire, 0, abort), TaskResult::Complete);
    wire.send(early, &[1; 512]);
    wire.hear();
    assert_eq!(wire.status(0, &READY, READ, 0, &[]).0, 0);
    assert_eq!(wire.target.device().counters().of(0x2a), 1);
}

#[test]
fn answers_that_were_held_come_in_their_order() {
    let mut wire = Wire::plain();
    wire.target.hold(0x28);
    let tags = [0, 1].map(|lba| wire.start(0, &range(0x28, lba, 1), READ, 512, &[]));
    // What is done meanwhile is not in them.
    assert_eq!(wire.status(0, &range(0x2a, 0, 1), WRITE, 512, &[9; 512]).0, 0);
    wire.target.release();
    wire.take_bytes();
    for tag in tags {
        assert_eq!(wire.hear_data(tag).1, [0; 512]);
    }
    assert_eq!(wire.read(0, &range(0x28, 0, 1), 512).0, [9; 512]);
}

#[test]
fn a_reset_ends_the_tasks_of_everybody() {
    let mut wire = Wire::plain();
    let first = wire.link;
    wire.start(0, &range(0x2a, 0, 4), WRITE, 2048, &[]);
    let first_r2t = wire.hear_r2t();
    let kept = (wire.cmd_sn, wire.exp_stat_sn);
    wire.connect();
    wire.log_in(LoginConfig { isid: [0x80, 9, 9, 9, 9, 9], ..login() }).unwrap();
    for _ in [0, 1] {
        wire.status(0, &READY, READ, 0, &[]);
    }
    wire.start(0, &range(0x2a, 0, 4), WRITE, 2048, &[]);
    wire.hear_r2t();
    assert_eq!(manage(&mut wire, 5, TaskFunction::LogicalUnitReset), TaskResult::NoSuchLun);
    assert_eq!(manage(&mut wire, 0, TaskFunction::LogicalUnitReset), TaskResult::Complete);
    assert_eq!(sense_of(&wire.status(0, &READY, READ, 0, &[]).1), (6, 0x29, 3));
    // The other session's task is gone, too.
    wire.link = first;
    (wire.cmd_sn, wire.exp_stat_sn) = kept;
    wire.answer_r2t(&first_r2t, &[1; 2048]);
    wire.hear_nothing();
    assert_eq!(sense_of(&wire.status(0, &READY, READ, 0, &[]).1), (6, 0x29, 3));
    assert_eq!(wire.target.device().counters().of(0x2a), 0);
    for (function, result) in [
        (TaskFunction::AbortTaskSet, TaskResult::Complete),
        (TaskFunction::ClearTaskSet, TaskResult::Complete),
        (TaskFunction::ClearAca, TaskResult::NotSupported),
        (TaskFunction::TargetWarmReset, TaskResult::Complete),
        (
            TaskFunction::TaskReassign { task_tag: 1, exp_data_sn: Serial::new(0) },
            TaskResult::ReassignmentNotSupported,
        ),
    ] {
        assert_eq!(manage(&mut wire, 0, function), result);
    }
    // A cold reset closes all connections.
    assert_eq!(manage(&mut wire, 0, TaskFunction::TargetColdReset), TaskResult::Complete);
    assert!(!wire.is_open());
    assert_eq!(wire.target.take_cut().len(), 1);
}

#[test]
fn a_logout_ends_what_it_names() {
    let cases = [
        (LogoutReason::CloseConnection, 9, LogoutResult::CidNotFound),
        (LogoutReason::RemoveConnectionForRecovery, 4, LogoutResult::RecoveryNotSupported),
        (LogoutReason::CloseConnection, 4, LogoutResult::Success),
        (LogoutReason::CloseSession, 9, LogoutResult::Success),
    ];
    for (reason, cid, expected) in cases {
        let mut wire = Wire::plain();
        let serials = wire.serials();
        let delivery = Delivery::Ordered;
        wire.send(LogoutRequest { delivery, reason, task_tag: 3, cid, serials }, &[]);
        let (Response::Logout(response), _) = wire.hear() else { panic!("no logout") };
        assert_eq!(response.result, expected);
        assert_eq!(wire.is_open(), expected != LogoutResult::Success);
    }
}

#[test]
fn messages_are_told_when_asked_for() {
    let mut wire = Wire::plain();
    let link = wire.link;
    let sense = [0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x2a, 9, 0, 0, 0, 0];
    wire.target.tell(link, AsyncEvent::Scsi, 1, &sense);
    wire.target.tell(link, AsyncEvent::LogoutRequested { within_secs: 3 }, 0, &[]);
    wire.take_bytes();
    let (Response::AsyncMessage(message), data) = wire.hear() else { panic!("no message") };
    assert_eq!((message.event, message.lun[1]), (AsyncEvent::Scsi, 1));
    assert_eq!(SenseSegment::parse(&data).unwrap().sense, sense);
    let (Response::AsyncMessage(message), _) = wire.hear() else { panic!("no message") };
    assert_eq!(message.event, AsyncEvent::LogoutRequested { within_secs: 3 });
}

#[test]
fn what_is_not_understood_is_rejected_and_the_session_goes_on() {
    let mut wire = Wire::plain();
    let mut unknown = [0; 48];
    unknown[0] = 0x1c;
    unknown[7] = 3;
    wire.say(&[&unknown[..], &[1, 2, 3, 0]].concat());
    assert_eq!(rejected(&mut wire).reason, RejectReason::CommandNotSupported);
    // A PDU that only targets send.
    unknown[0] = 0x25;
    unknown[7] = 0;
    wire.say(&unknown);
    assert_eq!(rejected(&mut wire).reason, RejectReason::ProtocolError);
    // A command with a field that cannot be; it takes its turn.
    let command = wire.command(0, &READY, READ, 0, &[]);
    let mut bytes = wire.encode(&Request::from(command), &[]);
    bytes[1] = 0x87;
    wire.say(&bytes);
    assert_eq!(rejected(&mut wire).reason, RejectReason::InvalidField);
    assert_eq!(wire.exp_cmd_sn, wire.cmd_sn);
    assert_eq!(wire.status(0, &READY, READ, 0, &[]).0, 0);
    // More data than was agreed on.
    let mut long = [0; 48];
    long[5] = 0x10;
    wire.say(&long);
    assert_eq!(rejected(&mut wire).reason, RejectReason::ProtocolError);
    assert!(!wire.is_open());
}

#[test]
fn a_script_does_wrong_once_and_where_it_says() {
    let mut wire = Wire::plain();
    let script = Script::new()
        .with(On::Answer(0x28), 2, Fault::StatSn(5))
        .with(On::Answer(0x28), 3, Fault::ShortData(100))
        .with(On::Answer(0x28), 4, Fault::Twice)
        .with(On::Answer(0x28), 5, Fault::Swallow)
        .with(On::Answer(0x28), 6, Fault::Reject(RejectReason::ProtocolError))
        .with(On::Answer(0x28), 7, Fault::Late(1))
        .with(On::Answer(0x28), 9, Fault::Cut(60));
    wire.target.set_script(script);
    let read = range(0x28, 0, 1);
    assert_eq!(wire.read(0, &read, 512).0.len(), 512);
    let mut say = |faulty: bool| {
        if faulty {
            // What comes is looked at without keeping numbers.
            wire.exp_stat_sn = wire.exp_stat_sn.next();
        }
        wire.start(0, &read, READ, 512, &[]);
        let mut pdus = Vec::new();
        while let Some((head, data)) = wire.next_pdu() {
            pdus.push((Response::parse(&head).unwrap(), data.len()));
        }
        (pdus, wire.exp_stat_sn)
    };
    let stat_sn = |pdus: &[(Response, usize)]| match &pdus[0].0 {
        Response::DataIn(pdu) => pdu.serials.stat_sn,
        other => panic!("{other:?}"),
    };
    let (pdus, expected) = say(true);
    assert_eq!(stat_sn(&pdus), expected.plus(4));
    assert_eq!(say(true).0[0].1, 412);
    assert_eq!(say(true).0.len(), 2);
    assert_eq!(say(true).0.len(), 0);
    assert!(matches!(say(true).0[..], [(Response::Reject(_), 48)]));
    assert_eq!(say(true).0.len(), 0);
    let (pdus, _) = say(true);
    assert_eq!((pdus.len(), stat_sn(&pdus)), (2, stat_sn(&pdus[1..]).next()));
    wire.start(0, &read, READ, 512, &[]);
    assert_eq!((wire.bytes_left(), wire.is_open()), (60, false));
    assert_eq!(wire.target.script().unwrap().pending(), 0);
}

/// Answers that wait for room are not lost, and what is held has a bound.
#[test]
fn requests_wait_while_answers_do() {
    let mut wire = Wire::plain();
    let commands: Vec<_> = (0..20)
        .map(|_| {
            let command = wire.command(0, &range(0x28, 0, 2048), READ, 1 << 20, &[]);
            wire.encode(&Request::from(command), &[])
        })
        .collect();
    wire.target.handle_bytes(wire.link, &commands.concat());
    let (mut total, mut most) = (0, 0);
    let mut bytes = Vec::new();
    loop {
        wire.target.transmit(wire.link, &mut bytes);
        if bytes.is_empty() {
            break;
        }
        (total, most) = (total + bytes.len(), most.max(bytes.len()));
    }
    assert!(total > 20 << 20);
    assert!(most < 6 << 20, "{most} bytes at once");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    /// Any header in a session is answered or refused.
    #[test]
    fn any_bytes_never_panic(
        opcode in prop_oneof![0..8_u8, Just(0x10), any::<u8>()],
        mut head in prop::collection::vec(prop_oneof![Just(0), any::<u8>()], 47),
        data in prop::collection::vec(any::<u8>(), 0..300),
        in_turn in any::<bool>(),
        piece in 1..400_usize,
    ) {
        let mut wire = Wire::plain();
        let waiting = wire.start(0, &range(0x2a, 0, 40), WRITE, 40 * 512, &[]);
        head[3] &= 1;
        head[4..6].fill(0);
        if in_turn {
            head[23..27].copy_from_slice(&wire.cmd_sn.value().to_be_bytes());
            head[15..19].copy_from_slice(&waiting.to_be_bytes());
        }
        let bytes = [&[opcode], &head[..], &data].concat();
        for piece in bytes.chunks(piece) {
            wire.target.handle_bytes(wire.link, piece);
        }
        let mut out = Vec::new();
        wire.target.transmit(wire.link, &mut out);
        prop_assert!(out.len() < 1 << 20);
        wire.target.disconnect(wire.link);
    }

    #[test]
    fn any_login_never_panics(
        flags in any::<u8>(),
        text in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            "(InitiatorName=a\0|TargetName=[a-z]{3}\0|SessionType=Discovery\0|AuthMethod=(CHAP|None)\0|CHAP_A=5\0|CHAP_N=a\0|CHAP_R=0x00\0){0,5}"
                .prop_map(String::into_bytes),
        ],
        times in 1..4,
    ) {
        let mut wire = Wire::new(target(|_| {}));
        let mut head = [0; 48];
        (head[0], head[1]) = (0x43, flags);
        let len = u8::try_from(text.len() / 4 * 4).unwrap();
        head[7] = len;
        for _ in 0..times {
            wire.target.handle_bytes(wire.link, &head);
            wire.target.handle_bytes(wire.link, &text[..usize::from(len)]);
        }
    }
}

#[test]
fn data_behind_an_end_is_not_looked_at() {
    let mut wire = Wire::plain();
    let tag = wire.start(0, &range(0x2a, 0, 4), WRITE, 2048, &[]);
    let r2t = wire.hear_r2t();
    wire.data_out((tag, Some(r2t.target_tag)), 0, 0, &[1; 2048], Sequence::Ends);
    assert_eq!(wire.hear_status(tag).0, 0);
    wire.data_out((tag, Some(r2t.target_tag)), 1, 2048, &[1; 512], Sequence::Ends);
    assert_eq!(rejected(&mut wire).reason, RejectReason::ProtocolError);
}
