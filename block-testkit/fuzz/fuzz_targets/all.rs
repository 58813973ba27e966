//! The one program for all targets. `BLOCK_FUZZ_TARGET` names the target; `BLOCK_FUZZ_SEEDS` names a directory
//! that gets the inputs to start from, instead of a run.

#![no_main]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::path::Path;
use std::sync::OnceLock;

use block_testkit::fuzz::Target;
use libfuzzer_sys::fuzz_target;

/// Longest piece of memory in bytes: no input is a reason for more.
const PIECE_LEN_MAX: usize = 1 << 30;

/// The system's memory, in pieces that are not too long.
struct Capped;

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Capped {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, new_len: usize) -> *mut u8 {
        check(new_len);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(old, layout, new_len) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(old, layout) }
    }
}

/// Ends the program, so that libFuzzer keeps the input.
fn check(len: usize) {
    if len > PIECE_LEN_MAX {
        let _ = std::io::stderr().write_all(b"more than a GiB of memory in one piece\n");
        std::process::abort();
    }
}

#[global_allocator]
static MEMORY: Capped = Capped;

static TARGET: OnceLock<&Target> = OnceLock::new();

fuzz_target!(
    init: {
        let name = std::env::var("BLOCK_FUZZ_TARGET").unwrap_or_default();
        let target = block_fuzz::targets().find(|target| target.name == name);
        let Some(target) = target else {
            eprintln!("BLOCK_FUZZ_TARGET names no target: '{name}'");
            std::process::exit(2);
        };
        if let Some(directory) = std::env::var_os("BLOCK_FUZZ_SEEDS") {
            write_seeds(target, Path::new(&directory));
            std::process::exit(0);
        }
        let _ = TARGET.set(target);
    },
    |input: &[u8]| {
        if let Some(target) = TARGET.get()
            && input.len() <= target.max_len
        {
            (target.body)(input);
        }
    }
);

/// Writes the inputs to start from, numbered; and says how long an input may be.
fn write_seeds(target: &Target, directory: &Path) {
    for (number, input) in (target.seeds)().into_iter().enumerate() {
        let path = directory.join(format!("seed-{number:03}"));
        if let Err(error) = std::fs::write(&path, input) {
            eprintln!("{}: {error}", path.display());
            std::process::exit(2);
        }
    }
    println!("{}", target.max_len);
}
