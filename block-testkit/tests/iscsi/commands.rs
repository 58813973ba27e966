//! Each command, right and wrong.

use block_testkit::iscsi::{
    Access, ConfigError, Device, LunConfig, Medium, Provisioning, Residual, SenseFormat, Unmapped,
};

use crate::kit::*;

const OUT_OF_RANGE: (u8, u8, u8) = (5, 0x21, 0);
const BLOCKS: u64 = 1000;

fn thin() -> Device {
    device(LunConfig::thin(512, BLOCKS))
}

fn granular(granularity: u32, alignment: u32, unmapped: Unmapped) -> Device {
    let provisioning = Provisioning::Thin { unmapped, granularity, alignment };
    device(LunConfig { provisioning, ..LunConfig::thin(512, BLOCKS) })
}

#[test]
fn reads_and_writes_of_both_lengths() {
    let mut device = thin();
    good(run(&mut device, &range10(0x2a, 0x08, 7, 2), &filled(2, 1)));
    good(run(&mut device, &range16(0x8a, 0x18, 998, 2), &filled(2, 2)));
    let mut expected = filled(1, 0);
    expected.extend(filled(2, 1));
    assert_eq!(good(run(&mut device, &range10(0x28, 0, 6, 3), &[])), expected);
    assert_eq!(good(run(&mut device, &range16(0x88, 0x10, 998, 2), &[])), filled(2, 2));
    assert!(good(run(&mut device, &range10(0x28, 0, 0, 0), &[])).is_empty());
}

#[test]
fn ranges_that_leave_the_medium_change_nothing() {
    let mut device = thin();
    for (lba, blocks) in [(999, 2), (1000, 1), (1000, 0), (u64::MAX, 1), (u64::MAX, u32::MAX >> 18)]
    {
        for opcode in [0x88, 0x8a, 0x91, 0x93] {
            let answer = run(&mut device, &range16(opcode, 0, lba, blocks), &filled(2, 1));
            if blocks == 0 && opcode == 0x93 {
                assert_eq!(bad_field(&answer), (10, 7));
            } else {
                assert_eq!(sense(&answer), OUT_OF_RANGE, "{opcode:x} {lba} {blocks}");
            }
        }
    }
    for opcode in [0x28, 0x2a, 0x35, 0x41] {
        let answer = run(&mut device, &range10(opcode, 0, 999, 2), &filled(2, 1));
        assert_eq!(sense(&answer), OUT_OF_RANGE);
    }
    assert_eq!(device.memory(), 0);
}

#[test]
fn longer_transfers_than_the_limit_point_at_the_length() {
    let config = LunConfig { max_transfer: 4, max_write_same: 8, ..LunConfig::thin(512, BLOCKS) };
    let mut device = device(config);
    good(run(&mut device, &range16(0x88, 0, 0, 4), &[]));
    assert_eq!(bad_field(&run(&mut device, &range16(0x88, 0, 0, 5), &[])), (10, 7));
    assert_eq!(bad_field(&run(&mut device, &range10(0x2a, 0, 0, 5), &filled(5, 1))), (7, 7));
    good(run(&mut device, &range16(0x93, 0, 0, 8), &filled(1, 1)));
    assert_eq!(bad_field(&run(&mut device, &range16(0x93, 0, 0, 9), &filled(1, 1))), (10, 7));
    // No length that 32 bits can say makes the target take memory.
    assert_eq!(bad_field(&run(&mut device, &range16(0x88, 0, 0, u32::MAX), &[])), (10, 7));
}

#[test]
fn fewer_blocks_than_the_cdb_says_are_a_residual() {
    let mut device = thin();
    let partial = run(&mut device, &range10(0x2a, 0, 0, 4), &filled(2, 1)[..1000]);
    assert_eq!((sense(&partial), block(&mut device, 0)), ((5, 0x0e, 3), filled(1, 0)));
    let answer = run(&mut device, &range10(0x2a, 0, 0, 4), &filled(1, 1));
    assert_eq!((answer.status, answer.data_out_len), (0, 2048));
    assert_eq!(answer.residual(1000), Residual::Overflow(1048));
    assert_eq!(answer.residual(2048), Residual::None);
    assert_eq!(answer.residual(4096), Residual::Underflow(2048));
    assert_eq!((block(&mut device, 0), block(&mut device, 1)), (filled(1, 1), filled(1, 0)));
    let read = run(&mut device, &range10(0x28, 0, 0, 2), &[]);
    assert_eq!(read.residual(512), Residual::Overflow(512));
    assert_eq!(read.residual(1025), Residual::Underflow(1));
    // Of a command without data, everything that was expected is missing.
    assert_eq!(run(&mut device, &[0; 6], &[]).residual(7), Residual::Underflow(7));
}

#[test]
fn unknown_commands_and_bits() {
    let mut device = thin();
    assert_eq!(sense(&run(&mut device, &[0xff; 16], &[])), (5, 0x20, 0));
    // RDPROTECT, a reserved byte, NACA, a service action.
    assert_eq!(bad_field(&run(&mut device, &range10(0x28, 0x20, 0, 1), &[])), (1, 5));
    assert_eq!(bad_field(&run(&mut device, &cdb(16, 0x88, [(14, &[1])]), &[])), (14, 0));
    assert_eq!(bad_field(&run(&mut device, &cdb(6, 0, [(5, &[4])]), &[])), (5, 2));
    assert_eq!(bad_field(&run(&mut device, &range16(0x9e, 0x1f, 0, 8), &[])), (1, 4));
}

#[test]
fn write_same_writes_and_gives_back() {
    let mut device = thin();
    good(run(&mut device, &range10(0x41, 0, 10, 100), &filled(1, 7)));
    assert_eq!(good(run(&mut device, &range16(0x88, 0, 10, 100), &[])), filled(100, 7));
    // Zeroes with UNMAP give back, other data does not.
    good(run(&mut device, &range10(0x41, 0x08, 10, 10), &filled(1, 0)));
    good(run(&mut device, &range16(0x93, 0x08, 20, 10), &filled(1, 9)));
    good(run(&mut device, &range16(0x93, 0x09, 30, 10), &[]));
    good(run(&mut device, &range16(0x93, 0x01, 40, 10), &[]));
    let mapped: Vec<_> = [10, 20, 30, 40].map(|lba| device.is_mapped(0, lba)).into();
    assert_eq!(mapped, [false, true, false, true]);
    for (lba, byte) in [(10, 0), (19, 0), (20, 9), (29, 9), (30, 0), (39, 0), (40, 0), (50, 7)] {
        assert_eq!(block(&mut device, lba), filled(1, byte), "{lba}");
    }
    assert_eq!(device.data_out_len(0, &range16(0x93, 0x09, 0, 1)), 0);
    assert_eq!(device.data_out_len(0, &range16(0x93, 0x08, 0, 1)), 512);
}

#[test]
fn write_same_wrong() {
    let mut device = thin();
    assert_eq!(bad_field(&run(&mut device, &range10(0x41, 0, 0, 0), &filled(1, 0))), (7, 7));
    assert_eq!(bad_field(&run(&mut device, &range16(0x93, 0x10, 0, 1), &filled(1, 0))), (1, 4));
    assert_eq!(sense(&run(&mut device, &range16(0x93, 0, 0, 1), &[0; 511])), (5, 0x0e, 3));
    let mut thick = crate::kit::device(LunConfig::thick(512, BLOCKS));
    assert_eq!(bad_field(&run(&mut thick, &range16(0x93, 0x08, 0, 1), &filled(1, 0))), (1, 3));
    good(run(&mut thick, &range16(0x93, 0, 0, 1), &filled(1, 1)));
}

#[test]
fn zeroes_take_no_memory() {
    let mut device = device(LunConfig::thin(4096, 1 << 40));
    good(run(&mut device, &range16(0x93, 0x01, 0, 1 << 20), &[]));
    assert_eq!(device.memory(), 0);
    good(run(&mut device, &range16(0x8a, 0, 1 << 39, 1), &[1; 4096]));
    assert_eq!(device.memory(), 64 * 4096);
    let (cdb, list) = unmap(&[(0, u32::MAX)]);
    good(run(&mut device, &cdb, &list));
    let (cdb, list) = unmap(&[(1 << 39, 1)]);
    good(run(&mut device, &cdb, &list));
    assert_eq!((device.memory(), device.is_mapped(0, 5)), (0, false));
}

#[test]
fn unmap_takes_whole_granules_and_keeps_what_is_not_whole() {
    let mut device = granular(8, 3, Unmapped::Zeroes);
    good(run(&mut device, &range16(0x8a, 0, 0, 40), &filled(40, 5)));
    // Granules begin at 3, 11, 19 and so on.
    let (cdb, list) = unmap(&[(4, 14), (20, 7), (27, 8)]);
    good(run(&mut device, &cdb, &list));
    let mapped: Vec<u64> = (0..40).filter(|lba| !device.is_mapped(0, *lba)).collect();
    assert_eq!(mapped, (27..35).collect::<Vec<_>>());
    let (cdb, list) = unmap(&[(3, 16)]);
    good(run(&mut device, &cdb, &list));
    assert!((3..19).all(|lba| !device.is_mapped(0, lba)) && device.is_mapped(0, 19));
    assert_eq!(block(&mut device, 2), filled(1, 5));
    assert_eq!(block(&mut device, 3), filled(1, 0));
    // WRITE SAME writes the edges and unmaps the middle.
    good(run(&mut device, &range16(0x93, 0x09, 0, 30), &[]));
    let mapped: Vec<_> = [2, 3, 26, 27].map(|lba| device.is_mapped(0, lba)).into();
    assert_eq!(mapped, [true, false, false, true]);
    assert_eq!(good(run(&mut device, &range16(0x88, 0, 0, 30), &[])), filled(30, 0));
}

#[test]
fn unmapped_blocks_read_as_junk_where_the_unit_says_so() {
    let mut device = granular(1, 0, Unmapped::Junk);
    assert_ne!(block(&mut device, 0), filled(1, 0));
    // Zeroes must be written then, whatever UNMAP says.
    good(run(&mut device, &range16(0x93, 0x09, 0, 2), &[]));
    assert_eq!((block(&mut device, 0), device.is_mapped(0, 0)), (filled(1, 0), true));
    let capacity = good(run(&mut device, &cdb(16, 0x9e, [(1, &[0x10]), (13, &[32])]), &[]));
    assert_eq!(capacity[14], 0x80);
    let page = good(run(&mut device, &[0x12, 1, 0xb2, 0, 255, 0], &[]));
    assert_eq!(page[5], 0xe0);
}

#[test]
fn unmap_wrong() {
    let most = LunConfig {
        max_unmap_descriptors: 2,
        max_unmap_blocks: 10,
        ..LunConfig::thin(512, BLOCKS)
    };
    let mut device = device(most);
    good(run(&mut device, &range16(0x8a, 0, 0, 20), &filled(20, 1)));
    let mut refused = |ranges: &[(u64, u32)]| {
        let (cdb, list) = unmap(ranges);
        run(&mut device, &cdb, &list)
    };
    assert_eq!(bad_parameter(&refused(&[(0, 1), (1, 1), (2, 1)])), (2, 7));
    assert_eq!(bad_parameter(&refused(&[(0, 5), (5, 6)])), (32, 7));
    // The second descriptor is wrong, so the first is not done either.
    assert_eq!(sense(&refused(&[(0, 5), (999, 2)])), OUT_OF_RANGE);
    assert_eq!(sense(&refused(&[(0, 5), (u64::MAX, 2)])), OUT_OF_RANGE);
    good(refused(&[]));
    // No blocks are well even at the end, but not beyond it.
    good(refused(&[(1000, 0)]));
    assert_eq!(sense(&refused(&[(1001, 0)])), OUT_OF_RANGE);
    let (cdb, list) = unmap(&[(0, 5)]);
    assert_eq!(sense(&run(&mut device, &cdb, &list[..23])), (5, 0x1a, 0));
    assert_eq!(sense(&run(&mut device, &cdb_with_len(7), &list)), (5, 0x1a, 0));
    assert_eq!(bad_field(&run(&mut device, &crate::kit::cdb(10, 0x42, [(1, &[1])]), &[])), (1, 0));
    good(run(&mut device, &cdb_with_len(0), &[]));
    // A descriptor that is not whole does not count.
    good(run(&mut device, &cdb_with_len(23), &list));
    assert!((0..20).all(|lba| device.is_mapped(0, lba)));
    let mut thick = crate::kit::device(LunConfig::thick(512, BLOCKS));
    assert_eq!(sense(&run(&mut thick, &cdb, &list)), (5, 0x20, 0));
}

fn cdb_with_len(len: u8) -> Vec<u8> {
    cdb(10, 0x42, [(8, &[len])])
}

#[test]
fn lba_status_names_runs() {
    let mut device = thin();
    good(run(&mut device, &range16(0x8a, 0, 100, 200), &filled(200, 1)));
    let status = |device: &mut Device, lba, allocation| {
        let data = good(run(device, &range16(0x9e, 0x12, lba, allocation), &[]));
        assert_eq!(be32(&data, 0), u32::try_from(data.len() - 4).unwrap());
        let descriptors = data[8..].chunks(16);
        let entry = |bytes: &[u8]| (be64(bytes, 0), be32(bytes, 8), bytes[12]);
        descriptors.map(entry).collect::<Vec<_>>()
    };
    let all = [(0, 100, 1), (100, 200, 0), (300, 700, 1)];
    assert_eq!(status(&mut device, 0, 1000), all);
    assert_eq!(status(&mut device, 0, 40), all[..2]);
    assert_eq!(status(&mut device, 299, 24), [(299, 1, 0)]);
    assert_eq!(status(&mut device, 999, 24), [(999, 1, 1)]);
    let cut = good(run(&mut device, &range16(0x9e, 0x12, 0, 20), &[]));
    assert_eq!((cut.len(), be32(&cut, 0)), (20, 20));
    assert_eq!(sense(&run(&mut device, &range16(0x9e, 0x12, 1000, 24), &[])), OUT_OF_RANGE);
    let mut thick = crate::kit::device(LunConfig::thick(4096, 1 << 40));
    let first = (0, u32::MAX, 0);
    assert_eq!(status(&mut thick, 0, 24), [first]);
    assert_eq!(status(&mut thick, 0, 4096).len(), 255);
}

#[test]
fn compare_and_write_compares_everything_first() {
    let mut device = thin();
    let data = [filled(2, 0), filled(2, 3)].concat();
    let command = cdb(16, 0x89, [(9, &[5]), (13, &[2])]);
    assert_eq!(run(&mut device, &command, &data).data_out_len, 2048);
    assert_eq!(block(&mut device, 6), filled(1, 3));
    let mut other = [filled(2, 3), filled(2, 4)].concat();
    other[700] = 0;
    other[900] = 0;
    let answer = run(&mut device, &command, &other);
    assert_eq!(sense(&answer), (0x0e, 0x1d, 0));
    assert_eq!((answer.sense[0], be32(&answer.sense, 3)), (0xf0, 700));
    assert_eq!((block(&mut device, 5), block(&mut device, 6)), (filled(1, 3), filled(1, 3)));
    assert_eq!(sense(&run(&mut device, &command, &other[..2047])), (5, 0x0e, 3));
    good(run(&mut device, &cdb(16, 0x89, [(9, &[5])]), &[]));
    let beyond = cdb(16, 0x89, [(8, &[3, 0xe7]), (13, &[2])]);
    assert_eq!(sense(&run(&mut device, &beyond, &data)), OUT_OF_RANGE);
}

#[test]
fn a_write_protected_unit_is_read_only() {
    let mut device = thin();
    assert!(device.set_access(0, Access::ReadOnly) && !device.set_access(9, Access::ReadOnly));
    assert_eq!(sense(&run(&mut device, &[0; 6], &[])), (6, 0x2a, 1));
    let (unmap_cdb, list) = unmap(&[(0, 1)]);
    for (command, data) in [
        (range10(0x2a, 0, 0, 1), filled(1, 1)),
        (range16(0x8a, 0, 0, 1), filled(1, 1)),
        (range10(0x41, 0, 0, 1), filled(1, 1)),
        (range16(0x93, 0, 0, 1), filled(1, 1)),
        (cdb(16, 0x89, [(13, &[1])]), filled(2, 0)),
        (unmap_cdb, list),
    ] {
        assert_eq!(sense(&run(&mut device, &command, &data)), (7, 0x27, 0));
    }
    good(run(&mut device, &range10(0x28, 0, 0, 1), &[]));
    good(run(&mut device, &range10(0x35, 0, 0, 0), &[]));
    assert_eq!(good(run(&mut device, &[0x1a, 8, 0x3f, 0, 255, 0], &[]))[2], 0x90);
}

#[test]
fn inquiry_and_its_pages() {
    let config = LunConfig { medium: Medium::Removable, ..LunConfig::thin(512, BLOCKS) };
    let mut device = device(config);
    let mut inquiry =
        |page: u8, evpd: u8, len: u8| run(&mut device, &[0x12, evpd, page, 0, len, 0], &[]);
    let standard = good(inquiry(0, 0, 255));
    assert_eq!((standard.len(), standard[0], standard[1], standard[4]), (96, 0, 0x80, 91));
    assert_eq!(good(inquiry(0, 0, 36)), standard[..36]);
    assert!(good(inquiry(0, 0, 0)).is_empty());
    let pages = good(inquiry(0, 1, 255));
    for page in &pages[4..] {
        let content = good(inquiry(*page, 1, 255));
        assert_eq!((content[1], usize::from(content[3])), (*page, content.len() - 4));
    }
    assert_eq!(pages[4..], [0, 0x80, 0x83, 0x8f, 0xb0, 0xb1, 0xb2]);
    assert_eq!(bad_field(&inquiry(0x80, 0, 255)), (2, 7));
    assert_eq!(bad_field(&inquiry(0x84, 1, 255)), (2, 7));
}

#[test]
fn capacities_of_both_lengths() {
    let mut device = device(LunConfig::thick(4096, 1 << 32));
    let short = good(run(&mut device, &cdb(10, 0x25, []), &[]));
    assert_eq!((be32(&short, 0), be32(&short, 4)), (u32::MAX, 4096));
    let long = good(run(&mut device, &cdb(16, 0x9e, [(1, &[0x10]), (13, &[32])]), &[]));
    assert_eq!(
        (be64(&long, 0), be32(&long, 8), long[14], long.len()),
        ((1 << 32) - 1, 4096, 0, 32)
    );
    assert_eq!(good(run(&mut device, &cdb(16, 0x9e, [(1, &[0x10]), (13, &[8])]), &[])), long[..8]);
}

#[test]
fn mode_pages_and_what_they_are_asked_for() {
    let mut device = thin();
    let mut mode = |cdb: [u8; 6]| run(&mut device, &cdb, &[]);
    let all = good(mode([0x1a, 8, 0x3f, 0, 255, 0]));
    assert_eq!((all.len(), all[0], all[2], all[3]), (4 + 20 + 12, 35, 0x10, 0));
    assert_eq!(good(mode([0x1a, 8, 0x3f, 0xff, 255, 0])), all);
    assert_eq!(good(mode([0x1a, 8, 0x08, 0, 255, 0]))[4..7], [0x08, 0x12, 0x04]);
    // Saved pages there are not.
    assert_eq!(sense(&mode([0x1a, 8, 0xff, 0, 255, 0])), (5, 0x39, 0));
    assert_eq!(bad_field(&mode([0x1a, 8, 0x01, 0, 255, 0])), (2, 5));
    assert_eq!(bad_field(&mode([0x1a, 8, 0x08, 1, 255, 0])), (3, 7));
    let described = good(mode([0x1a, 0, 0x0a, 0, 255, 0]));
    assert_eq!((described[3], be32(&described, 4), be32(&described, 8)), (8, 1000, 512));
    let long = good(run(&mut device, &cdb(10, 0x5a, [(1, &[8, 0x3f]), (8, &[255])]), &[]));
    assert_eq!((long[1], long[3], long.len()), (38, 0x10, 8 + 20 + 12));
    assert_eq!(long[8..], all[4..]);
}

#[test]
fn supported_commands_are_those_that_work() {
    let mut device = thin();
    let mut report = |fields: [u8; 4]| {
        let [options, opcode, high, low] = fields;
        let fields = [0x0c, options, opcode, high, low];
        run(&mut device, &cdb(12, 0xa3, [(1, &fields), (8, &[16])]), &[])
    };
    let all = good(report([0, 0, 0, 0]));
    assert_eq!((be32(&all, 0) % 8, (all.len() - 4) % 8), (0, 0));
    let has = |opcode| all[4..].chunks(8).any(|entry| entry[0] == opcode);
    assert!(has(0x42) && has(0x89) && !has(0x04));
    let timed = good(report([0x80, 0, 0, 0]));
    assert_eq!((timed.len() - 4) / 20, (all.len() - 4) / 8);
    let read = good(report([1, 0x28, 0, 0]));
    assert_eq!((read[1], read[3], &read[4..6]), (3, 10, &[0x28, 0x18][..]));
    assert_eq!(good(report([2, 0x9e, 0, 0x12]))[5], 0x12);
    assert_eq!(good(report([2, 0x9e, 0, 0x1f])), [0, 1, 0, 0]);
    assert_eq!(good(report([1, 0x04, 0, 0])), [0, 1, 0, 0]);
    assert_eq!(good(report([3, 0x28, 0, 0]))[1], 3);
    assert_eq!(bad_field(&report([1, 0x9e, 0, 0])), (2, 2));
    assert_eq!(bad_field(&report([2, 0x28, 0, 0])), (2, 2));
    assert_eq!(bad_field(&report([4, 0, 0, 0])), (2, 2));
}

#[test]
fn luns_that_are_there_and_one_that_is_not() {
    let mut device = Device::new(SenseFormat::Fixed);
    device.add(0, LunConfig::thin(512, 8)).unwrap();
    device.add(300, LunConfig::thick(4096, 8)).unwrap();
    let report = |device: &mut Device, select| {
        device.execute(A, 77, &cdb(12, 0xa0, [(2, &[select]), (9, &[255])]), &[])
    };
    let luns = good(report(&mut device, 2));
    assert_eq!((be32(&luns, 0), &luns[16..18]), (16, &[0x41, 0x2c][..]));
    assert_eq!(good(report(&mut device, 1)), [0; 8]);
    assert_eq!(bad_field(&report(&mut device, 3)), (2, 7));
    assert_eq!(sense(&device.execute(A, 1, &[0; 6], &[])), (5, 0x25, 0));
    assert_eq!(good(device.execute(A, 1, &[0x12, 0, 0, 0, 36, 0], &[]))[0], 0x7f);
    let requested = good(device.execute(A, 1, &[3, 0, 0, 0, 18, 0], &[]));
    assert_eq!((requested[2], requested[12]), (5, 0x25));
}

#[test]
fn units_that_cannot_be_are_refused() {
    let mut device = Device::new(SenseFormat::Fixed);
    let mut add = |config| device.add(0, config);
    assert_eq!(add(LunConfig::thin(520, 1)), Err(ConfigError::BlockSize(520)));
    assert_eq!(add(LunConfig::thin(512, 0)), Err(ConfigError::Blocks(0)));
    assert_eq!(add(LunConfig::thin(512, 1 << 60)), Err(ConfigError::Blocks(1 << 60)));
    let (granularity, alignment, unmapped) = (4, 4, Unmapped::Zeroes);
    let provisioning = Provisioning::Thin { unmapped, granularity, alignment };
    let refused = ConfigError::Granularity { granularity, alignment };
    assert_eq!(add(LunConfig { provisioning, ..LunConfig::thin(512, 1) }), Err(refused));
    assert_eq!(
        add(LunConfig { max_transfer: 0, ..LunConfig::thin(512, 1) }),
        Err(ConfigError::Limit)
    );
    let serial = "x".repeat(21);
    assert_eq!(add(LunConfig { serial, ..LunConfig::thin(512, 1) }), Err(ConfigError::Serial(21)));
    add(LunConfig::thin(512, 1)).unwrap();
    assert_eq!(add(LunConfig::thin(512, 1)), Err(ConfigError::Number(0)));
}

#[test]
fn everything_that_goes_over_the_wire_is_counted() {
    let mut device = thin();
    device.reset_counters();
    good(run(&mut device, &range10(0x2a, 0, 0, 2), &filled(2, 1)));
    good(run(&mut device, &range10(0x28, 0, 0, 1), &[]));
    good(run(&mut device, &range10(0x28, 0, 0, 2), &[]));
    let counters = device.counters();
    assert_eq!((counters.of(0x28), counters.of(0x2a), counters.of(0x88)), (2, 1, 0));
    assert_eq!((counters.total(), counters.data_in, counters.data_out), (3, 1536, 1024));
}
