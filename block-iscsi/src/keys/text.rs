//! Keys and values as bytes: `key=value` and a zero byte for each (RFC 7143, section 6.1).
//!
//! A text may be spread over several PDUs, anywhere; all but the last have the C bit.

use super::{KeyError, Pair};

/// Longest key in bytes.
pub const KEY_LEN_MAX: usize = 63;
/// Longest value in bytes, or part of a value between commas, where nothing else is said.
pub const VALUE_LEN_MAX: usize = 255;
/// Longest text of a negotiation in bytes: as much as everybody must take.
pub const TEXT_LEN_MAX: usize = 8192;

/// Longest value in bytes that stands for a large binary value.
const BINARY_TEXT_LEN_MAX: usize = 2 + 2 * super::value::BINARY_LEN_MAX;

/// Collects a text from the data segments of one or more PDUs. Invariant: `len <= limit`.
#[derive(Clone, Debug)]
pub struct TextBuffer {
    bytes: Vec<u8>,
    limit: usize,
}

impl TextBuffer {
    /// An empty text that may grow to `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit }
    }

    /// Goes on with a data segment, padding not counted.
    pub fn push(&mut self, data: &[u8]) -> Result<(), KeyError> {
        let len = self.bytes.len().saturating_add(data.len());
        if len > self.limit {
            return Err(KeyError::TextTooLong { len, limit: self.limit });
        }
        self.bytes.extend_from_slice(data);
        Ok(())
    }

    /// The pairs of the complete text, in their order. The buffer is empty again, also after an
    /// error.
    pub fn take_pairs(&mut self) -> Result<Vec<Pair>, KeyError> {
        let bytes = std::mem::take(&mut self.bytes);
        let Some(text) = bytes.strip_suffix(&[0]) else {
            return match bytes.len() {
                0 => Ok(Vec::new()),
                len => Err(KeyError::Unterminated { len }),
            };
        };
        // Zero bytes in a row are harmless: some targets pad with them.
        text.split(|b| *b == 0).filter(|pair| !pair.is_empty()).map(parse_pair).collect()
    }
}

/// The text of these pairs.
pub fn encode(pairs: &[Pair]) -> Vec<u8> {
    let mut text = Vec::new();
    for Pair { key, value } in pairs {
        text.extend_from_slice(key.as_bytes());
        text.push(b'=');
        text.extend_from_slice(value.as_bytes());
        text.push(0);
    }
    text
}

fn parse_pair(bytes: &[u8]) -> Result<Pair, KeyError> {
    let text = std::str::from_utf8(bytes).map_err(|_| not_a_pair(bytes))?;
    let (key, value) = text.split_once('=').ok_or_else(|| not_a_pair(bytes))?;
    let is_label = |b: u8| b.is_ascii_alphanumeric() || b".-+@_#".contains(&b);
    if key.is_empty() || key.len() > KEY_LEN_MAX || !key.bytes().all(is_label) {
        return Err(not_a_pair(bytes));
    }
    if value.contains(char::is_control) {
        return Err(KeyError::Value { key: key.to_owned(), value: value.to_owned() });
    }
    for part in value.split(',') {
        let binary = ["0x", "0X", "0b", "0B"].iter().any(|prefix| part.starts_with(prefix));
        let limit = if binary { BINARY_TEXT_LEN_MAX } else { VALUE_LEN_MAX };
        if part.len() > limit {
            return Err(KeyError::ValueTooLong { key: key.to_owned(), len: part.len(), limit });
        }
    }
    Ok(Pair::new(key, value))
}

/// Names the start of what is no pair.
fn not_a_pair(bytes: &[u8]) -> KeyError {
    let start = bytes.get(..KEY_LEN_MAX).unwrap_or(bytes);
    KeyError::NotAPair { start: String::from_utf8_lossy(start).into_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &[u8]) -> Result<Vec<Pair>, KeyError> {
        let mut buffer = TextBuffer::new(TEXT_LEN_MAX);
        buffer.push(text)?;
        buffer.take_pairs()
    }

    fn pairs() -> impl Strategy<Value = Vec<Pair>> {
        let pair = ("[A-Z][A-Za-z0-9.+@_#-]{0,62}", "[^,\\p{Cc}]{0,60}(,[a-z=]{0,60}){0,3}");
        prop::collection::vec(pair.prop_map(|(key, value)| Pair::new(&key, &value)), 0..8)
    }

    proptest! {
        #[test]
        fn texts_are_parsed_as_they_are_printed_however_they_are_cut(
            pairs in pairs(),
            piece in 1..50_usize,
        ) {
            let text = encode(&pairs);
            let mut buffer = TextBuffer::new(TEXT_LEN_MAX);
            for data in text.chunks(piece) {
                prop_assert!(buffer.push(data).is_ok());
            }
            prop_assert_eq!(buffer.take_pairs(), Ok(pairs));
            prop_assert_eq!(buffer.take_pairs(), Ok(Vec::new()));
        }

        #[test]
        fn any_bytes_give_pairs_that_print_back_or_an_error(
            bytes in prop::collection::vec(prop_oneof![Just(0), Just(b'='), any::<u8>()], 0..60)
        ) {
            if let Ok(pairs) = parse(&bytes) {
                prop_assert_eq!(parse(&encode(&pairs)), Ok(pairs));
            }
        }
    }

    #[test]
    fn what_is_too_long_is_refused() {
        let text = |key: usize, value: &str| format!("{}={value}\0", "K".repeat(key)).into_bytes();
        assert!(parse(&text(63, "")).is_ok());
        assert!(matches!(parse(&text(64, "")), Err(KeyError::NotAPair { .. })));
        assert!(parse(&text(1, &"v".repeat(255))).is_ok());
        let too_long = |len, limit| Err(KeyError::ValueTooLong { key: "K".to_owned(), len, limit });
        assert_eq!(parse(&text(1, &"v".repeat(256))), too_long(256, 255));
        assert!(parse(&text(1, &format!("{0},{0}", "v".repeat(255)))).is_ok());
        assert!(parse(&text(1, &format!("0x{}", "f".repeat(2048)))).is_ok());
        assert_eq!(parse(&text(1, &format!("0x{}", "f".repeat(2049)))), too_long(2051, 2050));
        let mut buffer = TextBuffer::new(TEXT_LEN_MAX);
        buffer.push(&[0; 8192]).unwrap();
        let too_long = KeyError::TextTooLong { len: 8193, limit: 8192 };
        assert_eq!(buffer.push(&[0]), Err(too_long));
    }

    #[test]
    fn what_is_no_pair_is_refused_by_name() {
        assert_eq!(parse(b"A=b"), Err(KeyError::Unterminated { len: 3 }));
        for bad in [&b"A\0"[..], b"=b\0", b"A b=c\0", b"\xff=\0", b"A=\xff\0"] {
            assert!(matches!(parse(bad), Err(KeyError::NotAPair { .. })), "{bad:?}");
        }
        assert!(matches!(parse(b"A=b\nc\0"), Err(KeyError::Value { .. })));
        assert_eq!(parse(b"A=b=c\0\0\0"), Ok(vec![Pair::new("A", "b=c")]));
    }
}
