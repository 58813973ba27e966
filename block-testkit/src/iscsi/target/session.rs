//! A session in the full feature phase: the order of requests, and what is not a SCSI command
//! (RFC 7143, sections 4.2.2, 11.5, 11.10, 11.14, 11.17, 11.18).
//!
//! Invariants: ordered requests are carried out in the order of CmdSN, each once; what waits for its
//! turn is in the window, so there are at most as many requests as the window is long.

use std::collections::BTreeMap;

use block_iscsi::keys::text::{TEXT_LEN_MAX, TextBuffer, encode};
use block_iscsi::keys::{NOT_UNDERSTOOD, Pair, REJECT};
use block_iscsi::pdu::bhs::{BHS_LEN, Bhs, Opcode};
use block_iscsi::pdu::fields::{DataLen, Delivery, ResponseSerials};
use block_iscsi::pdu::logout::{LogoutReason, LogoutRequest, LogoutResponse, LogoutResult};
use block_iscsi::pdu::nop::{NopIn, NopOut};
use block_iscsi::pdu::reject::{Reject, RejectReason};
use block_iscsi::pdu::text::{TextReply, TextRequest, TextResponse, TextStep};
use block_iscsi::pdu::{Pdu, PduError, Request};
use block_iscsi::serial::Serial;

use super::Core;
use super::command::Tasks;
use super::frame::Frame;
use super::keys::{Agreed, Kind, declare_len};
use super::login::{Identity, PORTAL_GROUP};
use super::output::Output;
use crate::iscsi::Nexus;

/// Longest text that a text request makes us send.
const REPLY_LEN_MAX: usize = 1 << 16;
/// Our tag of text exchanges, of which there is one at a time.
const TEXT_TAG: u32 = 0x7e87;
/// What goes with that tag, both ways.
const TEXT_LUN: [u8; 8] = [0, 0x7e, 0, 0, 0, 0, 0, 0x87];

/// Header and data of a request.
type Kept = (Vec<u8>, Vec<u8>);

/// A session, which has one connection.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) identity: Identity,
    pub(super) nexus: Nexus,
    pub(super) agreed: Agreed,
    pub(super) tasks: Tasks,
    exp_cmd_sn: Serial,
    stat_sn: Serial,
    window: u32,
    /// Requests that came before their turn, header and data; nothing of those that were aborted.
    early: BTreeMap<u32, Option<Kept>>,
    text: TextBuffer,
    /// What is left of a text that is cut to pieces.
    text_rest: Option<Vec<u8>>,
    /// Pings that we sent and the initiator has answered.
    pongs: u64,
}

/// What becomes of the connection.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    Stays,
    /// It is closed when everything has been sent.
    Ends,
}

/// Something that concerns other sessions too, or all of this one.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Sweep {
    /// Tasks of one unit are gone.
    Unit(u16),
    /// All tasks are gone.
    All,
    /// All connections end.
    Connections,
}

impl Session {
    pub(super) fn new(
        identity: Identity,
        nexus: Nexus,
        agreed: Agreed,
        cmd_sn: Serial,
        stat_sn: Serial,
        window: u32,
    ) -> Self {
        Self {
            identity,
            nexus,
            agreed,
            tasks: Tasks::default(),
            exp_cmd_sn: cmd_sn,
            stat_sn,
            window: window.max(1),
            early: BTreeMap::new(),
            text: TextBuffer::new(TEXT_LEN_MAX),
            text_rest: None,
            pongs: 0,
        }
    }

    /// Goes on over another connection, whose login ended with these numbers (connection
    /// reinstatement at level 0: the tasks are gone).
    pub(super) fn reinstate(&mut self, agreed: Agreed, cmd_sn: Serial, stat_sn: Serial) {
        self.tasks = Tasks::default();
        self.early.clear();
        (self.agreed, self.exp_cmd_sn, self.stat_sn) = (agreed, cmd_sn, stat_sn);
        self.text_rest = None;
    }

    /// Pings that the initiator has answered.
    pub(super) fn pongs(&self) -> u64 {
        self.pongs
    }

    /// The numbers of a PDU that takes no status number.
    pub(super) fn serials(&self) -> ResponseSerials {
        let room = self.window.saturating_sub(self.tasks.ordered());
        ResponseSerials {
            stat_sn: self.stat_sn,
            exp_cmd_sn: self.exp_cmd_sn,
            max_cmd_sn: self.exp_cmd_sn.plus(room).minus(1),
        }
    }

    /// The numbers of a PDU that takes a status number.
    pub(super) fn take_serials(&mut self) -> ResponseSerials {
        let serials = self.serials();
        self.stat_sn = self.stat_sn.next();
        serials
    }

    /// Takes a PDU.
    pub(super) fn handle(&mut self, frame: Frame<'_>, out: &mut Output, core: &mut Core) -> Fate {
        if !frame.intact {
            self.reject(RejectReason::DataDigestError, frame.header, out);
            if let Ok(Request::DataOut(pdu)) = parse(frame.header) {
                self.data_out(&pdu, frame, out, core);
            }
            return Fate::Stays;
        }
        let fate = self.request(frame, out, core);
        self.tidy(fate, out, core)
    }

    /// Carries out what now is in turn.
    fn tidy(&mut self, mut fate: Fate, out: &mut Output, core: &mut Core) -> Fate {
        while fate == Fate::Stays
            && let Some(kept) = self.early.remove(&self.exp_cmd_sn.value())
        {
            let Some((header, data)) = kept else {
                self.exp_cmd_sn = self.exp_cmd_sn.next();
                continue;
            };
            fate = self.request(Frame { header: &header, data: &data, intact: true }, out, core);
        }
        fate
    }

    fn request(&mut self, frame: Frame<'_>, out: &mut Output, core: &mut Core) -> Fate {
        let request = match parse(frame.header) {
            Ok(request) => request,
            Err(error) => {
                self.skip(frame.header);
                let reason = match error {
                    PduError::Opcode { .. } => RejectReason::CommandNotSupported,
                    PduError::Unexpected { .. } => RejectReason::ProtocolError,
                    _ => RejectReason::InvalidField,
                };
                self.reject(reason, frame.header, out);
                return Fate::Stays;
            }
        };
        if let Some(cmd_sn) = ordered(&request)
            && !self.turn(cmd_sn, frame)
        {
            return Fate::Stays;
        }
        match request {
            Request::ScsiCommand(command) => self.command(&command, frame, out, core),
            Request::DataOut(pdu) => self.data_out(&pdu, frame, out, core),
            Request::NopOut(nop) => self.nop(&nop, frame.data, out),
            Request::TaskManagement(request) => return self.manage(&request, out, core),
            Request::Text(request) => self.texts(&request, frame, out, core),
            Request::Logout(request) => return self.logout(&request, out),
            // ErrorRecoveryLevel is 0.
            Request::Snack(_) => self.reject(RejectReason::SnackReject, frame.header, out),
            Request::Login(_) => {
                self.reject(RejectReason::ProtocolError, frame.header, out);
                return Fate::Ends;
            }
        }
        Fate::Stays
    }

    /// Takes up a number of the window, and forgets the request that waits under it, if one does.
    pub(super) fn forget(&mut self, cmd_sn: Serial) {
        self.early.insert(cmd_sn.value(), None);
    }

    /// Whether an ordered request may be carried out now. If not, it is kept for its turn, or it is
    /// none of the window's and is ignored (section 4.2.2.1).
    fn turn(&mut self, cmd_sn: Serial, frame: Frame<'_>) -> bool {
        let after_last = self.serials().max_cmd_sn.next();
        if !cmd_sn.is_before(after_last) {
            return false;
        }
        if cmd_sn == self.exp_cmd_sn {
            self.exp_cmd_sn = cmd_sn.next();
            return true;
        }
        if cmd_sn.is_after(self.exp_cmd_sn) {
            let kept = || Some((frame.header.to_vec(), frame.data.to_vec()));
            self.early.entry(cmd_sn.value()).or_insert_with(kept);
        }
        false
    }

    /// A request that cannot be understood takes its turn, so that those behind it are not stuck.
    fn skip(&mut self, header: &[u8]) {
        let Ok(bhs) = Bhs::parse(header) else { return };
        let counted = matches!(
            bhs.opcode(),
            Opcode::NopOut
                | Opcode::ScsiCommand
                | Opcode::TaskManagementRequest
                | Opcode::TextRequest
                | Opcode::LogoutRequest
        );
        let [_, _, _, _, a, b, c, d, ..] = bhs.specific_tail;
        let cmd_sn = Serial::new(u32::from_be_bytes([a, b, c, d]));
        if counted && !bhs.is_immediate() && cmd_sn == self.exp_cmd_sn {
            self.exp_cmd_sn = cmd_sn.next();
        }
    }

    /// Refuses a PDU (section 11.17).
    pub(super) fn reject(&mut self, reason: RejectReason, header: &[u8], out: &mut Output) {
        let header = header.get(..BHS_LEN).unwrap_or(header);
        let reject = Reject {
            reason,
            serials: self.take_serials(),
            data_sn: Serial::default(),
            data_len: DataLen::of(header).unwrap_or_default(),
        };
        out.put(&reject.to_bytes(), header);
    }

    fn nop(&mut self, nop: &NopOut, data: &[u8], out: &mut Output) {
        let Some(task_tag) = nop.task_tag else {
            self.pongs += u64::from(nop.target_tag.is_some());
            return;
        };
        let len = data.len().min(self.send_len());
        let data = data.get(..len).unwrap_or_default();
        let answer = NopIn {
            lun: nop.lun,
            task_tag: Some(task_tag),
            target_tag: None,
            serials: self.take_serials(),
            data_len: DataLen::of(data).unwrap_or_default(),
        };
        out.put(&answer.to_bytes(), data);
    }

    /// Asks the initiator whether it is there (section 11.19).
    pub(super) fn ping(&mut self, target_tag: u32, out: &mut Output) {
        let serials = self.serials();
        let target_tag = Some(target_tag);
        let data_len = DataLen::ZERO;
        let ping = NopIn { lun: [0; 8], task_tag: None, target_tag, serials, data_len };
        out.put(&ping.to_bytes(), &[]);
    }

    /// Longest data segment that the initiator takes.
    pub(super) fn send_len(&self) -> usize {
        block_core::range::to_usize(self.agreed.max_send_data_segment_len.into())
    }

    fn logout(&mut self, request: &LogoutRequest, out: &mut Output) -> Fate {
        let result = match request.reason {
            LogoutReason::CloseSession => LogoutResult::Success,
            LogoutReason::CloseConnection if request.cid == self.identity.cid => {
                LogoutResult::Success
            }
            LogoutReason::CloseConnection => LogoutResult::CidNotFound,
            LogoutReason::RemoveConnectionForRecovery => LogoutResult::RecoveryNotSupported,
        };
        let response = LogoutResponse {
            result,
            task_tag: request.task_tag,
            serials: self.take_serials(),
            time_to_wait_secs: self.agreed.time_to_wait_secs,
            time_to_retain_secs: 0,
        };
        out.put(&response.to_bytes(), &[]);
        if result == LogoutResult::Success { Fate::Ends } else { Fate::Stays }
    }

    fn texts(&mut self, request: &TextRequest, frame: Frame<'_>, out: &mut Output, core: &Core) {
        let named = request.target_tag.map(|tag| (tag, request.lun));
        let strange = named.is_some_and(|named| named != (TEXT_TAG, TEXT_LUN));
        if request.target_tag.is_none() {
            // It starts anew.
            self.text_rest = None;
        }
        if strange || (self.text_rest.is_some() && !frame.data.is_empty()) {
            return self.reject(RejectReason::ProtocolError, frame.header, out);
        }
        if let Some(rest) = self.text_rest.take() {
            return self.say(request, rest, core, out);
        }
        if self.text.push(frame.data).is_err() {
            self.text = TextBuffer::new(TEXT_LEN_MAX);
            return self.reject(RejectReason::ProtocolError, frame.header, out);
        }
        if request.step == TextStep::Partial {
            let reply = TextReply::Open { target_tag: TEXT_TAG };
            return self.reply(request, reply, &[], out);
        }
        let Ok(pairs) = self.text.take_pairs() else {
            return self.reject(RejectReason::ProtocolError, frame.header, out);
        };
        let mut answers = Vec::new();
        for pair in &pairs {
            self.answer_text(pair, core, &mut answers);
        }
        let mut text = encode(&answers);
        text.truncate(REPLY_LEN_MAX);
        self.say(request, text, core, out);
    }

    /// Sends a text, or its first piece.
    fn say(&mut self, request: &TextRequest, mut text: Vec<u8>, core: &Core, out: &mut Output) {
        let piece = self.send_len().min(core.config.limits.text_len.max(1));
        if text.len() > piece {
            self.text_rest = Some(text.split_off(piece));
            let reply = TextReply::Partial { target_tag: TEXT_TAG };
            return self.reply(request, reply, &text, out);
        }
        let reply = match request.step {
            TextStep::Final => TextReply::Final,
            TextStep::Open | TextStep::Partial => TextReply::Open { target_tag: TEXT_TAG },
        };
        self.reply(request, reply, &text, out);
    }

    fn reply(&mut self, request: &TextRequest, reply: TextReply, text: &[u8], out: &mut Output) {
        let response = TextResponse {
            reply,
            lun: if reply == TextReply::Final { [0; 8] } else { TEXT_LUN },
            task_tag: request.task_tag,
            serials: self.take_serials(),
            data_len: DataLen::of(text).unwrap_or_default(),
        };
        out.put(&response.to_bytes(), text);
    }

    /// Answers a key outside of the login: SendTargets (section 4.3 and appendix C), and what may be
    /// declared again.
    fn answer_text(&mut self, pair: &Pair, core: &Core, answers: &mut Vec<Pair>) {
        let names = &core.config.names;
        let refused = |value: &str| Pair::new(&pair.key, value);
        match (pair.key.as_str(), pair.value.as_str(), self.identity.kind) {
            ("SendTargets", "All", Kind::Discovery) => {
                names.iter().for_each(|name| tell(name, core, answers));
            }
            ("SendTargets", "", Kind::Normal) => tell(&self.identity.target, core, answers),
            ("SendTargets", "All" | "", _) => answers.push(refused(REJECT)),
            ("SendTargets", wanted, Kind::Discovery) => {
                let found = names.iter().filter(|name| name.as_str() == wanted);
                found.for_each(|name| tell(name, core, answers));
            }
            ("SendTargets", wanted, Kind::Normal) if wanted == self.identity.target => {
                tell(wanted, core, answers);
            }
            ("SendTargets", _, Kind::Normal) => answers.push(refused(REJECT)),
            ("InitiatorAlias", ..) => {}
            ("MaxRecvDataSegmentLength", value, _) => {
                let no = declare_len(&mut self.agreed.max_send_data_segment_len, value);
                answers.extend(no.map(|value| refused(&value)));
            }
            _ => answers.push(refused(NOT_UNDERSTOOD)),
        }
    }
}

/// TargetName and TargetAddress.
fn tell(name: &str, core: &Core, answers: &mut Vec<Pair>) {
    answers.push(Pair::new("TargetName", name));
    let address = format!("{},{PORTAL_GROUP}", core.config.portal);
    answers.push(Pair::new("TargetAddress", &address));
}

fn parse(header: &[u8]) -> Result<Request, PduError> {
    Request::parse(header)
}

/// CmdSN of a request that waits for its turn.
fn ordered(request: &Request) -> Option<Serial> {
    let (delivery, serials) = match request {
        Request::NopOut(pdu) => (pdu.delivery, pdu.serials),
        Request::ScsiCommand(pdu) => (pdu.delivery, pdu.serials),
        Request::TaskManagement(pdu) => (pdu.delivery, pdu.serials),
        Request::Text(pdu) => (pdu.delivery, pdu.serials),
        Request::Logout(pdu) => (pdu.delivery, pdu.serials),
        Request::DataOut(_) | Request::Snack(_) | Request::Login(_) => return None,
    };
    (delivery == Delivery::Ordered).then_some(serials.cmd_sn)
}
