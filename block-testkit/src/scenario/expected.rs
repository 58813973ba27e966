//! The output that is expected of a step, in one or several variants.

use std::ops::Range;

use super::select::{Selection, Tags};

/// What must come of a step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Expected {
    /// The first one is for all configurations that no other one means.
    pub(super) variants: Vec<Variant>,
}

/// Output for some configurations.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Variant {
    /// For which; `None`: for all others.
    pub only: Option<Selection>,
    /// The lines.
    pub lines: Vec<String>,
    /// Where they stand, counted from zero.
    pub(super) at: Range<usize>,
}

impl Expected {
    /// Which variant is for a configuration with these tags.
    pub fn variant(&self, tags: &Tags) -> usize {
        let means = |variant: &Variant| variant.only.as_ref().is_some_and(|only| only.means(tags));
        self.variants.iter().position(means).unwrap_or(0)
    }

    /// The lines for a configuration with these tags.
    pub fn lines(&self, tags: &Tags) -> &[String] {
        &self.variants[self.variant(tags)].lines
    }

    /// All variants.
    pub fn variants(&self) -> &[Variant] {
        &self.variants
    }
}
