//! The header `sec-websocket-protocol`: the negotiated subprotocol, and the auth token, which a
//! browser can send in no other header. Pure.

use base64::{
    Engine,
    alphabet::{STANDARD, URL_SAFE},
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

/// The prefix of an entry that carries a token.
const TOKEN: &str = "base64url.bearer.phx.";

/// The subprotocol that the official client offers along with its token.
pub(crate) const PHOENIX: &str = "phoenix";

/// The rest of a header after the token was taken out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct WithoutToken {
    pub(crate) token: Option<String>,
    /// `None` if the rest is empty.
    pub(crate) header: Option<String>,
}

/// The token's entry is invalid: it is not base64, or does not contain UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadToken;

/// Takes the token out of the header, if exactly one of its entries carries one.
///
/// The prefix says `base64url`, and the official client uses the other alphabet; both are accepted,
/// with or without padding.
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

/// The server supports none of the offered subprotocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unsupported;

/// Selects the subprotocol: the first of ours that is offered. `None` if nothing is offered, or if
/// the server has no list.
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
    fn the_first_of_ours_that_is_offered_is_selected() {
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
    fn two_tokens_count_as_none() {
        let header = "phoenix, base64url.bearer.phx.b25l, base64url.bearer.phx.dHdv";
        assert_eq!(take_token(header), without(None, Some(header)));
    }

    #[test]
    fn both_alphabets_are_accepted_with_and_without_padding() {
        for encoded in ["YWI+Pz8", "YWI-Pz8", "YWI+Pz8=", "YWI-Pz8="] {
            let taken = take_token(&format!("base64url.bearer.phx.{encoded}"));
            assert_eq!(taken, without(Some("ab>??"), None), "{encoded}");
        }
        let taken = take_token("phoenix,base64url.bearer.phx.dG9rfsOpfng");
        assert_eq!(taken, without(Some("tok~é~x"), Some("phoenix")));
    }

    #[test]
    fn a_token_that_is_not_base64_of_text_is_refused() {
        for encoded in ["!!!", "a", "YWI+Pz8-", "YWJ", "/w", "YWI= x"] {
            let taken = take_token(&format!("phoenix, base64url.bearer.phx.{encoded}"));
            assert_eq!(taken, Err(BadToken), "{encoded}");
        }
    }
}
