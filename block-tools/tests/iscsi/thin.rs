//! Thin units: what has no place keeps none, and what is known to be zero is neither written nor read.

use super::{MIB, Place, UNMAP, WRITE, WRITE_SAME, count, thin};

/// The source's length in MiB.
const LEN: u64 = 256;
/// Where it holds data, each time one MiB.
const DATA: [u64; 4] = [0, 17, 100, 255];

/// A thin unit, and a sparse file.
fn place() -> (Place, String) {
    let place = Place::new(&[thin(LEN)]);
    place.img(&["create", "-q", "-f", "raw", "disk.raw", &format!("{LEN}M")]);
    let writes = DATA.map(|mib| format!("write -P {} {mib}M 1M", mib % 250 + 1));
    place.io(&["-f", "raw", "disk.raw"], &writes.each_ref().map(String::as_str));
    let url = place.url(0);
    place.counted();
    (place, url)
}

#[test]
fn a_new_unit_is_emptied_at_once_and_gets_data_only() {
    let (place, url) = place();
    place.img(&["convert", "-f", "raw", "-O", "raw", "disk.raw", &url]);
    let counters = place.counted();
    // Nobody knows what a unit holds, so it is unmapped, by one command that carries a block of zeroes.
    assert_eq!((count(&counters, &UNMAP), count(&counters, &WRITE_SAME)), (0, 1), "{counters:?}");
    let data = u64::try_from(DATA.len()).unwrap() * MIB;
    assert_eq!(counters.data_out, data + 512);
    assert_eq!(place.mapped(0, LEN), DATA);
    place.same(("raw", "disk.raw"), ("raw", &url));
}

#[test]
fn what_a_used_unit_holds_is_gone() {
    let (place, url) = place();
    place.io(&["-f", "raw", &url], &["write -P 0xee 3M 30M", "write -P 0xee 250M 6M"]);
    assert_eq!(place.mapped(0, LEN).len(), 36);
    for create in [&["-n"][..], &[]] {
        place.counted();
        place.img(&[&["convert"], create, &["-f", "raw", "-O", "raw", "disk.raw", &url]].concat());
        assert_eq!(place.mapped(0, LEN), DATA, "{create:?}");
        place.same(("raw", "disk.raw"), ("raw", &url));
    }
}

#[test]
fn a_target_that_is_zero_gets_data_and_nothing_else() {
    let (place, url) = place();
    place.img(&["convert", "-n", "--target-is-zero", "-f", "raw", "-O", "raw", "disk.raw", &url]);
    let counters = place.counted();
    assert_eq!(count(&counters, &UNMAP) + count(&counters, &WRITE_SAME), 0, "{counters:?}");
    assert_eq!(counters.data_out, u64::try_from(DATA.len()).unwrap() * MIB);
    assert!(count(&counters, &WRITE) > 0, "{counters:?}");
    assert_eq!(place.mapped(0, LEN), DATA);
    place.same(("raw", "disk.raw"), ("raw", &url));
}

#[test]
fn holes_of_a_unit_are_not_read() {
    let (place, url) = place();
    place.img(&["convert", "-f", "raw", "-O", "raw", "disk.raw", &url]);
    place.counted();
    place.img(&["convert", "-f", "raw", "-O", "raw", &url, "back.raw"]);
    let counters = place.counted();
    let data = u64::try_from(DATA.len()).unwrap() * MIB;
    assert!((data..data + MIB).contains(&counters.data_in), "{counters:?}");
    place.same(("raw", "back.raw"), ("raw", "disk.raw"));

    let map = place.img(&["map", "--output", "json", "-f", "raw", &url]);
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let extents = map.as_array().unwrap().iter();
    let data: Vec<_> = extents
        .filter(|extent| extent["data"] == true)
        .map(|extent| extent["start"].as_u64().unwrap() / MIB)
        .collect();
    assert_eq!(data, DATA);
}

#[test]
fn an_image_in_a_thin_unit_takes_what_it_needs() {
    let (place, url) = place();
    place.img(&["convert", "-f", "raw", "-O", "qcow2", "disk.raw", &url]);
    let counters = place.counted();
    let data = u64::try_from(DATA.len()).unwrap() * MIB;
    assert!((data..data + 2 * MIB).contains(&counters.data_out), "{counters:?}");
    assert!(place.mapped(0, LEN).len() <= DATA.len() + 2, "{:?}", place.mapped(0, LEN));
    place.img(&["check", "-f", "qcow2", &url]);
    place.same(("raw", "disk.raw"), ("qcow2", &url));
}
