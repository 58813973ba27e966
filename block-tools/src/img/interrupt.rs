//! Ctrl-C: the first asks the running job to stop between two of its requests, the second ends the
//! process at once.

use block_core::Cancel;

use crate::surroundings;

use super::Failure;

/// Exit status of a command that was interrupted.
pub(super) const INTERRUPTED: u8 = 130;

/// From now on SIGINT, SIGTERM and SIGHUP cancel `cancel`; nothing does in a process that has other
/// [`surroundings`] than a program, and may run many commands.
pub(super) fn cancel_on_signal(cancel: &Cancel) -> Result<(), Failure> {
    if surroundings::are_set() {
        return Ok(());
    }
    let cancel = cancel.clone();
    let handler = move || {
        if cancel.is_cancelled() {
            std::process::exit(i32::from(INTERRUPTED));
        }
        cancel.cancel();
    };
    ctrlc::set_handler(handler)
        .map_err(|error| Failure::new(format_args!("Cannot wait for signals: {error}")))
}
