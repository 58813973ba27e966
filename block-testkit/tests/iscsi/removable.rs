//! A medium that initiators load, eject and hold fast.

use block_testkit::iscsi::{Device, LunConfig, Medium, Nexus};

use crate::kit::*;

const NO_MEDIUM: (u8, u8, u8) = (2, 0x3a, 0);
const PREVENTED: (u8, u8, u8) = (5, 0x53, 2);
const EJECT: [u8; 6] = [0x1b, 0, 0, 0, 2, 0];
const LOAD: [u8; 6] = [0x1b, 1, 0, 0, 3, 0];
const PREVENT: [u8; 6] = [0x1e, 0, 0, 0, 1, 0];
const ALLOW: [u8; 6] = [0x1e, 0, 0, 0, 0, 0];

fn removable() -> Device {
    device(LunConfig { medium: Medium::Removable, ..LunConfig::thin(512, 100) })
}

fn ready(device: &mut Device, nexus: Nexus) -> Option<(u8, u8, u8)> {
    let answer = device.execute(nexus, 0, &[0; 6], &[]);
    (answer.status != 0).then(|| sense(&answer))
}

#[test]
fn who_loads_a_medium_is_not_told_and_the_others_are() {
    let mut device = removable();
    good(run(&mut device, &range16(0x8a, 0, 1, 1), &filled(1, 1)));
    good(run(&mut device, &EJECT, &[]));
    for nexus in [A, B] {
        assert_eq!(ready(&mut device, nexus), Some(NO_MEDIUM));
    }
    for cdb in [range10(0x34, 0, 0, 1), range10(0x2f, 0, 0, 1), cdb(10, 0x37, [(8, &[4])])] {
        assert_eq!(sense(&run(&mut device, &cdb, &[])), NO_MEDIUM);
    }
    assert_eq!(sense(&run(&mut device, &range16(0x8b, 0, 0, 1), &filled(1, 1))), NO_MEDIUM);
    good(run(&mut device, &LOAD, &[]));
    assert_eq!((ready(&mut device, A), ready(&mut device, B)), (None, Some((6, 0x28, 0))));
    assert_eq!((ready(&mut device, B), block(&mut device, 1)), (None, filled(1, 1)));
    // Loading what is there is nothing new.
    good(run(&mut device, &LOAD, &[]));
    assert_eq!(ready(&mut device, B), None);
}

#[test]
fn nothing_is_ejected_without_loej_or_with_a_power_condition() {
    let mut device = removable();
    let conditions = (1..16).map(|power| power << 4 | 2);
    for byte in [0, 1, 4, 5].into_iter().chain(conditions) {
        good(run(&mut device, &[0x1b, 1, 0, 0, byte, 0], &[]));
        assert_eq!(ready(&mut device, A), None);
    }
    assert_eq!(bad_field(&run(&mut device, &[0x1b, 0, 0, 0, 8, 0], &[])), (4, 3));
}

#[test]
fn while_one_nexus_prevents_it_the_medium_stays() {
    let mut device = removable();
    good(device.execute(B, 0, &PREVENT, &[]));
    good(run(&mut device, &PREVENT, &[]));
    good(run(&mut device, &ALLOW, &[]));
    assert_eq!(sense(&run(&mut device, &EJECT, &[])), PREVENTED);
    assert!(!device.eject(0));
    assert_eq!(ready(&mut device, A), None);
    good(device.execute(B, 0, &ALLOW, &[]));
    good(run(&mut device, &EJECT, &[]));
    // The tray is held as it is.
    good(run(&mut device, &PREVENT, &[]));
    assert_eq!(sense(&run(&mut device, &LOAD, &[])), PREVENTED);
    good(run(&mut device, &ALLOW, &[]));
    good(run(&mut device, &LOAD, &[]));
    assert_eq!(bad_field(&run(&mut device, &[0x1e, 0, 0, 0, 2, 0], &[])), (4, 1));
}

#[test]
fn prevention_ends_with_the_session_and_with_a_reset() {
    let mut device = removable();
    good(device.execute(B, 0, &PREVENT, &[]));
    device.disconnect(B);
    good(run(&mut device, &EJECT, &[]));
    good(run(&mut device, &LOAD, &[]));
    good(run(&mut device, &PREVENT, &[]));
    assert!(device.reset(0));
    assert_eq!(ready(&mut device, A), Some((6, 0x29, 3)));
    good(run(&mut device, &EJECT, &[]));
}

#[test]
fn a_fixed_medium_stays_and_the_unit_says_so() {
    let mut device = device(LunConfig::thick(512, 100));
    assert_eq!(bad_field(&run(&mut device, &EJECT, &[])), (4, 1));
    good(run(&mut device, &[0x1b, 0, 0, 0, 1, 0], &[]));
    assert_eq!(sense(&run(&mut device, &PREVENT, &[])), (5, 0x20, 0));
    let supported = cdb(12, 0xa3, [(1, &[0x0c, 1, 0x1e]), (9, &[64])]);
    assert_eq!(good(run(&mut device, &supported, &[])), [0, 1, 0, 0]);
}

#[test]
fn a_reservation_lets_others_start_and_allow_only() {
    let mut device = removable();
    good(run(&mut device, &[0x16, 0, 0, 0, 0, 0], &[]));
    for cdb in [EJECT, LOAD, PREVENT] {
        assert_eq!(device.execute(B, 0, &cdb, &[]).status, 0x18, "{cdb:?}");
    }
    good(device.execute(B, 0, &ALLOW, &[]));
    // RESERVE (6) keeps out even who only starts; a persistent reservation does not.
    assert_eq!(device.execute(B, 0, &[0x1b, 0, 0, 0, 1, 0], &[]).status, 0x18);
    good(run(&mut device, &[0x17, 0, 0, 0, 0, 0], &[]));
    let mut keys = [0; 24];
    keys[15] = 1;
    good(run(&mut device, &cdb(10, 0x5f, [(8, &[24])]), &keys));
    keys[7] = 1;
    good(run(&mut device, &cdb(10, 0x5f, [(1, &[1, 3]), (8, &[24])]), &keys));
    assert_eq!(device.execute(B, 0, &EJECT, &[]).status, 0x18);
    good(device.execute(B, 0, &[0x1b, 0, 0, 0, 1, 0], &[]));
}
