//! The rules at work: what an event does, and which request fails. Pure.
//!
//! A rule hears its event only in its state (the first is 1). An event with rules that inject errors
//! replaces the errors that were active; an active error fails every request that it is about until then,
//! or one if it is meant for one. A state that an event leads to counts from the next event on; where
//! several rules name one, the first does.

use bitflags::bitflags;

use crate::range::ByteRange;

bitflags! {
    /// What requests are, to rules.
    #[derive(Copy, Clone, PartialEq, Eq, Debug)]
    pub(super) struct IoTypes: u8 {
        const READ = 1 << 0;
        const WRITE = 1 << 1;
        const WRITE_ZEROES = 1 << 2;
        const DISCARD = 1 << 3;
        const FLUSH = 1 << 4;
        const BLOCK_STATUS = 1 << 5;
    }
}

impl IoTypes {
    /// Those that fail where a rule does not name one: questions about allocation are answered.
    pub(super) const UNLESS_SAID: Self = Self::all().difference(Self::BLOCK_STATUS);

    /// The type of this name.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "read" => Self::READ,
            "write" => Self::WRITE,
            "write-zeroes" => Self::WRITE_ZEROES,
            "discard" => Self::DISCARD,
            "flush" => Self::FLUSH,
            "block-status" => Self::BLOCK_STATUS,
            _ => return None,
        })
    }
}

/// How many requests an error fails.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Lifetime {
    /// One, ever.
    Once,
    /// All that it is about.
    Always,
}

/// When the error is told.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Delivery {
    /// By the call that sends the request.
    AtOnce,
    /// After the executor had a turn.
    NextTurn,
}

/// An error to inject.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Inject {
    /// The system's number; zero: the request passes, and no rule behind this one is looked at.
    pub(super) errno: i32,
    /// What it fails.
    pub(super) types: IoTypes,
    pub(super) lifetime: Lifetime,
    pub(super) delivery: Delivery,
    /// Only requests that touch this byte.
    pub(super) offset: Option<u64>,
}

/// What a rule does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Action {
    /// Makes an error active.
    Inject(Inject),
    /// Leads to another state.
    SetState(u64),
    /// Holds the request that the event tells of, once, under this tag.
    Suspend(String),
}

/// One rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Rule {
    /// The event that it hears.
    pub(super) event: &'static str,
    /// The state in which it does; `None`: in all.
    pub(super) state: Option<u64>,
    pub(super) action: Action,
}

/// A request that fails.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Injected {
    pub(super) errno: i32,
    pub(super) delivery: Delivery,
}

/// The rules and their state. Invariant: `active` are numbers of rules that are there.
#[derive(Debug)]
pub(super) struct Rules {
    state: u64,
    /// By number; `None`: it is gone.
    rules: Vec<Option<Rule>>,
    /// The errors that fail requests now, the first first.
    active: Vec<(usize, Inject)>,
}

impl Rules {
    pub(super) fn new(rules: Vec<Rule>) -> Self {
        Self { state: 1, rules: rules.into_iter().map(Some).collect(), active: Vec::new() }
    }

    /// Adds a breakpoint.
    pub(super) fn suspend(&mut self, event: &'static str, tag: &str) {
        let rule = Rule { event, state: None, action: Action::Suspend(tag.to_owned()) };
        match self.rules.iter_mut().find(|slot| slot.is_none()) {
            Some(slot) => *slot = Some(rule),
            None => self.rules.push(Some(rule)),
        }
    }

    /// Takes breakpoints away: those of a tag, or all. Says whether there were any.
    pub(super) fn forget(&mut self, tag: Option<&str>) -> bool {
        let mut found = false;
        for slot in &mut self.rules {
            let hit = matches!(slot, Some(Rule { action: Action::Suspend(own), .. })
                if tag.is_none_or(|tag| tag == own));
            if hit {
                *slot = None;
                found = true;
            }
        }
        found
    }

    /// Hears of an event; the tags under which the request that it tells of is held.
    pub(super) fn event(&mut self, name: &str) -> Vec<String> {
        let (state, mut next, mut tags) = (self.state, None, Vec::new());
        let mut active: Vec<(usize, Inject)> = Vec::new();
        for (number, slot) in self.rules.iter_mut().enumerate() {
            let hears = |rule: &Rule| rule.event == name && rule.state.is_none_or(|s| s == state);
            match slot.as_ref().filter(|rule| hears(rule)).map(|rule| &rule.action) {
                None => {}
                Some(Action::Inject(inject)) => active.push((number, *inject)),
                Some(Action::SetState(state)) => next = next.or(Some(*state)),
                Some(Action::Suspend(_)) => {
                    // It holds one request.
                    if let Some(Rule { action: Action::Suspend(tag), .. }) = slot.take() {
                        tags.push(tag);
                    }
                }
            }
        }
        if !active.is_empty() {
            self.active = active;
        }
        self.state = next.unwrap_or(state);
        tags
    }

    /// Whether a request fails, and how.
    pub(super) fn check(&mut self, what: IoTypes, range: ByteRange) -> Option<Injected> {
        let hit = |inject: &Inject| {
            let there = inject.offset.is_none_or(|at| (range.offset()..range.end()).contains(&at));
            inject.types.contains(what) && there
        };
        let place = self.active.iter().position(|(_, inject)| hit(inject))?;
        let (number, inject) = *self.active.get(place)?;
        if inject.errno == 0 {
            return None;
        }
        if inject.lifetime == Lifetime::Once {
            self.active.remove(place);
            if let Some(slot) = self.rules.get_mut(number) {
                *slot = None;
            }
        }
        Some(Injected { errno: inject.errno, delivery: inject.delivery })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inject(errno: i32) -> Inject {
        Inject {
            errno,
            types: IoTypes::UNLESS_SAID,
            lifetime: Lifetime::Always,
            delivery: Delivery::AtOnce,
            offset: None,
        }
    }

    fn rule(event: &'static str, state: u64, action: Action) -> Rule {
        Rule { event, state: Some(state).filter(|state| *state != 0), action }
    }

    fn check(rules: &mut Rules, what: IoTypes, offset: u64, len: u64) -> Option<i32> {
        let range = ByteRange::new(offset, len).unwrap();
        rules.check(what, range).map(|injected| injected.errno)
    }

    #[test]
    fn an_error_stays_until_the_next_event_with_errors() {
        let mut rules = Rules::new(vec![
            rule("read_aio", 0, Action::Inject(inject(1))),
            rule("write_aio", 0, Action::Inject(Inject { lifetime: Lifetime::Once, ..inject(2) })),
        ]);
        assert_eq!(check(&mut rules, IoTypes::READ, 0, 1), None);
        rules.event("read_aio");
        rules.event("l2_load");
        assert_eq!(check(&mut rules, IoTypes::WRITE, 0, 1), Some(1));
        assert_eq!(check(&mut rules, IoTypes::READ, 0, 1), Some(1));
        rules.event("write_aio");
        assert_eq!(check(&mut rules, IoTypes::READ, 0, 1), Some(2));
        assert_eq!(check(&mut rules, IoTypes::READ, 0, 1), None);
        rules.event("write_aio");
        assert_eq!(check(&mut rules, IoTypes::READ, 0, 1), None, "once is once");
    }

    #[test]
    fn types_and_places_are_told_apart() {
        let at = Inject { offset: Some(512), ..inject(1) };
        let flush = Inject { types: IoTypes::FLUSH, ..inject(2) };
        let mut rules = Rules::new(vec![
            rule("none", 0, Action::Inject(at)),
            rule("none", 0, Action::Inject(flush)),
        ]);
        rules.event("none");
        assert_eq!(check(&mut rules, IoTypes::READ, 0, 512), None);
        assert_eq!(check(&mut rules, IoTypes::READ, 0, 513), Some(1));
        assert_eq!(check(&mut rules, IoTypes::BLOCK_STATUS, 0, 1024), None);
        assert_eq!(check(&mut rules, IoTypes::FLUSH, 0, 0), Some(2));
    }

    #[test]
    fn states_follow_each_other_and_the_first_rule_names_the_next() {
        let mut rules = Rules::new(vec![
            rule("write_aio", 1, Action::SetState(2)),
            rule("write_aio", 1, Action::SetState(7)),
            rule("write_aio", 2, Action::Inject(inject(5))),
        ]);
        rules.event("write_aio");
        assert_eq!(check(&mut rules, IoTypes::WRITE, 0, 1), None, "state 1 at the event");
        rules.event("write_aio");
        assert_eq!(check(&mut rules, IoTypes::WRITE, 0, 1), Some(5));
    }

    #[test]
    fn a_breakpoint_holds_one_request() {
        let mut rules = Rules::new(Vec::new());
        rules.suspend("cow_read", "A");
        rules.suspend("cow_read", "B");
        rules.suspend("cow_write", "A");
        assert_eq!(rules.event("cow_read"), ["A", "B"]);
        assert_eq!(rules.event("cow_read"), [""; 0]);
        assert!(rules.forget(Some("A")) && !rules.forget(Some("A")));
        assert_eq!(rules.event("cow_write"), [""; 0]);
    }
}
