//! What the request layer costs by itself, on a `null` node.

use serde_json::Value;

use super::{Programs, Scale, median, number};
use crate::failure::Result;
use crate::run;

/// Measures, and returns the table.
pub(super) fn measure(programs: &Programs, scale: Scale) -> Result<String> {
    let count = scale.choose(2_000_000, 50_000u64).to_string();
    eprintln!("bench: request layer");
    let mut rounds: Vec<Value> = Vec::new();
    for _ in 0..scale.rounds {
        rounds.push(run::json(&mut programs.bench_peers(&["layer", "--count", &count]))?);
    }
    let mut text = format!(
        "\n## The request layer by itself\n\nAligned 4 KiB requests to a `null` node, awaited one \
         after the other: `bench-peers layer --count {count}`.\n\n| request | ns | ns of CPU | \
         allocations |\n|---|---|---|---|\n"
    );
    for request in ["read", "write", "write_zeroes"] {
        let column = |key| -> Result<f64> {
            let values: Result<Vec<f64>> =
                rounds.iter().map(|round| number(&round[request], key)).collect();
            Ok(median(values?))
        };
        text += &format!(
            "| {request} | {:.0} | {:.0} | {:.2} |\n",
            column("nanoseconds")?,
            column("cpu_nanoseconds")?,
            column("allocations")?,
        );
    }
    Ok(text)
}
