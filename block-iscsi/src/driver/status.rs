//! Block status: what is zeroes and what is data, from what is known and by asking.

use block_core::ByteRange;
use block_core::request::status::DriverStatus;

use super::IscsiDriver;

impl IscsiDriver {
    /// How the first bytes of `range` are stored. What the target does not tell is data.
    pub(super) async fn status(&self, range: ByteRange) -> DriverStatus {
        if !self.knowledge.exists() || self.asking.is_over() {
            return self.known(range).unwrap_or(DriverStatus::data(range.len()));
        }
        if let Some(status) = self.known(range) {
            return status;
        }
        let told = self.ask(range).await;
        if let Some(status) = self.known(range) {
            return status;
        }
        // Others may write, or somebody is writing just now: the answer counts for this time.
        match told.and_then(|told| told.stretch_at(range.offset())) {
            Some(stretch) => of(stretch.zero, range.first(stretch.range.len())),
            None => {
                let page = self.knowledge.pages_around(range.first(1));
                DriverStatus::data(range.first(page.end() - range.offset()).len())
            }
        }
    }

    /// What is certain of the first bytes of `range`.
    fn known(&self, range: ByteRange) -> Option<DriverStatus> {
        let run = self.knowledge.run(range.offset())?;
        Some(of(run.zero, range.first(run.end - range.offset())))
    }
}

fn of(zero: bool, range: ByteRange) -> DriverStatus {
    if zero { DriverStatus::zero(range.len()) } else { DriverStatus::data(range.len()) }
}
