//! A virtual network and a virtual clock between an initiator and a target: bytes in flight, cut to
//! pieces, late, or lost with their connection.
//!
//! Everything follows from a seed. Bytes of one direction of a connection arrive in their order, as TCP
//! has it. A connection that is cut is gone for the initiator at once, while the target may hear for a
//! while what was in flight, as of a peer that has vanished; it learns of the end later, or from the
//! session that stands in for the old one.
//!
//! Invariants: time never goes back; nothing is delivered to the initiator of a connection that it has
//! given up; to the target nothing is delivered of a connection that it has closed.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::target::{Link, Target};

/// What an initiator wants of the network.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Wish {
    /// A connection. One that is there is to be closed first.
    Connection,
    /// The connection that is there.
    Stream,
    /// No connection for now.
    Nothing,
    /// No connection ever again, and nothing more over the last one.
    End,
}

/// The initiator's side: bytes in, bytes out, and times.
pub trait Initiator {
    /// What it wants.
    fn wish(&mut self, now: Duration) -> Wish;
    /// There is a connection. `random` is new.
    fn connected(&mut self, random: [u8; 32], now: Duration);
    /// The connection is lost, or could not be made.
    fn disconnected(&mut self, now: Duration);
    /// Takes bytes.
    fn receive(&mut self, bytes: &[u8], now: Duration);
    /// Appends to `bytes`, which is empty, what is to be sent now.
    fn transmit(&mut self, bytes: &mut Vec<u8>, now: Duration);
    /// When [`Initiator::handle_timeout`] is due.
    fn poll_timeout(&self) -> Option<Duration>;
    /// Does what is due.
    fn handle_timeout(&mut self, now: Duration);
}

/// What a network does to bytes and connections.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Network {
    /// How long bytes and connections take.
    pub latency: RangeInclusive<Duration>,
    /// Most bytes that arrive at once.
    pub piece: usize,
    /// After how many bytes a connection is cut, if ever.
    pub cut_after: Option<RangeInclusive<u64>>,
    /// How many of a hundred connections are refused.
    pub refused: u32,
    /// How many of a hundred cuts nobody is told of: bytes vanish until somebody loses patience.
    pub silent: u32,
    /// How long the target may hear of a connection that is cut.
    pub half_open: Duration,
    /// How many misfortunes there are, cuts and refusals, before the network behaves.
    pub misfortunes: u32,
}

impl Network {
    /// A network that does no harm.
    pub fn calm() -> Self {
        Self {
            latency: Duration::from_micros(10)..=Duration::from_micros(50),
            piece: 1 << 16,
            cut_after: None,
            refused: 0,
            silent: 0,
            half_open: Duration::ZERO,
            misfortunes: 0,
        }
    }
}

/// What has happened.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Connections that were made.
    pub connections: u32,
    /// Connections that were refused.
    pub refused: u32,
    /// Connections that were cut.
    pub cuts: u32,
    /// Those of them that the initiator was not told of.
    pub silent_cuts: u32,
    /// Pieces that arrived.
    pub pieces: u64,
    /// Pieces that the target heard of a connection that the initiator had lost.
    pub ghost_pieces: u64,
}

/// An initiator and a target, and what lies between them.
#[derive(Debug)]
pub struct Pair<I> {
    /// The initiator's side.
    pub initiator: I,
    /// The target.
    pub target: Target,
    /// How the network is from now on.
    pub network: Network,
    now: Duration,
    rng: ChaCha8Rng,
    wire: Option<Wire>,
    /// Connections that only the target believes in.
    ghosts: Vec<Ghost>,
    connecting: Option<Attempt>,
    /// Connections are refused until then.
    closed_until: Duration,
    tally: Tally,
}

#[derive(Debug)]
struct Attempt {
    due: Duration,
    refused: bool,
}

/// A connection.
#[derive(Debug)]
struct Wire {
    link: Link,
    to_target: Pipe,
    to_initiator: Pipe,
    /// Bytes until it is cut.
    left: Option<u64>,
    /// The target sends nothing after what is in flight.
    ended: bool,
    /// Whatever is sent vanishes.
    dead: bool,
}

#[derive(Debug)]
struct Ghost {
    link: Link,
    to_target: Pipe,
    /// When the target learns that it is gone.
    gone: Duration,
}

/// One direction.
#[derive(Debug, Default)]
struct Pipe {
    pieces: VecDeque<(Duration, Vec<u8>)>,
    last: Duration,
}

/// What comes next.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Next {
    Attempt,
    ToTarget,
    ToInitiator,
    Ghost(usize),
    GhostGone(usize),
    Timeout,
}

impl Pipe {
    fn due(&self) -> Option<Duration> {
        self.pieces.front().map(|(due, _)| *due)
    }

    fn push(&mut self, mut bytes: &[u8], now: Duration, network: &Network, rng: &mut ChaCha8Rng) {
        while !bytes.is_empty() {
            let len = rng.random_range(1..=network.piece.max(1)).min(bytes.len());
            let (piece, rest) = bytes.split_at(len);
            self.last = self.last.max(now + rng.random_range(network.latency.clone()));
            self.pieces.push_back((self.last, piece.to_vec()));
            bytes = rest;
        }
    }
}

impl<I: Initiator> Pair<I> {
    /// An initiator and a target that have not met.
    pub fn new(initiator: I, target: Target, network: Network, seed: u64) -> Self {
        Self {
            initiator,
            target,
            network,
            now: Duration::ZERO,
            rng: ChaCha8Rng::seed_from_u64(seed),
            wire: None,
            ghosts: Vec::new(),
            connecting: None,
            closed_until: Duration::ZERO,
            tally: Tally::default(),
        }
    }

    /// The time.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// What has happened so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Whether there is a connection, as the initiator sees it.
    pub fn is_connected(&self) -> bool {
        self.wire.is_some()
    }

    /// Lets the next thing happen; `false` if nothing ever will.
    pub fn step(&mut self) -> bool {
        self.settle();
        let Some((due, next)) = self.next() else { return false };
        self.now = self.now.max(due);
        match next {
            Next::Timeout => self.initiator.handle_timeout(self.now),
            Next::Attempt => self.attempt(),
            Next::ToTarget => self.deliver_to_target(),
            Next::ToInitiator => self.deliver_to_initiator(),
            Next::Ghost(index) => {
                self.tally.ghost_pieces += 1;
                let ghost = &mut self.ghosts[index];
                if let Some((_, piece)) = ghost.to_target.pieces.pop_front() {
                    self.target.handle_bytes(ghost.link, &piece);
                }
            }
            Next::GhostGone(index) => {
                let ghost = self.ghosts.swap_remove(index);
                self.target.disconnect(ghost.link);
            }
        }
        true
    }

    /// Lets things happen until `done` says so. Says whether it did, within `patience`.
    pub fn run_until(
        &mut self,
        patience: Duration,
        mut done: impl FnMut(&mut Self) -> bool,
    ) -> bool {
        let end = self.now + patience;
        loop {
            if done(self) {
                return true;
            }
            if self.now > end || !self.step() {
                return done(self);
            }
        }
    }

    /// Lets everything happen that is due within `time`; then that much time has passed.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        self.settle();
        while self.next().is_some_and(|(due, _)| due <= end) && self.step() {}
        self.now = self.now.max(end);
    }

    /// Time jumps: what was due in between is late.
    pub fn jump(&mut self, time: Duration) {
        self.now += time;
        self.settle();
    }

    /// Cuts the connection, if there is one.
    pub fn cut(&mut self) {
        if let Some(wire) = self.wire.take() {
            self.tally.cuts += 1;
            self.haunt(wire);
            self.initiator.disconnected(self.now);
        }
    }

    /// Cuts the connection, and refuses others for so long.
    pub fn close_for(&mut self, time: Duration) {
        self.closed_until = self.now + time;
        self.cut();
    }

    /// Of a connection that the initiator has lost, the target hears what was in flight, now or later.
    fn haunt(&mut self, mut wire: Wire) {
        let most = u64::try_from(self.network.half_open.as_nanos()).unwrap_or(u64::MAX);
        let mut some_time = || Duration::from_nanos(self.rng.random_range(0..=most));
        let (late, gone) = (some_time(), some_time());
        for (due, _) in &mut wire.to_target.pieces {
            *due += late;
        }
        let gone = self.now + late + gone;
        self.ghosts.push(Ghost { link: wire.link, to_target: wire.to_target, gone });
    }

    /// The earliest of what is to come; of several at once, any.
    fn next(&mut self) -> Option<(Duration, Next)> {
        let mut all = Vec::new();
        let mut add = |due: Option<Duration>, next| all.extend(due.map(|due| (due, next)));
        add(self.connecting.as_ref().map(|attempt| attempt.due), Next::Attempt);
        if let Some(wire) = &self.wire {
            add(wire.to_target.due(), Next::ToTarget);
            let end = wire.ended.then_some(wire.to_initiator.last);
            add(wire.to_initiator.due().or(end), Next::ToInitiator);
        }
        for (index, ghost) in self.ghosts.iter().enumerate() {
            let piece = ghost.to_target.due().filter(|due| *due < ghost.gone);
            add(piece, Next::Ghost(index));
            add(piece.is_none().then_some(ghost.gone), Next::GhostGone(index));
        }
        add(self.initiator.poll_timeout(), Next::Timeout);
        let first = all.iter().map(|(due, _)| (*due).max(self.now)).min()?;
        let tied: Vec<_> = all.into_iter().filter(|(due, _)| *due <= first).collect();
        Some(tied[self.rng.random_range(0..tied.len())])
    }

    fn attempt(&mut self) {
        let Some(attempt) = self.connecting.take() else { return };
        if attempt.refused || self.now < self.closed_until {
            self.tally.refused += 1;
            return self.initiator.disconnected(self.now);
        }
        self.tally.connections += 1;
        let link = self.target.connect();
        let cut_after = self.network.cut_after.clone();
        let unlucky = cut_after.is_some() && self.misfortune();
        let left = cut_after.filter(|_| unlucky).map(|range| self.rng.random_range(range));
        let (to_target, to_initiator) = (Pipe::default(), Pipe::default());
        self.wire = Some(Wire { link, to_target, to_initiator, left, ended: false, dead: false });
        self.initiator.connected(self.rng.random(), self.now);
    }

    /// Whether there is one more misfortune to come; then it has.
    fn misfortune(&mut self) -> bool {
        let any = self.network.misfortunes > 0;
        self.network.misfortunes = self.network.misfortunes.saturating_sub(1);
        any
    }

    /// How many bytes of a piece arrive before the connection is cut, if it is.
    fn arriving(wire: &mut Wire, piece: &[u8]) -> Option<usize> {
        let left = wire.left.as_mut()?;
        let len = block_core::range::to_u64(piece.len());
        if len < *left {
            *left -= len;
            return None;
        }
        Some(block_core::range::to_usize(*left))
    }

    fn deliver_to_target(&mut self) {
        let Some(wire) = &mut self.wire else { return };
        let Some((due, mut piece)) = wire.to_target.pieces.pop_front() else { return };
        self.tally.pieces += 1;
        let link = wire.link;
        let cut = Self::arriving(wire, &piece);
        if let Some(len) = cut {
            // The target may still hear the rest.
            let rest = piece.split_off(len);
            wire.to_target.pieces.push_front((due, rest));
        }
        self.target.handle_bytes(link, &piece);
        if cut.is_some() {
            self.lose();
        }
    }

    fn deliver_to_initiator(&mut self) {
        let Some(wire) = &mut self.wire else { return };
        let Some((_, piece)) = wire.to_initiator.pieces.pop_front() else {
            // The target has closed it.
            self.target.disconnect(wire.link);
            self.wire = None;
            return self.initiator.disconnected(self.now);
        };
        self.tally.pieces += 1;
        let cut = Self::arriving(wire, &piece);
        let arrived = piece.get(..cut.unwrap_or(piece.len())).unwrap_or_default();
        self.initiator.receive(arrived, self.now);
        if cut.is_some() {
            self.lose();
        }
    }

    /// The connection is cut by the network: the initiator is told, or has to find out.
    fn lose(&mut self) {
        if self.rng.random_range(0..100) >= self.network.silent {
            return self.cut();
        }
        if let Some(wire) = &mut self.wire {
            self.tally.cuts += 1;
            self.tally.silent_cuts += 1;
            (wire.dead, wire.left) = (true, None);
            wire.to_initiator.pieces.clear();
            wire.to_target.pieces.clear();
        }
    }

    /// Lets both sides say what they have to say, and the network do what is wanted of it.
    fn settle(&mut self) {
        if self.initiator.poll_timeout().is_some_and(|due| due <= self.now) {
            self.initiator.handle_timeout(self.now);
        }
        match self.initiator.wish(self.now) {
            Wish::Stream => {}
            Wish::Connection => {
                self.hang_up();
                if self.connecting.is_none() {
                    let unlucky = self.rng.random_range(0..100) < self.network.refused;
                    let refused = unlucky && self.misfortune();
                    let due = self.now + self.rng.random_range(self.network.latency.clone());
                    self.connecting = Some(Attempt { due, refused });
                }
            }
            Wish::Nothing | Wish::End => {
                self.hang_up();
                self.connecting = None;
            }
        }
        self.exchange();
        for link in self.target.take_cut() {
            if let Some(wire) = self.wire.as_mut().filter(|wire| wire.link == link) {
                wire.ended = true;
            }
        }
        let target = &mut self.target;
        self.ghosts.retain(|ghost| {
            let open = target.is_open(ghost.link);
            if !open {
                target.disconnect(ghost.link);
            }
            open
        });
    }

    /// The initiator closes its connection: what it has sent arrives.
    fn hang_up(&mut self) {
        if let Some(wire) = self.wire.take() {
            let gone = wire.to_target.last.max(self.now) + Duration::from_nanos(1);
            self.ghosts.push(Ghost { link: wire.link, to_target: wire.to_target, gone });
        }
    }

    fn exchange(&mut self) {
        let mut bytes = Vec::new();
        if let Some(wire) = &mut self.wire {
            self.initiator.transmit(&mut bytes, self.now);
            if !wire.dead {
                wire.to_target.push(&bytes, self.now, &self.network, &mut self.rng);
            }
            loop {
                self.target.transmit(wire.link, &mut bytes);
                if bytes.is_empty() {
                    break;
                }
                if !wire.dead {
                    wire.to_initiator.push(&bytes, self.now, &self.network, &mut self.rng);
                }
            }
            wire.ended |= !wire.dead && !self.target.is_open(wire.link);
        }
        for ghost in &self.ghosts {
            // Nobody hears it.
            self.target.transmit(ghost.link, &mut bytes);
        }
    }
}
