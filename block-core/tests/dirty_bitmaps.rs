//! Dirty bitmaps against their slow twin, and the states that they can be in.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod dirty_support;

use block_core::ByteRange;
use block_core::dirty::{BitmapError, DirtyBitmap, DirtyBitmaps, Granularity};
use block_testkit::model::bitmap::BitmapModel;
use dirty_support::{MOST, Step, bitmap, compare};
use proptest::prelude::*;

fn offset() -> impl Strategy<Value = u64> {
    let edge = (0..40u64, 0..3u64).prop_map(|(n, delta)| (n * 512 + delta).saturating_sub(1));
    prop_oneof![3 => edge, 1 => 0..MOST + 100]
}

fn range() -> impl Strategy<Value = ByteRange> {
    (offset(), offset()).prop_map(|(a, b)| ByteRange::from_bounds(a.min(b), a.max(b)).unwrap())
}

fn granularity() -> impl Strategy<Value = u64> {
    proptest::sample::select(vec![512u64, 1024, 4096, 65_536])
}

fn step() -> impl Strategy<Value = Step> {
    let merge = (granularity(), proptest::collection::vec(range(), 0..4))
        .prop_map(|(granularity, areas)| Step::Merge { granularity, areas });
    prop_oneof![
        6 => range().prop_map(Step::Set),
        4 => range().prop_map(Step::Reset),
        1 => Just(Step::Clear),
        1 => offset().prop_map(Step::Truncate),
        2 => merge,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 120,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_bitmap_equals_its_slow_twin(
        granularity in granularity(),
        // The borders of a container (2^16 granules of 512 bytes) and of an inner bitmap (2^32).
        base in proptest::sample::select(vec![0u64, (512 << 16) - 65_536, (512 << 32) - 65_536]),
        len in offset(),
        steps in proptest::collection::vec(step(), 1..12),
        probes in proptest::collection::vec((range(), 0..5000u64), 1..4),
    ) {
        compare(granularity, base, len, &steps, &probes);
    }

    /// Freezing changes where marks go, and nothing else: however it ends, no mark is lost.
    #[test]
    fn no_mark_is_lost_while_a_job_works(
        before in proptest::collection::vec(range(), 0..4),
        done in proptest::collection::vec(range(), 0..4),
        during in proptest::collection::vec(range(), 0..4),
        len in 1..MOST,
        cut in proptest::option::of(offset()),
        succeeds: bool,
    ) {
        let mut real = bitmap(512, len);
        let (mut frozen, mut successor) = (BitmapModel::new(512, len), BitmapModel::new(512, len));
        for range in &before {
            real.mark(*range);
            frozen.set(*range);
        }
        real.create_successor().unwrap();
        for range in &during {
            real.mark(*range);
            successor.set(*range);
        }
        for range in &done {
            real.reset(*range).unwrap();
            frozen.reset(*range);
        }
        prop_assert_eq!(real.areas().collect::<Vec<_>>(), frozen.areas(), "frozen for guests");
        if let Some(len) = cut {
            real.truncate(len);
            frozen.truncate(len);
            successor.truncate(len);
        }
        if succeeds {
            real.abdicate().unwrap();
        } else {
            real.reclaim().unwrap();
            successor.merge(&frozen);
        }
        prop_assert_eq!(real.areas().collect::<Vec<_>>(), successor.areas());
        prop_assert!(!real.is_busy() && real.is_recording());
    }
}

#[test]
fn a_disk_that_is_dirty_all_over_takes_little_time_and_memory() {
    // 1 PiB: as single bits it would be 2 GiB.
    let len = 1u64 << 50;
    let mut real = bitmap(65_536, len);
    real.set(ByteRange::up_to(len)).unwrap();
    assert_eq!((real.count(), real.next_zero(0)), (len, None));
    assert_eq!(real.areas().count(), 1);
    // A job takes it a piece at a time from anywhere without walking the rest.
    for start in (0..len).step_by(1 << 40) {
        let rest = ByteRange::from_bounds(start, len).unwrap();
        let area = real.next_dirty_area(rest, 1 << 20).unwrap();
        assert_eq!(area, rest.first(1 << 20));
        real.reset(area).unwrap();
    }
    assert_eq!(real.count(), len - (1024 << 20));
}

#[test]
fn a_busy_bitmap_is_not_changed_by_users() {
    let name = Some("b");
    let mut real = DirtyBitmap::new(name, Granularity::DEFAULT, 1 << 20).unwrap();
    let busy = || Err(BitmapError::Busy { name: "b".to_owned() });
    real.create_successor().unwrap();
    let other = bitmap(512, 1 << 20);
    assert_eq!(real.enable(), busy());
    assert_eq!(real.disable(), busy());
    assert_eq!(real.clear(), busy());
    assert_eq!(real.merge(&other), busy());
    assert_eq!(real.lock(), busy());
    assert_eq!(real.check_removable(), busy());
    assert_eq!(real.create_successor(), Err(BitmapError::HasSuccessor { name: "b".to_owned() }));
    real.unlock();
    assert!(real.is_busy(), "a frozen bitmap stays busy");
    real.abdicate().unwrap();
    assert_eq!(real.abdicate(), Err(BitmapError::NoSuccessor { name: "b".to_owned() }));
    assert_eq!(real.reclaim(), Err(BitmapError::NoSuccessor { name: "b".to_owned() }));
    real.lock().unwrap();
    assert_eq!(real.create_successor(), busy());
    real.mark(ByteRange::up_to(1));
    assert_eq!(real.count(), 65_536, "a locked bitmap records");
    real.unlock();
    real.clear().unwrap();
    assert_eq!(real.count(), 0);
}

#[test]
fn what_cannot_be_trusted_or_written_does_not_record() {
    let range = ByteRange::up_to(512);
    let mut real = DirtyBitmap::new(Some("b"), Granularity::MIN, 4096).unwrap();
    real.disable().unwrap();
    real.mark(range);
    assert_eq!(real.count(), 0);
    real.set(range).unwrap();
    assert_eq!(real.count(), 512, "its owner may set bits");
    real.enable().unwrap();
    real.make_read_only();
    let read_only = Err(BitmapError::ReadOnly { name: "b".to_owned() });
    assert_eq!((real.is_recording(), real.reset(range)), (false, read_only.clone()));
    assert_eq!((real.clear(), real.check_removable()), (read_only.clone(), read_only));
    real.make_writable();
    real.make_inconsistent();
    let inconsistent = Err(BitmapError::Inconsistent { name: "b".to_owned() });
    assert_eq!((real.is_recording(), real.enable()), (false, inconsistent.clone()));
    assert_eq!(bitmap(512, 4096).merge(&real), inconsistent);
    assert_eq!(real.check_removable(), Ok(()), "it can be removed");
}

#[test]
fn names_and_persistence() {
    let new = |name: &str| DirtyBitmap::new(Some(name), Granularity::MIN, 512);
    assert_eq!(new("").unwrap_err(), BitmapError::EmptyName);
    assert!(new(&"x".repeat(1023)).is_ok());
    assert_eq!(new(&"x".repeat(1024)).unwrap_err(), BitmapError::NameTooLong { len: 1024 });
    // Bytes count, not characters.
    assert_eq!(new(&"é".repeat(512)).unwrap_err(), BitmapError::NameTooLong { len: 1024 });
    let mut real = new("b").unwrap();
    real.make_persistent().unwrap();
    assert!(real.is_persistent() && real.info().persistent);
    real.make_transient();
    assert!(!real.is_persistent());
    assert_eq!(bitmap(512, 512).make_persistent(), Err(BitmapError::Anonymous));
}

#[test]
fn a_disk_that_outgrows_its_bitmap_makes_it_inconsistent() {
    let set = DirtyBitmaps::new(1 << 20);
    let id = set.create(Some("b"), Granularity::MIN).unwrap();
    assert!(set.is_recording());
    set.truncate(512 << 40);
    assert!(set.with(id, DirtyBitmap::is_inconsistent).unwrap());
    assert!(!set.is_recording());
    let fits = set.create(Some("c"), Granularity::MAX).unwrap();
    assert_eq!(set.with(fits, DirtyBitmap::len), Ok(512 << 40));
}

#[test]
fn a_set_keeps_names_apart_and_says_whether_anything_records() {
    let set = DirtyBitmaps::new(4096);
    assert!(!set.is_recording());
    let a = set.create(Some("a"), Granularity::MIN).unwrap();
    let again = set.create(Some("a"), Granularity::DEFAULT);
    assert_eq!(again, Err(BitmapError::Exists { name: "a".to_owned() }));
    let job = set.create(None, Granularity::DEFAULT).unwrap();
    let other_job = set.create(None, Granularity::DEFAULT).unwrap();
    assert_ne!(job, other_job);
    assert_eq!((set.find("a"), set.find("b")), (Some(a), None));
    set.mark(ByteRange::new(1000, 100).unwrap());
    assert_eq!(set.with(a, DirtyBitmap::count), Ok(1024));
    for id in [a, job, other_job] {
        assert!(set.is_recording());
        set.update(id, DirtyBitmap::disable).unwrap().unwrap();
    }
    assert!(!set.is_recording());
    set.mark(ByteRange::up_to(4096));
    assert_eq!(set.with(a, DirtyBitmap::count), Ok(1024));
    let removed = set.remove(a).unwrap();
    assert_eq!(set.remove(a), Err(BitmapError::NotFound));
    let back = set.insert(removed).unwrap();
    assert_ne!(back, a, "an id is never used again");
    assert_eq!(set.list().len(), 3);
    let short = bitmap(512, 512);
    let differs = BitmapError::LengthDiffers { target_len: 4096, source_len: 512 };
    assert_eq!(set.insert(short), Err(differs));
}

#[test]
fn a_merge_of_several_is_made_of_all_or_of_none() {
    let set = DirtyBitmaps::new(65_536);
    let create = |name| set.create(Some(name), Granularity::MIN).unwrap();
    let (target, a, b) = (create("target"), create("a"), create("b"));
    let range = |start| ByteRange::new(start, 512).unwrap();
    set.update(a, |bitmap| bitmap.set(range(512))).unwrap().unwrap();
    set.update(b, |bitmap| bitmap.set(range(8192))).unwrap().unwrap();
    set.update(b, DirtyBitmap::make_inconsistent).unwrap();
    assert!(set.merge(target, &[a, b]).is_err());
    assert_eq!(set.with(target, DirtyBitmap::count), Ok(0));
    assert_eq!(set.merge(target, &[a, target, a]), Ok(()));
    assert_eq!(set.with(target, DirtyBitmap::count), Ok(512));
}

#[test]
fn reports_of_growth_may_come_in_any_order() {
    let set = DirtyBitmaps::new(1024);
    let id = set.create(None, Granularity::MIN).unwrap();
    set.grow(8192);
    set.mark(ByteRange::new(4096, 4096).unwrap());
    set.grow(4096);
    assert_eq!(set.with(id, |bitmap| (bitmap.len(), bitmap.count())), Ok((8192, 4096)));
}
