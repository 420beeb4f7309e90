//! Tokens made by Phoenix and by other libraries.
//!
//! Those not made by Phoenix were made by Python: `hashlib.pbkdf2_hmac` for the key, `hmac` over a
//! hand-made term, and `base64`. By default they are signed with `SECRET` and `SALT`, have the data
//! `"u1"`, were signed at `SIGNED`, and contain a limit of a day.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pipeline_ws_sink::token::{KeyDigest, KeyOptions, Signer, TokenError};
use proptest::prelude::*;
use serde_json::{Value, json};

const SECRET: &str = "golden-secret-golden-secret-golden-secret-golden-secret-golden-secret-";
const SALT: &str = "user auth";
const SIGNED: u64 = 1_700_000_000;
const DAY: u64 = 86_400;

/// The data `99`, made by Phoenix.
const NINETY_NINE: &str =
    "SFMyNTY.g2gDYWNuBgAAaOXPiwFiAAFRgA.XyLIKlegqdL_0XknpgEoIkDVsJDE2NQvPrm0TEDE-50";

/// The same with `"u1"`, by Python.
const U1: &str =
    "SFMyNTY.g2gDbQAAAAJ1MW4GAABo5c-LAWIAAVGA._Q2XtAw3xc8EDEzdWKOUxCwaHYu0TSxuMQmLDRAWEMM";

fn signer() -> Signer {
    Signer::new(SECRET, SALT).unwrap()
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// The result of verifying a token ten seconds after it was signed.
fn verified(token: &str) -> Result<Value, TokenError> {
    signer().verify(token, at(SIGNED + 10))
}

#[test]
fn c_196_a_token_is_byte_for_byte_the_same_as_phoenix() {
    assert_eq!(signer().sign(&99, at(SIGNED)).unwrap(), NINETY_NINE);
    for (data, token) in [
        (json!("u1"), U1),
        (
            json!(1.5),
            "SFMyNTY.g2gDRj_4AAAAAAAAbgYAAGjlz4sBYgABUYA.nv08iLFB1-NnxwRLmOjYbe4Uta3hnkT_9Fev_lJ95bU",
        ),
        (
            json!({"aa": true, "a": false, "B": []}),
            "SFMyNTY.g2gDdAAAAANtAAAAAUJqbQAAAAFhZAAFZmFsc2VtAAAAAmFhZAAEdHJ1ZW4GAABo5c-LAWIAAVGA.cc29IVPonIc4i7m-Amji8_SkCbuUvd5-QzXOcpiyZx8",
        ),
    ] {
        assert_eq!(signer().sign(&data, at(SIGNED)).unwrap(), token, "{data}");
        assert_eq!(verified(token).unwrap(), data);
    }
    let forever = "SFMyNTY.g2gDbQAAAAJ1MW4GAABo5c-LAWQACGluZmluaXR5.SAViwKaKtHMnKiXi2_KPhg1IuWqWciFeOFqfU5DKPWA";
    assert_eq!(signer().never_expires().sign("u1", at(SIGNED)).unwrap(), forever, "by Phoenix");
}

#[test]
fn c_197_a_token_is_ok_expired_invalid_or_missing() {
    let later = at(SIGNED + 2 * DAY);
    let verify = |signer: Signer, token: Option<&str>| signer.verify_optional::<u64>(token, later);
    let token = Some(NINETY_NINE);
    assert_eq!(verify(signer().never_expires(), token).unwrap(), 99);
    assert!(matches!(verify(signer(), token), Err(TokenError::Expired)), "by default");
    let none = signer().max_age(Duration::ZERO);
    assert!(matches!(verify(none, token), Err(TokenError::Expired)), "no age at all");
    let other_salt = Signer::new(SECRET, "user socket").unwrap().never_expires();
    assert!(matches!(verify(other_salt, token), Err(TokenError::Invalid)), "of another salt");
    let tampered = NINETY_NINE.replace("YWNu", "YWRu");
    let tampered = verify(signer().never_expires(), Some(&tampered));
    assert!(matches!(tampered, Err(TokenError::Invalid)), "tampered with");
    assert!(matches!(verify(signer(), None), Err(TokenError::Missing)));
    assert!(matches!(verify(signer(), Some("")), Err(TokenError::Invalid)), "empty");
}

#[test]
fn c_198_other_hashes_and_older_payloads_verify() {
    for (token, what) in [
        (
            "SFMzODQ.g2gDbQAAAAJ1MW4GAABo5c-LAWIAAVGA.r4a8CiDBkM-8px9ZBExuFttISdzzTsmv16ObJLXYjOdLKClwbTdOLaPnczA8ZHZl",
            "HS384",
        ),
        (
            "SFM1MTI.g2gDbQAAAAJ1MW4GAABo5c-LAWIAAVGA.yP4v5tw7KFZvYrV2BkNdZwM8bTyYED1FZt8FU5EjZ_LHPuV2i6RJBu065f8pn84N0aQRFyhpIiDSX4ItlG-PGA",
            "HS512",
        ),
        (
            "SFMyNTY.g2gCbQAAAAJ1MW4GAABo5c-LAQ.IRgfmx-3e3zjAxzlyjdH5hn2-jQv0Af0suc03dtvw0o",
            "a tuple of two",
        ),
        (
            "SFMyNTY.g3QAAAACZAAEZGF0YW0AAAACdTFkAAZzaWduZWRuBgAAaOXPiwE.heERUJEkQq247K9eEgUfq6CHmC_I7pCl4O0BTVXjNsY",
            "a map, its atoms as 100",
        ),
        (
            "SFMyNTY.g3QAAAACdwZzaWduZWRuBgAAaOXPiwF3BGRhdGFtAAAAAnUx.GDiGcnLLuUp2M71Wr9sT_nq7bU4qcHepakFDM6dGY-A",
            "a map, its atoms as 119",
        ),
    ] {
        assert_eq!(verified(token).unwrap(), "u1", "{what}");
        let verify = |now| signer().verify::<String>(token, now);
        assert!(verify(at(SIGNED + DAY)).is_ok(), "{what}");
        let too_late = at(SIGNED + DAY) + Duration::from_millis(1);
        assert!(matches!(verify(too_late), Err(TokenError::Expired)), "{what}");
    }
    for header in ["SFMyNTY", "SFM1MTI", "HS384", "bm9uZQ", ""] {
        let claimed = "SFMzODQ.g2gDbQAAAAJ1MW4GAABo5c-LAWIAAVGA.r4a8CiDBkM-8px9ZBExuFttISdzzTsmv16ObJLXYjOdLKClwbTdOLaPnczA8ZHZl".replace("SFMzODQ", header);
        assert!(matches!(verified(&claimed), Err(TokenError::Invalid)), "{header}");
    }
}

#[test]
fn c_199_every_encoding_of_the_same_data_verifies() {
    // Atoms as 119, a small integer as 98, the time as a float.
    let token = "SFMyNTY.g2gDdAAAAAN3AmlkYgAAAAd3BWFkbWludwR0cnVldwR0ZWFtdwNuaWxGQni8_laAAABiAAFRgA.tYuss1zs6AHn56h5ZOi_9dWSvnLE6tBMuaCuiY82d2k";
    assert_eq!(verified(token).unwrap(), json!({"id": 7, "admin": true, "team": null}));
    // Integers of eight bytes, and `infinity` as 119.
    let token = "SFMyNTY.g2gDbggABwAAAAAAAABuCAAAaOXPiwEAAHcIaW5maW5pdHk.A2Zi1c_96NEhNt7d6wu-28gOyzFKtFyVWymz2lzQQcY";
    assert_eq!(verified(token).unwrap(), 7);
    // `{:user, 7}` as a large tuple.
    let token = "SFMyNTY.g2gDaQAAAAJ3BHVzZXJhB24GAABo5c-LAWIAAVGA.Tuv9sNi6sO_v_8DS4mWkgt7jjXIZqyFp49KRsu6RRcA";
    assert_eq!(verified(token).unwrap(), json!(["user", 7]));
    // Three hundred letters, compressed.
    let token = "SFMyNTY.g1AAAAFBeJzLYM5lYGDUKR0FRIM8NgaGjKfnuxmTGBgDGwCGGo5y.3OwOOvj8vIqySaUK-BTDf2WogV_jcBym1tfcJsWSIcs";
    assert_eq!(verified(token).unwrap(), "u".repeat(300));
}

#[test]
fn the_tokens_limit_applies_unless_the_signer_has_one() {
    let short = signer().max_age(Duration::from_secs(60)).sign("u1", at(SIGNED)).unwrap();
    let long = signer().never_expires().sign("u1", at(SIGNED)).unwrap();
    let verify = |signer: Signer, token: &str, now| signer.verify::<String>(token, at(now)).is_ok();
    assert!(verify(signer(), &short, SIGNED + 60));
    assert!(!verify(signer(), &short, SIGNED + 61), "not longer than the token says");
    assert!(verify(signer(), &long, SIGNED + 1000 * DAY), "as long as the token says");
    let hour = || signer().max_age(Duration::from_secs(3600));
    assert!(verify(hour(), &short, SIGNED + 3600), "longer than the token says");
    assert!(!verify(hour(), &long, SIGNED + 3601), "not as long as the token says");
    // A limit of minus one second.
    let never =
        "SFMyNTY.g2gDbQAAAAJ1MW4GAABo5c-LAWL_____.6cDZlBTXcOU63NZAYqN9_ZnzxHwaKp9h1Orl8asbz6A";
    assert!(matches!(signer().verify::<String>(never, at(SIGNED)), Err(TokenError::Expired)));
    assert!(verify(hour(), never, SIGNED));
}

#[test]
fn a_secret_can_be_rotated_while_old_tokens_are_in_use() {
    const OLD_SECRET: &str =
        "abc123abc123abc123abc123abc123abc123abc123abc123abc123abc123abc123abc123";
    // Signed with `OLD_SECRET` and the salt `old salt`.
    let old_token =
        "SFMyNTY.g2gDbQAAAAJ1MW4GAABo5c-LAWIAAVGA.XLYvQHoufR3fKzpPbUMq3kY9kYlS71aTVSo7sXJvWnw";
    let old = Signer::new(OLD_SECRET, "old salt").unwrap();
    let knows = |signer: &Signer, token: &str| match signer.verify::<String>(token, at(SIGNED)) {
        Ok(user) => user == "u1",
        Err(error) => panic!("{error}"),
    };
    let refuses = |signer: &Signer, token| {
        matches!(signer.verify::<String>(token, at(SIGNED)), Err(TokenError::Invalid))
    };
    assert!(refuses(&signer(), old_token) && refuses(&old, U1));

    let first = old.clone().also_verify(&signer());
    assert_eq!(first.sign("u1", at(SIGNED)).unwrap(), old_token, "still signs with the old one");
    assert!(knows(&first, old_token) && knows(&first, U1));
    let second = signer().also_verify(&old);
    assert_eq!(second.sign("u1", at(SIGNED)).unwrap(), U1, "signs with the new one");
    assert!(knows(&second, old_token) && knows(&second, U1));

    let third = Signer::new("a third secret, long enough", SALT).unwrap().also_verify(&second);
    assert!(knows(&third, old_token) && knows(&third, U1), "all that the other one verifies");
    let strict = signer().max_age(Duration::ZERO).also_verify(&old.never_expires());
    let expired = strict.verify::<String>(old_token, at(SIGNED));
    assert!(matches!(expired, Err(TokenError::Expired)), "by its own limit");
}

#[test]
fn keys_are_derived_as_in_phoenix() {
    let options = KeyOptions::default();
    let sha512 = options.iterations(2000).length(64).digest(KeyDigest::Sha512);
    let sha384 = options.length(48).digest(KeyDigest::Sha384);
    for (options, token) in [
        (options, U1),
        (
            sha512,
            "SFMyNTY.g2gDbQAAAAJ1MW4GAABo5c-LAWIAAVGA.KcXYbL2GLvbK8ZECguRwiUQVDGoB75OkG4QfbFrQkf8",
        ),
        (
            sha384,
            "SFMyNTY.g2gDbQAAAAJ1MW4GAABo5c-LAWIAAVGA.8_xKbzRLDrnzqIpYMMl-mjOV_J4QrV9eDI8HjH4tRcg",
        ),
    ] {
        let signer = Signer::with_options(SECRET, SALT, options).unwrap();
        assert_eq!(signer.sign("u1", at(SIGNED)).unwrap(), token);
        assert_eq!(signer.verify::<String>(token, at(SIGNED)).unwrap(), "u1");
    }
    assert!(matches!(
        verified(
            "SFMyNTY.g2gDbQAAAAJ1MW4GAABo5c-LAWIAAVGA.8_xKbzRLDrnzqIpYMMl-mjOV_J4QrV9eDI8HjH4tRcg"
        ),
        Err(TokenError::Invalid)
    ));
}

#[test]
fn signed_data_without_a_json_form_is_an_error_with_the_reason() {
    let why = |token: &str| match verified(token) {
        Err(TokenError::Data(cause)) => cause.to_string(),
        other => panic!("{other:?}"),
    };
    // `<<255, 254>>`.
    let bytes =
        "SFMyNTY.g2gDbQAAAAL__m4GAABo5c-LAWIAAVGA.3q01DUyGBIEWS387JcfZbaaObUkDoO_WtSBXBO7ijZg";
    assert_eq!(why(bytes), "a binary is not text in UTF-8");
    // An integer of 256 bytes, as 111.
    let huge = "SFMyNTY.g2gDbwAAAQAAAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAW4GAABo5c-LAWIAAVGA.aHDu4xKS2m5ggdrsZpS7a2eLQxtAR9LCwPdM4_RGLeA";
    assert_eq!(why(huge), "an integer has more than 64 bits");
}

#[test]
fn signed_bytes_that_are_not_a_token_are_invalid() {
    for (token, what) in [
        (
            "SFMyNTY.g2gDcAAAAARuBgAAaOXPiwFiAAFRgA.mgtwCcS4S_VDIeDssn_1k2PKRv6iEIBkLzqPp8xhJ70",
            "a function",
        ),
        (
            "SFMyNTY.g2gDWHcDbkBoAAAAAAAAAAAAAAAAbgYAAGjlz4sBYgABUYA.IoifVKEPMFTI-Ji7QxKd-Ex4p7O59SefsiDwlEfphgE",
            "a process",
        ),
        (
            "SFMyNTY.g1AAAQAReNrtwcENgCAABLAjJO7HCr746Az-Gc4p3IIEB6Ftr1eyZgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAANjefST9e0c5U9rzA26JByQ.qmMYOSzvdzEf8-4YdxmTHBA-_6i-w3Pg5X_O_OLWU0Q",
            "65 553 bytes, compressed",
        ),
    ] {
        assert!(matches!(verified(token), Err(TokenError::Invalid)), "{what}");
    }
}

#[test]
fn a_token_is_refused_while_the_clock_is_away_from_its_time() {
    const DAY: u64 = 86_400;
    let signer = signer().max_age(Duration::from_secs(3600));
    let token = signer.sign("u1", at(SIGNED)).unwrap();
    // The clock is set forwards and back, and each time the token is what its age says.
    for (now, expected) in [
        (at(SIGNED), "Ok(\"u1\")"),
        (at(SIGNED + DAY), "Err(Expired)"),
        (at(SIGNED + 3600), "Ok(\"u1\")"),
        (at(SIGNED - DAY), "Err(Invalid)"),
        (at(SIGNED - 60), "Ok(\"u1\")"),
        (at(SIGNED - 61), "Err(Invalid)"),
        (UNIX_EPOCH - Duration::from_secs(DAY), "Err(Invalid)"),
        (at(SIGNED * 1_000), "Err(Expired)"),
        (at(SIGNED), "Ok(\"u1\")"),
    ] {
        let verified = signer.verify::<String>(&token, now);
        assert_eq!(format!("{verified:?}"), expected, "at {now:?}");
    }
    // A clock before 1970 signs, too.
    let early = signer.sign("u1", UNIX_EPOCH - Duration::from_secs(DAY)).unwrap();
    assert!(matches!(signer.verify::<String>(&early, at(SIGNED)), Err(TokenError::Expired)));
}

proptest! {
    // Deriving a key takes long in a debug build, so one key is tried many times.
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn an_unsigned_token_is_invalid(
        nonsense in prop::collection::vec(".{0,40}|[A-Za-z0-9_.-]{0,200}|SFM(yNTY|zODQ|1MTI)\\.[A-Za-z0-9_-]{0,80}\\.[A-Za-z0-9_-]{43}", 32),
        flips in prop::collection::vec((0..U1.len(), 0..7_u32), 32),
    ) {
        let signer = signer();
        let is_invalid = |token: &str| {
            matches!(signer.verify::<Value>(token, at(SIGNED)), Err(TokenError::Invalid))
        };
        for token in nonsense {
            prop_assert!(is_invalid(&token), "{token}");
        }
        for (place, bit) in flips {
            let mut bytes = U1.as_bytes().to_vec();
            bytes[place] ^= 1 << bit;
            prop_assert!(is_invalid(std::str::from_utf8(&bytes).unwrap()), "{place} {bit}");
        }
    }
}
