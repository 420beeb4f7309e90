//! Thin entrances to private code, for the fuzz targets of this project.
//!
//! Not a part of the public API: anything here changes or disappears without notice.

use crate::hosts::{self, Hosts};

/// Whether an inspector that knows these hosts, in lower case, answers a request for this authority.
#[must_use]
pub fn allows_host(known: &[&str], authority: &str) -> bool {
    let known = known.iter().map(|host| (*host).to_owned()).collect();
    Hosts { known, any: false }.allow(authority)
}

/// Whether an origin has the host of this authority.
#[must_use]
pub fn is_of_host(origin: &str, authority: &str) -> bool {
    hosts::is_of_host(origin, authority)
}
