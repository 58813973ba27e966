//! MODE SELECT: what can be changed, who is told, what is refused.

use block_testkit::iscsi::{Answer, Device, LunConfig};

use crate::kit::*;

/// The pages caching and control, as they are at first.
const CACHING: [u8; 20] = [8, 0x12, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const CONTROL: [u8; 12] = [0x0a, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn thin() -> Device {
    device(LunConfig::thin(512, 1000))
}

fn select6(device: &mut Device, list: &[u8]) -> Answer {
    run(device, &[0x15, 0x10, 0, 0, u8::try_from(list.len()).unwrap(), 0], list)
}

fn with<const N: usize>(mut page: [u8; N], at: usize, byte: u8) -> Vec<u8> {
    page[at] = byte;
    [&[0; 4], page.as_slice()].concat()
}

fn sense_page(device: &mut Device, page: u8) -> Vec<u8> {
    good(run(device, &[0x1a, 8, page, 0, 255, 0], &[]))[4..].to_vec()
}

#[test]
fn software_protects_and_unprotects() {
    let mut device = thin();
    good(select6(&mut device, &with(CONTROL, 4, 8)));
    assert_eq!(sense_page(&mut device, 0x0a)[4], 8);
    assert_eq!(good(run(&mut device, &[0x1a, 8, 0x3f, 0, 255, 0], &[]))[2], 0x90);
    assert_eq!(sense(&run(&mut device, &range16(0x8a, 0, 0, 1), &filled(1, 1))), (7, 0x27, 2));
    assert_eq!(block(&mut device, 0), filled(1, 0));
    // The others are told once; who did it is not.
    assert_eq!(sense(&device.execute(B, 0, &[0; 6], &[])), (6, 0x2a, 1));
    good(device.execute(B, 0, &[0; 6], &[]));
    good(select6(&mut device, &with(CONTROL, 4, 0)));
    good(run(&mut device, &range16(0x8a, 0, 0, 1), &filled(1, 1)));
    assert_eq!(sense(&device.execute(B, 0, &[0; 6], &[])), (6, 0x2a, 1));
    // Nothing changes, nobody is told.
    good(select6(&mut device, &with(CONTROL, 4, 0)));
    good(select6(&mut device, &[]));
    good(device.execute(B, 0, &[0; 6], &[]));
}

#[test]
fn sense_data_and_cache_change_and_a_reset_brings_them_back() {
    let mut device = thin();
    let list = [with(CACHING, 2, 0), with(CONTROL, 2, 4)[4..].to_vec()].concat();
    let long = [&[0; 4], list.as_slice()].concat();
    let cdb = cdb(10, 0x55, [(1, &[0x10]), (8, &[u8::try_from(long.len()).unwrap()])]);
    assert_eq!(device.data_out_len(0, &cdb), u64::try_from(long.len()).unwrap());
    good(run(&mut device, &cdb, &long));
    assert_eq!((sense_page(&mut device, 8)[2], sense_page(&mut device, 0x0a)[2]), (0, 4));
    assert_eq!(run(&mut device, &[0xff], &[]).sense, [0x72, 5, 0x20, 0, 0, 0, 0, 0]);
    // The values that come back are those of page control 2.
    let defaults = good(run(&mut device, &[0x1a, 8, 0xbf, 0, 255, 0], &[]));
    assert_eq!(defaults[4..], [CACHING.as_slice(), &CONTROL].concat());
    assert!(device.reset(0));
    assert_eq!(sense(&run(&mut device, &[0; 6], &[])), (6, 0x29, 3));
    assert_eq!(sense_page(&mut device, 0x3f), defaults[4..]);
}

#[test]
fn what_can_be_changed_is_what_is_said() {
    let mut device = thin();
    let changeable = good(run(&mut device, &[0x1a, 8, 0x7f, 0, 255, 0], &[]));
    let pages = [CACHING.as_slice(), &CONTROL].concat();
    for (at, may) in changeable[4..].iter().enumerate() {
        for bit in 0..8 {
            let mut list = [&[0; 4], pages.as_slice()].concat();
            list[4 + at] ^= 1 << bit;
            let answer = select6(&mut device, &list);
            if matches!(at, 0 | 1 | 20 | 21) {
                assert_eq!(sense(&answer).0, 5);
            } else if may >> bit & 1 == 0 {
                let place = u8::try_from(4 + at).unwrap();
                assert_eq!(bad_parameter(&answer), (place, bit));
            } else {
                good(answer);
                good(select6(&mut device, &[&[0; 4], pages.as_slice()].concat()));
            }
        }
    }
    assert_eq!(sense_page(&mut device, 0x3f), pages);
}

#[test]
fn lists_that_are_wrong_change_nothing() {
    let mut device = thin();
    let list = [with(CACHING, 2, 0), with(CONTROL, 5, 1)[4..].to_vec()].concat();
    assert_eq!(bad_parameter(&select6(&mut device, &list)), (29, 0));
    for len in [1, 3, 10, 23] {
        assert_eq!(sense(&select6(&mut device, &list[..len])), (5, 0x1a, 0), "{len}");
    }
    assert_eq!(sense(&run(&mut device, &[0x15, 0x10, 0, 0, 24, 0], &list[..20])), (5, 0x1a, 0));
    assert_eq!(bad_field(&run(&mut device, &[0x15, 0, 0, 0, 24, 0], &list)), (1, 4));
    assert_eq!(bad_field(&run(&mut device, &[0x15, 0x11, 0, 0, 24, 0], &list)), (1, 0));
    assert_eq!(bad_parameter(&select6(&mut device, &[0, 0, 0, 7])), (3, 7));
    assert_eq!(bad_parameter(&select6(&mut device, &[0, 0, 0, 0, 1, 0])), (4, 7));
    assert_eq!(sense_page(&mut device, 8), CACHING);
}

#[test]
fn a_block_descriptor_may_say_what_is_so() {
    let mut device = thin();
    let described = |blocks: u32, size: u32| {
        let (blocks, size) = (blocks.to_be_bytes(), size.to_be_bytes());
        [&[0, 0, 0, 8], blocks.as_slice(), &size, &CACHING].concat()
    };
    good(select6(&mut device, &described(1000, 512)));
    good(select6(&mut device, &described(0, 512)));
    assert_eq!(bad_parameter(&select6(&mut device, &described(999, 512))), (4, 7));
    assert_eq!(bad_parameter(&select6(&mut device, &described(1000, 4096))), (4, 7));
    let long = cdb(10, 0x55, [(1, &[0x10]), (8, &[8])]);
    assert_eq!(bad_parameter(&run(&mut device, &long, &[0, 0, 0, 0, 1, 0, 0, 0])), (4, 0));
}
