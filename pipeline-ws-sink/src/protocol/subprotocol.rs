//! The header `sec-websocket-protocol`: which subprotocol is spoken, and the token that a browser can
//! send nowhere else. Pure.

use base64::{
    Engine,
    alphabet::{STANDARD, URL_SAFE},
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

/// What an entry that carries a token begins with.
const TOKEN: &str = "base64url.bearer.phx.";

/// The subprotocol that a client which sends a token offers beside it.
pub(crate) const PHOENIX: &str = "phoenix";

/// What is left of a header when the token is taken out of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct WithoutToken {
    pub(crate) token: Option<String>,
    /// `None` if nothing is left.
    pub(crate) header: Option<String>,
}

/// The entry that has to carry a token does not: it is not base64, or not UTF-8 in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadToken;

/// Takes the token out of the header, if exactly one of its entries carries one.
///
/// The name says `base64url`, and the official client sends the other alphabet; both are read, with
/// padding or without.
pub(crate) fn take_token(header: &str) -> Result<WithoutToken, BadToken> {
    let (tokens, rest): (Vec<_>, Vec<_>) =
        entries(header).partition(|entry| entry.starts_with(TOKEN));
    let [entry] = tokens[..] else {
        return Ok(WithoutToken { token: None, header: Some(header.to_owned()) });
    };
    let encoded = &entry[TOKEN.len()..];
    let config =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let decode = |alphabet| GeneralPurpose::new(alphabet, config).decode(encoded).ok();
    let token = decode(&STANDARD).or_else(|| decode(&URL_SAFE)).ok_or(BadToken)?;
    let token = String::from_utf8(token).map_err(|_| BadToken)?;
    let header = (!rest.is_empty()).then(|| rest.join(", "));
    Ok(WithoutToken { token: Some(token), header })
}

/// None of the subprotocols that the client offers is spoken here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unsupported;

/// The subprotocol that is spoken: the first of ours that is offered. None if nothing is offered, or
/// if we have no list and do not care.
pub(crate) fn select<'a>(
    ours: &'a [String],
    offered: Option<&str>,
) -> Result<Option<&'a str>, Unsupported> {
    let Some(offered) = offered else { return Ok(None) };
    if ours.is_empty() {
        return Ok(None);
    }
    let spoken = ours.iter().find(|our| entries(offered).any(|entry| entry == **our));
    spoken.map(|our| Some(&**our)).ok_or(Unsupported)
}

fn entries(header: &str) -> impl Iterator<Item = &str> {
    header.split(',').map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours(protocols: &[&str]) -> Vec<String> {
        protocols.iter().map(|&protocol| protocol.to_owned()).collect()
    }

    fn without(token: Option<&str>, header: Option<&str>) -> Result<WithoutToken, BadToken> {
        Ok(WithoutToken { token: token.map(str::to_owned), header: header.map(str::to_owned) })
    }

    #[test]
    fn the_first_of_ours_that_is_offered_is_spoken() {
        let sip_and_mqtt = ours(&["sip", "mqtt"]);
        let cases = [
            (None, Ok(None)),
            (Some("sip"), Ok(Some("sip"))),
            (Some("mqtt, sip"), Ok(Some("sip"))),
            (Some("nope,  mqtt ,"), Ok(Some("mqtt"))),
            (Some("nope"), Err(Unsupported)),
            (Some("SIP"), Err(Unsupported)),
            (Some(""), Err(Unsupported)),
        ];
        for (offered, expected) in cases {
            assert_eq!(select(&sip_and_mqtt, offered), expected, "{offered:?}");
        }
    }

    #[test]
    fn without_a_list_offers_are_ignored() {
        assert_eq!(select(&[], Some("sip")), Ok(None));
        assert_eq!(select(&[], None), Ok(None));
    }

    #[test]
    fn a_token_is_taken_out() {
        let cases = [
            ("phoenix, base64url.bearer.phx.bXktdG9rZW4", Some("my-token"), Some("phoenix")),
            ("base64url.bearer.phx.bXktdG9rZW4,a,b", Some("my-token"), Some("a, b")),
            ("base64url.bearer.phx.bXktdG9rZW4", Some("my-token"), None),
            ("base64url.bearer.phx.", Some(""), None),
            ("phoenix", None, Some("phoenix")),
            ("", None, Some("")),
        ];
        for (header, token, rest) in cases {
            assert_eq!(take_token(header), without(token, rest), "{header}");
        }
    }

    #[test]
    fn two_tokens_are_no_token() {
        let header = "phoenix, base64url.bearer.phx.b25l, base64url.bearer.phx.dHdv";
        assert_eq!(take_token(header), without(None, Some(header)));
    }

    #[test]
    fn both_alphabets_are_read_with_padding_and_without() {
        for encoded in ["YWI+Pz8", "YWI-Pz8", "YWI+Pz8=", "YWI-Pz8="] {
            let taken = take_token(&format!("base64url.bearer.phx.{encoded}"));
            assert_eq!(taken, without(Some("ab>??"), None), "{encoded}");
        }
        let taken = take_token("phoenix,base64url.bearer.phx.dG9rfsOpfng");
        assert_eq!(taken, without(Some("tok~é~x"), Some("phoenix")));
    }

    #[test]
    fn what_is_no_base64_of_a_text_is_refused() {
        for encoded in ["!!!", "a", "YWI+Pz8-", "YWJ", "/w", "YWI= x"] {
            let taken = take_token(&format!("phoenix, base64url.bearer.phx.{encoded}"));
            assert_eq!(taken, Err(BadToken), "{encoded}");
        }
    }
}
