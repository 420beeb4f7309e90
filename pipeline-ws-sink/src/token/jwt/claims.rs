//! When a token is good, by whom and for whom it was made. Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;

use crate::token::TokenError;

/// What is asked of every token.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    pub(super) issuers: Vec<String>,
    pub(super) audiences: Vec<String>,
    pub(super) leeway: Duration,
}

/// What a token says of itself. Times are in seconds since 1970, and may have fractions.
#[derive(Deserialize)]
pub(super) struct Claims {
    exp: f64,
    nbf: Option<f64>,
    iss: Option<String>,
    aud: Option<Audience>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

impl Claims {
    pub(super) fn check(&self, expected: &Expected, now: SystemTime) -> Result<(), TokenError> {
        let Expected { issuers, audiences, leeway } = expected;
        let by_whom =
            issuers.is_empty() || self.iss.as_ref().is_some_and(|iss| issuers.contains(iss));
        let for_whom = match &self.aud {
            None => audiences.is_empty(),
            Some(Audience::One(aud)) => audiences.contains(aud),
            Some(Audience::Several(several)) => several.iter().any(|aud| audiences.contains(aud)),
        };
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let leeway = leeway.as_secs_f64();
        let has_begun = self.nbf.is_none_or(|nbf| nbf <= now + leeway);
        if !(by_whom && for_whom && has_begun) {
            return Err(TokenError::Invalid);
        }
        // On the second of its expiration, it has expired.
        if now - leeway < self.exp { Ok(()) } else { Err(TokenError::Expired) }
    }
}
