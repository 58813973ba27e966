//! Texts for people and programs, without the passwords of the URLs in them.
//!
//! Invariants: of `iscsi://user%password@host` the user stays and the password goes, also where the URL is
//! not well formed and a password holds what no password can: rather too much of a text goes than too
//! little. What holds no such URL is left as it is, and a second call changes nothing.

use std::borrow::Cow;

/// The form of URLs, which messages explain with, is no URL.
const EXPLANATION: &str = "[user[%password]@]";
const SCHEME: &str = "iscsi://";

/// `text` with the password of every URL in it left out. A URL ends at the latest where a line does, and
/// where another one begins.
pub fn without_passwords(text: &str) -> Cow<'_, str> {
    if find_scheme(text).is_none() {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = find_scheme(rest) {
        let (before, url) = rest.split_at(at + SCHEME.len());
        shown.push_str(before);
        let line = url.find(char::is_control).unwrap_or(url.len());
        let next = find_scheme(url).unwrap_or(url.len());
        let (url, after) = url.split_at(line.min(next));
        let hidden = if url.starts_with(EXPLANATION) { None } else { password(url) };
        match hidden {
            None => shown.push_str(url),
            Some((start, end)) => {
                shown.push_str(url.get(..start).unwrap_or_default());
                shown.push_str(url.get(end..).unwrap_or_default());
            }
        }
        rest = after;
    }
    shown.push_str(rest);
    Cow::Owned(shown)
}

/// Where the next URL begins.
fn find_scheme(text: &str) -> Option<usize> {
    // Lower case of ASCII alone keeps every place.
    text.to_ascii_lowercase().find(SCHEME)
}

/// Where the password is, with the `%` before it, in what follows the scheme.
fn password(url: &str) -> Option<(usize, usize)> {
    let percent = url.find('%')?;
    match url.rfind('@') {
        // A password may hold an @, and what is behind the credentials holds none.
        Some(end) if percent < end => Some((percent, end)),
        // Credentials without a host, of which a password may be all that follows. A zone in brackets and a
        // target's name that is percent-encoded are none.
        None => {
            let authority = url.split('/').next().unwrap_or_default();
            let credentials = authority.contains('%') && !authority.contains('[');
            credentials.then_some((percent, url.len()))
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_user_stays_and_the_password_goes() {
        for (text, shown) in [
            ("iscsi://joe%secret@h/iqn.a/0", "iscsi://joe@h/iqn.a/0"),
            ("ISCSI://joe%s@c%r/t e@h:1/iqn.a/0", "ISCSI://joe@h:1/iqn.a/0"),
            ("at 'iscsi://u%p@h/iqn.a/0': no", "at 'iscsi://u@h/iqn.a/0': no"),
            ("iscsi://u%p@h/a iscsi://v%q@h/b", "iscsi://u@h/a iscsi://v@h/b"),
            ("iscsi://u%p@h\nmail x@y", "iscsi://u@h\nmail x@y"),
            ("iscsi://u%secret/iqn.a/0", "iscsi://u"),
            ("iscsi://u%secret", "iscsi://u"),
        ] {
            assert_eq!(without_passwords(text), shown);
        }
    }

    #[test]
    fn what_holds_no_password_stays() {
        for text in [
            "",
            "joe%secret@h",
            "iscsi://h/iqn.a%3Ab/0",
            "iscsi://joe@h/iqn.a%3Ab/0",
            "iscsi://[fe80::1%eth0]:99/iqn.a/0",
            "not of the form iscsi://[user[%password]@]host[:port]/target/lun",
        ] {
            assert_eq!(without_passwords(text), text);
        }
    }

    proptest! {
        #[test]
        fn no_password_is_shown_and_twice_is_once(
            before in "[a-z@%/ \u{e9}]{0,8}",
            user in "[a-z]{1,4}",
            password in "S[!-~ \u{e9}]{0,12}T",
            host in prop_oneof!["[a-z]{1,4}", "\\[::1%[a-z]\\]"],
            after in "[a-z':% /]{0,8}",
        ) {
            let text = format!("{before}iscsi://{user}%{password}@{host}/iqn.a/0{after}");
            let shown = without_passwords(&text);
            let expect = format!("{before}iscsi://{user}@{host}/iqn.a/0{after}");
            prop_assert_eq!(&shown, &expect);
            prop_assert_eq!(without_passwords(&shown), &*shown);
        }

        #[test]
        fn any_text_is_taken(text in "(iscsi://)?[a%@/\\[\u{e9}\n]{0,20}(Iscsi://)?\\PC{0,20}") {
            let once = without_passwords(&text);
            prop_assert_eq!(without_passwords(&once), &*once);
        }
    }
}
