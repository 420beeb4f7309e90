//! The limit of open sockets per process.

#[cfg(unix)]
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// File descriptors other than sockets, with some to spare.
#[cfg(unix)]
const OTHERS: u64 = 200;

/// Raises the limit of open files as far as possible, for this process and its children, and returns the
/// number of sockets that it allows.
#[cfg(unix)]
#[expect(clippy::must_use_candidate, reason = "the number is optional information")]
pub fn raise() -> usize {
    let limit = getrlimit(Resource::Nofile);
    // A privileged process may exceed the hard limit.
    let wanted = Rlimit { current: Some(1 << 20), maximum: Some(1 << 20) };
    if setrlimit(Resource::Nofile, wanted).is_err() {
        // If that fails as well, the limit is unchanged, and reported.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    }
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(files.saturating_sub(OTHERS)).unwrap_or(usize::MAX)
}

/// Unknown on this system.
#[cfg(not(unix))]
pub fn raise() -> usize {
    usize::MAX
}
