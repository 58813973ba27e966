//! Runs the scenarios of `block-testkit/iotests` over the matrix of formats, protocols and caches, in
//! process. `cargo xtask iotests` builds and runs it.
//!
//! The exit status is 0 if every run passed, 1 if one failed, 2 if nothing could be run, 130 if Ctrl-C stopped it:
//! then the runs that had begun are ended and reported, and their files removed.

mod cancel;
mod crash;
mod files;
mod filter;
mod matrix;
mod report;
mod run;
mod target;
#[cfg(test)]
mod tests;
mod update;
mod words;
mod work;
mod world;

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use block_testkit::scenario::Scenario;
use clap::{Parser, ValueEnum};
use regex_lite::Regex;

use crate::matrix::Config;
use crate::report::Report;
use crate::run::{Job, Mode};
use crate::work::{Keep, Plan, work};

/// Runs scenarios over formats, protocols and caches.
#[derive(Parser, Debug)]
#[command(name = "iotests")]
struct Arguments {
    /// Formats to run on, by name (qcow2-v2) or driver (qcow2).
    #[arg(long, value_name = "FORMAT")]
    format: Vec<String>,
    /// Protocols to run on, by name (iscsi-thin) or family (iscsi).
    #[arg(long, value_name = "PROTOCOL")]
    protocol: Vec<String>,
    /// Caches to run under: buffered, direct, io_uring, pool.
    #[arg(long, value_name = "CACHE")]
    cache: Vec<String>,
    /// Scenarios to run: those whose names a regular expression matches.
    #[arg(long, value_name = "RE")]
    filter: Option<String>,
    /// Run on the first shape of each driver and protocol, and on every shape in memory.
    #[arg(long)]
    quick: bool,
    /// Runs at once (default: as many as there are cores).
    #[arg(short, long, value_name = "N")]
    jobs: Option<usize>,
    /// Leave the files of each run where they are, and say where.
    #[arg(long)]
    keep: bool,
    /// List what would be run.
    #[arg(long)]
    list: bool,
    /// Write the report as JUnit XML.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Layout of the report on standard output.
    #[arg(long, value_enum, default_value_t)]
    output: Layout,
    /// Where the scenarios are.
    #[arg(long, value_name = "DIR")]
    scenarios: Option<PathBuf>,
    /// Where files are made (default: the system's temporary directory).
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Layout of the report on standard output.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default, ValueEnum)]
enum Layout {
    /// For people.
    #[default]
    Human,
    /// For programs.
    Json,
}

/// Status if nothing could be run.
const NOTHING_RUN: u8 = 2;
/// Status after Ctrl-C.
const INTERRUPTED: u8 = 130;

/// Somebody pressed Ctrl-C.
static STOP: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // The second one ends all at once.
    let handler = ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(INTERRUPTED));
        }
    });
    let done = handler
        .map_err(|error| format!("cannot wait for Ctrl-C: {error}"))
        .and_then(|()| run_all(&arguments));
    match done {
        Ok(_) if STOP.load(Ordering::Relaxed) => ExitCode::from(INTERRUPTED),
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("iotests: {problem}");
            ExitCode::from(NOTHING_RUN)
        }
    }
}

/// Runs everything that is wanted, and gives how many runs failed.
fn run_all(arguments: &Arguments) -> Result<usize, String> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../block-testkit/iotests");
    let directory = arguments.scenarios.clone().unwrap_or_else(beside);
    let scenarios = load(&directory, arguments.filter.as_deref())?;
    let configs: Vec<Config> = Config::all().filter(|config| wanted(arguments, config)).collect();
    if configs.is_empty() {
        return Err("no configuration is like that".to_owned());
    }
    let mut report = Report::default();
    let jobs = jobs(&scenarios, &configs, &mut report);
    if jobs.is_empty() {
        return Err("no scenario runs under such a configuration".to_owned());
    }
    if arguments.list {
        for job in &jobs {
            println!("{:<32} {}", job.scenario.name, job.config);
        }
        return Ok(0);
    }
    let mode = match std::env::var_os("UPDATE_GOLDEN") {
        Some(value) if value == "1" => Mode::Update,
        _ => Mode::Compare,
    };
    let failed = perform(arguments, jobs, mode, &mut report)?;
    if mode == Mode::Update && !STOP.load(Ordering::Relaxed) {
        let problems = update::update(&directory, &report.ended);
        problems.iter().for_each(|problem| print!("{problem}"));
        return Ok(failed + problems.len());
    }
    Ok(failed)
}

/// The scenarios of a directory whose names match, by name.
fn load(directory: &Path, filter: Option<&str>) -> Result<Vec<Arc<Scenario>>, String> {
    let filter = filter.map(Regex::new).transpose().map_err(|error| error.to_string())?;
    let failed = |error: io::Error| format!("{}: {error}", directory.display());
    let mut scenarios = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if path.extension().is_none_or(|ending| ending != "iot")
            || filter.as_ref().is_some_and(|filter| !filter.is_match(&name))
        {
            continue;
        }
        let text = std::fs::read_to_string(&path).map_err(failed)?;
        let scenario = Scenario::parse(&name, &text).map_err(|error| error.to_string())?;
        check_tags(&scenario)?;
        scenarios.push(Arc::new(scenario));
    }
    scenarios.sort_by(|a, b| a.name.cmp(&b.name));
    if scenarios.is_empty() {
        return Err(format!("{}: no scenario is named like that", directory.display()));
    }
    Ok(scenarios)
}

/// Refuses tags that no configuration has: they are spelled wrongly.
fn check_tags(scenario: &Scenario) -> Result<(), String> {
    let known: Vec<_> = Config::all().map(|config| config.tags()).collect();
    let head = &scenario.head;
    let heads = [&head.formats, &head.protocols, &head.caches, &head.needs];
    let steps = scenario.steps.iter();
    let variants = steps.clone().flat_map(|step| step.expected.variants());
    let variants = variants.filter_map(|variant| variant.only.as_ref());
    let all = heads.into_iter().chain(steps.filter_map(|s| s.only.as_ref())).chain(variants);
    for tag in all.flat_map(|selection| selection.tags()) {
        if !known.iter().any(|tags| tags.contains(tag)) {
            return Err(format!("{}.iot: nothing has the tag '{tag}'", scenario.name));
        }
    }
    Ok(())
}

fn wanted(arguments: &Arguments, config: &Config) -> bool {
    let one_of = |names: &[String], own: &[&str]| {
        names.is_empty() || names.iter().any(|name| own.contains(&name.as_str()))
    };
    one_of(&arguments.format, &[config.format.name, config.format.driver])
        && one_of(&arguments.protocol, &[config.protocol.name, config.protocol.family])
        && one_of(&arguments.cache, &[config.cache.name])
        && (!arguments.quick || config.is_quick())
}

/// What is to be run; what scenarios do not allow is counted.
fn jobs(scenarios: &[Arc<Scenario>], configs: &[Config], report: &mut Report) -> Vec<Job> {
    let mut jobs = Vec::new();
    for scenario in scenarios {
        for config in configs {
            if scenario.head.allows(&config.tags()) {
                jobs.push(Job { scenario: Arc::clone(scenario), config: *config });
            } else {
                let key = (config.format.name, config.protocol.name);
                *report.refused.entry(key).or_default() += 1;
            }
        }
    }
    jobs
}

/// Runs the jobs, shows how far they are, and reports.
fn perform(
    arguments: &Arguments,
    jobs: Vec<Job>,
    mode: Mode,
    report: &mut Report,
) -> Result<usize, String> {
    let failed = |error: io::Error| format!("cannot make a directory: {error}");
    let parent = arguments.dir.clone().unwrap_or_else(std::env::temp_dir);
    let scratch = tempfile::Builder::new().prefix("iotests-").tempdir_in(parent).map_err(failed)?;
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = arguments.jobs.unwrap_or_else(cores).max(1);
    let keep = if arguments.keep { Keep::Everything } else { Keep::Nothing };
    let total = jobs.len();
    let mut shown = Shown::new(arguments.output == Layout::Human, total);
    let plan = Plan { jobs, threads, mode, scratch: scratch.path(), keep, stop: &STOP };
    work(plan, |ended, left| {
        shown.show(total - left, &ended);
        report.ended.push(ended);
    });
    if keep == Keep::Everything {
        let path = scratch.keep();
        shown.say(&format!("files: {}", path.display()));
    }
    let failures = report.failed();
    match arguments.output {
        Layout::Json => println!("{:#}", report.json()),
        Layout::Human => {
            let seconds = shown.start.elapsed().as_secs_f64();
            let (ended, left) = (report.ended.len(), total - report.ended.len());
            print!("\n{}", report.table());
            println!("\n{} runs passed, {failures} failed, in {seconds:.1} s", ended - failures);
            if left > 0 {
                println!("interrupted: {left} runs were not made");
            }
        }
    }
    if let Some(path) = &arguments.junit {
        let written = std::fs::write(path, report.junit());
        written.map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(failures)
}

/// What is told while runs go on: failures always, progress on a terminal.
struct Shown {
    is_terminal: bool,
    is_wanted: bool,
    total: usize,
    start: Instant,
    last: Option<Instant>,
}

/// Time between two looks at the progress.
const PACE: Duration = Duration::from_millis(100);

impl Shown {
    fn new(is_wanted: bool, total: usize) -> Self {
        let is_terminal = is_wanted && io::stdout().is_terminal();
        Self { is_terminal, is_wanted, total, start: Instant::now(), last: None }
    }

    fn say(&self, text: &str) {
        if self.is_wanted {
            println!("{text}");
        }
    }

    fn show(&mut self, done: usize, ended: &work::Ended) {
        if let Some(text) = report::failure(ended).filter(|_| self.is_wanted) {
            let clear = if self.is_terminal { "\r\x1b[K" } else { "" };
            print!("{clear}{text}");
        }
        let is_due = self.last.is_none_or(|last| last.elapsed() >= PACE) || done == self.total;
        if self.is_terminal && is_due {
            self.last = Some(Instant::now());
            let (name, config) = (&ended.job.scenario.name, &ended.job.config);
            print!("\r\x1b[K{done}/{} {name} {config}", self.total);
            // Progress that cannot be shown is not worth stopping for.
            let _ = io::stdout().flush();
        }
    }
}
