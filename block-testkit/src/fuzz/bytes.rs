//! Choices that are made of an input's bytes.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// An input that is read from its start on; what is beyond its end is zero.
#[derive(Copy, Clone, Debug)]
pub struct Bytes<'a> {
    rest: &'a [u8],
}

impl<'a> Bytes<'a> {
    /// All of `input`.
    pub fn new(input: &'a [u8]) -> Self {
        Self { rest: input }
    }

    /// What has not been read.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let (head, rest) = self.rest.split_at(N.min(self.rest.len()));
        self.rest = rest;
        let mut array = [0; N];
        array[..head.len()].copy_from_slice(head);
        array
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// The next two bytes as a number.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// The next four bytes as a number.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// The next eight bytes as a number.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// A number below `bound`, or zero if that is zero; of one byte where one says enough.
    pub fn below(&mut self, bound: u64) -> u64 {
        let number = match bound {
            0 | 1 => return 0,
            2..=256 => self.byte().into(),
            257..=65_536 => self.u16().into(),
            _ => self.u64(),
        };
        number % bound
    }

    /// One of `items`; it takes two bytes however many there are.
    ///
    /// # Panics
    /// If there are none.
    pub fn choose<'b, T>(&mut self, items: &'b [T]) -> &'b T {
        &items[usize::from(self.u16()) % items.len()]
    }

    /// The lowest bit of the next byte.
    pub fn flag(&mut self) -> bool {
        self.byte() & 1 != 0
    }

    /// The next `len` bytes, or fewer.
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (head, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        head
    }
}

/// Random numbers that are an input's bytes; behind its end, they follow from its last ones.
#[derive(Clone, Debug)]
pub struct Dice {
    bytes: Vec<u8>,
    at: usize,
    more: ChaCha8Rng,
}

impl Dice {
    /// Of `input`.
    pub fn new(input: &[u8]) -> Self {
        let mut seed = [0; 32];
        for (at, byte) in input.iter().rev().take(seed.len()).enumerate() {
            seed[at] = *byte;
        }
        Self { bytes: input.to_vec(), at: 0, more: ChaCha8Rng::from_seed(seed) }
    }
}

impl RngCore for Dice {
    fn next_u32(&mut self) -> u32 {
        let mut bytes = [0; 4];
        self.fill_bytes(&mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn next_u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.fill_bytes(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn fill_bytes(&mut self, to: &mut [u8]) {
        let left = &self.bytes[self.at..];
        let from_input = left.len().min(to.len());
        to[..from_input].copy_from_slice(&left[..from_input]);
        self.at += from_input;
        self.more.fill_bytes(&mut to[from_input..]);
    }
}

/// `count` inputs of up to `most` random bytes, which depend on `seed` only.
pub fn noise(count: usize, most: usize, seed: u64) -> Vec<Vec<u8>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let input = |at: usize| {
        let mut bytes = vec![0; most * (at + 1) / count];
        rng.fill_bytes(&mut bytes);
        bytes
    };
    (0..count).map(input).collect()
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::*;

    #[test]
    fn an_input_is_read_once_and_zero_behind_its_end() {
        let mut bytes = Bytes::new(&[1, 2, 3, 4, 5]);
        assert_eq!((bytes.byte(), bytes.u16(), bytes.below(4)), (1, 0x302, 0));
        assert_eq!((bytes.u32(), bytes.is_empty()), (5, true));
        assert_eq!((bytes.u64(), bytes.flag(), bytes.take(3)), (0, false, &[][..]));
        assert_eq!(*bytes.choose(&["a", "b"]), "a");
    }

    #[test]
    fn dice_show_the_input_and_go_on() {
        let mut dice = Dice::new(&7u32.to_le_bytes());
        assert_eq!(dice.next_u32(), 7);
        let more: [u64; 4] = dice.random();
        assert_ne!(more, [0; 4]);
        let mut again = Dice::new(&7u32.to_le_bytes());
        assert_eq!(again.next_u32(), 7);
        assert_eq!(again.random::<[u64; 4]>(), more);
    }

    #[test]
    fn noise_grows_to_its_length() {
        let lens: Vec<_> = noise(4, 100, 1).iter().map(Vec::len).collect();
        assert_eq!(lens, [25, 50, 75, 100]);
    }
}
