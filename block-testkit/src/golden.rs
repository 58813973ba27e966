//! Text compared with files: `UPDATE_GOLDEN=1 cargo test` writes what it gets instead.
//!
//! A golden file is read by people: it says what a layer sends down for a request, one line each.

use std::fmt::Write as _;
use std::path::Path;

/// Compares `text` with the file `name` in `tests/golden` of the crate whose `Cargo.toml` is in
/// `manifest_dir` (`env!("CARGO_MANIFEST_DIR")`).
///
/// # Panics
/// If they differ, or there is no such file, and `UPDATE_GOLDEN` is not `1`.
pub fn check(manifest_dir: &str, name: &str, text: &str) {
    let path = Path::new(manifest_dir).join("tests").join("golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1") {
        write(&path, text);
        return;
    }
    match std::fs::read_to_string(&path) {
        Ok(expected) if expected == text => {}
        Ok(expected) => {
            panic!("{name} differs (UPDATE_GOLDEN=1 accepts):\n{}", diff(&expected, text))
        }
        Err(error) => panic!("{name}: {error} (UPDATE_GOLDEN=1 makes it); got:\n{text}"),
    }
}

fn write(path: &Path, text: &str) {
    let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    if let Err(error) = made.and_then(|()| std::fs::write(path, text)) {
        panic!("{}: {error}", path.display());
    }
}

/// Both texts, with the lines marked from the first to the last one that differs.
pub fn diff(expected: &str, actual: &str) -> String {
    let (a, b): (Vec<_>, Vec<_>) = (expected.lines().collect(), actual.lines().collect());
    let head = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    let rest = a.len().min(b.len()) - head;
    let tail = a.iter().rev().zip(b.iter().rev()).take(rest).take_while(|(a, b)| a == b).count();
    let mut text = String::new();
    let parts = [
        (' ', &a[..head]),
        ('-', &a[head..a.len() - tail]),
        ('+', &b[head..b.len() - tail]),
        (' ', &a[a.len() - tail..]),
    ];
    for (mark, lines) in parts {
        for line in lines {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{mark} {line}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_shows_what_was_and_what_is() {
        assert_eq!(diff("a\nb\nc\n", "a\nx\ny\nc\n"), "  a\n- b\n+ x\n+ y\n  c\n");
        assert_eq!(diff("a\na\n", "a\n"), "  a\n- a\n");
    }

    #[test]
    #[should_panic(expected = "absent.txt")]
    fn a_file_that_is_not_there_fails() {
        check(env!("CARGO_MANIFEST_DIR"), "absent.txt", "text");
    }
}
