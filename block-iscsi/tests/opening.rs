//! Opening a unit: what is asked, what is made of the answers, and what is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod kit;

use std::sync::Arc;

use block_core::OpenError;
use block_core::driver::BlockDriver;
use block_core::error::Problem;
use block_core::flags::Support;
use block_core::info::InfoValue;
use block_core::options::OpenFlags;
use block_iscsi::driver::IscsiDriver;
use block_testkit::exec::Exec;
use block_testkit::iscsi::{Access, LunConfig, Medium};
use kit::*;

/// Opens a unit like `config` that answers otherwise as `change` says.
fn open(
    config: LunConfig,
    flags: OpenFlags,
    change: impl FnOnce(&MemoryNexus) + Send + 'static,
) -> (Result<Arc<IscsiDriver>, OpenError>, Vec<Sent>) {
    Exec::run(3, move |exec| async move {
        let nexus = MemoryNexus::new(&exec, config);
        change(&nexus);
        let opened = try_open(&exec, &nexus, flags).await;
        assert_eq!(nexus.is_closed(), opened.is_err());
        (opened, nexus.take_log())
    })
}

fn refusal(config: LunConfig, change: impl FnOnce(&MemoryNexus) + Send + 'static) -> OpenError {
    open(config, CACHED, change).0.err().expect("a refusal")
}

fn forged(forge: impl Fn(&mut Vec<u8>) + Send + 'static) -> Ending {
    Ending::Forged(Box::new(move |_, data| forge(data)))
}

fn is_standard(sent: &Sent) -> bool {
    sent.opcode() == 0x12 && sent.cdb[1] == 0
}

fn is_page(page: u8) -> impl Fn(&Sent) -> bool + Send {
    move |sent| sent.opcode() == 0x12 && sent.cdb[1] == 1 && sent.cdb[2] == page
}

#[test]
fn a_thin_unit_tells_what_it_is() {
    let config = LunConfig { serial: "s-17".to_owned(), ..gib() };
    let (driver, log) = open(config, CACHED, |_| ());
    let driver = driver.unwrap();
    assert_eq!((driver.len(), driver.name(), driver.is_read_only()), (1 << 30, "iscsi", false));
    let info = driver.info();
    let specific = |name| info.specific.iter().find(|(other, _)| *other == name).unwrap().1.clone();
    assert_eq!(specific("vendor"), InfoValue::Text("TESTKIT".to_owned()));
    assert_eq!(specific("serial"), InfoValue::Text("s-17".to_owned()));
    assert_eq!(specific("logical-block-size"), InfoValue::Int(512));
    assert_eq!(specific("thin"), InfoValue::Bool(true));
    assert_eq!(info.cluster_size, Some(64 << 10));
    let can = driver.capabilities();
    assert_eq!((can.write_fua, can.zeroes_may_unmap), (Support::Native, Support::Native));
    assert_eq!((can.discard, can.zeroes_no_fallback), (Support::Native, Support::Native));
    assert!(!can.has_zero_init && !can.grows_on_write);
    // Few questions, and none that writes.
    assert!(log.len() <= 10, "{} commands", log.len());
}

#[test]
fn a_thick_unit_can_do_less() {
    let (driver, _) = open(LunConfig::thick(4096, 1000), CACHED, |_| ());
    let driver = driver.unwrap();
    assert_eq!((driver.len(), driver.limits().request_alignment.bytes()), (4_096_000, 4096));
    let can = driver.capabilities();
    assert_eq!((can.discard, can.zeroes_may_unmap), (Support::None, Support::None));
    assert_eq!((can.write_zeroes, can.zeroes_no_fallback), (Support::Native, Support::None));
}

#[test]
fn what_is_no_disk_is_refused_by_what_it_is() {
    for (peripheral, what) in [
        (0x05, "devices of type 0x05"),
        (0x0c, "devices of type 0x0c"),
        (0x7f, "a LUN without a device"),
        (0x20, "a LUN without a device"),
        (0xe0, "peripheral qualifier 0x7"),
    ] {
        let refused = refusal(gib(), move |nexus| {
            nexus.inject(1, forged(move |data| data[0] = peripheral), is_standard);
        });
        let names = what.to_owned();
        assert_eq!(refused, OpenError::UnsupportedFeature { format: "iscsi", names });
    }
}

#[test]
fn a_protected_unit_is_opened_for_reading_only() {
    let config = || LunConfig { access: Access::ReadOnly, ..gib() };
    let refused = refusal(config(), |_| ());
    let text = refused.to_string();
    assert!(text.contains("iscsi://host/") && text.contains("Read-only file system"), "{text}");
    let driver = open(config(), OpenFlags::READ_ONLY, |_| ()).0.unwrap();
    assert!(driver.is_read_only());
}

#[test]
fn a_unit_without_a_medium_is_refused() {
    let config = LunConfig { medium: Medium::Removable, ..gib() };
    let refused = refusal(config, |nexus| {
        assert!(nexus.device(|device| device.eject(LUN)));
    });
    assert!(matches!(refused, OpenError::Request { what: "TEST UNIT READY", .. }), "{refused}");
}

#[test]
fn a_unit_that_is_becoming_ready_is_waited_for() {
    let (driver, log) = open(gib(), CACHED, |nexus| {
        nexus.inject(5, refuses(2, 0x04, 0x01), |sent| sent.opcode() == 0);
    });
    assert!(driver.is_ok());
    // The one after them tells that the session is new.
    assert_eq!(log.iter().filter(|sent| sent.opcode() == 0).count(), 7);
}

/// Which of the two places that tell it are believed.
#[test]
fn only_units_that_read_zeroes_have_a_map() {
    let zeroes = [
        // LBPME and LBPRZ of READ CAPACITY (16), LBPRZ of page B2
        ((0xc0, 0b001), true),
        ((0x80, 0b001), true),
        ((0x80, 0b011), true),
        ((0x80, 0b101), true),
        ((0xc0, 0b000), true),
        ((0x80, 0b000), false),
        ((0x80, 0b010), false),
        ((0xc0, 0b010), false),
        ((0xc0, 0b100), false),
        ((0x40, 0b001), false),
        ((0x00, 0b001), false),
    ];
    for ((management, lbprz), reads_zeroes) in zeroes {
        let (driver, _) = open(gib(), CACHED, move |nexus| {
            nexus.inject(1, forged(move |data| data[14] = management), Sent::is_capacity);
            let forge = forged(move |data| data[5] = data[5] & !0x1c | lbprz << 2);
            nexus.inject(1, forge, is_page(0xb2));
            // The first of them tells that the session is new.
            nexus.inject(1, forged(|_| ()), |sent| sent.opcode() == 0);
        });
        let native = driver.unwrap().capabilities().zeroes_may_unmap == Support::Native;
        assert_eq!(native, reads_zeroes, "{management:#x} {lbprz:#b}");
    }
}

#[test]
fn a_unit_that_knows_little_is_opened_all_the_same() {
    // No vital product data, no mode pages, no READ CAPACITY (16), as old units are.
    let (driver, log) = open(gib(), CACHED, |nexus| {
        let pages = |sent: &Sent| sent.opcode() == 0x12 && sent.cdb[1] == 1;
        nexus.inject(u32::MAX, refuses(5, 0x24, 0), pages);
        let modes = |sent: &Sent| matches!(sent.opcode(), 0x1a | 0x5a);
        nexus.inject(u32::MAX, refuses(5, 0x20, 0), modes);
        nexus.inject(u32::MAX, refuses(5, 0x20, 0), Sent::is_capacity);
    });
    let driver = driver.unwrap();
    assert_eq!(driver.len(), 1 << 30);
    let can = driver.capabilities();
    assert_eq!((can.write_fua, can.discard), (Support::Emulated, Support::None));
    assert_eq!(driver.limits().max_transfer, Some(16 << 20));
    assert!(log.iter().any(|sent| sent.opcode() == 0x25));
    // And with more blocks than READ CAPACITY (10) can count, it is not.
    let refused = refusal(thin(512, 1 << 33, 128, 0), |nexus| {
        nexus.inject(u32::MAX, refuses(5, 0x20, 0), Sent::is_capacity);
    });
    assert!(matches!(refused, OpenError::Field { format: "iscsi", .. }), "{refused}");
}

#[test]
fn mode_data_longer_than_its_short_form_is_asked_for_in_the_long_one() {
    let (driver, log) = open(gib(), CACHED, |nexus| {
        nexus.inject(1, forged(|data| data[0] = 255), |sent| sent.opcode() == 0x1a);
    });
    assert_eq!(driver.unwrap().capabilities().write_fua, Support::Native);
    assert_eq!(log.iter().filter(|sent| sent.opcode() == 0x5a).count(), 1);
}

#[test]
fn pages_longer_than_expected_are_asked_for_whole() {
    let (driver, log) = open(gib(), CACHED, |nexus| {
        let long = |data: &mut Vec<u8>| {
            data[2..4].copy_from_slice(&300u16.to_be_bytes());
            data.resize(304, 0);
        };
        nexus.inject(2, forged(long), is_page(0xb0));
    });
    assert!(driver.is_ok());
    let asked: Vec<_> = log.iter().filter(|sent| is_page(0xb0)(sent)).collect();
    assert_eq!((asked.len(), asked[1].expected), (2, 304));
}

/// Every value that cannot be is a refusal that names it.
#[test]
fn impossible_values_are_refused_by_name() {
    let field = |error| match error {
        OpenError::Field { format: "iscsi", field, value, problem } => (field, value, problem),
        other => panic!("{other}"),
    };
    let capacity = |at: usize, bytes: &'static [u8]| {
        field(refusal(gib(), move |nexus| {
            let forge = forged(move |data| data[at..at + bytes.len()].copy_from_slice(bytes));
            nexus.inject(u32::MAX, forge, Sent::is_capacity);
        }))
    };
    let size = "LOGICAL BLOCK LENGTH IN BYTES";
    assert_eq!(capacity(8, &[0, 0, 0, 0]), (size, 0, Problem::Zero));
    assert_eq!(capacity(8, &[0, 0, 2, 8]), (size, 520, Problem::NotPowerOfTwo));
    let (name, value, _) = capacity(0, &[0xff; 8]);
    assert_eq!((name, value), ("RETURNED LOGICAL BLOCK ADDRESS", u64::MAX));
    let truncated = field(refusal(gib(), |nexus| {
        nexus.inject(u32::MAX, forged(|data| data.truncate(10)), Sent::is_capacity);
    }));
    assert_eq!(truncated, ("READ CAPACITY (16) data", 10, Problem::Below(12)));
    // A granularity that is longer than anything in bytes, in 32 bits of blocks.
    let granularity = field(refusal(gib(), |nexus| {
        nexus.inject(1, forged(|data| data[28..32].fill(0xff)), is_page(0xb0));
    }));
    let limit = 1 << 21;
    let name = "OPTIMAL UNMAP GRANULARITY";
    assert_eq!(granularity, (name, u32::MAX.into(), Problem::Above(limit)));
}

/// 4 GiB in 32 bits of bytes would be nothing.
#[test]
fn granules_beyond_what_a_page_can_be_leave_pages_of_the_usual_length() {
    for blocks in [(16 << 20) / 512 + 1u32, 1 << 21] {
        let (driver, _) = open(gib(), CACHED, move |nexus| {
            let forge = forged(move |data| data[28..32].copy_from_slice(&blocks.to_be_bytes()));
            nexus.inject(1, forge, is_page(0xb0));
        });
        let granule = driver.unwrap().info().cluster_size;
        assert_eq!(granule, Some(u64::from(blocks) * 512));
    }
}

#[test]
fn a_unit_that_hangs_in_an_error_is_given_up() {
    for (key, asc, ascq) in [(6, 0x29, 0), (2, 0x04, 1)] {
        let (driver, log) = open(gib(), CACHED, move |nexus| {
            nexus.inject(u32::MAX, refuses(key, asc, ascq), |sent| sent.opcode() == 0);
        });
        let refused = driver.err().expect("a refusal");
        assert!(matches!(refused, OpenError::Request { what: "TEST UNIT READY", .. }));
        assert!(log.len() <= 40, "{} commands", log.len());
    }
}
