//! INQUIRY (SPC-4 6.6): what a logical unit is. Standard data, and the pages of vital
//! product data 00 (which pages there are), 80 (serial number) and 83 (who it is).
//!
//! The pages B0, B1 and B2 are in [`super::limits`] and [`super::provisioning`].

use std::collections::BTreeSet;

use super::wire::{Bytes, text};
use super::{AnswerError, Problem};

/// Supported VPD pages.
pub const PAGE_SUPPORTED: u8 = 0x00;
/// Unit serial number.
pub const PAGE_SERIAL: u8 = 0x80;
/// Device identification.
pub const PAGE_IDENTIFICATION: u8 = 0x83;
/// Block limits.
pub const PAGE_LIMITS: u8 = 0xb0;
/// Block device characteristics.
pub const PAGE_CHARACTERISTICS: u8 = 0xb1;
/// Logical block provisioning.
pub const PAGE_PROVISIONING: u8 = 0xb2;
/// Shortest standard INQUIRY data that is taken (SPC-4 has at least so much).
pub const STANDARD_LEN_MIN: usize = 36;
/// Most designators of page 83 that are kept.
pub const DESIGNATORS_MAX: usize = 64;
/// Longest serial number that is kept, in bytes.
pub const SERIAL_LEN_MAX: usize = 252;

/// Length of what every page starts with.
const PAGE_HEADER_LEN: usize = 4;
const DESIGNATOR_HEADER_LEN: usize = 4;

/// Whether there is a device behind the LUN (PERIPHERAL QUALIFIER).
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Qualifier {
    /// A device is there, or nobody can tell.
    Present,
    /// There could be one, but there is not.
    Absent,
    /// There can be none.
    Impossible,
    /// A code without a meaning, or the vendor's.
    Other(u8),
}

/// Standard INQUIRY data (SPC-4).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inquiry {
    /// Whether there is a device.
    pub qualifier: Qualifier,
    /// PERIPHERAL DEVICE TYPE: 0 is a direct access block device.
    pub device_type: u8,
    /// The medium can be taken out (RMB).
    pub removable: bool,
    /// The version of SPC that the unit claims to follow: 6 is SPC-4.
    pub version: u8,
    /// T10 VENDOR IDENTIFICATION.
    pub vendor: String,
    /// PRODUCT IDENTIFICATION.
    pub product: String,
    /// PRODUCT REVISION LEVEL.
    pub revision: String,
}

impl Inquiry {
    /// Reads standard INQUIRY data.
    pub fn parse(bytes: &[u8]) -> Result<Self, AnswerError> {
        let bytes = Bytes::new("standard INQUIRY data", bytes).first(STANDARD_LEN_MIN)?;
        let peripheral = bytes.u8(0)?;
        let qualifier = match peripheral >> 5 {
            0 => Qualifier::Present,
            1 => Qualifier::Absent,
            3 => Qualifier::Impossible,
            code => Qualifier::Other(code),
        };
        Ok(Self {
            qualifier,
            device_type: peripheral & 0x1f,
            removable: bytes.u8(1)? & 0x80 != 0,
            version: bytes.u8(2)?,
            vendor: text(bytes.slice(8, 8)?),
            product: text(bytes.slice(16, 16)?),
            revision: text(bytes.slice(32, 4)?),
        })
    }

    /// Whether it is a disk: a device of type 0 that is there.
    pub fn is_disk(&self) -> bool {
        self.qualifier == Qualifier::Present && self.device_type == 0
    }
}

/// The content of the VPD page `code`: everything after its four bytes of header.
///
/// A page that was cut by the allocation length is an error that says how long it is.
pub(super) fn page<'a>(
    what: &'static str,
    code: u8,
    bytes: &'a [u8],
) -> Result<Bytes<'a>, AnswerError> {
    let bytes = Bytes::new(what, bytes);
    let found = bytes.u8(1)?;
    if found != code {
        let problem = Problem::Unexpected { expected: code.into() };
        return Err(AnswerError::field("PAGE CODE", found.into(), problem));
    }
    let len = PAGE_HEADER_LEN + usize::from(bytes.u16(2)?);
    Ok(bytes.first(len)?.from(PAGE_HEADER_LEN))
}

/// Which pages there are (page 00, supported VPD pages).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SupportedPages(BTreeSet<u8>);

impl SupportedPages {
    /// Reads page 00.
    pub fn parse(bytes: &[u8]) -> Result<Self, AnswerError> {
        let page = page("VPD page 00", PAGE_SUPPORTED, bytes)?;
        page.pieces(1).map(|code| code.u8(0)).collect::<Result<_, _>>().map(Self)
    }

    /// Whether `page` is there.
    pub fn has(&self, page: u8) -> bool {
        self.0.contains(&page)
    }

    /// All of them, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u8> {
        self.0.iter().copied()
    }
}

/// The unit serial number (page 80), without the spaces around it.
pub fn parse_serial(bytes: &[u8]) -> Result<String, AnswerError> {
    let page = page("VPD page 80", PAGE_SERIAL, bytes)?;
    check_limit("PAGE LENGTH", page.len(), SERIAL_LEN_MAX)?;
    Ok(text(page.slice(0, page.len())?))
}

/// What a designator names (ASSOCIATION).
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Association {
    /// The logical unit.
    Unit,
    /// The target port that was asked.
    Port,
    /// The target device.
    Device,
    /// Reserved.
    Other(u8),
}

/// How a designator was made (DESIGNATOR TYPE).
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum DesignatorKind {
    /// By the vendor, unique to nobody.
    Vendor,
    /// T10 vendor identification, then what the vendor likes.
    T10,
    /// EUI-64.
    Eui64,
    /// Network address authority.
    Naa,
    /// Relative target port identifier.
    RelativePort,
    /// Target port group.
    PortGroup,
    /// Logical unit group.
    UnitGroup,
    /// MD5 logical unit identifier.
    Md5,
    /// SCSI name string; with iSCSI, a name that starts with `iqn.`, `eui.` or `naa.`.
    ScsiName,
    /// By the rules of the protocol.
    Protocol,
    /// Reserved.
    Other(u8),
}

/// A name of a logical unit, of its port, or of its target (page 83, device identification).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Designator {
    /// What it names.
    pub association: Association,
    /// How it was made.
    pub kind: DesignatorKind,
    /// CODE SET: 1 is binary, 2 is ASCII, 3 is UTF-8.
    pub code_set: u8,
    /// The designator; at most 255 bytes.
    pub bytes: Vec<u8>,
}

impl Designator {
    /// Reads page 83.
    pub fn parse_page(bytes: &[u8]) -> Result<Vec<Self>, AnswerError> {
        let mut rest = page("VPD page 83", PAGE_IDENTIFICATION, bytes)?;
        let mut found = Vec::new();
        while rest.len() > 0 {
            check_limit("number of designators", found.len() + 1, DESIGNATORS_MAX)?;
            let len = usize::from(rest.u8(3)?);
            found.push(Self::parse(rest, len)?);
            rest = rest.from(DESIGNATOR_HEADER_LEN + len);
        }
        Ok(found)
    }

    fn parse(bytes: Bytes<'_>, len: usize) -> Result<Self, AnswerError> {
        let kind = bytes.u8(1)?;
        Ok(Self {
            code_set: bytes.u8(0)? & 0x0f,
            association: match kind >> 4 & 0x03 {
                0 => Association::Unit,
                1 => Association::Port,
                2 => Association::Device,
                code => Association::Other(code),
            },
            kind: match kind & 0x0f {
                0 => DesignatorKind::Vendor,
                1 => DesignatorKind::T10,
                2 => DesignatorKind::Eui64,
                3 => DesignatorKind::Naa,
                4 => DesignatorKind::RelativePort,
                5 => DesignatorKind::PortGroup,
                6 => DesignatorKind::UnitGroup,
                7 => DesignatorKind::Md5,
                8 => DesignatorKind::ScsiName,
                9 => DesignatorKind::Protocol,
                code => DesignatorKind::Other(code),
            },
            bytes: bytes.slice(DESIGNATOR_HEADER_LEN, len)?.to_vec(),
        })
    }
}

/// Refuses what would take more memory than anybody needs.
pub(super) fn check_limit(
    field: &'static str,
    count: usize,
    limit: usize,
) -> Result<(), AnswerError> {
    let [count, limit] = [count, limit].map(block_core::range::to_u64);
    if count > limit {
        return Err(AnswerError::field(field, count, Problem::TooLarge { limit }));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with_header(code: u8, content: &[u8]) -> Vec<u8> {
        let len = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&[0, code, len[0], len[1]], content].concat()
    }

    #[test]
    fn standard_data_says_what_the_unit_is() {
        let mut bytes = vec![0, 0x80, 6, 2, 31, 0, 0, 2];
        bytes.extend(b"VENDOR  A disk          1.0 ");
        let inquiry = Inquiry::parse(&bytes).unwrap();
        assert!(inquiry.is_disk() && inquiry.removable);
        assert_eq!((inquiry.vendor.as_str(), inquiry.product.as_str()), ("VENDOR", "A disk"));
        assert_eq!((inquiry.revision.as_str(), inquiry.version), ("1.0", 6));
        for (peripheral, qualifier) in [
            (0x7f, Qualifier::Impossible),
            (0x20, Qualifier::Absent),
            (0xa0, Qualifier::Other(5)),
            (0x05, Qualifier::Present),
        ] {
            bytes[0] = peripheral;
            let inquiry = Inquiry::parse(&bytes).unwrap();
            assert_eq!((inquiry.qualifier, inquiry.is_disk()), (qualifier, false));
        }
        let what = "standard INQUIRY data";
        let truncated = AnswerError::Truncated { what, len: 35, needed: 36 };
        assert_eq!(Inquiry::parse(&bytes[..35]), Err(truncated));
    }

    #[test]
    fn pages_that_are_supported() {
        let bytes = with_header(0, &[0, 0x80, 0xb0]);
        let pages = SupportedPages::parse(&bytes).unwrap();
        assert_eq!(pages.iter().collect::<Vec<_>>(), [0, 0x80, 0xb0]);
        assert!(pages.has(PAGE_LIMITS) && !pages.has(PAGE_PROVISIONING));
    }

    #[test]
    fn another_page_than_asked_for_is_refused() {
        let problem = Problem::Unexpected { expected: 0x80 };
        let refused = AnswerError::field("PAGE CODE", 0x83, problem);
        assert_eq!(parse_serial(&with_header(0x83, b"1")), Err(refused));
    }

    #[test]
    fn a_page_that_was_cut_says_how_long_it_is() {
        let bytes = with_header(0x80, b" 12345");
        assert_eq!(parse_serial(&bytes).unwrap(), "12345");
        let truncated = AnswerError::Truncated { what: "VPD page 80", len: 9, needed: 10 };
        assert_eq!(parse_serial(&bytes[..9]), Err(truncated));
        assert!(parse_serial(&with_header(0x80, &[b'x'; 252])).is_ok());
        assert!(parse_serial(&with_header(0x80, &[b'x'; 253])).is_err());
    }

    #[test]
    fn designators_are_walked_to_the_end_and_no_further() {
        let mut content = vec![0x01, 0x03, 0, 8, 0x60, 1, 2, 3, 4, 5, 6, 7];
        content.extend([0x53, 0x98, 0, 4]);
        content.extend(b"iqn.");
        let found = Designator::parse_page(&with_header(0x83, &content)).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].kind, found[0].association), (DesignatorKind::Naa, Association::Unit));
        assert_eq!(found[0].bytes, [0x60, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(found[1].kind, DesignatorKind::ScsiName);
        assert_eq!((found[1].association, found[1].code_set), (Association::Port, 3));
        content[15] = 5;
        let what = "VPD page 83";
        let truncated = AnswerError::Truncated { what, len: 8, needed: 9 };
        assert_eq!(Designator::parse_page(&with_header(0x83, &content)), Err(truncated));
        let many = |count| Designator::parse_page(&with_header(0x83, &vec![0; count * 4]));
        assert_eq!(many(DESIGNATORS_MAX).unwrap().len(), DESIGNATORS_MAX);
        assert!(many(DESIGNATORS_MAX + 1).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), code: u8) {
            Inquiry::parse(&bytes).ok();
            for code in [code, PAGE_SUPPORTED, PAGE_SERIAL, PAGE_IDENTIFICATION] {
                let page = with_header(code, &bytes);
                SupportedPages::parse(&page).ok();
                parse_serial(&page).ok();
                Designator::parse_page(&page).ok();
            }
        }
    }
}
