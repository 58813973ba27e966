//! What a check says, and the numbers that it adds up to.

use block_core::ability::{CheckReport, Finding, Severity};

/// Where findings go.
pub(super) type Found<'a> = &'a (dyn Fn(Finding) + Send + Sync);

/// Passes findings on and counts them. Nothing is kept, so that nothing grows with the damage.
pub(super) struct Log<'a> {
    /// `None`: only the numbers count.
    found: Option<Found<'a>>,
    pub(super) report: CheckReport,
}

impl<'a> Log<'a> {
    pub(super) fn new(found: Option<Found<'a>>) -> Self {
        Self { found, report: CheckReport::default() }
    }

    /// Data is at risk.
    pub(super) fn corruption(&mut self, text: impl FnOnce() -> String) {
        self.report.corruptions += 1;
        self.say(Severity::Corruption, text);
    }

    /// A cluster is lost.
    pub(super) fn leak(&mut self, text: impl FnOnce() -> String) {
        self.report.leaks += 1;
        self.say(Severity::Leak, text);
    }

    /// Something could not be looked at.
    pub(super) fn check_error(&mut self, text: impl FnOnce() -> String) {
        self.report.check_errors += 1;
        self.say(Severity::CheckError, text);
    }

    /// Something was mended. The numbers come from the check after the repair.
    pub(super) fn repaired(&self, text: impl FnOnce() -> String) {
        self.say(Severity::Repaired, text);
    }

    fn say(&self, severity: Severity, text: impl FnOnce() -> String) {
        if let Some(found) = self.found {
            found(Finding { severity, text: text() });
        }
    }
}
