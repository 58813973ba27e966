//! How values stand in texts (RFC 7143, section 6.1): numbers, booleans, bytes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Longest binary value in bytes (section 12.1.3: CHAP_C and CHAP_R).
pub const BINARY_LEN_MAX: usize = 1024;

/// A number of up to 64 bits: decimal without leading zeroes, or hexadecimal.
pub fn parse_number(value: &str) -> Option<u64> {
    if let Some(digits) = strip_prefix(value, ["0x", "0X"]) {
        let all_hex = digits.bytes().all(|b| b.is_ascii_hexdigit());
        return all_hex.then(|| u64::from_str_radix(digits, 16).ok()).flatten();
    }
    let all_digits = value.bytes().all(|b| b.is_ascii_digit());
    let leading_zero = value.len() > 1 && value.starts_with('0');
    (all_digits && !leading_zero).then(|| value.parse().ok()).flatten()
}

/// `Yes` or `No`.
pub fn parse_flag(value: &str) -> Option<bool> {
    match value {
        "Yes" => Some(true),
        "No" => Some(false),
        _ => None,
    }
}

/// `Yes` or `No`.
pub(super) fn flag_text(flag: bool) -> &'static str {
    if flag { "Yes" } else { "No" }
}

/// Bytes as a hexadecimal or base64 constant: 1 to [`BINARY_LEN_MAX`] of them. Of an odd number of
/// hexadecimal digits, the first is a byte of its own.
pub fn parse_binary(value: &str) -> Option<Vec<u8>> {
    if value.len() > 2 + 2 * BINARY_LEN_MAX {
        return None;
    }
    let bytes = if let Some(digits) = strip_prefix(value, ["0x", "0X"]) {
        parse_hex(digits.as_bytes())?
    } else {
        STANDARD.decode(strip_prefix(value, ["0b", "0B"])?).ok()?
    };
    (1..=BINARY_LEN_MAX).contains(&bytes.len()).then_some(bytes)
}

/// Bytes as a hexadecimal constant.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(2 + 2 * bytes.len());
    text.push_str("0x");
    for byte in bytes {
        let _infallible = write!(text, "{byte:02x}");
    }
    text
}

fn parse_hex(digits: &[u8]) -> Option<Vec<u8>> {
    let (first, pairs) = digits.as_rchunks::<2>();
    let first = first.iter().map(|low| hex_digit(*low));
    let pairs = pairs.iter().map(|[high, low]| Some(hex_digit(*high)? << 4 | hex_digit(*low)?));
    first.chain(pairs).collect()
}

fn hex_digit(digit: u8) -> Option<u8> {
    u8::try_from(char::from(digit).to_digit(16)?).ok()
}

fn strip_prefix<'a>(value: &'a str, prefixes: [&str; 2]) -> Option<&'a str> {
    prefixes.iter().find_map(|prefix| value.strip_prefix(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_decimal_or_hexadecimal() {
        let good = [("0", 0), ("7", 7), ("0x1F", 31), ("0Xffffffffffffffff", u64::MAX)];
        for (text, number) in good {
            assert_eq!(parse_number(text), Some(number), "{text}");
        }
        assert_eq!(parse_number("18446744073709551615"), Some(u64::MAX));
        for bad in ["", "0x", "+1", "-1", "01", "0x+1", "1 ", "18446744073709551616", "0b1", "1k"] {
            assert_eq!(parse_number(bad), None, "{bad}");
        }
    }

    #[test]
    fn bytes_are_hexadecimal_or_base64() {
        assert_eq!(parse_binary("0x00fF"), Some(vec![0, 255]));
        assert_eq!(parse_binary("0bAP8="), Some(vec![0, 255]));
        assert_eq!(parse_binary("0x7"), Some(vec![7]));
        assert_eq!(parse_binary("0x123"), Some(vec![1, 0x23]));
        for bad in ["", "0x", "0xg", "0xgg", "0x0+", "0b", "0bA", "0bAP8", "00ff", "AP8="] {
            assert_eq!(parse_binary(bad), None, "{bad}");
        }
        assert!(parse_binary(&hex(&[1; BINARY_LEN_MAX])).is_some());
        assert_eq!(parse_binary(&hex(&[1; BINARY_LEN_MAX + 1])), None);
    }

    proptest! {
        #[test]
        fn bytes_are_parsed_as_they_are_printed(bytes in prop::collection::vec(any::<u8>(), 1..90)) {
            prop_assert_eq!(parse_binary(&hex(&bytes)), Some(bytes.clone()));
            let base64 = format!("0b{}", STANDARD.encode(&bytes));
            prop_assert_eq!(parse_binary(&base64), Some(bytes));
        }

        #[test]
        fn any_text_never_panics(text in "\\PC{0,40}|0[xXbB]\\PC{0,40}") {
            let _ = (parse_binary(&text), parse_number(&text), parse_flag(&text));
        }
    }
}
