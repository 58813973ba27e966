//! A game: commands of many kinds over a network, and a model that says what reads may find.
//!
//! Each write has a number, and each block that it writes says it. A block may hold what a write wrote
//! that is not older than the last one that was acknowledged before it began.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use block_core::{IoBuf, IoVec};
use block_iscsi::nexus::{Completion, Data, TaskError};
use block_iscsi::scsi::cdb::{Caching, Cdb, Deallocate, SameData};
use block_iscsi::scsi::reservation::{Persistence, ReserveList, ReserveOut};
use block_iscsi::scsi::sense::Status;
use block_iscsi::session::{SessionEvent, TaskId};
use block_testkit::iscsi::pair::Network;
use rand::{Rng, RngCore};

use super::side::*;

/// Blocks that are read and written.
const ARENA: u64 = 48;
/// Where commands that must not run twice have their own blocks.
const ONCE: u64 = 1024;

/// What is played.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) commands: u64,
    /// Most commands at once.
    pub(crate) depth: usize,
    pub(crate) network: Network,
    /// How often time jumps, in a hundred thousand steps.
    pub(crate) jumps: u32,
}

#[derive(Clone, Debug)]
enum What {
    Write { lba: u64, blocks: u64, number: u64 },
    Zero { lba: u64, blocks: u64 },
    Read { lba: u64, to: IoBuf, allowed: Vec<Vec<u64>> },
    Flush,
    Compare { number: u64 },
    Register { number: u64 },
}

#[derive(Clone, Debug)]
struct Running {
    what: What,
    started: u64,
}

/// What a block may hold.
#[derive(Clone, Debug, Default)]
struct Block {
    /// Numbers of acknowledged writes, and when they were.
    settled: Vec<(u64, u64)>,
    /// Numbers of writes that are under way, or of which nobody knows.
    open: Vec<u64>,
}

/// What came of a game.
#[derive(Copy, Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) done: u64,
    /// Commands of which nobody knows whether they ran.
    pub(crate) unknown: u64,
    /// Commands that met a unit attention.
    pub(crate) attentions: u64,
    pub(crate) losses: u64,
    pub(crate) ghosts: u64,
    pub(crate) silent: u64,
    pub(crate) refused: u64,
    pub(crate) jumps: u64,
}

pub(crate) struct Game {
    pub(crate) pair: Net,
    /// Chooses commands, and when time jumps.
    rng: Box<dyn RngCore>,
    plan: Plan,
    running: BTreeMap<usize, (TaskId, Running)>,
    blocks: Vec<Block>,
    issued: u64,
    clock: u64,
    /// Commands that must not run twice: whether they were acknowledged.
    once: BTreeMap<u64, Option<bool>>,
    outcome: Outcome,
}

impl Game {
    /// Plays a game over a pair whose session is there.
    pub(crate) fn play(mut pair: Net, plan: Plan, rng: Box<dyn RngCore>) -> Outcome {
        pair.target.keep_journal();
        pair.network = plan.network.clone();
        // The connection that is there was made in a calm network.
        pair.cut();
        let first = Block { settled: vec![(0, 0)], open: Vec::new() };
        let mut game = Self {
            pair,
            rng,
            plan,
            running: BTreeMap::new(),
            blocks: vec![first; usize::try_from(ARENA).unwrap()],
            issued: 0,
            clock: 0,
            once: BTreeMap::new(),
            outcome: Outcome::default(),
        };
        let end = game.pair.now() + HOUR;
        while game.issued < game.plan.commands || !game.running.is_empty() {
            while game.issued < game.plan.commands && game.running.len() < game.plan.depth {
                game.begin();
            }
            if game.rng.random_range(0..100_000) < game.plan.jumps {
                game.outcome.jumps += 1;
                game.pair.jump(Duration::from_secs(game.rng.random_range(1..20)));
            }
            assert!(game.pair.step(), "nothing will happen any more");
            assert!(game.pair.now() < end, "{} commands do not end", game.running.len());
            game.collect();
        }
        game.read_everything();
        game.check_journal();
        let tally = game.pair.tally();
        game.outcome.ghosts = tally.ghost_pieces;
        game.outcome.silent = tally.silent_cuts.into();
        game.outcome.refused = tally.refused.into();
        game.outcome
    }

    fn begin(&mut self) {
        self.issued += 1;
        let number = self.issued;
        let blocks = self.rng.random_range(1..=12);
        let lba = self.rng.random_range(0..ARENA - blocks);
        let what = match self.rng.random_range(0..20) {
            0..9 => What::Write { lba, blocks, number },
            9..10 => What::Zero { lba, blocks },
            10..15 => {
                let to = buffer(usize::try_from(blocks).unwrap() * BLOCK);
                What::Read { lba, to, allowed: Vec::new() }
            }
            15..16 => What::Flush,
            16..19 => What::Compare { number },
            _ => What::Register { number },
        };
        if let Some((lba, blocks, number)) = writes(&what) {
            for at in lba..lba + blocks {
                self.blocks[usize::try_from(at).unwrap()].open.push(number);
                self.allow(at, number);
            }
        }
        if let What::Compare { number } | What::Register { number } = what {
            self.once.insert(number, None);
        }
        self.clock += 1;
        let started = self.clock;
        self.send(Running { what, started });
    }

    /// What reads that are under way may find, too.
    fn allow(&mut self, at: u64, number: u64) {
        for (_, running) in self.running.values_mut() {
            if let What::Read { lba, allowed, .. } = &mut running.what
                && let Some(index) = at.checked_sub(*lba)
                && let Some(block) = allowed.get_mut(usize::try_from(index).unwrap())
            {
                block.push(number);
            }
        }
    }

    fn send(&mut self, mut running: Running) {
        if let What::Read { lba, to, allowed } = &mut running.what {
            let first = usize::try_from(*lba).unwrap();
            let holds = |block: &Block| {
                let settled = block.settled.iter().map(|(number, _)| *number);
                settled.chain(block.open.iter().copied()).collect()
            };
            *allowed = self.blocks[first..first + to.len() / BLOCK].iter().map(holds).collect();
        }
        let (cdb, data) = command(&running.what);
        let id = submit(&mut self.pair, cdb, data);
        assert!(self.running.insert(id.index(), (id, running)).is_none());
    }

    fn collect(&mut self) {
        let events = events(&mut self.pair);
        // Why tells more than what came of it.
        if let Some(SessionEvent::Ended(error)) = events.last() {
            panic!("the session ended: {error}");
        }
        for event in events {
            match event {
                SessionEvent::Done(id) => {
                    // Those at the end are waited for one by one.
                    let Some(result) = self.pair.initiator.session.take(id) else { continue };
                    let (_, running) = self.running.remove(&id.index()).unwrap();
                    self.end(running, scsi(result));
                }
                SessionEvent::Down(_) => self.outcome.losses += 1,
                SessionEvent::Up | SessionEvent::Nexus(_) | SessionEvent::Ended(_) => {}
            }
        }
    }

    fn end(&mut self, running: Running, result: Result<Completion, TaskError>) {
        match &result {
            Ok(completion) if met_attention(completion) => {
                self.outcome.attentions += 1;
                return self.send(running);
            }
            Ok(completion) => {
                assert_eq!(completion.status, Status::Good, "{running:?} {completion:?}");
            }
            Err(error) => {
                assert_eq!(*error, TaskError::Unknown, "{running:?}");
                let once = matches!(running.what, What::Compare { .. } | What::Register { .. });
                assert!(once, "{running:?} could have been sent again");
                self.outcome.unknown += 1;
            }
        }
        self.outcome.done += 1;
        self.clock += 1;
        if let Some((lba, blocks, number)) = writes(&running.what) {
            for at in lba..lba + blocks {
                self.settle(at, number, running.started);
            }
        }
        match running.what {
            What::Compare { number } | What::Register { number } => {
                self.once.insert(number, Some(result.is_ok()));
            }
            What::Read { lba, to, allowed } => check_read(lba, &to, &allowed),
            What::Write { .. } | What::Zero { .. } | What::Flush => {}
        }
    }

    /// A write was acknowledged: what was there before it began is no more.
    fn settle(&mut self, at: u64, number: u64, started: u64) {
        let now = self.clock;
        let block = &mut self.blocks[usize::try_from(at).unwrap()];
        let open = block.open.iter().position(|open| *open == number).unwrap();
        block.open.swap_remove(open);
        block.settled.retain(|(_, acknowledged)| *acknowledged >= started);
        block.settled.push((number, now));
    }

    /// Reads what there is at the end, and what commands left in their own blocks.
    fn read_everything(&mut self) {
        self.pair.network.misfortunes = 0;
        let to = buffer(usize::try_from(ARENA).unwrap() * BLOCK);
        self.send(Running { what: What::Read { lba: 0, to, allowed: Vec::new() }, started: 0 });
        let numbers: Vec<_> = self.once.keys().copied().collect();
        for number in numbers {
            let acknowledged = self.once[&number] == Some(true);
            if self.is_register(number) {
                continue;
            }
            let found = loop {
                let to = buffer(BLOCK);
                let (cdb, data) = read(ONCE + number, &to);
                let id = submit(&mut self.pair, cdb, data);
                if !met_attention(&finish(&mut self.pair, id).unwrap()) {
                    break number_of(ONCE + number, &to.to_vec());
                }
            };
            assert!(found == number || !acknowledged, "{number} was acknowledged, found {found}");
            assert!(found == number || found == 0);
        }
        while !self.running.is_empty() {
            self.collect();
            assert!(self.running.is_empty() || self.pair.step());
        }
    }

    fn is_register(&self, number: u64) -> bool {
        let is_it = |(cdb, data): (&[u8; 16], &[u8])| cdb[0] == 0x5f && key(data) == number;
        self.pair.target.journal().iter().any(|entry| is_it((&entry.cdb, &entry.data)))
    }

    /// What the device has carried out: nothing twice that must not be.
    fn check_journal(&self) {
        let mut ran: BTreeMap<u64, u32> = BTreeMap::new();
        for entry in self.pair.target.journal() {
            let miscompares = entry.sense.get(2) == Some(&0x0e);
            if entry.status != 0 && !miscompares {
                continue;
            }
            let number = match entry.cdb[0] {
                0x89 => u64::from_be_bytes(entry.cdb[2..10].try_into().unwrap()) - ONCE,
                0x5f => key(&entry.data),
                _ => continue,
            };
            *ran.entry(number).or_default() += 1;
        }
        for (number, result) in &self.once {
            let times = ran.get(number).copied().unwrap_or(0);
            let fits = if *result == Some(true) { times == 1 } else { times <= 1 };
            assert!(fits, "command {number} ran {times} times, and ended with {result:?}");
        }
    }
}

fn key(data: &[u8]) -> u64 {
    u64::from_be_bytes(data[8..16].try_into().unwrap())
}

fn writes(what: &What) -> Option<(u64, u64, u64)> {
    match what {
        What::Write { lba, blocks, number } => Some((*lba, *blocks, *number)),
        What::Zero { lba, blocks } => Some((*lba, *blocks, 0)),
        _ => None,
    }
}

fn command(what: &What) -> (Cdb, Data) {
    match what {
        What::Write { lba, blocks, number } => {
            let all: Vec<_> = (*lba..lba + blocks).flat_map(|at| block_of(at, *number)).collect();
            write(*lba, &all)
        }
        What::Zero { lba, blocks } => {
            let blocks = NonZeroU32::new(u32::try_from(*blocks).unwrap()).unwrap();
            let (deallocate, data) = (Deallocate::Unmap, SameData::Zeroes);
            (Cdb::WriteSame16 { lba: *lba, blocks, deallocate, data }, Data::None)
        }
        What::Read { lba, to, .. } => read(*lba, to),
        What::Flush => (Cdb::SynchronizeCache10, Data::None),
        What::Compare { number } => {
            let lba = ONCE + number;
            let both = [vec![0; BLOCK], block_of(lba, *number)].concat();
            let cdb = Cdb::CompareAndWrite { lba, blocks: 1, caching: Caching::DEFAULT };
            (cdb, Data::Out(IoVec::from(filled(&both))))
        }
        What::Register { number } => {
            let persistence = Persistence::UntilPowerLoss;
            let list = ReserveList { key: 0, action_key: *number, persistence };
            let cdb = Cdb::PersistentReserveOut { action: ReserveOut::RegisterAndIgnore };
            (cdb, Data::Out(IoVec::from(filled(&list.encode()))))
        }
    }
}

/// A block of a write: its number, and where it belongs.
fn block_of(lba: u64, number: u64) -> Vec<u8> {
    [number.to_le_bytes(), lba.to_le_bytes()].concat().repeat(BLOCK / 16)
}

/// Whose block this is; it must be a whole one.
fn number_of(lba: u64, block: &[u8]) -> u64 {
    let number = u64::from_le_bytes(block[..8].try_into().unwrap());
    let expected = if number == 0 { vec![0; BLOCK] } else { block_of(lba, number) };
    if let Some(at) = block.iter().zip(&expected).position(|(a, b)| a != b) {
        let rest = &block[at / 16 * 16..][..16];
        panic!("block {lba} is of write {number} up to byte {at}, then {rest:?}");
    }
    number
}

fn check_read(lba: u64, to: &IoBuf, allowed: &[Vec<u64>]) {
    let bytes = to.to_vec();
    for ((at, block), allowed) in (lba..).zip(bytes.chunks(BLOCK)).zip(allowed) {
        let number = number_of(at, block);
        assert!(allowed.contains(&number), "block {at} holds {number}, not one of {allowed:?}");
    }
}
