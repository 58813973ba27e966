//! One run: a scenario under one configuration, in a thread of its own.

use std::path::PathBuf;
use std::sync::Arc;

use block_core::options::parse_size;
use block_testkit::golden;
use block_testkit::scenario::{Outputs, Scenario};
use block_tools::open::block_on;
use parking_lot::Mutex;

use crate::matrix::Config;
use crate::words::Words;
use crate::world::{Counting, World};

/// What is to be run.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) scenario: Arc<Scenario>,
    pub(crate) config: Config,
}

/// What a run is at, for who watches it: a line of the scenario, and its text.
pub(crate) type Position = Arc<Mutex<(usize, String)>>;

/// Why a run failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Failure {
    /// The line of the scenario; zero where none is to blame.
    pub(crate) line: usize,
    /// The step.
    pub(crate) step: String,
    /// What went wrong.
    pub(crate) what: String,
}

/// Whether a run goes on after a difference, and keeps all that came.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// The first difference ends it.
    Compare,
    /// It goes on, so that what came can be written down.
    Update,
}

/// Runs a scenario. `scratch` is an empty directory where the configuration has real files. In
/// [`Mode::Update`] the outputs of all steps are given.
pub(crate) fn run(
    job: &Job,
    scratch: Option<PathBuf>,
    mode: Mode,
    position: &Position,
) -> Result<Outputs, Failure> {
    let failed = |what: String| Failure { line: 0, step: String::new(), what };
    let scenario = &*job.scenario;
    let head = &scenario.head;
    let len = parse_size(&head.size);
    let len = len.ok_or_else(|| failed(format!("'{}' is no size", head.size)))?;
    let has = |words: &[&str]| {
        let first = |text: &str| text.split_whitespace().next().unwrap_or_default().to_owned();
        scenario.steps.iter().any(|step| words.contains(&first(&step.text).as_str()))
    };
    let counting = if has(&["requests", "cancel-zero"]) { Counting::On } else { Counting::Off };
    let world = World::new(job.config, scratch, len, counting).map_err(failed)?;
    let debugged = has(&["inject-error", "break", "wait_break", "resume", "blkdebug"]);
    let mut words = Words::new(world, head.options.clone(), head.size.clone(), debugged);
    words.known.wanted = has(&["crash", "crash-during"]);
    let _guard = words.enter();
    block_on(steps(job, &mut words, mode, position))
}

async fn steps(
    job: &Job,
    words: &mut Words,
    mode: Mode,
    position: &Position,
) -> Result<Outputs, Failure> {
    let tags = job.config.tags();
    let mut outputs = Outputs::new();
    for (index, step) in job.scenario.steps.iter().enumerate() {
        if step.only.as_ref().is_some_and(|only| !only.means(&tags)) {
            continue;
        }
        *position.lock() = (step.line, step.text.clone());
        let came = words.run(&step.text).await;
        let variant = step.expected.variant(&tags);
        let expected = step.expected.lines(&tags);
        if came != expected && mode == Mode::Compare {
            let what = golden::diff(&text(expected), &text(&came));
            // What is open is let go: nothing more is to be learnt of it.
            return Err(Failure { line: step.line, step: step.text.clone(), what });
        }
        outputs.insert((index, variant), came);
    }
    let said = words.finish().await;
    if said.is_empty() {
        return Ok(outputs);
    }
    let what = format!("closing the image at the end said:\n{}", text(&said));
    Err(Failure { line: 0, step: "close".to_owned(), what })
}

fn text(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}
