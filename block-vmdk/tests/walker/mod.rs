//! A walker over streamOptimized images, from the format's description alone: it shares no code with the writer.

#![allow(unreachable_pub, reason = "a module of a test")]

use std::collections::BTreeMap;

/// What was found.
pub(crate) struct Walked {
    /// The contents of the disk.
    pub(crate) disk: Vec<u8>,
    /// How many grains are stored.
    pub(crate) grains: usize,
    head: Vec<u8>,
    /// The bytes of each grain, with its marker.
    stored: Vec<Vec<u8>>,
}

fn word(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()).try_into().unwrap()
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn inflate(stream: &[u8]) -> Vec<u8> {
    let mut grain = vec![0; 65536];
    let mut decoder = libdeflater::Decompressor::new();
    let len = decoder.zlib_decompress(stream, &mut grain).unwrap();
    // Every grain is whole.
    assert_eq!(len, grain.len());
    grain
}

/// Walks an image: header, descriptor, (grains, table)*, directory, footer, end. Panics where it is not one.
pub(crate) fn walk(file: &[u8]) -> Walked {
    assert_eq!(file.len() % 512, 0);
    assert_eq!(&file[..4], b"KDMV");
    assert_eq!((word(file, 4), word(file, 8)), (3, 0x3_0001));
    let capacity = usize::try_from(long(file, 12)).unwrap();
    // Grain, descriptor, entries of a table, no redundant directory, directory in the footer.
    assert_eq!((long(file, 20), long(file, 28), long(file, 36)), (128, 1, 20));
    assert_eq!((word(file, 44), long(file, 48), long(file, 56)), (512, 0, u64::MAX));
    assert_eq!((long(file, 64), file[72], &file[73..79]), (128, 0, &b"\n \r\n\x01\0"[..]));
    assert!(file[79..512].iter().all(|byte| *byte == 0));
    let text = std::str::from_utf8(&file[512..21 * 512]).unwrap().trim_end_matches('\0');
    let extent = format!("\nRW {capacity} SPARSE \"disk.vmdk\"\n");
    assert!(text.starts_with("# Disk DescriptorFile\n") && text.contains(&extent), "{text}");
    assert!(
        text.contains("\ncreateType=\"streamOptimized\"\n") && text.contains("parentCID=ffffffff")
    );

    let mut disk = vec![0; capacity * 512];
    let mut stored = Vec::new();
    let mut tables = BTreeMap::new();
    let mut pending: BTreeMap<usize, usize> = BTreeMap::new();
    let mut at = 128 * 512;
    loop {
        let (value, size, kind) = (long(file, at), word(file, at + 8), word(file, at + 12));
        if size > 0 {
            let lba = usize::try_from(value).unwrap();
            assert!(lba % 128 == 0 && lba < capacity);
            let grain = inflate(&file[at + 12..at + 12 + size]);
            let end = disk.len().min(lba * 512 + 65536);
            assert!(grain[end - lba * 512..].iter().all(|byte| *byte == 0));
            disk[lba * 512..end].copy_from_slice(&grain[..end - lba * 512]);
            let next = (at + 12 + size).next_multiple_of(512);
            assert!(file[at + 12 + size..next].iter().all(|byte| *byte == 0));
            pending.insert(lba / 128, at / 512);
            stored.push(file[at..next].to_vec());
            at = next;
            continue;
        }
        assert!(file[at + 16..at + 512].iter().all(|byte| *byte == 0));
        if kind != 1 {
            assert_eq!(kind, 2);
            break;
        }
        assert_eq!(value, 4);
        at += 512;
        // The grains of one table came since the last one, and it has no others.
        let index = pending.keys().next().unwrap() / 512;
        for slot in 0..512 {
            let named = pending.remove(&(index * 512 + slot)).unwrap_or(0);
            assert_eq!(word(file, at + slot * 4), named);
        }
        assert!(pending.is_empty());
        assert!(tables.insert(index, at / 512).is_none());
        at += 4 * 512;
    }
    let entries = capacity.div_ceil(512 * 128);
    assert_eq!(long(file, at), u64::try_from((entries * 4).div_ceil(512)).unwrap());
    at += 512;
    let directory = at / 512;
    for index in 0..entries {
        assert_eq!(word(file, at + index * 4), tables.remove(&index).unwrap_or(0));
    }
    assert!(pending.is_empty() && tables.is_empty());
    at += (entries * 4).next_multiple_of(512);
    assert_eq!((long(file, at), word(file, at + 8), word(file, at + 12)), (1, 0, 3));
    let footer = &file[at + 512..at + 1024];
    assert_eq!(long(footer, 56), u64::try_from(directory).unwrap());
    assert!(footer[..56] == file[..56] && footer[64..] == file[64..512]);
    assert!(file[at + 1024..].iter().all(|byte| *byte == 0) && file.len() == at + 1536);
    Walked { disk, grains: stored.len(), head: file[..128 * 512].to_vec(), stored }
}

impl Walked {
    /// The image of a disk of one table with its grains changed, and everything behind them made to fit.
    pub(crate) fn rebuild(&self, change: impl FnOnce(&mut Vec<Vec<u8>>)) -> Vec<u8> {
        let mut stored = self.stored.clone();
        change(&mut stored);
        let mut file = self.head.clone();
        let mut table = vec![0; 2048];
        for grain in stored {
            let slot = usize::try_from(long(&grain, 0)).unwrap() / 128;
            let sector = u32::try_from(file.len() / 512).unwrap();
            table[slot * 4..slot * 4 + 4].copy_from_slice(&sector.to_le_bytes());
            file.extend(grain);
        }
        let marker = |sectors: u8, kind: u8| {
            let mut sector = vec![0; 512];
            (sector[0], sector[12]) = (sectors, kind);
            sector
        };
        file.extend(marker(4, 1));
        let mut directory = vec![0; 512];
        let sector = u32::try_from(file.len() / 512).unwrap();
        directory[..4].copy_from_slice(&sector.to_le_bytes());
        file.extend(table);
        file.extend(marker(1, 2));
        let mut footer = self.head[..512].to_vec();
        footer[56..64].copy_from_slice(&u64::try_from(file.len() / 512).unwrap().to_le_bytes());
        file.extend(directory);
        file.extend(marker(1, 3));
        file.extend(footer);
        file.extend(marker(0, 0));
        file
    }
}
