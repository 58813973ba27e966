//! A driver of one's own: it keeps every byte XORed with a key in the node below, and counts what it is asked.
//!
//! `custom-driver` writes to a disk in memory through it and says what the driver was asked for. The driver
//! does the least that a driver can do: the request layer pads what is not aligned, and writes zeroes as data
//! because the driver has no better way.

#![forbid(unsafe_code)]

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use block_core::driver::{BlockDriver, Child, ChildRole, Children};
use block_core::io::exec::block_on;
use block_core::proto::mem::MemFactory;
use block_core::registry::{DriverFactory, OpenContext};
use block_core::{Alignment, BlockLimits, ByteRange, Capabilities, IoBuf, IoVec, Node, OpenError};
use block_core::{OpenFlags, Options, Registry, RequestFlags, Result};

/// The disk above a node that holds its bytes in another form.
struct Xor {
    file: Node,
    key: u8,
    reads: AtomicU64,
    writes: AtomicU64,
}

impl Xor {
    /// Turns the bytes of a request into the other form and back.
    fn turn(&self, bytes: &mut [u8]) {
        bytes.iter_mut().for_each(|byte| *byte ^= self.key);
    }
}

#[async_trait]
impl BlockDriver for Xor {
    fn name(&self) -> &'static str {
        "xor"
    }

    fn len(&self) -> u64 {
        self.file.len()
    }

    // Whole sectors, as a real cipher would have them. What is not whole the layer reads, merges and writes.
    fn limits(&self) -> BlockLimits {
        BlockLimits { request_alignment: Alignment::SECTOR, ..self.file.limits() }
    }

    // Nothing but reads and writes. For zeroes, FUA and discards the layer finds another way.
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    fn is_read_only(&self) -> bool {
        self.file.is_read_only()
    }

    // A filter would also be `filtered`: what it does not implement would go on to its file as it is. Here it
    // must not, because zeroes above are not zeroes below.
    fn children(&self) -> Children {
        Children::from_iter([Child {
            name: "file",
            role: ChildRole::Primary,
            node: self.file.clone(),
        }])
    }

    async fn preadv(self: Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.file.read(range, iov.clone()).await?;
        // The memory may be a guest's, so it is copied out and in, never borrowed.
        let mut bytes = iov.to_vec();
        self.turn(&mut bytes);
        iov.copy_from(0, &bytes);
        Ok(())
    }

    async fn pwritev(self: Arc<Self>, range: ByteRange, iov: IoVec, _: RequestFlags) -> Result<()> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        // The caller's buffers are only read.
        let mut bytes = iov.to_vec();
        self.turn(&mut bytes);
        let below = IoBuf::zeroed(bytes.len(), Alignment::PAGE)?;
        below.copy_from(0, &bytes);
        self.file.write(range, below.into(), RequestFlags::empty()).await
    }

    async fn flush_to_disk(self: Arc<Self>) -> Result<()> {
        self.file.flush().await
    }
}

/// Opens the driver by its name: `driver=xor`, `key`, and the options of `file`.
struct XorFactory;

#[async_trait]
impl DriverFactory for XorFactory {
    fn name(&self) -> &'static str {
        "xor"
    }

    async fn open(
        &self,
        mut options: Options,
        mut context: OpenContext,
    ) -> std::result::Result<Arc<dyn BlockDriver>, OpenError> {
        let key = options.take_size("key")?.unwrap_or(0);
        let key = u8::try_from(key).map_err(|_| OpenError::OptionValue {
            option: "key",
            value: key.to_string(),
            problem: block_core::Problem::Above(u64::from(u8::MAX)),
        })?;
        let file = context.open_child(&mut options, "file").await?;
        // An option that nobody took is a mistake of the user's.
        options.finish()?;
        Ok(Arc::new(Xor { file, key, reads: AtomicU64::new(0), writes: AtomicU64::new(0) }))
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("custom-driver: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> std::result::Result<(), Box<dyn Error>> {
    block_on(async {
        // By name, as a user would: any format could stand above it in the same way.
        let registry = Registry::new().with(XorFactory).with(MemFactory);
        let context = OpenContext::new(Arc::new(registry), OpenFlags::READ_WRITE);
        let options = Options::new()
            .with("driver", "xor")
            .with("key", "0x55")
            .with("file.driver", "mem")
            .with("file.size", "1M");
        context.open(options).await?.close().await?;

        // Or by hand, which keeps the driver at hand.
        let mem = block_core::proto::mem::MemDriver::new(1 << 20);
        let file = Node::new(Arc::new(mem), Default::default());
        let counts = (AtomicU64::new(0), AtomicU64::new(0));
        let xor = Arc::new(Xor { file, key: 0x55, reads: counts.0, writes: counts.1 });
        let disk = Node::new(xor.clone(), Default::default());

        // Seven bytes in the middle of a block: the layer reads the block and writes it as a whole.
        let range = ByteRange::new(1000, 7)?;
        let data = IoBuf::zeroed(7, Alignment::ONE)?;
        data.copy_from(0, b"example");
        disk.write(range, data.into(), RequestFlags::FUA).await?;
        // Zeroes, which below are all 0x55.
        disk.write_zeroes(ByteRange::new(4096, 65536)?, RequestFlags::empty()).await?;

        let back = IoBuf::zeroed(7, Alignment::ONE)?;
        disk.read(range, back.clone().into()).await?;
        println!("above: {}", String::from_utf8_lossy(&back.to_vec()));
        xor.file.read(range, back.clone().into()).await?;
        println!("below: {:02x?}", back.to_vec());
        let zero = IoBuf::zeroed(2, Alignment::ONE)?;
        xor.file.read(ByteRange::new(4096, 2)?, zero.clone().into()).await?;
        println!("zeroes below: {:02x?}", zero.to_vec());
        let counts = (xor.reads.load(Ordering::Relaxed), xor.writes.load(Ordering::Relaxed));
        println!("the driver read {} times and wrote {} times", counts.0, counts.1);
        block_core::graph::close(&disk).await?;
        Ok(())
    })
}
