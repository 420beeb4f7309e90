use super::*;
use serde_json::{Value, json};

const SECRET: &str = "golden-secret-golden-secret-golden-secret-golden-secret-golden-secret-";
const OLD_SECRET: &str = "abc123abc123abc123abc123abc123abc123abc123abc123abc123abc123abc123abc123";

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
        verified("SFMyNTY.g2gDYSpuBgAAaOXPiwFiAAFRgA.1W50BVrRGi7WYZFnoLJG5vbESUE96d6Gu2_svrhyk78"),
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
fn a_token_signed_with_another_key_is_invalid() {
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
fn data_of_another_type_is_distinguished_from_an_invalid_token() {
    let token = signer().sign(&"user-1", at(SIGNED)).unwrap();
    assert!(matches!(signer().verify::<u64>(&token, at(SIGNED)), Err(TokenError::Data(_))));
}

#[test]
fn a_short_secret_is_refused_with_the_limit() {
    let error = Signer::new("too short", "salt").unwrap_err();
    assert_eq!(error.to_string(), "the secret has 9 bytes, expected at least 20");
    assert_eq!(
        format!("{:?}", signer()),
        "Signer { keys: 1, max_age: None, .. }",
        "the key is not shown"
    );
}
