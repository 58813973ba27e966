//! Names of images, and messages, as people and logs may see them: without passwords.
//!
//! Invariant: no password that stands in a URL, or in an option `password` (or another one whose name
//! ends so) of `json:` or `--image-opts`, is in what comes out. `password-file` names a file and stays.

use block_core::info::InfoValue;
use block_iscsi::redact::without_passwords;

/// What stands in place of the value of an option.
const HIDDEN: &str = "(hidden)";
const OPTION: &str = "password";

/// `text` without passwords. A second call changes nothing.
pub fn shown(text: &str) -> String {
    let mut text = text.to_owned();
    // What is left out may have kept another password from being seen, as a control character in it, which ends
    // a URL. This ends: each time there is a `%` less, or a value less that is not hidden.
    loop {
        let shown = without_values(&without_passwords(&text));
        if shown == text {
            return shown;
        }
        text = shown;
    }
}

/// `text` without the values of options that are passwords.
fn without_values(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(OPTION) {
        let (before, after) = rest.split_at(at + OPTION.len());
        shown.push_str(before);
        rest = match value(after) {
            Some((start, end)) => {
                shown.push_str(after.get(..start).unwrap_or_default());
                shown.push_str(HIDDEN);
                after.get(end..).unwrap_or_default()
            }
            None => after,
        };
    }
    shown.push_str(rest);
    shown
}

/// [`shown`] for every text of a value.
pub fn shown_value(value: &mut InfoValue) {
    match value {
        InfoValue::Text(text) => *text = shown(text),
        InfoValue::List(values) => values.iter_mut().for_each(shown_value),
        InfoValue::Map(values) => values.iter_mut().for_each(|(_, value)| shown_value(value)),
        InfoValue::Bool(_) | InfoValue::Int(_) => {}
    }
}

/// Where the value is, in what follows the name of an option.
fn value(after: &str) -> Option<(usize, usize)> {
    let (start, end) = match after.strip_prefix('=') {
        Some(value) => (1, 1 + end_of_item(value)),
        None => json_value(after)?,
    };
    let value = after.get(start..end)?;
    (!value.starts_with(HIDDEN)).then_some((start, end))
}

/// Where the first single comma is; a doubled one stands for a comma in a value.
fn end_of_item(value: &str) -> usize {
    let mut commas = value.match_indices(',').map(|(at, _)| at).peekable();
    while let Some(at) = commas.next() {
        if commas.next_if_eq(&(at + 1)).is_none() {
            return at;
        }
    }
    value.len()
}

/// What stands between the quotes behind `" :`, or up to the end where they do not end.
fn json_value(after: &str) -> Option<(usize, usize)> {
    let value = after.strip_prefix(['"', '\''])?.trim_start().strip_prefix(':')?.trim_start();
    let quote = value.chars().next()?;
    if !matches!(quote, '"' | '\'') {
        // A number, or a word; several words are no value but a sentence about the option.
        let start = after.len() - value.len();
        let len = value.find([',', '}', ']']).unwrap_or(value.len());
        let word = value.get(..len)?.trim_end();
        return (!word.contains(char::is_whitespace)).then_some((start, start + word.len()));
    }
    let value = value.get(1..)?;
    let start = after.len() - value.len();
    let mut escaped = false;
    for (at, c) in value.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some((start, start + at)),
            _ => {}
        }
    }
    Some((start, after.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_of_passwords_are_hidden() {
        for (text, expect) in [
            ("driver=iscsi,password=s,,t,lun=1", "driver=iscsi,password=(hidden),lun=1"),
            ("file.target-password=s", "file.target-password=(hidden)"),
            ("password=s,password-file=f", "password=(hidden),password-file=f"),
            (r#"json:{"password": "a\"b", "x": 1}"#, r#"json:{"password": "(hidden)", "x": 1}"#),
            ("json:{'password':'s'}", "json:{'password':'(hidden)'}"),
            ("json:{'password':12}", "json:{'password':(hidden)}"),
            ("json:{'password':'s", "json:{'password':'(hidden)"),
            ("json:{'filename':'iscsi://u%p@h/t/0'}", "json:{'filename':'iscsi://u@h/t/0'}"),
            ("Invalid option 'password': is missing", "Invalid option 'password': is missing"),
            ("no password=", "no password=(hidden)"),
            ("iscsi://h/u%password=\n,p@h", "iscsi://h/u@h"),
        ] {
            assert_eq!(shown(text), expect);
            assert_eq!(shown(expect), expect);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken_and_twice_is_once(
            text in r#"(\PC|[=:,'"{}\\ %@/\n]|[,@\n]|iscsi://h/u%|password=?){0,20}"#,
        ) {
            let once = shown(&text);
            prop_assert_eq!(shown(&once), once.clone());
        }

        #[test]
        fn no_option_shows_its_value(secret in "S[a-z,'\" %@/]{0,10}T") {
            let escaped = secret.replace(',', ",,");
            let text = shown(&format!("driver=iscsi,password={escaped},lun=1"));
            prop_assert_eq!(text, "driver=iscsi,password=(hidden),lun=1");
        }
    }
}
