//! Opening the same file again in another way: read-only or not, direct or not.
//!
//! Locks are widened when the change is prepared and narrowed when it is made or dropped, so that
//! there is no moment at which another writer could come in between.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::lock::Claims;
use super::source::{Access, Source, refused};
use super::{FileDriver, Opened};
use crate::driver::{ReopenOptions, ReopenState};
use crate::error::OpenError;
use crate::io::pool;

/// A change that was worked out.
struct Prepared {
    /// `None`: the file is open as wanted.
    opened: Option<Opened>,
    /// Locks of the file as it is now, and as it will be.
    before: Claims,
    after: Claims,
}

pub(super) async fn prepare(
    driver: Arc<FileDriver>,
    options: ReopenOptions,
) -> Result<ReopenState, OpenError> {
    let (now, failed) = {
        let opened = driver.opened.load();
        (opened.access, opened.flush_error.load(Ordering::Acquire) != 0)
    };
    let access = Access {
        writable: options.read_only.map_or(now.writable, |read_only| !read_only),
        direct: options.direct.unwrap_or(now.direct),
    };
    let before = driver.lock.lock().claims();
    let after = if before == Claims::ANYTHING_GOES && !access.writable {
        before
    } else {
        claims_of(access)
    };
    // After a failed flush even the same way is a new beginning: the user says so.
    if access == now && !failed {
        return Ok(Box::new(Prepared { opened: None, before, after: before }));
    }
    let opener = Arc::clone(&driver);
    let opened = pool::run(move || {
        let handle = opener.handle();
        Ok(Source::open_again(handle.as_fd(), &opener.path, access))
    });
    let source = opened.await.unwrap_or_else(|error| Err(refused(&driver.path, error)))?;
    // Last, and with nothing to wait for behind it: a prepare that is given up holds no lock.
    driver.lock.lock().widen(&driver.path, after)?;
    Ok(Box::new(Prepared { opened: Some(Opened::new(source)), before, after }))
}

pub(super) fn commit(driver: &FileDriver, state: ReopenState) {
    let Ok(prepared) = state.downcast::<Prepared>() else {
        debug_assert!(false, "a state of another driver");
        return;
    };
    if let Some(opened) = prepared.opened {
        driver.opened.store(Arc::new(opened));
        driver.lock.lock().narrow(prepared.after);
    }
}

pub(super) fn abort(driver: &FileDriver, state: ReopenState) {
    if let Ok(prepared) = state.downcast::<Prepared>()
        && prepared.opened.is_some()
    {
        driver.lock.lock().narrow(prepared.before);
    }
}

/// The locks of a file that is opened like this.
pub(super) fn claims_of(access: Access) -> Claims {
    if access.writable { Claims::WRITER } else { Claims::READER }
}
