//! What can be wrong with the text of a scenario.

/// A line that cannot be understood.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{file}.iot:{line}: {problem}")]
pub struct ScenarioError {
    /// The scenario's name.
    pub file: String,
    /// The line, counted from one.
    pub line: usize,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a line.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Problem {
    /// The head ends without a line that must be there.
    #[error("the head has no line '{0}:'")]
    Missing(&'static str),
    /// The head names something that no scenario has.
    #[error("the head has no '{0}'")]
    UnknownKey(String),
    /// A line of the head that is no `key: value`.
    #[error("expected 'key: value' and an empty line after the head")]
    NotKey,
    /// A key of the head stands there twice.
    #[error("'{0}' was said already")]
    Twice(String),
    /// A number that is none.
    #[error("'{0}' is no number of seconds from 1 to 600")]
    Timeout(String),
    /// Output before the first step, or after a comment.
    #[error("output without a step above it")]
    OutputWithoutStep,
    /// A tab, or one space.
    #[error("output is indented by two spaces")]
    Indentation,
    /// `?` without tags.
    #[error("'?' needs tags of configurations after it")]
    NoTags,
    /// `if` without a colon and words.
    #[error("expected 'if TAGS: WORDS'")]
    If,
    /// There is nothing to do.
    #[error("there is no step")]
    NoSteps,
}
