//! What a check says, and the numbers that it adds up to.

use block_core::ability::{CheckReport, Finding, Severity};

/// Where findings go.
pub(super) type Found<'a> = &'a (dyn Fn(Finding) + Send + Sync);

/// Passes findings on and counts them. Nothing is kept, so that nothing grows with the damage.
pub(super) struct Log<'a> {
    /// `None`: only the numbers count.
    found: Option<Found<'a>>,
    /// Stands before every text: which extent.
    prefix: String,
    pub(super) report: CheckReport,
}

impl<'a> Log<'a> {
    pub(super) fn new(found: Option<Found<'a>>, prefix: &str) -> Self {
        Self { found, prefix: prefix.to_owned(), report: CheckReport::default() }
    }

    /// Data is at risk.
    pub(super) fn corruption(&mut self, text: impl FnOnce() -> String) {
        self.report.corruptions += 1;
        self.say(Severity::Corruption, text);
    }

    /// `count` grains are lost, or something is left to do that harms no data.
    pub(super) fn leaks(&mut self, count: u64, text: impl FnOnce() -> String) {
        self.report.leaks = self.report.leaks.saturating_add(count);
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
            found(Finding { severity, text: format!("{}{}", self.prefix, text()) });
        }
    }
}
