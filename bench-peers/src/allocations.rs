//! The system's allocator, with a count of what it is asked for.
//!
//! The count is one relaxed addition per allocation, on a variable of its own cache line.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The allocator.
pub struct Counting;

#[repr(align(64))]
struct Counter(AtomicU64);

static ALLOCATIONS: Counter = Counter(AtomicU64::new(0));

/// Allocations since the start of the program, by all threads.
pub fn count() -> u64 {
    ALLOCATIONS.0.load(Relaxed)
}

// SAFETY: every call is passed on to the system's allocator with its arguments unchanged, and so are
// the guarantees of both sides.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.0.fetch_add(1, Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.0.fetch_add(1, Relaxed);
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        ALLOCATIONS.0.fetch_add(1, Relaxed);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(ptr, layout) }
    }
}
