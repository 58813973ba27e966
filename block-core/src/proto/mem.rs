//! `mem`: a disk in memory, sparse by pages. Grows on write; lost when dropped.
//!
//! Invariant: a page that is not in the map reads as zeroes; no page holds a byte beyond `len`.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::RwLock;

use crate::buf::{IoVec, OwnedBuf};
use crate::driver::{BlockDriver, Exactness, Prealloc};
use crate::error::{OpenError, Result};
use crate::flags::{Capabilities, RequestFlags, Support};
use crate::info::DriverInfo;
use crate::limits::BlockLimits;
use crate::options::Options;
use crate::range::{Alignment, ByteRange, to_u64, to_usize};
use crate::registry::{DriverFactory, OpenContext};
use crate::request::status::{DriverStatus, StatusDetail, StatusFlags};

/// Bytes of one page.
const PAGE: u64 = 64 << 10;
const PAGE_ALIGN: Alignment = match Alignment::new(PAGE) {
    Some(align) => align,
    None => Alignment::ONE,
};

/// A disk in memory.
pub struct MemDriver {
    /// Guards the pages while bytes are copied: this driver's data movement *is* memory access.
    state: RwLock<State>,
    read_only: bool,
}

struct State {
    len: u64,
    pages: BTreeMap<u64, OwnedBuf>,
}

impl MemDriver {
    /// An empty disk of `len` zero bytes.
    pub fn new(len: u64) -> Self {
        let state = State { len, pages: BTreeMap::new() };
        Self { state: RwLock::new(state), read_only: false }
    }

    /// A disk that holds `bytes`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let disk = Self::new(to_u64(bytes.len()));
        {
            let mut state = disk.state.write();
            for (chunk, index) in bytes.chunks(to_usize(PAGE)).zip(0..) {
                let mut page = OwnedBuf::zeroed(to_usize(PAGE), Alignment::ONE)?;
                page[..chunk.len()].copy_from_slice(chunk);
                state.pages.insert(index, page);
            }
        }
        Ok(disk)
    }

    /// All bytes, for tests and small disks.
    pub fn to_bytes(&self) -> Vec<u8> {
        let state = self.state.read();
        let mut bytes = vec![0; to_usize(state.len)];
        for (index, page) in &state.pages {
            let at = to_usize(index * PAGE);
            let n = page.len().min(bytes.len() - at);
            bytes[at..at + n].copy_from_slice(&page[..n]);
        }
        bytes
    }
}

/// The shares of the pages in a range: page index, offset in the page, offset in the range, length.
fn pages(range: ByteRange) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let mut rest = range;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let within = rest.offset() % PAGE;
        let (piece, tail) = rest.split_at(PAGE - within);
        let done = to_usize(piece.offset() - range.offset());
        rest = tail;
        Some((piece.offset() / PAGE, to_usize(within), done, to_usize(piece.len())))
    })
}

impl State {
    fn zero(&mut self, range: ByteRange) {
        let whole = range.shrink(PAGE_ALIGN);
        if !whole.is_empty() {
            let (first, end) = (whole.offset() / PAGE, whole.end() / PAGE);
            let mut tail = self.pages.split_off(&first);
            self.pages.append(&mut tail.split_off(&end));
        }
        for (index, within, _, n) in edges(range, whole).into_iter().flat_map(pages) {
            if let Some(page) = self.pages.get_mut(&index) {
                page[within..within + n].fill(0);
            }
        }
    }
}

/// What of `range` is outside of `whole`, which is inside of it.
fn edges(range: ByteRange, whole: ByteRange) -> [ByteRange; 2] {
    if whole.is_empty() {
        return [range, ByteRange::default()];
    }
    let head = range.first(whole.offset() - range.offset());
    [head, range.split_at(whole.end() - range.offset()).1]
}

#[async_trait]
impl BlockDriver for MemDriver {
    fn name(&self) -> &'static str {
        "mem"
    }

    fn len(&self) -> u64 {
        self.state.read().len
    }

    fn limits(&self) -> BlockLimits {
        BlockLimits { pwrite_zeroes_alignment: Some(PAGE_ALIGN), ..BlockLimits::default() }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            write_fua: Support::Native,
            write_zeroes: Support::Native,
            zeroes_fua: Support::Native,
            zeroes_may_unmap: Support::Native,
            zeroes_no_fallback: Support::Native,
            discard: Support::Native,
            truncate: Support::Native,
            grows_on_write: true,
            has_zero_init: true,
            ..Capabilities::default()
        }
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn info(&self) -> DriverInfo {
        let held = to_u64(self.state.read().pages.len()) * PAGE;
        DriverInfo { actual_size: Some(held), ..DriverInfo::default() }
    }

    async fn preadv(self: Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        let state = self.state.read();
        for (index, within, done, n) in pages(range) {
            match state.pages.get(&index) {
                Some(page) => iov.copy_from(done, &page[within..within + n]),
                None => iov.fill(done, n, 0),
            }
        }
        Ok(())
    }

    async fn pwritev(self: Arc<Self>, range: ByteRange, iov: IoVec, _: RequestFlags) -> Result<()> {
        let mut state = self.state.write();
        for (index, within, done, n) in pages(range) {
            let page = match state.pages.entry(index) {
                std::collections::btree_map::Entry::Occupied(page) => page.into_mut(),
                std::collections::btree_map::Entry::Vacant(slot) => {
                    slot.insert(OwnedBuf::zeroed(to_usize(PAGE), Alignment::ONE)?)
                }
            };
            iov.copy_to(done, &mut page[within..within + n]);
        }
        state.len = state.len.max(range.end());
        Ok(())
    }

    async fn pwrite_zeroes(self: Arc<Self>, range: ByteRange, _: RequestFlags) -> Result<()> {
        let mut state = self.state.write();
        state.zero(range);
        state.len = state.len.max(range.end());
        Ok(())
    }

    async fn pdiscard(self: Arc<Self>, range: ByteRange) -> Result<()> {
        self.state.write().zero(range);
        Ok(())
    }

    async fn block_status(
        self: Arc<Self>,
        range: ByteRange,
        _: StatusDetail,
    ) -> Result<DriverStatus> {
        let state = self.state.read();
        let first = range.offset() / PAGE;
        // Only pages that are held are visited: a hole may be as long as the longest disk.
        let mut held = state.pages.range(first..).map(|(index, _)| *index);
        let (flags, end) = match held.next() {
            Some(index) if index == first => {
                let follows = |(index, next): &(u64, u64)| index == next;
                let after = to_u64(held.zip(first + 1..).take_while(follows).count());
                (StatusFlags::DATA, (first + 1 + after) * PAGE)
            }
            next => (StatusFlags::ZERO, next.map_or(range.end(), |index| index * PAGE)),
        };
        let len = range.first(end - range.offset()).len();
        Ok(DriverStatus::of(len, flags | StatusFlags::ALLOCATED))
    }

    async fn truncate(self: Arc<Self>, len: u64, _: Exactness, _: Prealloc) -> Result<()> {
        let mut state = self.state.write();
        if let Ok(cut) = ByteRange::from_bounds(len, state.len) {
            state.zero(cut.expand(PAGE_ALIGN).intersect(cut));
            let end = PAGE_ALIGN.count_up(len);
            state.pages.split_off(&end);
        }
        state.len = len;
        Ok(())
    }
}

/// Opens `mem`: `size` zero bytes.
pub struct MemFactory;

#[async_trait]
impl DriverFactory for MemFactory {
    fn name(&self) -> &'static str {
        "mem"
    }

    async fn open(
        &self,
        mut options: Options,
        context: OpenContext,
    ) -> Result<Arc<dyn BlockDriver>, OpenError> {
        let len = options.take_size("size")?.unwrap_or(1 << 30);
        options.finish()?;
        let driver = MemDriver { read_only: !context.flags.writable, ..MemDriver::new(len) };
        Ok(Arc::new(driver))
    }
}
