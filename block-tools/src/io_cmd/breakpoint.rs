//! Breakpoints at events of drivers, and ways to end the program in the middle of things: `break`,
//! `resume`, `wait_break`, `remove_break`, `sigraise`.

use std::sync::Arc;

use block_core::ability::BreakpointChange;
use block_core::{Error, Node, Result};
use rustix::process::{Signal, getpid, kill_process};

use super::{Failure, Session, size};

/// Signals have smaller numbers.
const SIGNAL_MAX: u64 = 64;

impl Session {
    pub(super) fn set_breakpoint(&mut self, words: &[&str]) -> Result<(), Failure> {
        let (event, tag) = (word(words, 0), word(words, 1));
        let set = self.breakpoints(|points| points.set(event, tag));
        set.map_err(|error| line("Could not set breakpoint", error))
    }

    pub(super) fn remove_breakpoint(&mut self, words: &[&str]) -> Result<(), Failure> {
        let tag = word(words, 0);
        let removed = self.breakpoints(|points| points.remove(tag));
        removed.map_err(|error| line(&format!("Could not remove breakpoint {tag}"), error))
    }

    pub(super) fn resume(&mut self, words: &[&str]) -> Result<(), Failure> {
        let resumed = self.breakpoints(|points| points.resume(word(words, 0)));
        resumed.map_err(|error| line("Could not resume request", error))
    }

    pub(super) async fn wait_for_breakpoint(&mut self, words: &[&str]) -> Result<(), Failure> {
        let tag = word(words, 0);
        let complaint = |error| line(&format!("Could not wait for breakpoint {tag}"), error);
        let held = self.breakpoints(|points| Ok(points.suspended(tag))).map_err(complaint)?;
        if self.pending.wait_unless_idle(&mut self.out, held).await {
            return Ok(());
        }
        // Nothing runs that could come by: this would last for ever.
        Err(complaint(Error::Os(libc::ESRCH)))
    }

    pub(super) fn sigraise(&mut self, words: &[&str]) -> Result<(), Failure> {
        let text = word(words, 0);
        let number = size(text)?;
        let too_large =
            || Failure::Line(format!("signal argument '{text}' is too large to be a valid signal"));
        let number = i32::try_from(number).ok().filter(|_| number <= SIGNAL_MAX);
        let number = number.ok_or_else(too_large)?;
        // What was said so far is seen, whatever the signal does.
        self.out.flush();
        let Some(signal) = Signal::from_named_raw(number) else {
            return Ok(());
        };
        let raised = kill_process(getpid(), signal);
        raised.map_err(|error| line("Could not raise the signal", error.into()))
    }

    /// Lets everything go on, so that the image can be closed.
    pub(super) fn clear_breakpoints(&self) {
        // There is nothing to clear where there are no breakpoints.
        let _ = self.breakpoints(|points| {
            points.clear();
            Ok(())
        });
    }

    /// Makes the driver with breakpoints in the chain of `node`, if there is one, tell of them.
    pub(super) fn listen_to_breakpoints(&self, node: &Node) {
        let Some(found) = with_breakpoints(node) else { return };
        let Some(points) = found.driver().as_breakpoints() else { return };
        let name = found.driver().name();
        let notes = self.out.notes();
        points.listen(Arc::new(move |tag, change| {
            let what = match change {
                BreakpointChange::Suspended => "Suspended",
                BreakpointChange::Resumed => "Resuming",
            };
            if let Ok(mut notes) = notes.lock() {
                notes.push(format!("{name}: {what} request '{tag}'"));
            }
        }));
    }

    /// Does something with the breakpoints of the image.
    fn breakpoints<R>(
        &self,
        act: impl FnOnce(&dyn block_core::ability::Breakpoints) -> Result<R>,
    ) -> Result<R> {
        let node = self.image.as_ref().and_then(|image| with_breakpoints(image.node()));
        let node = node.ok_or(Error::Unsupported)?;
        act(node.driver().as_breakpoints().ok_or(Error::Unsupported)?)
    }
}

/// The first node from `node` down, along the files that hold its data, that has breakpoints.
fn with_breakpoints(node: &Node) -> Option<Node> {
    use block_core::driver::ChildRole;

    if node.driver().as_breakpoints().is_some() {
        return Some(node.clone());
    }
    let children = node.children();
    let below = children.iter().find(|child| {
        matches!(child.role, ChildRole::Primary | ChildRole::Metadata | ChildRole::Filtered)
    });
    with_breakpoints(&below?.node)
}

fn word<'a>(words: &[&'a str], index: usize) -> &'a str {
    words.get(index).copied().unwrap_or_default()
}

fn line(what: &str, error: Error) -> Failure {
    Failure::Line(format!("{what}: {}", error.errno_text()))
}
