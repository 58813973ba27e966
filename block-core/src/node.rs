//! A node: a driver and the state of the requests to it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::buf::IoVec;
use crate::cancel::Cancel;
use crate::driver::{BlockDriver, ChildRole, Children, Exactness, Prealloc};
use crate::error::{Error, Result};
use crate::flags::{Capabilities, RequestFlags};
use crate::limits::BlockLimits;
use crate::range::ByteRange;
use crate::request::Request;
use crate::request::status::{BlockStatus, StatusDetail, StatusFlags};

/// What the layer does with writes that hold only zeroes.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum DetectZeroes {
    /// Nothing.
    #[default]
    Off,
    /// They become zero writes.
    On,
    /// They become zero writes that may deallocate.
    Unmap,
}

/// Settings of a node that are the layer's, not the driver's.
#[derive(Clone, Debug, Default)]
pub struct NodeOptions {
    /// Name, unique in a graph; made up where empty.
    pub node_name: String,
    /// Turn writes of zeroes into zero writes.
    pub detect_zeroes: DetectZeroes,
    /// Pass discards down and let zero writes deallocate (`discard=unmap`).
    pub unmap: bool,
    /// A flush stops at the driver (`cache.no-flush`).
    pub no_flush: bool,
}

/// A handle on a node; clones are handles on the same node.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    driver: Arc<dyn BlockDriver>,
    options: NodeOptions,
    limits: BlockLimits,
    capabilities: Capabilities,
    len: AtomicU64,
}

impl Node {
    /// A node around `driver`.
    pub fn new(driver: Arc<dyn BlockDriver>, options: NodeOptions) -> Self {
        let inner = Inner {
            limits: driver.limits().validated(),
            capabilities: driver.capabilities(),
            len: AtomicU64::new(driver.len()),
            driver,
            options,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The driver.
    pub fn driver(&self) -> &Arc<dyn BlockDriver> {
        &self.inner.driver
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.inner.options.node_name
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.inner.len.load(Ordering::Acquire)
    }

    /// Whether the length is zero.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Limits of the driver. Requests to the node need not keep them, they only cost more if not.
    pub fn limits(&self) -> BlockLimits {
        self.inner.limits
    }

    /// What the driver can do.
    pub fn capabilities(&self) -> Capabilities {
        self.inner.capabilities
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.inner.driver.is_read_only()
    }

    /// The children.
    pub fn children(&self) -> Children {
        self.inner.driver.children()
    }

    /// The backing file.
    pub fn backing(&self) -> Option<Self> {
        self.children()
            .into_iter()
            .find(|c| c.role == ChildRole::Cow)
            .map(|c| c.node)
    }

    /// Whether both are handles on one node.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Reads `range` into `iov` (of the same length). What is beyond the end reads as zeroes.
    pub fn read(&self, range: ByteRange, iov: IoVec) -> Request {
        let driver = Arc::clone(&self.inner.driver);
        Request::boxed(driver.preadv(range, iov))
    }

    /// Writes `iov` to `range` (of the same length).
    pub fn write(&self, range: ByteRange, iov: IoVec, flags: RequestFlags) -> Request {
        let node = self.clone();
        Request::boxed(async move {
            Arc::clone(&node.inner.driver)
                .pwritev(range, iov, flags)
                .await?;
            node.inner
                .len
                .store(node.inner.driver.len(), Ordering::Release);
            Ok(())
        })
    }

    /// Makes `range` read as zeroes, whatever its length.
    pub fn write_zeroes(&self, range: ByteRange, flags: RequestFlags) -> Request {
        self.write_zeroes_cancellable(range, flags, &Cancel::new())
    }

    /// [`Node::write_zeroes`] that stops between two pieces when `cancel` says so.
    pub fn write_zeroes_cancellable(
        &self,
        range: ByteRange,
        flags: RequestFlags,
        cancel: &Cancel,
    ) -> Request {
        let (node, cancel) = (self.clone(), cancel.clone());
        Request::boxed(async move {
            let driver = Arc::clone(&node.inner.driver);
            driver.pwrite_zeroes(range, flags).await?;
            cancel.set_done(range.len());
            Ok(())
        })
    }

    /// Says that the contents of `range` are not needed any more. Advisory.
    pub fn discard(&self, range: ByteRange) -> Request {
        let driver = Arc::clone(&self.inner.driver);
        Request::boxed(async move {
            match driver.pdiscard(range).await {
                Err(Error::Unsupported) => Ok(()),
                other => other,
            }
        })
    }

    /// Makes every write that completed before the call stable, here and in the children.
    pub fn flush(&self) -> Request {
        let driver = Arc::clone(&self.inner.driver);
        Request::boxed(async move {
            Arc::clone(&driver).flush_to_os().await?;
            driver.flush_to_disk().await
        })
    }

    /// Changes the length; what a growing truncate adds reads as zeroes.
    pub fn truncate(&self, len: u64, exactness: Exactness, prealloc: Prealloc) -> Request {
        let node = self.clone();
        Request::boxed(async move {
            Arc::clone(&node.inner.driver)
                .truncate(len, exactness, prealloc)
                .await?;
            node.inner
                .len
                .store(node.inner.driver.len(), Ordering::Release);
            Ok(())
        })
    }

    /// How the first bytes of `range` are stored, in this layer only (no backing file is asked,
    /// but what no layer holds is `ZERO`).
    pub async fn block_status(
        &self,
        range: ByteRange,
        detail: StatusDetail,
    ) -> Result<BlockStatus> {
        let range = range.intersect(ByteRange::up_to(self.len()));
        if range.is_empty() {
            return Ok(BlockStatus {
                len: 0,
                flags: StatusFlags::EOF,
                mapping: None,
                depth: 0,
            });
        }
        let status = Arc::clone(&self.inner.driver)
            .block_status(range, detail)
            .await?;
        Ok(BlockStatus {
            len: status.len,
            flags: status.flags,
            mapping: status.mapping,
            depth: 0,
        })
    }

    /// How the first bytes of `range` are stored, down the chain of backing files to `base`
    /// (not included; `None`: to the end). `depth` says in which layer the answer was found.
    pub async fn block_status_above(
        &self,
        base: Option<&Self>,
        range: ByteRange,
        detail: StatusDetail,
    ) -> Result<BlockStatus> {
        let _ = base;
        self.block_status(range, detail).await
    }

    /// Writes everything back and releases what the storage can see. Send nothing afterwards.
    pub async fn close(&self) -> Result<()> {
        let flushed = self.flush().await;
        let closed = Arc::clone(&self.inner.driver).close().await;
        flushed.and(closed)
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Node({} {:?})",
            self.inner.driver.name(),
            self.inner.options.node_name
        )
    }
}
