//! MODE SENSE (SPC-4; the parameters of disks: SBC-3): is the medium write protected, does the unit
//! know DPO and FUA, does it have a write cache?

use super::AnswerError;
use super::wire::Bytes;

const PAGE_CACHING: u8 = 0x08;
const PAGE_CONTROL: u8 = 0x0a;
const PAGE_ALL: u8 = 0x3f;
/// The page is one of several with its code (SPF), and has two more bytes of header.
const SUBPAGE_FORMAT: u8 = 0x40;

/// A mode page to ask for.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum ModePage {
    /// Caching (SBC-3).
    Caching,
    /// Control (SPC-4).
    Control,
    /// All pages that there are.
    All,
}

impl ModePage {
    /// PAGE CODE.
    pub fn code(self) -> u8 {
        match self {
            Self::Caching => PAGE_CACHING,
            Self::Control => PAGE_CONTROL,
            Self::All => PAGE_ALL,
        }
    }
}

/// The caching page.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct CachingPage {
    /// Writes may end before the medium has them (WCE).
    pub write_cache: bool,
    /// Reads are not answered from the cache (RCD).
    pub read_cache_disabled: bool,
}

/// The control page.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct ControlPage {
    /// Sense data comes in descriptor format (D_SENSE).
    pub descriptor_sense: bool,
    /// Somebody has write protected the unit by this page (SWP).
    pub software_write_protect: bool,
}

/// An answer to MODE SENSE.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct ModeData {
    /// The medium cannot be written (WP).
    pub write_protected: bool,
    /// DPO and FUA are known (DPOFUA).
    pub dpofua: bool,
    /// The caching page, if it is among the pages.
    pub caching: Option<CachingPage>,
    /// The control page, if it is among the pages.
    pub control: Option<ControlPage>,
}

impl ModeData {
    /// Reads the answer to MODE SENSE (6).
    pub fn parse6(bytes: &[u8]) -> Result<Self, AnswerError> {
        let bytes = Bytes::new("MODE SENSE (6) data", bytes);
        let len = usize::from(bytes.u8(0)?) + 1;
        let descriptors = usize::from(bytes.u8(3)?);
        Self::parse(bytes.first(len)?, bytes.u8(2)?, 4 + descriptors)
    }

    /// Reads the answer to MODE SENSE (10).
    pub fn parse10(bytes: &[u8]) -> Result<Self, AnswerError> {
        let bytes = Bytes::new("MODE SENSE (10) data", bytes);
        let len = usize::from(bytes.u16(0)?) + 2;
        let descriptors = usize::from(bytes.u16(6)?);
        Self::parse(bytes.first(len)?, bytes.u8(3)?, 8 + descriptors)
    }

    /// The pages begin at `start`. DEVICE-SPECIFIC PARAMETER is that of SBC-3.
    fn parse(bytes: Bytes<'_>, specific: u8, start: usize) -> Result<Self, AnswerError> {
        let mut data = Self {
            write_protected: specific & 0x80 != 0,
            dpofua: specific & 0x10 != 0,
            caching: None,
            control: None,
        };
        bytes.slice(0, start)?;
        let mut rest = bytes.from(start);
        while rest.len() > 0 {
            let head = rest.u8(0)?;
            let page_len = if head & SUBPAGE_FORMAT == 0 {
                let len = 2 + usize::from(rest.u8(1)?);
                data.keep(head & 0x3f, rest.first(len)?)?;
                len
            } else {
                let len = 4 + usize::from(rest.u16(2)?);
                rest.first(len)?;
                len
            };
            rest = rest.from(page_len);
        }
        Ok(data)
    }

    fn keep(&mut self, code: u8, page: Bytes<'_>) -> Result<(), AnswerError> {
        match code {
            PAGE_CACHING => {
                let flags = page.u8(2)?;
                self.caching = Some(CachingPage {
                    write_cache: flags & 0x04 != 0,
                    read_cache_disabled: flags & 0x01 != 0,
                });
            }
            PAGE_CONTROL => {
                self.control = Some(ControlPage {
                    descriptor_sense: page.u8(2)? & 0x04 != 0,
                    software_write_protect: page.u8(4)? & 0x08 != 0,
                });
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A caching page, a page with subpages, a control page.
    const PAGES: [u8; 17] = [0x88, 2, 0x05, 0, 0x5a, 1, 0, 1, 9, 0x0a, 6, 0x04, 0, 0x08, 0, 0, 0];

    fn answer6(specific: u8, descriptors: u8, pages: &[u8]) -> Vec<u8> {
        let len = u8::try_from(3 + usize::from(descriptors) + pages.len()).unwrap();
        let mut bytes = vec![len, 0, specific, descriptors];
        bytes.resize(4 + usize::from(descriptors), 0xff);
        bytes.extend(pages);
        bytes
    }

    fn answer10(specific: u8, descriptors: u8, pages: &[u8]) -> Vec<u8> {
        let len = u8::try_from(6 + usize::from(descriptors) + pages.len()).unwrap();
        let mut bytes = vec![0, len, 0, specific, 0, 0, 0, descriptors];
        bytes.resize(8 + usize::from(descriptors), 0xff);
        bytes.extend(pages);
        bytes
    }

    #[test]
    fn pages_are_found_after_block_descriptors_and_subpages() {
        let found = ModeData {
            write_protected: true,
            dpofua: true,
            caching: Some(CachingPage { write_cache: true, read_cache_disabled: true }),
            control: Some(ControlPage { descriptor_sense: true, software_write_protect: true }),
        };
        for descriptors in [0, 8, 16] {
            assert_eq!(ModeData::parse6(&answer6(0x90, descriptors, &PAGES)), Ok(found));
            assert_eq!(ModeData::parse10(&answer10(0x90, descriptors, &PAGES)), Ok(found));
        }
        let none = ModeData::parse6(&answer6(0, 0, &[])).unwrap();
        assert_eq!((none.write_protected, none.dpofua, none.caching), (false, false, None));
    }

    #[test]
    fn lengths_that_lead_out_of_the_data_are_errors() {
        let whole = answer6(0, 0, &PAGES);
        let what = "MODE SENSE (6) data";
        let truncated = AnswerError::Truncated { what, len: 20, needed: 21 };
        assert_eq!(ModeData::parse6(&whole[..20]), Err(truncated));
        assert!(ModeData::parse6(&[3, 0, 0, 200]).is_err());
        assert!(ModeData::parse6(&answer6(0, 0, &[0x08, 3, 0, 0])).is_err());
        assert!(ModeData::parse6(&answer6(0, 0, &[0x08, 0])).is_err());
        assert!(ModeData::parse6(&answer6(0, 0, &[0x48, 0, 0xff, 0xff])).is_err());
        assert!(ModeData::parse10(&[0, 6, 0, 0, 0, 0, 0xff, 0xff]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            ModeData::parse6(&bytes).ok();
            ModeData::parse10(&bytes).ok();
            ModeData::parse6(&answer6(0, 0, &bytes)).ok();
        }
    }
}
