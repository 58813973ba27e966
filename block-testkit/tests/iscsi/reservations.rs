//! Reservations of both kinds: who may do what, who is told what.

use block_core::range::to_usize;
use block_testkit::iscsi::{Device, LunConfig, Nexus};

use crate::kit::*;

const CONFLICT: u8 = 0x18;
const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const RELEASE: u8 = 2;
const CLEAR: u8 = 3;
const PREEMPT: u8 = 4;
const IGNORE: u8 = 6;

fn disk() -> Device {
    device(LunConfig::thin(512, 100))
}

/// PERSISTENT RESERVE OUT; its status.
fn out(device: &mut Device, nexus: Nexus, action: u8, kind: u8, key: u64, new: u64) -> u8 {
    let answer = out_answer(device, nexus, [action, kind], [key, new], [24, 0]);
    answer.status
}

fn out_answer(
    device: &mut Device,
    nexus: Nexus,
    action: [u8; 2],
    keys: [u64; 2],
    [len, flags]: [u8; 2],
) -> block_testkit::iscsi::Answer {
    let mut list = keys.map(u64::to_be_bytes).concat();
    list.extend([0, 0, 0, 0, flags, 0, 0, 0]);
    device.execute(nexus, 0, &cdb(10, 0x5f, [(1, &action), (8, &[len])]), &list)
}

fn register(device: &mut Device, nexus: Nexus, key: u64) {
    assert_eq!(out(device, nexus, IGNORE, 0, 0, key), 0);
}

fn keys(device: &mut Device) -> Vec<u64> {
    let data = good(run(device, &cdb(10, 0x5e, [(7, &[1, 0])]), &[]));
    data[8..].chunks(8).map(|key| be64(key, 0)).collect()
}

/// Key and type of the reservation.
fn holder(device: &mut Device) -> Option<(u64, u8)> {
    let data = good(run(device, &cdb(10, 0x5e, [(1, &[1]), (8, &[24])]), &[]));
    (data.len() > 8).then(|| (be64(&data, 8), data[21]))
}

/// What a nexus can do: read, write, see the capacity.
fn can(device: &mut Device, nexus: Nexus) -> [bool; 3] {
    let write = device.execute(nexus, 0, &range10(0x2a, 0, 0, 1), &filled(1, 1)).status;
    let read = device.execute(nexus, 0, &range10(0x28, 0, 0, 1), &[]).status;
    let capacity = device.execute(nexus, 0, &cdb(10, 0x25, []), &[]).status;
    [read, write, capacity].map(|status| {
        assert!(status == 0 || status == CONFLICT);
        status == 0
    })
}

fn told(device: &mut Device, nexus: Nexus) -> Option<(u8, u8, u8)> {
    // REPORT SUPPORTED OPERATION CODES, whose answer does not matter: what is to be told comes first.
    let answer = device.execute(nexus, 0, &cdb(12, 0xa3, [(1, &[0x0c])]), &[]);
    (answer.status == 2).then(|| sense(&answer))
}

#[test]
fn reserve_6_keeps_everybody_else_out() {
    let mut device = disk();
    let status = |device: &mut Device, nexus, opcode| {
        device.execute(nexus, 0, &[opcode, 0, 0, 0, 0, 0], &[]).status
    };
    assert_eq!((status(&mut device, A, 0x16), status(&mut device, A, 0x16)), (0, 0));
    assert_eq!(status(&mut device, B, 0x16), CONFLICT);
    assert_eq!((can(&mut device, A), can(&mut device, B)), ([true; 3], [false; 3]));
    // With it there is nothing persistent, not even for the holder.
    for nexus in [A, B] {
        assert_eq!(out(&mut device, nexus, IGNORE, 0, 0, 1), CONFLICT);
        let asked = device.execute(nexus, 0, &cdb(10, 0x5e, [(8, &[8])]), &[]);
        assert_eq!(asked.status, CONFLICT);
    }
    good(device.execute(B, 0, &[0x12, 0, 0, 0, 36, 0], &[]));
    // Somebody else's release is good and releases nothing.
    assert_eq!((status(&mut device, B, 0x17), can(&mut device, B)), (0, [false; 3]));
    assert_eq!((status(&mut device, A, 0x17), can(&mut device, B)), (0, [true; 3]));
    // A lost session and a reset release too.
    assert_eq!(status(&mut device, A, 0x16), 0);
    device.disconnect(A);
    assert_eq!((can(&mut device, B), status(&mut device, B, 0x16)), ([true; 3], 0));
    device.reset(0);
    assert!(told(&mut device, C).is_some());
    assert_eq!(can(&mut device, C), [true; 3]);
    register(&mut device, C, 9);
    assert_eq!(status(&mut device, C, 0x16), CONFLICT);
    assert_eq!(status(&mut device, C, 0x17), CONFLICT);
}

/// Asking for the operation codes is reading: exclusive access keeps out who may not read.
#[test]
fn operation_codes_are_told_to_whom_may_read() {
    let status = |device: &mut Device, nexus| {
        device.execute(nexus, 0, &cdb(12, 0xa3, [(1, &[0x0c])]), &[]).status
    };
    for (kind, registered, other) in [
        (1, 0, 0),
        (3, CONFLICT, CONFLICT),
        (5, 0, 0),
        (6, 0, CONFLICT),
        (7, 0, 0),
        (8, 0, CONFLICT),
    ] {
        let mut device = disk();
        register(&mut device, A, 1);
        register(&mut device, B, 2);
        assert_eq!(out(&mut device, A, RESERVE, kind, 1, 0), 0);
        let found = [A, B, C].map(|nexus| status(&mut device, nexus));
        assert_eq!(found, [0, registered, other], "type {kind}");
    }
}

#[test]
fn each_type_lets_in_whom_it_should() {
    for (kind, registered, other) in [
        (1, [true, false, true], [true, false, true]),
        (3, [false, false, true], [false, false, true]),
        (5, [true; 3], [true, false, true]),
        (6, [true; 3], [false, false, true]),
        (7, [true; 3], [true, false, true]),
        (8, [true; 3], [false, false, true]),
    ] {
        let mut device = disk();
        register(&mut device, A, 1);
        register(&mut device, B, 2);
        assert_eq!(out(&mut device, A, RESERVE, kind, 1, 0), 0);
        assert_eq!(can(&mut device, A), [true; 3]);
        assert_eq!(can(&mut device, B), registered, "type {kind}");
        assert_eq!(can(&mut device, C), other, "type {kind}");
        let key = if kind >= 7 { 0 } else { 1 };
        assert_eq!(holder(&mut device), Some((key, kind)));
        // The holder may reserve again; nobody may with another type.
        assert_eq!(out(&mut device, A, RESERVE, kind, 1, 0), 0);
        assert_eq!(out(&mut device, A, RESERVE, if kind == 1 { 3 } else { 1 }, 1, 0), CONFLICT);
        let again = out(&mut device, B, RESERVE, kind, 2, 0);
        assert_eq!(again, if kind >= 7 { 0 } else { CONFLICT });
    }
}

#[test]
fn registering_needs_the_right_key() {
    let mut device = disk();
    assert_eq!(out(&mut device, A, REGISTER, 0, 5, 1), CONFLICT);
    assert_eq!(out(&mut device, A, REGISTER, 0, 0, 1), 0);
    assert_eq!(out(&mut device, A, REGISTER, 0, 0, 2), CONFLICT);
    assert_eq!(out(&mut device, A, REGISTER, 0, 1, 2), 0);
    assert_eq!(out(&mut device, B, IGNORE, 0, 77, 3), 0);
    assert_eq!(keys(&mut device), [2, 3]);
    assert_eq!(out(&mut device, C, RESERVE, 1, 0, 0), CONFLICT);
    assert_eq!(out(&mut device, A, RESERVE, 1, 1, 0), CONFLICT);
    assert_eq!(out(&mut device, A, REGISTER, 0, 2, 0), 0);
    assert_eq!(out(&mut device, C, REGISTER, 0, 0, 0), 0);
    assert_eq!(keys(&mut device), [3]);
    let data = good(run(&mut device, &cdb(10, 0x5e, [(8, &[8])]), &[]));
    assert_eq!(be32(&data, 0), 4);
}

#[test]
fn releasing_tells_registrants() {
    let mut device = disk();
    register(&mut device, A, 1);
    register(&mut device, B, 2);
    assert_eq!(out(&mut device, A, RESERVE, 5, 1, 0), 0);
    assert_eq!(out(&mut device, B, RELEASE, 5, 2, 0), 0);
    assert_eq!(holder(&mut device), Some((1, 5)));
    let wrong = out_answer(&mut device, A, [RELEASE, 6], [1, 0], [24, 0]);
    assert_eq!(sense(&wrong), (5, 0x26, 4));
    assert_eq!(out(&mut device, A, RELEASE, 5, 1, 0), 0);
    assert_eq!(holder(&mut device), None);
    assert_eq!((told(&mut device, B), told(&mut device, A)), (Some((6, 0x2a, 4)), None));
    // Who holds the reservation and ends its registration releases it too.
    assert_eq!(out(&mut device, A, RESERVE, 6, 1, 0), 0);
    assert_eq!(out(&mut device, A, REGISTER, 0, 1, 0), 0);
    assert_eq!((holder(&mut device), told(&mut device, B)), (None, Some((6, 0x2a, 4))));
}

#[test]
fn a_reservation_of_all_registrants_lives_as_long_as_one_of_them() {
    let mut device = disk();
    register(&mut device, A, 1);
    register(&mut device, B, 2);
    assert_eq!(out(&mut device, A, RESERVE, 8, 1, 0), 0);
    assert_eq!(out(&mut device, A, REGISTER, 0, 1, 0), 0);
    assert_eq!((holder(&mut device), can(&mut device, B)), (Some((0, 8)), [true; 3]));
    assert_eq!(can(&mut device, A), [false, false, true]);
    assert_eq!(out(&mut device, B, REGISTER, 0, 2, 0), 0);
    assert_eq!((holder(&mut device), can(&mut device, A)), (None, [true; 3]));
}

#[test]
fn clearing_ends_everything() {
    let mut device = disk();
    register(&mut device, A, 1);
    register(&mut device, B, 2);
    assert_eq!(out(&mut device, A, RESERVE, 3, 1, 0), 0);
    assert_eq!(out(&mut device, C, CLEAR, 0, 0, 0), CONFLICT);
    assert_eq!(out(&mut device, B, CLEAR, 0, 2, 0), 0);
    assert_eq!(told(&mut device, A), Some((6, 0x2a, 3)));
    assert_eq!((holder(&mut device), keys(&mut device)), (None, Vec::new()));
    assert_eq!(can(&mut device, C), [true; 3]);
}

#[test]
fn preempting_takes_a_reservation() {
    let mut device = disk();
    for (nexus, key) in [(A, 1), (B, 2), (C, 3)] {
        register(&mut device, nexus, key);
    }
    assert_eq!(out(&mut device, A, RESERVE, 5, 1, 0), 0);
    // Nobody has that key; zero names nobody.
    assert_eq!(out(&mut device, B, PREEMPT, 5, 2, 99), CONFLICT);
    let zero = out_answer(&mut device, B, [PREEMPT, 5], [2, 0], [24, 0]);
    assert_eq!(bad_parameter(&zero), (8, 7));
    assert_eq!(out(&mut device, B, PREEMPT, 6, 2, 1), 0);
    assert_eq!(told(&mut device, A), Some((6, 0x2a, 5)));
    assert_eq!(told(&mut device, C), Some((6, 0x2a, 4)));
    assert_eq!((holder(&mut device), keys(&mut device)), (Some((2, 6)), vec![2, 3]));
    assert_eq!(can(&mut device, A), [false, false, true]);
    // Preempting who holds nothing only ends the registration.
    assert_eq!(out(&mut device, B, PREEMPT, 6, 2, 3), 0);
    assert_eq!((holder(&mut device), keys(&mut device)), (Some((2, 6)), vec![2]));
    assert_eq!((told(&mut device, C), told(&mut device, C)), (Some((6, 0x2a, 5)), None));
}

#[test]
fn preempting_all_registrants_needs_key_zero() {
    let mut device = disk();
    for (nexus, key) in [(A, 1), (B, 2), (C, 3)] {
        register(&mut device, nexus, key);
    }
    assert_eq!(out(&mut device, A, RESERVE, 7, 1, 0), 0);
    assert_eq!(out(&mut device, B, PREEMPT, 1, 2, 1), 0);
    assert_eq!(told(&mut device, A), Some((6, 0x2a, 5)));
    assert_eq!((holder(&mut device), keys(&mut device)), (Some((0, 7)), vec![2, 3]));
    assert_eq!(out(&mut device, B, PREEMPT, 1, 2, 0), 0);
    assert_eq!((holder(&mut device), keys(&mut device)), (Some((2, 1)), vec![2]));
    assert_eq!(told(&mut device, C), Some((6, 0x2a, 5)));
}

#[test]
fn lists_and_types_that_cannot_be() {
    let mut device = disk();
    register(&mut device, A, 1);
    let mut refused = |action, format| out_answer(&mut device, A, action, [1, 0], format);
    assert_eq!(sense(&refused([RESERVE, 1], [23, 0])), (5, 0x1a, 0));
    assert_eq!(sense(&refused([RESERVE, 1], [25, 0])), (5, 0x1a, 0));
    for (flags, bit) in [(1, 0), (4, 2), (8, 3)] {
        assert_eq!(bad_parameter(&refused([RESERVE, 1], [24, flags])), (20, bit));
    }
    for kind in [0, 2, 4, 9, 15] {
        assert_eq!(bad_field(&refused([RESERVE, kind], [24, 0])), (2, 3));
    }
    assert_eq!(bad_field(&refused([RESERVE, 0x11], [24, 0])), (2, 7));
    assert_eq!(bad_field(&refused([7, 1], [24, 0])), (1, 4));
    assert_eq!(holder(&mut device), None);
}

#[test]
fn registrations_survive_the_session() {
    let mut device = disk();
    register(&mut device, A, 1);
    assert_eq!(out(&mut device, A, RESERVE, 1, 1, 0), 0);
    device.disconnect(A);
    assert_eq!(can(&mut device, B), [true, false, true]);
    device.connect(A);
    assert_eq!(told(&mut device, A), Some((6, 0x29, 0)));
    assert_eq!(can(&mut device, A), [true; 3]);
}

#[test]
fn full_status_names_the_ports_and_who_holds() {
    let mut device = disk();
    device.name(A, "iqn.2001-04.com.example:a,i,0x400000000001");
    register(&mut device, A, 1);
    register(&mut device, B, 2);
    assert_eq!(out(&mut device, A, RESERVE, 3, 1, 0), 0);
    let status = good(run(&mut device, &cdb(10, 0x5e, [(1, &[3]), (7, &[1, 0])]), &[]));
    assert_eq!((be32(&status, 0), to_usize(be32(&status, 4).into())), (2, status.len() - 8));
    let (first, second) = status[8..].split_at(24 + 4 + 44);
    assert_eq!((be64(first, 0), &first[12..14]), (1, &[1, 3][..]));
    assert_eq!((be32(first, 20), &first[24..28]), (48, &[0x45, 0, 0, 44][..]));
    assert_eq!(
        first[28..].strip_suffix(&[0, 0]),
        Some(&b"iqn.2001-04.com.example:a,i,0x400000000001"[..])
    );
    // Who has no name has one made up, and holds nothing.
    assert_eq!((be64(second, 0), &second[12..14]), (2, &[0, 0][..]));
    assert_eq!((second.len() % 4, &second[28..32]), (0, &b"iqn."[..]));
}
