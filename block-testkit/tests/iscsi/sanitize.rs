//! SANITIZE: what is gone, what is refused meanwhile, and how one gets out of a failure.

use block_testkit::iscsi::{Access, Device, LunConfig};

use crate::kit::*;

const IN_PROGRESS: (u8, u8, u8) = (2, 0x04, 0x1b);
const FAILED: (u8, u8, u8) = (3, 0x31, 3);
const OVERWRITE: u8 = 1;
const BLOCK_ERASE: u8 = 2;
const CRYPTO_ERASE: u8 = 3;
const EXIT_FAILURE_MODE: u8 = 0x1f;
const UNRESTRICTED_EXIT: u8 = 0x20;

fn sanitize(flags: u8, len: usize) -> Vec<u8> {
    cdb(10, 0x48, [(1, &[flags]), (7, &u16::try_from(len).unwrap().to_be_bytes())])
}

/// A parameter list of OVERWRITE.
fn list(flags: u8, pattern: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(pattern.len()).unwrap().to_be_bytes();
    [&[flags, 0, high, low], pattern].concat()
}

fn overwrite(device: &mut Device, flags: u8, pattern: &[u8]) -> block_testkit::iscsi::Answer {
    let list = list(flags, pattern);
    run(device, &sanitize(OVERWRITE, list.len()), &list)
}

/// A unit whose blocks hold something; an operation on it takes so many steps.
fn written(sanitize_steps: u32) -> Device {
    let mut device = device(LunConfig { sanitize_steps, ..LunConfig::thin(512, 100) });
    good(run(&mut device, &range16(0x93, 0, 0, 100), &filled(1, 0x55)));
    device
}

#[test]
fn erasing_leaves_nothing_mapped() {
    for action in [BLOCK_ERASE, CRYPTO_ERASE] {
        let mut device = written(0);
        good(run(&mut device, &sanitize(action, 0), &[]));
        assert_eq!((block(&mut device, 7), device.is_mapped(0, 7)), (filled(1, 0), false));
        assert_eq!(device.memory(), 0);
        assert_eq!(bad_field(&run(&mut device, &sanitize(action, 8), &[0; 8])), (7, 7));
    }
}

#[test]
fn overwriting_repeats_the_pattern_and_inverts_it() {
    let mut device = written(0);
    good(overwrite(&mut device, 1, &filled(1, 0xaa)));
    assert_eq!((block(&mut device, 99), device.is_mapped(0, 99)), (filled(1, 0xaa), true));
    good(overwrite(&mut device, 2, &[1, 2, 3]));
    let found = block(&mut device, 5);
    assert_eq!((&found[..4], &found[510..]), (&[1, 2, 3, 1][..], &[1, 2][..]));
    good(overwrite(&mut device, 0x82, &[0xf0]));
    assert_eq!(block(&mut device, 5), filled(1, 0x0f));
    good(overwrite(&mut device, 0x83, &[0xf0]));
    assert_eq!(block(&mut device, 5), filled(1, 0xf0));
}

#[test]
fn lists_of_overwrite_that_are_wrong() {
    let mut device = written(0);
    for len in [0, 1, 4, 512 + 5] {
        let answer = run(&mut device, &sanitize(OVERWRITE, len), &vec![1; len]);
        assert_eq!(bad_field(&answer), (7, 7), "{len}");
    }
    assert_eq!(sense(&run(&mut device, &sanitize(OVERWRITE, 9), &[1; 8])), (5, 0x1a, 0));
    assert_eq!(bad_parameter(&overwrite(&mut device, 0, &[1])), (0, 4));
    assert_eq!(bad_parameter(&overwrite(&mut device, 0x21, &[1])), (0, 6));
    for len in [0, 2] {
        let answer = run(&mut device, &sanitize(OVERWRITE, 5), &[1, 0, 0, len, 9]);
        assert_eq!(bad_parameter(&answer), (2, 7));
    }
    assert_eq!(block(&mut device, 5), filled(1, 0x55));
}

#[test]
fn actions_and_bits_that_there_are_not() {
    let mut device = written(0);
    for action in (0..0x20).filter(|action| !matches!(action, 1 | 2 | 3 | 0x1f)) {
        assert_eq!(bad_field(&run(&mut device, &sanitize(action, 0), &[])), (1, 4));
    }
    assert_eq!(bad_field(&run(&mut device, &sanitize(0x42, 0), &[])), (1, 6));
    for at in 2..7 {
        let reserved = cdb(10, 0x48, [(1, &[BLOCK_ERASE]), (at, &[1])]);
        assert_eq!(bad_field(&run(&mut device, &reserved, &[])).0, u8::try_from(at).unwrap());
    }
    assert_eq!(block(&mut device, 5), filled(1, 0x55));
}

#[test]
fn units_have_what_suits_them() {
    let mut thick = device(LunConfig::thick(512, 100));
    good(run(&mut thick, &range16(0x8a, 0, 0, 1), &filled(1, 1)));
    assert_eq!(bad_field(&run(&mut thick, &sanitize(BLOCK_ERASE, 0), &[])), (1, 4));
    good(run(&mut thick, &sanitize(CRYPTO_ERASE, 0), &[]));
    assert_eq!((block(&mut thick, 0), thick.is_mapped(0, 0)), (filled(1, 0), true));
    let mut large = device(LunConfig::thin(4096, 1 << 40));
    assert_eq!(bad_field(&overwrite(&mut large, 1, &[1])), (1, 4));
    good(run(&mut large, &sanitize(BLOCK_ERASE, 0), &[]));
    let characteristics =
        |device: &mut Device| good(run(device, &[0x12, 1, 0xb1, 0, 255, 0], &[]))[7];
    assert_eq!((characteristics(&mut large), characteristics(&mut thick)), (0x50, 0x10));
}

#[test]
fn while_it_goes_on_others_wait_and_are_told_how_far_it_is() {
    let mut device = written(4);
    good(run(&mut device, &sanitize(0x80 | BLOCK_ERASE, 0), &[]));
    let progress = |sense: &[u8]| (sense[15], sense[16]);
    let answer = run(&mut device, &range16(0x88, 0, 0, 1), &[]);
    assert_eq!((sense(&answer), progress(&answer.sense)), (IN_PROGRESS, (0x80, 0)));
    good(run(&mut device, &[0x12, 0, 0, 0, 36, 0], &[]));
    good(run(&mut device, &cdb(12, 0xa0, [(9, &[16])]), &[]));
    let requested = good(run(&mut device, &[3, 0, 0, 0, 18, 0], &[]));
    assert_eq!((requested[2], requested[12], progress(&requested)), (2, 4, (0x80, 0x40)));
    // It survives a reset.
    assert!(device.reset(0));
    assert_eq!(sense(&run(&mut device, &[0; 6], &[])), (6, 0x29, 3));
    for expected in [0x80, 0xc0] {
        let answer = run(&mut device, &[0x1b, 0, 0, 0, 1, 0], &[]);
        assert_eq!((sense(&answer), progress(&answer.sense)), (IN_PROGRESS, (0x80, expected)));
    }
    good(run(&mut device, &[0; 6], &[]));
    assert_eq!(block(&mut device, 0), filled(1, 0));
    assert!(!device.fail_sanitize(0));
}

#[test]
fn a_failure_is_left_only_if_that_was_agreed() {
    for flags in [0, UNRESTRICTED_EXIT] {
        let mut device = written(1);
        good(run(&mut device, &sanitize(flags | BLOCK_ERASE, 0), &[]));
        assert!(device.fail_sanitize(0));
        assert_eq!(sense(&run(&mut device, &range16(0x88, 0, 0, 1), &[])), FAILED);
        let exit = run(&mut device, &sanitize(EXIT_FAILURE_MODE, 0), &[]);
        if flags == 0 {
            assert_eq!(bad_field(&exit), (1, 4));
            // Another operation that succeeds is the way out.
            good(run(&mut device, &sanitize(CRYPTO_ERASE, 0), &[]));
            assert_eq!(sense(&run(&mut device, &[0; 6], &[])), IN_PROGRESS);
        } else {
            good(exit);
        }
        assert_eq!(block(&mut device, 0), filled(1, 0));
        good(run(&mut device, &sanitize(EXIT_FAILURE_MODE, 0), &[]));
        let answer = run(&mut device, &sanitize(EXIT_FAILURE_MODE, 8), &[0; 8]);
        assert_eq!(bad_field(&answer), (7, 7));
    }
}

#[test]
fn protection_and_reservations_keep_it_out() {
    let mut device = written(0);
    good(device.execute(B, 0, &[0x16, 0, 0, 0, 0, 0], &[]));
    for action in [BLOCK_ERASE, CRYPTO_ERASE, EXIT_FAILURE_MODE] {
        assert_eq!(run(&mut device, &sanitize(action, 0), &[]).status, 0x18);
    }
    assert_eq!(overwrite(&mut device, 1, &[1]).status, 0x18);
    good(device.execute(B, 0, &[0x17, 0, 0, 0, 0, 0], &[]));
    device.set_access(0, Access::ReadOnly);
    assert_eq!(sense(&run(&mut device, &[0; 6], &[])), (6, 0x2a, 1));
    for action in [BLOCK_ERASE, CRYPTO_ERASE] {
        assert_eq!(sense(&run(&mut device, &sanitize(action, 0), &[])), (7, 0x27, 0));
    }
    assert_eq!(sense(&overwrite(&mut device, 1, &[1])), (7, 0x27, 0));
    assert_eq!(block(&mut device, 5), filled(1, 0x55));
}
