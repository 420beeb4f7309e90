//! The rate limiter of a stage, which others may share.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::rate_limit::{RateLimit, RateLimiter};

/// The limiter of one stage, or of several that share it.
pub(crate) type SharedLimiter = Arc<Mutex<RateLimiter>>;

/// How a stage that has not started is limited.
#[derive(Clone, Debug)]
pub(crate) enum Limiting {
    /// By a limit of its own.
    Own(RateLimit),
    /// By a limiter that it shares with others.
    Shared(SharedLimiter),
}

impl Limiting {
    /// The limiter of a stage that starts now.
    pub(crate) fn start(&self, now: Instant) -> SharedLimiter {
        match self {
            Self::Own(limit) => Arc::new(Mutex::new(RateLimiter::new(*limit, now))),
            Self::Shared(limiter) => limiter.clone(),
        }
    }
}
