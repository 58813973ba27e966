//! Numbers and times as people read them.

use chrono::{DateTime, Local};

/// A number of bytes with a binary unit and three significant digits: `1.38 MiB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    // The unit changes at 1000, not at 1024, so that three digits always do.
    let mut unit = 0;
    let mut scale: u128 = 1;
    while unit + 1 < UNITS.len() && u128::from(bytes) >= scale * 1000 {
        unit += 1;
        scale <<= 10;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    format!("{} {name}B", three_digits(u128::from(bytes), scale))
}

/// `value / scale` (below 1000) with three significant digits and no zeroes at the end.
fn three_digits(value: u128, scale: u128) -> String {
    let decimals = match value / scale {
        0 => 3,
        1..=9 => 2,
        10..=99 => 1,
        _ => 0,
    };
    let round = |decimals: u32| {
        let power = 10u128.pow(decimals);
        let (quotient, rest) = (value * power / scale, value * power % scale);
        let up = rest * 2 > scale || (rest * 2 == scale && quotient % 2 == 1);
        (quotient + u128::from(up), power)
    };
    let (mut rounded, mut power) = round(decimals);
    if rounded >= 1000 && power > 1 {
        // Rounding up gave a digit more: 9.999 is 10.0.
        (rounded, power) = round(decimals - 1);
    }
    if rounded >= 1000 && power == 1 {
        return "1e+03".to_owned();
    }
    let (whole, fraction) = (rounded / power, rounded % power);
    if fraction == 0 {
        return whole.to_string();
    }
    let width = crate::img::common::decimal_digits(power) - 1;
    format!("{whole}.{fraction:0width$}").trim_end_matches('0').to_owned()
}

/// Seconds since 1970 as a local date and time.
pub(super) fn date(seconds: u64) -> String {
    let utc = i64::try_from(seconds).ok().and_then(|s| DateTime::from_timestamp(s, 0));
    match utc {
        Some(utc) => utc.with_timezone(&Local).format("%Y-%m-%d %H:%M:%S").to_string(),
        // A date that no calendar here can hold.
        None => seconds.to_string(),
    }
}

/// Nanoseconds of a guest's clock as hours, minutes, seconds and milliseconds.
pub(super) fn clock(nanoseconds: u64) -> String {
    let (seconds, rest) = (nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours:04}:{minutes:02}:{:02}.{:03}", seconds % 60, rest / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits_and_a_unit() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "0.977 KiB"),
            (1024, "1 KiB"),
            (1_441_792, "1.38 MiB"),
            (405_504, "396 KiB"),
            (1_380_352, "1.32 MiB"),
            (10 << 20, "10 MiB"),
            (1_023_488, "1e+03 KiB"),
            (1_023_999, "1e+03 KiB"),
            (1_024_000, "0.977 MiB"),
            (1023 << 20, "0.999 GiB"),
            (1 << 60, "1 EiB"),
            (u64::MAX, "16 EiB"),
            (10_480_000, "9.99 MiB"),
            (10_484_999, "10 MiB"),
        ];
        for (bytes, expect) in cases {
            assert_eq!(size(bytes), expect, "{bytes}");
        }
    }

    #[test]
    fn clocks_count_hours() {
        assert_eq!(clock(0), "0000:00:00.000");
        assert_eq!(clock(3_661_002_000_000), "0001:01:01.002");
    }
}
