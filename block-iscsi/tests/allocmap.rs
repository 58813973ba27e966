//! The allocation map against its byte-granular twin, and the vectors that describe it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, and these helpers run in tests only"
)]

mod twin;

use block_core::ByteRange;
use block_iscsi::allocmap::{
    AllocMap, Answer, Contents, MapError, PageGrid, PageState, Run, Trust,
};
use proptest::prelude::*;
use twin::{ODD_PAGE, Step, TWIN_LEN, compare};

/// The vectors count in pages of 8 sectors on a LUN of 36, so that the fifth page is partial.
const SECTOR: u64 = 512;
const PAGE: u64 = 8 * SECTOR;
const LEN: u64 = 36 * SECTOR;

fn sectors(start: u64, end: u64) -> ByteRange {
    ByteRange::from_bounds(start * SECTOR, end * SECTOR).unwrap()
}

fn show(map: &AllocMap) -> String {
    let state = |number| match map.page_state(number) {
        PageState::Unknown => '?',
        PageState::Suspected => 'a',
        PageState::Zero => '0',
        PageState::Allocated => 'A',
    };
    (0..map.pages()).map(state).collect()
}

/// A map in which `range` was updated to `contents` first.
fn starting(range: ByteRange, contents: Contents) -> AllocMap {
    let mut map = AllocMap::new(LEN, PageGrid::new(PAGE), Trust::Cached).unwrap();
    map.update(range, contents);
    map
}

#[test]
fn updates_claim_whole_pages_only() {
    use Contents::{Allocated, Unknown, Zero};
    let four = sectors(0, 32);
    let cases = [
        (Unknown, "?????", sectors(0, 36), Zero, "00000"),
        (Zero, "0000?", sectors(8, 16), Allocated, "0A00?"),
        (Zero, "0000?", sectors(10, 14), Allocated, "0A00?"),
        (Zero, "0000?", sectors(6, 10), Allocated, "AA00?"),
        (Allocated, "AAAA?", sectors(10, 14), Zero, "AAAA?"),
        (Allocated, "AAAA?", sectors(6, 10), Unknown, "aaAA?"),
        (Zero, "0000?", sectors(6, 10), Unknown, "??00?"),
        (Allocated, "AAAA?", sectors(6, 18), Unknown, "a?aA?"),
        (Zero, "0000?", sectors(32, 36), Allocated, "0000A"),
        (Zero, "0000?", sectors(32, 35), Allocated, "0000a"),
        (Zero, "0000?", sectors(8, 8), Allocated, "0000?"),
        (Zero, "0000?", sectors(40, 50), Allocated, "0000?"),
    ];
    for (start, before, range, contents, after) in cases {
        let mut map = starting(four, start);
        assert_eq!(show(&map), before);
        map.update(range, contents);
        assert_eq!(show(&map), after, "{before} {contents:?} {range}");
    }
}

#[test]
fn a_range_inside_a_page_changes_no_other_page() {
    // Bit tricks on a count of minus one pages set 63 bits here once.
    for page in [0, 1, 63, 64, 65, 127, 128] {
        let mut map = AllocMap::new(200 * PAGE, PageGrid::new(PAGE), Trust::Cached).unwrap();
        let inside = sectors(page * 8 + 1, page * 8 + 2);
        map.update(inside, Contents::Zero);
        assert_eq!(show(&map), "?".repeat(200));
        map.update(inside, Contents::Allocated);
        assert_eq!(show(&map).matches('?').count(), 199);
        assert_eq!(map.page_state(page), PageState::Suspected);
    }
}

#[test]
fn reads_are_answered_from_known_pages() {
    let map = starting(sectors(0, 32), Contents::Zero);
    assert_eq!(map.answer(sectors(1, 7)), Answer::Zeroes);
    assert_eq!(map.answer(sectors(0, 32)), Answer::Zeroes);
    assert_eq!(map.answer(sectors(30, 34)), Answer::Ask);
    assert_eq!(map.answer(sectors(30, 40)), Answer::Read);
    assert_eq!(map.answer(sectors(8, 8)), Answer::Read);
    let map = starting(sectors(0, 9), Contents::Allocated);
    assert_eq!(map.answer(sectors(7, 20)), Answer::Read);
    assert_eq!(map.answer(sectors(16, 20)), Answer::Ask);
}

#[test]
fn an_untrusted_map_never_says_zeroes() {
    let mut map = AllocMap::new(LEN, PageGrid::new(PAGE), Trust::Never).unwrap();
    map.update(sectors(0, 36), Contents::Zero);
    assert_eq!(map.answer(sectors(0, 36)), Answer::Ask);
    map.set_trust(Trust::Cached);
    assert_eq!(map.answer(sectors(0, 36)), Answer::Ask);
    map.update(sectors(0, 36), Contents::Zero);
    assert_eq!(map.answer(sectors(0, 36)), Answer::Zeroes);
    map.set_trust(Trust::Never);
    assert_eq!(map.answer(sectors(0, 36)), Answer::Ask);
    map.forget();
    assert_eq!(show(&map), "?????");
}

#[test]
fn sizes_without_a_map_are_refused() {
    let new =
        |len, page| AllocMap::new(len, PageGrid::new(page), Trust::Cached).map(|map| map.pages());
    for page in [0, 512, 4095, (16 << 20) + 1] {
        assert_eq!(new(1 << 30, page), Err(MapError::Page { page }));
    }
    assert_eq!(new((1 << 44) - 4096, 4096), Ok((1 << 32) - 1));
    let (len, page) = (1 << 44, 4096);
    assert_eq!(new(len, page), Err(MapError::TooLong { len, page }));
    let mut map = AllocMap::new(LEN, PageGrid::new(PAGE), Trust::Cached).unwrap();
    assert_eq!(map.resize(len), Err(MapError::TooLong { len, page }));
    assert_eq!(map.len(), LEN);
}

#[test]
fn the_largest_map_is_small_while_it_is_uniform() {
    let len = (1 << 44) - 4096;
    let mut map = AllocMap::new(len, PageGrid::new(4096), Trust::Cached).unwrap();
    let all = ByteRange::up_to(len);
    map.update(all, Contents::Zero);
    assert_eq!(map.answer(all), Answer::Zeroes);
    map.update(ByteRange::new(len - 1, 1).unwrap(), Contents::Allocated);
    assert_eq!(map.answer(all), Answer::Read);
}

#[test]
fn pages_may_begin_anywhere() {
    let page = PageGrid { len: PAGE, origin: 3 * SECTOR };
    let mut map = AllocMap::new(LEN, page, Trust::Cached).unwrap();
    // Pages of 3, 8, 8, 8, 8 and 1 sectors.
    assert_eq!(map.pages(), 6);
    map.update(sectors(0, 11), Contents::Zero);
    assert_eq!(show(&map), "00????");
    map.update(sectors(12, 27), Contents::Zero);
    assert_eq!(show(&map), "00?0??");
    map.update(sectors(2, 3), Contents::Allocated);
    assert_eq!(show(&map), "A0?0??");
    map.update(sectors(35, 36), Contents::Zero);
    assert_eq!(show(&map), "A0?0?0");
    assert_eq!(map.pages_around(sectors(10, 12)), sectors(3, 19));
    assert_eq!(map.pages_around(sectors(0, 1)), sectors(0, 3));
    assert_eq!(map.pages_within(sectors(2, 30)), sectors(3, 27));
    assert_eq!(map.pages_within(sectors(0, 36)), sectors(0, 36));
    assert!(map.pages_within(sectors(4, 18)).is_empty());
    for origin in [PAGE, PAGE + 1] {
        let refused = AllocMap::new(LEN, PageGrid { len: PAGE, origin }, Trust::Cached);
        assert_eq!(refused, Err(MapError::Origin { page: PAGE, origin }));
    }
}

#[test]
fn suspicion_costs_a_read_and_claims_nothing() {
    let mut map = starting(sectors(0, 32), Contents::Zero);
    map.suspect(sectors(7, 9));
    assert_eq!(show(&map), "AA00?");
    map.suspect(sectors(33, 34));
    assert_eq!(show(&map), "AA00a");
    assert_eq!(map.answer(sectors(34, 36)), Answer::Read);
    map.suspect(sectors(8, 8));
    assert_eq!(show(&map), "AA00a");
}

#[test]
fn runs_end_where_something_else_is_known() {
    let mut map = starting(sectors(8, 36), Contents::Zero);
    map.update(sectors(16, 20), Contents::Allocated);
    map.update(sectors(24, 33), Contents::Allocated);
    assert_eq!(show(&map), "?0AAA");
    let run = |zero, end| Some(Run { zero, end: end * SECTOR });
    assert_eq!(map.run(0), None);
    assert_eq!(map.run(9 * SECTOR), run(true, 16));
    assert_eq!(map.run(16 * SECTOR), run(false, 36));
    assert_eq!(map.run(36 * SECTOR), None);
    map.update(sectors(25, 26), Contents::Unknown);
    assert_eq!(map.run(16 * SECTOR), run(false, 24));
    // Over the borders of what the sets are made of.
    let len = 400_000 * PAGE;
    let mut map = AllocMap::new(len, PageGrid::new(PAGE), Trust::Cached).unwrap();
    map.update(ByteRange::up_to(len), Contents::Zero);
    assert_eq!(map.run(5), Some(Run { zero: true, end: len }));
    map.update(ByteRange::from_bounds(65_530 * PAGE, 200_000 * PAGE).unwrap(), Contents::Allocated);
    assert_eq!(map.run(5), Some(Run { zero: true, end: 65_530 * PAGE }));
    assert_eq!(map.run(65_530 * PAGE), Some(Run { zero: false, end: 200_000 * PAGE }));
}

/// Ranges whose ends are mostly at, or one off, the border of a page.
fn ranges() -> impl Strategy<Value = ByteRange> {
    let end = || {
        prop_oneof![
            4 => (0..8u64, -1..=1i64)
                .prop_map(|(page, by)| (page * ODD_PAGE).saturating_add_signed(by)),
            1 => 0..TWIN_LEN + ODD_PAGE,
        ]
    };
    (end(), end()).prop_map(|(a, b)| ByteRange::from_bounds(a.min(b), a.max(b)).unwrap())
}

fn steps() -> impl Strategy<Value = Step> {
    let contents = prop::sample::select(vec![
        Contents::Allocated,
        Contents::Zero,
        Contents::Zero,
        Contents::Unknown,
    ]);
    prop_oneof![
        8 => (ranges(), contents).prop_map(|(range, contents)| Step::Update(range, contents)),
        1 => (TWIN_LEN / 2..TWIN_LEN).prop_map(Step::Resize),
        1 => (3..6u64).prop_map(|pages| Step::Resize(pages * ODD_PAGE)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_map_is_its_twin_and_claims_no_more_than_the_truth(
        len in TWIN_LEN / 2..TWIN_LEN,
        origin in prop_oneof![Just(0), 1..ODD_PAGE],
        trusted in prop::bool::weighted(0.8),
        steps in prop::collection::vec(steps(), 1..12),
        reads in prop::collection::vec(ranges(), 8),
    ) {
        compare(len, origin, trusted, &steps, &reads);
    }
}
