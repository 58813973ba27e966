//! With whom a goal of a row of requests compares.

use super::contender::{Contender, Loop};

/// With whom.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Against {
    /// The better of the raw loops.
    Raw,
    /// The raw loop over io_uring.
    RawUring,
    /// qemu-img bench with the best of its engines.
    Qemu,
    /// imago with async.
    ImagoAsync,
    /// Everybody else, the limits among them.
    Best,
    /// Everybody else but the limits.
    BestPeer,
    /// Nobody: microseconds of CPU per request, at most.
    CpuMicros,
}

/// Medians of one contender.
#[derive(Copy, Clone, Debug)]
pub(super) struct Medians {
    pub(super) contender: Contender,
    pub(super) per_second: f64,
    pub(super) cpu_micros: f64,
}

impl Against {
    /// As a goal ends.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Raw => "of the better raw loop",
            Self::RawUring => "of the raw loop over io_uring",
            Self::Qemu => "times qemu-img at its best",
            Self::ImagoAsync => "times imago-async",
            Self::Best => "of the best",
            Self::BestPeer => "times the best peer",
            Self::CpuMicros => "µs of CPU per request",
        }
    }

    /// Our value as the goal counts it; `None` if we, or all the others, did not take part.
    pub(super) fn ratio(self, ours: Contender, results: &[Medians]) -> Option<f64> {
        let ours = results.iter().find(|result| result.contender == ours)?;
        if self == Self::CpuMicros {
            return Some(ours.cpu_micros);
        }
        let others = results.iter().filter(|result| self.includes(result.contender));
        let best = others.map(|result| result.per_second).reduce(f64::max)?;
        Some(ours.per_second / best)
    }

    fn includes(self, contender: Contender) -> bool {
        match self {
            Self::Raw => matches!(contender, Contender::Limit(_)),
            Self::RawUring => contender == Contender::Limit(Loop::Uring),
            Self::Qemu => matches!(contender, Contender::Qemu(_)),
            Self::ImagoAsync => contender == Contender::Library("imago-async"),
            Self::Best => !contender.is_ours(),
            Self::BestPeer => matches!(contender, Contender::Qemu(_) | Contender::Library(_)),
            Self::CpuMicros => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_compare_with_the_right_ones() {
        let result = |contender, per_second| Medians { contender, per_second, cpu_micros: 3.0 };
        let results = [
            result(Contender::Limit(Loop::Calls), 100.0),
            result(Contender::Limit(Loop::Uring), 50.0),
            result(Contender::Qemu("threads"), 20.0),
            result(Contender::Qemu("io_uring"), 40.0),
            result(Contender::BlockCore, 80.0),
        ];
        let of = |against: Against| against.ratio(Contender::BlockCore, &results);
        assert_eq!(of(Against::Raw), Some(0.8));
        assert_eq!(of(Against::RawUring), Some(1.6));
        assert_eq!(of(Against::Qemu), Some(2.0));
        assert_eq!(of(Against::Best), Some(0.8));
        assert_eq!(of(Against::BestPeer), Some(2.0));
        assert_eq!(of(Against::CpuMicros), Some(3.0));
        assert_eq!(of(Against::ImagoAsync), None);
        assert_eq!(Against::Raw.ratio(Contender::BlockImg, &results), None);
    }
}
