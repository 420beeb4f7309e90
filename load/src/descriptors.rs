//! How many sockets a process may have open.

#[cfg(unix)]
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What a process has open besides its sockets, and some to spare.
#[cfg(unix)]
const OTHERS: u64 = 200;

/// Raises the limit of open files as far as it goes, for this process and those it starts, and returns
/// how many sockets that is good for.
#[cfg(unix)]
pub(crate) fn raise() -> usize {
    let limit = getrlimit(Resource::Nofile);
    // Who is privileged may go beyond the hard limit.
    let wanted = Rlimit { current: Some(1 << 20), maximum: Some(1 << 20) };
    if setrlimit(Resource::Nofile, wanted).is_err() {
        // If that fails as well, the limit stays what it was, and is told.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    }
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(files.saturating_sub(OTHERS)).unwrap_or(usize::MAX)
}

/// Nobody knows.
#[cfg(not(unix))]
pub(crate) fn raise() -> usize {
    usize::MAX
}
