//! What the tests of this crate share: a file driver that is as simple as can be, and the two
//! questions that every test asks of an image: its contents and its map.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::expect_used, reason = "helpers of tests")]

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use block_core::driver::BlockDriver;
use block_core::format::raw::RawFactory;
use block_core::info::DriverInfo;
use block_core::options::OpenFlags;
use block_core::proto::mem::{MemDriver, MemFactory};
use block_core::registry::{DriverFactory, OpenContext};
use block_core::request::status::{DriverStatus, StatusDetail, StatusFlags};
use block_core::{
    Alignment, BlockLimits, ByteRange, Capabilities, Error, IoBuf, IoVec, Node, OpenError, Options,
    Registry, RequestFlags, Result,
};
use block_qcow2::Qcow2Factory;
use futures::executor::block_on;
use serde_json::{Value, json};

/// A file, read on the spot.
pub struct PlainFile {
    file: File,
    name: String,
}

#[async_trait]
impl BlockDriver for PlainFile {
    fn name(&self) -> &'static str {
        "file"
    }

    fn len(&self) -> u64 {
        self.file.metadata().map_or(0, |m| m.len())
    }

    fn limits(&self) -> BlockLimits {
        BlockLimits::default()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn info(&self) -> DriverInfo {
        DriverInfo {
            filename: Some(self.name.clone()),
            actual_size: self.file.metadata().ok().map(|m| m.blocks() * 512),
            ..DriverInfo::default()
        }
    }

    async fn preadv(self: Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        let mut bytes = vec![0; iov.len()];
        let mut done = 0;
        while done < bytes.len() {
            let at = range.offset() + block_core::range::to_u64(done);
            match self.file.read_at(&mut bytes[done..], at)? {
                0 => break,
                n => done += n,
            }
        }
        iov.copy_from(0, &bytes);
        Ok(())
    }

    async fn pwritev(self: Arc<Self>, _: ByteRange, _: IoVec, _: RequestFlags) -> Result<()> {
        Err(Error::ReadOnly)
    }

    async fn block_status(
        self: Arc<Self>,
        range: ByteRange,
        _: StatusDetail,
    ) -> Result<DriverStatus> {
        use rustix::fs::{SeekFrom, seek};
        let (start, end) = (range.offset(), range.end());
        let data = seek(&self.file, SeekFrom::Data(start)).unwrap_or(end).min(end);
        if data > start {
            return Ok(DriverStatus::zero(data - start));
        }
        let hole = seek(&self.file, SeekFrom::Hole(start))?.min(end);
        let flags = StatusFlags::DATA | StatusFlags::ALLOCATED;
        Ok(DriverStatus::of(hole - start, flags))
    }
}

/// Opens files by [`PlainFile`].
struct PlainFileFactory;

#[async_trait]
impl DriverFactory for PlainFileFactory {
    fn name(&self) -> &'static str {
        "file"
    }

    async fn open(
        &self,
        mut options: Options,
        _: OpenContext,
    ) -> Result<Arc<dyn BlockDriver>, OpenError> {
        let name = options.take("filename").unwrap_or_default();
        options.finish()?;
        match File::open(&name) {
            Ok(file) => Ok(Arc::new(PlainFile { file, name })),
            Err(error) => {
                let (path, error) = (name.into(), error.into());
                Err(OpenError::File { path, error })
            }
        }
    }
}

/// Hands out one driver that is there already.
struct GivenFactory(Arc<dyn BlockDriver>);

#[async_trait]
impl DriverFactory for GivenFactory {
    fn name(&self) -> &'static str {
        "given"
    }

    async fn open(
        &self,
        options: Options,
        _: OpenContext,
    ) -> Result<Arc<dyn BlockDriver>, OpenError> {
        options.finish()?;
        Ok(Arc::clone(&self.0))
    }
}

/// Opens the qcow2 image that `driver` holds.
pub fn open_driver(driver: Arc<dyn BlockDriver>, flags: OpenFlags) -> Result<Node, OpenError> {
    let registry = Registry::new().with(Qcow2Factory).with(GivenFactory(driver));
    let options = Options::new().with("driver", "qcow2").with("file.driver", "given");
    block_on(OpenContext::new(Arc::new(registry), flags).open(options))
}

/// Opens the qcow2 image of these bytes; backing files stay closed.
pub fn open_bytes(bytes: &[u8]) -> Result<Node, OpenError> {
    let driver = MemDriver::from_bytes(bytes).expect("memory for an image");
    let flags = OpenFlags { no_backing: true, ..OpenFlags::READ_ONLY };
    open_driver(Arc::new(driver), flags)
}

/// Every driver that the tests know.
pub fn context(flags: OpenFlags) -> OpenContext {
    let registry =
        Registry::new().with(Qcow2Factory).with(RawFactory).with(MemFactory).with(PlainFileFactory);
    OpenContext::new(Arc::new(registry), flags)
}

/// Opens the qcow2 image at `path`.
pub fn open(path: &Path) -> Result<Node, OpenError> {
    open_with(path, OpenFlags::READ_ONLY, Options::new())
}

/// Opens the qcow2 image at `path`, with options.
pub fn open_with(path: &Path, flags: OpenFlags, options: Options) -> Result<Node, OpenError> {
    let options =
        options.with("driver", "qcow2").with("filename", path.to_str().expect("a path in UTF-8"));
    block_on(context(flags).open(options))
}

/// Reads a range of a node.
pub fn read(node: &Node, offset: u64, len: u64) -> Result<Vec<u8>> {
    let len_bytes = usize::try_from(len).expect("a length in memory");
    let buf = IoBuf::zeroed(len_bytes, Alignment::ONE)?;
    // What was in the buffer must not pass for zeroes that were read.
    if len < 1 << 20 {
        buf.fill(0xee);
    }
    block_on(node.read(ByteRange::new(offset, len)?, buf.clone().into()))?;
    Ok(buf.to_vec())
}

/// Reads all of a node in requests of `step` bytes.
pub fn contents(node: &Node, step: u64) -> Vec<u8> {
    let mut all = Vec::new();
    let mut offset = 0;
    while offset < node.len() {
        let len = step.min(node.len() - offset);
        all.extend(read(node, offset, len).expect("a readable image"));
        offset += len;
    }
    all
}

/// The map of a chain, as `qemu-img map --output json` writes it.
pub fn map(node: &Node) -> Vec<Value> {
    let mut all: Vec<Value> = Vec::new();
    let mut offset = 0;
    while offset < node.len() {
        let rest = ByteRange::from_bounds(offset, node.len()).expect("a range of the disk");
        let entry = map_entry(node, rest);
        let len = entry["length"].as_u64().expect("a length");
        assert!(len > 0, "the map stands still at {offset}");
        offset += len;
        match all.last_mut() {
            Some(last) if continues(last, &entry) => {
                last["length"] = json!(last["length"].as_u64().expect("a length") + len);
            }
            _ => all.push(entry),
        }
    }
    all
}

/// The first entry of `range`: of the uppermost layer that says what its bytes read as.
fn map_entry(top: &Node, mut range: ByteRange) -> Value {
    let (mut layer, mut depth) = (top.clone(), 0);
    loop {
        let status = block_on(layer.block_status(range, StatusDetail::Zeroes)).expect("a status");
        range = range.first(status.len);
        let next = layer.backing();
        if let (false, false, Some(next)) = (status.is_zero(), status.is_data(), next) {
            (layer, depth) = (next, depth + 1);
            continue;
        }
        let mut entry = json!({
            "start": range.offset(),
            "length": range.len(),
            "depth": depth,
            "present": status.is_allocated(),
            "zero": status.is_zero(),
            "data": status.is_data(),
            "compressed": status.flags.contains(StatusFlags::COMPRESSED),
        });
        if let Some(mapping) = status.mapping {
            entry["offset"] = json!(mapping.offset);
        }
        return entry;
    }
}

fn continues(last: &Value, next: &Value) -> bool {
    let same = ["depth", "present", "zero", "data", "compressed"];
    let len = last["length"].as_u64();
    let end = last["offset"].as_u64().zip(len).map(|(offset, len)| offset + len);
    same.iter().all(|name| last[name] == next[name]) && end == next["offset"].as_u64()
}
