//! Requests to an image: the tables of reads and of writes.
//!
//! What ours wrote is checked once per row: a raw file gets the same requests, and must equal the image.

use super::against::{Against, Medians};
use super::contender::{Contender, Direction, Requests, Sample};
use super::disks::{Disk, Start};
use super::report;
use super::rows::{self, Row};
use super::{Programs, Scale, median};
use crate::failure::Result;
use crate::run;
use crate::scratch::Scratch;

/// Makes the disks and measures all rows of one direction whose name contains `only`.
pub(super) fn measure(
    programs: &Programs,
    scratch: &Scratch,
    scale: Scale,
    direction: Direction,
    only: &str,
) -> Result<String> {
    let (rows, mut text) = match direction {
        Direction::Read => (rows::READS, READS.to_owned()),
        Direction::Write => (rows::WRITES, WRITES.to_owned()),
    };
    text += UNITS;
    let mut allocated = None;
    for row in rows.iter().filter(|row| row.name.contains(only)) {
        eprintln!("bench: {direction} {}", row.name);
        let disk = match (row.start, allocated.take()) {
            (Start::Allocated, Some(disk)) => disk,
            (start, before) => {
                allocated = before;
                Disk::new(scratch, start, row.disk_len(scale))?
            }
        };
        let requests = row.requests(scale);
        let results = measure_row(programs, &disk, &requests, scale)?;
        text += &show(row, programs, &disk, &requests, &results);
        match row.start {
            Start::Allocated => allocated = Some(disk),
            Start::Empty => disk.remove()?,
        }
    }
    allocated.map_or(Ok(()), Disk::remove)?;
    Ok(text)
}

const READS: &str = "\n## Reads\n\nA qcow2 image with 64 KiB clusters, all allocated, random bytes; \
     the limits read the same bytes from a raw file. ";

const WRITES: &str = "\n## Writes\n\nA qcow2 image with 64 KiB clusters; for the limits a raw file. \
     Allocated: both are full of random bytes, which are overwritten. Allocating: each run begins with an \
     image without a cluster and with a sparse file. What was written before is on the disk (`sync`). ";

const UNITS: &str = "Thousands of requests per second for 4 KiB, MB/s for 1 MiB; CPU µs per request \
     in brackets.\n";

fn measure_row(
    programs: &Programs,
    disk: &Disk,
    requests: &Requests,
    scale: Scale,
) -> Result<Vec<Medians>> {
    settle(programs, disk, requests)?;
    let contenders = able(programs, disk, requests)?;
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); contenders.len()];
    for round in 0..scale.rounds {
        for turn in 0..contenders.len() {
            let index = (round + turn) % contenders.len();
            let contender = contenders[index];
            samples[index].push(contender.sample(programs, disk, requests)?);
            if round == 0 && contender.is_ours() && requests.direction == Direction::Write {
                verify(programs, disk, contender, requests)?;
            }
        }
    }
    let results = contenders.iter().zip(&samples).map(|(contender, samples)| Medians {
        contender: *contender,
        per_second: median(samples.iter().map(|sample| sample.count as f64 / sample.seconds)),
        cpu_micros: median(samples.iter().map(|s| s.cpu_seconds * 1e6 / s.count as f64)),
    });
    Ok(results.collect())
}

/// Before the first sample of a row: an allocated disk is in the page cache, or it is not at all if the
/// row bypasses it, because a direct write must first throw out what the page cache has.
///
/// For writes both files get the same bytes, as a row may write to a part of them only, and come into the
/// page cache by the same small writes: what a write costs depends on how large the folios there are, and
/// those are as large as what filled them.
fn settle(programs: &Programs, disk: &Disk, requests: &Requests) -> Result<()> {
    disk.forget()?;
    if requests.direction == Direction::Write && disk.start == Start::Allocated {
        let count = disk.len / requests.len;
        let all = Requests { count, direct: false, ..requests.clone() };
        for contender in [Contender::REFERENCE, Contender::BlockCore] {
            run::json(&mut contender.command(programs, disk, &all))?;
        }
    }
    match (requests.direct, requests.direction) {
        (true, _) => disk.forget(),
        (false, Direction::Read) => disk.read(),
        (false, Direction::Write) => Ok(()),
    }
}

/// Those who can send `requests` here: an engine may be refused (io_uring in containers) or not built
/// in. We must be able to.
fn able(programs: &Programs, disk: &Disk, requests: &Requests) -> Result<Vec<Contender>> {
    let few = Requests { count: requests.depth, ..requests.clone() };
    let mut able = Vec::new();
    for contender in Contender::all(requests) {
        match contender.sample(programs, disk, &few) {
            Ok(_) => able.push(contender),
            Err(failure) if contender.is_ours() => return Err(failure),
            Err(failure) => {
                eprintln!("bench: without {}: {failure}", contender.name(requests.direction));
            }
        }
    }
    Ok(able)
}

/// Fails unless the image holds what `ours`, who wrote it last, was told to write.
fn verify(programs: &Programs, disk: &Disk, ours: Contender, requests: &Requests) -> Result<()> {
    let requests = ours.adapt(requests);
    disk.prepare(&disk.raw, requests.direction)?;
    run::json(&mut Contender::REFERENCE.command(programs, disk, &requests))?;
    disk.verify(requests.direct)
}

/// The row's own table: who, how fast, by which command; then the goals.
fn show(
    row: &Row,
    programs: &Programs,
    disk: &Disk,
    requests: &Requests,
    results: &[Medians],
) -> String {
    let mut text = format!(
        "\n### {}\n\n{} MiB.\n\n| who | speed (CPU µs) | command |\n|---|---|---|\n",
        row.name,
        disk.len >> 20
    );
    for result in results {
        let contender = result.contender;
        let command = contender.command(programs, disk, &contender.adapt(requests));
        text += &format!(
            "| {} | {} ({:.1}) | `{}` |\n",
            contender.name(requests.direction),
            speed(requests.len, result.per_second),
            result.cpu_micros,
            report::short_line(&command),
        );
    }
    text += "\n| to reach | block-img bench | block-core |\n|---|---|---|\n";
    for goal in row.goals {
        let against: Against = goal.against;
        let verdict = |contender| goal.verdict(against.ratio(contender, results));
        text += &format!(
            "| {} | {} | {} |\n",
            goal.words(against.name()),
            verdict(Contender::BlockImg),
            verdict(Contender::BlockCore),
        );
    }
    text
}

fn speed(len: u64, per_second: f64) -> String {
    if len < 1 << 20 {
        format!("{:.1}k", per_second / 1e3)
    } else {
        format!("{:.0} MB/s", per_second * len as f64 / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_requests_are_shown_by_their_bytes() {
        assert_eq!(speed(4096, 12_345.0), "12.3k");
        assert_eq!(speed(1 << 20, 1000.0), "1049 MB/s");
    }
}
