//! Tests of the runner itself: what fails is seen, told and can be done again.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use block_testkit::scenario::Scenario;
use clap::Parser;

use super::{Arguments, run_all};
use crate::matrix::{Config, FORMATS, PROTOCOLS};
use crate::report::{self, Report};
use crate::run::{Job, Mode};
use crate::update;
use crate::work::{Ended, Keep, Plan, work};

/// Runs a text under the configurations of these names.
fn runs(name: &str, text: &str, configs: &[&str], mode: Mode) -> Vec<Ended> {
    let scenario = Arc::new(Scenario::parse(name, text).unwrap());
    let find = |name: &&str| Config::all().find(|config| config.to_string() == **name).unwrap();
    let jobs = configs.iter().map(find);
    let jobs = jobs.map(|config| Job { scenario: Arc::clone(&scenario), config }).collect();
    perform(jobs, mode, 2, &AtomicBool::new(false), |_| ())
}

/// Does the jobs, and says each that has ended; no file of theirs is left.
fn perform(
    jobs: Vec<Job>,
    mode: Mode,
    threads: usize,
    stop: &AtomicBool,
    mut say: impl FnMut(&Ended),
) -> Vec<Ended> {
    let scratch = tempfile::tempdir().unwrap();
    let mut ended = Vec::new();
    let plan = Plan { jobs, threads, mode, scratch: scratch.path(), keep: Keep::Nothing, stop };
    work(plan, |run, _| {
        say(&run);
        ended.push(run);
    });
    let left = std::fs::read_dir(scratch.path()).unwrap().count();
    assert_eq!(left, 0, "files are left behind");
    ended
}

const RAW: &[&str] = &["raw:memory:buffered"];

#[test]
fn a_wrong_expectation_is_shown_beside_what_came() {
    let text = "title: t\nsize: 1M\n\ncreate\nwrite -P 1 0 512\n  \
        wrote 512/512 bytes at offset 1\nread -P 2 0 512\n";
    let ended = runs("wrong", text, RAW, Mode::Compare);
    let text = report::failure(&ended[0]).unwrap();
    let expected = "FAILED raw:memory:buffered wrong.iot:5: write -P 1 0 512\n    \
        - wrote 512/512 bytes at offset 1\n    \
        + wrote 512/512 bytes at offset 0\n  \
        again: cargo xtask iotests --format raw --protocol memory --cache buffered \
        --filter '^wrong$'\n";
    assert_eq!(text, expected);
}

#[test]
fn a_pattern_that_is_not_there_is_a_failure() {
    let text = "title: t\nsize: 1M\n\ncreate\nread -q -P 2 0 512\n";
    for config in ["raw:memory:buffered", "qcow2-v3:file:direct", "raw:iscsi-thin:buffered"] {
        let ended = runs("pattern", text, &[config], Mode::Compare);
        let text = report::failure(&ended[0]).unwrap();
        assert!(text.contains("Pattern verification failed at offset 0, 512 bytes"), "{text}");
    }
}

#[test]
fn no_run_begins_after_an_interruption() {
    let text = "title: t\nsize: 1M\n\ncreate\nread -q -P 0 0 512\n";
    let scenario = Arc::new(Scenario::parse("stop", text).unwrap());
    let jobs = Config::all().take(9).map(|config| Job { scenario: Arc::clone(&scenario), config });
    let stop = AtomicBool::new(false);
    let ended = perform(jobs.collect(), Mode::Compare, 1, &stop, |run| {
        assert!(run.result.is_ok());
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(ended.len(), 1);
}

#[test]
fn a_step_that_does_not_end_is_named() {
    let text = "title: t\nsize: 1M\ntimeout: 1\n\ncreate\nlength\n  1 MiB\nsleep 4000\n";
    let ended = runs("hang", text, RAW, Mode::Compare);
    let failure = ended[0].result.as_ref().unwrap_err();
    assert_eq!((failure.line, &*failure.step), (8, "sleep 4000"));
    assert_eq!(failure.what, "still running after 1 s");
}

#[test]
fn words_that_end_the_program_are_refused() {
    for word in ["abort", "quit", "sigraise 9"] {
        let text = format!("title: t\n\ncreate\n{word}\n");
        let ended = runs("end", &text, RAW, Mode::Compare);
        let text = report::failure(&ended[0]).unwrap();
        assert!(text.contains("no word of scenarios"), "{text}");
    }
}

#[test]
fn a_flush_that_does_nothing_is_found_by_a_crash() {
    let text_of_unsafe = "title: t\nsize: 64k\n\ncreate\nreopen -t unsafe\nwrite -q -P 1 0 64k\n\
        flush\ncrash 50\n";
    let ended = runs("unsafe", text_of_unsafe, &["raw:crash:buffered"], Mode::Compare);
    let text = report::failure(&ended[0]).unwrap();
    assert!(text.contains("after the crash of seed "), "{text}");
    let safe = text_of_unsafe.replace("reopen -t unsafe\n", "");
    let ended = runs("safe", &safe, &["raw:crash:buffered"], Mode::Compare);
    assert!(ended[0].result.is_ok(), "{:?}", ended[0].result);
}

#[test]
fn what_came_is_written_where_all_agree() {
    let directory = tempfile::tempdir().unwrap();
    let text = "title: t\nsize: 1M\n\n# Why.\ncreate\nwrite -P 1 0 512\nlength\n  2 MiB\n";
    let configs = &["raw:memory:buffered", "qcow2-v3:file:buffered", "vmdk-sparse:crash:buffered"];
    let ended = runs("golden", text, configs, Mode::Update);
    assert_eq!(update::update(directory.path(), &ended), Vec::<String>::new());
    let written = std::fs::read_to_string(directory.path().join("golden.iot")).unwrap();
    let expected = "title: t\nsize: 1M\n\n# Why.\ncreate\nwrite -P 1 0 512\n  \
        wrote 512/512 bytes at offset 0\nlength\n  1 MiB\n";
    assert_eq!(written, expected);
    let again = runs("golden", &written, configs, Mode::Compare);
    assert!(again.iter().all(|run| run.result.is_ok()));
}

#[test]
fn what_differs_is_not_written() {
    let directory = tempfile::tempdir().unwrap();
    let text = "title: t\nsize: 1M\n\ncreate\nmap\n";
    let configs = &["qcow2-v3:memory:buffered", "qcow2-v3:crash:buffered", "raw:crash:buffered"];
    let ended = runs("differs", text, configs, Mode::Update);
    let problems = update::update(directory.path(), &ended);
    assert_eq!(problems.len(), 1);
    assert!(problems[0].contains("differs.iot:5: map: the output depends"), "{}", problems[0]);
    assert!(!directory.path().join("differs.iot").exists());
}

#[test]
fn the_report_is_well_formed() {
    let text = "title: t\nsize: 1M\n\ncreate\nread -P 1 0 512\n  <a & \"b\">\n";
    let ended = runs("xml", text, &["raw:memory:buffered", "qcow2-v2:file:pool"], Mode::Compare);
    let report = Report { ended, ..Report::default() };
    let xml = report.junit();
    assert_eq!(xml.matches("<testcase").count(), 2);
    assert!(xml.contains("- &lt;a &amp; &quot;b&quot;&gt;"), "{xml}");
    check_xml(&xml);
    let json = report.json();
    assert_eq!((json["passed"].as_u64(), json["failed"].as_u64()), (Some(0), Some(2)));
    assert_eq!(json["runs"][0]["failure"]["line"].as_u64(), Some(5));
    let table = report.table();
    let row = table.lines().find(|line| line.starts_with("qcow2-v2")).unwrap();
    assert!(row.contains("0/1/0"), "{table}");
}

/// Elements are closed in order, and no text holds what would begin one.
fn check_xml(xml: &str) {
    let mut open: Vec<&str> = Vec::new();
    let body = xml.strip_prefix("<?xml version=\"1.0\" encoding=\"UTF-8\"?>").unwrap();
    for piece in body.split('<').skip(1) {
        let (tag, text) = piece.split_once('>').unwrap();
        assert!(!text.contains('>'), "{piece}");
        let name = tag.split_whitespace().next().unwrap();
        match name.strip_prefix('/') {
            Some(closed) => assert_eq!(open.pop(), Some(closed)),
            None if tag.ends_with('/') => {}
            None => open.push(name),
        }
    }
    assert!(open.is_empty());
}

#[test]
fn the_number_of_failures_is_what_the_status_says() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        std::fs::write(directory.path().join(name), text).unwrap();
    };
    write("good.iot", "title: t\nformats: raw\nprotocols: memory\n\ncreate\nlength\n  4 MiB\n");
    write("bad.iot", "title: t\nformats: raw\nprotocols: memory\n\ncreate\nlength\n");
    write("README.md", "no scenario");
    let run = |arguments: &[&str]| {
        let junit = directory.path().join("out.xml");
        let paths = ["--scenarios", directory.path().to_str().unwrap()];
        let junit = ["--junit", junit.to_str().unwrap()];
        let all = ["iotests"].into_iter().chain(paths).chain(junit);
        run_all(&Arguments::parse_from(all.chain(arguments.iter().copied())))
    };
    assert_eq!(run(&["--filter", "^good$"]), Ok(0));
    assert_eq!(run(&["--output", "json"]), Ok(1));
    assert_eq!(run(&["--list"]), Ok(0));
    assert!(directory.path().join("out.xml").exists());
    assert!(run(&["--filter", "nothing"]).is_err());
    assert!(run(&["--filter", "("]).is_err());
    assert!(run(&["--format", "bogus"]).is_err());
    write("wrong.iot", "title: t\nformats: qcow3\n\ncreate\n");
    assert_eq!(run(&[]), Err("wrong.iot: nothing has the tag 'qcow3'".to_owned()));
}

#[test]
fn every_configuration_has_a_name_of_its_own() {
    let mut names: Vec<_> = Config::all().map(|config| config.to_string()).collect();
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count);
    for protocol in PROTOCOLS {
        let quick = |config: &Config| config.is_quick() && config.protocol.name == protocol.name;
        assert!(Config::all().any(|config| quick(&config)), "{}", protocol.name);
    }
    for format in FORMATS {
        let quick = |config: &Config| config.is_quick() && config.format.name == format.name;
        assert!(Config::all().any(|config| quick(&config)), "{}", format.name);
    }
}

#[test]
fn every_scenario_beside_the_crate_is_one() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../block-testkit/iotests");
    let scenarios = super::load(&directory, None).unwrap();
    let mut report = Report::default();
    for scenario in &scenarios {
        let configs: Vec<Config> = Config::all().collect();
        let jobs = super::jobs(&[Arc::clone(scenario)], &configs, &mut report);
        assert!(!jobs.is_empty(), "{} runs nowhere", scenario.name);
    }
}
