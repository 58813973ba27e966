//! What the commands find around them: the drivers that names open, and where messages go that stand
//! beside the output.
//!
//! A program finds the tools' own drivers and standard error. Who runs commands in process (a test, a
//! harness) sets others for its thread with [`enter`], so that whole command lines work on files that are
//! in memory, and nothing that they say is lost.
//!
//! Beside them, the secrets that a command line names (`--object`), for whatever it opens.
//!
//! Invariant: what is set counts for one thread, until the guard is dropped.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, Write};
use std::marker::PhantomData;
use std::sync::Arc;

use block_core::Registry;

use crate::spec::objects::Secrets;

/// Takes the messages, a line or several each, without a newline at the end.
pub type Messages = Arc<dyn Fn(&str) + Send + Sync>;

/// What the commands of a thread find around them.
#[derive(Clone)]
pub struct Surroundings {
    /// Every driver that they know.
    pub registry: Arc<Registry>,
    /// Where their messages go.
    pub messages: Messages,
}

thread_local! {
    static CURRENT: RefCell<Option<Surroundings>> = const { RefCell::new(None) };
    static SECRETS: RefCell<Secrets> = RefCell::default();
}

/// Makes `surroundings` those of this thread until the guard is dropped.
pub fn enter(surroundings: Surroundings) -> Guard {
    let before = CURRENT.with(|current| current.replace(Some(surroundings)));
    Guard { before, _this_thread: PhantomData }
}

/// Puts back what was there before [`enter`]. Guards are dropped in reverse order.
#[must_use = "the surroundings count only while the guard lives"]
pub struct Guard {
    before: Option<Surroundings>,
    _this_thread: PhantomData<*const ()>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let before = self.before.take();
        drop(CURRENT.with(|current| current.replace(before)));
    }
}

/// Makes `secrets` those of this thread's command until the guard is dropped.
pub(crate) fn confide(secrets: Secrets) -> SecretsGuard {
    let before = SECRETS.with(|current| current.replace(secrets));
    SecretsGuard { before, _this_thread: PhantomData }
}

/// Puts back what was there before [`confide`].
#[must_use = "the secrets count only while the guard lives"]
pub(crate) struct SecretsGuard {
    before: Secrets,
    _this_thread: PhantomData<*const ()>,
}

impl Drop for SecretsGuard {
    fn drop(&mut self) {
        let before = std::mem::take(&mut self.before);
        SECRETS.with(|current| current.replace(before));
    }
}

/// The secrets of this thread's command.
pub(crate) fn secrets() -> Secrets {
    SECRETS.with(|current| current.borrow().clone())
}

/// Whether this thread has surroundings of its own.
pub(crate) fn are_set() -> bool {
    CURRENT.with(|current| current.borrow().is_some())
}

/// The drivers of this thread's surroundings, if it has any.
pub(crate) fn registry() -> Option<Arc<Registry>> {
    CURRENT.with(|current| Some(Arc::clone(&current.borrow().as_ref()?.registry)))
}

/// Says something beside the output: on standard error, unless the surroundings say otherwise.
pub(crate) fn complain(message: impl fmt::Display) {
    let messages = CURRENT.with(|current| Some(Arc::clone(&current.borrow().as_ref()?.messages)));
    match messages {
        Some(messages) => messages(&message.to_string()),
        // Nobody is left to be told if this fails.
        None => drop(writeln!(io::stderr(), "{message}")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn what_is_set_counts_until_the_guard_is_dropped() {
        assert!(registry().is_none() && !are_set());
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ear = Arc::clone(&heard);
        let messages: Messages = Arc::new(move |text| ear.lock().unwrap().push(text.to_owned()));
        let guard = enter(Surroundings { registry: Arc::new(Registry::new()), messages });
        complain(format_args!("a {}", 1));
        assert_eq!(registry().map(|found| found.names().count()), Some(0));
        drop(guard);
        assert!(registry().is_none());
        assert_eq!(*heard.lock().unwrap(), ["a 1"]);
    }
}
