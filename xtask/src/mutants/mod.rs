//! Mutations: plausible mistakes, made on purpose, that the tests must notice.
//!
//! The list is `xtask/mutants/*.txt`; each mutation names the tests that must fail. They are made one
//! at a time in a copy of the workspace under `target/mutants`. **Invariants:** a test that fails without the
//! mutation catches nothing, so it is run without first; what does not compile is an error of the list.

mod copy;
mod list;
mod trial;

pub(crate) use list::{LIB, Mutation, Test, parse};

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use regex_lite::Regex;

use crate::failure::{Failure, Result};
use crate::run;
use copy::Copy;
use trial::Verdict;

/// Where the list is, from the workspace's root.
pub(crate) const LISTS: &str = "xtask/mutants/";

/// Options of `cargo xtask mutants`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The mutations to make; all, where none is named.
    names: Vec<String>,
    /// Only those whose name, file or test this regular expression finds.
    #[arg(long, value_name = "RE")]
    only: Option<Regex>,
    /// Prints the mutations and makes none.
    #[arg(long)]
    list: bool,
    /// How long the tests of one mutation may run.
    #[arg(long, default_value_t = 300)]
    seconds: u64,
}

/// What became of a mutation.
enum Outcome {
    /// These tests failed.
    Caught(Vec<String>),
    /// The tests came to no end, or to a bad one without a result.
    Ended(&'static str),
    Survived,
    /// The list is wrong: why.
    Wrong(String),
}

/// A line of the table.
struct Row {
    mutation: Mutation,
    outcome: Outcome,
    time: Duration,
}

/// Makes the mutations, one after the other, and prints what became of them.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let chosen = choose(read_lists()?, arguments)?;
    if arguments.list {
        for mutation in &chosen {
            println!("{}\n    {}\n    {}", mutation.name, mutation.breaks, mutation.test);
        }
        println!("{} mutations", chosen.len());
        return Ok(());
    }
    trial::stop_on_signal()?;
    let mut rows = Vec::new();
    let result = try_all(chosen, Duration::from_secs(arguments.seconds), &mut rows);
    print_table(&rows);
    result?;
    let bad = |row: &&Row| matches!(row.outcome, Outcome::Survived | Outcome::Wrong(_));
    match rows.iter().filter(bad).count() {
        0 => Ok(()),
        count => Err(Failure::Faults { check: "mutants", count }),
    }
}

fn read_lists() -> Result<Vec<Mutation>> {
    let directory = run::root().join(LISTS);
    let what = || format!("read {}", directory.display());
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(&directory).map_err(Failure::io(what()))? {
        paths.push(entry.map_err(Failure::io(what()))?.path());
    }
    paths.sort();
    let mut all = Vec::new();
    for path in paths.iter().filter(|path| path.extension().is_some_and(|end| end == "txt")) {
        let name = path.display().to_string();
        let text = fs::read_to_string(path).map_err(Failure::io(format!("read {name}")))?;
        all.extend(parse(&text).map_err(|problem| Failure::List { name, problem })?);
    }
    Ok(all)
}

/// Those that the command line names.
fn choose(all: Vec<Mutation>, arguments: &Arguments) -> Result<Vec<Mutation>> {
    let unknown = |name: &&String| !all.iter().any(|mutation| mutation.name == **name);
    if let Some(name) = arguments.names.iter().find(unknown) {
        let problem = "there is no such mutation".to_owned();
        return Err(Failure::List { name: name.clone(), problem });
    }
    let is_chosen = |mutation: &Mutation| {
        let texts = [&mutation.name, &mutation.file, &mutation.test.to_string()];
        (arguments.names.is_empty() || arguments.names.contains(&mutation.name))
            && arguments.only.as_ref().is_none_or(|only| texts.iter().any(|t| only.is_match(t)))
    };
    Ok(all.into_iter().filter(is_chosen).collect())
}

/// Program by program, so that each is built without a mutation only once.
fn try_all(mut chosen: Vec<Mutation>, limit: Duration, rows: &mut Vec<Row>) -> Result<()> {
    chosen.sort_by(|a, b| (&a.test, &a.file).cmp(&(&b.test, &b.file)));
    let copy = Copy::new()?;
    let count = chosen.len();
    let mut sound: HashMap<Test, Option<String>> = HashMap::new();
    for (index, mutation) in chosen.iter().enumerate() {
        if sound.contains_key(&mutation.test) {
            continue;
        }
        let same = chosen[index..].iter().map(|mutation| &mutation.test);
        let same = same.filter(|test| {
            (&test.package, &test.target) == (&mutation.test.package, &mutation.test.target)
        });
        println!("{} {}: without a mutation", mutation.test.package, mutation.test.target);
        for (test, problem) in unmutated(&copy, same, limit)? {
            sound.insert(test, problem);
        }
    }
    for (index, mutation) in chosen.into_iter().enumerate() {
        let start = Instant::now();
        let outcome = match sound.get(&mutation.test) {
            Some(Some(problem)) => Outcome::Wrong(problem.clone()),
            _ => attempt(&copy, &mutation, limit)?,
        };
        let row = Row { mutation, outcome, time: start.elapsed() };
        println!("[{}/{count}] {row}", index + 1);
        rows.push(row);
    }
    copy.renew()
}

/// Whether tests of one program pass as they are: for each why not.
fn unmutated<'a>(
    copy: &Copy,
    tests: impl Iterator<Item = &'a Test>,
    limit: Duration,
) -> Result<Vec<(Test, Option<String>)>> {
    let mut found: Vec<(Test, Option<String>)> = Vec::new();
    let mut program = None;
    for test in tests {
        if found.iter().any(|(known, _)| known == test) {
            continue;
        }
        let log = copy.log(&format!("{}-{}", test.package, test.target));
        let program = match &mut program {
            Some(program) => program,
            none => none.insert(trial::build(copy, test, &log)?),
        };
        let problem = match trial::run(copy, program, test, limit, &log)? {
            Verdict::Passed(0) => Some(format!("`{test}` is no test")),
            Verdict::Passed(_) => None,
            Verdict::Failed(_) => Some(format!("`{test}` fails without it")),
            Verdict::Hung => Some(format!("`{test}` takes too long without it")),
        };
        found.push((test.clone(), problem));
    }
    Ok(found)
}

/// Makes one mutation; the copy is good again when the next one is made, or at the end.
fn attempt(copy: &Copy, mutation: &Mutation, limit: Duration) -> Result<Outcome> {
    copy.renew()?;
    let path = copy.tree.join(&mutation.file);
    let what = format!("read {}", path.display());
    let content = fs::read_to_string(&path).map_err(Failure::io(what))?;
    match mutation.apply(&content) {
        Ok(mutated) => copy.write(&mutation.file, &mutated)?,
        Err(problem) => return Ok(Outcome::Wrong(problem)),
    }
    let log = copy.log(&mutation.name);
    let program = match trial::build(copy, &mutation.test, &log) {
        Ok(program) => program,
        Err(Failure::Exit { .. }) => {
            return Ok(Outcome::Wrong(format!("does not compile: see {}", log.display())));
        }
        Err(other) => return Err(other),
    };
    Ok(match trial::run(copy, &program, &mutation.test, limit, &log)? {
        Verdict::Passed(_) => Outcome::Survived,
        Verdict::Failed(tests) if tests.is_empty() => Outcome::Ended("the program crashed"),
        Verdict::Failed(tests) => Outcome::Caught(tests),
        Verdict::Hung => Outcome::Ended("no end in time"),
    })
}

fn print_table(rows: &[Row]) {
    println!();
    for row in rows {
        println!("{row}");
    }
    let count = |is: fn(&Outcome) -> bool| rows.iter().filter(|row| is(&row.outcome)).count();
    println!(
        "{} mutations: {} caught by a test that failed, {} by one that came to no or a bad end, \
         {} survived, {} are not as the list says; for {} of them a test was added",
        rows.len(),
        count(|outcome| matches!(outcome, Outcome::Caught(_))),
        count(|outcome| matches!(outcome, Outcome::Ended(_))),
        count(|outcome| matches!(outcome, Outcome::Survived)),
        count(|outcome| matches!(outcome, Outcome::Wrong(_))),
        rows.iter().filter(|row| row.mutation.added.is_some()).count(),
    );
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.time.as_secs_f64();
        let Test { package, target, .. } = &self.mutation.test;
        let name = &self.mutation.name;
        write!(f, "{name:<34} {seconds:>6.1} s  ")?;
        match &self.outcome {
            Outcome::Caught(tests) => {
                let more = tests.len().saturating_sub(1);
                let first = tests.first().map_or("", String::as_str);
                write!(f, "caught    {package} {target} {first}")?;
                if more > 0 { write!(f, " and {more} more") } else { Ok(()) }
            }
            Outcome::Ended(how) => write!(f, "caught    {package} {target}: {how}"),
            Outcome::Survived => write!(f, "SURVIVED  {}", self.mutation.test),
            Outcome::Wrong(why) => write!(f, "WRONG     {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(names: &[&str], only: Option<&str>) -> Arguments {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let only = only.map(|only| Regex::new(only).unwrap());
        Arguments { names, only, list: false, seconds: 1 }
    }

    fn mutation(name: &str, file: &str) -> Mutation {
        Mutation { name: name.to_owned(), file: file.to_owned(), ..Mutation::default() }
    }

    #[test]
    fn names_and_an_expression_choose() {
        let all = vec![mutation("a", "x/y.rs"), mutation("b", "x/z.rs"), mutation("c", "y.rs")];
        let chosen = |names: &[&str], only| {
            let chosen = choose(all.clone(), &arguments(names, only)).unwrap();
            chosen.into_iter().map(|mutation| mutation.name).collect::<String>()
        };
        assert_eq!(chosen(&[], None), "abc");
        assert_eq!(chosen(&["b"], None), "b");
        assert_eq!(chosen(&[], Some("^x/")), "ab");
        assert_eq!(chosen(&["a", "c"], Some("^x/")), "a");
        assert!(choose(all, &arguments(&["d"], None)).is_err());
    }
}
