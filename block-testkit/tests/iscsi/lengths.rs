//! READ and WRITE of every length, and what else moves blocks.

use block_testkit::iscsi::{ConfigError, Device, LunConfig, NoBlocks};

use crate::kit::*;

const OUT_OF_RANGE: (u8, u8, u8) = (5, 0x21, 0);

fn thin() -> Device {
    device(LunConfig::thin(512, 1000))
}

#[test]
fn reads_of_six_bytes_know_256_blocks_and_21_bits() {
    let mut device = device(LunConfig::thin(512, 0x20_0000));
    good(run(&mut device, &range12(0xaa, 0x18, 0x1f_fffe, 2), &filled(2, 7)));
    assert_eq!(good(run(&mut device, &[8, 0x1f, 0xff, 0xfe, 2, 0], &[])), filled(2, 7));
    assert_eq!(good(run(&mut device, &[8, 0x1f, 0xff, 0, 0, 0], &[])).len(), 256 * 512);
    assert_eq!(sense(&run(&mut device, &[8, 0x1f, 0xff, 0xfe, 3, 0], &[])), OUT_OF_RANGE);
    assert_eq!(bad_field(&run(&mut device, &[8, 0x20, 0, 0, 1, 0], &[])), (1, 5));
}

#[test]
fn reads_and_writes_of_twelve_bytes() {
    let config = LunConfig { max_transfer: 4, ..LunConfig::thin(512, 1000) };
    let mut device = device(config);
    let write = range12(0xaa, 0, 998, 2);
    assert_eq!(device.data_out_len(0, &write), 1024);
    good(run(&mut device, &write, &filled(2, 1)));
    assert_eq!(good(run(&mut device, &range12(0xa8, 0x18, 997, 3), &[]))[512..], filled(2, 1));
    assert_eq!(bad_field(&run(&mut device, &range12(0xa8, 0, 0, 5), &[])), (6, 7));
    for opcode in [0xa8, 0xaa] {
        let answer = run(&mut device, &range12(opcode, 0, 999, 2), &filled(2, 2));
        assert_eq!(sense(&answer), OUT_OF_RANGE);
    }
    assert_eq!(block(&mut device, 999), filled(1, 1));
}

#[test]
fn or_write_sets_bits_and_clears_none() {
    let mut device = thin();
    good(run(&mut device, &range16(0x8a, 0, 10, 2), &filled(2, 0x0f)));
    let or_write = range16(0x8b, 0x18, 10, 3);
    assert_eq!(device.data_out_len(0, &or_write), 1536);
    good(run(&mut device, &or_write, &filled(3, 0x11)));
    assert_eq!(
        (block(&mut device, 10), block(&mut device, 12)),
        (filled(1, 0x1f), filled(1, 0x11))
    );
    assert_eq!(sense(&run(&mut device, &range16(0x8b, 0, 999, 2), &filled(2, 1))), OUT_OF_RANGE);
    assert_eq!(bad_field(&run(&mut device, &range16(0x8b, 0x20, 0, 1), &filled(1, 1))), (1, 5));
}

#[test]
fn an_atomic_write_writes_everything_or_nothing() {
    let config = LunConfig { max_transfer: 0x2_0000, ..LunConfig::thin(512, 0x2_0000) };
    let mut device = device(config);
    let atomic = |lba: u64, blocks: u16| {
        cdb(16, 0x9c, [(2, &lba.to_be_bytes()), (12, &blocks.to_be_bytes())])
    };
    assert_eq!(device.data_out_len(0, &atomic(0, 3)), 1536);
    good(run(&mut device, &atomic(5, 3), &filled(3, 1)));
    good(run(&mut device, &atomic(5, 0), &[]));
    assert_eq!(sense(&run(&mut device, &atomic(5, 3), &filled(2, 2))), (5, 0x0e, 3));
    assert_eq!(sense(&run(&mut device, &atomic(0x1_ffff, 2), &filled(2, 2))), OUT_OF_RANGE);
    assert_eq!(block(&mut device, 6), filled(1, 1));
    // An atomic boundary is not known.
    assert_eq!(bad_field(&run(&mut device, &cdb(16, 0x9c, [(11, &[1])]), &[])), (11, 0));
    let limits = good(run(&mut device, &[0x12, 1, 0xb0, 0, 255, 0], &[]));
    assert_eq!((be32(&limits, 44), be32(&limits, 48), be32(&limits, 52)), (0xffff, 0, 0));
    let mut small = crate::kit::device(LunConfig { max_transfer: 2, ..LunConfig::thin(512, 9) });
    assert_eq!(bad_field(&run(&mut small, &atomic(0, 3), &filled(3, 1))), (12, 7));
}

#[test]
fn prefetching_checks_the_range_and_is_good() {
    let mut device = thin();
    let group = |cdb: Vec<u8>, at: usize| [&cdb[..at], &[3], &cdb[at + 1..]].concat();
    for (short, long) in [(999, 1), (0, 0)] {
        good(run(&mut device, &group(range10(0x34, 2, short, long), 6), &[]));
        good(run(&mut device, &group(range16(0x90, 0, short.into(), long.into()), 14), &[]));
    }
    assert_eq!(sense(&run(&mut device, &range10(0x34, 0, 1001, 0), &[])), OUT_OF_RANGE);
    assert_eq!(sense(&run(&mut device, &range16(0x90, 2, 999, 2), &[])), OUT_OF_RANGE);
    assert_eq!(bad_field(&run(&mut device, &range10(0x34, 1, 0, 1), &[])), (1, 0));
}

#[test]
fn there_are_no_defects() {
    let mut device = thin();
    let short = cdb(10, 0x37, [(2, &[0x1d]), (8, &[32])]);
    assert_eq!(good(run(&mut device, &short, &[])), [0, 0x1d, 0, 0]);
    let long = cdb(12, 0xb7, [(1, &[0x0d]), (9, &[32])]);
    assert_eq!(good(run(&mut device, &long, &[])), [0, 0x0d, 0, 0, 0, 0, 0, 0]);
    assert_eq!(good(run(&mut device, &cdb(10, 0x37, [(8, &[2])]), &[])), [0, 0]);
}

#[test]
fn write_same_of_no_blocks_may_go_to_the_end() {
    let config = LunConfig { no_blocks: NoBlocks::ToTheEnd, ..LunConfig::thin(512, 1000) };
    let mut device = device(LunConfig { max_write_same: 10, ..config });
    good(run(&mut device, &range10(0x41, 0, 990, 0), &filled(1, 3)));
    good(run(&mut device, &range16(0x93, 0x09, 995, 0), &[]));
    let found = [989, 990, 995, 999].map(|lba| block(&mut device, lba));
    assert_eq!(found, [0, 3, 0, 0].map(|byte| filled(1, byte)));
    assert_eq!(bad_field(&run(&mut device, &range16(0x93, 0, 989, 0), &filled(1, 3))), (10, 7));
    assert_eq!(sense(&run(&mut device, &range10(0x41, 0, 1001, 0), &filled(1, 3))), OUT_OF_RANGE);
    assert_eq!(good(run(&mut device, &[0x12, 1, 0xb0, 0, 255, 0], &[]))[4], 0);
    // Data for two blocks is not taken for data for one.
    assert_eq!(bad_field(&run(&mut device, &range10(0x41, 0, 0, 1), &filled(2, 3))), (7, 7));
}

#[test]
fn a_physical_block_is_of_several_blocks() {
    let config = LunConfig { physical_exponent: 3, ..LunConfig::thin(512, 1000) };
    let mut device = device(config.clone());
    let capacity = good(run(&mut device, &cdb(16, 0x9e, [(1, &[0x10]), (13, &[32])]), &[]));
    let limits = good(run(&mut device, &[0x12, 1, 0xb0, 0, 255, 0], &[]));
    assert_eq!((capacity[13], &limits[6..8]), (3, &[0, 8][..]));
    let refused = device.add(1, LunConfig { physical_exponent: 16, ..config });
    assert_eq!(refused, Err(ConfigError::Physical(16)));
}
