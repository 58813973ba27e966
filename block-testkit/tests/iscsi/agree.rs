//! The initiator's encoders and decoders against the target, which shares no code with them.

use std::num::{NonZeroU16, NonZeroU32};

use block_core::range::to_u64;
use block_iscsi::scsi::capacity::{BlockSize, Capacity, Capacity10};
use block_iscsi::scsi::cdb::{
    Caching, Cdb, Deallocate, SameData, SenseForm, Transfer, WhichLuns, WhichOpcodes,
};
use block_iscsi::scsi::inquiry::{
    Designator, DesignatorKind, Inquiry, SupportedPages, parse_serial,
};
use block_iscsi::scsi::limits::{BlockLimits, ByteLimits, Characteristics, Rotation};
use block_iscsi::scsi::luns::{Lun, parse_luns};
use block_iscsi::scsi::mode::{ModeData, ModePage};
use block_iscsi::scsi::opcodes::{OneCommand, Support, parse_all};
use block_iscsi::scsi::provisioning::{
    BlockState, LbaStatus, Provisioning as ProvisioningPage, ProvisioningType, UnmapExtent,
    UnmapList, UnmappedReads,
};
use block_iscsi::scsi::reservation::{
    Capabilities, Holder, Keys, Persistence, Reservation, ReservationType, ReserveIn, ReserveList,
    ReserveOut,
};
use block_iscsi::scsi::sense::{
    Attention, FieldPlace, KeySpecific, Retry, Sense, SenseCode, SenseKey, Status,
};
use block_testkit::iscsi::{
    Access, Answer, Device, LunConfig, Provisioning, SenseFormat, Unmapped,
};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::kit::{A, B, device, filled};

const NO_CACHING: Caching = Caching::DEFAULT;

fn send(device: &mut Device, cdb: Cdb, data: &[u8]) -> Answer {
    let size = BlockSize::new(512).unwrap();
    let encoded = cdb.encode();
    let answer = device.execute(A, 0, &encoded.padded(), data);
    // Both sides count the same bytes.
    match cdb.transfer(size) {
        Transfer::Out(len) => assert_eq!(len, answer.data_out_len, "{cdb:?}"),
        Transfer::In(len) => assert!(to_u64(answer.data_in.len()) <= len, "{cdb:?}"),
        Transfer::None => assert_eq!((answer.data_out_len, answer.data_in.len()), (0, 0)),
    }
    answer
}

fn good(device: &mut Device, cdb: Cdb, data: &[u8]) -> Vec<u8> {
    let answer = send(device, cdb, data);
    assert_eq!(answer.status, Status::Good.code(), "{cdb:?} {:x?}", answer.sense);
    answer.data_in
}

fn bad(device: &mut Device, cdb: Cdb, data: &[u8]) -> (Sense, Option<Retry>) {
    let answer = send(device, cdb, data);
    let sense = Sense::parse(&answer.sense).unwrap();
    (sense, Status::from_code(answer.status).unwrap().retry(Some(&sense)))
}

fn page(device: &mut Device, page: u8) -> Vec<u8> {
    good(device, Cdb::InquiryPage { page, allocation: 512 }, &[])
}

fn limits(device: &mut Device) -> ByteLimits {
    let limits = BlockLimits::parse(&page(device, 0xb0)).unwrap();
    limits.in_bytes(BlockSize::new(512).unwrap()).unwrap()
}

fn blocks(count: u32) -> NonZeroU32 {
    NonZeroU32::new(count).unwrap()
}

#[test]
fn what_a_thin_unit_says_of_itself() {
    let (granularity, alignment, unmapped) = (16, 3, Unmapped::Zeroes);
    let provisioning = Provisioning::Thin { unmapped, granularity, alignment };
    let mut device = device(LunConfig { provisioning, ..LunConfig::thin(512, 1 << 20) });
    good(&mut device, Cdb::TestUnitReady, &[]);
    let inquiry = Inquiry::parse(&good(&mut device, Cdb::Inquiry { allocation: 96 }, &[])).unwrap();
    assert!(inquiry.is_disk() && !inquiry.removable);
    assert_eq!((inquiry.vendor.as_str(), inquiry.version), ("TESTKIT", 6));
    let pages = SupportedPages::parse(&page(&mut device, 0)).unwrap();
    assert_eq!(pages.iter().collect::<Vec<_>>(), [0, 0x80, 0x83, 0x8f, 0xb0, 0xb1, 0xb2]);
    assert_eq!(parse_serial(&page(&mut device, 0x80)).unwrap(), "testkit-1");
    let names = Designator::parse_page(&page(&mut device, 0x83)).unwrap();
    let kinds: Vec<_> = names.iter().map(|name| name.kind).collect();
    assert_eq!(kinds, [DesignatorKind::T10, DesignatorKind::Naa]);
    let found = limits(&mut device);
    assert_eq!(
        (found.max_transfer, found.max_compare_and_write),
        (Some(16 << 20), Some(255 * 512))
    );
    let unmapping = found.unmapping.unwrap();
    let granule = unmapping.granule.unwrap();
    assert_eq!((granule.len.bytes(), granule.offset), (8192, 1536));
    assert_eq!((unmapping.max_descriptors.get(), found.write_same_step()), (256, 2 << 30));
    let rotation = Characteristics::parse(&page(&mut device, 0xb1)).unwrap().rotation;
    assert_eq!(rotation, Rotation::None);
    let thin = ProvisioningPage::parse(&page(&mut device, 0xb2)).unwrap();
    assert!(thin.unmap && thin.write_same_16 && thin.write_same_10 && !thin.anchor);
    assert_eq!((thin.unmapped_reads, thin.kind), (UnmappedReads::Zeroes, ProvisioningType::Thin));
    let long = good(&mut device, Cdb::ReadCapacity16 { allocation: 32 }, &[]);
    let long = Capacity::parse16(&long).unwrap();
    assert_eq!((long.blocks(), long.len()), (1 << 20, 512 << 20));
    assert!(long.management.managed && long.management.reads_zeroes);
    let short = Capacity::parse10(&good(&mut device, Cdb::ReadCapacity10, &[])).unwrap();
    assert!(matches!(short, Capacity10::Known(short) if short.blocks() == long.blocks()));
}

#[test]
fn what_other_units_say_of_themselves() {
    let mut thick = device(LunConfig::thick(4096, 1 << 33));
    let capacity = good(&mut thick, Cdb::ReadCapacity10, &[]);
    assert_eq!(Capacity::parse10(&capacity), Ok(Capacity10::TooLarge));
    assert_eq!((limits(&mut thick).unmapping, limits(&mut thick).write_same_granule), (None, None));
    let page_b2 = ProvisioningPage::parse(&page(&mut thick, 0xb2)).unwrap();
    assert!(!page_b2.unmap && page_b2.kind == ProvisioningType::Full);
    let (granularity, alignment, unmapped) = (1, 0, Unmapped::Junk);
    let provisioning = Provisioning::Thin { unmapped, granularity, alignment };
    let mut junk = device(LunConfig { provisioning, ..LunConfig::thin(512, 8) });
    let page_b2 = ProvisioningPage::parse(&page(&mut junk, 0xb2)).unwrap();
    assert_eq!(page_b2.unmapped_reads, UnmappedReads::Anything);
    let capacity = good(&mut junk, Cdb::ReadCapacity16 { allocation: 32 }, &[]);
    let management = Capacity::parse16(&capacity).unwrap().management;
    assert!(management.managed && !management.reads_zeroes);
}

#[test]
fn mode_pages_of_both_lengths() {
    let mut device = device(LunConfig { access: Access::ReadOnly, ..LunConfig::thin(512, 8) });
    for page in [ModePage::Caching, ModePage::Control, ModePage::All] {
        let short = good(&mut device, Cdb::ModeSense6 { page, allocation: 255 }, &[]);
        let short = ModeData::parse6(&short).unwrap();
        let long = good(&mut device, Cdb::ModeSense10 { page, allocation: 255 }, &[]);
        assert_eq!(ModeData::parse10(&long), Ok(short));
        assert!(short.write_protected && short.dpofua);
        assert_eq!(short.caching.is_some(), page != ModePage::Control);
        assert_eq!(short.control.is_some(), page != ModePage::Caching);
        assert!(short.caching.is_none_or(|caching| caching.write_cache));
    }
}

#[test]
fn data_and_provisioning() {
    let mut device = device(LunConfig::thin(512, 1000));
    good(&mut device, Cdb::write(10, 20, Caching::FUA), &filled(20, 1));
    let long = Cdb::Write16 { lba: 100, blocks: 2, caching: NO_CACHING };
    good(&mut device, long, &filled(2, 2));
    assert_eq!(good(&mut device, Cdb::read(10, 20, Caching::FUA), &[]), filled(20, 1));
    let long = Cdb::Read16 { lba: 100, blocks: 2, caching: NO_CACHING };
    assert_eq!(good(&mut device, long, &[]), filled(2, 2));
    let extents = [(12, 2), (20, 5)].map(|(lba, count)| UnmapExtent { lba, blocks: blocks(count) });
    let list = UnmapList::new(&extents).unwrap();
    good(&mut device, Cdb::Unmap { list_len: list.list_len() }, list.as_slice());
    let (lba, deallocate) = (100, Deallocate::Unmap);
    let short = Cdb::WriteSame10 { lba: 100, blocks: NonZeroU16::MIN, deallocate };
    good(&mut device, short, &filled(1, 0));
    for (data, bytes) in [(SameData::Zeroes, 0), (SameData::Block, 1)] {
        let same = Cdb::WriteSame16 { lba: lba + 1, blocks: blocks(3), deallocate, data };
        good(&mut device, same, &filled(bytes, 0));
    }
    good(&mut device, Cdb::SynchronizeCache10, &[]);
    good(&mut device, Cdb::SynchronizeCache16 { lba: 5, blocks: blocks(7) }, &[]);
    let status = good(&mut device, Cdb::GetLbaStatus { lba: 11, allocation: 4096 }, &[]);
    let status = LbaStatus::parse(&status, 11, 1000).unwrap();
    let extent = |extent: &block_iscsi::scsi::provisioning::StatusExtent| {
        (extent.lba, extent.blocks, extent.state == BlockState::Deallocated)
    };
    let extents: Vec<_> = status.extents().iter().map(extent).collect();
    let expected = [(11, 1, false), (12, 2, true), (14, 6, false), (20, 5, true), (25, 5, false)];
    assert_eq!(extents[..5], expected);
    assert_eq!((extents[5], status.end()), ((30, 970, true), 1000));
}

#[test]
fn sense_data_of_both_formats() {
    for format in [SenseFormat::Fixed, SenseFormat::Descriptor] {
        let mut device = Device::new(format);
        device.add(0, LunConfig::thin(512, 1000)).unwrap();
        device.connect(A);
        let (sense, retry) = bad(&mut device, Cdb::TestUnitReady, &[]);
        assert_eq!((sense.attention(), retry), (Some(Attention::Reset), Some(Retry::Now)));
        device.resize(0, 900).unwrap();
        let (sense, retry) = bad(&mut device, Cdb::TestUnitReady, &[]);
        assert_eq!((sense.attention(), retry), (Some(Attention::Capacity), Some(Retry::Now)));
        good(&mut device, Cdb::TestUnitReady, &[]);

        let (sense, retry) = bad(&mut device, Cdb::read(900, 1, NO_CACHING), &[]);
        assert_eq!((sense.key, retry), (SenseKey::IllegalRequest, Some(Retry::Never)));
        assert_eq!(sense.code, SenseCode::LBA_OUT_OF_RANGE);
        let (sense, _) = bad(&mut device, Cdb::InquiryPage { page: 0x99, allocation: 9 }, &[]);
        let place = FieldPlace::Cdb;
        assert_eq!(sense.code, SenseCode::INVALID_FIELD_IN_CDB);
        assert_eq!(sense.specific, Some(KeySpecific::Field { place, byte: 2, bit: Some(7) }));

        let compare = Cdb::CompareAndWrite { lba: 0, blocks: 2, caching: NO_CACHING };
        let mut data = filled(4, 0);
        data[600] = 1;
        let (sense, retry) = bad(&mut device, compare, &data);
        assert_eq!((sense.key, sense.information), (SenseKey::Miscompare, Some(600)));
        assert_eq!(retry, Some(Retry::Never));

        device.set_access(0, Access::ReadOnly);
        let (sense, _) = bad(&mut device, Cdb::write(0, 1, NO_CACHING), &filled(1, 1));
        assert_eq!(sense.attention(), Some(Attention::ModeParameters));
        let (sense, _) = bad(&mut device, Cdb::write(0, 1, NO_CACHING), &filled(1, 1));
        assert_eq!(sense.code, SenseCode::WRITE_PROTECTED);
        for form in [SenseForm::Fixed, SenseForm::Descriptor] {
            device.resize(0, 800).unwrap();
            let data = good(&mut device, Cdb::RequestSense { form, allocation: 252 }, &[]);
            assert_eq!(Sense::parse(&data).unwrap().code, SenseCode::CAPACITY_CHANGED);
        }
    }
}

#[test]
fn luns_and_commands_that_there_are() {
    let mut device = device(LunConfig::thin(512, 8));
    device.add(300, LunConfig::thin(512, 8)).unwrap();
    let luns = Cdb::ReportLuns { which: WhichLuns::All, allocation: 1024 };
    let luns = parse_luns(&good(&mut device, luns, &[])).unwrap();
    assert_eq!(luns, [0, 300].map(|number| Lun::from_number(number).unwrap()));
    assert!(bad(&mut device, Cdb::TestUnitReady, &[]).0.attention() == Some(Attention::Luns));
    let mut report = |which| good(&mut device, Cdb::ReportOpcodes { which, allocation: 4096 }, &[]);
    let all = parse_all(&report(WhichOpcodes::All)).unwrap();
    assert!(all.iter().any(|command| command.opcode == 0x9e && command.action == Some(0x12)));
    for command in all {
        let which = match command.action {
            None => WhichOpcodes::One(command.opcode),
            Some(action) => WhichOpcodes::Action(command.opcode, action),
        };
        let one = OneCommand::parse(&report(which)).unwrap();
        assert_eq!((one.support, one.usage.len()), (Support::Standard, command.cdb_len.into()));
        assert_eq!(one.usage.first(), Some(&command.opcode));
    }
    let unknown = OneCommand::parse(&report(WhichOpcodes::One(0x04))).unwrap();
    assert_eq!(unknown.support, Support::No);
}

#[test]
fn reservations_of_both_kinds() {
    let mut device = device(LunConfig::thin(512, 8));
    good(&mut device, Cdb::Reserve6, &[]);
    let ready = Cdb::TestUnitReady.encode();
    let other = device.execute(B, 0, ready.as_slice(), &[]);
    assert_eq!(Status::from_code(other.status), Ok(Status::ReservationConflict));
    good(&mut device, Cdb::Release6, &[]);

    let kind = ReservationType::WriteExclusive;
    let persistence = Persistence::UntilPowerLoss;
    let mut out = |action, key, action_key| {
        let list = ReserveList { key, action_key, persistence }.encode();
        good(&mut device, Cdb::PersistentReserveOut { action }, &list);
    };
    out(ReserveOut::Register, 0, 7);
    out(ReserveOut::RegisterAndIgnore, 0, 8);
    out(ReserveOut::Reserve(kind), 8, 0);
    let ask = |device: &mut Device, action| {
        good(device, Cdb::PersistentReserveIn { action, allocation: 255 }, &[])
    };
    let keys = Keys::parse(&ask(&mut device, ReserveIn::Keys)).unwrap();
    assert_eq!(keys, Keys { generation: 2, keys: vec![8] });
    let held = Reservation::parse(&ask(&mut device, ReserveIn::Reservation)).unwrap();
    assert_eq!(held.holder, Some(Holder { key: 8, kind }));
    let can = Capabilities::parse(&ask(&mut device, ReserveIn::Capabilities)).unwrap();
    assert_eq!(can.types, Some(ReservationType::ALL.to_vec()));
    let mut out = |action, key, action_key| {
        let list = ReserveList { key, action_key, persistence }.encode();
        good(&mut device, Cdb::PersistentReserveOut { action }, &list);
    };
    out(ReserveOut::Preempt(ReservationType::ExclusiveAccess), 8, 8);
    out(ReserveOut::PreemptAndAbort(kind), 8, 8);
    out(ReserveOut::Release(kind), 8, 0);
    out(ReserveOut::Clear, 8, 0);
    assert_eq!(Keys::parse(&ask(&mut device, ReserveIn::Keys)).unwrap().keys, []);
}

#[test]
fn both_sides_count_the_same_bytes_whatever_the_numbers() {
    let seed = 7;
    println!("seed {seed}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (size, mut device) = (BlockSize::new(4096).unwrap(), Device::new(SenseFormat::Fixed));
    device.add(0, LunConfig::thin(4096, 8)).unwrap();
    let mut seen = 0;
    for _ in 0..2000 {
        let (lba, count): (u64, u32) = (rng.random(), rng.random());
        let (lba10, count10) = (rng.random(), rng.random());
        let caching = Caching { dpo: rng.random(), fua: rng.random() };
        let deallocate = Deallocate::Unmap;
        let (long, short) = (NonZeroU32::MAX, NonZeroU16::MAX);
        let action = ReserveOut::Clear;
        for cdb in [
            Cdb::Write10 { lba: lba10, blocks: count10, caching },
            Cdb::Write16 { lba, blocks: count, caching },
            Cdb::WriteSame10 { lba: lba10, blocks: short, deallocate },
            Cdb::WriteSame16 { lba, blocks: long, deallocate, data: SameData::Block },
            Cdb::WriteSame16 { lba, blocks: long, deallocate, data: SameData::Zeroes },
            Cdb::CompareAndWrite { lba, blocks: rng.random(), caching },
            Cdb::Unmap { list_len: count10 },
            Cdb::PersistentReserveOut { action },
            Cdb::Read16 { lba, blocks: count, caching },
        ] {
            let len = match cdb.transfer(size) {
                Transfer::Out(len) => len,
                Transfer::In(_) | Transfer::None => 0,
            };
            assert_eq!(device.data_out_len(0, cdb.encode().as_slice()), len, "{cdb:?}");
            seen += u64::from(len > u64::from(u32::MAX));
        }
    }
    assert!(seen > 0);
}
