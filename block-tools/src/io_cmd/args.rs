//! Words of a command line: single-letter options anywhere among the arguments, in groups (`-vq`),
//! with values attached (`-P5`) or following, ended by `--`.

/// The options and arguments of one command.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Parsed<'a> {
    options: Vec<(char, &'a str)>,
    /// What is no option, in order.
    pub(super) args: Vec<&'a str>,
}

impl<'a> Parsed<'a> {
    /// Whether an option is there.
    pub(super) fn has(&self, letter: char) -> bool {
        self.options.iter().any(|(l, _)| *l == letter)
    }

    /// The value of an option; the last one if it stands more than once.
    pub(super) fn value(&self, letter: char) -> Option<&'a str> {
        self.options.iter().rev().find(|(l, _)| *l == letter).map(|(_, value)| *value)
    }

    /// Options and values in order.
    pub(super) fn options(&self) -> impl Iterator<Item = (char, &'a str)> + '_ {
        self.options.iter().copied()
    }
}

/// Why the words of a command do not fit its options.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum ArgsError {
    /// An option that the command does not have.
    #[error("invalid option -- '{0}'")]
    Unknown(char),
    /// The last word is an option that needs a value.
    #[error("option requires an argument -- '{0}'")]
    NeedsValue(char),
}

/// Sorts words into options and arguments. `letters` lists the options; a colon follows those that
/// take a value.
pub(super) fn parse<'a>(words: &[&'a str], letters: &str) -> Result<Parsed<'a>, ArgsError> {
    let mut parsed = Parsed::default();
    let mut words = words.iter().copied();
    while let Some(word) = words.next() {
        if word == "--" {
            parsed.args.extend(words);
            break;
        }
        let Some(group) = word.strip_prefix('-').filter(|group| !group.is_empty()) else {
            parsed.args.push(word);
            continue;
        };
        let mut group = group.chars();
        while let Some(letter) = group.next() {
            let Some((_, after)) = letters.split_once(letter).filter(|_| letter != ':') else {
                return Err(ArgsError::Unknown(letter));
            };
            if !after.starts_with(':') {
                parsed.options.push((letter, ""));
                continue;
            }
            let attached = group.as_str();
            let value = if attached.is_empty() { words.next() } else { Some(attached) };
            parsed.options.push((letter, value.ok_or(ArgsError::NeedsValue(letter))?));
            break;
        }
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn options_stand_anywhere_and_in_groups() {
        let parsed = parse(&["0", "-vq", "-P", "-1", "-l5", "1k", "--", "-q"], "vqP:l:").unwrap();
        assert_eq!(parsed.args, ["0", "1k", "-q"]);
        assert!(parsed.has('v') && parsed.has('q') && !parsed.has('C'));
        assert_eq!((parsed.value('P'), parsed.value('l')), (Some("-1"), Some("5")));
    }

    #[test]
    fn the_last_value_wins_and_a_dash_alone_is_an_argument() {
        let parsed = parse(&["-P1", "-", "-P", "2"], "P:").unwrap();
        assert_eq!(parsed.value('P'), Some("2"));
        assert_eq!(parsed.args, ["-"]);
    }

    #[test]
    fn what_the_command_does_not_have_is_named() {
        assert_eq!(parse(&["-vz"], "v"), Err(ArgsError::Unknown('z')));
        assert_eq!(parse(&["-:"], "v:"), Err(ArgsError::Unknown(':')));
        assert_eq!(parse(&["-v"], "v:"), Err(ArgsError::NeedsValue('v')));
    }

    proptest! {
        #[test]
        fn any_words_are_sorted_or_refused(words in prop::collection::vec("-?[-a-cP:\\PC]{0,4}", 0..6)) {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let _ = parse(&words, "abP:");
        }
    }
}
