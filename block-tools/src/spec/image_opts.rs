//! `--image-opts`: `driver=qcow2,file.filename=a.qcow2`. A doubled comma stands for a comma in a
//! value; a name alone is `name=on`. The last of two equal names wins.

use block_core::Options;

use super::{MAX_NAME_BYTES, MAX_TEXT_BYTES, SpecError};

/// Reads `name=value,name=value`. An empty text is no options.
pub fn parse(text: &str) -> Result<Options, SpecError> {
    parse_with(text, None, |_| false)
}

/// [`parse`], where `noNAME` alone is `NAME=off` for an option NAME that `is_option` knows.
pub fn parse_known(text: &str, is_option: impl Fn(&str) -> bool) -> Result<Options, SpecError> {
    parse_with(text, None, is_option)
}

/// [`parse`], where a first value without a name is that of `implied`: `raw,size=1k` for `driver`.
pub fn parse_with_implied(text: &str, implied: Option<&str>) -> Result<Options, SpecError> {
    parse_with(text, implied, |_| false)
}

fn parse_with(
    text: &str,
    implied: Option<&str>,
    is_option: impl Fn(&str) -> bool,
) -> Result<Options, SpecError> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(SpecError::TooLong(text.len()));
    }
    let mut options = Options::new();
    let mut rest = text;
    let mut first = true;
    while !rest.is_empty() {
        let (item, after) = take_item(rest);
        let (name, value) = match (item.split_once('='), implied) {
            (Some((name, value)), _) => (name.to_owned(), value.to_owned()),
            (None, Some(implied)) if first => (implied.to_owned(), item),
            (None, _) => match item.strip_prefix("no") {
                Some(name) if is_option(name) && !is_option(&item) => {
                    (name.to_owned(), "off".to_owned())
                }
                _ => (item, "on".to_owned()),
            },
        };
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return Err(SpecError::Name(name.chars().take(64).collect()));
        }
        options.set(name, value);
        rest = after;
        first = false;
    }
    Ok(options)
}

/// The text up to the first single comma, doubled commas made single, and what follows that comma.
fn take_item(text: &str) -> (String, &str) {
    let mut item = String::new();
    let mut rest = text;
    loop {
        let Some((before, after)) = rest.split_once(',') else {
            item.push_str(rest);
            return (item, "");
        };
        item.push_str(before);
        match after.strip_prefix(',') {
            Some(after) => {
                item.push(',');
                rest = after;
            }
            None => return (item, after),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn flat(options: &Options) -> Vec<(String, String)> {
        let pairs = options.iter();
        pairs.map(|(n, v)| (n.to_owned(), v.to_owned())).collect()
    }

    #[test]
    fn commas_are_doubled_in_values() {
        let options = parse("driver=raw,file.filename=a,,b,,,read-only=on").unwrap();
        assert_eq!(options.peek("driver"), Some("raw"));
        assert_eq!(options.peek("file.filename"), Some("a,b,"));
        assert_eq!(options.peek("read-only"), Some("on"));
    }

    #[test]
    fn a_known_name_is_off_behind_no() {
        let is_option = |name: &str| matches!(name, "lazy" | "nocow");
        let options = parse_known("nolazy,nocow,noother,no", is_option).unwrap();
        let expect = [("lazy", "off"), ("no", "on"), ("nocow", "on"), ("noother", "on")];
        assert_eq!(flat(&options), expect.map(|(n, v)| (n.to_owned(), v.to_owned())));
        assert_eq!(parse("nolazy").unwrap().peek("nolazy"), Some("on"));
    }

    #[test]
    fn a_name_alone_is_on_and_the_last_wins() {
        let options = parse("a,b=1,b=2=3").unwrap();
        let expect = [("a", "on"), ("b", "2=3")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        assert_eq!(flat(&options), expect);
    }

    #[test]
    fn the_first_name_may_be_implied() {
        let options = parse_with_implied("raw,size=1k", Some("driver")).unwrap();
        assert_eq!(options.peek("driver"), Some("raw"));
        let options = parse_with_implied("size=1k,raw", Some("driver")).unwrap();
        assert_eq!(options.peek("raw"), Some("on"));
    }

    #[test]
    fn empty_names_and_long_texts_are_refused() {
        assert_eq!(parse("=1"), Err(SpecError::Name(String::new())));
        assert_eq!(parse("a=1,,=,=2"), Err(SpecError::Name(String::new())));
        let long = "a".repeat(MAX_TEXT_BYTES + 1);
        assert_eq!(parse(&long), Err(SpecError::TooLong(MAX_TEXT_BYTES + 1)));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[a-c=,.]{0,40}|\\PC{0,40}") {
            let _ = parse(&text);
            let _ = parse_with_implied(&text, Some("driver"));
        }

        #[test]
        fn what_is_escaped_comes_back(value in "[a=,]{0,12}") {
            let text = format!("name={},z=1", value.replace(',', ",,"));
            let options = parse(&text).unwrap();
            prop_assert_eq!(options.peek("name"), Some(value.as_str()));
        }
    }
}
