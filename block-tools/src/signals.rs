//! Signals that would end a program of themselves, and must not.

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGUSR1, SIGXFSZ};
use signal_hook::flag;

/// Has a write beyond the limit on the length of files (`ulimit -f`) fail, as any other write, and a
/// question for the progress kill nobody who has none to show; for `main`, before anything else.
pub fn survive() {
    for signal in [SIGXFSZ, SIGUSR1] {
        // Nobody reads the flag: a handler alone keeps the system from ending the program. Without one
        // the program works as well.
        let _: io::Result<_> = flag::register(signal, Arc::new(AtomicBool::new(false)));
    }
}

/// Those of `signals` that were not ignored when the program was started, as `nohup` has it.
///
/// What is ignored has no handler yet when this is asked. Where the system does not tell, none is.
pub(crate) fn not_ignored(signals: &[i32]) -> Vec<i32> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = ignored(&status);
    signals.iter().copied().filter(|signal| ignored & mask(*signal) == 0).collect()
}

/// The set of ignored signals in the state of a process.
fn ignored(status: &str) -> u64 {
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or_default()
}

fn mask(signal: i32) -> u64 {
    u32::try_from(signal - 1).ok().and_then(|bit| 1_u64.checked_shl(bit)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

    #[test]
    fn the_set_of_ignored_signals_is_read() {
        let status = "Name:\tx\nSigBlk:\t0000000000000002\nSigIgn:\t0000000000001001\nCapInh:\t0\n";
        let set = ignored(status);
        let are_ignored = [SIGHUP, SIGINT, SIGTERM].map(|signal| set & mask(signal) != 0);
        assert_eq!(are_ignored, [true, false, false]);
        assert_eq!((ignored(""), mask(0), mask(64), mask(65)), (0, 0, 1 << 63, 0));
    }
}
