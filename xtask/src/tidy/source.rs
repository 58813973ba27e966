//! Rules for one source file.

use super::{Complaint, Text};

/// Longest file, tests not counted.
const LINES_MAX: usize = 800;

/// Whether all of a file is test code.
pub(super) fn is_test_file(path: &str) -> bool {
    path.split('/').any(|part| part == "tests") || path.ends_with("/tests.rs")
}

/// The lines before the trailing `#[cfg(test)] mod tests {`; none of a file of tests.
fn lines_without_tests(text: &Text) -> Vec<&str> {
    if is_test_file(&text.path) {
        return Vec::new();
    }
    let lines: Vec<&str> = text.content.lines().collect();
    let opens_tests = |index: &usize| {
        let is_module = |line: &&str| line.starts_with("mod ") && line.ends_with('{');
        let after = lines.iter().skip(index + 1);
        lines[*index] == "#[cfg(test)]"
            && after.filter(|line| !line.starts_with("#[")).take(1).any(is_module)
    };
    let end = (0..lines.len()).find(opens_tests).unwrap_or(lines.len());
    lines[..end].to_vec()
}

/// A module says first what it is for.
pub(super) fn head(text: &Text) -> Option<Complaint> {
    let first = text.content.lines().next().unwrap_or_default();
    let says = first.strip_prefix("//!").is_some_and(|words| !words.trim().is_empty());
    (!says).then(|| format!("{}: does not begin with `//!` and what it is for", text.path))
}

/// A file can be read in one sitting.
pub(super) fn length(text: &Text) -> Option<Complaint> {
    let count = lines_without_tests(text).len();
    (count > LINES_MAX)
        .then(|| format!("{}: {count} lines without tests, more than {LINES_MAX}", text.path))
}

/// Errors are handled outside of tests.
pub(super) fn panics(text: &Text) -> Vec<Complaint> {
    let lines = lines_without_tests(text);
    let panics = |line: &str| {
        // In parts, or this line would be one of those.
        line.contains(concat!(".unwrap", "()")) || line.contains(concat!(".expect", "(\""))
    };
    lines
        .iter()
        .enumerate()
        .filter(|(_, line)| !line.trim_start().starts_with("//") && panics(line))
        .map(|(index, _)| format!("{}:{}: unwrap or expect outside of tests", text.path, index + 1))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_without_a_head_is_complained_about() {
        assert!(head(&Text::new("a.rs", "use b;\n")).is_some());
        assert!(head(&Text::new("a.rs", "")).is_some());
        assert!(head(&Text::new("a.rs", "//!\n//! late\n")).is_some());
        assert!(head(&Text::new("a.rs", "//! Says it.\n")).is_none());
    }

    #[test]
    fn a_long_file_is_complained_about_and_its_tests_are_not_counted() {
        let code = "x\n".repeat(LINES_MAX);
        let tests = format!("#[cfg(test)]\nmod tests {{\n{code}}}\n");
        assert!(length(&Text::new("src/a.rs", &code)).is_none());
        assert!(length(&Text::new("src/a.rs", &format!("{code}{tests}"))).is_none());
        assert!(length(&Text::new("src/a.rs", &format!("{code}x\n"))).is_some());
        assert!(length(&Text::new("tests/a.rs", &format!("{code}x\n"))).is_none());
    }

    #[test]
    fn a_cfg_test_that_opens_no_module_does_not_end_the_code() {
        let helper = format!("#[cfg(test)]\nfn f() {{}}\n{}", "x\n".repeat(LINES_MAX));
        assert!(length(&Text::new("src/a.rs", &helper)).is_some());
        let allowed = "x\n#[cfg(test)]\n#[allow(clippy::a)]\nmod tests {\na.unwrap();\n}\n";
        assert!(panics(&Text::new("src/a.rs", allowed)).is_empty());
    }

    #[test]
    fn an_unwrap_is_complained_about_outside_of_tests_only() {
        let code = "let a = b.unwrap();\n";
        assert_eq!(panics(&Text::new("src/a.rs", code)).len(), 1);
        assert_eq!(panics(&Text::new("src/a.rs", "b.expect(\"c\")\n")).len(), 1);
        assert!(panics(&Text::new("src/a.rs", "self.expect(b',')?;\n")).is_empty());
        assert!(panics(&Text::new("src/a.rs", "/// `b.unwrap()`\n")).is_empty());
        assert!(panics(&Text::new("a/tests/a.rs", code)).is_empty());
        let tests = format!("#[cfg(test)]\nmod tests {{\n{code}}}\n");
        assert!(panics(&Text::new("src/a.rs", &tests)).is_empty());
    }
}
