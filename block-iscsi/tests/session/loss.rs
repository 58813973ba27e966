//! Connections that are lost, and what becomes of the tasks.

use std::time::Duration;

use block_iscsi::keys::Pair;
use block_iscsi::keys::text::encode;
use block_iscsi::nexus::{Command, NexusEvent, TaskError};
use block_iscsi::pdu::Request;
use block_iscsi::pdu::async_event::{AsyncEvent, AsyncMessage};
use block_iscsi::pdu::fields::DataLen;
use block_iscsi::pdu::login::{LoginAnswer, LoginStatus};
use block_iscsi::pdu::logout::{LogoutReason, LogoutResponse, LogoutResult};
use block_iscsi::pdu::nop::NopIn;
use block_iscsi::pdu::reject::RejectReason;
use block_iscsi::pdu::text::{TextReply, TextResponse};
use block_iscsi::session::{
    Answer, Awaited, ConnectionError, Patience, SessionConfig, SessionError, SessionEvent,
    VIOLATIONS_MAX, Wanted,
};

use crate::peer::{
    KEYS, MILLI, Peer, SECOND, buffer, config, pattern, portal, read, unsafe_write, write,
};

const CLOSED: SessionError = SessionError::Connection(ConnectionError::Closed);

fn cut(peer: &mut Peer) {
    peer.session.handle_disconnected(ConnectionError::Closed, peer.now);
}

fn opcodes(peer: &mut Peer) -> Vec<u8> {
    peer.listen();
    let first = |(request, _): (Request, Vec<u8>)| match request {
        Request::ScsiCommand(command) => command.cdb.head()[0],
        other => panic!("{other:?}"),
    };
    peer.heard.drain(..).map(first).collect()
}

#[test]
fn tasks_are_sent_again_in_their_order_and_those_that_must_not_fail() {
    let mut peer = Peer::up(config(), KEYS);
    let buf = buffer(512);
    let a = peer.submit(write(&pattern(4096)));
    let b = peer.submit(unsafe_write(&pattern(512)));
    let c = peer.submit(read(&buf));
    assert_eq!(opcodes(&mut peer), [0x2a, 0x2a, 0x28]);
    // Never sent, so it may still run.
    let d = peer.submit(unsafe_write(&pattern(512)));
    cut(&mut peer);
    assert_eq!(peer.events(), [SessionEvent::Done(b), SessionEvent::Down(CLOSED)]);
    assert_eq!(peer.result(b), Some(Err(TaskError::Unknown)));
    peer.reconnect();
    peer.log_in(KEYS);
    let reinstated = SessionEvent::Nexus(NexusEvent::Reinstated);
    assert_eq!(peer.events(), [reinstated, SessionEvent::Up]);
    let mut tags = Vec::new();
    for opcode in [0x2a, 0x28, 0x2a] {
        let (sent, _) = peer.hear_command();
        assert_eq!(sent.cdb.head()[0], opcode);
        tags.push(sent.task_tag);
    }
    for tag in [tags[0], tags[2]] {
        peer.say_status(tag, 0, &[]);
    }
    peer.data_in(tags[1], 0, 0, &[5; 512], true);
    let done = [a, d, c].map(SessionEvent::Done);
    assert_eq!(peer.events(), done);
    assert_eq!(buf.to_vec(), [5; 512]);
}

/// Nobody knows what they mean there: sent or not, safe to repeat or not.
#[test]
fn commands_that_are_meant_for_one_session_are_not_sent_in_another() {
    let meant_for = |session, command| Command { session: Some(session), ..command };
    let mut peer = Peer::up(config(), KEYS);
    let sent = peer.submit(meant_for(0, write(&pattern(512))));
    let unknown = peer.submit(meant_for(0, unsafe_write(&pattern(512))));
    let any = peer.submit(write(&pattern(512)));
    opcodes(&mut peer);
    let waiting = peer.submit(meant_for(0, unsafe_write(&pattern(512))));
    cut(&mut peer);
    let away = peer.submit(meant_for(0, read(&buffer(512))));
    assert_eq!(peer.events(), [SessionEvent::Done(unknown), SessionEvent::Down(CLOSED)]);
    assert_eq!(peer.result(unknown), Some(Err(TaskError::Unknown)));
    peer.reconnect();
    peer.log_in(KEYS);
    let late = peer.submit(meant_for(0, write(&pattern(512))));
    let mut told = peer.events();
    assert_eq!(told.remove(0), SessionEvent::Nexus(NexusEvent::Reinstated));
    for (id, sent) in [(sent, true), (waiting, false), (away, false), (late, false)] {
        assert!(told.contains(&SessionEvent::Done(id)));
        assert_eq!(peer.result(id), Some(Err(TaskError::Reinstated { sent })));
    }
    let there = peer.submit(meant_for(1, read(&buffer(512))));
    assert_eq!(opcodes(&mut peer), [0x2a, 0x28]);
    assert_eq!((peer.result(any), peer.result(there)), (None, None));
}

#[test]
fn a_read_that_was_cut_starts_anew() {
    let mut peer = Peer::up(config(), KEYS);
    let buf = buffer(1024);
    let id = peer.submit(read(&buf));
    let tag = peer.hear_command().0.task_tag;
    peer.data_in(tag, 0, 0, &[1; 512], false);
    cut(&mut peer);
    peer.events();
    peer.reconnect();
    peer.log_in(KEYS);
    let tag = peer.hear_command().0.task_tag;
    peer.data_in(tag, 0, 0, &[2; 1024], true);
    assert!(peer.result(id).unwrap().is_ok());
    assert_eq!(buf.to_vec(), [2; 1024]);
}

#[test]
fn attempts_to_come_back_wait_longer_each_time_and_end_with_the_outage() {
    let outage = Some(SECOND * 2);
    let patience = Patience { outage, ..Patience::default() };
    let mut peer = Peer::up(SessionConfig { patience, ..config() }, KEYS);
    let id = peer.submit(write(&pattern(512)));
    peer.hear_command();
    let mut waits = Vec::new();
    cut(&mut peer);
    for _ in 0..6 {
        let start = peer.now;
        while peer.session.wanted(peer.now) == Wanted::Nothing {
            peer.now = peer.session.poll_timeout().unwrap();
            peer.session.handle_timeout(peer.now);
        }
        assert_eq!(peer.session.wanted(peer.now), Wanted::Connection(portal("one.example")));
        waits.push((peer.now - start).as_millis());
        cut(&mut peer);
    }
    assert_eq!(waits, [0, 50, 100, 200, 400, 400]);
    assert_eq!(peer.result(id), None);
    peer.wait(SECOND * 2);
    while peer.session.wanted(peer.now) != Wanted::End {
        peer.now += 100 * MILLI;
        peer.session.handle_timeout(peer.now);
        assert!(peer.now < SECOND * 6);
    }
    assert_eq!(peer.result(id), Some(Err(TaskError::Ended)));
    let ended = SessionEvent::Ended(SessionError::TimedOut(Awaited::Outage));
    assert_eq!(peer.events().last(), Some(&ended));
}

/// Somebody waits for the first session: no attempt is made behind his back.
#[test]
fn the_first_connection_is_not_tried_again() {
    let mut peer = Peer::new(config());
    cut(&mut peer);
    assert_eq!(peer.events(), [SessionEvent::Ended(CLOSED)]);
    assert_eq!(peer.session.wanted(peer.now), Wanted::End);
    assert_eq!(peer.session.submit(write(&[0; 512]), peer.now), Err(TaskError::Ended));
}

#[test]
fn connections_and_logins_that_do_not_come_are_given_up() {
    let patience = Patience::default();
    let mut peer = Peer::up(config(), KEYS);
    cut(&mut peer);
    peer.events();
    assert!(matches!(peer.session.wanted(peer.now), Wanted::Connection(_)));
    peer.wait(patience.connect);
    let timed_out = |what| SessionEvent::Down(SessionError::TimedOut(what));
    assert_eq!(peer.events(), [timed_out(Awaited::Connection)]);
    peer.wait(SECOND);
    peer.session.wanted(peer.now);
    peer.reconnect();
    peer.wait(patience.login);
    assert_eq!(peer.events(), [timed_out(Awaited::Login)]);
}

#[test]
fn a_silent_target_is_pinged_and_then_given_up() {
    let patience = Patience::default();
    let mut peer = Peer::up(config(), KEYS);
    peer.wait(patience.ping_after);
    let (Request::NopOut(ping), _) = peer.hear() else { panic!("no ping") };
    let answer = NopIn {
        lun: [0; 8],
        task_tag: ping.task_tag,
        target_tag: None,
        serials: peer.next_status(),
        data_len: DataLen::ZERO,
    };
    peer.say(answer, &[]);
    peer.wait(patience.ping_after);
    assert!(matches!(peer.hear(), (Request::NopOut(_), _)));
    assert_eq!(peer.events(), []);
    peer.wait(patience.ping);
    let down = SessionEvent::Down(SessionError::TimedOut(Awaited::Ping));
    assert_eq!(peer.events(), [down]);
}

#[test]
fn a_target_that_breaks_the_protocol_again_and_again_is_left() {
    let mut peer = Peer::up(config(), KEYS);
    let buf = buffer(512);
    let id = peer.submit(read(&buf));
    for round in 1..=VIOLATIONS_MAX {
        let tag = peer.hear_command().0.task_tag;
        peer.data_in(tag, 0, 512, &[1; 512], true);
        match peer.events().pop() {
            Some(SessionEvent::Down(SessionError::Violation(_))) if round < VIOLATIONS_MAX => {}
            Some(SessionEvent::Ended(SessionError::Violation(_))) if round == VIOLATIONS_MAX => {
                break;
            }
            other => panic!("{other:?} in round {round}"),
        }
        peer.wait(SECOND);
        peer.reconnect();
        peer.log_in(KEYS);
    }
    assert_eq!(peer.result(id), Some(Err(TaskError::Ended)));
    assert_eq!(buf.to_vec(), [0; 512]);
}

#[test]
fn a_login_follows_redirections_and_then_starts_at_home_again() {
    let mut peer = Peer::new(config());
    let moved = LoginAnswer::Refused(LoginStatus::TargetMovedTemporarily);
    peer.answer_login(moved, 0, &[("TargetAddress", "two.example:3261,1")]);
    let two = block_iscsi::transport::Portal { port: 3261, ..portal("two.example") };
    assert_eq!(peer.session.wanted(peer.now), Wanted::Connection(two));
    peer.reconnect();
    peer.log_in(KEYS);
    assert_eq!(peer.events(), [SessionEvent::Up]);
    cut(&mut peer);
    assert_eq!(peer.session.wanted(peer.now), Wanted::Connection(portal("one.example")));
    for _ in 0..8 {
        peer.reconnect();
        peer.answer_login(moved, 0, &[("TargetAddress", "[fe80::1]:3260,1")]);
    }
    peer.reconnect();
    peer.events();
    peer.answer_login(moved, 0, &[("TargetAddress", "two.example")]);
    let down = SessionEvent::Down(SessionError::Redirects { limit: 8 });
    assert_eq!(peer.events(), [down]);
    // The next attempt is a new one.
    peer.wait(SECOND);
    peer.reconnect();
    peer.answer_login(moved, 0, &[("TargetAddress", "two.example")]);
    assert_eq!(peer.session.wanted(peer.now), Wanted::Connection(portal("two.example")));
    peer.reconnect();
    peer.log_in(KEYS);
    assert_eq!(peer.events().last(), Some(&SessionEvent::Up));
}

fn say_async(peer: &mut Peer, event: AsyncEvent) {
    let message =
        AsyncMessage { event, lun: [0; 8], serials: peer.next_status(), data_len: DataLen::ZERO };
    peer.say(message, &[]);
}

fn say_logged_out(peer: &mut Peer, task_tag: u32) {
    let response = LogoutResponse {
        result: LogoutResult::Success,
        task_tag,
        serials: peer.next_status(),
        time_to_wait_secs: 0,
        time_to_retain_secs: 0,
    };
    peer.say(response, &[]);
}

/// The session finishes what is under way, says goodbye, and comes back for the rest.
#[test]
fn a_target_that_wants_a_logout_gets_one() {
    let mut peer = Peer::up(config(), KEYS);
    let a = peer.submit(write(&pattern(512)));
    let (sent, _) = peer.hear_command();
    say_async(&mut peer, AsyncEvent::LogoutRequested { within_secs: 10 });
    let b = peer.submit(write(&pattern(512)));
    peer.hear_nothing();
    peer.say_status(sent.task_tag, 0, &[]);
    assert_eq!(peer.events(), [SessionEvent::Done(a)]);
    let (Request::Logout(logout), _) = peer.hear() else { panic!("no logout") };
    assert_eq!(logout.reason, LogoutReason::CloseSession);
    say_logged_out(&mut peer, logout.task_tag);
    assert_eq!(peer.events(), [SessionEvent::Down(SessionError::EndedByTarget)]);
    peer.reconnect();
    peer.log_in(KEYS);
    let (sent, _) = peer.hear_command();
    peer.say_status(sent.task_tag, 0, &[]);
    assert!(peer.events().contains(&SessionEvent::Done(b)));
}

/// They crossed its wish, and did not run (section 11.9.1).
#[test]
fn what_a_target_puts_off_before_a_logout_is_sent_after_it() {
    let mut peer = Peer::up(config(), KEYS);
    let buf = buffer(512);
    let a = peer.submit(unsafe_write(&pattern(512)));
    let text = peer.session.submit_text(&[Pair::new("SendTargets", "")], peer.now).unwrap();
    let bound = peer.submit(Command { session: Some(0), ..unsafe_write(&pattern(512)) });
    let b = peer.submit(read(&buf));
    peer.listen();
    let sent: Vec<_> = peer.heard.drain(..).map(|(request, _)| request.to_bhs()).collect();
    say_async(&mut peer, AsyncEvent::LogoutRequested { within_secs: 10 });
    // In whatever order.
    for at in [2, 0, 1] {
        peer.hear_nothing();
        peer.say_rejected(&sent[at], RejectReason::WaitingForLogout);
    }
    // What the target has taken is waited for, or comes again, too.
    peer.hear_nothing();
    peer.wait(SECOND * 5);
    assert_eq!(peer.events(), []);
    let (Request::Logout(logout), _) = peer.hear() else { panic!("no logout") };
    say_logged_out(&mut peer, logout.task_tag);
    assert_eq!(peer.events(), [SessionEvent::Down(SessionError::EndedByTarget)]);
    peer.reconnect();
    peer.log_in(KEYS);
    let reinstated = SessionEvent::Nexus(NexusEvent::Reinstated);
    assert_eq!(peer.events(), [reinstated, SessionEvent::Done(bound), SessionEvent::Up]);
    assert_eq!(peer.result(bound), Some(Err(TaskError::Reinstated { sent: false })));
    let (sent, _) = peer.hear_command();
    assert_eq!(sent.cdb.head()[0], 0x2a);
    peer.say_status(sent.task_tag, 0, &[]);
    assert!(matches!(peer.hear(), (Request::Text(_), data) if !data.is_empty()));
    peer.exp_cmd_sn = peer.exp_cmd_sn.next();
    let (sent, _) = peer.hear_command();
    peer.data_in(sent.task_tag, 0, 0, &[5; 512], true);
    assert_eq!(peer.events(), [a, b].map(SessionEvent::Done));
    assert_eq!(peer.result(text), None);
}

/// The target's tag means nothing in the next session.
#[test]
fn a_text_that_a_logout_interrupts_starts_anew() {
    let mut peer = Peer::up(config(), KEYS);
    let id = peer.session.submit_text(&[Pair::new("SendTargets", "")], peer.now).unwrap();
    let found = vec![Pair::new("TargetName", "iqn.a:b")];
    let text = encode(&found);
    for round in 0..2 {
        let (Request::Text(request), data) = peer.hear() else { panic!("no text") };
        assert_eq!((request.target_tag, data.is_empty()), (None, false));
        let (reply, part) = match round {
            0 => (TextReply::Partial { target_tag: 44 }, &text[..3]),
            _ => (TextReply::Final, &text[..]),
        };
        say_async(&mut peer, AsyncEvent::LogoutRequested { within_secs: 10 });
        peer.exp_cmd_sn = peer.exp_cmd_sn.next();
        let (serials, data_len) = (peer.next_status(), DataLen::of(part).unwrap());
        let (lun, task_tag) = ([0; 8], request.task_tag);
        peer.say(TextResponse { reply, lun, task_tag, serials, data_len }, part);
        if round == 0 {
            let (Request::Logout(logout), _) = peer.hear() else { panic!("no logout") };
            say_logged_out(&mut peer, logout.task_tag);
            peer.reconnect();
            peer.log_in(KEYS);
        }
    }
    assert_eq!(peer.result(id), Some(Ok(Answer::Text(found))));
}

/// It has not said before that it waits for one.
#[test]
fn a_target_that_waits_for_a_logout_gets_one() {
    let mut peer = Peer::up(config(), KEYS);
    let a = peer.submit(write(&pattern(512)));
    let b = peer.submit(write(&pattern(512)));
    let (taken, _) = peer.hear_command();
    let (refused, _) = peer.hear_command();
    peer.say_rejected(&refused.to_bhs(), RejectReason::WaitingForLogout);
    peer.hear_nothing();
    peer.say_status(taken.task_tag, 0, &[]);
    assert!(matches!(peer.hear(), (Request::Logout(_), _)));
    assert_eq!(peer.events(), [SessionEvent::Done(a)]);
    assert_eq!(peer.result(b), None);
}

/// Nobody would wait for ever.
#[test]
fn a_target_that_puts_off_the_same_command_again_and_again_has_refused_it() {
    let mut peer = Peer::up(config(), KEYS);
    let id = peer.submit(unsafe_write(&pattern(512)));
    let mut rounds = 0;
    loop {
        let (sent, _) = peer.hear_command();
        // Other commands end well.
        let other = peer.submit(read(&buffer(512)));
        let tag = peer.hear_command().0.task_tag;
        peer.data_in(tag, 0, 0, &[5; 512], true);
        assert!(peer.result(other).is_some());
        peer.say_rejected(&sent.to_bhs(), RejectReason::WaitingForLogout);
        if let Some(result) = peer.result(id) {
            let reason = RejectReason::WaitingForLogout;
            assert_eq!(result, Err(TaskError::Rejected { reason }));
            break;
        }
        let (Request::Logout(logout), _) = peer.hear() else { panic!("no logout") };
        say_logged_out(&mut peer, logout.task_tag);
        peer.wait(SECOND);
        peer.reconnect();
        peer.log_in(KEYS);
        rounds += 1;
    }
    assert_eq!(rounds, 32);
}

/// Nobody would ever hear of the tasks that the target has dropped.
#[test]
fn a_target_that_has_ended_all_tasks_gets_them_again() {
    let mut peer = Peer::up(config(), KEYS);
    let id = peer.submit(write(&pattern(512)));
    peer.hear_command();
    say_async(&mut peer, AsyncEvent::TasksTerminated);
    assert_eq!(peer.events(), [SessionEvent::Down(SessionError::EndedByTarget)]);
    peer.reconnect();
    peer.log_in(KEYS);
    let (sent, _) = peer.hear_command();
    peer.say_status(sent.task_tag, 0, &[]);
    assert!(peer.events().contains(&SessionEvent::Done(id)));
}

/// But not for hours, whatever it says.
#[test]
fn a_target_that_goes_away_for_a_while_is_left_alone_so_long() {
    for (time_to_wait_secs, waits) in [(3, 3), (60, 60), (61, 60), (u16::MAX, 60)] {
        let mut peer = Peer::up(config(), KEYS);
        let event = AsyncEvent::DropsAllConnections { time_to_wait_secs, time_to_retain_secs: 0 };
        say_async(&mut peer, event);
        peer.wait(SECOND * waits - MILLI);
        assert_eq!(peer.session.wanted(peer.now), Wanted::Nothing);
        peer.now += MILLI;
        assert!(matches!(peer.session.wanted(peer.now), Wanted::Connection(_)));
    }
}

#[test]
fn closing_waits_for_what_is_under_way_and_logs_out() {
    for answers in [true, false] {
        let mut peer = Peer::up(config(), KEYS);
        let id = peer.submit(write(&pattern(512)));
        let (sent, _) = peer.hear_command();
        peer.session.close(peer.now);
        assert_eq!(peer.session.submit(write(&[0; 512]), peer.now), Err(TaskError::Ended));
        peer.hear_nothing();
        peer.say_status(sent.task_tag, 0, &[]);
        assert_eq!(peer.events(), [SessionEvent::Done(id)]);
        let (Request::Logout(logout), _) = peer.hear() else { panic!("no logout") };
        if answers {
            say_logged_out(&mut peer, logout.task_tag);
        } else {
            peer.wait(Duration::from_secs(3));
        }
        assert_eq!(peer.events(), [SessionEvent::Ended(SessionError::Closed)]);
        assert_eq!(peer.session.wanted(peer.now), Wanted::End);
    }
}

/// Whatever the target does at the login, it is not asked again and again without a pause, and a
/// task that the connection does not survive is given up.
#[test]
fn a_connection_that_never_survives_a_task_is_not_made_for_ever() {
    let mut peer = Peer::up(config(), KEYS);
    let id = peer.submit(write(&pattern(512)));
    let mut rounds = 0;
    let mut waited = Duration::ZERO;
    while peer.result(id).is_none() {
        peer.hear_command();
        cut(&mut peer);
        let start = peer.now;
        while peer.session.wanted(peer.now) == Wanted::Nothing {
            peer.now = peer.session.poll_timeout().unwrap();
            peer.session.handle_timeout(peer.now);
        }
        waited += peer.now - start;
        peer.reconnect();
        peer.log_in(KEYS);
        rounds += 1;
    }
    assert_eq!(rounds, 33);
    assert!(waited > 28 * Duration::from_millis(400), "{waited:?}");
    // A session that works is made again at once.
    let id = peer.submit(write(&pattern(512)));
    let (sent, _) = peer.hear_command();
    peer.say_status(sent.task_tag, 0, &[]);
    assert!(peer.result(id).is_some());
    cut(&mut peer);
    assert!(matches!(peer.session.wanted(peer.now), Wanted::Connection(_)));
}
