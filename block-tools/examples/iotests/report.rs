//! What came of the runs: failures as they happen, a table, JUnit XML, JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::matrix::{FORMATS, PROTOCOLS};
use crate::work::Ended;

/// The runs that have ended, and how many combinations scenarios do not allow.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) ended: Vec<Ended>,
    /// By format and protocol.
    pub(crate) refused: BTreeMap<(&'static str, &'static str), usize>,
}

/// The command that does the same run again, alone.
pub(crate) fn command(ended: &Ended) -> String {
    let config = &ended.job.config;
    format!(
        "cargo xtask iotests --format {} --protocol {} --cache {} --filter '^{}$'",
        config.format.name, config.protocol.name, config.cache.name, ended.job.scenario.name
    )
}

/// What is told of a failed run.
pub(crate) fn failure(ended: &Ended) -> Option<String> {
    let failure = ended.result.as_ref().err()?;
    let (name, config) = (&ended.job.scenario.name, &ended.job.config);
    let place = match failure.line {
        0 => format!("{name}.iot"),
        line => format!("{name}.iot:{line}: {}", failure.step),
    };
    let mut text = format!("FAILED {config} {place}\n");
    for line in failure.what.lines() {
        // Writing to a text does not fail.
        let _ = writeln!(text, "    {line}");
    }
    if let Some(path) = &ended.kept {
        let _ = writeln!(text, "  files: {}", path.display());
    }
    let _ = writeln!(text, "  again: {}", command(ended));
    Some(text)
}

impl Report {
    /// How many runs failed.
    pub(crate) fn failed(&self) -> usize {
        self.ended.iter().filter(|ended| ended.result.is_err()).count()
    }

    /// Runs that passed and failed, and combinations that are not allowed, by format and protocol.
    pub(crate) fn table(&self) -> String {
        let mut counts: BTreeMap<(&str, &str), (usize, usize)> = BTreeMap::new();
        for ended in &self.ended {
            let config = &ended.job.config;
            let count = counts.entry((config.format.name, config.protocol.name)).or_default();
            match ended.result {
                Ok(_) => count.0 += 1,
                Err(_) => count.1 += 1,
            }
        }
        let is_used = |of: &dyn Fn(&(&str, &str)) -> bool| {
            counts.keys().any(of) || self.refused.keys().any(of)
        };
        let used = PROTOCOLS.iter().filter(|protocol| is_used(&|key| key.1 == protocol.name));
        let used: Vec<_> = used.collect();
        let mut text = format!("{:<16}", "passed/failed/-");
        for protocol in &used {
            let _ = write!(text, "{:>14}", protocol.name);
        }
        text.push('\n');
        for format in FORMATS.iter().filter(|format| is_used(&|key| key.0 == format.name)) {
            let _ = write!(text, "{:<16}", format.name);
            for protocol in &used {
                let key = (format.name, protocol.name);
                let refused = self.refused.get(&key).copied();
                let cell = match (counts.get(&key), refused) {
                    (None, None) => "-".to_owned(),
                    (count, refused) => {
                        let (passed, failed) = count.copied().unwrap_or_default();
                        format!("{passed}/{failed}/{}", refused.unwrap_or_default())
                    }
                };
                let _ = write!(text, "{cell:>14}");
            }
            text.push('\n');
        }
        text
    }

    /// The report as JUnit's XML has it: a suite for each format, protocol and cache.
    pub(crate) fn junit(&self) -> String {
        let mut suites: BTreeMap<String, Vec<&Ended>> = BTreeMap::new();
        for ended in &self.ended {
            suites.entry(ended.job.config.to_string()).or_default().push(ended);
        }
        let mut text = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n".to_owned();
        for (name, runs) in suites {
            let failed = runs.iter().filter(|ended| ended.result.is_err()).count();
            let seconds: f64 = runs.iter().map(|ended| ended.took.as_secs_f64()).sum();
            let _ = writeln!(
                text,
                "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{failed}\" time=\"{seconds:.3}\">",
                escaped(&name),
                runs.len()
            );
            for ended in runs {
                junit_case(&mut text, &name, ended);
            }
            text.push_str("  </testsuite>\n");
        }
        text.push_str("</testsuites>\n");
        text
    }

    /// The report as JSON.
    pub(crate) fn json(&self) -> Value {
        let runs: Vec<Value> = self.ended.iter().map(json_run).collect();
        let failed = self.failed();
        let not_allowed: usize = self.refused.values().sum();
        json!({
            "passed": self.ended.len() - failed,
            "failed": failed,
            "not-allowed": not_allowed,
            "runs": runs,
        })
    }
}

fn junit_case(text: &mut String, suite: &str, ended: &Ended) {
    let seconds = ended.took.as_secs_f64();
    let (name, suite) = (escaped(&ended.job.scenario.name), escaped(suite));
    let _ =
        write!(text, "    <testcase name=\"{name}\" classname=\"{suite}\" time=\"{seconds:.3}\"");
    match failure(ended) {
        None => text.push_str("/>\n"),
        Some(what) => {
            let first = escaped(what.lines().next().unwrap_or_default());
            let what = escaped(&what);
            let _ = write!(text, ">\n      <failure message=\"{first}\">{what}</failure>\n");
            text.push_str("    </testcase>\n");
        }
    }
}

fn json_run(ended: &Ended) -> Value {
    let config = &ended.job.config;
    let mut run = json!({
        "scenario": ended.job.scenario.name,
        "format": config.format.name,
        "protocol": config.protocol.name,
        "cache": config.cache.name,
        "seconds": ended.took.as_secs_f64(),
        "passed": ended.result.is_ok(),
    });
    if let Err(failure) = &ended.result {
        run["failure"] = json!({
            "line": failure.line,
            "step": failure.step,
            "what": failure.what,
            "again": command(ended),
        });
    }
    run
}

/// A text as it stands in XML; what cannot stand there is replaced.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' | '\t' => escaped.push(c),
            c if c.is_control() => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}
