//! The main job, shown on a real image: a compressed qcow2 image with a backing file becomes raw.
//!
//! qemu-img makes the images and has the last word on the result; block-img converts.

use std::io::IsTerminal;
use std::path::Path;
use std::time::Instant;

use clap::Args;

use crate::failure::{Failure, Result};
use crate::scratch::Scratch;
use crate::{guest, run, setup};

/// Options of `cargo xtask demo`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Size of the guest disk in MiB.
    #[arg(long, default_value_t = 512)]
    mib: u64,
    /// Seed of the guest disk's contents.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The profile of cargo's with which block-img is built.
    #[arg(long, default_value = run::QUICK)]
    profile: String,
}

impl Arguments {
    /// As CI runs it.
    pub(crate) fn ci() -> Self {
        Self { mib: 256, seed: 1, profile: run::DEV.to_owned() }
    }
}

/// Makes the images, converts, compares, and says what was done.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    setup::peers(&[setup::QEMU])?;
    let block_img = run::binary(&arguments.profile, "block-tools", "block-img")?;
    let scratch = Scratch::new("demo")?;
    let directory = scratch.path();
    println!("Making images of a {} MiB guest disk:", arguments.mib);
    make_images(directory, arguments)?;

    println!("Converting, with block-img of this workspace:");
    let start = Instant::now();
    let mut convert = run::command(block_img);
    convert.current_dir(directory);
    convert.arg("convert");
    if std::io::stdout().is_terminal() {
        convert.arg("-p");
    }
    convert.args(["-O", "raw", "overlay.qcow2", "out.raw"]);
    println!("  {}", shown(&convert));
    run::succeed(&mut convert)?;
    let time = start.elapsed().as_secs_f64();

    println!("Comparing, with qemu-img:");
    qemu(directory, "qemu-img compare -f qcow2 -F raw overlay.qcow2 out.raw")?;

    let len = |name: &str| length(&directory.join(name));
    let (base, overlay, raw) = (len("base.qcow2")?, len("overlay.qcow2")?, len("out.raw")?);
    println!(
        "Done: {} of compressed images ({} base, zlib; {} overlay, zstd) became {} of raw disk in \
         {time:.2} s, {:.0} MiB/s, and qemu-img finds it identical.",
        mib(base + overlay),
        mib(base),
        mib(overlay),
        mib(raw),
        raw as f64 / f64::from(1 << 20) / time,
    );
    Ok(())
}

/// A zlib-compressed base, and a zstd-compressed overlay of the first quarter, which the guest has
/// rewritten since.
fn make_images(directory: &Path, arguments: &Arguments) -> Result<()> {
    let len = arguments.mib << 20;
    guest::write(&directory.join("guest.raw"), len, arguments.seed)?;
    guest::write(&directory.join("fresh.raw"), len / 4, arguments.seed + 1)?;
    qemu(directory, "qemu-img convert -f raw -O qcow2 -c guest.raw base.qcow2")?;
    qemu(
        directory,
        "qemu-img create -q -f qcow2 -o compression_type=zstd -b base.qcow2 -F qcow2 overlay.qcow2",
    )?;
    let write = format!("write -q -c -s fresh.raw 0 {}M", arguments.mib / 4);
    qemu(directory, &format!("qemu-io -f qcow2 overlay.qcow2 | {write}"))
}

/// Runs a tool of QEMU, given as [`run::words`] takes it.
fn qemu(directory: &Path, text: &str) -> Result<()> {
    let mut command = run::words(text);
    command.current_dir(directory);
    println!("  {}", run::line(&command));
    run::succeed(&mut command)
}

/// The command's line with the program's name instead of its whole path.
fn shown(command: &std::process::Command) -> String {
    let path = command.get_program().to_string_lossy().into_owned();
    let name = path.rsplit('/').next().unwrap_or_default();
    run::line(command).replacen(&path, name, 1)
}

fn length(path: &Path) -> Result<u64> {
    let what = format!("read {}", path.display());
    Ok(std::fs::metadata(path).map_err(Failure::io(what))?.len())
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
