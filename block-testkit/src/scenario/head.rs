//! What a scenario says of itself before its first step.

use super::error::Problem;
use super::select::{Selection, Tags};

/// The head of a scenario.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Head {
    /// The promise that it tests, in one sentence.
    pub title: String,
    /// Where the promise stands: a clause of a document of the format.
    pub clause: Option<String>,
    /// Formats on which it can run.
    pub formats: Selection,
    /// Protocols on which it can run.
    pub protocols: Selection,
    /// Caches under which it can run.
    pub caches: Selection,
    /// Tags that a configuration must have, all of them.
    pub needs: Selection,
    /// Options of creation, beside those of the configuration.
    pub options: Option<String>,
    /// Length of the disk.
    pub size: String,
    /// Seconds after which a run is taken to hang.
    pub timeout_secs: u64,
}

/// The keys in the order in which they are told.
pub(super) const KEYS: [&str; 9] =
    ["title", "clause", "formats", "protocols", "caches", "needs", "options", "size", "timeout"];

/// Length of the disk where the head says nothing.
const SIZE: &str = "4M";

/// Seconds until a run is taken to hang.
const TIMEOUT_SECS: u64 = 120;

/// Most seconds that a scenario may have.
const TIMEOUT_SECS_MAX: u64 = 600;

impl Head {
    /// A head of which only the title is known.
    pub(super) fn new(title: String) -> Self {
        Self {
            title,
            clause: None,
            formats: Selection::default(),
            protocols: Selection::default(),
            caches: Selection::default(),
            needs: Selection::default(),
            options: None,
            size: SIZE.to_owned(),
            timeout_secs: TIMEOUT_SECS,
        }
    }

    /// Whether it can run under a configuration with these tags.
    pub fn allows(&self, tags: &Tags) -> bool {
        [&self.formats, &self.protocols, &self.caches].into_iter().all(|only| only.means(tags))
            && self.needs.is_met_by(tags)
    }

    /// Sets what the line `key: value` says.
    pub(super) fn set(&mut self, key: &str, value: &str) -> Result<(), Problem> {
        match key {
            "clause" => self.clause = Some(value.to_owned()),
            "formats" => self.formats = Selection::parse(value),
            "protocols" => self.protocols = Selection::parse(value),
            "caches" => self.caches = Selection::parse(value),
            "needs" => self.needs = Selection::parse(value),
            "options" => self.options = Some(value.to_owned()),
            "size" => self.size = value.to_owned(),
            "timeout" => {
                let seconds = value.parse().ok();
                let seconds = seconds.filter(|seconds| (1..=TIMEOUT_SECS_MAX).contains(seconds));
                self.timeout_secs = seconds.ok_or_else(|| Problem::Timeout(value.to_owned()))?;
            }
            _ => return Err(Problem::UnknownKey(key.to_owned())),
        }
        Ok(())
    }
}
