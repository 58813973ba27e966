//! Memory for requests: [`OwnedBuf`] is yours alone and a slice; [`IoBuf`] is shared with whoever
//! moves the data and gives no slice out; [`IoVec`] is what a request carries.
//!
//! A request may outlive the future that started it (it detaches when dropped), and the kernel, a
//! guest or a second request may touch the same bytes meanwhile. So a request holds its memory by
//! reference count, and bytes that are shared are only touched through [`IoBuf::copy_to`],
//! [`IoBuf::copy_from`] and [`IoBuf::fill`], which use relaxed atomic accesses: two that race leave
//! unspecified bytes behind, never undefined behaviour.
//!
//! Invariants: `offset + len <= mem.len` for every `IoBuf`; an `OwnedBuf` is the only handle on its
//! memory; `IoVec::len()` is the sum of its buffers' lengths.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::any::Any;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use smallvec::SmallVec;

use crate::error::Error;
use crate::range::Alignment;

/// An allocation and who frees it.
struct Memory {
    ptr: NonNull<u8>,
    len: usize,
    owner: Owner,
}

enum Owner {
    /// Allocated here with this layout (of at least one byte).
    Heap(Layout),
    /// Foreign memory, kept alive by the box.
    Foreign { _keep: Box<dyn Any + Send + Sync> },
}

// SAFETY: `Memory` is a region of plain bytes; shared access goes through atomics (`IoBuf`), and
// plain access needs the unique handle (`OwnedBuf`).
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    fn zeroed(len: usize, align: Alignment) -> Result<Self, Error> {
        let no_memory = Error::NoMemory { bytes: crate::range::to_u64(len) };
        let align = crate::range::to_usize(align.bytes()).next_power_of_two();
        let layout = Layout::from_size_align(len.max(1), align.max(8)).map_err(|_| no_memory)?;
        // SAFETY: the layout's size is at least one.
        let ptr = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(no_memory)?;
        Ok(Self { ptr, len, owner: Owner::Heap(layout) })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Owner::Heap(layout) = self.owner {
            // SAFETY: allocated in `zeroed` with this very layout; the last handle is gone.
            unsafe { dealloc(self.ptr.as_ptr(), layout) }
        }
    }
}

/// A heap buffer with one owner, aligned and initialised; derefs to `[u8]`.
pub struct OwnedBuf {
    mem: Arc<Memory>,
}

impl OwnedBuf {
    /// `len` zero bytes at an address that is a multiple of `align` (rounded up to a power of two).
    ///
    /// Fails with [`Error::NoMemory`] where the allocator has none; never aborts.
    pub fn zeroed(len: usize, align: Alignment) -> Result<Self, Error> {
        Ok(Self { mem: Arc::new(Memory::zeroed(len, align)?) })
    }

    /// A copy of `bytes` at an address that is a multiple of `align`.
    pub fn copy_of(bytes: &[u8], align: Alignment) -> Result<Self, Error> {
        let mut buf = Self::zeroed(bytes.len(), align)?;
        buf.copy_from_slice(bytes);
        Ok(buf)
    }

    /// Gives the memory to requests. Get it back with [`IoBuf::try_into_owned`].
    pub fn into_shared(self) -> IoBuf {
        let len = self.mem.len;
        IoBuf { mem: self.mem, offset: 0, len }
    }
}

impl Deref for OwnedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: initialised at allocation, and this is the only handle on it.
        unsafe { std::slice::from_raw_parts(self.mem.ptr.as_ptr(), self.mem.len) }
    }
}

impl DerefMut for OwnedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: initialised at allocation, and this is the only handle on it, held mutably.
        unsafe { std::slice::from_raw_parts_mut(self.mem.ptr.as_ptr(), self.mem.len) }
    }
}

impl fmt::Debug for OwnedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OwnedBuf({} bytes)", self.len())
    }
}

/// A part of shared memory. Clones and slices share the bytes; none gives a reference to them.
#[derive(Clone)]
pub struct IoBuf {
    mem: Arc<Memory>,
    offset: usize,
    len: usize,
}

impl IoBuf {
    /// `len` zero bytes; see [`OwnedBuf::zeroed`].
    pub fn zeroed(len: usize, align: Alignment) -> Result<Self, Error> {
        Ok(OwnedBuf::zeroed(len, align)?.into_shared())
    }

    /// Wraps `len` bytes at `ptr` that `keep` keeps alive: guest memory, a shared mapping.
    ///
    /// # Safety
    /// The region is mapped, readable and writable until `keep` is dropped, and while any clone of
    /// the result lives nobody in this process holds a Rust reference into it.
    pub unsafe fn from_foreign(
        ptr: NonNull<u8>,
        len: usize,
        keep: Box<dyn Any + Send + Sync>,
    ) -> Self {
        let mem = Memory { ptr, len, owner: Owner::Foreign { _keep: keep } };
        Self { mem: Arc::new(mem), offset: 0, len }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address of the first byte, for the kernel. Valid while this handle or a clone of it lives.
    pub fn as_ptr(&self) -> *mut u8 {
        // SAFETY: `offset <= mem.len`, so this stays in (or one past) the allocation.
        unsafe { self.mem.ptr.as_ptr().add(self.offset) }
    }

    /// Whether the address of the first byte is a multiple of `align`.
    pub fn is_aligned(&self, align: Alignment) -> bool {
        align.is_aligned(crate::range::to_u64(self.as_ptr().addr()))
    }

    /// The `len` bytes at `offset`, sharing this memory.
    ///
    /// # Panics
    /// If the part is not inside.
    #[must_use]
    pub fn slice(&self, offset: usize, len: usize) -> Self {
        assert!(offset <= self.len && len <= self.len - offset, "slice outside of the buffer");
        Self { mem: Arc::clone(&self.mem), offset: self.offset + offset, len }
    }

    /// Copies the bytes at `offset` to `dst`, all of it.
    ///
    /// # Panics
    /// If `offset + dst.len()` is beyond the end.
    pub fn copy_to(&self, offset: usize, dst: &mut [u8]) {
        let from = self.part(offset, dst.len());
        // SAFETY: the part is inside of the memory, and `dst` is somebody's own.
        let mut done = unsafe { copy_words(from, dst.as_mut_ptr(), dst.len()) };
        self.for_each_piece(offset + done, dst.len() - done, |piece| match piece {
            Piece::Word(word) => {
                dst[done..done + 8].copy_from_slice(&native(word.load(Relaxed)));
                done += 8;
            }
            Piece::Byte(byte) => {
                dst[done] = byte.load(Relaxed);
                done += 1;
            }
        });
    }

    /// Copies all of `src` to the bytes at `offset`.
    ///
    /// # Panics
    /// If `offset + src.len()` is beyond the end.
    pub fn copy_from(&self, offset: usize, src: &[u8]) {
        let to = self.part(offset, src.len());
        // SAFETY: the part is inside of the memory, and `src` is somebody's own.
        let mut done = unsafe { copy_words(src.as_ptr(), to, src.len()) };
        self.for_each_piece(offset + done, src.len() - done, |piece| match piece {
            Piece::Word(word) => {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(&src[done..done + 8]);
                word.store(from_native(bytes), Relaxed);
                done += 8;
            }
            Piece::Byte(byte) => {
                byte.store(src[done], Relaxed);
                done += 1;
            }
        });
    }

    /// Address of a part, which must be inside.
    fn part(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset <= self.len && len <= self.len - offset, "copy outside of the buffer");
        // SAFETY: `offset <= self.len`, so this stays in (or one past) the allocation.
        unsafe { self.as_ptr().add(offset) }
    }

    /// Sets every byte to `value`.
    pub fn fill(&self, value: u8) {
        self.for_each_piece(0, self.len, |piece| match piece {
            Piece::Word(word) => word.store(from_native([value; 8]), Relaxed),
            Piece::Byte(byte) => byte.store(value, Relaxed),
        });
    }

    /// Whether every byte is zero at the time it is looked at.
    pub fn is_zero(&self) -> bool {
        let mut any = 0u64;
        // 4 KiB at a time, so that data is noticed early.
        let mut offset = 0;
        while offset < self.len && any == 0 {
            let len = (self.len - offset).min(4096);
            self.for_each_piece(offset, len, |piece| match piece {
                Piece::Word(word) => any |= word.load(Relaxed),
                Piece::Byte(byte) => any |= u64::from(byte.load(Relaxed)),
            });
            offset += len;
        }
        any == 0
    }

    /// A copy of the bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.copy_to(0, &mut bytes);
        bytes
    }

    /// The memory as a plain buffer again, if this is the only handle and covers all of it.
    pub fn try_into_owned(mut self) -> Result<OwnedBuf, Self> {
        let whole = self.offset == 0 && self.len == self.mem.len;
        let heap = matches!(self.mem.owner, Owner::Heap(_));
        if whole && heap && Arc::get_mut(&mut self.mem).is_some() {
            Ok(OwnedBuf { mem: self.mem })
        } else {
            Err(self)
        }
    }

    /// Visits the bytes of a part in order: whole words where the address allows, single bytes
    /// elsewhere.
    #[inline]
    fn for_each_piece(&self, offset: usize, len: usize, mut visit: impl FnMut(Piece<'_>)) {
        let ptr = self.part(offset, len);
        // Miri refuses atomics of different sizes that race on one byte; the hardware does not mind.
        let head = if cfg!(miri) { len } else { ptr.align_offset(8).min(len) };
        let words = (len - head) / 8;
        for i in 0..head {
            // SAFETY: inside the part; all shared accesses to these bytes are atomic.
            visit(Piece::Byte(unsafe { AtomicU8::from_ptr(ptr.add(i)) }));
        }
        for i in 0..words {
            // SAFETY: inside the part, aligned to 8 by the choice of `head`.
            visit(Piece::Word(unsafe { AtomicU64::from_ptr(ptr.add(head + i * 8).cast()) }));
        }
        for i in head + words * 8..len {
            // SAFETY: as in the first loop.
            visit(Piece::Byte(unsafe { AtomicU8::from_ptr(ptr.add(i)) }));
        }
    }
}

/// Copies as many bytes as the processor is good at copying by itself; how many that were, from the start.
///
/// It does so by accesses of its own, of which this code only knows that each moves at least a byte: to
/// the compiler they are relaxed atomic ones, and one side may be shared.
///
/// # Safety
/// `len` bytes can be read at `from` and written at `to`, and the two do not overlap.
#[cfg(all(target_arch = "x86_64", not(miri)))]
unsafe fn copy_words(from: *const u8, to: *mut u8, len: usize) -> usize {
    /// Below this the start costs more than the copy.
    const WORTH_IT: usize = 256;
    if len < WORTH_IT {
        return 0;
    }
    // SAFETY: `len / 8` words are read and written, upwards, since the direction flag is clear.
    unsafe {
        std::arch::asm!(
            "rep movsq",
            inout("rcx") len / 8 => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags)
        );
    }
    len / 8 * 8
}

/// None: this processor has no such instruction, or is simulated.
///
/// # Safety
/// As above.
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
unsafe fn copy_words(_: *const u8, _: *mut u8, _: usize) -> usize {
    0
}

enum Piece<'a> {
    Word(&'a AtomicU64),
    Byte(&'a AtomicU8),
}

#[expect(clippy::host_endian_bytes, reason = "memory order in, memory order out")]
fn native(word: u64) -> [u8; 8] {
    word.to_ne_bytes()
}

#[expect(clippy::host_endian_bytes, reason = "memory order in, memory order out")]
fn from_native(bytes: [u8; 8]) -> u64 {
    u64::from_ne_bytes(bytes)
}

impl From<OwnedBuf> for IoBuf {
    fn from(buf: OwnedBuf) -> Self {
        buf.into_shared()
    }
}

impl fmt::Debug for IoBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoBuf({} bytes)", self.len)
    }
}

/// The memory of one request: buffers in order, up to four without an allocation.
#[derive(Clone, Default)]
pub struct IoVec {
    bufs: SmallVec<[IoBuf; 2]>,
    len: usize,
}

impl IoVec {
    /// No buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a buffer; empty ones are dropped.
    pub fn push(&mut self, buf: IoBuf) {
        if !buf.is_empty() {
            self.len += buf.len();
            self.bufs.push(buf);
        }
    }

    /// Length in bytes of all buffers together.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The buffers in order, none empty.
    pub fn bufs(&self) -> &[IoBuf] {
        &self.bufs
    }

    /// Whether every buffer starts at a multiple of `address` and is a multiple of `length` long
    /// (`length`: the request alignment, `address`: the memory alignment).
    pub fn is_aligned(&self, address: Alignment, length: Alignment) -> bool {
        (address.bytes() == 1 && length.bytes() == 1)
            || self.bufs.iter().all(|buf| {
                buf.is_aligned(address) && length.is_aligned(crate::range::to_u64(buf.len()))
            })
    }

    /// The `len` bytes at `offset`, sharing the memory.
    ///
    /// # Panics
    /// If the part is not inside.
    #[must_use]
    pub fn slice(&self, offset: usize, len: usize) -> Self {
        assert!(offset <= self.len && len <= self.len - offset, "slice outside of the vector");
        let mut part = Self::new();
        self.for_each_part(offset, len, |buf, at, n, _| part.push(buf.slice(at, n)));
        part
    }

    /// Copies the bytes at `offset` to all of `dst`. Panics like [`IoVec::slice`].
    pub fn copy_to(&self, offset: usize, dst: &mut [u8]) {
        let len = dst.len();
        assert!(offset <= self.len && len <= self.len - offset, "copy outside of the vector");
        self.for_each_part(offset, len, |buf, at, n, done| {
            buf.copy_to(at, &mut dst[done..done + n])
        });
    }

    /// Copies all of `src` to the bytes at `offset`. Panics like [`IoVec::slice`].
    pub fn copy_from(&self, offset: usize, src: &[u8]) {
        assert!(offset <= self.len && src.len() <= self.len - offset, "copy outside of the vector");
        self.for_each_part(offset, src.len(), |buf, at, n, done| {
            buf.copy_from(at, &src[done..done + n]);
        });
    }

    /// Sets the `len` bytes at `offset` to `value`. Panics like [`IoVec::slice`].
    pub fn fill(&self, offset: usize, len: usize, value: u8) {
        assert!(offset <= self.len && len <= self.len - offset, "fill outside of the vector");
        self.for_each_part(offset, len, |buf, at, n, _| buf.slice(at, n).fill(value));
    }

    /// Whether every byte is zero.
    pub fn is_zero(&self) -> bool {
        self.bufs.iter().all(IoBuf::is_zero)
    }

    /// A copy of the bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.copy_to(0, &mut bytes);
        bytes
    }

    /// Calls `visit(buffer, offset in it, length, bytes done)` for each buffer's share of a part.
    fn for_each_part(
        &self,
        offset: usize,
        len: usize,
        mut visit: impl FnMut(&IoBuf, usize, usize, usize),
    ) {
        let (mut skip, mut done) = (offset, 0);
        for buf in &self.bufs {
            if done == len {
                break;
            }
            if skip >= buf.len() {
                skip -= buf.len();
                continue;
            }
            let n = (buf.len() - skip).min(len - done);
            visit(buf, skip, n, done);
            done += n;
            skip = 0;
        }
    }
}

impl From<IoBuf> for IoVec {
    fn from(buf: IoBuf) -> Self {
        let mut iov = Self::new();
        iov.push(buf);
        iov
    }
}

impl FromIterator<IoBuf> for IoVec {
    fn from_iter<T: IntoIterator<Item = IoBuf>>(bufs: T) -> Self {
        let mut iov = Self::new();
        iov.extend(bufs);
        iov
    }
}

impl Extend<IoBuf> for IoVec {
    fn extend<T: IntoIterator<Item = IoBuf>>(&mut self, bufs: T) {
        bufs.into_iter().for_each(|buf| self.push(buf));
    }
}

impl fmt::Debug for IoVec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoVec({} bytes in {} buffers)", self.len, self.bufs.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owned_buffer_is_zero_aligned_and_comes_back() {
        let mut buf = OwnedBuf::zeroed(1000, Alignment::PAGE).unwrap();
        assert!(buf.iter().all(|b| *b == 0));
        buf[999] = 7;
        let shared = buf.into_shared();
        assert!(shared.is_aligned(Alignment::PAGE));
        let clone = shared.clone();
        let shared = shared.try_into_owned().expect_err("two handles");
        drop(clone);
        assert_eq!(shared.try_into_owned().unwrap()[999], 7);
    }

    #[test]
    fn a_slice_does_not_come_back_as_the_whole() {
        let buf = IoBuf::zeroed(16, Alignment::ONE).unwrap();
        let part = buf.slice(0, 8);
        drop(buf);
        assert!(part.try_into_owned().is_err());
    }

    /// Miri is a hundred times slower: it sees every third offset.
    const STEP: usize = if cfg!(miri) { 3 } else { 1 };

    #[test]
    fn copies_of_odd_offsets_and_lengths_agree_with_a_slice() {
        let src: Vec<u8> = (0..64).collect();
        for offset in (0..20).step_by(STEP) {
            for len in (0..24).step_by(STEP) {
                let buf = IoBuf::zeroed(64, Alignment::ONE).unwrap();
                buf.copy_from(offset, &src[..len]);
                let mut expect = vec![0; 64];
                expect[offset..offset + len].copy_from_slice(&src[..len]);
                assert_eq!(buf.to_vec(), expect);
                let mut back = vec![0; len];
                buf.copy_to(offset, &mut back);
                assert_eq!(back, src[..len]);
                buf.slice(offset, len).fill(0);
                assert!(buf.is_zero());
            }
        }
    }

    #[test]
    fn long_copies_leave_the_bytes_beside_them_alone() {
        let src: Vec<u8> = (0..=u8::MAX).cycle().take(2000).collect();
        for offset in (0..9).step_by(STEP) {
            for len in [255, 256, 257, 263, 264, 1000, 1024, 1991] {
                let buf = IoBuf::zeroed(2000, Alignment::ONE).unwrap();
                buf.copy_from(offset, &src[3..3 + len]);
                let mut expect = vec![0; 2000];
                expect[offset..offset + len].copy_from_slice(&src[3..3 + len]);
                assert_eq!(buf.to_vec(), expect);
                let mut back = vec![9; len + 2];
                buf.copy_to(offset, &mut back[1..=len]);
                assert_eq!((back[0], back[len + 1]), (9, 9));
                assert_eq!(back[1..=len], src[3..3 + len]);
            }
        }
    }

    #[test]
    fn a_vector_copies_and_slices_across_its_buffers() {
        let bufs: Vec<_> = [3, 0, 5, 8].map(|n| IoBuf::zeroed(n, Alignment::ONE).unwrap()).into();
        let iov: IoVec = bufs.into_iter().collect();
        assert_eq!((iov.len(), iov.bufs().len()), (16, 3));
        let bytes: Vec<u8> = (1..=16).collect();
        iov.copy_from(0, &bytes);
        for offset in 0..=16 {
            for len in 0..=16 - offset {
                assert_eq!(iov.slice(offset, len).to_vec(), bytes[offset..offset + len]);
            }
        }
        iov.fill(2, 12, 0);
        assert_eq!(iov.to_vec(), [1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 15, 16]);
        assert!(iov.slice(2, 12).is_zero() && !iov.is_zero());
    }

    #[test]
    fn racing_copies_are_defined() {
        let buf = IoBuf::zeroed(67, Alignment::ONE).unwrap();
        std::thread::scope(|scope| {
            for value in 1..4u8 {
                let buf = buf.clone();
                scope.spawn(move || buf.slice(usize::from(value), 61).fill(value));
            }
            let mut seen = [0; 67];
            buf.copy_to(0, &mut seen);
            assert!(seen.iter().all(|b| *b < 4));
        });
    }

    #[test]
    fn foreign_memory_is_kept_and_released_by_its_owner() {
        let mut page = Box::new([5u8; 128]);
        let ptr = NonNull::new(page.as_mut_ptr()).unwrap();
        let keep = Arc::new(());
        let weak = Arc::downgrade(&keep);
        // SAFETY: `page` outlives the buffer and is not touched before it is gone.
        let buf = unsafe { IoBuf::from_foreign(ptr, 128, Box::new(keep)) };
        buf.slice(1, 9).fill(6);
        let buf = buf.try_into_owned().expect_err("foreign memory is never owned");
        drop(buf);
        assert!(weak.upgrade().is_none());
        assert_eq!((page[0], page[9], page[10]), (5, 6, 5));
    }

    #[test]
    fn an_allocation_that_cannot_be_is_an_error() {
        let err = OwnedBuf::zeroed(isize::MAX.unsigned_abs(), Alignment::PAGE).unwrap_err();
        assert!(matches!(err, Error::NoMemory { .. }));
    }
}
