//! VERIFY and WRITE AND VERIFY.

use block_testkit::iscsi::{Device, LunConfig};

use crate::kit::*;

const MISCOMPARE: (u8, u8, u8) = (0x0e, 0x1d, 0);

/// Blocks 5 and 6 hold something.
fn written() -> Device {
    let mut device = device(LunConfig::thin(512, 100));
    good(run(&mut device, &range16(0x8a, 0, 5, 2), &[filled(1, 1), filled(1, 2)].concat()));
    device
}

fn all_lengths(flags: u8, lba: u32, blocks: u16) -> [Vec<u8>; 3] {
    [
        range10(0x2f, flags, lba, blocks),
        range12(0xaf, flags, lba, blocks.into()),
        range16(0x8f, flags, lba.into(), blocks.into()),
    ]
}

#[test]
fn without_bytes_the_range_is_all_that_counts() {
    let mut device = written();
    for cdb in all_lengths(0x10, 5, 95) {
        assert_eq!(device.data_out_len(0, &cdb), 0);
        good(run(&mut device, &cdb, &[]));
    }
    for cdb in all_lengths(0, 5, 96).into_iter().chain(all_lengths(2, 101, 0)) {
        assert_eq!(sense(&run(&mut device, &cdb, &[])), (5, 0x21, 0));
    }
    for cdb in all_lengths(0x20, 5, 1) {
        assert_eq!(bad_field(&run(&mut device, &cdb, &[])), (1, 5));
    }
    for cdb in all_lengths(4, 5, 1) {
        assert_eq!(bad_field(&run(&mut device, &cdb, &[])), (1, 2));
    }
}

#[test]
fn bytes_are_compared_and_the_first_that_differs_is_named() {
    let mut device = written();
    let mut data = [filled(1, 1), filled(1, 2), filled(1, 0)].concat();
    for cdb in all_lengths(2, 5, 3) {
        assert_eq!(device.data_out_len(0, &cdb), 1536);
        good(run(&mut device, &cdb, &data));
    }
    data[513] = 0;
    data[1100] = 1;
    for cdb in all_lengths(2, 5, 3) {
        let answer = run(&mut device, &cdb, &data);
        assert_eq!(sense(&answer), MISCOMPARE);
        assert_eq!((answer.sense[0], be32(&answer.sense, 3)), (0xf0, 513));
    }
}

#[test]
fn one_block_is_compared_with_each() {
    let mut device = written();
    for cdb in all_lengths(6, 10, 50) {
        assert_eq!(device.data_out_len(0, &cdb), 512);
        good(run(&mut device, &cdb, &filled(1, 0)));
        let answer = run(&mut device, &cdb, &filled(1, 9));
        assert_eq!(sense(&answer), MISCOMPARE);
    }
    let answer = run(&mut device, &range16(0x8f, 6, 5, 2), &filled(1, 1));
    assert_eq!((sense(&answer), be32(&answer.sense, 3)), (MISCOMPARE, 512));
    assert_eq!(sense(&run(&mut device, &range16(0x8f, 6, 5, 2), &[1; 9])), (5, 0x0e, 3));
    assert_eq!(device.data_out_len(0, &range10(0x2f, 6, 5, 0)), 0);
}

#[test]
fn what_is_written_and_verified_is_written() {
    let mut device = written();
    let all = [range10(0x2e, 0x12, 0, 2), range12(0xae, 0x10, 10, 2), range16(0x8e, 0x02, 98, 2)];
    for (cdb, lba) in all.iter().zip([0, 10, 98]) {
        assert_eq!(device.data_out_len(0, cdb), 1024);
        good(run(&mut device, cdb, &filled(2, 7)));
        assert_eq!(good(run(&mut device, &range16(0x88, 0, lba, 2), &[])), filled(2, 7));
    }
    let beyond = run(&mut device, &range16(0x8e, 0, 99, 2), &filled(2, 8));
    assert_eq!(sense(&beyond), (5, 0x21, 0));
    assert_eq!(bad_field(&run(&mut device, &range10(0x2e, 4, 0, 1), &filled(1, 8))), (1, 2));
    assert_eq!(block(&mut device, 99), filled(1, 7));
}

#[test]
fn compare_and_write_of_256_blocks_is_not_taken_for_none() {
    let mut device = written();
    let compare = cdb(16, 0x89, [(9, &[5])]);
    good(run(&mut device, &compare, &[]));
    assert_eq!(bad_field(&run(&mut device, &compare, &filled(2, 1))), (13, 7));
    let one = cdb(16, 0x89, [(9, &[5]), (13, &[1])]);
    assert_eq!(bad_field(&run(&mut device, &one, &filled(4, 1))), (13, 7));
    assert_eq!(sense(&run(&mut device, &one, &filled(1, 1))), (5, 0x0e, 3));
}
