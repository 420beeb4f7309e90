//! JSON Web Tokens signed by other libraries.

#![cfg(feature = "jwt-public-keys")]
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use pipeline_ws_sink::token::{JwtAlgorithm, JwtKey, JwtKeyError, JwtVerifier, TokenError};
use proptest::prelude::*;
use serde_json::{Value, json};

const SECRET: &[u8] = b"a secret for tests that has sixty-four bytes, just as many as SHA-512";
const NOW: u64 = 1_700_000_000;

// Made by Python's `cryptography` and `hmac`, each with the claims `{"sub":"ada","exp":1700003600}`; the
// first three are signed with `SECRET`.
const HS256: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhZGEiLCJleHAiOjE3MDAwMDM2MDB9.sIj117C6a8LEwUV8jhmr7dnfb61Oecq5EzGJFP_kkcY";
const HS384: &str = "eyJhbGciOiJIUzM4NCIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhZGEiLCJleHAiOjE3MDAwMDM2MDB9.9AGS2HFSOSwpO3Dho13gkVMgmzW8SZNkOPNf7FvrfJSPG8fDq75SMelMefMa2VXF";
const HS512: &str = "eyJhbGciOiJIUzUxMiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhZGEiLCJleHAiOjE3MDAwMDM2MDB9.4sNP4rX1jgzDE-pzxosk30Mpp7-RpSS61-J_GT77ftI6C1f5dy8ToeyVR79PDm4R4YWlv-Vit5WdA7pAAr1OXw";
const ED: &str = "eyJhbGciOiJFZERTQSIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhZGEiLCJleHAiOjE3MDAwMDM2MDB9.m5ACvhu1sRcAGy6UV2EiK2jUYzdiU17traN4mzm42iSO_W6CGb6-PGZ-V7WxnoFBoYjRILClHotmDMsBKxiKAA";
const ES256: &str = "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhZGEiLCJleHAiOjE3MDAwMDM2MDB9.ol-cIlRdzfKfWN15FhrYc4E0_vPBM1NuzUXb2fSk3fXoSIiOOQ1g97W9Q6e2XVXmtxsxHNi8YPCk5IFQPzVIQw";
const ES384: &str = "eyJhbGciOiJFUzM4NCIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhZGEiLCJleHAiOjE3MDAwMDM2MDB9.8iomrIum3TX_t24IvUQG5vYYVok7ZzYoOmi4tl-RwresNFcOt84x6JbIPPUVL7Ud9i8g6NuLEk0cbfxJHn1_yJCsaZ9-t5zrBMl9CipWmfrx4E6EIk5p8Vikvr88N9UA";
const RS256: &str = "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhZGEiLCJleHAiOjE3MDAwMDM2MDB9.Vann3eApM_BaZFcm2zrrZT6qA18jRu7uje2mFo74jPEMbU349aHbUoqLhyI-eK8NrZm1Lv8dM41mYY9e-Jq1Mjl7AaCbP1HSy3hPKgZAaqF3cRMEW3S5V6upEXdi-ZKmx7cNPqXBmz9UWDc88AWHE34j7F0h1Z_oHOeRHRQWGYf1PNXoX1FyQ-pu9JOH1fcuU2fzU-f9goRmDfucp09DWNbbOn3fJ_ZpXjqO8HOuZY-yLgmMPsIzEZ3Du_BRq2RyOiZID6BblZY_-3rXdrdO9-3aOrPUTLrbDyf4wVaqBkFBgS8T3IvszrLAWWg9LuJU_lFj0D3oulMQxi2MgQ_SIA";
const PS256: &str = "eyJhbGciOiJQUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhZGEiLCJleHAiOjE3MDAwMDM2MDB9.M7ES1vMS-q38erMbugIl2NSR6sgY6uHfuc9euV7M2NVBfIBy6K4lY60SdPRgK5KjIPaNirN8BDMG91KTvHdD53dwXS-G1knKJaDjbf-chI83QH3xQD_PtNWlJQ-uQEVuH5dtZlMCnUZpCc5woKGqVZPD6vQpsGxXYvmnvyYjk_ZzU3_quljLzNOY0C5k2nvLZdwvB8HNRtoBTEWl10DMjWqG2f2i2R1bdhnflgnjJy15m7vvl_8Nky1QLneUzqHAsvoohRmi1gyvvAaTf4KtZi8rvxA0k7NEd3kyz4BlI_pDEafiwLuK_zpeRat7AchSqxacc_s8HL5fhIYmSDSoIA";

const ED_KEY: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAA6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg=
-----END PUBLIC KEY-----
";
const ES256_KEY: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE+1A4jylJjQqTrSXsTDQDe508w8yk
eH62/tq+KzAD6sifd2XKnWKI5v9zT1zQjzpZIc9UshuzmLUKwNJXf6B0cg==
-----END PUBLIC KEY-----
";
const ES384_KEY: &str = "-----BEGIN PUBLIC KEY-----
MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEp6VVfCMWXwRCAPbcnKjSggx8PhOdMvx+
GsGi2i0iVbdPlohwHh9VAF3W6fXVlixWipMaqXgIshqF9xlIU/mnuPumtcUlv1ci
2DIGtoiMdK5T1dvb2J0O8FR+kXJhw21O
-----END PUBLIC KEY-----
";
const RSA_KEY: &str = "-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAq06pEDb1lfWIxf1dvW4U
kM3EqQYHxnEom4/F+T3mvBGVZFx4VlDtSTPqhdmx7l7LdXhKhsRPjQKiNws9kT0i
KidsF9pkj9ngDKaOfSxp7fRRQULhDzlyiWPrBiqW8drR5Qvn9U+BMvb9oyzwt6o1
8mpyQCEIyqfDqCKDuGQvTb0L8ybOSaPGkIKgsEEB+iHhgH6NeBJka2ZuAaT10Vg7
eFqRR/6tjrMsBwgu+q05VkdI/qZj6AnrV96C0y+7XH+f+VaytB0Z9EBPd2TX10wq
eQoZmoFSQX24EIS3/xvNzmD9K60zN+pU4JP3oFXJ9ygIdC+kFRQ2omjziOg2aVaI
GwIDAQAB
-----END PUBLIC KEY-----
";

/// Signed by HS256 with `RSA_KEY`, which is public, as the secret.
const CONFUSED: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhZGEiLCJleHAiOjE3MDAwMDM2MDB9.ThHgKv6oOKxJPVQsxBtLf2JJXcToSkXZe2AndfL7YfQ";

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn key() -> JwtKey {
    JwtKey::secret(JwtAlgorithm::Hs256, SECRET).unwrap()
}

fn pem(algorithm: JwtAlgorithm, pem: &str) -> JwtKey {
    JwtKey::pem(algorithm, pem).unwrap()
}

fn verify(verifier: &JwtVerifier, token: &str) -> Result<Value, TokenError> {
    verifier.verify(token, at(NOW))
}

fn is_invalid(verifier: &JwtVerifier, token: &str) -> bool {
    use TokenError::{Claim, Invalid, Signature};
    matches!(verify(verifier, token), Err(Invalid | Signature | Claim { .. }))
}

/// Signed with `SECRET`, under this key id.
fn signed(claims: &Value, kid: Option<&str>) -> String {
    let header = Header { kid: kid.map(Into::into), ..Header::new(Algorithm::HS256) };
    jsonwebtoken::encode(&header, claims, &EncodingKey::from_secret(SECRET)).unwrap()
}

/// Signed with `SECRET` by HS256, independent of this header.
fn under(header: &str) -> String {
    with(header, r#"{"exp":1700003600}"#)
}

/// The same with these claims.
fn with(header: impl AsRef<[u8]>, claims: impl AsRef<[u8]>) -> String {
    let message =
        [header.as_ref(), claims.as_ref()].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
    let key = EncodingKey::from_secret(SECRET);
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256);
    format!("{message}.{}", signature.unwrap())
}

/// One of each kind: its key, and a token signed with it.
fn each() -> Vec<(JwtKey, &'static str)> {
    let secret = |algorithm| JwtKey::secret(algorithm, SECRET).unwrap();
    vec![
        (secret(JwtAlgorithm::Hs256), HS256),
        (secret(JwtAlgorithm::Hs384), HS384),
        (secret(JwtAlgorithm::Hs512), HS512),
        (pem(JwtAlgorithm::EdDsa, ED_KEY), ED),
        (pem(JwtAlgorithm::Es256, ES256_KEY), ES256),
        (pem(JwtAlgorithm::Es384, ES384_KEY), ES384),
        (pem(JwtAlgorithm::Rs256, RSA_KEY), RS256),
        (pem(JwtAlgorithm::Ps256, RSA_KEY), PS256),
    ]
}

#[test]
fn a_token_verifies_only_with_its_own_key_and_algorithm() {
    for (of, (key, _)) in each().into_iter().enumerate() {
        let verifier = JwtVerifier::new(key);
        for (by, (_, token)) in each().into_iter().enumerate() {
            let result = verify(&verifier, token);
            if by == of {
                assert_eq!(result.unwrap()["sub"], "ada", "{verifier:?}");
            } else {
                assert!(matches!(result, Err(TokenError::Signature)), "{verifier:?} {token}");
            }
        }
    }
}

#[test]
fn a_key_may_be_in_der() {
    let text: String = ED_KEY.lines().filter(|line| !line.starts_with('-')).collect();
    let key = JwtKey::der(JwtAlgorithm::EdDsa, &STANDARD.decode(text).unwrap()).unwrap();
    assert_eq!(verify(&JwtVerifier::new(key), ED).unwrap()["sub"], "ada");
}

#[test]
fn a_token_cannot_choose_how_it_is_verified() {
    let rsa = JwtVerifier::new(pem(JwtAlgorithm::Rs256, RSA_KEY)).also_verify(key());
    assert!(verify(&rsa, RS256).is_ok());
    assert!(is_invalid(&rsa, CONFUSED), "a public key is not a secret");
    let unsigned = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZGEiLCJleHAiOjE3MDAwMDM2MDB9.";
    assert!(is_invalid(&rsa, unsigned));
    assert!(is_invalid(&rsa, &under(r#"{"alg":"HS512"}"#)), "it is HS256");
}

#[test]
fn errors_state_what_is_wrong_with_a_token() {
    let verifier = JwtVerifier::new(key()).issuer("us").audience("app");
    let error_of =
        |claims: Value| verify(&verifier, &signed(&claims, None)).unwrap_err().to_string();
    let missing = "is missing";
    let unexpected = "is not one of the expected values";
    let exp = NOW + 60;
    for (claims, claim, fault) in [
        (json!({ "iss": "us", "aud": "app" }), "exp", missing),
        (json!({ "exp": exp, "aud": "app" }), "iss", missing),
        (json!({ "exp": exp, "aud": "app", "iss": "them" }), "iss", unexpected),
        (json!({ "exp": exp, "iss": "us" }), "aud", missing),
        (json!({ "exp": exp, "iss": "us", "aud": ["other"] }), "aud", unexpected),
        (
            json!({ "exp": exp, "iss": "us", "aud": "app", "nbf": NOW + 61 }),
            "nbf",
            "is in the future",
        ),
    ] {
        assert_eq!(error_of(claims), format!("the token is invalid: its claim `{claim}` {fault}"));
    }
    let unsigned = verify(&verifier, ED).unwrap_err();
    let text = "the token is invalid: its signature matches none of the keys";
    assert_eq!(unsigned.to_string(), text);
    assert_eq!(verify(&verifier, "no token").unwrap_err().to_string(), "the token is invalid");
}

#[test]
fn a_token_is_valid_from_nbf_until_exp() {
    let token = signed(&json!({"sub": "ada", "nbf": NOW, "exp": NOW + 60}), None);
    let verifier = JwtVerifier::new(key()).leeway(Duration::ZERO);
    let now = |seconds| verifier.verify::<Value>(&token, at(seconds));
    assert!(matches!(now(NOW - 1), Err(TokenError::Claim { claim: "nbf", .. })));
    assert!(now(NOW).is_ok() && now(NOW + 59).is_ok());
    assert!(matches!(now(NOW + 60), Err(TokenError::Expired)));
    let lenient = JwtVerifier::new(key());
    let now = |seconds| lenient.verify::<Value>(&token, at(seconds));
    assert!(matches!(now(NOW - 61), Err(TokenError::Claim { claim: "nbf", .. })));
    assert!(now(NOW - 60).is_ok() && now(NOW + 119).is_ok());
    assert!(matches!(now(NOW + 120), Err(TokenError::Expired)));

    let fraction = signed(&json!({"exp": 1_700_000_000.5}), None);
    assert!(verify(&verifier, &fraction).is_ok());
    for exp in [json!(null), json!("1700003600"), json!([])] {
        assert!(is_invalid(&verifier, &signed(&json!({ "exp": exp }), None)), "{exp}");
    }
    assert!(is_invalid(&verifier, &signed(&json!({"sub": "ada"}), None)), "it never expires");
}

#[test]
fn a_token_is_for_this_audience_and_by_this_issuer() {
    let claims = |iss: Value, aud: Value| {
        let mut claims = json!({"exp": NOW + 60});
        for (name, value) in [("iss", iss), ("aud", aud)] {
            if !value.is_null() {
                claims[name] = value;
            }
        }
        signed(&claims, None)
    };
    let strict = JwtVerifier::new(key()).issuer("us").audience("push").audience("pull");
    for (iss, aud, valid) in [
        (json!("us"), json!("push"), true),
        (json!("us"), json!(["mail", "pull"]), true),
        (json!("them"), json!("push"), false),
        (json!(null), json!("push"), false),
        (json!("us"), json!("mail"), false),
        (json!("us"), json!(["mail"]), false),
        (json!("us"), json!([]), false),
        (json!("us"), json!(null), false),
        (json!(["us"]), json!("push"), false),
    ] {
        let token = claims(iss.clone(), aud.clone());
        assert_eq!(verify(&strict, &token).is_ok(), valid, "{iss} {aud}");
        assert_eq!(is_invalid(&strict, &token), !valid, "{iss} {aud}");
    }
    let any = JwtVerifier::new(key());
    assert!(verify(&any, &claims(json!("them"), json!(null))).is_ok());
    assert!(is_invalid(&any, &claims(json!("us"), json!("push"))), "meant for an audience");
}

#[test]
fn keys_can_be_rotated_with_and_without_names() {
    let claims = json!({"exp": NOW + 60});
    let other = || JwtKey::secret(JwtAlgorithm::Hs256, &[7; 32]).unwrap();
    let verifier = JwtVerifier::new(other()).also_verify(key());
    assert!(verify(&verifier, &signed(&claims, None)).is_ok());
    assert!(verify(&verifier, &signed(&claims, Some("any"))).is_ok());

    let named = JwtVerifier::new(other().id("new")).also_verify(key().id("old"));
    assert!(verify(&named, &signed(&claims, None)).is_ok());
    assert!(verify(&named, &signed(&claims, Some("old"))).is_ok());
    assert!(is_invalid(&named, &signed(&claims, Some("new"))), "signed with the old one");
    assert!(is_invalid(&named, &signed(&claims, Some("any"))));
}

#[test]
fn tokens_with_critical_extensions_are_refused() {
    let verifier = JwtVerifier::new(key());
    assert!(verify(&verifier, &under(r#"{"alg":"HS256"}"#)).is_ok());
    assert!(is_invalid(&verifier, &under(r#"{"alg":"HS256","crit":["b64"],"b64":false}"#)));
}

#[test]
fn a_header_and_claims_are_objects_in_utf_8() {
    let verifier = JwtVerifier::new(key());
    let (header, claims) = (r#"{"alg":"HS256"}"#, r#" {"exp":1700003600}"#);
    assert_eq!(verify(&verifier, &with(header, claims)).unwrap(), json!({ "exp": 1_700_003_600 }));
    for (header, claims) in [
        (&br#"["HS256",null,null]"#[..], claims.as_bytes()),
        (b"{\"alg\":\"HS256\",\"other\":\"\x95\"}", claims.as_bytes()),
        (header.as_bytes(), b"[1700003600,null,null,null]"),
        (header.as_bytes(), b"{\"exp\":1700003600,\"other\":\"\x95\"}"),
        (header.as_bytes(), b"1700003600"),
        (header.as_bytes(), b""),
    ] {
        let verified = verify(&verifier, &with(header, claims));
        let shown = format!("{} {}", header.escape_ascii(), claims.escape_ascii());
        assert!(matches!(verified, Err(TokenError::Invalid)), "{shown}: {verified:?}");
    }
}

#[test]
fn an_absent_token_is_missing_and_other_claims_are_distinguished() {
    #[derive(Debug, serde::Deserialize)]
    struct Claims {
        sub: u64,
    }
    let verifier = JwtVerifier::new(key());
    let verify = |token| verifier.verify_optional::<Claims>(token, at(NOW));
    assert!(matches!(verify(None), Err(TokenError::Missing)));
    assert!(matches!(verify(Some(HS256)), Err(TokenError::Data(_))));
    let token = signed(&json!({"sub": 7, "exp": NOW + 60}), None);
    assert_eq!(verify(Some(&token)).unwrap().sub, 7);
}

#[test]
fn an_invalid_key_is_refused_at_once() {
    for (algorithm, least) in
        [(JwtAlgorithm::Hs256, 32), (JwtAlgorithm::Hs384, 48), (JwtAlgorithm::Hs512, 64)]
    {
        assert!(JwtKey::secret(algorithm, &vec![7; least]).is_ok());
        let error = JwtKey::secret(algorithm, &vec![7; least - 1]).unwrap_err();
        let said = format!("the secret has {} bytes, expected at least {least}", least - 1);
        assert_eq!(error.to_string(), said);
        let error = JwtKey::pem(algorithm, RSA_KEY).unwrap_err();
        assert!(matches!(error, JwtKeyError::Algorithm { .. }));
    }
    let error = JwtKey::secret(JwtAlgorithm::Rs256, SECRET).unwrap_err();
    assert_eq!(error.to_string(), "wrong kind of key for Rs256");
    let private = RSA_KEY.replace("PUBLIC", "PRIVATE");
    for (algorithm, text) in [
        (JwtAlgorithm::Es256, ES384_KEY),
        (JwtAlgorithm::Es384, ES256_KEY),
        (JwtAlgorithm::EdDsa, ES256_KEY),
        (JwtAlgorithm::Rs256, ED_KEY),
        (JwtAlgorithm::Rs256, &private),
        (JwtAlgorithm::Rs256, ""),
    ] {
        let error = JwtKey::pem(algorithm, text).unwrap_err();
        assert!(matches!(error, JwtKeyError::PublicKey { .. }), "{algorithm:?} {text}");
    }
    assert!(JwtKey::der(JwtAlgorithm::Es256, b"nonsense").is_err());
    let shown = format!("{:?}", JwtVerifier::new(key()));
    assert!(!shown.contains("secret for tests") && !shown.contains("97, 32"), "{shown}");
}

proptest! {
    #[test]
    fn an_unsigned_token_is_invalid(
        nonsense in ".{0,40}|[A-Za-z0-9_.-]{0,200}|[A-Za-z0-9_-]{9}\\.[A-Za-z0-9_-]{9}\\.[A-Za-z0-9_-]{43}",
        place in 0..HS256.len(),
        bit in 0..7_u32,
    ) {
        let verifier = JwtVerifier::new(key());
        prop_assert!(is_invalid(&verifier, &nonsense));
        let mut bytes = HS256.as_bytes().to_vec();
        bytes[place] ^= 1 << bit;
        prop_assert!(is_invalid(&verifier, std::str::from_utf8(&bytes).unwrap()));
    }
}
