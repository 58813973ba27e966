//! Commands by hand: bytes at their places, sense data taken apart.

use block_core::range::to_usize;
use block_testkit::iscsi::{Answer, Device, LunConfig, Nexus, SenseFormat};

pub(crate) const A: Nexus = Nexus(1);
pub(crate) const B: Nexus = Nexus(2);
pub(crate) const C: Nexus = Nexus(3);

/// A device with unit 0, which nobody must be told anything of.
pub(crate) fn device(config: LunConfig) -> Device {
    let mut device = Device::new(SenseFormat::Fixed);
    device.add(0, config).unwrap();
    for nexus in [A, B, C] {
        device.connect(nexus);
        assert_eq!(sense(&device.execute(nexus, 0, &[0; 6], &[])), (6, 0x29, 0));
    }
    device
}

/// A CDB of `len` bytes with these bytes at these places.
pub(crate) fn cdb<const N: usize>(len: usize, opcode: u8, fields: [(usize, &[u8]); N]) -> Vec<u8> {
    let mut bytes = vec![0; len];
    bytes[0] = opcode;
    for (at, field) in fields {
        bytes[at..at + field.len()].copy_from_slice(field);
    }
    bytes
}

/// A CDB of 10 bytes about a range.
pub(crate) fn range10(opcode: u8, flags: u8, lba: u32, blocks: u16) -> Vec<u8> {
    let (lba, blocks) = (lba.to_be_bytes(), blocks.to_be_bytes());
    cdb(10, opcode, [(1, &[flags]), (2, &lba), (7, &blocks)])
}

/// A CDB of 12 bytes about a range.
pub(crate) fn range12(opcode: u8, flags: u8, lba: u32, blocks: u32) -> Vec<u8> {
    let (lba, blocks) = (lba.to_be_bytes(), blocks.to_be_bytes());
    cdb(12, opcode, [(1, &[flags]), (2, &lba), (6, &blocks)])
}

/// A CDB of 16 bytes about a range.
pub(crate) fn range16(opcode: u8, flags: u8, lba: u64, blocks: u32) -> Vec<u8> {
    let (lba, blocks) = (lba.to_be_bytes(), blocks.to_be_bytes());
    cdb(16, opcode, [(1, &[flags]), (2, &lba), (10, &blocks)])
}

/// UNMAP and its parameter list.
pub(crate) fn unmap(ranges: &[(u64, u32)]) -> (Vec<u8>, Vec<u8>) {
    let descriptors_len = u16::try_from(ranges.len() * 16).unwrap();
    let mut list = (descriptors_len + 6).to_be_bytes().to_vec();
    list.extend(descriptors_len.to_be_bytes());
    list.extend([0; 4]);
    for (lba, blocks) in ranges {
        list.extend(lba.to_be_bytes());
        list.extend(blocks.to_be_bytes());
        list.extend([0; 4]);
    }
    let len = u16::try_from(list.len()).unwrap().to_be_bytes();
    (cdb(10, 0x42, [(7, &len)]), list)
}

/// Runs a command of nexus A on unit 0.
pub(crate) fn run(device: &mut Device, cdb: &[u8], data: &[u8]) -> Answer {
    device.execute(A, 0, cdb, data)
}

/// The data of a command that must be good.
pub(crate) fn good(answer: Answer) -> Vec<u8> {
    assert_eq!((answer.status, answer.sense), (0, Vec::new()));
    answer.data_in
}

/// Key, ASC and ASCQ of a command that must not be good.
pub(crate) fn sense(answer: &Answer) -> (u8, u8, u8) {
    assert_eq!((answer.status, answer.data_in.len()), (2, 0));
    assert_eq!((answer.sense[0] & 0x7f, answer.sense.len()), (0x70, 18));
    (answer.sense[2], answer.sense[12], answer.sense[13])
}

/// Byte and bit of a field of the CDB that must be invalid.
pub(crate) fn bad_field(answer: &Answer) -> (u8, u8) {
    assert_eq!(sense(answer), (5, 0x24, 0));
    pointer(answer, 0xc8)
}

/// Byte and bit of a field of the parameter list that must be invalid.
pub(crate) fn bad_parameter(answer: &Answer) -> (u8, u8) {
    assert_eq!(sense(answer), (5, 0x26, 0));
    pointer(answer, 0x88)
}

fn pointer(answer: &Answer, flags: u8) -> (u8, u8) {
    assert_eq!(answer.sense[15] & 0xf8, flags);
    (answer.sense[17], answer.sense[15] & 7)
}

/// The block `lba`, as READ (16) finds it.
pub(crate) fn block(device: &mut Device, lba: u64) -> Vec<u8> {
    good(run(device, &range16(0x88, 0, lba, 1), &[]))
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// `blocks` blocks of 512 bytes, all `byte`.
pub(crate) fn filled(blocks: u64, byte: u8) -> Vec<u8> {
    vec![byte; to_usize(blocks * 512)]
}
