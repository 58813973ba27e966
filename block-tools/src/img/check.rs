//! `check`: whether an image contradicts itself, and mending it.
//!
//! Exit statuses: 0, nothing is wrong (any more); 1, the check could not be made; 2, errors; 3, lost
//! space only; 63, the format cannot be checked. Findings go to standard error, the sums to standard
//! output.

use std::io::Write;
use std::sync::Arc;

use block_core::ability::{CheckReport, Finding, Repair, Severity};
use block_core::{Node, OpenFlags, graph};
use clap::ValueEnum;

use crate::open::{CacheMode, ImageSpec, block_on};
use crate::spec::shown;
use crate::surroundings::complain;

use super::common::{OutputFormat, cache_mode, one_image, open_image};
use super::json::Json;
use super::{Failure, Output};

/// Check an image for errors, and mend them.
#[derive(clap::Args)]
#[command(args_override_self = true)]
pub(super) struct Args {
    /// Format of the image (default: probed).
    #[arg(short, long, value_name = "FMT", conflicts_with = "image_opts")]
    format: Option<String>,
    /// The name is options (driver=...,file.filename=...).
    #[arg(long)]
    image_opts: bool,
    /// What to mend: clusters that are lost, or everything.
    #[arg(short, long, value_enum, value_name = "WHAT")]
    repair: Option<What>,
    /// Cache mode of the image.
    #[arg(short = 'T', long, value_name = "CACHE_MODE")]
    cache: Option<String>,
    /// Layout of the output.
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
    /// Show no sums.
    #[arg(short, long)]
    quiet: bool,
    /// Open the image without locks.
    #[arg(short = 'U', long)]
    force_share: bool,
    /// The image.
    #[arg(value_name = "FILENAME")]
    files: Vec<String>,
}

/// `--repair`.
#[derive(Copy, Clone, PartialEq, Eq, Debug, ValueEnum)]
enum What {
    Leaks,
    All,
}

const FAILED: u8 = 1;
const CORRUPT: u8 = 2;
const LEAKS: u8 = 3;
const NO_CHECK: u8 = 63;

/// Checks.
pub(super) fn run(args: &Args, out: &mut Output) -> Result<u8, Failure> {
    let name = one_image("check", &args.files)?;
    let cache =
        cache_mode(args.cache.as_deref(), CacheMode::WRITEBACK, "Invalid source cache option: {}")?;
    let repair = match args.repair {
        None => Repair::Nothing,
        Some(What::Leaks) => Repair::Leaks,
        Some(What::All) => Repair::All,
    };
    let writable = repair != Repair::Nothing;
    if writable && args.force_share {
        return Err(Failure::new(format_args!(
            "Could not open '{name}': force-share=on can only be used with read-only images"
        )));
    }
    let flags = OpenFlags {
        writable,
        unmap: writable,
        check: true,
        // What is in the files that the image refers to is no part of the check.
        no_io: true,
        no_backing: true,
        ..OpenFlags::READ_ONLY
    };
    let spec = ImageSpec {
        format: args.format.clone(),
        image_opts: args.image_opts,
        cache,
        force_share: args.force_share,
        flags,
        ..ImageSpec::new(name)
    };
    block_on(async {
        let node = open_image(&spec, FAILED).await?;
        let checked = check(&node, repair).await;
        let closed = graph::close(&node).await;
        let report = checked?;
        closed.map_err(Failure::new)?;
        if !args.quiet {
            match args.output {
                OutputFormat::Human => print_human(&report, out)?,
                OutputFormat::Json => {
                    let json = to_json(&report, &shown(name), node.driver().name());
                    writeln!(out, "{}", json.to_pretty())?;
                }
            }
        }
        status(&report)
    })
}

async fn check(node: &Node, repair: Repair) -> Result<CheckReport, Failure> {
    let Some(check) = node.driver().as_check() else {
        let failure = Failure::new("This image format does not support checks");
        return Err(failure.with_status(NO_CHECK));
    };
    let report = check.check(repair, Arc::new(say)).await;
    report.map_err(|error| Failure::new(format_args!("Check failed: {error}")))
}

fn say(finding: Finding) {
    let text = finding.text;
    match finding.severity {
        Severity::Corruption => complain(format_args!("ERROR {text}")),
        Severity::Leak => complain(format_args!("Leaked {text}")),
        Severity::CheckError => complain(format_args!("ERROR (unreadable) {text}")),
        Severity::Repaired => complain(format_args!("Repairing {text}")),
    }
}

fn status(report: &CheckReport) -> Result<u8, Failure> {
    if report.check_errors > 0 {
        return Err(Failure::new("Check failed").with_status(FAILED));
    }
    Ok(match (report.corruptions, report.leaks) {
        (0, 0) => 0,
        (0, _) => LEAKS,
        _ => CORRUPT,
    })
}

fn print_human(report: &CheckReport, out: &mut Output) -> Result<(), Failure> {
    let CheckReport { corruptions, leaks, check_errors, .. } = *report;
    if report.corruptions_fixed > 0 || report.leaks_fixed > 0 {
        writeln!(
            out,
            "The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n    \
             {} corruptions\n\nDouble checking the fixed image now...",
            report.leaks_fixed, report.corruptions_fixed
        )?;
    }
    if corruptions == 0 && leaks == 0 && check_errors == 0 {
        writeln!(out, "No errors were found on the image.")?;
    }
    if corruptions > 0 {
        writeln!(
            out,
            "\n{corruptions} errors were found on the image.\nData may be corrupted, or further \
             writes to the image may corrupt it."
        )?;
    }
    if leaks > 0 {
        writeln!(
            out,
            "\n{leaks} leaked clusters were found on the image.\nThis means waste of disk space, \
             but no harm to data."
        )?;
    }
    if check_errors > 0 {
        writeln!(out, "\n{check_errors} internal errors have occurred during the check.")?;
    }
    let allocated = report.allocated_clusters;
    if report.total_clusters > 0 && allocated > 0 {
        writeln!(
            out,
            "{allocated}/{} = {}% allocated, {}% fragmented, {}% compressed clusters",
            report.total_clusters,
            percent(allocated, report.total_clusters),
            percent(report.fragmented_clusters, allocated),
            percent(report.compressed_clusters, allocated),
        )?;
    }
    if report.image_end_offset > 0 {
        writeln!(out, "Image end offset: {}", report.image_end_offset)?;
    }
    Ok(())
}

/// `part` of `whole` in percent, with two decimals, a half to the even one.
fn percent(part: u64, whole: u64) -> String {
    let (part, whole) = (u128::from(part) * 10000, u128::from(whole).max(1));
    let (quotient, rest) = (part / whole, part % whole);
    let up = rest * 2 > whole || (rest * 2 == whole && quotient % 2 == 1);
    let hundredths = quotient + u128::from(up);
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

/// Sums that are zero are left out, except the number of errors of the check itself.
fn to_json(report: &CheckReport, filename: &str, format: &str) -> Json {
    let sums = [
        ("image-end-offset", report.image_end_offset),
        ("compressed-clusters", report.compressed_clusters),
        ("total-clusters", report.total_clusters),
        ("corruptions", report.corruptions),
        ("corruptions-fixed", report.corruptions_fixed),
        ("check-errors", report.check_errors),
        ("leaks", report.leaks),
        ("leaks-fixed", report.leaks_fixed),
        ("allocated-clusters", report.allocated_clusters),
    ];
    let shown = |name: &str, sum: u64| sum > 0 || name == "check-errors";
    let sums = sums.into_iter().filter(|(name, sum)| shown(name, *sum));
    let mut all: Vec<_> = sums.map(|(name, sum)| (name, Json::Int(sum))).collect();
    all.push(("filename", Json::from(filename)));
    all.push(("format", Json::from(format)));
    if report.fragmented_clusters > 0 {
        all.push(("fragmented-clusters", Json::Int(report.fragmented_clusters)));
    }
    Json::Map(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_have_two_decimals() {
        let cases = [(17, 1024, "1.66"), (1, 17, "5.88"), (5, 5, "100.00"), (0, 9, "0.00")];
        for (part, whole, expect) in cases {
            assert_eq!(percent(part, whole), expect);
        }
    }

    #[test]
    fn errors_outweigh_leaks_and_failures_both() {
        let report = |corruptions, leaks, check_errors| CheckReport {
            corruptions,
            leaks,
            check_errors,
            ..CheckReport::default()
        };
        assert_eq!(status(&report(0, 0, 0)).unwrap(), 0);
        assert_eq!(status(&report(0, 2, 0)).unwrap(), LEAKS);
        assert_eq!(status(&report(1, 2, 0)).unwrap(), CORRUPT);
        assert_eq!(status(&report(1, 2, 1)).unwrap_err().status(), FAILED);
    }
}
