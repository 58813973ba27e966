//! How far a command is: a bar for people, a line that is overwritten for programs and logs. Who sends
//! SIGUSR1 gets a line on standard error, at once and whatever was asked for.

use std::fmt;
use std::io::{self, Write};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::SIGUSR1;
use signal_hook::iterator::Signals;

use crate::surroundings;

use super::Output;

/// Shows progress, or nothing.
///
/// Errors of writing are left to the command's last write, which meets them too.
pub(super) enum Progress {
    /// Nothing was asked for.
    Off,
    /// A bar on a terminal.
    Bar(ProgressBar),
    /// `    (12.34/100%)` and a carriage return, at each step of one percent, but not for less than
    /// [`STEP_BYTES`].
    Plain {
        /// Hundredths of a percent and bytes that were shown last; `None`: nothing yet.
        shown: Option<(u64, u64)>,
    },
}

/// Hundredths of a percent between two plain lines.
const STEP: u64 = 100;

/// Least bytes between two plain lines.
const STEP_BYTES: u64 = 1 << 20;

/// Hundredths of a percent that were reached last, for who asks by a signal.
static REACHED: AtomicU64 = AtomicU64::new(0);

/// What answers SIGUSR1. A command that gets no such thread is none the worse.
static ANSWERING: LazyLock<io::Result<()>> = LazyLock::new(|| {
    let mut signals = Signals::new([SIGUSR1])?;
    thread::Builder::new().name("progress".to_owned()).spawn(move || {
        for _ in signals.forever() {
            let _ =
                writeln!(io::stderr(), "    ({}/100%)", Percent(REACHED.load(Ordering::Relaxed)));
        }
    })?;
    Ok(())
});

impl Progress {
    /// As asked for by `-p` and `-q`.
    pub(super) fn new(wanted: bool, out: &Output) -> Self {
        if !surroundings::are_set() {
            LazyLock::force(&ANSWERING);
        }
        if !wanted {
            return Self::Off;
        }
        if !out.is_terminal() {
            return Self::Plain { shown: None };
        }
        let bar = ProgressBar::with_draw_target(None, out.draw_target());
        let template = "{wide_bar} {percent:>3}% {bytes}/{total_bytes} {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self::Bar(bar)
    }

    /// `done` of `total` bytes are done.
    pub(super) fn show(&mut self, done: u64, total: u64, out: &mut Output) {
        let part = hundredths(done, total);
        REACHED.store(part, Ordering::Relaxed);
        match self {
            Self::Off => {}
            Self::Bar(bar) => {
                bar.set_length(total);
                bar.set_position(done);
            }
            Self::Plain { shown } => {
                let is_step = shown.is_none_or(|(last, bytes)| {
                    let is_far = part >= last + STEP && done >= bytes.saturating_add(STEP_BYTES);
                    is_far || (part == 10_000 && last < part)
                });
                if is_step {
                    let _ = print_plain(part, out);
                    *shown = Some((part, done));
                }
            }
        }
    }

    /// Says a line that is not part of the progress, such as a warning.
    pub(super) fn line(&self, text: &str, out: &mut Output) -> io::Result<()> {
        match self {
            Self::Bar(bar) => bar.suspend(|| writeln!(out, "{text}")),
            _ => writeln!(out, "{text}"),
        }
    }

    /// Everything is done, or `finished` is false and it ends here. The terminal is left on a new line.
    pub(super) fn finish(&mut self, outcome: Outcome, out: &mut Output) {
        match self {
            Self::Off => {}
            Self::Bar(bar) => {
                match outcome {
                    Outcome::Done => bar.finish(),
                    Outcome::Stopped => bar.abandon(),
                }
                let _ = writeln!(out);
            }
            Self::Plain { .. } => {
                if outcome == Outcome::Done {
                    let _ = print_plain(10_000, out);
                }
                let _ = writeln!(out);
            }
        }
    }
}

/// How a shown operation ended.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// To its end.
    Done,
    /// Before.
    Stopped,
}

fn hundredths(done: u64, total: u64) -> u64 {
    let part = u128::from(done.min(total)) * 10_000 / u128::from(total.max(1));
    if total == 0 { 10_000 } else { u64::try_from(part).unwrap_or(10_000) }
}

/// Hundredths of a percent.
struct Percent(u64);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.0 / 100, self.0 % 100)
    }
}

fn print_plain(part: u64, out: &mut Output) -> io::Result<()> {
    write!(out, "    ({}/100%)\r", Percent(part))?;
    // Whoever reads a pipe for progress wants it now.
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plain_form_shows_whole_steps_and_the_end() {
        let mut out = Output::buffer();
        let mut progress = Progress::new(true, &out);
        for done in 0..=1000 {
            progress.show(done << 20, 30_000 << 20, &mut out);
        }
        progress.show(30_000 << 20, 30_000 << 20, &mut out);
        progress.finish(Outcome::Done, &mut out);
        let expect = "    (0.00/100%)\r    (1.00/100%)\r    (2.00/100%)\r    (3.00/100%)\r    \
                      (100.00/100%)\r    (100.00/100%)\r\n";
        assert_eq!(out.text(), expect);
    }

    #[test]
    fn what_follows_a_bar_is_on_a_new_line() {
        for outcome in [Outcome::Done, Outcome::Stopped] {
            let mut out = Output::buffer();
            Progress::Bar(ProgressBar::hidden()).finish(outcome, &mut out);
            assert_eq!(out.text(), "\n");
        }
    }

    #[test]
    fn a_small_job_has_few_steps() {
        let mut out = Output::buffer();
        let mut progress = Progress::new(true, &out);
        for done in 0..=16 {
            progress.show(done << 18, 4 << 20, &mut out);
        }
        let steps = ["0.00", "25.00", "50.00", "75.00", "100.00"];
        let expect: String = steps.iter().map(|step| format!("    ({step}/100%)\r")).collect();
        assert_eq!(out.text(), expect);
    }

    #[test]
    fn nothing_to_do_is_done() {
        assert_eq!(hundredths(0, 0), 10_000);
        assert_eq!(hundredths(1, 3), 3333);
        assert_eq!(hundredths(u64::MAX, u64::MAX), 10_000);
    }
}
