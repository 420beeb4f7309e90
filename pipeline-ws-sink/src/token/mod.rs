//! Signed tokens in the format of `Phoenix.Token`.
//!
//! A token is made by one part of an application, often a Phoenix one, and verified here: both know
//! the secret. It is `SFMyNTY.DATA.MAC`, both parts in base64url without padding. The data is an
//! Erlang term `{data, signed_at_ms, max_age_s}`, the MAC is HMAC-SHA256 over `SFMyNTY.DATA`, and
//! the key is derived from the secret and a salt by PBKDF2.

mod term;

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use serde::{Serialize, de::DeserializeOwned};
use sha2::Sha256;
use thiserror::Error;

use self::term::{MaxAge, SignedTerm};

/// Says HS256, in base64url. It is not a JWT all the same.
const HEADER: &str = "SFMyNTY";

/// How short a secret may be, in bytes.
const MIN_SECRET: usize = 20;

/// How often the hash is repeated to derive the key. `Phoenix.Token`'s default.
const ITERATIONS: u32 = 1000;

/// How far in the future a token may be dated: clocks differ.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// Signs and verifies tokens that say who a client is.
///
/// Compatible with `Phoenix.Token.sign` and `verify`, with their default options, for data that JSON
/// can express: numbers, strings, booleans, null, lists, and maps with string keys.
///
/// ```
/// use std::time::{Duration, SystemTime};
///
/// use pipeline_ws_sink::Signer;
///
/// let signer = Signer::new("a secret of at least 20 bytes", "user socket")?
///     .max_age(Duration::from_secs(3600));
/// let token = signer.sign(&42, SystemTime::now())?;
/// let user: u64 = signer.verify(&token, SystemTime::now())?;
/// assert_eq!(user, 42);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct Signer {
    key: [u8; 32],
    max_age: Duration,
}

impl Signer {
    /// Derives the key from a secret, such as Phoenix's `secret_key_base`, and a salt that names
    /// what the tokens are for. Tokens are valid for a day, unless told otherwise.
    ///
    /// This takes about a millisecond: make one signer and keep it.
    ///
    /// # Errors
    ///
    /// [`SignerError`] if the secret has less than 20 bytes.
    pub fn new(secret: &str, salt: &str) -> Result<Self, SignerError> {
        if secret.len() < MIN_SECRET {
            return Err(SignerError { length: secret.len() });
        }
        let mut key = [0; 32];
        pbkdf2::pbkdf2_hmac::<Sha256>(secret.as_bytes(), salt.as_bytes(), ITERATIONS, &mut key);
        Ok(Self { key, max_age: Duration::from_secs(86_400) })
    }

    /// How long tokens are valid after they were signed. Default one day. Whole seconds count.
    ///
    /// For tokens to verify it is this signer's limit that counts, whatever the token says.
    pub fn max_age(mut self, max_age: Duration) -> Self {
        self.max_age = max_age;
        self
    }

    /// Makes a token of this data, dated `now`.
    ///
    /// # Errors
    ///
    /// [`TokenError::Data`] if the data cannot be expressed; see [`Signer`].
    pub fn sign(
        &self,
        data: &(impl Serialize + ?Sized),
        now: SystemTime,
    ) -> Result<String, TokenError> {
        let data = serde_json::to_value(data).map_err(TokenError::Data)?;
        let signed = SignedTerm {
            data,
            signed_at_ms: unix_ms(now),
            max_age: MaxAge::Seconds(self.max_age.as_secs().try_into().unwrap_or(i64::MAX)),
        };
        let term = URL_SAFE_NO_PAD.encode(signed.encode());
        let signed = format!("{HEADER}.{term}");
        let mac = URL_SAFE_NO_PAD.encode(self.mac(&signed).finalize().into_bytes());
        Ok(format!("{signed}.{mac}"))
    }

    /// Checks a token and returns its data.
    ///
    /// # Errors
    ///
    /// [`TokenError::Invalid`] if it is not a token that was signed with this secret and salt, or if
    /// it is dated more than a minute after `now`; [`TokenError::Expired`] if it is too old;
    /// [`TokenError::Data`] if its data is not of the expected type.
    pub fn verify<T: DeserializeOwned>(
        &self,
        token: &str,
        now: SystemTime,
    ) -> Result<T, TokenError> {
        let signed = self.check(token).ok_or(TokenError::Invalid)?;
        let now = unix_ms(now);
        if signed.signed_at_ms > now.saturating_add(milliseconds(CLOCK_SKEW)) {
            return Err(TokenError::Invalid);
        }
        let max_age_ms = self.max_age.as_secs().saturating_mul(1000);
        let max_age_ms = i64::try_from(max_age_ms).unwrap_or(i64::MAX);
        if max_age_ms == 0 || signed.signed_at_ms.saturating_add(max_age_ms) < now {
            return Err(TokenError::Expired);
        }
        serde_json::from_value(signed.data).map_err(TokenError::Data)
    }

    /// What a token says, if it was signed with this key.
    fn check(&self, token: &str) -> Option<SignedTerm> {
        let (signed, mac) = token.rsplit_once('.')?;
        let (header, term) = signed.split_once('.')?;
        if header != HEADER {
            return None;
        }
        let mac = URL_SAFE_NO_PAD.decode(mac).ok()?;
        // In constant time.
        self.mac(signed).verify_slice(&mac).ok()?;
        SignedTerm::decode(&URL_SAFE_NO_PAD.decode(term).ok()?)
    }

    fn mac(&self, signed: &str) -> Hmac<Sha256> {
        let mac = Hmac::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        mac.chain_update(signed)
    }
}

fn unix_ms(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, milliseconds)
}

fn milliseconds(duration: Duration) -> i64 {
    duration.as_millis().try_into().unwrap_or(i64::MAX)
}

/// The key is a secret, so it is not shown.
impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("max_age", &self.max_age).finish_non_exhaustive()
    }
}

/// The secret is too short to be one.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the secret has {length} bytes, expected at least {MIN_SECRET}")]
pub struct SignerError {
    length: usize,
}

/// What is wrong with a token.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TokenError {
    /// It was not signed with this secret and salt, or it was dated in the future.
    #[error("the token is invalid")]
    Invalid,
    /// It is too old.
    #[error("the token has expired")]
    Expired,
    /// Its data is not what was expected, or cannot be expressed.
    #[error("the token's data does not fit")]
    Data(#[source] serde_json::Error),
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const SECRET: &str = "golden-secret-golden-secret-golden-secret-golden-secret-golden-secret-";
    const OLD_SECRET: &str =
        "abc123abc123abc123abc123abc123abc123abc123abc123abc123abc123abc123abc123";

    fn signer() -> Signer {
        Signer::new(SECRET, "user auth").unwrap()
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    const SIGNED: u64 = 1_700_000_000;

    /// Made by Phoenix: data, and token.
    fn vectors() -> Vec<(Value, &'static str)> {
        vec![
            (
                json!(99),
                "SFMyNTY.g2gDYWNuBgAAaOXPiwFiAAFRgA.XyLIKlegqdL_0XknpgEoIkDVsJDE2NQvPrm0TEDE-50",
            ),
            (
                json!("user-1"),
                "SFMyNTY.g2gDbQAAAAZ1c2VyLTFuBgAAaOXPiwFiAAFRgA.YO3GwN2psAdXjhT4gghzmTeAor2wfiA7_34dtNwd1OI",
            ),
            (
                json!(5_000_000_000_u64),
                "SFMyNTY.g2gDbgUAAPIFKgFuBgAAaOXPiwFiAAFRgA.L8iWe-blhbvN5J0qs-ohnFAERE9ac9vOfEd-ORnq4xY",
            ),
            (
                json!(null),
                "SFMyNTY.g2gDZAADbmlsbgYAAGjlz4sBYgABUYA.yNxceSFs4xXrkVhBI0sAZpqTJOnYoSAdYaP--Ml_vog",
            ),
            (
                json!([1, 2, 3]),
                "SFMyNTY.g2gDawADAQIDbgYAAGjlz4sBYgABUYA.TOhhP8UTjyr8mK-2vxlarog9FHhRLDF7BgGrWt7DpcQ",
            ),
            (
                json!(["a", 1]),
                "SFMyNTY.g2gDbAAAAAJtAAAAAWFhAWpuBgAAaOXPiwFiAAFRgA.byYIpMF2f_0Gxoz4zHmew_qs8D0UZ1Hj8I8_K_u6ANw",
            ),
            (
                json!({"id": 7}),
                "SFMyNTY.g2gDdAAAAAFtAAAAAmlkYQduBgAAaOXPiwFiAAFRgA.n6Qjoyxui0s_8X9O2f0BT0x44OxAzA3_3JqsfXkH5hA",
            ),
        ]
    }

    #[test]
    fn tokens_made_by_phoenix_verify() {
        for (data, token) in vectors() {
            let verified: Value = signer().verify(token, at(SIGNED + 10)).unwrap();
            assert_eq!(verified, data);
        }
        let forever = "SFMyNTY.g2gDbQAAAAJ1MW4GAABo5c-LAWQACGluZmluaXR5.SAViwKaKtHMnKiXi2_KPhg1IuWqWciFeOFqfU5DKPWA";
        assert_eq!(signer().verify::<String>(forever, at(SIGNED)).unwrap(), "u1");
        let other = Signer::new(OLD_SECRET, "user socket").unwrap();
        let verified = |token| other.verify::<Value>(token, at(SIGNED)).unwrap();
        assert_eq!(
            verified(
                "SFMyNTY.g2gDYSpuBgAAaOXPiwFiAAFRgA.1W50BVrRGi7WYZFnoLJG5vbESUE96d6Gu2_svrhyk78"
            ),
            42
        );
        assert_eq!(
            verified(
                "SFMyNTY.g2gDbggA0gof64ypVKtuBgAAaOXPiwFiAAFRgA.eBGsQKdgSu3YDyi6RMYq_5kP_zJaq8eesbRNhx43irA"
            ),
            12_345_678_901_234_567_890_u64
        );
        assert_eq!(
            verified(
                "SFMyNTY.g2gDdAAAAAJtAAAAAmlkYQdtAAAAAXJsAAAABG0AAAABYUY_-AAAAAAAAGQAA25pbGQABHRydWVqbgYAAGjlz4sBYgABUYA.wGc4hT-TMUuKC0H_-DxNenlHLy5lfi_3IjKR3wTDEiI"
            ),
            json!({"id": 7, "r": ["a", 1.5, null, true]})
        );
    }

    #[test]
    fn tokens_are_signed_byte_for_byte_as_phoenix_does() {
        for (data, token) in vectors() {
            assert_eq!(signer().sign(&data, at(SIGNED)).unwrap(), token, "{data}");
        }
    }

    #[test]
    fn a_token_is_valid_until_its_age_and_not_a_millisecond_longer() {
        let token = signer().sign(&1, at(SIGNED)).unwrap();
        let hour = signer().max_age(Duration::from_secs(3600));
        let verify = |signer: &Signer, now| signer.verify::<u64>(&token, now);
        assert_eq!(verify(&hour, at(SIGNED + 3600)).unwrap(), 1);
        let too_late = at(SIGNED + 3600) + Duration::from_millis(1);
        assert!(matches!(verify(&hour, too_late), Err(TokenError::Expired)));
        assert_eq!(verify(&signer(), too_late).unwrap(), 1);
        let never = signer().max_age(Duration::ZERO);
        assert!(matches!(verify(&never, at(SIGNED)), Err(TokenError::Expired)));
    }

    #[test]
    fn a_token_from_the_future_is_refused_beyond_a_minute() {
        let token = signer().sign(&1, at(SIGNED + 60)).unwrap();
        assert_eq!(signer().verify::<u64>(&token, at(SIGNED)).unwrap(), 1);
        let early = at(SIGNED) - Duration::from_millis(1);
        assert!(matches!(signer().verify::<u64>(&token, early), Err(TokenError::Invalid)));
    }

    #[test]
    fn what_was_not_signed_with_this_key_is_invalid() {
        let token = signer().sign(&"user-1", at(SIGNED)).unwrap();
        let invalid = |signer: &Signer, token: &str| {
            matches!(signer.verify::<String>(token, at(SIGNED)), Err(TokenError::Invalid))
        };
        assert!(!invalid(&signer(), &token));
        assert!(invalid(&Signer::new(SECRET, "other salt").unwrap(), &token));
        assert!(invalid(&Signer::new(&SECRET.to_uppercase(), "user auth").unwrap(), &token));
        for at in 0..token.len() {
            let mut tampered = token.clone().into_bytes();
            tampered[at] = if tampered[at] == b'A' { b'B' } else { b'A' };
            assert!(invalid(&signer(), std::str::from_utf8(&tampered).unwrap()), "at {at}");
        }
        for nonsense in ["", ".", "..", "SFMyNTY..", "a.b.c.d", &token[1..], &format!("{token}.")] {
            assert!(invalid(&signer(), nonsense), "{nonsense}");
        }
    }

    #[test]
    fn data_of_another_type_is_told_apart_from_an_invalid_token() {
        let token = signer().sign(&"user-1", at(SIGNED)).unwrap();
        assert!(matches!(signer().verify::<u64>(&token, at(SIGNED)), Err(TokenError::Data(_))));
    }

    #[test]
    fn a_short_secret_is_refused_with_the_limit() {
        let error = Signer::new("too short", "salt").unwrap_err();
        assert_eq!(error.to_string(), "the secret has 9 bytes, expected at least 20");
        assert_eq!(format!("{:?}", signer()), "Signer { max_age: 86400s, .. }", "no key in sight");
    }
}
