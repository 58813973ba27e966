//! Options of a node as users give them: flat names (`file.filename`, `backing.driver`) and texts.
//!
//! The command line turns `json:{...}` and `--image-opts` into this; libraries build it directly.
//! Every driver takes the options it knows; one that is left over is an error that names it.

use std::collections::BTreeMap;

use crate::error::{OpenError, Problem};

/// How a node and its children are opened, unless an option says otherwise.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct OpenFlags {
    /// Guests may write.
    pub writable: bool,
    /// Bypass the host's page cache (`cache.direct`, O_DIRECT).
    pub direct: bool,
    /// A flush stops at the driver and does not reach the disk (`cache.no-flush`).
    pub no_flush: bool,
    /// Discards and MAY_UNMAP reach the storage (`discard=unmap`).
    pub unmap: bool,
    /// Only metadata will be asked for: data file and backing file stay closed.
    pub no_io: bool,
    /// The backing file stays closed (what is not allocated reads as zeroes).
    pub no_backing: bool,
    /// Take no lock that excludes other writers (`--force-share`; reading only).
    pub force_share: bool,
    /// Open although the image is marked corrupt or dirty, to check it.
    pub check: bool,
}

impl OpenFlags {
    /// Reading only, through the page cache.
    pub const READ_ONLY: Self = Self {
        writable: false,
        direct: false,
        no_flush: false,
        unmap: false,
        no_io: false,
        no_backing: false,
        force_share: false,
        check: false,
    };
    /// Reading and writing, through the page cache, discards passed down.
    pub const READ_WRITE: Self = Self { writable: true, unmap: true, ..Self::READ_ONLY };
}

/// Options that are still to be taken.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Options {
    values: BTreeMap<String, String>,
}

impl Options {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Just `filename`.
    pub fn filename(name: impl Into<String>) -> Self {
        Self::new().with("filename", name)
    }

    /// These, and `name=value`.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.set(name, value);
        self
    }

    /// Sets one, replacing what was there.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.values.insert(name.into(), value.into());
    }

    /// Looks at one without taking it.
    pub fn peek(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// Takes a text.
    pub fn take(&mut self, name: &str) -> Option<String> {
        self.values.remove(name)
    }

    /// Takes `on`/`off` (also `true`/`false`, `yes`/`no`).
    pub fn take_bool(&mut self, name: &str) -> Result<Option<bool>, OpenError> {
        match self.take(name).as_deref() {
            None => Ok(None),
            Some("on" | "true" | "yes" | "y") => Ok(Some(true)),
            Some("off" | "false" | "no" | "n") => Ok(Some(false)),
            Some(_) => Err(unknown_value(name)),
        }
    }

    /// Takes a number of bytes: decimal or `0x` digits, with an optional binary suffix `b k M G T P E`.
    pub fn take_size(&mut self, name: &str) -> Result<Option<u64>, OpenError> {
        match self.take(name) {
            None => Ok(None),
            Some(text) => parse_size(&text).map(Some).ok_or_else(|| unknown_value(name)),
        }
    }

    /// Takes everything below `prefix.`, names without the prefix.
    pub fn take_sub(&mut self, prefix: &str) -> Self {
        let start = format!("{prefix}.");
        let mut sub = Self::new();
        self.values.retain(|name, value| match name.strip_prefix(&start) {
            Some(rest) => {
                sub.set(rest, std::mem::take(value));
                false
            }
            None => true,
        });
        sub
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// What is left, in order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.values.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Fails if anything is left.
    pub fn finish(self) -> Result<(), OpenError> {
        match self.values.into_keys().next() {
            None => Ok(()),
            Some(option) => Err(OpenError::Option { option, problem: Problem::Unknown }),
        }
    }
}

fn unknown_value(name: &str) -> OpenError {
    OpenError::Option { option: name.to_owned(), problem: Problem::Unknown }
}

/// Reads a size: `0x` digits, or decimal ones (with a fraction if there is a suffix) and one optional
/// binary suffix of `b k M G T P E` in either case, rounded to bytes. White space and one `+` may stand before it, and
/// the digits on one side of the point may be missing. `None` for anything else or more than 64 bits.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim_ascii_start();
    let text = text.strip_prefix('+').unwrap_or(text);
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let only_digits = hex.bytes().all(|b| b.is_ascii_hexdigit());
        return u64::from_str_radix(hex, 16).ok().filter(|_| only_digits);
    }
    let (digits, shift) = match text.as_bytes().last()? {
        b'b' | b'B' => (&text[..text.len() - 1], 0),
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'm' | b'M' => (&text[..text.len() - 1], 20),
        b'g' | b'G' => (&text[..text.len() - 1], 30),
        b't' | b'T' => (&text[..text.len() - 1], 40),
        b'p' | b'P' => (&text[..text.len() - 1], 50),
        b'e' | b'E' => (&text[..text.len() - 1], 60),
        _ => (text, 0),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let only_digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !only_digits(whole) || !only_digits(fraction) {
        return None;
    }
    let fraction = fraction.trim_end_matches('0');
    if shift == 0 && !fraction.is_empty() {
        return None;
    }
    let number = |digits: &str| -> Option<u64> {
        if digits.is_empty() { Some(0) } else { digits.parse().ok() }
    };
    let unit = 1u128 << shift;
    let mut total = u128::from(number(whole)?) * unit;
    let kept = fraction.get(..FRACTION_DIGITS).unwrap_or(fraction);
    let scale = 10u128.pow(u32::try_from(kept.len()).ok()?);
    total += (u128::from(number(kept)?) * unit + scale / 2) / scale;
    u64::try_from(total).ok()
}

/// Digits of a fraction that count; what follows is less than two bytes of an exbibyte.
const FRACTION_DIGITS: usize = 18;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_users_write_them() {
        let cases = [
            ("0", Some(0)),
            ("4k", Some(4096)),
            ("1.5G", Some(3 << 29)),
            ("0x1000", Some(4096)),
            ("16E", None),
            ("1.5", None),
            ("-1", None),
            ("k", None),
            ("1kk", None),
            ("", None),
            ("18446744073709551615", Some(u64::MAX)),
            ("+1k", Some(1024)),
            (" \t\n1k", Some(1024)),
            (" +0x10", Some(16)),
            (".5k", Some(512)),
            ("+.5k", Some(512)),
            ("5.", Some(5)),
            ("5.k", Some(5120)),
            ("1.0", Some(1)),
            (".0", Some(0)),
            ("1.500000000000000000000k", Some(1536)),
            ("1.999999999999999999999k", Some(2048)),
            ("1.0005k", Some(1025)),
            ("1.0004k", Some(1024)),
            ("1.00000000000000000001", None),
            ("1.50000000000000000000xk", None),
            (".", None),
            (".k", None),
            ("1..k", None),
            ("+", None),
            ("++1", None),
            ("+ 1", None),
            ("1k ", None),
            ("0x", None),
            ("0x+1", None),
            ("0x1.8k", None),
        ];
        for (text, expect) in cases {
            assert_eq!(parse_size(text), expect, "{text:?}");
        }
    }

    #[test]
    fn what_nobody_takes_is_named() {
        let mut options = Options::filename("x").with("file.locking", "off").with("bogus", "1");
        assert_eq!(options.take("filename").as_deref(), Some("x"));
        assert_eq!(options.take_sub("file").take_bool("locking"), Ok(Some(false)));
        let err = options.finish().unwrap_err();
        assert_eq!(err.to_string(), "Invalid option 'bogus': unknown value");
    }
}
