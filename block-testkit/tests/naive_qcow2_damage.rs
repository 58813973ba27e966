//! The naive checker finds what was damaged on purpose, and `qemu-img check` agrees on how bad it
//! is. Damage that `qemu-img check` is known to miss is in tests of its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, and these helpers run in tests only"
)]

use block_testkit::naive::qcow2::{Finding, Image, Place, Report, Role};
use block_testkit::peer::{ImageDir, Verdict};

const COPIED: u64 = 1 << 63;

/// An image that is about to be damaged.
struct Victim {
    bytes: Vec<u8>,
}

impl Victim {
    fn u64(&self, at: u64) -> u64 {
        let at = usize::try_from(at).unwrap();
        u64::from_be_bytes(self.bytes[at..at + 8].try_into().unwrap())
    }

    fn set_u64(&mut self, at: u64, value: u64) {
        let at = usize::try_from(at).unwrap();
        self.bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }

    fn image(&self) -> Image<'_> {
        Image::open(&self.bytes).unwrap()
    }

    fn cluster_size(&self) -> u64 {
        self.image().header().cluster_size()
    }

    /// Where the first L1 entry is.
    fn l1(&self) -> u64 {
        self.image().header().l1_table_offset
    }

    /// Where entry `index` of the first L2 table is.
    fn l2(&self, index: u64) -> u64 {
        let table = self.u64(self.l1()) & !COPIED;
        table + index * self.image().header().l2_entry_size()
    }

    /// Host cluster of the guest cluster `index` of the first L2 table.
    fn data(&self, index: u64) -> u64 {
        (self.u64(self.l2(index)) & !COPIED) / self.cluster_size()
    }

    /// The first guest cluster that is compressed.
    fn compressed(&self) -> u64 {
        let map = self.image().map().unwrap();
        let found = |place| matches!(place, Place::Compressed { .. });
        map.iter().find(|p| found(p.place)).unwrap().guest / self.cluster_size()
    }

    /// Writes a refcount of any width.
    fn set_refcount(&mut self, cluster: u64, value: u64) {
        let (bits, table, cluster_size) = {
            let image = self.image();
            let header = image.header();
            let bits = u64::from(header.refcount_bits());
            (bits, header.refcount_table_offset, header.cluster_size())
        };
        let per_block = cluster_size * 8 / bits;
        let block = self.u64(table + cluster / per_block * 8);
        let first_bit = cluster % per_block * bits;
        for bit in 0..bits.min(8) {
            // Below a byte the lowest bit comes first; above it the lowest byte comes last.
            let at = usize::try_from(block + first_bit / 8 + (bits.max(8) / 8 - 1)).unwrap();
            let mask = 1 << (first_bit % 8 + bit);
            self.bytes[at] &= !mask;
            if value >> bit & 1 != 0 {
                self.bytes[at] |= mask;
            }
        }
        assert_eq!(self.image().refcount(cluster), Ok(value));
    }

    /// A cluster more at the end of the file; its number.
    fn grow(&mut self) -> u64 {
        let size = self.cluster_size();
        let clusters = u64::try_from(self.bytes.len()).unwrap().div_ceil(size);
        let len = usize::try_from((clusters + 1) * size).unwrap();
        self.bytes.resize(len, 0);
        clusters
    }
}

/// Makes an image: guest clusters 0 to 7 hold data, 16 to 19 are compressed.
fn victim(dir: &ImageDir, options: &str) -> Victim {
    dir.qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, "v", "64M"]).unwrap();
    let text = dir.bytes("v").unwrap();
    let cluster = Image::open(&text).unwrap().header().cluster_size();
    let write = format!("write -P 1 0 {}", cluster * 8);
    let compressed = format!("write -c -P 2 {} {}", cluster * 16, cluster * 4);
    dir.qemu_io("v", &[&write, &compressed]).unwrap();
    Victim { bytes: dir.bytes("v").unwrap() }
}

fn report(victim: &Victim) -> Report {
    victim.image().check().unwrap()
}

fn verdict(report: &Report) -> Verdict {
    match (report.errors(), report.leaks()) {
        (0, 0) => Verdict::Clean,
        (0, _) => Verdict::Leaks,
        _ => Verdict::Errors,
    }
}

/// Damages images of several shapes; both checkers must say `expected` of each.
fn both_say(expected: Verdict, shapes: &[&str], damage: impl Fn(&mut Victim)) {
    let dir = ImageDir::new().unwrap();
    for options in shapes {
        let mut victim = victim(&dir, options);
        assert!(report(&victim).is_clean(), "{options}: {}", report(&victim));
        damage(&mut victim);
        let found = report(&victim);
        assert_eq!(verdict(&found), expected, "{options}: {found}");
        dir.write("damaged", &victim.bytes).unwrap();
        assert_eq!(dir.check("damaged").unwrap(), expected, "{options}: {found}");
    }
}

const WIDTHS: &[&str] = &[
    "refcount_bits=1,cluster_size=512",
    "refcount_bits=2",
    "refcount_bits=4,cluster_size=4k",
    "refcount_bits=8",
    "compat=0.10",
    "refcount_bits=32",
    "refcount_bits=64,extended_l2=on",
];

#[test]
fn a_cluster_that_nobody_uses_is_a_leak() {
    both_say(Verdict::Leaks, WIDTHS, |v| {
        let cluster = v.grow();
        v.set_refcount(cluster, 1);
        assert_eq!(report(v).findings, [Finding::Refcount { cluster, stored: 1, references: 0 }]);
    });
}

#[test]
fn a_used_cluster_without_refcount_is_an_error() {
    both_say(Verdict::Errors, WIDTHS, |v| {
        let cluster = v.data(3);
        v.set_refcount(cluster, 0);
        // The COPIED flag, which says one, is wrong too.
        assert_eq!((report(v).errors(), report(v).leaks()), (2, 0));
    });
}

#[test]
fn a_refcount_too_high_is_a_leak_and_a_wrong_flag() {
    both_say(Verdict::Errors, &WIDTHS[1..], |v| {
        let cluster = v.data(0);
        v.set_refcount(cluster, 2);
        assert_eq!((report(v).errors(), report(v).leaks()), (1, 1));
    });
}

#[test]
fn a_missing_copied_flag_is_an_error() {
    both_say(Verdict::Errors, WIDTHS, |v| {
        let at = v.l1();
        v.set_u64(at, v.u64(at) & !COPIED);
        assert!(matches!(
            report(v).findings[..],
            [Finding::Copied { role: Role::L2, copied: false, .. }]
        ));
    });
    both_say(Verdict::Errors, WIDTHS, |v| {
        let at = v.l2(2);
        v.set_u64(at, v.u64(at) & !COPIED);
        assert!(matches!(
            report(v).findings[..],
            [Finding::Copied { role: Role::Data, copied: false, .. }]
        ));
    });
}

#[test]
fn two_entries_with_one_cluster_are_an_error() {
    both_say(Verdict::Errors, WIDTHS, |v| {
        let (from, to) = (v.l2(0), v.l2(1));
        v.set_u64(to, v.u64(from));
        // The cluster that is not used any more is leaked.
        assert_eq!((report(v).errors(), report(v).leaks()), (1, 1));
    });
}

#[test]
fn reserved_and_misaligned_entries_are_errors() {
    let shapes = ["cluster_size=4k", "extended_l2=on", "compat=0.10"];
    both_say(Verdict::Errors, &shapes, |v| {
        let at = v.l2(0);
        v.set_u64(at, v.u64(at) | 512);
    });
    both_say(Verdict::Errors, &shapes, |v| {
        let at = v.l1();
        v.set_u64(at, v.u64(at) | 512);
    });
    both_say(Verdict::Errors, &shapes, |v| {
        let at = v.l2(0);
        v.set_u64(at, v.u64(at) | 1 << 57);
    });
    both_say(Verdict::Errors, &shapes, |v| {
        let at = v.l1();
        v.set_u64(at, v.u64(at) | 2);
    });
}

#[test]
fn a_cluster_beyond_the_end_of_the_file_is_an_error() {
    both_say(Verdict::Errors, &["cluster_size=4k", "extended_l2=on"], |v| {
        let at = v.l2(0);
        v.set_u64(at, COPIED | 1 << 40);
        let beyond = |f: &Finding| matches!(f, Finding::Beyond { role: Role::Data, .. });
        assert!(report(v).findings.iter().any(beyond));
    });
}

#[test]
fn a_copied_flag_on_a_compressed_cluster_is_an_error() {
    both_say(Verdict::Errors, WIDTHS, |v| {
        let at = v.l2(v.compressed());
        v.set_u64(at, v.u64(at) | COPIED);
        assert_eq!((report(v).errors(), report(v).leaks()), (1, 0));
    });
}

#[test]
fn a_damaged_refcount_table_is_an_error() {
    let dir = ImageDir::new().unwrap();
    for (options, entry) in
        [("cluster_size=4k", 512), ("refcount_bits=64", 512), ("cluster_size=4k", 1 << 40)]
    {
        let mut victim = victim(&dir, options);
        let at = victim.image().header().refcount_table_offset;
        victim.set_u64(at, victim.u64(at) | entry);
        assert_eq!(verdict(&report(&victim)), Verdict::Errors, "{options}");
        dir.write("damaged", &victim.bytes).unwrap();
        // The tool finds it, and then cannot go on.
        let theirs = dir.check("damaged");
        assert!(!matches!(theirs, Ok(Verdict::Clean | Verdict::Leaks)), "{options}");
    }
}

#[test]
fn contradicting_subclusters_are_errors() {
    both_say(Verdict::Errors, &["extended_l2=on"], |v| {
        let at = v.l2(0) + 8;
        v.set_u64(at, v.u64(at) | 1 << 35);
        assert_eq!((report(v).errors(), report(v).leaks()), (1, 0));
    });
    // Subclusters allocated in a cluster that is not.
    both_say(Verdict::Errors, &["extended_l2=on"], |v| {
        let at = v.l2(30) + 8;
        v.set_u64(at, 1);
        assert_eq!((report(v).errors(), report(v).leaks()), (1, 0));
    });
}

#[test]
fn what_a_lost_snapshot_table_referred_to_is_leaked() {
    let dir = ImageDir::new().unwrap();
    let mut victim = victim(&dir, "cluster_size=4k");
    dir.qemu_img(&["snapshot", "-c", "one", "v"]).unwrap();
    victim.bytes = dir.bytes("v").unwrap();
    assert!(report(&victim).is_clean(), "{}", report(&victim));
    victim.bytes[60..64].fill(0);
    let found = report(&victim);
    dir.write("damaged", &victim.bytes).unwrap();
    assert_eq!(verdict(&found), Verdict::Leaks, "{found}");
    assert_eq!(dir.check("damaged").unwrap(), Verdict::Leaks);
}

#[test]
fn bitmaps_that_are_not_to_be_trusted_are_leaked() {
    let dir = ImageDir::new().unwrap();
    let mut victim = victim(&dir, "cluster_size=4k");
    dir.qemu_img(&["bitmap", "--add", "v", "b"]).unwrap();
    dir.qemu_io("v", &["write 0 64k"]).unwrap();
    victim.bytes = dir.bytes("v").unwrap();
    assert!(report(&victim).is_clean(), "{}", report(&victim));
    // Bit 0 of the autoclear features.
    victim.bytes[95] &= !1;
    let found = report(&victim);
    dir.write("damaged", &victim.bytes).unwrap();
    assert_eq!(verdict(&found), Verdict::Leaks, "{found}");
    assert_eq!(dir.check("damaged").unwrap(), Verdict::Leaks);
}

#[test]
fn lazy_refcounts_are_wrong_after_a_crash() {
    let dir = ImageDir::new().unwrap();
    let options = "lazy_refcounts=on";
    dir.qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, "v", "64M"]).unwrap();
    dir.run("qemu-io", &["-c", "write -P 1 0 1M", "-c", "flush", "-c", "sigraise 9", "v"]).unwrap();
    let victim = Victim { bytes: dir.bytes("v").unwrap() };
    assert_eq!(victim.image().header().incompatible_features, 1);
    assert_eq!(victim.image().read(0, 4).unwrap(), [1; 4]);
    assert_eq!(verdict(&report(&victim)), Verdict::Errors);
    assert_eq!(dir.check("v").unwrap(), Verdict::Errors);
}

#[test]
fn guest_data_over_metadata_is_found_though_the_refcounts_fit() {
    let dir = ImageDir::new().unwrap();
    let mut victim = victim(&dir, "refcount_bits=16");
    let (old, table) = (victim.data(1), victim.l1() / victim.cluster_size());
    let (at, host) = (victim.l2(1), table * victim.cluster_size());
    victim.set_u64(at, host);
    victim.set_refcount(table, 2);
    victim.set_refcount(old, 0);
    let found = report(&victim);
    assert_eq!(
        found.findings,
        [Finding::Overlap { cluster: table, roles: vec![Role::ActiveL1, Role::Data] }]
    );
}

#[test]
fn a_data_file_cluster_at_another_offset_is_an_error() {
    let dir = ImageDir::new().unwrap();
    let options = "data_file=d,cluster_size=4k";
    dir.qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, "v", "64M"]).unwrap();
    dir.qemu_io("v", &["write -P 1 0 64k"]).unwrap();
    let mut victim = Victim { bytes: dir.bytes("v").unwrap() };
    assert!(report(&victim).is_clean(), "{}", report(&victim));
    let (from, to) = (victim.l2(3), victim.l2(2));
    let other = victim.u64(from);
    victim.set_u64(to, other);
    assert_eq!(verdict(&report(&victim)), Verdict::Errors);
}
