//! The shape of requests that the filter asks for, so that the request layer has something to do.

use crate::error::{OpenError, Problem};
use crate::limits::BlockLimits;
use crate::options::Options;
use crate::range::Alignment;

/// One more than the largest value of an option.
const TOO_MUCH: u64 = 1 << 31;

/// What the options ask for; `None`: as the image has it.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Shape {
    align: Option<u64>,
    max_transfer: Option<u64>,
    opt_write_zero: Option<u64>,
    max_write_zero: Option<u64>,
    opt_discard: Option<u64>,
    max_discard: Option<u64>,
}

impl Shape {
    /// Takes the options. Zero is the same as none.
    pub(super) fn take(options: &mut Options) -> Result<Self, OpenError> {
        let mut size = |name| Ok(options.take_size(name)?.filter(|bytes| *bytes != 0));
        Ok(Self {
            align: size("align")?,
            max_transfer: size("max-transfer")?,
            opt_write_zero: size("opt-write-zero")?,
            max_write_zero: size("max-write-zero")?,
            opt_discard: size("opt-discard")?,
            max_discard: size("max-discard")?,
        })
    }

    /// Refuses what does not fit together, on an image of these limits.
    pub(super) fn check(&self, image: BlockLimits) -> Result<(), OpenError> {
        let align = self.align.unwrap_or(1);
        if !align.is_power_of_two() || align >= TOO_MUCH {
            return Err(refused("align", align, Problem::NotPowerOfTwo));
        }
        let block = align.max(image.request_alignment.bytes());
        multiple("max-transfer", self.max_transfer, block)?;
        multiple("opt-write-zero", self.opt_write_zero, block)?;
        let zeroes = self.opt_write_zero.unwrap_or(block).max(block);
        multiple("max-write-zero", self.max_write_zero, zeroes)?;
        multiple("opt-discard", self.opt_discard, block)?;
        let discards = self.opt_discard.unwrap_or(block).max(block);
        multiple("max-discard", self.max_discard, discards)
    }

    /// The limits of the filter on an image of these limits.
    pub(super) fn apply(&self, image: BlockLimits) -> BlockLimits {
        let alignment = |bytes: Option<u64>| bytes.and_then(Alignment::new);
        BlockLimits {
            request_alignment: alignment(self.align).unwrap_or(image.request_alignment),
            max_transfer: self.max_transfer.or(image.max_transfer),
            pwrite_zeroes_alignment: alignment(self.opt_write_zero)
                .or(image.pwrite_zeroes_alignment),
            max_pwrite_zeroes: self.max_write_zero.or(image.max_pwrite_zeroes),
            pdiscard_alignment: alignment(self.opt_discard).or(image.pdiscard_alignment),
            max_pdiscard: self.max_discard.or(image.max_pdiscard),
            ..image
        }
    }

    /// The shortest zero write that is passed on.
    pub(super) fn least_zeroes(&self, image: BlockLimits) -> u64 {
        let limits = self.apply(image);
        let block = limits.request_alignment.bytes();
        self.opt_write_zero.unwrap_or(block).max(block)
    }

    /// The shortest discard that is passed on: `opt-discard` says where pieces are to end, and the ends
    /// of a request are shorter.
    pub(super) fn least_discard(&self, image: BlockLimits) -> u64 {
        self.apply(image).request_alignment.bytes()
    }
}

fn multiple(option: &'static str, value: Option<u64>, of: u64) -> Result<(), OpenError> {
    match value {
        Some(bytes) if bytes >= TOO_MUCH => {
            Err(refused(option, bytes, Problem::Above(TOO_MUCH - 1)))
        }
        Some(bytes) if bytes % of != 0 => Err(refused(option, bytes, Problem::Misaligned(of))),
        _ => Ok(()),
    }
}

fn refused(option: &'static str, bytes: u64, problem: Problem) -> OpenError {
    OpenError::OptionValue { option, value: bytes.to_string(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(text: &[(&str, &str)]) -> Shape {
        let mut options = Options::new();
        for (name, value) in text {
            options.set(*name, *value);
        }
        Shape::take(&mut options).unwrap()
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let image = BlockLimits { request_alignment: Alignment::SECTOR, ..BlockLimits::default() };
        let fits = |text: &[(&str, &str)]| shape(text).check(image).is_ok();
        assert!(fits(&[]) && fits(&[("align", "4k"), ("max-transfer", "64k")]));
        assert!(fits(&[("align", "1"), ("opt-write-zero", "1536"), ("max-write-zero", "3k")]));
        assert!(!fits(&[("align", "3")]) && !fits(&[("align", "2G")]));
        assert!(!fits(&[("max-transfer", "1000")]) && !fits(&[("max-transfer", "2G")]));
        assert!(!fits(&[("opt-write-zero", "1536"), ("max-write-zero", "4k")]));
        assert!(!fits(&[("align", "4k"), ("max-discard", "512")]));
    }

    #[test]
    fn zeroes_below_what_suits_and_discards_below_a_block_are_not_passed_on() {
        let shape = shape(&[("align", "4k"), ("opt-write-zero", "64k"), ("opt-discard", "64k")]);
        let image = BlockLimits::default();
        assert_eq!((shape.least_zeroes(image), shape.least_discard(image)), (65536, 4096));
        assert_eq!(shape.apply(image).request_alignment.bytes(), 4096);
    }
}
