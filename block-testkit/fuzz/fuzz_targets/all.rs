//! The one program for all targets. `BLOCK_FUZZ_TARGET` names the target; `BLOCK_FUZZ_SEEDS` names a directory
//! that gets the inputs to start from, instead of a run.

#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use block_testkit::fuzz::Target;
use libfuzzer_sys::fuzz_target;

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
