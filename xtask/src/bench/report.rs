//! The text of the report: goals, verdicts, where it goes in BENCHMARKS.md.

use std::fmt;
use std::process::Command;

use super::Scale;
use crate::failure::Result;
use crate::run;

/// The line in BENCHMARKS.md after which the report begins.
pub(super) const BEGIN: &str = "<!-- bench: begin -->";
/// The line before which it ends.
pub(super) const END: &str = "<!-- bench: end -->";

/// What a value should be.
#[derive(Copy, Clone, Debug)]
pub(super) struct Goal<A> {
    pub(super) against: A,
    bound: f64,
    side: Side,
}

#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Side {
    AtLeast,
    AtMost,
}

/// Whether it is.
#[derive(Copy, Clone, PartialEq, Debug)]
pub(super) enum Verdict {
    Reached(f64),
    Missed(f64),
    /// Somebody did not take part.
    Unknown,
}

impl<A> Goal<A> {
    pub(super) const fn at_least(bound: f64, against: A) -> Self {
        Self { against, bound, side: Side::AtLeast }
    }

    pub(super) const fn at_most(bound: f64, against: A) -> Self {
        Self { against, bound, side: Side::AtMost }
    }

    /// As a table shows it, with the name of what it counts.
    pub(super) fn words(&self, against: &str) -> String {
        let sign = match self.side {
            Side::AtLeast => ">=",
            Side::AtMost => "<=",
        };
        format!("{sign} {} {against}", self.bound)
    }

    /// Compares.
    pub(super) fn verdict(&self, value: Option<f64>) -> Verdict {
        match (value, self.side) {
            (None, _) => Verdict::Unknown,
            (Some(value), Side::AtLeast) if value >= self.bound => Verdict::Reached(value),
            (Some(value), Side::AtMost) if value <= self.bound => Verdict::Reached(value),
            (Some(value), _) => Verdict::Missed(value),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reached(value) => write!(f, "{value:.2}, reached"),
            Self::Missed(value) => write!(f, "**{value:.2}, missed**"),
            Self::Unknown => f.write_str("not measured"),
        }
    }
}

/// What stands above the tables: by which command, on what.
pub(super) fn preface(scale: Scale) -> Result<String> {
    let processors = run::stdout(&mut run::command("nproc"))?;
    let kernel = run::stdout(run::command("uname").arg("-r"))?;
    let qemu = run::stdout(run::command("qemu-img").arg("--version"))?;
    let commit = run::stdout(run::command("git").args(["rev-parse", "--short", "HEAD"]));
    Ok(format!(
        "Made by `cargo xtask bench{}`: medians of {} interleaved rounds, at commit {}. {} processors, \
         Linux {}, {}.\n",
        scale.choose("", " --quick"),
        scale.rounds,
        commit.as_deref().map_or("unknown", str::trim),
        processors.trim(),
        kernel.trim(),
        qemu.lines().next().unwrap_or_default(),
    ))
}

/// `document` with `text` between the markers; `None` if they are not there, in this order.
pub(super) fn between_markers(document: &str, text: &str) -> Option<String> {
    let begin = document.find(BEGIN)? + BEGIN.len();
    let end = begin + document[begin..].find(END)?;
    let (before, after) = (&document[..begin], &document[end..]);
    Some(format!("{before}\n{}\n{after}", text.trim_end()))
}

/// The command with only the last part of every path.
pub(super) fn short_line(command: &Command) -> String {
    let line = run::line(command);
    let words = line.split(' ').map(|word| {
        let path = word.starts_with('/') && word.len() > 1;
        if path { word.rsplit('/').next().unwrap_or(word) } else { word }
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_reached_at_their_bound() {
        let least = Goal::at_least(2.0, ());
        assert_eq!(least.verdict(Some(2.0)), Verdict::Reached(2.0));
        assert_eq!(least.verdict(Some(1.9)), Verdict::Missed(1.9));
        let most = Goal::at_most(2.0, ());
        assert_eq!(most.verdict(Some(2.1)), Verdict::Missed(2.1));
        assert_eq!(most.verdict(None), Verdict::Unknown);
    }

    #[test]
    fn the_text_between_the_markers_is_replaced() {
        let document = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        let expected = format!("a\n{BEGIN}\nnew\n{END}\nb\n");
        assert_eq!(between_markers(&document, "new\n"), Some(expected));
        assert_eq!(between_markers(&format!("{END} {BEGIN}"), "new"), None);
    }

    #[test]
    fn paths_are_shortened() {
        let mut command = run::command("/a/b/prog");
        command.args(["-x", "/c/d.raw", "1"]);
        assert_eq!(short_line(&command), "prog -x d.raw 1");
    }
}
