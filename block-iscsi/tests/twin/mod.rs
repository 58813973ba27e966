//! The allocation map beside its byte-granular twin.

#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

use block_core::ByteRange;
use block_core::range::to_u64;
use block_iscsi::allocmap::{AllocMap, Answer, Contents, PageGrid, PageState, Trust};
use block_testkit::naive::allocmap::{ByteMap, Known};

/// What a map is told.
#[derive(Clone, Debug)]
pub enum Step {
    Update(ByteRange, Contents),
    Resize(u64),
}

/// Bytes of the twin: pages of 4097 bytes, so that nothing is a power of two.
pub const ODD_PAGE: u64 = 4097;
pub const TWIN_LEN: u64 = 6 * ODD_PAGE;

/// After every step the map says of every page what the twin does, and zeroes only where there are zeroes. The first
/// page ends at `origin`, where that is not zero.
pub fn compare(len: u64, origin: u64, trusted: bool, steps: &[Step], reads: &[ByteRange]) {
    // The twin has its first page whole: what is missing of it goes with the start of the LUN.
    let shift = if origin == 0 { 0 } else { ODD_PAGE - origin };
    let shifted = |range: ByteRange| {
        let start = if range.offset() == 0 { 0 } else { range.offset() + shift };
        let end = if range.is_empty() { start } else { range.end() + shift };
        bounds(ByteRange::from_bounds(start, end).unwrap())
    };
    let short = usize::try_from(len + shift).unwrap();
    let page = usize::try_from(ODD_PAGE).unwrap();
    let (trust, mut twin) = if trusted {
        (Trust::Cached, ByteMap::trusted(short, page))
    } else {
        (Trust::Never, ByteMap::untrusted(short, page))
    };
    let mut map = AllocMap::new(len, PageGrid { len: ODD_PAGE, origin }, trust).unwrap();
    for step in steps {
        match step {
            Step::Update(range, contents) => {
                map.update(*range, *contents);
                twin.update(shifted(*range), known(*contents));
            }
            Step::Resize(len) => {
                map.resize(*len).unwrap();
                twin.resize(usize::try_from(len + shift).unwrap());
            }
        }
        assert_eq!(map.pages(), to_u64(twin.pages().len()));
        for (number, page) in (0..).zip(twin.pages()) {
            let expected = match (page.valid, page.allocated) {
                (false, false) => PageState::Unknown,
                (false, true) => PageState::Suspected,
                (true, false) => PageState::Zero,
                (true, true) => PageState::Allocated,
            };
            assert_eq!(map.page_state(number), expected);
        }
        for read in reads {
            if map.answer(*read) == Answer::Zeroes {
                assert!(trusted && twin.is_zero(shifted(*read)), "{read:?}");
            }
        }
    }
}

fn bounds(range: ByteRange) -> std::ops::Range<usize> {
    let usize = |value| usize::try_from(value).unwrap();
    usize(range.offset())..usize(range.end())
}

fn known(contents: Contents) -> Known {
    match contents {
        Contents::Allocated => Known::Data,
        Contents::Zero => Known::Zero,
        Contents::Unknown => Known::Nothing,
    }
}
