//! A dirty bitmap and its slow twin, compared step by step.

#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

use block_core::ByteRange;
use block_core::dirty::{DirtyBitmap, Granularity};
use block_testkit::model::bitmap::BitmapModel;

/// What is done to a bitmap. Ranges are relative to a base that the test chooses.
#[derive(Clone, Debug)]
pub enum Step {
    Set(ByteRange),
    Reset(ByteRange),
    Clear,
    Truncate(u64),
    Merge { granularity: u64, areas: Vec<ByteRange> },
}

/// Longest disk in bytes.
pub const MOST: u64 = 20_000;

pub fn bitmap(granularity: u64, len: u64) -> DirtyBitmap {
    DirtyBitmap::new(None, Granularity::new(granularity).unwrap(), len).unwrap()
}

/// The steps on a bitmap and on the model, compared after each. Everything happens behind `base`,
/// which is a multiple of every granularity: near the borders of the compressed containers.
pub fn compare(granularity: u64, base: u64, len: u64, steps: &[Step], probes: &[(ByteRange, u64)]) {
    let moved = |range: ByteRange| range.shifted(base).unwrap();
    let mut real = bitmap(granularity, base + len);
    let mut model = BitmapModel::new(granularity, len);
    for step in steps {
        match step {
            Step::Set(range) => {
                real.set(moved(*range)).unwrap();
                model.set(*range);
            }
            Step::Reset(range) => {
                real.reset(moved(*range)).unwrap();
                model.reset(*range);
            }
            Step::Clear => {
                real.clear().unwrap();
                model.clear();
            }
            Step::Truncate(len) => {
                real.truncate(base + len);
                model.truncate(*len);
            }
            Step::Merge { granularity, areas } => {
                let mut other = bitmap(*granularity, real.len());
                let mut other_model = BitmapModel::new(*granularity, model.len());
                for area in areas {
                    other.set(moved(*area)).unwrap();
                    other_model.set(*area);
                }
                real.merge(&other).unwrap();
                model.merge(&other_model);
            }
        }
        let areas: Vec<_> = model.areas().into_iter().map(moved).collect();
        assert_eq!(real.areas().collect::<Vec<_>>(), areas, "after {step:?}");
        assert_eq!(real.count(), model.count());
        for (range, max_len) in probes {
            let at = range.offset();
            let expected = |found: Option<u64>| found.map(|at| at + base);
            assert_eq!(real.contains(base + at), model.contains(at), "byte {at:#x}");
            assert_eq!(real.next_dirty(base + at), expected(model.next_dirty(at)));
            assert_eq!(real.next_zero(base + at), expected(model.next_zero(at)));
            let area = model.next_dirty_area(*range, *max_len).map(moved);
            assert_eq!(real.next_dirty_area(moved(*range), *max_len), area, "{range} {max_len}");
        }
    }
}
