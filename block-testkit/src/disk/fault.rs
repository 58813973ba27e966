//! Fails chosen requests at a driver: the n-th of a kind, those that touch a range, those after a named
//! event, once or always; before anything is done, half done, or done completely.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use block_core::ByteRange;
use block_core::error::Error;
use parking_lot::Mutex;

use super::tap::{Call, Kind, Tap, Verdict};

/// How much of a failed request is done.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Nothing.
    Nothing,
    /// The first half.
    Half,
    /// Everything, and yet it fails.
    All,
}

/// Which requests fail, and how. Made with [`Rule::new`] and narrowed by the other methods.
#[derive(Clone, Debug)]
pub struct Rule {
    kind: Kind,
    /// The event that the rule waits for, and how many more of it.
    waits: Option<(&'static str, u64)>,
    range: Option<ByteRange>,
    skip: u64,
    times: u64,
    effect: Effect,
    error: Error,
}

impl Rule {
    /// Every request of `kind` fails with `EIO` and does nothing.
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            waits: None,
            range: None,
            skip: 0,
            times: u64::MAX,
            effect: Effect::Nothing,
            error: Error::IO,
        }
    }

    /// Only those that touch `range`.
    #[must_use]
    pub fn at(mut self, range: ByteRange) -> Self {
        self.range = Some(range);
        self
    }

    /// Only those that arrive after the event `name`.
    #[must_use]
    pub fn after_event(self, name: &'static str) -> Self {
        self.after_nth_event(name, 0)
    }

    /// Only those that arrive after the event `name` has come, not counting the first `count` times.
    #[must_use]
    pub fn after_nth_event(mut self, name: &'static str, count: u64) -> Self {
        self.waits = Some((name, count));
        self
    }

    /// Not the first `count` of those that the rule is about.
    #[must_use]
    pub fn skip(mut self, count: u64) -> Self {
        self.skip = count;
        self
    }

    /// Only one.
    #[must_use]
    pub fn once(mut self) -> Self {
        self.times = 1;
        self
    }

    /// With this much done.
    #[must_use]
    pub fn effect(mut self, effect: Effect) -> Self {
        self.effect = effect;
        self
    }

    /// With this error.
    #[must_use]
    pub fn error(mut self, error: Error) -> Self {
        self.error = error;
        self
    }

    /// Hears of an event.
    fn event(&mut self, name: &'static str) {
        self.waits = match self.waits {
            Some((wanted, 0)) if wanted == name => None,
            Some((wanted, more)) if wanted == name => Some((wanted, more - 1)),
            other => other,
        };
    }

    /// The verdict on a request that the rule may be about.
    fn judge(&mut self, call: &Call) -> Option<Verdict> {
        let hit = call.kind == self.kind
            && self.times > 0
            && self.waits.is_none()
            && self.range.is_none_or(|range| range.overlaps(call.range));
        if !hit {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        self.times -= 1;
        Some(match self.effect {
            Effect::Nothing => Verdict::Fail(self.error),
            Effect::Half => Verdict::FailHalf(self.error),
            Effect::All => Verdict::FailLate(self.error),
        })
    }
}

/// Fails what its rules say; the first rule that hits decides.
#[derive(Debug, Default)]
pub struct Fault {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    injected: u64,
    events: BTreeMap<&'static str, u64>,
}

impl Fault {
    /// No rule yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Adds a rule.
    pub fn add(&self, rule: Rule) {
        self.state.lock().rules.push(rule);
    }

    /// Takes all rules away.
    pub fn clear(&self) {
        self.state.lock().rules.clear();
    }

    /// The events that have come, and how often each.
    pub fn events(&self) -> BTreeMap<&'static str, u64> {
        self.state.lock().events.clone()
    }

    /// How many requests were failed: a test asserts that there were some.
    pub fn injected(&self) -> u64 {
        self.state.lock().injected
    }
}

#[async_trait]
impl Tap for Fault {
    async fn before(&self, call: &Call) -> Verdict {
        let mut state = self.state.lock();
        match state.rules.iter_mut().find_map(|rule| rule.judge(call)) {
            Some(verdict) => {
                state.injected += 1;
                verdict
            }
            None => Verdict::Pass,
        }
    }

    fn event(&self, name: &'static str) {
        let mut state = self.state.lock();
        *state.events.entry(name).or_default() += 1;
        state.rules.iter_mut().for_each(|rule| rule.event(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{MemConfig, Tapped};
    use block_core::node::NodeOptions;
    use block_core::{Alignment, Node, RequestFlags};
    use futures::executor::block_on;

    #[test]
    fn a_rule_waits_for_its_event() {
        let fault = Fault::new();
        let disk = Tapped::new(MemConfig::new(4096).build(), Arc::clone(&fault));
        let node = Node::new(disk, NodeOptions::default());
        let write = || {
            let iov = crate::op::io_vec(&[1; 512], Alignment::SECTOR, 1);
            block_on(node.write(ByteRange::up_to(512), iov, RequestFlags::empty()))
        };
        fault.add(Rule::new(Kind::Write).after_nth_event("l2_update", 1).skip(1).once());
        let mut results = vec![write()];
        for name in ["l1_update", "l2_update", "l2_update"] {
            node.driver().event(name);
            results.push(write());
        }
        results.extend([write(), write()]);
        let ok = Ok(());
        assert_eq!(results, [ok, ok, ok, ok, Err(Error::IO), ok]);
        assert_eq!(fault.events(), [("l1_update", 1), ("l2_update", 2)].into());
    }
}
