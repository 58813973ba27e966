//! EXTENDED COPY and what RECEIVE COPY RESULTS says of it.

use block_testkit::iscsi::{Access, Answer, Device, LunConfig};

use crate::kit::*;

const ABORTED: (u8, u8, u8) = (0x0a, 0, 0);
const LIST_LENGTH: (u8, u8, u8) = (5, 0x1a, 0);

fn named(serial: &str, config: LunConfig) -> LunConfig {
    LunConfig { serial: serial.to_owned(), ..config }
}

/// Unit 0, whose first blocks hold something; unit 1; unit 2 of large blocks.
fn units() -> Device {
    let mut device = device(named("zero", LunConfig::thin(512, 100)));
    device.add(1, named("one", LunConfig::thin(512, 200))).unwrap();
    device.add(2, named("two", LunConfig::thick(4096, 50))).unwrap();
    assert_eq!(sense(&run(&mut device, &[0; 6], &[])), (6, 0x3f, 0x0e));
    for number in [1, 2] {
        while device.execute(A, number, &[0; 6], &[]).status != 0 {}
    }
    good(run(&mut device, &range16(0x8a, 0, 0, 2), &[filled(1, 1), filled(1, 2)].concat()));
    device
}

/// A descriptor that names a unit by its NAA designator.
fn target(device: &mut Device, number: u16, block: u16) -> Vec<u8> {
    let page = good(device.execute(A, number, &[0x12, 1, 0x83, 0, 255, 0], &[]));
    let naa = &page[page.len() - 8..];
    let [high, low] = block.to_be_bytes();
    let head = [0xe4, 0, 0, 0, 1, 3, 0, 8];
    [&head, naa, &[0; 14], &[high, low]].concat()
}

/// A segment from blocks to blocks; with DC the blocks are those of the destination.
fn segment(dc: u8, from: (u16, u64), to: (u16, u64), blocks: u16) -> Vec<u8> {
    [
        [2, dc, 0, 0x18].as_slice(),
        &from.0.to_be_bytes(),
        &to.0.to_be_bytes(),
        &[0, 0],
        &blocks.to_be_bytes(),
        &from.1.to_be_bytes(),
        &to.1.to_be_bytes(),
    ]
    .concat()
}

fn list(id: u8, flags: u8, targets: &[Vec<u8>], segments: &[Vec<u8>]) -> Vec<u8> {
    let (targets, segments) = (targets.concat(), segments.concat());
    let targets_len = u16::try_from(targets.len()).unwrap().to_be_bytes();
    let segments_len = u32::try_from(segments.len()).unwrap().to_be_bytes();
    let head = [&[id, flags], targets_len.as_slice(), &[0; 4], &segments_len, &[0; 4]].concat();
    [head, targets, segments].concat()
}

fn copy(device: &mut Device, list: &[u8]) -> Answer {
    let len = u32::try_from(list.len()).unwrap().to_be_bytes();
    let command = cdb(16, 0x83, [(10, &len)]);
    assert_eq!(device.data_out_len(0, &command), u64::try_from(list.len()).unwrap());
    run(device, &command, list)
}

fn status(device: &mut Device, id: u8) -> Answer {
    run(device, &cdb(16, 0x84, [(2, &[id]), (13, &[64])]), &[])
}

#[test]
fn blocks_are_copied_within_a_unit_and_between_units() {
    let mut device = units();
    let targets = [target(&mut device, 0, 512), target(&mut device, 1, 512)];
    let segments = [segment(0, (0, 0), (0, 98), 2), segment(0, (0, 1), (1, 7), 1)];
    good(copy(&mut device, &list(5, 0, &targets, &segments)));
    assert_eq!((block(&mut device, 98), block(&mut device, 99)), (filled(1, 1), filled(1, 2)));
    assert_eq!(good(device.execute(A, 1, &range16(0x88, 0, 7, 1), &[])), filled(1, 2));
    let told = good(status(&mut device, 5));
    assert_eq!(told, [0, 0, 0, 8, 1, 0, 2, 0, 0, 0, 0x06, 0]);
    assert_eq!(bad_field(&status(&mut device, 6)), (2, 7));
    // Nobody else asks for it, and nobody after the session.
    let other = device.execute(B, 0, &[0; 6], &[]);
    assert_eq!(sense(&other), (6, 0x3f, 0x0e));
    let ask = cdb(16, 0x84, [(2, &[5]), (13, &[64])]);
    assert_eq!(sense(&device.execute(B, 0, &ask, &[])), (5, 0x24, 0));
    device.connect(A);
    assert_eq!(sense(&run(&mut device, &[0; 6], &[])), (6, 0x29, 0));
    assert_eq!(bad_field(&status(&mut device, 5)), (2, 7));
}

#[test]
fn more_than_a_piece_is_copied() {
    let mut device = device(LunConfig::thin(512, 10_000));
    let data: Vec<u8> =
        (0..4000u32).flat_map(|block| [block.to_be_bytes(); 128].concat()).collect();
    good(run(&mut device, &range16(0x8a, 0, 10, 4000), &data));
    let targets = [target(&mut device, 0, 512)];
    good(copy(&mut device, &list(0, 0x18, &targets, &[segment(0, (0, 10), (0, 5000), 4000)])));
    assert_eq!(good(run(&mut device, &range16(0x88, 0, 5000, 4000), &[])), data);
    // LIST ID USAGE 3: there is no status.
    assert_eq!(bad_field(&status(&mut device, 0)), (2, 7));
}

#[test]
fn blocks_of_other_lengths_fit_or_not() {
    let mut device = units();
    let targets = [target(&mut device, 0, 512), target(&mut device, 2, 4096)];
    good(copy(&mut device, &list(1, 0, &targets, &[segment(0, (0, 0), (1, 3), 8)])));
    let large = good(device.execute(A, 2, &range16(0x88, 0, 3, 1), &[]));
    assert_eq!((&large[..512], &large[512..1024]), (&*filled(1, 1), &*filled(1, 2)));
    good(copy(&mut device, &list(1, 0, &targets, &[segment(2, (0, 0), (1, 4), 2)])));
    assert_eq!(be32(&good(status(&mut device, 1)), 8), 8192);
    let inexact = list(1, 0, &targets, &[segment(0, (0, 0), (1, 3), 9)]);
    assert_eq!(sense(&copy(&mut device, &inexact)), (0x0a, 0x26, 0x0a));
    let wrong = [target(&mut device, 2, 512)];
    assert_eq!(bad_parameter(&copy(&mut device, &list(1, 0, &wrong, &[]))), (16 + 29, 7));
}

#[test]
fn a_copy_that_cannot_be_finished_is_not_begun() {
    let mut device = units();
    let mut nobody = target(&mut device, 0, 512);
    nobody[8..16].fill(0x3f);
    let targets = [target(&mut device, 0, 512), nobody, target(&mut device, 1, 512)];
    let well = segment(0, (0, 0), (0, 50), 2);
    for (bad, expected) in [
        (segment(0, (0, 0), (0, 99), 2), ABORTED),
        (segment(0, (0, u64::MAX), (0, 0), 2), ABORTED),
        (segment(0, (0, 0), (3, 0), 2), (0x0a, 0x08, 4)),
        (segment(0, (1, 0), (0, 0), 2), (0x0a, 0x0d, 2)),
    ] {
        let answer = copy(&mut device, &list(9, 0, &targets, &[well.clone(), bad]));
        assert_eq!(sense(&answer), expected);
        assert_eq!((block(&mut device, 50), good(status(&mut device, 9))[4]), (filled(1, 0), 2));
    }
    let list = list(9, 0, &targets, &[segment(0, (0, 0), (2, 0), 2)]);
    good(device.execute(B, 0, &cdb(12, 0xa0, [(9, &[16])]), &[]));
    while device.execute(B, 1, &[0; 6], &[]).status != 0 {}
    good(device.execute(B, 1, &[0x16, 0, 0, 0, 0, 0], &[]));
    assert_eq!(sense(&copy(&mut device, &list)), (0x0a, 0x0d, 1));
    good(device.execute(B, 1, &[0x17, 0, 0, 0, 0, 0], &[]));
    device.set_access(1, Access::ReadOnly);
    assert_eq!(sense(&copy(&mut device, &list)), (0x0a, 0x0d, 1));
    device.set_access(1, Access::ReadWrite);
    good(copy(&mut device, &list));
}

#[test]
fn more_descriptors_than_there_may_be() {
    let mut device = units();
    let said = good(run(&mut device, &cdb(16, 0x84, [(1, &[3]), (13, &[255])]), &[]));
    let most = |at: usize| usize::from(u16::from_be_bytes([said[at], said[at + 1]]));
    let (targets_max, segments_max) = (most(8), most(10));
    assert_eq!((be32(&said, 0), said[43..].to_vec()), (42, vec![2, 2, 0xe4]));
    let (target, well) = (target(&mut device, 0, 512), segment(0, (0, 0), (0, 50), 1));
    let mut with = |targets: usize, segments: usize| {
        let (targets, segments) = (vec![target.clone(); targets], vec![well.clone(); segments]);
        copy(&mut device, &list(1, 0, &targets, &segments))
    };
    good(with(targets_max, segments_max));
    assert_eq!(sense(&with(targets_max + 1, 1)), (5, 0x26, 6));
    assert_eq!(sense(&with(1, segments_max + 1)), (5, 0x26, 8));
    assert_eq!(sense(&with(targets_max + 1, segments_max + 1)), LIST_LENGTH);
    assert_eq!(be32(&said, 12), u32::try_from(targets_max * 32 + segments_max * 28).unwrap());
}

#[test]
fn lists_that_are_wrong() {
    let mut device = units();
    let (target, well) = (target(&mut device, 0, 512), segment(0, (0, 0), (0, 50), 1));
    let good_list = list(1, 0, std::slice::from_ref(&target), std::slice::from_ref(&well));
    good(copy(&mut device, &good_list));
    good(copy(&mut device, &[]));
    for len in [1, 15, 47, 75] {
        assert_eq!(sense(&copy(&mut device, &good_list[..len])), LIST_LENGTH);
    }
    let mut with = |at: usize, byte: u8| {
        let mut list = good_list.clone();
        list[at] = byte;
        copy(&mut device, &list)
    };
    assert_eq!(sense(&with(16, 0xe0)), (5, 0x26, 7));
    assert_eq!(sense(&with(48, 3)), (5, 0x26, 9));
    assert_eq!(sense(&with(51, 0x17)), LIST_LENGTH);
    assert_eq!(sense(&with(15, 1)), (5, 0x26, 0x0b));
    assert_eq!(bad_parameter(&with(1, 0x08)), (1, 4));
    assert_eq!(bad_parameter(&with(1, 0x18)), (0, 7));
    assert_eq!(bad_parameter(&with(17, 5)), (17, 4));
    assert_eq!(bad_parameter(&with(23, 21)), (23, 7));
    // LU ID TYPE and a priority are ignored.
    good(with(17, 0xc0));
    good(with(1, 7));
    let short = list(1, 0, &[target[..31].to_vec()], &[]);
    assert_eq!(bad_parameter(&copy(&mut device, &short)), (2, 7));
    assert_eq!(bad_field(&run(&mut device, &cdb(16, 0x84, [(1, &[1])]), &[])), (1, 4));
}

#[test]
fn the_page_of_copies_says_what_the_parameters_say() {
    let mut device = units();
    let said = good(run(&mut device, &cdb(16, 0x84, [(1, &[3]), (13, &[255])]), &[]));
    let page = good(run(&mut device, &[0x12, 1, 0x8f, 0, 255, 0], &[]));
    let mut parts = Vec::new();
    let mut rest = &page[4..];
    while !rest.is_empty() {
        let len = 4 + usize::from(u16::from_be_bytes([rest[2], rest[3]]));
        assert_eq!(len % 4, 0);
        parts.push((u16::from_be_bytes([rest[0], rest[1]]), rest[4..len].to_vec()));
        rest = &rest[len..];
    }
    let kinds: Vec<_> = parts.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [1, 4, 8, 0x0c, 0x8001]);
    assert_eq!(parts[0].1, [7, 0x83, 1, 0, 0x84, 2, 0, 3]);
    assert_eq!((&parts[1].1[4..12], parts[1].1.len()), (&said[8..16], 28));
    assert_eq!(parts[2].1[..3], said[43..46]);
    assert_eq!(parts[4].1.len(), 32);
}
