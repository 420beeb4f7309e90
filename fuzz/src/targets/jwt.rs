//! JSON Web Tokens: unsigned ones are refused, and signed ones are accepted exactly if their claims allow it.

use std::{
    sync::LazyLock,
    time::{Duration, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use pipeline_ws_sink::token::{JwtAlgorithm, JwtKey, JwtVerifier, TokenError};
use serde_json::{Map, Value, json};
use sha2::Sha256;

use crate::input::Input;

pub(crate) const DICTIONARY: &[&[u8]] = &[
    b"eyJhbGciOiJIUzI1NiJ9.",
    b"eyJhbGciOiJub25lIn0.",
    b"{\"alg\":\"HS256\"}",
    b"{\"alg\":\"none\"}",
    b"\"exp\":",
    b"\"nbf\":",
    b"\"iss\":\"us\"",
    b"\"aud\":\"push\"",
    b"\"aud\":[\"push\"]",
    b"\"crit\":[]",
    b"\"kid\":\"1\"",
    b"1700000000",
    b"1e308",
];

const SECRET: &[u8] = b"a secret of at least thirty-two bytes";

const NOW: Duration = Duration::from_secs(1_700_000_000);

const LEEWAY: f64 = 60.0;

/// A verifier that expects anything, and one that expects an issuer and an audience.
static VERIFIERS: LazyLock<[JwtVerifier; 2]> = LazyLock::new(|| {
    let key = JwtKey::secret(JwtAlgorithm::Hs256, SECRET).expect("the secret is long enough");
    let plain = JwtVerifier::new(key.id("1"));
    [plain.clone(), plain.issuer("us").audience("push").audience("pull")]
});

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (what, strict) = (input.below(4), input.flag());
    let verifier = &VERIFIERS[usize::from(strict)];
    let verify = |token: &str| verifier.verify::<Value>(token, UNIX_EPOCH + NOW);
    match what {
        0 => {
            let text = String::from_utf8_lossy(input.rest());
            let verified = verify(&text);
            let is_refused = matches!(verified, Err(TokenError::Invalid | TokenError::Signature));
            assert!(is_refused, "{text:?}: {verified:?}");
        }
        1 => {
            let payload = input.rest();
            let token = signed(br#"{"alg":"HS256"}"#, payload);
            if let Ok(claims) = verify(&token) {
                let object: Value = serde_json::from_slice(payload).expect("it was read");
                assert_eq!(claims, object);
                assert!(object["exp"].as_f64().is_some(), "{object} has no exp");
            }
        }
        2 => {
            let header = input.rest();
            let token = signed(header, br#"{"exp":1700000060,"iss":"us","aud":"push"}"#);
            let verified = verify(&token);
            if verified.is_ok() {
                let header: Value = serde_json::from_slice(header).expect("it was read");
                assert_eq!(header["alg"], "HS256", "{header}");
                assert!(header["crit"].is_null(), "{header}");
                assert!(header["kid"].is_null() || header["kid"] == "1", "{header}");
                assert!(strict, "an audience was not expected");
            }
        }
        _ => structured(input, strict),
    }
}

fn structured(mut input: Input<'_>, strict: bool) {
    let mut claims = Map::new();
    let time = |input: &mut Input<'_>| match input.below(6) {
        0 => Value::Null,
        1 => input.json(1),
        2 => (NOW.as_secs() + u64::from(input.byte())).into(),
        3 => (NOW.as_secs() - u64::from(input.byte())).into(),
        4 => (NOW.as_secs_f64() + f64::from(input.byte()) - 128.5).into(),
        _ => input.float().into(),
    };
    for name in ["exp", "nbf"] {
        if input.below(5) > 0 {
            claims.insert(name.to_owned(), time(&mut input));
        }
    }
    for (name, ours) in [("iss", "us"), ("aud", "push")] {
        let value = match input.below(6) {
            0 => continue,
            1 => input.json(1),
            2 => json!([ours, "others"]),
            3 => json!(["others"]),
            _ => ours.into(),
        };
        claims.insert(name.to_owned(), value);
    }
    claims.insert("sub".to_owned(), input.json(2));
    // Written and read, because a number may change by that.
    let payload = Value::Object(claims).to_string();
    let claims: Map<String, Value> = serde_json::from_str(&payload).expect("it is JSON");
    let token = signed(br#"{"typ":"JWT","alg":"HS256","kid":"1"}"#, payload.as_bytes());
    let verified = VERIFIERS[usize::from(strict)].verify::<Value>(&token, UNIX_EPOCH + NOW);
    let expected = accepted(&claims, strict);
    assert_eq!(verified.is_ok(), expected, "{payload}: {verified:?}");
    if let Ok(read) = verified {
        assert_eq!(read, Value::Object(claims));
    }
}

/// Whether a token with these claims is to be accepted.
fn accepted(claims: &Map<String, Value>, strict: bool) -> bool {
    let now = NOW.as_secs_f64();
    let claim = |name: &str| claims.get(name).filter(|value| !value.is_null());
    let is_text = |value: &Value| value.is_string();
    let times_are_right = claim("exp").and_then(Value::as_f64).is_some_and(|exp| exp > now - LEEWAY)
        && claim("nbf").is_none_or(|nbf| nbf.as_f64().is_some_and(|nbf| nbf <= now + LEEWAY));
    let issuer_is_right = match claim("iss") {
        None => !strict,
        Some(Value::String(iss)) => !strict || iss == "us",
        Some(_) => false,
    };
    let is_ours = |aud: &Value| aud == "push" || aud == "pull";
    let audience_is_right = match claim("aud") {
        None => !strict,
        Some(aud @ Value::String(_)) => strict && is_ours(aud),
        Some(Value::Array(several)) => {
            strict && several.iter().all(is_text) && several.iter().any(is_ours)
        }
        Some(_) => false,
    };
    times_are_right && issuer_is_right && audience_is_right
}

fn signed(header: &[u8], payload: &[u8]) -> String {
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let signed = format!("{}.{}", encode(header), encode(payload));
    let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(SECRET).expect("any length will do");
    let mac = mac.chain_update(&signed).finalize().into_bytes();
    format!("{signed}.{}", encode(&mac))
}
