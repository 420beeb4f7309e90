//! Tokens that are cut, altered, too old, too new, or signed by another key.

use std::time::{Duration, SystemTime};

use pipeline::ws::token::Signer;

use crate::{
    arena::{Arena, SALT, SECRET, signer},
    case::{
        Act, Case,
        Expect::{As, Status},
        Group,
    },
    client::{Client, upgrade},
};

pub(crate) fn group() -> Group {
    Group {
        title: "Tokens",
        bounded: "a token is at most as long as a request's head, and is verified before it is \
                  decoded; nothing of a refused client is kept.",
        cases: [signed(), formats(), subprotocols()].into_iter().flatten().collect(),
    }
}

/// A handshake with this token in the query.
fn query(token: &str) -> Vec<u8> {
    upgrade(&format!("/token/websocket?vsn=2.0.0&token={token}"), "")
}

fn case(id: &'static str, what: &'static str, token: &str, status: u16) -> Case {
    Case { id, what, act: Act::Http(query(token)), expect: Status(status) }
}

fn valid() -> String {
    signer().sign(&7, SystemTime::now()).unwrap()
}

/// A token that was signed at this distance from now.
fn signed_at(offset: i64) -> String {
    let distance = Duration::from_secs(offset.unsigned_abs());
    let now = SystemTime::now();
    let at = if offset < 0 { now.checked_sub(distance) } else { now.checked_add(distance) };
    signer().sign(&7, at.unwrap()).unwrap()
}

fn signed() -> Vec<Case> {
    let by = |secret, salt| Signer::new(secret, salt).unwrap().sign(&7, SystemTime::now()).unwrap();
    let of = |data: &str| signer().sign(data, SystemTime::now()).unwrap();
    vec![
        case("K-440", "a valid token", &valid(), 101),
        case("K-441", "a token that expired a minute ago", &signed_at(-3660), 403),
        case("K-442", "a token of 1970", &signer().sign(&7, SystemTime::UNIX_EPOCH).unwrap(), 403),
        case("K-443", "a token dated half a minute in the future", &signed_at(30), 101),
        case("K-444", "a token dated an hour in the future", &signed_at(3600), 403),
        case("K-445", "a token dated ten years in the future", &signed_at(315_360_000), 403),
        case("K-446", "a token of another salt", &by(SECRET, "another"), 403),
        case("K-447", "a token of another secret", &by("another secret, long enough", SALT), 403),
        case("K-448", "a token whose data has another type", &of("seven"), 403),
        case(
            "K-449",
            "a token whose data is negative",
            &signer().sign(&-7, SystemTime::now()).unwrap(),
            403,
        ),
        Case {
            id: "K-450",
            what: "every prefix of a valid token",
            act: Act::Steps(|arena| {
                let valid = valid();
                refused(arena, (0..valid.len()).map(|length| valid[..length].to_owned()))
            }),
            expect: As("HTTP 403 to each"),
        },
        Case {
            id: "K-451",
            what: "a valid token with any of its characters changed",
            act: Act::Steps(|arena| {
                let valid = valid();
                refused(
                    arena,
                    (0..valid.len()).map(|at| {
                        // Unlike its neighbours, it has another highest bit.
                        let other = if valid.as_bytes()[at] < b'a' { "z" } else { "A" };
                        format!("{}{other}{}", &valid[..at], &valid[at + 1..])
                    }),
                )
            }),
            expect: As("HTTP 403 to each"),
        },
        Case {
            id: "K-452",
            what: "a valid token without any of its characters",
            act: Act::Steps(|arena| {
                let valid = valid();
                refused(
                    arena,
                    (0..valid.len()).map(|at| format!("{}{}", &valid[..at], &valid[at + 1..])),
                )
            }),
            expect: As("HTTP 403 to each"),
        },
    ]
}

/// Expects each of these tokens to be refused.
fn refused(arena: &Arena, tokens: impl Iterator<Item = String>) -> Result<(), String> {
    for token in tokens {
        let mut client = Client::tcp(arena.address).map_err(|error| error.to_string())?;
        client.send(&query(&token)).map_err(|error| error.to_string())?;
        client.read_head().map_err(|error| error.to_string())?;
        if client.status() != 403 {
            return Err(format!("{token}: {}", client.head));
        }
    }
    Ok(())
}

fn formats() -> Vec<Case> {
    let valid = valid();
    let parts: Vec<_> = valid.split('.').collect();
    let [header, data, mac] = parts[..] else { panic!("{valid}") };
    vec![
        case("K-453", "an empty token", "", 403),
        Case {
            id: "K-454",
            what: "no token",
            act: Act::Http(upgrade("/token/websocket?vsn=2.0.0", "")),
            expect: Status(403),
        },
        case("K-455", "a token that is no text of tokens", "null", 403),
        case("K-456", "two dots", "..", 403),
        case("K-457", "a token without a signature", &format!("{header}.{data}."), 403),
        case("K-458", "a token without data", &format!("{header}..{mac}"), 403),
        case("K-459", "a token with a fourth part", &format!("{valid}.x"), 403),
        case(
            "K-460",
            "a token of another algorithm with the same signature",
            &format!("SFM1MTI.{data}.{mac}"),
            403,
        ),
        case("K-461", "a token of the algorithm none", &format!("bm9uZQ.{data}."), 403),
        case("K-462", "a token without an algorithm", &format!(".{data}.{mac}"), 403),
        case(
            "K-463",
            "a JSON Web Token of the algorithm none",
            "eyJhbGciOiJub25lIn0.eyJzdWIiOjd9.",
            403,
        ),
        case("K-464", "a signature with padding", &format!("{valid}="), 403),
        case(
            "K-465",
            "a token of 60,000 bytes",
            &format!("{header}.{}.{mac}", "A".repeat(60_000)),
            403,
        ),
        case("K-466", "ten thousand dots", &".".repeat(10_000), 403),
        case("K-467", "a token with a NUL", &format!("{valid}%00"), 403),
        Case {
            id: "K-468",
            what: "a valid token as a list",
            act: Act::Http(upgrade(&format!("/token/websocket?vsn=2.0.0&token[]={valid}"), "")),
            expect: Status(403),
        },
    ]
}

fn subprotocols() -> Vec<Case> {
    let offer = |id, what, offer: &str, status| {
        let lines = format!("Sec-WebSocket-Protocol: {offer}\r\n");
        let act = Act::Http(upgrade("/token/websocket?vsn=2.0.0", &lines));
        Case { id, what, act, expect: Status(status) }
    };
    const PREFIX: &str = "base64url.bearer.phx.";
    let encoded = encode(&valid());
    vec![
        offer(
            "K-469",
            "a valid token as a subprotocol",
            &format!("phoenix, {PREFIX}{encoded}"),
            101,
        ),
        offer(
            "K-470",
            "a token that is not base64 as a subprotocol",
            &format!("phoenix, {PREFIX}!!!"),
            403,
        ),
        offer(
            "K-471",
            "two tokens as subprotocols",
            &format!("phoenix, {PREFIX}{encoded}, {PREFIX}{encoded}"),
            403,
        ),
        offer("K-472", "an empty token as a subprotocol", &format!("phoenix, {PREFIX}"), 403),
        offer(
            "K-473",
            "a token of bytes that are not UTF-8 as a subprotocol",
            &format!("phoenix, {PREFIX}__79"),
            403,
        ),
    ]
}

/// Base64url without padding.
fn encode(text: &str) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let chunk = |bytes: &[u8]| {
        let word = bytes.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte));
        let word = word << (8 * (3 - bytes.len()));
        let letter = |n: usize| char::from(LETTERS[(word >> (18 - 6 * n) & 63) as usize]);
        (0..=bytes.len()).map(letter).collect::<String>()
    };
    text.as_bytes().chunks(3).map(chunk).collect()
}

#[test]
fn tokens_are_refused_unless_they_are_valid() {
    group().run();
}
