//! The iSCSI side of a target in memory, without I/O (RFC 7143): bytes of connections in, bytes out.
//!
//! A [`Target`] owns a [`Device`] and serves it to any number of sessions, of one connection each.
//! Whoever carries the bytes calls [`Target::connect`] for a new connection, [`Target::handle_bytes`]
//! with what came, [`Target::transmit`] until there is nothing more to send, and closes the connection
//! when [`Target::is_open`] says no; [`Target::take_cut`] names others that end at once.
//!
//! Invariants: any bytes are answered or refused, without a panic; what a connection holds has a bound
//! (received bytes beyond [`OUTPUT_MAX`] of answers wait, see `command.rs` for data); a command that the
//! device has run is never run again. The same bytes and seed make the same answers: no clock is read.
//!
//! What is not here: several connections in a session, error recovery levels 1 and 2, the order that
//! task attributes ask for.

mod chap;
mod command;
mod config;
mod data_in;
mod frame;
mod keys;
mod login;
mod manage;
mod output;
mod session;

use std::collections::{BTreeMap, BTreeSet};

use block_iscsi::chap::CHALLENGE_LEN;
use block_iscsi::pdu::async_event::AsyncEvent;
use block_iscsi::pdu::login::LoginStatus;
use block_iscsi::pdu::reject::RejectReason;
use block_iscsi::serial::Serial;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

pub use config::{Account, Admission, Limits, Moved, TargetConfig};
pub use keys::Agreed;

use frame::{Cut, Digests, Frame};
use login::{Identity, Login, Progress};
use output::Output;
use session::{Fate, Session, Sweep};

use super::script::Script;
use super::{Answer, Device, Nexus};

/// Bytes that may wait to be sent before no more requests are looked at.
pub const OUTPUT_MAX: usize = 4 << 20;
/// Longest data segment before a login is complete.
const LOGIN_DATA_MAX: u32 = 8192;
/// Most initiator ports that are remembered, for their registrations.
const PORTS_MAX: usize = 4096;

const _: () = assert!(CHALLENGE_LEN != 24, "our challenges never are as long as initiators'");

/// A connection.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Link(pub u64);

/// A target. See the module.
#[derive(Debug)]
pub struct Target {
    core: Core,
    links: BTreeMap<Link, Connection>,
    next_link: u64,
    /// Connections that were ended by others.
    cut: Vec<Link>,
}

/// A command that the device has answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Who asked for it.
    pub nexus: Nexus,
    /// The unit.
    pub unit: u16,
    /// The command.
    pub cdb: [u8; 16],
    /// Its data from the initiator.
    pub data: Vec<u8>,
    /// How it ended.
    pub status: u8,
    /// Why, if it did not end with GOOD.
    pub sense: Vec<u8>,
}

/// What all connections share.
#[derive(Debug)]
struct Core {
    config: TargetConfig,
    device: Device,
    rng: ChaCha8Rng,
    /// An initiator port, by its name, its half of the session's name, and the target.
    ports: BTreeMap<(String, [u8; 6], String), Nexus>,
    next_tsih: u16,
    /// What a session did that concerns all.
    sweeps: Vec<Sweep>,
    /// Operation codes of commands whose answers wait.
    held: BTreeSet<u8>,
    /// What goes wrong.
    script: Option<Script>,
    /// Commands that were carried out, if they are noted.
    journal: Option<Vec<Entry>>,
}

#[derive(Debug)]
struct Connection {
    link: Link,
    phase: Phase,
    output: Output,
    incoming: Digests,
    /// Received bytes that are not looked at yet, from `taken` on.
    waiting: Vec<u8>,
    taken: usize,
    /// How many PDUs were received.
    received: u64,
}

#[derive(Debug)]
enum Phase {
    Login(Box<Login>),
    Full(Box<Session>),
    Over,
}

/// What a login that is complete needs of others.
enum Wanted {
    Nothing,
    Session(Identity),
}

impl Target {
    /// A target that serves `device`.
    pub fn new(config: TargetConfig, device: Device) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(config.seed);
        Self {
            core: Core {
                config,
                device,
                rng,
                ports: BTreeMap::new(),
                next_tsih: 1,
                sweeps: Vec::new(),
                held: BTreeSet::new(),
                script: None,
                journal: None,
            },
            links: BTreeMap::new(),
            next_link: 0,
            cut: Vec::new(),
        }
    }

    /// What it is like. Changes hold for logins from now on.
    pub fn config(&mut self) -> &mut TargetConfig {
        &mut self.core.config
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.core.device
    }

    /// The device, to change it.
    pub fn device_mut(&mut self) -> &mut Device {
        &mut self.core.device
    }

    /// A new connection.
    pub fn connect(&mut self) -> Link {
        let link = Link(self.next_link);
        self.next_link += 1;
        let login = Login::new(self.core.config.limits.window, &mut self.core.rng);
        self.links.insert(link, Connection::new(link, login, &self.core));
        link
    }

    /// A connection is gone. Its session ends: tasks that wait for data are gone (level 0).
    pub fn disconnect(&mut self, link: Link) {
        if let Some(connection) = self.links.remove(&link) {
            end(connection.phase, &mut self.core);
        }
    }

    /// Takes bytes that came over a connection.
    pub fn handle_bytes(&mut self, link: Link, bytes: &[u8]) {
        let Some(mut connection) = self.links.remove(&link) else { return };
        let wanted = connection.feed(bytes, &mut self.core);
        self.sweep();
        let goes_on = match wanted {
            Wanted::Nothing => false,
            Wanted::Session(identity) => {
                self.begin_session(&mut connection, &identity);
                true
            }
        };
        connection.misbehave(&mut self.core);
        self.links.insert(link, connection);
        if goes_on {
            // What came behind the login waits.
            self.handle_bytes(link, &[]);
        }
    }

    /// Puts what is to be sent over a connection into `bytes`, and gives its memory back: what was in
    /// `bytes` is thrown away. Call it until there is nothing.
    pub fn transmit(&mut self, link: Link, bytes: &mut Vec<u8>) {
        bytes.clear();
        let Some(connection) = self.links.get_mut(&link) else { return };
        std::mem::swap(&mut connection.output.bytes, bytes);
        if connection.is_full_up() {
            self.handle_bytes(link, &[]);
        }
    }

    /// Whether anything is to be sent over a connection.
    pub fn has_output(&self, link: Link) -> bool {
        self.links.get(&link).is_some_and(|connection| !connection.output.bytes.is_empty())
    }

    /// Whether a connection goes on after what is to be sent.
    pub fn is_open(&self, link: Link) -> bool {
        self.links.get(&link).is_some_and(|connection| !matches!(connection.phase, Phase::Over))
    }

    /// Connections that have to be closed at once, because of what came over others.
    pub fn take_cut(&mut self) -> Vec<Link> {
        std::mem::take(&mut self.cut)
    }

    /// The connections there are.
    pub fn links(&self) -> Vec<Link> {
        self.links.keys().copied().collect()
    }

    /// What was agreed on for a connection in the full feature phase.
    pub fn agreed(&self, link: Link) -> Option<&Agreed> {
        match &self.links.get(&link)?.phase {
            Phase::Full(session) => Some(&session.agreed),
            Phase::Login(_) | Phase::Over => None,
        }
    }

    /// PDUs that came over a connection.
    pub fn received(&self, link: Link) -> u64 {
        self.links.get(&link).map_or(0, |connection| connection.received)
    }

    /// Asks the initiator at the other end whether it is there.
    pub fn ping(&mut self, link: Link) {
        self.with_session(link, |session, output| session.ping(0x7000_0001, output));
    }

    /// How many pings the initiator has answered.
    pub fn pongs(&mut self, link: Link) -> u64 {
        let mut pongs = 0;
        self.with_session(link, |session, _| pongs = session.pongs());
        pongs
    }

    /// Sends an asynchronous message; `sense` goes with [`AsyncEvent::Scsi`].
    pub fn tell(&mut self, link: Link, event: AsyncEvent, lun: u16, sense: &[u8]) {
        let [high, low] = lun.to_be_bytes();
        let lun = [if high == 0 { 0 } else { high | 0x40 }, low, 0, 0, 0, 0, 0, 0];
        self.with_session(link, |session, output| session.tell(event, lun, sense, output));
    }

    /// Commands of this operation code are carried out from now on, but not answered.
    pub fn hold(&mut self, opcode: u8) {
        self.core.held.insert(opcode);
    }

    /// How many commands wait for being answered.
    pub fn held(&self) -> usize {
        let held = |connection: &Connection| match &connection.phase {
            Phase::Full(session) => session.tasks.held(),
            Phase::Login(_) | Phase::Over => 0,
        };
        self.links.values().map(held).sum()
    }

    /// Answers what was held, and holds nothing any more.
    pub fn release(&mut self) {
        self.core.held.clear();
        for link in self.links() {
            self.with_session(link, Session::release);
        }
    }

    /// Notes from now on every command that is no read of blocks that succeeds.
    pub fn keep_journal(&mut self) {
        self.core.journal.get_or_insert_default();
    }

    /// What was noted.
    pub fn journal(&self) -> &[Entry] {
        self.core.journal.as_deref().unwrap_or_default()
    }

    /// Does wrong what the script says, from now on.
    pub fn set_script(&mut self, script: Script) {
        self.core.script = Some(script);
        for connection in self.links.values_mut() {
            connection.output.marks.get_or_insert_default();
        }
    }

    /// What is done wrong.
    pub fn script(&self) -> Option<&Script> {
        self.core.script.as_ref()
    }

    fn with_session(&mut self, link: Link, act: impl FnOnce(&mut Session, &mut Output)) {
        let Some(connection) = self.links.get_mut(&link) else { return };
        if let Phase::Full(session) = &mut connection.phase {
            act(session, &mut connection.output);
            connection.misbehave(&mut self.core);
        }
    }

    /// Does to the other sessions what one of them asked for.
    fn sweep(&mut self) {
        for sweep in std::mem::take(&mut self.core.sweeps) {
            for (link, connection) in &mut self.links {
                if let Phase::Full(session) = &mut connection.phase {
                    session.swept(sweep);
                }
                if sweep == Sweep::Connections {
                    end(std::mem::replace(&mut connection.phase, Phase::Over), &mut self.core);
                    self.cut.push(*link);
                }
            }
        }
    }

    /// A login is complete: the session begins, and ends those that it stands in for (section 6.3.5).
    fn begin_session(&mut self, connection: &mut Connection, identity: &Identity) {
        let same_port = |session: &Session| {
            let other = &session.identity;
            (&other.initiator, other.isid, &other.target)
                == (&identity.initiator, identity.isid, &identity.target)
        };
        let mut old = None;
        for (link, other) in &mut self.links {
            let Phase::Full(session) = &other.phase else { continue };
            if !same_port(session) || (identity.tsih != 0 && identity.tsih != session.identity.tsih)
            {
                continue;
            }
            if identity.tsih != 0 && identity.cid != session.identity.cid {
                connection.refuse(LoginStatus::TooManyConnections);
                return;
            }
            self.cut.push(*link);
            other.output.bytes.clear();
            match std::mem::replace(&mut other.phase, Phase::Over) {
                Phase::Full(session) if identity.tsih != 0 => old = Some(session),
                phase => end(phase, &mut self.core),
            }
        }
        if identity.tsih != 0 && old.is_none() {
            connection.refuse(LoginStatus::SessionDoesNotExist);
            return;
        }
        match self.core.nexus(identity) {
            Some(nexus) => connection.begin(identity, nexus, old, &mut self.core),
            None => connection.refuse(LoginStatus::OutOfResources),
        }
    }
}

impl Core {
    /// Carries a command out.
    fn execute(&mut self, nexus: Nexus, unit: u16, cdb: &[u8; 16], data: &[u8]) -> Answer {
        let answer = self.device.execute(nexus, unit, cdb, data);
        if let Some(journal) = &mut self.journal {
            let (cdb, data) = (*cdb, data.to_vec());
            let (status, sense) = (answer.status, answer.sense.clone());
            journal.push(Entry { nexus, unit, cdb, data, status, sense });
        }
        answer
    }

    /// The nexus of an initiator port; it finds its registrations again.
    fn nexus(&mut self, identity: &Identity) -> Option<Nexus> {
        let name = (identity.initiator.clone(), identity.isid, identity.target.clone());
        let next = Nexus(block_core::range::to_u64(self.ports.len()) + 1);
        if self.ports.len() == PORTS_MAX && !self.ports.contains_key(&name) {
            return None;
        }
        Some(*self.ports.entry(name).or_insert(next))
    }

    fn tsih(&mut self) -> u16 {
        let tsih = self.next_tsih;
        self.next_tsih = tsih.checked_add(1).unwrap_or(1);
        tsih
    }
}

impl Connection {
    fn new(link: Link, login: Login, core: &Core) -> Self {
        let marks = core.script.as_ref().map(|_| Vec::new());
        Self {
            link,
            phase: Phase::Login(Box::new(login)),
            output: Output { marks, ..Output::default() },
            incoming: Digests::default(),
            waiting: Vec::new(),
            taken: 0,
            received: 0,
        }
    }

    /// Whether received bytes may still wait to be looked at.
    fn is_full_up(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Takes received bytes, and looks at what there is of PDUs as far as there is room for answers.
    /// Says what cannot go on without other connections; then the rest waits.
    fn feed(&mut self, mut bytes: &[u8], core: &mut Core) -> Wanted {
        let mut waiting = std::mem::take(&mut self.waiting);
        let mut taken = std::mem::take(&mut self.taken);
        let mut wanted = Wanted::Nothing;
        while self.output.bytes.len() < OUTPUT_MAX && matches!(wanted, Wanted::Nothing) {
            let from = if taken < waiting.len() {
                waiting.get(taken..).unwrap_or_default()
            } else {
                waiting.clear();
                taken = 0;
                bytes
            };
            let is_kept = taken < waiting.len();
            match frame::cut(from, self.incoming, self.data_max(core)) {
                _ if matches!(self.phase, Phase::Over) => return Wanted::Nothing,
                Cut::Whole(frame, len) => {
                    self.received += 1;
                    wanted = self.handle(frame, core);
                    if is_kept {
                        taken += len;
                    } else {
                        bytes = bytes.get(len..).unwrap_or_default();
                    }
                }
                Cut::Part(_) if bytes.is_empty() || !is_kept => break,
                Cut::Part(len) => {
                    // Only as much as makes it whole is copied behind what waits.
                    let missing = (len - (waiting.len() - taken)).min(bytes.len());
                    let (now, later) = bytes.split_at(missing);
                    waiting.extend_from_slice(now);
                    bytes = later;
                }
                Cut::Garbled => self.over(core),
                Cut::TooLong(header) => {
                    if let Phase::Full(session) = &mut self.phase {
                        session.reject(RejectReason::ProtocolError, header, &mut self.output);
                    }
                    self.over(core);
                }
            }
        }
        waiting.drain(..taken.min(waiting.len()));
        waiting.extend_from_slice(bytes);
        self.waiting = waiting;
        wanted
    }

    /// Lets the script have its way with what is to be sent.
    fn misbehave(&mut self, core: &mut Core) {
        let Some(script) = &mut core.script else { return };
        let link = self.link;
        if self.output.filter(|header, data| script.filter(link, header, data)) {
            self.over(core);
        }
    }

    fn data_max(&self, core: &Core) -> u32 {
        match self.phase {
            Phase::Full(_) => core.config.limits.max_recv_data_segment_len,
            Phase::Login(_) | Phase::Over => LOGIN_DATA_MAX,
        }
    }

    fn handle(&mut self, frame: Frame<'_>, core: &mut Core) -> Wanted {
        if let Some(script) = &mut core.script {
            script.note(self.link, frame.header);
        }
        match &mut self.phase {
            Phase::Over => {}
            Phase::Full(session) => {
                if session.handle(frame, &mut self.output, core) == Fate::Ends {
                    self.over(core);
                }
            }
            Phase::Login(login) => {
                match login.handle(frame, &core.config, &mut core.rng, &mut self.output) {
                    Progress::Continues => {}
                    Progress::Over => self.over(core),
                    Progress::Complete => {
                        return login.identity().cloned().map_or(Wanted::Nothing, Wanted::Session);
                    }
                }
            }
        }
        Wanted::Nothing
    }

    fn over(&mut self, core: &mut Core) {
        end(std::mem::replace(&mut self.phase, Phase::Over), core);
        self.waiting.clear();
    }

    fn refuse(&mut self, status: LoginStatus) {
        if let Phase::Login(login) = &mut self.phase {
            login.refuse(status, &[], &mut self.output);
        }
        self.phase = Phase::Over;
    }

    /// From the login to the full feature phase, in a new session or the one of another connection.
    fn begin(
        &mut self,
        identity: &Identity,
        nexus: Nexus,
        old: Option<Box<Session>>,
        core: &mut Core,
    ) {
        let Phase::Login(login) = &mut self.phase else { return };
        let tsih = if identity.tsih == 0 { core.tsih() } else { identity.tsih };
        login.complete(tsih, &mut self.output);
        let agreed = login.keys().agreed.clone();
        let (cmd_sn, stat_sn): (Serial, Serial) = (login.cmd_sn(), login.stat_sn());
        let crc = block_iscsi::keys::DigestKind::Crc32c;
        let digests =
            Digests { header: agreed.header_digest == crc, data: agreed.data_digest == crc };
        (self.incoming, self.output.digests) = (digests, digests);
        let session = match old {
            Some(mut session) => {
                session.reinstate(agreed, cmd_sn, stat_sn);
                session
            }
            None => {
                core.device.connect(nexus);
                core.device.name(nexus, &identity.port());
                let identity = Identity { tsih, ..identity.clone() };
                let window = core.config.limits.window;
                Box::new(Session::new(identity, nexus, agreed, cmd_sn, stat_sn, window))
            }
        };
        self.phase = Phase::Full(session);
    }
}

/// A phase ends: the device forgets the session.
fn end(phase: Phase, core: &mut Core) {
    if let Phase::Full(session) = phase {
        core.device.disconnect(session.nexus);
    }
}
