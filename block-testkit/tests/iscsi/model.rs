//! Random commands against flat bytes and one state per block.

use block_core::range::{to_u64, to_usize};
use block_testkit::iscsi::{Device, LunConfig, Provisioning, Unmapped};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::kit::*;

/// Not a multiple of a chunk, nor of a granule.
const BLOCKS: u64 = 333;
const COMMANDS: usize = 1500;

/// What must be there.
struct Model {
    /// The byte that each block is filled with; `None` if it is not mapped.
    blocks: Vec<Option<u8>>,
    shape: Shape,
}

#[derive(Copy, Clone, Debug)]
struct Shape {
    thin: bool,
    zeroes: bool,
    granularity: u64,
    alignment: u64,
}

impl Model {
    fn slice(&mut self, lba: u64, count: u64) -> &mut [Option<u8>] {
        &mut self.blocks[to_usize(lba)..to_usize(lba + count)]
    }

    /// Whether the whole granule of a block is inside of a range: block by block.
    fn is_freed(&self, block: u64, lba: u64, count: u64) -> bool {
        let Shape { granularity, alignment, .. } = self.shape;
        let mut first = i128::from(alignment) - i128::from(granularity);
        let step = i128::from(granularity);
        while first + step <= i128::from(block) {
            first += step;
        }
        first >= i128::from(lba) && first + step <= i128::from(lba + count)
    }

    fn unmap(&mut self, lba: u64, count: u64) {
        for block in lba..lba + count {
            if self.is_freed(block, lba, count) {
                self.blocks[to_usize(block)] = None;
            }
        }
    }

    fn check(&self, device: &mut Device, lba: u64, count: u32) {
        let data = good(run(device, &range16(0x88, 0, lba, count), &[]));
        assert_eq!(data.len(), 512 * to_usize(count.into()));
        for (block, bytes) in (lba..).zip(data.chunks(512)) {
            let unmapped = if self.shape.zeroes || !self.shape.thin { 0 } else { 0xa5 };
            let byte = self.blocks[to_usize(block)].unwrap_or(unmapped);
            assert!(bytes.iter().all(|found| *found == byte), "block {block}");
        }
    }

    /// GET LBA STATUS from `lba` on, against the state of each block.
    fn check_status(&self, device: &mut Device, lba: u64) {
        let data = good(run(device, &range16(0x9e, 0x12, lba, 1 << 16), &[]));
        let mut next = lba;
        for descriptor in data[8..].chunks(16) {
            assert_eq!(be64(descriptor, 0), next);
            let end = next + u64::from(be32(descriptor, 8));
            assert!(end > next);
            for block in next..end {
                let mapped = !self.shape.thin || self.blocks[to_usize(block)].is_some();
                assert_eq!(descriptor[12] == 0, mapped, "block {block}");
                assert_eq!(device.is_mapped(0, block), mapped);
            }
            next = end;
        }
        assert_eq!(next, BLOCKS);
    }
}

/// One random command, at the device and at the model.
fn step(rng: &mut ChaCha8Rng, device: &mut Device, model: &mut Model) {
    let lba = rng.random_range(0..BLOCKS);
    let count = rng.random_range(1..=(BLOCKS - lba).min(100));
    let count32 = u32::try_from(count).unwrap();
    let byte = rng.random_range(0..4u8);
    let zeroes = model.shape.zeroes && byte == 0;
    match rng.random_range(0..9) {
        0 | 1 => {
            good(run(device, &range16(0x8a, 0, lba, count32), &filled(count, byte)));
            model.slice(lba, count).fill(Some(byte));
        }
        2 => {
            good(run(device, &range16(0x93, 0, lba, count32), &filled(1, byte)));
            model.slice(lba, count).fill(Some(byte));
        }
        3 if model.shape.thin => {
            good(run(device, &range16(0x93, 0x08, lba, count32), &filled(1, byte)));
            model.slice(lba, count).fill(Some(byte));
            if zeroes {
                model.unmap(lba, count);
            }
        }
        4 if model.shape.thin => {
            let second = rng.random_range(0..BLOCKS);
            let (cdb, list) = unmap(&[(lba, count32), (second, 1)]);
            good(run(device, &cdb, &list));
            model.unmap(lba, count);
            model.unmap(second, 1);
        }
        5 => {
            let blocks = u8::try_from(count.min(9)).unwrap();
            let data = good(run(device, &range16(0x88, 0, lba, blocks.into()), &[]));
            let data = [data, filled(blocks.into(), byte)].concat();
            let (address, blocks) = (lba.to_be_bytes(), [blocks]);
            good(run(device, &cdb(16, 0x89, [(2, &address), (13, &blocks)]), &data));
            model.slice(lba, blocks[0].into()).fill(Some(byte));
        }
        6 => model.check_status(device, lba),
        7 => {
            let beyond = range16(0x8a, 0, BLOCKS - 1, 2);
            assert_eq!(sense(&run(device, &beyond, &filled(2, 9))), (5, 0x21, 0));
        }
        _ => model.check(device, lba, count32),
    }
}

fn play(seed: u64, shape: Shape) {
    println!("seed {seed}, {shape:?}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let provisioning = if shape.thin {
        Provisioning::Thin {
            unmapped: if shape.zeroes { Unmapped::Zeroes } else { Unmapped::Junk },
            granularity: u32::try_from(shape.granularity).unwrap(),
            alignment: u32::try_from(shape.alignment).unwrap(),
        }
    } else {
        Provisioning::Thick
    };
    let mut device = device(LunConfig { provisioning, ..LunConfig::thin(512, BLOCKS) });
    let mut model = Model { blocks: vec![None; to_usize(BLOCKS)], shape };
    let mut unmapped_seen = 0;
    for _ in 0..COMMANDS {
        step(&mut rng, &mut device, &mut model);
        unmapped_seen += model.blocks.iter().filter(|block| block.is_none()).count();
        let mapped = model.blocks.iter().flatten().count();
        // At most a chunk for each block that holds something.
        assert!(device.memory() <= to_u64(mapped) * 64 * 512);
    }
    model.check(&mut device, 0, u32::try_from(BLOCKS).unwrap());
    model.check_status(&mut device, 0);
    assert!(unmapped_seen > 0);
}

#[test]
fn a_unit_is_a_flat_disk_with_a_state_per_block() {
    let plain = Shape { thin: true, zeroes: true, granularity: 1, alignment: 0 };
    for (seed, shape) in (0..).zip([
        plain,
        Shape { thin: false, ..plain },
        Shape { zeroes: false, ..plain },
        Shape { granularity: 8, ..plain },
        Shape { granularity: 7, alignment: 5, ..plain },
        Shape { granularity: 64, alignment: 63, ..plain },
        Shape { granularity: 16, alignment: 1, zeroes: false, ..plain },
    ]) {
        play(seed, shape);
    }
}

#[test]
fn any_command_is_answered() {
    let seed = 42;
    println!("seed {seed}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut device = device(LunConfig::thin(512, BLOCKS));
    let opcodes = [0, 3, 0x12, 0x16, 0x1a, 0x28, 0x2a, 0x35, 0x41, 0x42, 0x5a, 0x5e, 0x5f, 0x88];
    let more = [0x89, 0x8a, 0x91, 0x93, 0x9e, 0xa0, 0xa3, 0xff, 8, 0x15, 0x1b, 0x2e, 0x2f, 0x34];
    let rest = [0x37, 0x48, 0x55, 0x83, 0x84, 0x8b, 0x8e, 0x8f, 0x90, 0x9c, 0xa8, 0xaa, 0xae, 0xb7];
    let opcodes = [opcodes.as_slice(), &more, &rest].concat();
    let (mut done, mut refused) = (0, 0);
    for _ in 0..20_000 {
        let mut cdb = vec![0; rng.random_range(0..20)];
        for byte in &mut cdb {
            // Mostly small numbers, or every command would be out of range.
            *byte = if rng.random_range(0..4) == 0 { rng.random() } else { 0 };
        }
        if let Some(opcode) = cdb.first_mut() {
            *opcode = opcodes[rng.random_range(0..opcodes.len())];
        }
        let mut data = vec![0; rng.random_range(0..2000)];
        rng.fill(data.as_mut_slice());
        let answer = device.execute(A, rng.random_range(0..2), &cdb, &data);
        match answer.status {
            0 => done += 1,
            2 => assert!(!answer.sense.is_empty() && answer.data_in.is_empty()),
            status => assert_eq!(status, 0x18),
        }
        refused += u32::from(answer.status != 0);
    }
    assert!(done > 1000 && refused > 1000, "{done} {refused}");
}
