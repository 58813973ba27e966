//! What the driver's tests share: a [`MemoryNexus`], which runs commands on the test kit's device without
//! any network, and helpers to open a unit behind it.
//!
//! Every command may be held before the device runs it or before its answer is told, and may end in
//! another way than the device says. Answers may take random times.

#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test file uses its part")]
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

mod nexus;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use block_core::node::NodeOptions;
use block_core::options::OpenFlags;
use block_core::range::{to_u64, to_usize};
use block_core::{Alignment, ByteRange, IoBuf, IoVec, Node, OpenError, RequestFlags};
use block_iscsi::driver::{IscsiDriver, UnitOptions};
use block_iscsi::nexus::Nexus;
use block_iscsi::scsi::luns::Lun;
use block_iscsi::scsi::sense::Status;
use block_iscsi::unit::{Retries, Sleep};
use block_testkit::exec::Exec;
use block_testkit::iscsi::{self, Device, LunConfig, Provisioning, SenseFormat, Unmapped};

pub use nexus::{Ending, Held, MemoryNexus, Point, Sent};

/// The unit that tests open.
pub const LUN: u16 = 0;
/// Who the driver is to the device, and who somebody else is.
pub const US: iscsi::Nexus = iscsi::Nexus(1);
pub const THEM: iscsi::Nexus = iscsi::Nexus(2);

pub const READ10: u8 = 0x28;
pub const WRITE10: u8 = 0x2a;
pub const SYNC10: u8 = 0x35;
pub const SAME10: u8 = 0x41;
pub const UNMAP: u8 = 0x42;
pub const SAME16: u8 = 0x93;
pub const READ16: u8 = 0x88;

/// The executor's virtual clock.
pub struct VirtualSleep(pub Exec);

#[async_trait]
impl Sleep for VirtualSleep {
    fn now(&self) -> Duration {
        self.0.now()
    }

    async fn sleep(&self, span: Duration) {
        self.0.sleep(span).await;
    }
}

/// A device with one unit, to which both initiators are connected.
pub fn device(config: LunConfig) -> Device {
    let mut device = Device::new(SenseFormat::Fixed);
    device.add(LUN, config).expect("a unit");
    device.connect(US);
    device.connect(THEM);
    device
}

/// A thin unit that reads zeroes, with granules of `granularity` blocks from block `alignment` on.
pub fn thin(block_size: u32, blocks: u64, granularity: u32, alignment: u32) -> LunConfig {
    let unmapped = Unmapped::Zeroes;
    let provisioning = Provisioning::Thin { unmapped, granularity, alignment };
    LunConfig { provisioning, ..LunConfig::thin(block_size, blocks) }
}

/// 1 GiB in blocks of 512 bytes, with granules of 64 KiB.
pub fn gib() -> LunConfig {
    thin(512, 2 << 20, 128, 0)
}

pub const CACHED: OpenFlags = OpenFlags::READ_WRITE;
pub const DIRECT: OpenFlags = OpenFlags { direct: true, ..CACHED };

pub fn options(flags: OpenFlags) -> UnitOptions {
    UnitOptions {
        lun: Lun::from_number(LUN).unwrap(),
        flags,
        filename: "iscsi://host/iqn.2026-01.org.example:disk/0".to_owned(),
        retries: Retries::default(),
    }
}

pub async fn try_open(
    exec: &Exec,
    nexus: &Arc<MemoryNexus>,
    flags: OpenFlags,
) -> Result<Arc<IscsiDriver>, OpenError> {
    let sleep = Arc::new(VirtualSleep(exec.clone()));
    IscsiDriver::open(Arc::clone(nexus) as Arc<dyn Nexus>, sleep, options(flags)).await
}

pub fn node_of(driver: &Arc<IscsiDriver>) -> Node {
    let options = NodeOptions { unmap: true, ..NodeOptions::default() };
    Node::new(Arc::clone(driver) as Arc<_>, options)
}

/// A unit that is open, and the ways to it.
#[derive(Clone)]
pub struct World {
    pub exec: Exec,
    pub nexus: Arc<MemoryNexus>,
    pub driver: Arc<IscsiDriver>,
    pub node: Node,
}

impl World {
    pub async fn open(exec: Exec, config: LunConfig, flags: OpenFlags) -> Self {
        let nexus = MemoryNexus::new(&exec, config);
        Self::around(exec, nexus, flags).await
    }

    pub async fn around(exec: Exec, nexus: Arc<MemoryNexus>, flags: OpenFlags) -> Self {
        let driver = try_open(&exec, &nexus, flags).await.unwrap_or_else(|e| panic!("open: {e}"));
        let node = node_of(&driver);
        nexus.take_log();
        Self { exec, nexus, driver, node }
    }

    pub async fn try_read(&self, offset: u64, len: u64) -> Result<Vec<u8>, block_core::Error> {
        let buf = memory(len);
        self.node.read(range(offset, len), buf.clone().into()).await?;
        Ok(buf.to_vec())
    }

    pub async fn read(&self, offset: u64, len: u64) -> Vec<u8> {
        self.try_read(offset, len).await.unwrap_or_else(|error| panic!("read {offset}: {error}"))
    }

    pub async fn try_write(&self, offset: u64, bytes: &[u8]) -> Result<(), block_core::Error> {
        let buf = memory(to_u64(bytes.len()));
        buf.copy_from(0, bytes);
        let at = range(offset, to_u64(bytes.len()));
        self.node.write(at, buf.into(), RequestFlags::empty()).await
    }

    pub async fn write(&self, offset: u64, bytes: &[u8]) {
        let written = self.try_write(offset, bytes).await;
        written.unwrap_or_else(|error| panic!("write {offset}: {error}"));
    }

    pub async fn zero(&self, offset: u64, len: u64, flags: RequestFlags) {
        let zeroed = self.node.write_zeroes(range(offset, len), flags).await;
        zeroed.unwrap_or_else(|error| panic!("zero {offset}: {error}"));
    }

    pub async fn discard(&self, offset: u64, len: u64) {
        let discarded = self.node.discard(range(offset, len)).await;
        discarded.unwrap_or_else(|error| panic!("discard {offset}: {error}"));
    }

    /// Whether a read sends nothing to the target.
    pub async fn reads_free_zeroes(&self, offset: u64, len: u64) -> bool {
        self.nexus.take_log();
        let zeroes = self.read(offset, len).await.iter().all(|byte| *byte == 0);
        zeroes && self.nexus.take_log().is_empty()
    }

    /// What is sent for the answers that `count` block statuses of everything give, and the answers as
    /// lengths with whether they are zeroes.
    pub async fn map(&self) -> Vec<(u64, bool)> {
        let mut found = Vec::new();
        let mut rest = ByteRange::up_to(self.node.len());
        while !rest.is_empty() {
            let detail = block_core::request::status::StatusDetail::Zeroes;
            let status = self.node.block_status(rest, detail).await.unwrap();
            assert!(status.is_allocated() && status.len > 0);
            found.push((status.len, status.is_zero()));
            rest = rest.split_at(status.len).1;
        }
        found
    }
}

/// Plays `test` on a unit like `config`.
pub fn on<T, F>(
    config: LunConfig,
    flags: OpenFlags,
    test: impl FnOnce(World) -> F + Send + 'static,
) -> T
where
    T: Send + 'static,
    F: Future<Output = T> + Send,
{
    Exec::run(7, |exec| async move { test(World::open(exec, config, flags).await).await })
}

pub fn memory(len: u64) -> IoBuf {
    IoBuf::zeroed(to_usize(len), Alignment::PAGE).unwrap()
}

pub fn iov_of(bytes: &[u8]) -> IoVec {
    let buf = memory(to_u64(bytes.len()));
    buf.copy_from(0, bytes);
    buf.into()
}

pub fn range(offset: u64, len: u64) -> ByteRange {
    ByteRange::new(offset, len).unwrap()
}

/// Fixed format sense data.
pub fn sense(key: u8, asc: u8, ascq: u8) -> Vec<u8> {
    let mut bytes = vec![0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq];
    bytes.resize(18, 0);
    bytes
}

/// Sense data about an earlier command.
pub fn deferred(key: u8, asc: u8, ascq: u8) -> Vec<u8> {
    let mut bytes = sense(key, asc, ascq);
    bytes[0] = 0x71;
    bytes
}

/// A command that the target refuses with this sense data.
pub fn refuses(key: u8, asc: u8, ascq: u8) -> Ending {
    Ending::Status(Status::CheckCondition, sense(key, asc, ascq))
}

/// The data of a GET LBA STATUS of these descriptors: first block, blocks, state.
pub fn lba_status(descriptors: &[(u64, u32, u8)]) -> Vec<u8> {
    let mut bytes = u32::try_from(descriptors.len() * 16 + 4).unwrap().to_be_bytes().to_vec();
    bytes.extend([0; 4]);
    for (lba, blocks, state) in descriptors {
        bytes.extend(lba.to_be_bytes());
        bytes.extend(blocks.to_be_bytes());
        bytes.extend([*state, 0, 0, 0]);
    }
    bytes
}

/// GET LBA STATUS tells this.
pub fn tells(descriptors: &'static [(u64, u32, u8)]) -> Ending {
    Ending::Forged(Box::new(|_, data| *data = lba_status(descriptors)))
}
