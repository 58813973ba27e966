//! What a command shows of a running copy, and the rate (`-r`) that it keeps.

use std::time::{Duration, Instant};

use block_core::Cancel;
use block_core::job::copy::{self, Counted, Unreadable};
use futures::channel::oneshot;
use futures::future::BoxFuture;

use crate::program;
use crate::surroundings::complain;

use super::common::size_argument;
use super::progress::Progress;
use super::{Failure, Output};

/// Watches a copy for the user.
pub(super) struct Watch<'a> {
    /// Where the progress is shown.
    pub(super) progress: &'a mut Progress,
    /// What it is shown on.
    pub(super) out: &'a mut Output,
    /// Warnings are not said.
    pub(super) quiet: bool,
    /// How fast it may be.
    pub(super) rate: Option<Rate>,
}

impl copy::Watch for Watch<'_> {
    fn progress(&mut self, progress: copy::Progress) {
        self.progress.show(progress.done, progress.total, self.out);
    }

    fn counted(&self) -> Counted {
        match self.progress {
            Progress::Off => Counted::Everything,
            Progress::Bar(_) | Progress::Plain { .. } => Counted::Data,
        }
    }

    fn unreadable(&mut self, part: Unreadable) {
        if !self.quiet {
            let (offset, error) = (part.range.offset(), part.error.errno_text());
            let program = program::name();
            complain(format_args!(
                "{program}: warning: error while reading offset {offset}: {error}"
            ));
        }
    }

    fn before_write(&mut self, bytes: u64) -> Option<BoxFuture<'static, ()>> {
        self.rate.as_mut().and_then(|rate| rate.wait(bytes))
    }
}

/// A number of bytes in a second.
pub(super) struct Rate {
    bytes_per_second: u64,
    /// When everything that was let through so far has taken its time.
    free_at: Instant,
    cancel: Cancel,
}

impl Rate {
    /// The rate that `-r` names; whoever waits is let through once `cancel` is cancelled.
    pub(super) fn parse(text: Option<&str>, cancel: &Cancel) -> Result<Option<Self>, Failure> {
        let Some(text) = text else {
            return Ok(None);
        };
        let max = u64::try_from(i64::MAX).unwrap_or(u64::MAX);
        let bytes_per_second = size_argument("rate limit", text, 0, max)?;
        let rate = Self { bytes_per_second, free_at: Instant::now(), cancel: cancel.clone() };
        // Zero is no limit.
        Ok((bytes_per_second > 0).then_some(rate))
    }

    /// Takes a place for `bytes` behind all before; `None` if they need not wait.
    fn wait(&mut self, bytes: u64) -> Option<BoxFuture<'static, ()>> {
        let now = Instant::now();
        let turn = self.free_at.max(now);
        let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let takes = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        // What cannot be told as a time never comes, which is what such a rate means.
        self.free_at = turn.checked_add(takes).unwrap_or(turn);
        (turn > now).then(|| sleep_until(turn, self.cancel.clone()))
    }
}

/// How long a sleeper goes without looking whether it was cancelled.
const NAP: Duration = Duration::from_millis(50);

fn sleep_until(turn: Instant, cancel: Cancel) -> BoxFuture<'static, ()> {
    let (alarm, rung) = oneshot::channel();
    std::thread::spawn(move || {
        while !cancel.is_cancelled() {
            match turn.checked_duration_since(Instant::now()) {
                Some(left) if !left.is_zero() => std::thread::sleep(left.min(NAP)),
                _ => break,
            }
        }
        // The job waits for it, unless it has ended.
        let _ = alarm.send(());
    });
    Box::pin(async move { rung.await.unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::open::block_on;

    #[test]
    fn a_rate_spreads_bytes_over_time_and_a_cancel_ends_the_wait() {
        let cancel = Cancel::new();
        let mut rate = Rate::parse(Some("1M"), &cancel).unwrap().unwrap();
        let start = Instant::now();
        assert!(rate.wait(100 << 10).is_none());
        block_on(rate.wait(100 << 20).unwrap());
        assert!(start.elapsed() >= Duration::from_millis(90), "{:?}", start.elapsed());
        // Its turn is in 100 seconds.
        let turn = rate.wait(1).unwrap();
        cancel.cancel();
        block_on(turn);
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn no_rate_is_no_limit() {
        let cancel = Cancel::new();
        assert!(Rate::parse(None, &cancel).unwrap().is_none());
        assert!(Rate::parse(Some("0"), &cancel).unwrap().is_none());
        let refused = Rate::parse(Some("x"), &cancel).err().unwrap();
        assert_eq!(refused.message(), "Invalid rate limit specified: 'x'.");
    }
}
