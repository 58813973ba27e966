//! Fails chosen requests at a driver: the n-th of a kind, those that touch a range, once or always;
//! before anything is done, half done, or done completely.

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

    /// The verdict on a request that the rule may be about.
    fn judge(&mut self, call: &Call) -> Option<Verdict> {
        let hit = call.kind == self.kind
            && self.times > 0
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
}
