//! Image locks: open-file-description byte locks that exclude QEMU, and that QEMU is excluded by.
//!
//! Each permission has two bytes of the file, both only ever locked shared. Byte `100 + bit` is locked
//! by those who use the permission, byte `200 + bit` by those who do not share it with others. Who
//! opens an image first takes its locks and then looks whether anybody else has one that conflicts:
//! for each permission used, byte `200 + bit`, and for each one not shared, byte `100 + bit`. Of two
//! that come at once both may fail, never both succeed.
//!
//! The locks belong to the open file description behind [`ImageLock`]'s descriptor, which stays the
//! same when the file is opened again with other flags.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use bitflags::bitflags;

use crate::error::{Error, OpenError};

bitflags! {
    /// What a user of an image does with it. The bits are those of the lock bytes.
    #[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
    pub(super) struct Permissions: u8 {
        /// Reads that make sense together.
        const CONSISTENT_READ = 1 << 0;
        /// Writes.
        const WRITE = 1 << 1;
        /// Writes what is there already.
        const WRITE_UNCHANGED = 1 << 2;
        /// Changes the length.
        const RESIZE = 1 << 3;
    }
}

/// What is used, and what nobody else may use.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Claims {
    pub(super) used: Permissions,
    pub(super) unshared: Permissions,
}

impl Claims {
    /// Of who reads: nobody else may change the image.
    pub(super) const READER: Self = Self { used: Permissions::CONSISTENT_READ, unshared: CHANGE };
    /// Of who writes.
    pub(super) const WRITER: Self =
        Self { used: CHANGE.union(Permissions::CONSISTENT_READ), unshared: CHANGE };
    /// Of who reads whatever others do (`force-share`).
    pub(super) const ANYTHING_GOES: Self =
        Self { used: Permissions::CONSISTENT_READ, unshared: Permissions::empty() };

    fn union(self, other: Self) -> Self {
        Self { used: self.used | other.used, unshared: self.unshared | other.unshared }
    }
}

const CHANGE: Permissions = Permissions::WRITE.union(Permissions::RESIZE);

/// First byte of the permissions used.
const USED_BASE: i64 = 100;

/// First byte of the permissions not shared.
const UNSHARED_BASE: i64 = 200;

/// Whether locks are taken.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Locking {
    /// Where the file system has them.
    Auto,
    /// Always; fail where the file system has none.
    On,
    /// Never.
    Off,
}

/// The locks held on one image; released when dropped.
#[derive(Debug)]
pub(super) struct ImageLock {
    /// `None`: no locks are taken.
    fd: Option<OwnedFd>,
    claims: Claims,
}

impl ImageLock {
    /// Locks that are not there.
    pub(super) fn none() -> Self {
        Self { fd: None, claims: Claims::default() }
    }

    /// Takes the locks of `claims` on the file `fd` (a descriptor of its own, kept until the end).
    pub(super) fn acquire(
        fd: OwnedFd,
        path: &Path,
        locking: Locking,
        claims: Claims,
    ) -> Result<Self, OpenError> {
        if locking == Locking::Off {
            return Ok(Self::none());
        }
        let mut lock = Self { fd: Some(fd), claims: Claims::default() };
        match lock.widen(path, claims) {
            Err(OpenError::File { error, .. }) if locking == Locking::Auto && is_missing(error) => {
                Ok(Self::none())
            }
            other => other.map(|()| lock),
        }
    }

    pub(super) fn claims(&self) -> Claims {
        self.claims
    }

    /// Takes the locks of `claims` in addition. On error the locks are those from before.
    pub(super) fn widen(&mut self, path: &Path, claims: Claims) -> Result<(), OpenError> {
        let Some(fd) = &self.fd else { return Ok(()) };
        let (before, after) = (self.claims, self.claims.union(claims));
        let taken = set(fd, before, after).map_err(|refused| refused.on(path));
        match taken.and_then(|()| check(fd, path, after)) {
            Ok(()) => {
                self.claims = after;
                Ok(())
            }
            Err(err) => {
                // What was not there before goes; a failure would only keep others out for longer.
                drop(set(fd, after, before));
                Err(err)
            }
        }
    }

    /// Releases what `claims` do not need.
    pub(super) fn narrow(&mut self, claims: Claims) {
        if let Some(fd) = &self.fd {
            drop(set(fd, self.claims, claims));
            self.claims = claims;
        }
    }
}

impl Drop for ImageLock {
    fn drop(&mut self) {
        // Closing is not enough: requests in flight may hold the same description open.
        self.narrow(Claims::default());
    }
}

/// A lock that was not given.
enum Refused {
    Held(Byte),
    Os(Error),
}

impl Refused {
    fn on(self, path: &Path) -> OpenError {
        let path = path.to_owned();
        match self {
            Self::Held(byte) => OpenError::Locked { path, lock: byte.name() },
            Self::Os(error) => OpenError::File { path, error },
        }
    }
}

/// One lock byte.
#[derive(Copy, Clone)]
enum Byte {
    Used(Permissions),
    Unshared(Permissions),
}

impl Byte {
    fn offset(self) -> i64 {
        let (base, permission) = match self {
            Self::Used(permission) => (USED_BASE, permission),
            Self::Unshared(permission) => (UNSHARED_BASE, permission),
        };
        base + i64::from(permission.bits().trailing_zeros())
    }

    /// What its owner calls it.
    fn name(self) -> &'static str {
        match self {
            Self::Used(Permissions::CONSISTENT_READ) => "\"consistent read\"",
            Self::Used(Permissions::WRITE) => "\"write\"",
            Self::Used(Permissions::WRITE_UNCHANGED) => "\"write unchanged\"",
            Self::Used(_) => "\"resize\"",
            Self::Unshared(Permissions::CONSISTENT_READ) => "shared \"consistent read\"",
            Self::Unshared(Permissions::WRITE) => "shared \"write\"",
            Self::Unshared(Permissions::WRITE_UNCHANGED) => "shared \"write unchanged\"",
            Self::Unshared(_) => "shared \"resize\"",
        }
    }
}

/// Goes from the locks of `before` to those of `after`.
fn set(fd: &OwnedFd, before: Claims, after: Claims) -> Result<(), Refused> {
    let changes =
        (after.used ^ before.used).iter().map(|p| (Byte::Used(p), after.used.contains(p)));
    let more = (after.unshared ^ before.unshared)
        .iter()
        .map(|p| (Byte::Unshared(p), after.unshared.contains(p)));
    for (byte, wanted) in changes.chain(more) {
        let mut request = request(byte, if wanted { libc::F_RDLCK } else { libc::F_UNLCK });
        match fcntl(fd, libc::F_OFD_SETLK, &mut request) {
            Ok(()) => {}
            Err(Error::Os(libc::EAGAIN | libc::EACCES)) => return Err(Refused::Held(byte)),
            Err(err) => return Err(Refused::Os(err)),
        }
    }
    Ok(())
}

/// Fails if anybody else holds a lock that conflicts with `claims`.
fn check(fd: &OwnedFd, path: &Path, claims: Claims) -> Result<(), OpenError> {
    let used = claims.used.iter().map(|p| (Byte::Used(p), Byte::Unshared(p)));
    let unshared = claims.unshared.iter().map(|p| (Byte::Unshared(p), Byte::Used(p)));
    for (ours, theirs) in used.chain(unshared) {
        // Would an exclusive lock be given? Then nobody else holds any.
        let mut request = request(theirs, libc::F_WRLCK);
        fcntl(fd, libc::F_OFD_GETLK, &mut request).map_err(|err| Refused::Os(err).on(path))?;
        if i32::from(request.l_type) != libc::F_UNLCK {
            return Err(Refused::Held(ours).on(path));
        }
    }
    Ok(())
}

fn request(byte: Byte, kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: libc::c_short::try_from(kind).unwrap_or_default(),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: byte.offset(),
        l_len: 1,
        l_pid: 0,
    }
}

fn fcntl(fd: &OwnedFd, command: libc::c_int, request: &mut libc::flock) -> Result<(), Error> {
    // SAFETY: the lock commands take a pointer to a `flock`, which `request` is.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), command, std::ptr::from_mut(request)) };
    if result == -1 { Err(std::io::Error::last_os_error().into()) } else { Ok(()) }
}

/// Whether an error says that the file system has no such locks.
fn is_missing(error: Error) -> bool {
    matches!(error, Error::Os(libc::EINVAL | libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn acquire(file: &tempfile::NamedTempFile, claims: Claims) -> Result<ImageLock, OpenError> {
        let fd = File::open(file.path()).unwrap().into();
        ImageLock::acquire(fd, file.path(), Locking::On, claims)
    }

    #[test]
    fn readers_share_and_writers_do_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let first = acquire(&file, Claims::READER).unwrap();
        let second = acquire(&file, Claims::READER).unwrap();
        let Err(OpenError::Locked { lock, .. }) = acquire(&file, Claims::WRITER) else {
            panic!("a writer beside readers");
        };
        assert_eq!(lock, "\"write\"");
        drop((first, second));
        let _writer = acquire(&file, Claims::WRITER).unwrap();
        let Err(OpenError::Locked { lock, .. }) = acquire(&file, Claims::READER) else {
            panic!("a reader beside a writer");
        };
        assert_eq!(lock, "shared \"write\"");
        assert!(acquire(&file, Claims::WRITER).is_err());
        acquire(&file, Claims::ANYTHING_GOES).unwrap();
    }

    #[test]
    fn a_failed_widening_leaves_the_locks_as_they_were() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut first = acquire(&file, Claims::READER).unwrap();
        let second = acquire(&file, Claims::READER).unwrap();
        assert!(first.widen(file.path(), Claims::WRITER).is_err());
        assert_eq!(first.claims(), Claims::READER);
        // Readers still come in, so no write lock was left behind.
        drop(acquire(&file, Claims::READER).unwrap());
        drop(second);
        first.widen(file.path(), Claims::WRITER).unwrap();
        assert!(acquire(&file, Claims::READER).is_err());
        first.narrow(Claims::READER);
        acquire(&file, Claims::READER).unwrap();
    }

    #[test]
    fn locks_go_with_the_image_though_the_description_stays_open() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = File::open(file.path()).unwrap();
        let fd = open.try_clone().unwrap().into();
        drop(ImageLock::acquire(fd, file.path(), Locking::On, Claims::WRITER).unwrap());
        acquire(&file, Claims::WRITER).unwrap();
        drop(open);
    }
}
