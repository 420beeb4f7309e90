//! Conversations that are cut at every byte.

use std::{io, time::Duration};

use pipeline_test_support::PATIENCE;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    arena::{Arena, ask, calm_connection, pause},
    case::{Act, Case, Expect::As, Group},
    client::{
        BINARY, CLOSE, CONTINUE, Client, FIN, Frame, OFFER, PING, PONG, RSV1, SOCKET, TEXT, TOPIC,
        beaten, deflated, event, frame, heartbeat, join, upgrade,
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
        let expect = As("only whole messages are handled; the connections end with their clients");
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
                cut_polled(arena, Then::Silence)
            }),
            case(
                "K-427",
                "every prefix of a long-polling request, then a close of the connection",
                |arena| cut_polled(arena, Then::Close),
            ),
            case("K-428", "every prefix of a long-polling request, then a reset", |arena| {
                cut_polled(arena, Then::Reset)
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
    messages().into_iter().flat_map(|(_, bytes)| bytes).collect()
}

/// Messages of all kinds, each with the reference of its answer.
fn messages() -> Vec<(&'static str, Vec<u8>)> {
    let asked = json!(["1", "3", TOPIC, "ask", {}]).to_string();
    let (half, rest) = asked.as_bytes().split_at(10);
    let compressed = deflated(asked.replace("\"3\"", "\"4\"").as_bytes());
    vec![
        ("1", join(TOPIC)),
        ("2", event("2", "ask", &json!({ "text": "\u{20ac}" }))),
        ("pong", frame(FIN | PING, b"?")),
        ("3", [frame(TEXT, half), frame(FIN | CONTINUE, rest)].concat()),
        ("4", frame(FIN | RSV1 | TEXT, &compressed)),
        ("5", frame(FIN | BINARY, format!("\0\x01\x01\x0c\x0315{TOPIC}ask\0").as_bytes())),
        ("6", heartbeat("6")),
    ]
}

/// The references of the messages that are whole in the first bytes of a conversation.
fn whole_in(length: usize) -> Vec<&'static str> {
    let mut end = 0;
    let ends = messages().into_iter().map(|(reference, bytes)| {
        end += bytes.len();
        (reference, end)
    });
    ends.filter(|(_, end)| *end <= length).map(|(reference, _)| reference).collect()
}

/// The reference in an answer.
fn reference(frame: &Frame) -> Result<String, String> {
    Ok(match frame.first & 0x0f {
        TEXT => frame.message()?[1].as_str().unwrap_or_default().to_owned(),
        // In the answer to a binary event, the references come behind five lengths.
        BINARY => String::from_utf8_lossy(&frame.payload[6..7]).into_owned(),
        PONG => "pong".to_owned(),
        _ => return Err(frame.to_string()),
    })
}

/// Expects an answer to each of the questions.
fn answers(client: &mut Client) -> Result<(), String> {
    let mut references = Vec::new();
    for _ in 0..7 {
        references.push(reference(&client.next().map_err(failed)?)?);
    }
    // Heartbeats and pings do not wait for channels, which answer in order.
    let of_channel: Vec<_> =
        references.iter().filter(|it| !["6", "pong"].contains(&&***it)).collect();
    if of_channel == ["1", "2", "3", "4", "5"] { Ok(()) } else { Err(format!("{references:?}")) }
}

/// A request with a heartbeat of a session whose client may be silent for long.
fn polled(token: &str, reference: &str) -> Vec<u8> {
    let body = json!([null, reference, "phoenix", "heartbeat", {}]).to_string();
    let (path, length) = (format!("{PATIENT}&token={token}"), body.len());
    format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}").into()
}

const PATIENT: &str = "/patient/longpoll?vsn=2.0.0";

/// Cuts a long-polling request. The session then gets the answer to a later message, and no other.
fn cut_polled(arena: &Arena, then: Then) -> Result<(), String> {
    let request = |method: &str, path: &str| {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        Client::tcp(arena.address).map_err(failed)?.request(request.as_bytes())
    };
    let session = request("GET", PATIENT)?;
    let token = session["token"].as_str().ok_or_else(|| format!("no token: {session}"))?;
    cut(arena, "", &polled(token, "cut"), then)?;
    let begun = Instant::now();
    let posted = loop {
        let posted = Client::tcp(arena.address).map_err(failed)?.request(&polled(token, "last"))?;
        // Until the ends of the cut requests have been noticed, there may be too many.
        if posted != 429 || begun.elapsed() > PATIENCE {
            break posted;
        }
        pause(Duration::from_millis(1));
    };
    let fetched = request("GET", &format!("{PATIENT}&token={token}"))?;
    match fetched["messages"].as_array().map(Vec::as_slice) {
        Some([Value::String(only)]) if only.parse::<Value>().ok() == Some(beaten("last")) => Ok(()),
        _ => Err(format!("{posted}, then {fetched}")),
    }
}

/// Sends each prefix over a connection of its own; with an offer, over a WebSocket.
fn cut(arena: &Arena, offer: &str, bytes: &[u8], then: Then) -> Result<(), String> {
    let before = arena.endpoint.open_sockets();
    let mut silent = Vec::new();
    for length in 0..bytes.len() {
        let of = |error: String| format!("after {length} bytes: {error}");
        let client = match offer {
            "" => Client::tcp(arena.address),
            offer => Client::open(arena.address, SOCKET, offer),
        };
        let mut client = client.map_err(failed).map_err(of)?;
        client.send(&bytes[..length]).map_err(failed).map_err(of)?;
        match then {
            Then::Silence => silent.push((length, client)),
            Then::Close => {
                client.finish();
                if offer.is_empty() {
                    has_no_success(&client.rest().map_err(of)?).map_err(of)?;
                } else {
                    are_among(&whole_in(length), &mut client).map_err(of)?;
                }
            }
            Then::Reset => client.resets(),
        }
    }
    // A client that connects next to all silent ones is answered.
    ask(&mut calm_connection(arena.address), 1)?;
    for (length, client) in &mut silent {
        let checked = if offer.is_empty() {
            has_no_success(&client.arrived().map_err(failed)?)
        } else {
            has_answers(&whole_in(*length), client)
        };
        checked.map_err(|error| format!("after {length} bytes: {error}"))?;
    }
    drop(silent);
    arena.eventually("sockets stay open", |arena| arena.endpoint.open_sockets() <= before)
}

/// No request was taken for whole: HTTP answers can only be refusals.
fn has_no_success(answer: &[u8]) -> Result<(), String> {
    let answer = String::from_utf8_lossy(answer);
    let is_refused = answer.is_empty() || answer.starts_with("HTTP/1.1 4");
    if is_refused { Ok(()) } else { Err(format!("answered: {answer}")) }
}

/// Only these messages are answered before the connection ends, each once. A client that closes
/// may miss the last answers.
fn are_among(whole: &[&str], client: &mut Client) -> Result<(), String> {
    let mut left = whole.to_vec();
    while let Ok(frame) = client.next() {
        if frame.first == FIN | CLOSE {
            break;
        }
        let answered = reference(&frame)?;
        let Some(at) = left.iter().position(|it| *it == answered) else {
            return Err(format!("an answer to {answered}, of {whole:?}"));
        };
        left.remove(at);
    }
    Ok(())
}

/// All of these messages have been answered, and no other.
fn has_answers(whole: &[&str], client: &mut Client) -> Result<(), String> {
    let mut answered = Vec::new();
    for _ in whole {
        answered.push(reference(&client.next().map_err(failed)?)?);
    }
    let mut expected = whole.to_vec();
    expected.sort_unstable();
    answered.sort_unstable();
    let more = client.arrived().map_err(failed)?;
    // A server that has closed meanwhile has answered nothing else either.
    let is_over = more.is_empty() || more[0] == FIN | CLOSE;
    if is_over && answered == expected {
        return Ok(());
    }
    Err(format!("answers to {answered:?}, of {whole:?}, and then {more:?}"))
}

#[test]
fn conversations_cut_at_every_byte_end_with_their_clients() {
    group().run();
}
