//! The claims of a token: its times, its issuer and its audience. Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;

use crate::token::TokenError;

// What is wrong with a claim.
const MISSING: &str = "is missing";
const UNEXPECTED: &str = "is not one of the expected values";

/// The claims that every token needs.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    pub(super) issuers: Vec<String>,
    pub(super) audiences: Vec<String>,
    pub(super) leeway: Duration,
}

/// The claims of a token. Times are in seconds since 1970, and may have fractions.
#[derive(Deserialize)]
pub(super) struct Claims {
    exp: Option<f64>,
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
        let refused = |claim, fault| Err(TokenError::Claim { claim, fault });
        let Some(exp) = self.exp else { return refused("exp", MISSING) };
        match &self.iss {
            _ if issuers.is_empty() => {}
            None => return refused("iss", MISSING),
            Some(iss) if !issuers.contains(iss) => return refused("iss", UNEXPECTED),
            Some(_) => {}
        }
        let is_for = |aud: &String| audiences.contains(aud);
        match &self.aud {
            None if audiences.is_empty() => {}
            None => return refused("aud", MISSING),
            Some(Audience::One(aud)) if is_for(aud) => {}
            Some(Audience::Several(several)) if several.iter().any(is_for) => {}
            Some(_) => return refused("aud", UNEXPECTED),
        }
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let leeway = leeway.as_secs_f64();
        if self.nbf.is_some_and(|nbf| nbf > now + leeway) {
            return refused("nbf", "is in the future");
        }
        // At the second of its `exp`, the token has expired.
        if now - leeway < exp { Ok(()) } else { Err(TokenError::Expired) }
    }

    /// From when on the token is refused, if the clock can express that.
    pub(super) fn end(&self, expected: &Expected) -> Option<SystemTime> {
        let end = self.exp? + expected.leeway.as_secs_f64();
        UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(end).ok()?)
    }
}
