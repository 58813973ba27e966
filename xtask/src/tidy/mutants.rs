//! Rules for the list of mutations: that it is true of the code as it is.

use std::collections::BTreeSet;

use super::{Complaint, Text, find};
use crate::mutants::{LIB, LISTS, Mutation, Test, parse};

/// Every mutation has a name of its own, and what it changes and the tests that it names are there.
pub(super) fn lists(texts: &[Text]) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    let mut names = BTreeSet::new();
    let is_list = |text: &&Text| text.path.starts_with(LISTS) && text.path.ends_with(".txt");
    for list in texts.iter().filter(is_list) {
        let mutations = parse(&list.content).unwrap_or_else(|problem| {
            complaints.push(format!("{}: {problem}", list.path));
            Vec::new()
        });
        for mutation in mutations {
            let problems = [change(texts, &mutation), tests(texts, &mutation.test)];
            let twice = !names.insert(mutation.name.clone());
            let twice = twice.then(|| "is there twice".to_owned());
            for problem in problems.into_iter().flatten().chain(twice) {
                complaints.push(format!("{}: {}: {problem}", list.path, mutation.name));
            }
        }
    }
    complaints
}

/// The change can be made.
fn change(texts: &[Text], mutation: &Mutation) -> Option<Complaint> {
    mutation.apply(find(texts, &mutation.file)).err()
}

/// Each of the words is in the name of a test, or of a module of tests, of the package.
fn tests(texts: &[Text], test: &Test) -> Option<Complaint> {
    let inside = match test.target.as_str() {
        LIB => format!("{}/src/", test.package),
        target => {
            let file = format!("{}/tests/{target}.rs", test.package);
            let folder = format!("{}/tests/{target}/main.rs", test.package);
            let is_there = |text: &Text| text.path == file || text.path == folder;
            if !texts.iter().any(is_there) {
                return Some(format!("there is no test {target} in {}", test.package));
            }
            format!("{}/tests/{target}", test.package)
        }
    };
    let is_named = |filter: &&String| {
        let word = filter.rsplit("::").find(|part| !part.is_empty()).unwrap_or_default();
        let ours = texts.iter().filter(|text| text.path.starts_with(&inside));
        ours.flat_map(|text| text.content.lines()).any(|line| {
            let declares = line.contains("fn ") || line.contains("mod ");
            declares && line.contains(word)
        })
    };
    let unknown = test.filters.iter().find(|filter| !is_named(filter))?;
    Some(format!("no test of {} {} has `{unknown}` in its name", test.package, test.target))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(list: &str) -> Vec<Complaint> {
        let texts = [
            Text::new("a/src/lib.rs", "fn f() {\n    one();\n    two();\n}\n"),
            Text::new("a/tests/t.rs", "#[test]\nfn one_comes_first() {}\n"),
            Text::new("xtask/mutants/a.txt", list),
        ];
        lists(&texts)
    }

    const GOOD: &str =
        "mutant m\nbreaks It.\nfile a/src/lib.rs\ntest a t one_comes\n@@\n-    one();\n";

    #[test]
    fn a_list_that_is_true_is_fine() {
        assert_eq!(complaints(GOOD), Vec::<String>::new());
        assert_eq!(complaints("# nothing\n"), Vec::<String>::new());
    }

    #[test]
    fn what_the_code_no_longer_has_is_complained_about() {
        for (old, new) in [
            ("    one();", "    three();"),
            ("src/lib.rs", "src/main.rs"),
            ("a t one", "a u one"),
            ("one_comes", "two_comes"),
            ("breaks", "nonsense"),
        ] {
            let list = GOOD.replace(old, new);
            assert_eq!(complaints(&list).len(), 1, "{list}");
        }
        assert_eq!(complaints(&format!("{GOOD}{GOOD}")).len(), 1, "the same name twice");
    }
}
