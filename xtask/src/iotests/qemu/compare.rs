//! What a script printed against what it should have: the same, the same but for the words of
//! messages, or something else.

/// Programs whose messages may have other words than QEMU's.
const PROGRAMS: &[&str] = &["qemu-img: ", "qemu-io: ", "qemu-nbd: "];

/// What a check says of an image on standard error starts like this; the sums, which it prints on
/// standard output, must be the same.
const FINDINGS: &[&str] = &["ERROR", "Leaked cluster ", "Repairing ", "Rebuilding "];

/// What stands for one or more findings in a row.
const FINDING: &str = "(findings of a check)";

/// How the output compares.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Comparison {
    /// Line by line the same.
    Same,
    /// The same but for the words of messages on standard error; these lines differ.
    Wording(Vec<String>),
    /// Something else differs; these lines do.
    Different(Vec<String>),
}

/// Most lines of a difference that are kept.
const MAX_LINES: usize = 40;

/// Compares line by line, ends of lines aside.
pub(super) fn compare(expected: &str, found: &str) -> Comparison {
    let [expected, found] = [lines(expected), lines(found)];
    if expected == found {
        return Comparison::Same;
    }
    let lines = difference(&expected, &found);
    if without_words(&expected) == without_words(&found) {
        Comparison::Wording(lines)
    } else {
        Comparison::Different(lines)
    }
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(|line| line.trim_end().to_owned()).collect()
}

/// Messages without their words. One message may have several lines in one version and a single one
/// in the other, so messages that follow each other are one, with the hints that follow them.
fn without_words(lines: &[String]) -> Vec<&str> {
    let mut kept: Vec<&str> = Vec::new();
    for line in lines {
        let finding = FINDINGS.iter().any(|start| line.starts_with(start)).then_some(&FINDING);
        let message = PROGRAMS.iter().find(|program| line.starts_with(**program)).or(finding);
        let hint = line.starts_with("Try '") && kept.last().is_some_and(|last| is_message(last));
        match message {
            Some(program) if kept.last() == Some(program) => {}
            Some(program) => kept.push(program),
            None if hint => {}
            None => kept.push(line),
        }
    }
    kept
}

fn is_message(line: &str) -> bool {
    PROGRAMS.contains(&line)
}

/// The lines between the first and the last that differ, as `-` and `+`: by the longest common part of
/// what is left, where that is short enough to look for.
fn difference(expected: &[String], found: &[String]) -> Vec<String> {
    let same = expected.iter().zip(found).take_while(|(a, b)| a == b).count();
    let (a, b) = (expected.get(same..).unwrap_or(&[]), found.get(same..).unwrap_or(&[]));
    let tail = a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count();
    let a = a.get(..a.len() - tail).unwrap_or(&[]);
    let b = b.get(..b.len() - tail).unwrap_or(&[]);
    let mut out = Vec::new();
    let (mut i, mut j) = (0, 0);
    let common = common(a, b);
    for (x, y) in common.into_iter().chain([(a.len(), b.len())]) {
        out.extend(a.iter().take(x).skip(i).map(|line| format!("-{line}")));
        out.extend(b.iter().take(y).skip(j).map(|line| format!("+{line}")));
        (i, j) = (x + 1, y + 1);
    }
    if out.len() > MAX_LINES {
        let more = out.len() - MAX_LINES;
        out.truncate(MAX_LINES);
        out.push(format!("... {more} lines more"));
    }
    out
}

/// Pairs of places of a longest common subsequence; none for long texts.
fn common(a: &[String], b: &[String]) -> Vec<(usize, usize)> {
    const MAX_CELLS: usize = 4_000_000;
    let width = b.len() + 1;
    if (a.len() + 1).saturating_mul(width) > MAX_CELLS {
        return Vec::new();
    }
    let mut best = vec![0_u32; (a.len() + 1) * width];
    let at = |best: &[u32], i: usize, j: usize| best.get(i * width + j).copied().unwrap_or(0);
    for (i, x) in a.iter().enumerate().rev() {
        for (j, y) in b.iter().enumerate().rev() {
            let value = if x == y {
                at(&best, i + 1, j + 1) + 1
            } else {
                at(&best, i + 1, j).max(at(&best, i, j + 1))
            };
            if let Some(cell) = best.get_mut(i * width + j) {
                *cell = value;
            }
        }
    }
    let (mut i, mut j, mut pairs) = (0, 0, Vec::new());
    while let (Some(x), Some(y)) = (a.get(i), b.get(j)) {
        if x == y {
            pairs.push((i, j));
            (i, j) = (i + 1, j + 1);
        } else if at(&best, i + 1, j) >= at(&best, i, j + 1) {
            i += 1;
        } else {
            j += 1;
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_the_same() {
        assert_eq!(compare("a\nb \n", "a\nb\n"), Comparison::Same);
    }

    #[test]
    fn other_words_of_a_message_are_wording() {
        let expected = "a\nqemu-img: no\nqemu-img: really\nTry 'qemu-img --help'\nb\n";
        let found = "a\nqemu-img: not so\nb\n";
        assert!(matches!(compare(expected, found), Comparison::Wording(lines) if lines.len() == 4));
    }

    #[test]
    fn findings_may_have_other_words_but_not_other_sums() {
        let expected = "ERROR cluster 5 refcount=0 reference=1\nRepairing it\n1 errors\n";
        assert!(matches!(compare(expected, "ERROR x\n1 errors\n"), Comparison::Wording(_)));
        assert!(matches!(compare(expected, "ERROR x\n2 errors\n"), Comparison::Different(_)));
        assert!(matches!(compare(expected, "1 errors\n"), Comparison::Different(_)));
    }

    #[test]
    fn a_message_that_is_missing_is_a_difference() {
        let difference = vec!["-qemu-io: no".to_owned()];
        assert_eq!(compare("a\nqemu-io: no\nb\n", "a\nb\n"), Comparison::Different(difference));
    }

    #[test]
    fn lines_that_differ_are_shown_in_order() {
        let difference = ["-b", "+x", "-d"].map(str::to_owned).to_vec();
        assert_eq!(compare("a\nb\nc\nd\ne\n", "a\nx\nc\ne\n"), Comparison::Different(difference));
    }
}
