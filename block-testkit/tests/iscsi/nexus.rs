//! Unit attentions: who is told what, when, and once.

use block_testkit::iscsi::{Access, Device, LunConfig, Medium, SenseFormat};

use crate::kit::*;

const READY: [u8; 6] = [0; 6];

fn told(device: &mut Device, nexus: block_testkit::iscsi::Nexus) -> Option<(u8, u8, u8)> {
    let answer = device.execute(nexus, 0, &READY, &[]);
    (answer.status != 0).then(|| sense(&answer))
}

#[test]
fn everybody_is_told_once_of_what_changed() {
    let mut device = device(LunConfig::thin(512, 100));
    device.resize(0, 200).unwrap();
    assert_eq!(told(&mut device, A), Some((6, 0x2a, 9)));
    assert_eq!((told(&mut device, A), told(&mut device, B)), (None, Some((6, 0x2a, 9))));
    // The same thing twice is told once; other things in their order.
    device.resize(0, 300).unwrap();
    device.resize(0, 50).unwrap();
    device.set_access(0, Access::ReadOnly);
    assert!(device.reset(0) && !device.reset(7));
    let all = [told(&mut device, A), told(&mut device, A), told(&mut device, A)];
    assert_eq!(all, [Some((6, 0x2a, 9)), Some((6, 0x2a, 1)), Some((6, 0x29, 3))]);
    assert_eq!(told(&mut device, A), None);
    device.connect(B);
    assert_eq!((told(&mut device, B), told(&mut device, B)), (Some((6, 0x29, 0)), None));
}

#[test]
fn a_command_that_meets_an_attention_does_not_run() {
    let mut device = device(LunConfig::thin(512, 100));
    device.resize(0, 200).unwrap();
    assert_eq!(sense(&run(&mut device, &range16(0x8a, 0, 0, 1), &filled(1, 1))), (6, 0x2a, 9));
    assert_eq!((device.memory(), block(&mut device, 0)), (0, filled(1, 0)));
}

#[test]
fn some_commands_leave_attentions_alone_and_request_sense_takes_them() {
    let mut device = device(LunConfig::thin(512, 100));
    device.resize(0, 200).unwrap();
    good(run(&mut device, &[0x12, 0, 0, 0, 36, 0], &[]));
    good(run(&mut device, &cdb(12, 0xa0, [(9, &[16])]), &[]));
    let fixed = good(run(&mut device, &[3, 0, 0, 0, 252, 0], &[]));
    assert_eq!((fixed[0], fixed[2], fixed[12], fixed[13]), (0x70, 6, 0x2a, 9));
    let none = good(run(&mut device, &[3, 1, 0, 0, 252, 0], &[]));
    assert_eq!(none, [0x72, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(good(run(&mut device, &[3, 0, 0, 0, 4, 0], &[])).len(), 4);
}

#[test]
fn shrinking_forgets_and_growing_does_not_remember() {
    let mut device = device(LunConfig::thin(512, 100));
    good(run(&mut device, &range16(0x8a, 0, 60, 40), &filled(40, 1)));
    device.resize(0, 70).unwrap();
    device.resize(0, 100).unwrap();
    assert!(told(&mut device, A).is_some());
    assert_eq!((block(&mut device, 69), block(&mut device, 70)), (filled(1, 1), filled(1, 0)));
    assert!(device.is_mapped(0, 69) && !device.is_mapped(0, 70));
    assert!(device.resize(0, 0).is_err() && device.resize(5, 1).is_err());
}

#[test]
fn a_medium_comes_and_goes() {
    let config = LunConfig { medium: Medium::Removable, ..LunConfig::thick(512, 100) };
    let mut removable = device(config);
    assert!(removable.eject(0) && !removable.eject(0));
    assert_eq!(told(&mut removable, A), Some((2, 0x3a, 0)));
    assert_eq!(sense(&run(&mut removable, &range10(0x28, 0, 0, 1), &[])), (2, 0x3a, 0));
    good(run(&mut removable, &[0x1a, 8, 0x3f, 0, 255, 0], &[]));
    assert!(removable.insert(0) && !removable.insert(0));
    assert_eq!((told(&mut removable, A), told(&mut removable, A)), (Some((6, 0x28, 0)), None));
    let mut fixed = device(LunConfig::thick(512, 100));
    assert!(!fixed.eject(0) && !fixed.insert(0));
}

#[test]
fn units_that_come_and_go_are_told_by_the_others() {
    let mut device = device(LunConfig::thin(512, 100));
    device.add(5, LunConfig::thin(512, 100)).unwrap();
    assert_eq!(told(&mut device, A), Some((6, 0x3f, 0x0e)));
    assert_eq!(sense(&device.execute(A, 5, &READY, &[])), (6, 0x29, 0));
    assert!(device.remove(5) && !device.remove(5));
    assert_eq!(told(&mut device, A), Some((6, 0x3f, 0x0e)));
    assert_eq!(sense(&device.execute(A, 5, &READY, &[])), (5, 0x25, 0));
}

#[test]
fn sense_data_in_descriptor_format_points_too() {
    let mut device = device_with_descriptors();
    let answer = run(&mut device, &range10(0x28, 0x20, 0, 1), &[]);
    assert_eq!(answer.sense[..8], [0x72, 5, 0x24, 0, 0, 0, 0, 8]);
    assert_eq!(answer.sense[8..], [2, 6, 0, 0, 0xcd, 0, 1, 0]);
    let control = good(run(&mut device, &[0x1a, 8, 0x0a, 0, 255, 0], &[]));
    assert_eq!(control[6], 0x04);
}

fn device_with_descriptors() -> Device {
    let mut device = Device::new(SenseFormat::Descriptor);
    device.add(0, LunConfig::thin(512, 100)).unwrap();
    device
}
