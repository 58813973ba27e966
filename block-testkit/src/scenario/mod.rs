//! The language of scenarios: what is done to an image, line by line, and what must come of it.
//!
//! `block-testkit/iotests/README.md` describes it. A [`Scenario`] is the text of one `.iot` file, taken
//! apart: a head that says which promise it tests and on what it can run, then steps, each with the output
//! that is expected below it. Who runs it asks for the [`Expected::lines`] of a step under the tags of a
//! configuration, and [`Scenario::rewrite`] puts what came in their place.
//!
//! Nothing here does I/O, and what the words of a step mean is not known here.
//!
//! Invariants: what parses is rewritten to itself, byte for byte, if nothing came that was not expected; every
//! error names the file and the line.

mod error;
mod expected;
mod head;
mod parse;
mod select;

pub use error::{Problem, ScenarioError};
pub use expected::{Expected, Variant};
pub use head::Head;
pub use select::{Selection, Tags};

use std::collections::BTreeMap;

/// One `.iot` file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scenario {
    /// The file's name without its ending.
    pub name: String,
    /// What it says of itself.
    pub head: Head,
    /// What is done, in order.
    pub steps: Vec<Step>,
    /// The lines of the file.
    source: Vec<String>,
}

/// One step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// Its line in the file, counted from one.
    pub line: usize,
    /// Under which configurations it is done; `None`: under all.
    pub only: Option<Selection>,
    /// Its words, as they stand there.
    pub text: String,
    /// What must come of it.
    pub expected: Expected,
}

/// What came of steps: by the index of the step and that of the variant of its output.
pub type Outputs = BTreeMap<(usize, usize), Vec<String>>;

impl Scenario {
    /// Takes the text of the file `name` apart.
    pub fn parse(name: &str, text: &str) -> Result<Self, ScenarioError> {
        parse::parse(name, text)
    }

    /// The text of the file with `outputs` in the place of what was expected.
    pub fn rewrite(&self, outputs: &Outputs) -> String {
        let mut text = String::new();
        let mut line = 0;
        for (index, step) in self.steps.iter().enumerate() {
            for (number, variant) in step.expected.variants.iter().enumerate() {
                let Some(output) = outputs.get(&(index, number)) else { continue };
                push_lines(&mut text, &self.source[line..variant.at.start]);
                for written in output {
                    push_lines(&mut text, &[format!("{}{written}", parse::INDENT)]);
                }
                line = variant.at.end;
            }
        }
        push_lines(&mut text, &self.source[line..]);
        text
    }
}

fn push_lines(text: &mut String, lines: &[String]) {
    for line in lines {
        text.push_str(line);
        text.push('\n');
    }
}
