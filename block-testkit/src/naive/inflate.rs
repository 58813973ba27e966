//! A slow, strict inflater of raw deflate, written from RFC 1951 alone: one bit at a time.
//!
//! It answers what a fast one does not say: does the data stay within a window of so many bytes?
//! A reader with a smaller window than the writer's loses bytes, or refuses.
//!
//! Invariants: the output is at most `limit` bytes; every copied byte lies at most `window` bytes
//! back and not before the start; no input makes it panic.

use std::num::TryFromIntError;

/// What came out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inflated {
    /// The data.
    pub bytes: Vec<u8>,
    /// How many bytes of the input it took, the last one perhaps in part.
    pub used: usize,
    /// The longest distance of a copy; 0 without one.
    pub reach: usize,
}

/// Why data is not deflate, or does not keep to the window.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadDeflate {
    /// The input ends before the last block does.
    #[error("the input ends too early")]
    Truncated,
    /// The reserved type of blocks.
    #[error("a block has the reserved type")]
    BlockType,
    /// LEN and NLEN of a stored block are not each other's complement.
    #[error("a stored block has the length {len:#x} and the complement {complement:#x}")]
    StoredLen {
        /// LEN.
        len: u16,
        /// NLEN.
        complement: u16,
    },
    /// A dynamic block announces more codes than the alphabet has.
    #[error("{count} codes in an alphabet of {limit}")]
    Alphabet {
        /// How many.
        count: usize,
        /// How many there are.
        limit: usize,
    },
    /// A repetition in the list of code lengths repeats nothing, or runs over the list's end.
    #[error("code lengths are repeated out of nothing or beyond the end")]
    Repeat,
    /// The lengths are those of no complete prefix code.
    #[error("the code lengths of the {alphabet} make no prefix code")]
    CodeLens {
        /// Which alphabet.
        alphabet: &'static str,
    },
    /// A code, or a symbol, that means nothing.
    #[error("no symbol has this code")]
    Symbol,
    /// A copy from further back than the window is long.
    #[error("distance {distance} at {position} is beyond the window of {window}")]
    BeyondWindow {
        /// How far back.
        distance: usize,
        /// Length of the window.
        window: usize,
        /// Where in the output.
        position: usize,
    },
    /// A copy from before the start of the output.
    #[error("distance {distance} at {position} is before the start")]
    BeforeStart {
        /// How far back.
        distance: usize,
        /// Where in the output.
        position: usize,
    },
    /// The output is longer than the caller takes.
    #[error("the output is longer than {limit}")]
    TooLong {
        /// What the caller takes.
        limit: usize,
    },
}

impl From<TryFromIntError> for BadDeflate {
    fn from(_: TryFromIntError) -> Self {
        Self::Symbol
    }
}

/// Inflates the stream at the start of `input` for a reader that keeps the last `window` bytes and
/// takes at most `limit` in all. What follows the stream is not looked at.
pub fn inflate(input: &[u8], window: usize, limit: usize) -> Result<Inflated, BadDeflate> {
    let bits = Bits { input, at: 0 };
    let mut inflater = Inflater { bits, out: Vec::new(), window, limit, reach: 0 };
    while !inflater.block()? {}
    let used = inflater.bits.at.div_ceil(8);
    Ok(Inflated { bytes: inflater.out, used, reach: inflater.reach })
}

/// Bits in the order of section 3.1.1: from the least significant one of each byte.
struct Bits<'a> {
    input: &'a [u8],
    /// Bits that were taken.
    at: usize,
}

impl Bits<'_> {
    fn bit(&mut self) -> Result<u16, BadDeflate> {
        let byte = self.input.get(self.at / 8).ok_or(BadDeflate::Truncated)?;
        let bit = byte >> (self.at % 8) & 1;
        self.at += 1;
        Ok(u16::from(bit))
    }

    /// A number of at most 16 bits, the lowest first.
    fn number(&mut self, count: u8) -> Result<u16, BadDeflate> {
        (0..count).try_fold(0, |number, place| Ok(number | self.bit()? << place))
    }

    fn skip_to_byte(&mut self) {
        self.at = self.at.next_multiple_of(8);
    }
}

/// A prefix code of section 3.2.2.
struct Code {
    /// The symbols of each length from 1 on, and the code of the first of them. Their codes are
    /// consecutive.
    lens: Vec<(u32, Vec<usize>)>,
}

impl Code {
    /// The code in which symbol `n` has `lens[n]` bits, or does not occur if that is 0.
    ///
    /// A code must be complete; the exception is a single symbol, which has one bit, or none at all.
    fn new(alphabet: &'static str, lens: &[u8]) -> Result<Self, BadDeflate> {
        let mut code = Self { lens: Vec::new() };
        let mut next = 0;
        for len in 1..=MAX_BITS {
            let symbols = lens.iter().enumerate().filter(|(_, own)| **own == len);
            let symbols: Vec<usize> = symbols.map(|(symbol, _)| symbol).collect();
            let first = next * 2;
            next = first + u32::try_from(symbols.len())?;
            if next > 1 << len {
                return Err(BadDeflate::CodeLens { alphabet });
            }
            code.lens.push((first, symbols));
        }
        let used = lens.iter().filter(|len| **len > 0).count();
        let single = used == 0 || used == 1 && lens.contains(&1);
        if next < 1 << MAX_BITS && !single {
            return Err(BadDeflate::CodeLens { alphabet });
        }
        Ok(code)
    }

    fn symbol(&self, bits: &mut Bits<'_>) -> Result<usize, BadDeflate> {
        let mut code = 0;
        for (first, symbols) in &self.lens {
            code = code << 1 | u32::from(bits.bit()?);
            let index = code.checked_sub(*first).map(usize::try_from).transpose()?;
            if let Some(symbol) = index.and_then(|index| symbols.get(index)) {
                return Ok(*symbol);
            }
        }
        Err(BadDeflate::Symbol)
    }
}

struct Inflater<'a> {
    bits: Bits<'a>,
    out: Vec<u8>,
    window: usize,
    limit: usize,
    reach: usize,
}

impl Inflater<'_> {
    /// One block (section 3.2.3). True if it was the last.
    fn block(&mut self) -> Result<bool, BadDeflate> {
        let last = self.bits.bit()? == 1;
        match self.bits.number(2)? {
            0 => self.stored()?,
            1 => {
                let (literals, distances) = fixed()?;
                self.compressed(&literals, &distances)?;
            }
            2 => {
                let (literals, distances) = self.dynamic()?;
                self.compressed(&literals, &distances)?;
            }
            _ => return Err(BadDeflate::BlockType),
        }
        Ok(last)
    }

    /// Section 3.2.4.
    fn stored(&mut self) -> Result<(), BadDeflate> {
        self.bits.skip_to_byte();
        let (len, complement) = (self.bits.number(16)?, self.bits.number(16)?);
        if len != !complement {
            return Err(BadDeflate::StoredLen { len, complement });
        }
        for _ in 0..len {
            let byte = self.bits.number(8)?;
            self.put(u8::try_from(byte)?)?;
        }
        Ok(())
    }

    /// The codes of a block of section 3.2.7.
    fn dynamic(&mut self) -> Result<(Code, Code), BadDeflate> {
        let literals = usize::from(self.bits.number(5)?) + 257;
        let distances = usize::from(self.bits.number(5)?) + 1;
        for (count, limit) in [(literals, 286), (distances, DISTANCES.len())] {
            if count > limit {
                return Err(BadDeflate::Alphabet { count, limit });
            }
        }
        let mut lens_lens = [0; 19];
        let count = usize::from(self.bits.number(4)?) + 4;
        for symbol in LENS_ORDER.iter().take(count) {
            let len = u8::try_from(self.bits.number(3)?)?;
            *lens_lens.get_mut(*symbol).ok_or(BadDeflate::Symbol)? = len;
        }
        let code = Code::new("code lengths", &lens_lens)?;
        let mut lens = Vec::new();
        while lens.len() < literals + distances {
            let (len, count) = match code.symbol(&mut self.bits)? {
                16 => (*lens.last().ok_or(BadDeflate::Repeat)?, 3 + self.bits.number(2)?),
                17 => (0, 3 + self.bits.number(3)?),
                18 => (0, 11 + self.bits.number(7)?),
                len => (u8::try_from(len)?, 1),
            };
            lens.extend(std::iter::repeat_n(len, usize::from(count)));
        }
        if lens.len() > literals + distances {
            return Err(BadDeflate::Repeat);
        }
        let (literals, distances) = lens.split_at(literals);
        // A block that cannot end is none.
        if literals.get(END) == Some(&0) {
            return Err(BadDeflate::CodeLens { alphabet: "literals" });
        }
        Ok((Code::new("literals", literals)?, Code::new("distances", distances)?))
    }

    /// Section 3.2.5.
    fn compressed(&mut self, literals: &Code, distances: &Code) -> Result<(), BadDeflate> {
        loop {
            let symbol = literals.symbol(&mut self.bits)?;
            if symbol == END {
                return Ok(());
            }
            if let Ok(byte) = u8::try_from(symbol) {
                self.put(byte)?;
                continue;
            }
            let len = self.extended(&LENS, symbol - END - 1)?;
            let distance = distances.symbol(&mut self.bits)?;
            let distance = self.extended(&DISTANCES, distance)?;
            self.copy(distance, len)?;
        }
    }

    /// A length or distance: the base of its symbol, and the number in the extra bits.
    fn extended(&mut self, table: &[(u16, u8)], index: usize) -> Result<usize, BadDeflate> {
        let (base, extra) = *table.get(index).ok_or(BadDeflate::Symbol)?;
        Ok(usize::from(base) + usize::from(self.bits.number(extra)?))
    }

    fn copy(&mut self, distance: usize, len: usize) -> Result<(), BadDeflate> {
        let position = self.out.len();
        let (window, start) = (self.window, position.checked_sub(distance));
        let start = start.ok_or(BadDeflate::BeforeStart { distance, position })?;
        if distance > window {
            return Err(BadDeflate::BeyondWindow { distance, window, position });
        }
        self.reach = self.reach.max(distance);
        // Byte by byte: a copy may read what it writes.
        for from in start..start + len {
            let byte = *self.out.get(from).ok_or(BadDeflate::Symbol)?;
            self.put(byte)?;
        }
        Ok(())
    }

    fn put(&mut self, byte: u8) -> Result<(), BadDeflate> {
        if self.out.len() >= self.limit {
            return Err(BadDeflate::TooLong { limit: self.limit });
        }
        self.out.push(byte);
        Ok(())
    }
}

/// The codes of section 3.2.6.
fn fixed() -> Result<(Code, Code), BadDeflate> {
    let literals = [(8, 144), (9, 112), (7, 24), (8, 8)];
    let literals = literals.iter().flat_map(|(len, count)| std::iter::repeat_n(*len, *count));
    let literals: Vec<u8> = literals.collect();
    // 32 distances, of which the last two must not occur: they are in no table.
    Ok((Code::new("literals", &literals)?, Code::new("distances", &[5; 32])?))
}

/// Longest code.
const MAX_BITS: u8 = 15;
/// Symbol of the end of a block.
const END: usize = 256;
/// In which order the lengths of the code of code lengths stand.
const LENS_ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
/// Lengths: symbols from 257 on, base and extra bits.
const LENS: [(u16, u8); 29] = {
    let mut table = table(3, 8, 4);
    // 258 has a symbol of its own.
    table[28] = (258, 0);
    table
};
/// Distances: base and extra bits.
const DISTANCES: [(u16, u8); 30] = table(1, 4, 2);

/// Each symbol begins where the one before it ends; the first `plain` have no extra bits, then every
/// `step` symbols have one more.
const fn table<const N: usize>(first: u16, plain: usize, step: usize) -> [(u16, u8); N] {
    let mut table = [(0, 0); N];
    let (mut index, mut base, mut extra) = (0, first, 0u8);
    while index < N {
        if index >= plain && (index - plain).is_multiple_of(step) {
            extra += 1;
        }
        table[index] = (base, extra);
        base = base.wrapping_add(1 << extra);
        index += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::DeflateEncoder;
    use proptest::prelude::*;

    use super::*;

    const LARGE: usize = 32 << 10;

    fn deflate(data: &[u8], level: u32) -> Vec<u8> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::new(level));
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    /// Bits from words of zeroes and ones, in the order of the stream.
    fn bits(words: &[&str]) -> Vec<u8> {
        let all: Vec<u8> = words.concat().bytes().map(|bit| bit - b'0').collect();
        let byte = |bits: &[u8]| bits.iter().rev().fold(0, |byte, bit| byte << 1 | bit);
        all.chunks(8).map(byte).collect()
    }

    #[test]
    fn the_tables_are_those_of_the_standard() {
        assert_eq!(LENS[..3], [(3, 0), (4, 0), (5, 0)]);
        assert_eq!((LENS[8], LENS[12], LENS[27]), ((11, 1), (19, 2), (227, 5)));
        assert_eq!(DISTANCES[..5], [(1, 0), (2, 0), (3, 0), (4, 0), (5, 1)]);
        assert_eq!((DISTANCES[6], DISTANCES[29]), ((9, 2), (24577, 13)));
    }

    #[test]
    fn what_another_encoder_writes_is_read() {
        let text: Vec<u8> = (0..40_000u32).flat_map(|n| n.to_string().into_bytes()).collect();
        for data in [&[][..], &[7], &[9; 100_000], &text] {
            for level in [0, 1, 6, 9] {
                let mut packed = deflate(data, level);
                let used = packed.len();
                packed.extend([0xa5; 9]);
                let all = inflate(&packed, LARGE, data.len()).unwrap();
                assert!(all.bytes == data && all.used == used, "level {level}");
            }
        }
    }

    /// 5,000 bytes, of which the first 8 come again at the end, by hand: the distance is 4,992.
    #[test]
    fn a_reach_beyond_the_window_is_named() {
        let mut packed = vec![0, 0x80, 0x13, 0x7f, 0xec];
        packed.extend((0..4992u32).map(|n| (n % 251) as u8));
        // The last block: fixed codes, length 8, distance 4097 + 895 (11 bits), the end.
        packed.extend(bits(&["1", "10", "0000110", "11000", "11111110110", "0000000"]));
        let all = inflate(&packed, LARGE, 5000).unwrap();
        assert_eq!(all.bytes[4992..], [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!((all.reach, all.used), (4992, packed.len()));
        assert!(inflate(&packed, 4992, 5000).is_ok());
        let far = BadDeflate::BeyondWindow { distance: 4992, window: 4991, position: 4992 };
        assert_eq!(inflate(&packed, 4991, 5000), Err(far));
        assert_eq!(inflate(&packed, LARGE, 4999), Err(BadDeflate::TooLong { limit: 4999 }));
    }

    #[test]
    fn each_kind_of_damage_has_its_error() {
        let wrong = |words: &[&str]| inflate(&bits(words), LARGE, 1 << 20).unwrap_err();
        assert_eq!(wrong(&[]), BadDeflate::Truncated);
        assert_eq!(wrong(&["1", "11"]), BadDeflate::BlockType);
        let stored = inflate(&[1, 5, 0, 5, 0], LARGE, 9).unwrap_err();
        assert_eq!(stored, BadDeflate::StoredLen { len: 5, complement: 5 });
        let start = BadDeflate::BeforeStart { distance: 1, position: 0 };
        assert_eq!(wrong(&["1", "10", "0000001", "00000"]), start);
        // Distance 30 does not exist, and length 286 neither.
        assert_eq!(wrong(&["1", "10", "0000001", "11110"]), BadDeflate::Symbol);
        assert_eq!(wrong(&["1", "10", "11000110", "00000"]), BadDeflate::Symbol);
        let alphabet = |count, limit| BadDeflate::Alphabet { count, limit };
        assert_eq!(wrong(&["1", "01", "01111", "00000"]), alphabet(287, 286));
        assert_eq!(wrong(&["1", "01", "00000", "01111"]), alphabet(31, 30));
        let dynamic = ["1", "01", "00000", "00000", "0000"];
        // Code lengths: 16 has one bit, 17 has one; the first repeats nothing.
        let with = |rest: &[&str]| wrong(&[&dynamic[..], rest].concat());
        assert_eq!(with(&["100", "100", "000", "000", "0"]), BadDeflate::Repeat);
        let lens = BadDeflate::CodeLens { alphabet: "code lengths" };
        assert_eq!(with(&["100", "100", "100", "000"]), lens);
        assert_eq!(with(&["100", "010", "000", "000"]), lens);
        // 138 and 120 zeroes: the block has no end.
        let zeroes = ["000", "100", "100", "000", "1", "1111111", "1", "1011011"];
        assert_eq!(with(&zeroes), BadDeflate::CodeLens { alphabet: "literals" });
    }

    proptest! {
        #[test]
        fn any_bytes_end(input in prop::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(all) = inflate(&input, 512, 4096) {
                prop_assert!(all.bytes.len() <= 4096 && all.reach <= 512);
                prop_assert!(all.used <= input.len());
            }
        }

        #[test]
        fn damage_ends(
            data in prop::collection::vec(0u8..5, 1..3000),
            flips in prop::collection::vec(any::<prop::sample::Index>(), 1..4),
        ) {
            let good = deflate(&data, 6);
            prop_assert_eq!(&inflate(&good, LARGE, data.len()).unwrap().bytes, &data);
            let mut bad = good;
            for flip in flips {
                let at = flip.index(bad.len() * 8);
                bad[at / 8] ^= 1 << (at % 8);
            }
            if let Ok(all) = inflate(&bad, LARGE, data.len()) {
                prop_assert!(all.bytes.len() <= data.len());
            }
        }
    }
}
