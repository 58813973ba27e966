//! Numbers as the commands read and print them: sizes with binary suffixes, pattern bytes, and the
//! figures of a report.
//!
//! Invariant: what is read as a size is at most `i64::MAX`. No text panics.

use std::time::Duration;

/// Why a text is no size.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum NumberError {
    /// It is not a number with at most one known suffix.
    NotANumber,
    /// It is negative or above `i64::MAX`.
    TooLarge,
}

impl NumberError {
    /// The line that users see for the argument `text`.
    pub(super) fn line(self, text: &str) -> String {
        match self {
            Self::NotANumber => format!(
                "Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- {text}"
            ),
            Self::TooLarge => format!("Parsing error: argument too large -- {text}"),
        }
    }
}

/// Digits of a fraction that count; what follows is below one byte of an exbibyte.
const FRACTION_DIGITS: usize = 19;

/// Reads a size: `0x` digits, or decimal digits with an optional binary suffix of `b k M G T P E`,
/// and then an optional fraction, rounded to bytes.
pub(super) fn parse_size(text: &str) -> Result<u64, NumberError> {
    if let Some(rest) = text.strip_prefix('-') {
        return parse_whole(rest, 10).and(Err(NumberError::TooLarge));
    }
    let digits = text.strip_prefix('+').unwrap_or(text);
    let value = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) => parse_whole(hex, 16)?,
        None => parse_decimal(digits)?,
    };
    match i64::try_from(value) {
        Ok(value) => Ok(value.unsigned_abs()),
        Err(_) => Err(NumberError::TooLarge),
    }
}

/// Digits alone, at least one; more than 64 bits are cut to a value that is too large anyway.
fn parse_whole(digits: &str, radix: u32) -> Result<u128, NumberError> {
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(NumberError::NotANumber);
    }
    Ok(u64::from_str_radix(digits, radix).map_or(u128::from(u64::MAX) + 1, u128::from))
}

fn parse_decimal(text: &str) -> Result<u128, NumberError> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at_checked(end).ok_or(NumberError::NotANumber)?;
    let shift = match suffix {
        "" | "b" | "B" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        "p" | "P" => 50,
        "e" | "E" => 60,
        _ => return Err(NumberError::NotANumber),
    };
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) => (whole, fraction),
        None => (number, ""),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(NumberError::NotANumber);
    }
    let whole = if whole.is_empty() { 0 } else { parse_whole(whole, 10)? };
    let kept = fraction.get(..FRACTION_DIGITS).unwrap_or(fraction);
    let parts = if fraction.is_empty() { 0 } else { parse_whole(kept, 10)? };
    // The digits that are not kept must be digits all the same.
    if fraction.contains('.') || (shift == 0 && fraction.bytes().any(|b| b != b'0')) {
        return Err(NumberError::NotANumber);
    }
    let scale = (0..kept.len()).fold(1u128, |scale, _| scale * 10);
    Ok((whole << shift) + ((parts << shift) + scale / 2) / scale)
}

/// Reads a byte for `-P`: decimal, `0x` or octal digits, at most 255.
pub(super) fn parse_pattern(text: &str) -> Option<u8> {
    let digits = text.strip_prefix('+').unwrap_or(text);
    let hex = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X"));
    let (digits, radix) = match (hex, digits.strip_prefix('0')) {
        (Some(hex), _) => (hex, 16),
        (None, Some(octal)) if !octal.is_empty() => (octal, 8),
        _ => (digits, 10),
    };
    u8::try_from(parse_whole(digits, radix).ok()?).ok()
}

/// A number of bytes in the largest unit that it reaches: `512 bytes`, `192.500 KiB`, `1 MiB`.
pub(super) fn size_text(bytes: u64) -> String {
    scaled_text(to_f64(bytes))
}

fn scaled_text(bytes: f64) -> String {
    const UNITS: [(f64, &str); 6] = [
        ((1u64 << 60) as f64, "EiB"),
        ((1u64 << 50) as f64, "PiB"),
        ((1u64 << 40) as f64, "TiB"),
        ((1u64 << 30) as f64, "GiB"),
        ((1u64 << 20) as f64, "MiB"),
        ((1u64 << 10) as f64, "KiB"),
    ];
    match UNITS.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => {
            let number = format!("{:.3}", bytes / unit);
            format!("{} {name}", number.strip_suffix(".000").unwrap_or(&number))
        }
        None => {
            let number = format!("{bytes:.6}");
            format!("{} bytes", number.strip_suffix(".000000").unwrap_or(&number))
        }
    }
}

/// The same number, rounded to what a double holds.
fn to_f64(value: u64) -> f64 {
    let half = |bits: u64| u32::try_from(bits & 0xffff_ffff).map_or(0.0, f64::from);
    half(value >> 32) * 4_294_967_296.0 + half(value)
}

/// How long a request took and how much it moved.
#[derive(Copy, Clone, Debug)]
pub(super) struct Figures {
    /// Bytes moved.
    pub(super) bytes: u64,
    /// Time between start and end.
    pub(super) took: Duration,
}

impl Figures {
    fn seconds(&self) -> f64 {
        self.took.max(Duration::from_nanos(1)).as_secs_f64()
    }

    fn bytes_per_second(&self) -> f64 {
        to_f64(self.bytes) / self.seconds()
    }

    fn ops_per_second(&self) -> f64 {
        1.0 / self.seconds()
    }

    /// `64 KiB, 1 ops; 00.01 sec (7.873 MiB/sec and 125.9740 ops/sec)`.
    pub(super) fn for_people(&self) -> String {
        format!(
            "{}, 1 ops; {} ({}/sec and {:.4} ops/sec)",
            size_text(self.bytes),
            self.time_for_people(),
            scaled_text(self.bytes_per_second()),
            self.ops_per_second()
        )
    }

    /// `65536,1,0:00:00.00,1968520965.998,30037.246`.
    pub(super) fn for_machines(&self) -> String {
        let (hours, minutes, seconds, hundredths) = self.clock();
        format!(
            "{},1,{hours}:{minutes:02}:{seconds:02}.{hundredths:02},{:.3},{:.3}",
            self.bytes,
            self.bytes_per_second(),
            self.ops_per_second()
        )
    }

    fn time_for_people(&self) -> String {
        match self.clock() {
            (0, 0, s, h) => format!("{s:02}.{h:02} sec"),
            (0, m, s, h) => format!("{m:02}:{s:02}.{h:02}"),
            (hours, m, s, h) => format!("{hours}:{m:02}:{s:02}.{h:02}"),
        }
    }

    fn clock(&self) -> (u64, u64, u64, u32) {
        let seconds = self.took.as_secs();
        let hundredths = self.took.subsec_millis() / 10;
        (seconds / 3600, seconds / 60 % 60, seconds % 60, hundredths)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_take_one_binary_suffix() {
        let cases = [
            ("0", Ok(0)),
            ("010", Ok(10)),
            ("+1", Ok(1)),
            ("0.9999k", Ok(1024)),
            ("0.1k", Ok(102)),
            ("1.0b", Ok(1)),
            ("-0", Err(NumberError::TooLarge)),
            ("-1k", Err(NumberError::NotANumber)),
            (".k", Err(NumberError::NotANumber)),
            ("0x1E", Ok(30)),
            ("1.5k", Ok(1536)),
            ("1.k", Ok(1024)),
            (".5k", Ok(512)),
            ("1.0", Ok(1)),
            ("1e", Ok(1 << 60)),
            ("1.00000001k", Ok(1024)),
            ("7.99999999999999999E", Ok((8 << 60) - 12)),
            ("-1", Err(NumberError::TooLarge)),
            ("8E", Err(NumberError::TooLarge)),
            ("9223372036854775808", Err(NumberError::TooLarge)),
            ("18446744073709551616", Err(NumberError::TooLarge)),
            ("0x10000000000000000", Err(NumberError::TooLarge)),
            ("1.5", Err(NumberError::NotANumber)),
            ("0x1k", Err(NumberError::NotANumber)),
            ("0x", Err(NumberError::NotANumber)),
            ("1kk", Err(NumberError::NotANumber)),
            ("1e3", Err(NumberError::NotANumber)),
            ("1..5k", Err(NumberError::NotANumber)),
            (".", Err(NumberError::NotANumber)),
            ("-abc", Err(NumberError::NotANumber)),
            ("", Err(NumberError::NotANumber)),
        ];
        for (text, expect) in cases {
            assert_eq!(parse_size(text), expect, "{text:?}");
        }
    }

    #[test]
    fn patterns_are_bytes_in_three_bases() {
        let cases = [
            ("0", Some(0)),
            ("255", Some(255)),
            ("256", None),
            ("0xff", Some(255)),
            ("0x", None),
            ("010", Some(8)),
            ("08", None),
            ("+8", Some(8)),
            ("1k", None),
            ("-1", None),
            ("", None),
        ];
        for (text, expect) in cases {
            assert_eq!(parse_pattern(text), expect, "{text:?}");
        }
    }

    #[test]
    fn sizes_are_rounded_to_three_digits_without_trailing_zeroes() {
        let cases = [
            (0, "0 bytes"),
            (1, "1 bytes"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (197_120, "192.500 KiB"),
            (1_048_064, "1023.500 KiB"),
            (1_073_741_312, "1024 MiB"),
            (1_099_511_627_264, "1024 GiB"),
            (5_000_000_000_000, "4.547 TiB"),
            (u64::MAX, "16 EiB"),
        ];
        for (bytes, expect) in cases {
            assert_eq!(size_text(bytes), expect);
        }
    }

    #[test]
    fn figures_are_printed_for_people_and_machines() {
        let figures = Figures { bytes: 65536, took: Duration::from_millis(20) };
        assert_eq!(
            figures.for_people(),
            "64 KiB, 1 ops; 00.02 sec (3.125 MiB/sec and 50.0000 ops/sec)"
        );
        assert_eq!(figures.for_machines(), "65536,1,0:00:00.02,3276800.000,50.000");
        let slow = Figures { bytes: 1, took: Duration::from_millis(3_723_450) };
        assert_eq!(
            slow.for_people(),
            "1 bytes, 1 ops; 1:02:03.45 (0.000269 bytes/sec and 0.0003 ops/sec)"
        );
        let minutes = Figures { bytes: 0, took: Duration::from_secs(61) };
        assert!(minutes.for_people().starts_with("0 bytes, 1 ops; 01:01.00 (0 bytes/sec and "));
    }

    proptest! {
        #[test]
        fn any_text_is_a_number_or_not(text in "[-+0-9a-fxkKME.]{0,30}|\\PC{0,20}") {
            let _ = parse_size(&text);
            let _ = parse_pattern(&text);
        }

        #[test]
        fn decimal_and_hexadecimal_agree(value in 0..=i64::MAX.unsigned_abs()) {
            prop_assert_eq!(parse_size(&value.to_string()), Ok(value));
            prop_assert_eq!(parse_size(&format!("{value:#x}")), Ok(value));
            prop_assert!(size_text(value).len() < 20);
        }
    }
}
