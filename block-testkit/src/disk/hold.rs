//! Stops chosen requests at a driver until the test lets them go: for races that have a name.
//!
//! A test says what to hold, starts requests, waits until the request it is about has arrived
//! ([`Hold::arrived`]; this is how it asserts that the race was reached), does the other half of the
//! race, and releases.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::{Poll, Waker};

use async_trait::async_trait;
use block_core::error::Result;
use parking_lot::Mutex;

use super::tap::{Call, Tap, Verdict};

/// Where a request is held.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Point {
    /// Before anything is done.
    Before,
    /// After it was done, before the layer hears of it.
    After,
}

type Predicate = Box<dyn Fn(&Call) -> bool + Send + Sync>;

/// Which requests are held, and those that are.
#[derive(Default)]
pub struct Hold {
    /// Guards everything; no waker runs under it.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rule: Option<(Point, Predicate)>,
    held: BTreeMap<u64, Held>,
    watchers: Vec<Waker>,
}

struct Held {
    call: Call,
    released: bool,
    waker: Option<Waker>,
}

impl Hold {
    /// Holds nothing yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// From now on holds every request of which `predicate` is true. Replaces the rule before.
    pub fn hold(&self, point: Point, predicate: impl Fn(&Call) -> bool + Send + Sync + 'static) {
        self.state.lock().rule = Some((point, Box::new(predicate)));
    }

    /// Holds no more requests; those that are held stay so.
    pub fn stop_holding(&self) {
        self.state.lock().rule = None;
    }

    /// What is held, in the order of arrival.
    pub fn held(&self) -> Vec<Call> {
        self.state.lock().waiting().cloned().collect()
    }

    /// Waits until `count` requests are held, and gives them.
    pub async fn arrived(&self, count: usize) -> Vec<Call> {
        std::future::poll_fn(|cx| {
            let mut state = self.state.lock();
            if state.waiting().count() >= count {
                return Poll::Ready(state.waiting().cloned().collect());
            }
            state.watchers.push(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Lets one go, by its number.
    pub fn release(&self, number: u64) {
        let mut state = self.state.lock();
        let waker = state.held.get_mut(&number).and_then(|held| {
            held.released = true;
            held.waker.take()
        });
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Lets all go, and holds no more.
    pub fn release_all(&self) {
        self.stop_holding();
        for call in self.held() {
            self.release(call.number);
        }
    }

    /// Enters a request if the rule says so.
    fn enter(&self, point: Point, call: &Call) -> bool {
        let mut state = self.state.lock();
        let rule = state.rule.as_ref();
        if !rule.is_some_and(|(at, predicate)| *at == point && predicate(call)) {
            return false;
        }
        state.held.insert(call.number, Held { call: call.clone(), released: false, waker: None });
        let watchers = std::mem::take(&mut state.watchers);
        drop(state);
        watchers.into_iter().for_each(Waker::wake);
        true
    }

    /// Waits here if the rule says so.
    async fn pass(&self, point: Point, call: &Call) {
        if !self.enter(point, call) {
            return;
        }
        std::future::poll_fn(|cx| {
            let mut state = self.state.lock();
            let Some(held) = state.held.get_mut(&call.number) else { return Poll::Ready(()) };
            if held.released {
                state.held.remove(&call.number);
                return Poll::Ready(());
            }
            held.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl State {
    fn waiting(&self) -> impl Iterator<Item = &Call> {
        self.held.values().filter(|held| !held.released).map(|held| &held.call)
    }
}

#[async_trait]
impl Tap for Hold {
    async fn before(&self, call: &Call) -> Verdict {
        self.pass(Point::Before, call).await;
        Verdict::Pass
    }

    async fn after(&self, call: &Call, _: Result<()>) {
        self.pass(Point::After, call).await;
    }
}
