//! The sustained attacks.

use std::{io, time::Duration};

use pipeline::ws::{Mount, mount::WhenFull};
use pipeline_test_support::AnySocket;
use serde_json::json;

use crate::{
    arena::Options,
    case::{Act, Case, Group, POLLED, session},
    client::{
        CONTINUE, Client, FIN, PING, RSV1, SOCKET, TEXT, TOPIC, deflated, event, frame, head,
        heartbeat, join, json_text, upgrade,
    },
    deflate, frames, messages, requests,
    storms::{
        Attack, BUDGET, End, HOSTILE, Signals, Storm, connects, deaf, drips, flood, silent,
        withstands,
    },
    tokens,
};

/// The size of large messages.
const LARGE: usize = 1 << 19;

/// What one client may have in its inbox, with the message that is being read.
const INBOX: usize = (4 << 20) + 2 * LARGE;

/// What one client may have in its outbox: twice the limit, because replies are not dropped.
const OUTBOX: usize = 9 << 20;

fn storm(id: &'static str, what: &'static str, attack: Attack) -> Storm {
    let holds = HOSTILE * (INBOX + OUTBOX);
    let turn = heartbeat("1").repeat(BUDGET);
    Storm { id, what, holds, options: Options::default(), turn, attack }
}

/// The same with other frames in a turn.
fn turns(turn: Vec<u8>, storm: Storm) -> Storm {
    Storm { turn, ..storm }
}

/// The same without the limit of frames for each client, which is then not the protection.
fn unlimited(storm: Storm) -> Storm {
    let mount = |mount: Mount<AnySocket>| mount.frame_rate_limit(u32::MAX);
    Storm { options: Options { mount, ..Options::default() }, ..storm }
}

fn padded() -> Vec<u8> {
    json!([null, "1", "phoenix", "heartbeat", { "padding": "x".repeat(LARGE) }]).to_string().into()
}

/// A heartbeat, followed by empty blocks, each of which requires its tables to be built.
fn empty_blocks(bytes: usize) -> Vec<u8> {
    let beat = json!([null, "1", "phoenix", "heartbeat", {}]).to_string();
    let length = u16::try_from(beat.len()).unwrap();
    let head = [&[0][..], &length.to_le_bytes(), &(!length).to_le_bytes(), beat.as_bytes()];
    // Each has ten bits, so four of them have five bytes.
    let four = (0..4).fold(0u64, |bits, n| bits | 0b10 << (10 * n));
    [&head.concat()[..], &four.to_le_bytes()[..5].repeat(bytes / 5), &[0]].concat()
}

pub(crate) fn floods() -> Vec<Storm> {
    let none = Vec::new;
    let leave = json_text(&json!(["1", "2", "room:storm", "phx_leave", {}]));
    let joins: Vec<_> = (0..10_000).flat_map(|n| join(&format!("room:{n}"))).collect();
    let stall = event("2", "stall", &json!({}));
    let large = event("3", "ask", &json!({ "padding": "x".repeat(LARGE) }));
    let unknown = [join(TOPIC), event("2", "unheard_of", &json!({}))].concat();
    vec![
        storm("K-520", "heartbeats without a pause", flood(none(), heartbeat("1"))),
        unlimited(storm(
            "K-521",
            "heartbeats without a pause, without a limit of frames",
            flood(none(), heartbeat("1")),
        )),
        unlimited(storm("K-522", "pings without a pause", flood(none(), frame(FIN | PING, b"")))),
        unlimited(storm(
            "K-523",
            "pings of 125 bytes without a pause",
            flood(none(), frame(FIN | PING, &[0; 125])),
        )),
        unlimited(storm(
            "K-524",
            "empty fragments without a pause",
            flood(vec![frame(TEXT, b"")], frame(CONTINUE, b"")),
        )),
        turns(
            frame(FIN | TEXT, &padded()).repeat(2),
            unlimited(storm(
                "K-525",
                "heartbeats of half a megabyte",
                flood(none(), frame(FIN | TEXT, &padded())),
            )),
        ),
        turns(
            frame(FIN | RSV1 | TEXT, &deflated(&padded())).repeat(2),
            unlimited(storm(
                "K-526",
                "messages that inflate to half a megabyte",
                flood(none(), frame(FIN | RSV1 | TEXT, &deflated(&padded()))),
            )),
        ),
        turns(
            frame(FIN | RSV1 | TEXT, &empty_blocks(BUDGET * 5 / 4)),
            unlimited(storm(
                "K-527",
                "messages that inflate to nothing",
                flood(none(), frame(FIN | RSV1 | TEXT, &empty_blocks(16 << 10))),
            )),
        ),
        storm(
            "K-528",
            "bombs that close the socket, and new sockets",
            flood(none(), frame(FIN | RSV1 | TEXT, &deflated(&vec![b'['; 16 << 20]))),
        ),
        unlimited(storm(
            "K-529",
            "joins and leaves",
            flood(none(), [join("room:storm"), leave].concat()),
        )),
        unlimited(storm("K-530", "joins of a topic that is joined", flood(none(), join(TOPIC)))),
        unlimited(storm("K-531", "ten thousand joins of different topics", flood(none(), joins))),
        unlimited(storm(
            "K-532",
            "events before their join",
            flood(none(), event("2", "ask", &json!({}))),
        )),
        unlimited(storm(
            "K-533",
            "events that crash the channel, and joins",
            flood(none(), unknown),
        )),
        turns(
            frame(FIN | TEXT, &padded()).repeat(2),
            unlimited(storm(
                "K-534",
                "large events for a channel that is busy",
                flood(vec![join(TOPIC), stall.clone()], large),
            )),
        ),
        unlimited(storm(
            "K-535",
            "small events for a channel that is busy",
            flood(vec![join(TOPIC), stall], event("3", "ask", &json!({}))),
        )),
        unlimited(storm(
            "K-536",
            "events that a channel answers",
            flood(vec![join(TOPIC)], event("3", "ask", &json!({}))),
        )),
    ]
}

pub(crate) fn connections() -> Vec<Storm> {
    let closed = || [upgrade(SOCKET, ""), frame(FIN | 8, b"")].concat();
    let lines: String = (0..95).map(|n| format!("X-{n}: {n}\r\n")).collect();
    let long = format!("X-A: {}\r\n", "a".repeat(60_000));
    let too_long = format!("X-A: {}\r\n", "a".repeat(1 << 20));
    let pipelined = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1000);
    let half = head(FIN | TEXT, LARGE as u64);
    let forged = upgrade("/token/websocket?vsn=2.0.0&token=SFMyNTY.g2gDYQduBgAA.AAAA", "");
    let nested = format!("/socket/websocket?{}", "a[b][c][d]=1&".repeat(900));
    let holds = |storm: Storm, holds| Storm { holds, ..storm };
    vec![
        storm("K-540", "connections without a byte", connects(vec![], End::Close)),
        storm("K-541", "connections that are reset without a byte", connects(vec![], End::Reset)),
        storm(
            "K-542",
            "handshakes whose connection is closed at once",
            connects(upgrade(SOCKET, ""), End::Close),
        ),
        storm(
            "K-543",
            "handshakes whose connection is reset at once",
            connects(upgrade(SOCKET, ""), End::Reset),
        ),
        storm("K-544", "sockets that are closed at once", connects(closed(), End::Answered)),
        storm(
            "K-545",
            "sockets that join and are reset",
            connects([upgrade(SOCKET, ""), join(TOPIC)].concat(), End::Reset),
        ),
        storm(
            "K-546",
            "handshakes of a foreign origin",
            connects(upgrade(SOCKET, "Origin: https://evil.test\r\n"), End::Answered),
        ),
        storm("K-547", "handshakes with forged tokens", connects(forged, End::Answered)),
        storm(
            "K-548",
            "handshakes with a hundred headers",
            connects(upgrade(SOCKET, &lines), End::Answered),
        ),
        storm(
            "K-549",
            "handshakes with a header of 60,000 bytes",
            connects(upgrade(SOCKET, &long), End::Answered),
        ),
        storm(
            "K-550",
            "handshakes with a header of a megabyte",
            connects(upgrade(SOCKET, &too_long), End::Answered),
        ),
        storm(
            "K-551",
            "handshakes with a thousand nested parameters",
            connects(upgrade(&nested, ""), End::Answered),
        ),
        storm("K-552", "a thousand requests at once", connects(pipelined, End::Answered)),
        storm("K-553", "six hundred silent connections", silent(300, None, vec![])),
        storm(
            "K-554",
            "six hundred half requests",
            silent(300, None, b"GET / HTTP/1.1\r\nHost: ".to_vec()),
        ),
        storm("K-555", "six hundred silent sockets", silent(300, Some(SOCKET), vec![])),
        holds(
            storm(
                "K-556",
                "two hundred sockets with half a frame",
                silent(100, Some(SOCKET), [half, vec![b'x'; 60_000]].concat()),
            ),
            200 * 128_000,
        ),
        storm("K-557", "handshakes of a byte a second", drips(500, upgrade(SOCKET, ""))),
        storm(
            "K-558",
            "frames of a byte a second",
            drips(500, [upgrade(SOCKET, ""), join(TOPIC), heartbeat("1").repeat(20)].concat()),
        ),
    ]
}

/// Sends a request for each of its steps, over one connection.
fn requests_of(request: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Attack {
    Box::new(move |address, signals: &Signals| {
        let token = session(address).map_err(io::Error::other)?;
        let mut client = Client::tcp(address)?;
        while signals.is_on() {
            client.request(&request(&token)).map_err(io::Error::other)?;
            signals.acted();
        }
        Ok(())
    })
}

fn post(token: &str, lines: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    let head = format!("POST {POLLED}&token={token} HTTP/1.1\r\nHost: localhost\r\n{lines}");
    format!("{head}Content-Length: {length}\r\n\r\n{body}").into()
}

pub(crate) fn polled() -> Vec<Storm> {
    const LINES: &str = "Content-Type: application/x-ndjson\r\n";
    let beat = json!([null, "1", "phoenix", "heartbeat", {}]).to_string();
    let beats = format!("{beat}\n").repeat(1000);
    let large = format!("{beat}{}", " ".repeat((1 << 20) - beat.len()));
    let open = format!("GET {POLLED} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let poll =
        |token: &str| format!("GET {POLLED}&token={token} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let cancelled: Attack = Box::new(move |address, signals| {
        let token = session(address).map_err(io::Error::other)?;
        for _ in 0..100 {
            Client::tcp(address)?.send(poll(&token).as_bytes())?;
            signals.acted();
        }
        Ok(())
    });
    let sessions: Attack = Box::new(move |address, signals| {
        let mut client = Client::tcp(address)?;
        while signals.is_on() {
            client.request(open.as_bytes()).map_err(io::Error::other)?;
            signals.acted();
        }
        Ok(())
    });
    vec![
        storm("K-560", "sessions that are never polled", sessions),
        storm(
            "K-561",
            "messages of a polling client",
            requests_of(move |token| post(token, "", &beat)),
        ),
        storm(
            "K-562",
            "a thousand messages in each request",
            requests_of(move |token| post(token, LINES, &beats)),
        ),
        storm("K-563", "bodies of a megabyte", requests_of(move |token| post(token, "", &large))),
        storm("K-564", "messages with forged tokens", requests_of(|_| post("forged", "", "[]"))),
        storm("K-565", "polls that are cancelled", cancelled),
    ]
}

/// The options of a mount with this policy and a small outbox.
macro_rules! policy {
    ($policy:expr) => {
        Options {
            mount: |mount: Mount<AnySocket>| {
                mount.frame_rate_limit(u32::MAX).max_outbox(64, 1 << 20).when_full($policy)
            },
            ..Options::default()
        }
    };
}

pub(crate) fn slow_readers() -> Vec<Storm> {
    let pushes = || event("2", "pushes", &json!({})).repeat(50);
    // Sixteen callbacks, each of which pushes 64 KiB.
    let large = |storm| turns(frame(FIN | TEXT, &padded()).repeat(2), storm);
    let of = |id, what, options, reads| {
        let attack = deaf(join(TOPIC), pushes(), reads);
        Storm { holds: HOSTILE * (INBOX + (3 << 20)), options, ..large(storm(id, what, attack)) }
    };
    const BLOCK: WhenFull = WhenFull::Block { timeout: Duration::from_millis(100) };
    let replies =
        |id, what, again: Vec<u8>| unlimited(storm(id, what, deaf(join(TOPIC), again, false)));
    vec![
        of(
            "K-570",
            "pushes to clients that never read: disconnect",
            policy!(WhenFull::Disconnect),
            false,
        ),
        of(
            "K-571",
            "pushes to clients that never read: drop the oldest",
            policy!(WhenFull::DropOldest),
            false,
        ),
        of(
            "K-572",
            "pushes to clients that never read: drop the newest",
            policy!(WhenFull::DropNewest),
            false,
        ),
        of(
            "K-573",
            "pushes to clients that never read: keep the latest",
            policy!(WhenFull::KeepLatest),
            false,
        ),
        of("K-574", "pushes to clients that never read: block", policy!(BLOCK), false),
        of(
            "K-575",
            "pushes to clients that read a byte now and then: disconnect",
            policy!(WhenFull::Disconnect),
            true,
        ),
        of(
            "K-576",
            "pushes to clients that read a byte now and then: drop the oldest",
            policy!(WhenFull::DropOldest),
            true,
        ),
        of(
            "K-577",
            "pushes to clients that read a byte now and then: drop the newest",
            policy!(WhenFull::DropNewest),
            true,
        ),
        of(
            "K-578",
            "pushes to clients that read a byte now and then: keep the latest",
            policy!(WhenFull::KeepLatest),
            true,
        ),
        of("K-579", "pushes to clients that read a byte now and then: block", policy!(BLOCK), true),
        replies("K-580", "replies to clients that never read", heartbeat("1").repeat(1000)),
    ]
}

/// Sends all inputs of a group again and again.
fn all_of(group: fn() -> Group) -> Attack {
    let cases: Vec<Case> = group().cases;
    let inputs = cases.into_iter().filter_map(|case| match case.act {
        Act::Frames { path, lines, joins, bytes } => {
            let first = if joins { join(TOPIC) } else { vec![] };
            Some([upgrade(path, lines), first, bytes].concat())
        }
        Act::Http(bytes) => Some(bytes),
        Act::Posted { .. } | Act::Steps(_) => None,
    });
    let inputs: Vec<_> = inputs.collect();
    Box::new(move |address, signals| {
        for bytes in &inputs {
            if !signals.is_on() {
                return Ok(());
            }
            let mut client = Client::tcp(address)?;
            client.stream.set_write_timeout(Some(Duration::from_millis(50)))?;
            // A server that has closed need not read the rest.
            let _ = client.send(bytes);
            signals.acted();
            client.finish();
            // The server has handled it when it closes, and not before: each client has one input
            // in progress.
            client.stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            let _ = client.rest();
        }
        Ok(())
    })
}

pub(crate) fn groups() -> Vec<Storm> {
    // The largest inputs of these groups have a megabyte.
    let large = |storm| turns(frame(FIN | TEXT, &padded()).repeat(2), storm);
    vec![
        large(storm("K-590", "all inputs of the group of frames", all_of(frames::group))),
        large(storm("K-591", "all inputs of the group of compression", all_of(deflate::group))),
        large(storm("K-592", "all inputs of the group of messages", all_of(messages::group))),
        storm("K-593", "all inputs of the group of requests", all_of(requests::group)),
        storm("K-594", "all inputs of the group of tokens", all_of(tokens::group)),
    ]
}

/// All sustained attacks, in the order of the document.
pub(crate) fn all() -> impl Iterator<Item = Storm> {
    [floods(), connections(), polled(), slow_readers(), groups()].into_iter().flatten()
}

#[test]
fn floods_do_not_delay_a_calm_client() {
    withstands(&floods());
}

#[test]
fn storms_of_connections_do_not_delay_a_calm_client() {
    withstands(&connections());
}

#[test]
fn polling_clients_do_not_delay_a_calm_client() {
    withstands(&polled());
}

#[test]
fn clients_that_do_not_read_do_not_delay_a_calm_client() {
    withstands(&slow_readers());
}

#[test]
fn repeated_inputs_do_not_delay_a_calm_client() {
    withstands(&groups());
}
