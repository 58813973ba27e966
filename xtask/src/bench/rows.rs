//! The rows of the tables of requests, and what each should reach. Data only.
//!
//! Invariants: a row that starts on an empty disk visits no place twice, so that each of its requests
//! allocates; every step fits the 31 bits that `qemu-img bench -S` takes.

use super::Scale;
use super::against::Against;
use super::contender::{Direction, Requests};
use super::disks::Start;
use super::report::Goal;

/// A row.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) direction: Direction,
    pub(super) start: Start,
    pub(super) places: Places,
    pub(super) len: u64,
    pub(super) direct: bool,
    depth: u64,
    /// In a real run.
    count: u64,
    pub(super) goals: &'static [Goal<Against>],
}

/// Where the requests go.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Places {
    /// One after the other.
    Sequential,
    /// Far from each other.
    Scattered,
    /// Far from each other, each at the start of a cluster of its own.
    Clusters,
}

/// Of the images, which have qemu-img's default.
const CLUSTER: u64 = 64 << 10;

/// Reads of an image whose clusters are all allocated.
pub(super) const READS: &[Row] = &[
    Row {
        name: "random 4 KiB, page cache, QD1",
        direct: false,
        depth: 1,
        count: 1_000_000,
        goals: &[
            Goal::at_least(0.85, Against::Raw),
            Goal::at_least(2.0, Against::Qemu),
            Goal::at_least(1.0, Against::ImagoAsync),
        ],
        ..READ_4K
    },
    Row {
        name: "random 4 KiB, page cache, QD32",
        direct: false,
        depth: 32,
        count: 1_000_000,
        goals: &[Goal::at_least(0.85, Against::Raw), Goal::at_least(1.6, Against::Qemu)],
        ..READ_4K
    },
    Row {
        name: "random 4 KiB, O_DIRECT, QD1",
        direct: true,
        depth: 1,
        count: 30_000,
        goals: &[Goal::at_least(0.95, Against::Raw)],
        ..READ_4K
    },
    Row {
        name: "random 4 KiB, O_DIRECT, QD32",
        direct: true,
        depth: 32,
        count: 150_000,
        goals: &[Goal::at_least(0.95, Against::RawUring), Goal::at_most(3.5, Against::CpuMicros)],
        ..READ_4K
    },
    Row {
        name: "sequential 1 MiB, page cache, QD8",
        direct: false,
        count: 8192,
        goals: &[Goal::at_least(0.97, Against::Best)],
        ..READ_1M
    },
    Row {
        name: "sequential 1 MiB, O_DIRECT, QD8",
        direct: true,
        count: 4096,
        goals: &[Goal::at_least(0.97, Against::Best)],
        ..READ_1M
    },
];

/// Writes, in place and into empty images.
pub(super) const WRITES: &[Row] = &[
    Row {
        name: "random 4 KiB, allocated, page cache, QD32",
        direct: false,
        count: 500_000,
        goals: &[Goal::at_least(0.85, Against::Raw), Goal::at_least(4.0, Against::Qemu)],
        ..WRITE_4K
    },
    Row {
        name: "random 4 KiB, allocated, O_DIRECT, QD32",
        direct: true,
        count: 150_000,
        goals: &[Goal::at_least(1.0, Against::Best), Goal::at_most(3.0, Against::CpuMicros)],
        ..WRITE_4K
    },
    Row {
        name: "sequential 1 MiB, allocating, page cache, QD8",
        direct: false,
        goals: &[Goal::at_least(0.6, Against::Raw)],
        ..ALLOCATE_1M
    },
    Row {
        name: "sequential 1 MiB, allocating, O_DIRECT, QD8",
        direct: true,
        goals: &[Goal::at_least(0.97, Against::Raw)],
        ..ALLOCATE_1M
    },
    Row {
        name: "random 4 KiB, each allocates a cluster, page cache, QD32",
        direct: false,
        goals: &[Goal::at_least(0.7, Against::Raw), Goal::at_least(10.0, Against::Qemu)],
        ..ALLOCATE_4K
    },
    Row {
        name: "random 4 KiB, each allocates a cluster, O_DIRECT, QD32",
        direct: true,
        goals: &[Goal::at_least(0.4, Against::RawUring), Goal::at_least(2.0, Against::BestPeer)],
        ..ALLOCATE_4K
    },
];

// What rows have in common; each row says what is its own.

const READ_4K: Row = Row {
    name: "",
    direction: Direction::Read,
    start: Start::Allocated,
    places: Places::Scattered,
    len: 4096,
    direct: false,
    depth: 32,
    count: 0,
    goals: &[],
};

const READ_1M: Row = Row { places: Places::Sequential, len: 1 << 20, depth: 8, ..READ_4K };

const WRITE_4K: Row = Row { direction: Direction::Write, ..READ_4K };

const ALLOCATE_1M: Row =
    Row { direction: Direction::Write, start: Start::Empty, count: 1024, ..READ_1M };

const ALLOCATE_4K: Row =
    Row { start: Start::Empty, places: Places::Clusters, count: 65_536, ..WRITE_4K };

impl Row {
    /// Length of the disk that the row needs, in bytes; a power of two.
    pub(super) fn disk_len(&self, scale: Scale) -> u64 {
        let real = match self.places {
            Places::Clusters => self.count * CLUSTER,
            Places::Sequential | Places::Scattered => 1 << 30,
        };
        scale.choose(real, 128 << 20)
    }

    /// What is sent to that disk.
    pub(super) fn requests(&self, scale: Scale) -> Requests {
        let disk = self.disk_len(scale);
        Requests {
            direction: self.direction,
            len: self.len,
            step: match self.places {
                Places::Sequential => self.len,
                Places::Scattered => scattered_step(disk, self.len),
                Places::Clusters => scattered_step(disk, CLUSTER),
            },
            depth: self.depth,
            count: scale.choose(self.count, (self.count / 50).max(64)),
            direct: self.direct,
            pattern: 1,
        }
    }
}

/// About 0.382 of the disk, as an odd number of `unit`s: coprime to the number of them that the disk
/// holds, which is a power of two.
fn scattered_step(disk: u64, unit: u64) -> u64 {
    ((disk / unit * 382 / 1000) | 1) * unit
}

#[cfg(test)]
mod tests {
    use super::super::report::Verdict;
    use super::*;

    const SCALES: [Scale; 2] =
        [Scale { quick: false, rounds: 1 }, Scale { quick: true, rounds: 1 }];

    fn rows() -> impl Iterator<Item = (&'static Row, Scale)> {
        READS.iter().chain(WRITES).flat_map(|row| SCALES.map(|scale| (row, scale)))
    }

    #[test]
    fn a_scattered_step_is_odd_and_fits() {
        for (row, scale) in rows() {
            let (disk, step) = (row.disk_len(scale), row.requests(scale).step);
            let unit = if row.places == Places::Clusters { CLUSTER } else { row.len };
            assert!(disk.is_power_of_two() && step % unit == 0 && (step / unit) % 2 == 1);
            assert!(step < 1 << 31, "qemu-img bench takes 31 bits");
            let far = step > disk / 3 && step < disk / 2;
            assert!(far || row.places == Places::Sequential);
        }
    }

    #[test]
    fn each_write_to_an_empty_disk_allocates() {
        let rows = rows().filter(|(row, _)| row.start == Start::Empty);
        let mut count = 0;
        for (row, scale) in rows {
            let unit = if row.places == Places::Clusters { CLUSTER } else { row.len };
            assert!(row.requests(scale).count <= row.disk_len(scale) / unit, "{}", row.name);
            assert_eq!(row.direction, Direction::Write);
            count += 1;
        }
        assert_eq!(count, 8);
    }

    #[test]
    fn each_row_has_a_goal_and_a_name_of_its_own() {
        for rows in [READS, WRITES] {
            let mut names: Vec<&str> = rows.iter().map(|row| row.name).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), rows.len());
            assert!(rows.iter().all(|row| !row.goals.is_empty() && row.count > 0));
        }
        assert!(matches!(READS[0].goals[0].verdict(None), Verdict::Unknown));
    }
}
