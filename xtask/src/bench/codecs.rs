//! The codecs of compressed clusters, those that were chosen and those that were not: how fast, how small.

use serde_json::Value;

use super::{Programs, Scale, median, number, sources};
use crate::failure::{Failure, Result};
use crate::run;
use crate::scratch::Scratch;

/// Makes the disk, measures, and returns the table.
pub(super) fn measure(programs: &Programs, scratch: &Scratch, scale: Scale) -> Result<String> {
    let (disk, files) = (scale.choose(480 << 20, 100 << 20), scale.choose(300 << 20, 40 << 20));
    let path = sources::file_system(scratch, "codecs.raw", disk, files)?;
    eprintln!("bench: codecs");
    let mut rounds: Vec<Value> = Vec::new();
    for _ in 0..scale.rounds {
        rounds.push(run::json(programs.bench_peers(&["codecs"]).arg(&path))?);
    }
    let Some(first) = rounds.first() else {
        return Ok(String::new());
    };
    let megabytes = number(first, "bytes")? / 1e6;
    let mut text = format!(
        "\n## Codecs\n\nAn ext4 with {} MiB of files of the machine's /usr, cut into 64 KiB clusters; \
         {megabytes:.0} MB are not zero. One thread: `bench-peers codecs`. What does not shrink counts in \
         full. QEMU's are the whole of `qemu-img convert -c`: its length is that of the image, its CPU \
         time that of all threads.\n\n| codec | level | window | MB per second of CPU | MB |\n\
         |---|---|---|---|---|\n",
        files >> 20,
    );
    let count = first["codecs"].as_array().map_or(0, Vec::len);
    for index in 0..count {
        let row = &first["codecs"][index];
        let seconds: Result<Vec<f64>> =
            rounds.iter().map(|round| number(&round["codecs"][index], "cpu_seconds")).collect();
        let name = row["codec"].as_str().unwrap_or_default();
        let (level, window) = (&row["level"], row["window"].as_str().unwrap_or_default());
        let (speed, size) = (megabytes / median(seconds?), number(row, "bytes")? / 1e6);
        text += &format!("| {name} | {level} | {window} | {speed:.0} | {size:.1} |\n");
    }
    for (kind, level, window) in [("zlib", "default", "4 KiB"), ("zstd", "default", "cluster")] {
        let target = scratch.file("codecs.qcow2");
        let mut convert = run::command("qemu-img");
        convert.args(["convert", "-c", "-m", "8", "-W", "-f", "raw", "-O", "qcow2", "-o"]);
        convert.arg(format!("compression_type={kind}")).arg(&path).arg(&target);
        let value = programs.measure(&convert, scratch.path())?;
        let seconds = number(&value, "user_seconds")? + number(&value, "system_seconds")?;
        let found = std::fs::metadata(&target).map_err(Failure::io("look at an image"))?;
        let size = megabytes_of(found.len());
        let speed = megabytes / seconds;
        text += &format!("| QEMU {kind} | {level} | {window} | {speed:.0} | {size:.1} |\n");
    }
    Ok(text)
}

/// Numbers below 2^53, which floating point holds exactly.
#[allow(clippy::cast_precision_loss, reason = "lengths of files")]
fn megabytes_of(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
