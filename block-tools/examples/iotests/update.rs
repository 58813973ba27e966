//! `UPDATE_GOLDEN=1`: what came is written into the scenarios.
//!
//! Invariant: a variant of an output is written only if it came alike under all configurations that it is for.

use std::collections::BTreeMap;
use std::path::Path;

use block_testkit::scenario::{Outputs, Scenario};

use crate::work::Ended;

/// Writes what came into the files of `directory`. Gives what cannot be written, a text each.
pub(crate) fn update(directory: &Path, ended: &[Ended]) -> Vec<String> {
    let mut by_name: BTreeMap<&str, (&Scenario, Vec<&Ended>)> = BTreeMap::new();
    for run in ended {
        let scenario = &*run.job.scenario;
        by_name.entry(&scenario.name).or_insert((scenario, Vec::new())).1.push(run);
    }
    let mut problems = Vec::new();
    for (name, (scenario, runs)) in by_name {
        match agreed(scenario, &runs) {
            Err(different) => problems.extend(different),
            Ok(outputs) => {
                let path = directory.join(format!("{name}.iot"));
                if let Err(error) = std::fs::write(&path, scenario.rewrite(&outputs)) {
                    problems.push(format!("{}: {error}\n", path.display()));
                }
            }
        }
    }
    problems
}

/// What all runs agree on, or what they do not.
fn agreed(scenario: &Scenario, runs: &[&Ended]) -> Result<Outputs, Vec<String>> {
    let mut outputs: BTreeMap<(usize, usize), (&Vec<String>, &Ended)> = BTreeMap::new();
    let mut problems = BTreeMap::new();
    for run in runs {
        let Ok(came) = &run.result else { continue };
        for (place, lines) in came {
            let (first, whose) = *outputs.entry(*place).or_insert((lines, *run));
            if first != lines {
                let step = &scenario.steps[place.0];
                let (a, b) = (whose.job.config.to_string(), run.job.config.to_string());
                problems.entry(*place).or_insert_with(|| {
                    format!(
                        "{}.iot:{}: {}: the output depends on the configuration\n{a}:\n{}{b}:\n{}",
                        scenario.name,
                        step.line,
                        step.text,
                        indented(first),
                        indented(lines)
                    )
                });
            }
        }
    }
    if problems.is_empty() {
        Ok(outputs.into_iter().map(|(place, (lines, _))| (place, lines.clone())).collect())
    } else {
        Err(problems.into_values().collect())
    }
}

fn indented(lines: &[String]) -> String {
    lines.iter().map(|line| format!("  {line}\n")).collect()
}
