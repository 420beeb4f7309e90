//! Conversations that are cut at every byte.

use std::io;

use serde_json::json;

use crate::{
    arena::{Arena, ask, calm_connection},
    case::{Act, Case, Expect::As, Group, POLLED, session},
    client::{
        BINARY, CLOSE, CONTINUE, Client, FIN, OFFER, PING, PONG, RSV1, SOCKET, TEXT, TOPIC,
        deflated, event, frame, heartbeat, join, upgrade,
    },
};

/// How a client behaves after the last byte.
#[derive(Clone, Copy)]
enum Then {
    Silence,
    Close,
    Reset,
}

pub(crate) fn group() -> Group {
    let case = |id, what, act| {
        let expect =
            As("no prefix is taken for more than it is; the connections end with their clients");
        Case { id, what, act: Act::Steps(act), expect }
    };
    Group {
        title: "Conversations cut at every byte",
        bounded: "an incomplete frame or request holds about as much as has arrived of it, and \
                  is free when its connection ends.",
        cases: vec![
            case("K-420", "every prefix of a handshake, then silence", |arena| {
                cut(arena, "", &upgrade(SOCKET, ""), Then::Silence)
            }),
            case("K-421", "every prefix of a handshake, then a close of the connection", |arena| {
                cut(arena, "", &upgrade(SOCKET, ""), Then::Close)
            }),
            case("K-422", "every prefix of a handshake, then a reset", |arena| {
                cut(arena, "", &upgrade(SOCKET, ""), Then::Reset)
            }),
            case("K-423", "every prefix of a conversation, then silence", |arena| {
                cut(arena, OFFER, &conversation(), Then::Silence)
            }),
            case(
                "K-424",
                "every prefix of a conversation, then a close of the connection",
                |arena| cut(arena, OFFER, &conversation(), Then::Close),
            ),
            case("K-425", "every prefix of a conversation, then a reset", |arena| {
                cut(arena, OFFER, &conversation(), Then::Reset)
            }),
            case("K-426", "every prefix of a long-polling request, then silence", |arena| {
                cut(arena, "", &polled(arena)?, Then::Silence)
            }),
            case(
                "K-427",
                "every prefix of a long-polling request, then a close of the connection",
                |arena| cut(arena, "", &polled(arena)?, Then::Close),
            ),
            case("K-428", "every prefix of a long-polling request, then a reset", |arena| {
                cut(arena, "", &polled(arena)?, Then::Reset)
            }),
            Case {
                id: "K-429",
                what: "a handshake and a conversation in single bytes",
                act: Act::Steps(|arena| {
                    let whole = [upgrade(SOCKET, OFFER), questions()].concat();
                    let mut client = Client::tcp(arena.address).map_err(failed)?;
                    for byte in whole {
                        client.send(&[byte]).map_err(failed)?;
                    }
                    client.read_head().map_err(failed)?;
                    answers(&mut client)
                }),
                expect: As("the same answers as to all bytes at once"),
            },
            Case {
                id: "K-430",
                what: "a handshake and a conversation at once",
                act: Act::Steps(|arena| {
                    let whole = [upgrade(SOCKET, OFFER), questions()].concat();
                    let mut client = Client::tcp(arena.address).map_err(failed)?;
                    client.send(&whole).map_err(failed)?;
                    client.read_head().map_err(failed)?;
                    answers(&mut client)
                }),
                expect: As("answers in order"),
            },
        ],
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it maps errors")]
fn failed(error: io::Error) -> String {
    error.to_string()
}

/// Frames of all kinds, and a close.
fn conversation() -> Vec<u8> {
    [questions(), frame(FIN | CLOSE, &1000u16.to_be_bytes())].concat()
}

/// Frames of all kinds that are answered.
fn questions() -> Vec<u8> {
    let asked = json!(["1", "3", TOPIC, "ask", {}]).to_string();
    let (half, rest) = asked.as_bytes().split_at(10);
    [
        join(TOPIC),
        event("2", "ask", &json!({ "text": "\u{20ac}" })),
        frame(FIN | PING, b"?"),
        frame(TEXT, half),
        frame(FIN | CONTINUE, rest),
        frame(FIN | RSV1 | TEXT, &deflated(asked.replace("\"3\"", "\"4\"").as_bytes())),
        frame(FIN | BINARY, format!("\0\x01\x01\x0c\x0315{TOPIC}ask\0").as_bytes()),
        heartbeat("6"),
    ]
    .concat()
}

/// Expects an answer to each of the questions.
fn answers(client: &mut Client) -> Result<(), String> {
    let mut references = Vec::new();
    for _ in 0..7 {
        let frame = client.next().map_err(failed)?;
        references.push(match frame.first & 0x0f {
            TEXT => frame.message()?[1].as_str().unwrap_or_default().to_owned(),
            // In the answer to a binary event, the references come behind five lengths.
            BINARY => String::from_utf8_lossy(&frame.payload[6..7]).into_owned(),
            PONG => "pong".to_owned(),
            _ => return Err(frame.to_string()),
        });
    }
    // Heartbeats and pings do not wait for channels, which answer in order.
    let of_channel: Vec<_> =
        references.iter().filter(|it| !["6", "pong"].contains(&&***it)).collect();
    if of_channel == ["1", "2", "3", "4", "5"] { Ok(()) } else { Err(format!("{references:?}")) }
}

/// A request with a message.
fn polled(arena: &Arena) -> Result<Vec<u8>, String> {
    let body = json!([null, "1", "phoenix", "heartbeat", {}]).to_string();
    let path = format!("{POLLED}&token={}", session(arena.address)?);
    let length = body.len();
    Ok(format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}").into())
}

/// Sends each prefix over a connection of its own; with an offer, over a WebSocket.
fn cut(arena: &Arena, offer: &str, bytes: &[u8], then: Then) -> Result<(), String> {
    let before = arena.endpoint.open_sockets();
    let mut silent = Vec::new();
    for length in 0..bytes.len() {
        let client = match offer {
            "" => Client::tcp(arena.address),
            offer => Client::open(arena.address, SOCKET, offer),
        };
        let mut client = client.map_err(|error| format!("after {length} prefixes: {error}"))?;
        client.send(&bytes[..length]).map_err(failed)?;
        match then {
            Then::Silence => silent.push(client),
            Then::Close => {
                client.finish();
                let rest = client.rest().map_err(|error| format!("{length} bytes: {error}"))?;
                if offer.is_empty() && rest.starts_with(b"HTTP/1.1 101 ") {
                    return Err(format!("upgraded after {length} bytes"));
                }
            }
            Then::Reset => client.resets(),
        }
    }
    // A client that connects next to all silent ones is answered.
    ask(&mut calm_connection(arena.address), 1)?;
    drop(silent);
    arena.eventually("sockets stay open", |arena| arena.endpoint.open_sockets() <= before)
}

#[test]
fn conversations_cut_at_every_byte_end_with_their_clients() {
    group().run();
}
