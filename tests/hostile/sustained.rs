//! The sustained attacks.

use std::{
    io,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use serde_json::json;

use crate::{
    case::{Act, Case, Group, POLLED, session},
    client::{
        CONTINUE, Client, FIN, OFFER, PING, RSV1, SOCKET, TEXT, TOPIC, beaten, deflated, event,
        frame, head, heartbeat, join, json_text, upgrade,
    },
    deflate, frames, messages, requests,
    server::{Kind, SMALL_OUTBOX},
    storms::{
        Attack, End, HOSTILE, Limit, Signals, Storm, connects, deaf, drips, flood, silent,
        unanswered_flood, withstands,
    },
    tokens,
};

/// The size of large messages.
const HALF: usize = 1 << 19;

/// The maximum size of a message.
const MESSAGE: usize = 1 << 20;

/// The limits of a client's inbox and outbox.
const INBOX: usize = 4 << 20;
const OUTBOX: usize = 4 << 20;

/// The memory of an outbox's queue itself: a pointer to each of twice 16,384 frames, and as much
/// again while it grows.
const QUEUE: usize = 2 * 2 * 16_384 * size_of::<usize>();

/// What both clients hold of messages of at most this size that wait for room in the inbox.
const fn full_inboxes(size: usize) -> usize {
    HOSTILE * (INBOX + 2 * (size + 256))
}

/// What both clients hold of replies that they do not read: twice the limit, because replies are
/// not dropped, the one that is being written, and the queue's own memory.
const fn full_outboxes(size: usize) -> usize {
    HOSTILE * (2 * OUTBOX + 2 * (size + 512) + QUEUE)
}

/// What both clients hold of messages of at most this size that are handled as they come: the one
/// that is being handled, and the next one, with what has been read behind it.
const fn passing(size: usize) -> usize {
    HOSTILE * 2 * (size + (16 << 10))
}

/// What both clients hold of small messages, 256 of which may wait behind joins.
const FEW: usize = HOSTILE << 18;

/// The limits of the calm client's response times. `docs/spec/hostile.md` has their reasons.
const IDLE: Limit = Limit::new("idle", 1, 20);
const LIGHT: Limit = Limit::new("light", 6, 30);
const SMALL: Limit = Limit::new("small", 12, 50);
const LARGE: Limit = Limit::new("large", 25, 90);
const WHOLE: Limit = Limit::new("whole", 6, 250);

fn storm(id: &'static str, what: &'static str, attack: Attack) -> Storm {
    Storm { id, what, holds: FEW, others: 0, server: Kind::Usual, limit: LIGHT, attack }
}

impl Storm {
    /// With another limit of the response times.
    fn within(self, limit: Limit) -> Self {
        Self { limit, ..self }
    }

    /// Without the limit of frames for each client, which is then not the protection.
    fn unlimited(self) -> Self {
        Self { server: Kind::Unlimited, ..self }
    }

    /// With this maximum of bytes in bounded buffers.
    fn holding(self, holds: usize) -> Self {
        Self { holds, ..self }
    }

    /// With this maximum of bytes of memory for other things.
    fn besides(self, others: usize) -> Self {
        Self { others, ..self }
    }
}

fn padded() -> Vec<u8> {
    json!([null, "1", "phoenix", "heartbeat", { "padding": "x".repeat(HALF) }]).to_string().into()
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
    // What each client may send at once, before it is slowed down.
    let burst = (HOSTILE * 20_000 * beaten("1").to_string().len()) as u64;
    let bomb = frame(FIN | RSV1 | TEXT, &deflated(&vec![b'['; 16 << 20]));
    let bomb = [upgrade(SOCKET, OFFER), bomb].concat();
    let leave = json_text(&json!(["1", "2", "room:storm", "phx_leave", {}]));
    let joins: Vec<_> = (0..10_000).flat_map(|n| join(&format!("room:{n}"))).collect();
    let stall = event("2", "stall", &json!({}));
    let large = event("3", "ask", &json!({ "padding": "x".repeat(HALF) }));
    let unknown = [join(TOPIC), event("2", "unheard_of", &json!({}))].concat();
    vec![
        storm(
            "K-520",
            "heartbeats without a pause",
            flood(none(), heartbeat("1")).after(burst).at_least(5_000),
        )
        .within(IDLE),
        storm(
            "K-521",
            "heartbeats without a pause, without a limit of frames",
            flood(none(), heartbeat("1")).at_least(300_000),
        )
        .within(SMALL)
        .unlimited(),
        storm(
            "K-522",
            "pings without a pause",
            flood(none(), frame(FIN | PING, b"")).at_least(10_000),
        )
        .within(SMALL)
        .unlimited(),
        storm(
            "K-523",
            "pings of 125 bytes without a pause",
            flood(none(), frame(FIN | PING, &[0; 125])).at_least(600_000),
        )
        .within(SMALL)
        .unlimited(),
        storm(
            "K-524",
            "empty fragments without a pause",
            unanswered_flood(vec![frame(TEXT, b"")], frame(CONTINUE, b"")).at_least(100_000),
        )
        .unlimited(),
        storm(
            "K-525",
            "heartbeats of half a megabyte",
            flood(none(), frame(FIN | TEXT, &padded())).at_least(3_200),
        )
        .holding(passing(HALF))
        .unlimited()
        .within(LARGE),
        storm(
            "K-526",
            "messages that inflate to half a megabyte",
            flood(none(), frame(FIN | RSV1 | TEXT, &deflated(&padded()))).at_least(3_200),
        )
        .holding(passing(HALF))
        .unlimited()
        .within(LARGE),
        storm(
            "K-527",
            "messages that inflate to nothing",
            flood(none(), frame(FIN | RSV1 | TEXT, &empty_blocks(4 << 10))).at_least(128),
        )
        .unlimited()
        .within(SMALL),
        storm(
            "K-528",
            "bombs that close the socket, and new sockets",
            connects(bomb, End::Answered).at_least(10),
        )
        .within(SMALL)
        .holding(passing(MESSAGE)),
        storm(
            "K-529",
            "joins and leaves",
            flood(none(), [join("room:storm"), leave].concat()).at_least(8_000),
        )
        .unlimited(),
        storm(
            "K-530",
            "joins of a topic that is joined",
            flood(none(), join(TOPIC)).at_least(8_000),
        )
        .unlimited(),
        storm(
            "K-531",
            "ten thousand joins of different topics",
            flood(none(), joins).at_least(25_000),
        )
        .besides(HOSTILE * 100 * (8 << 10))
        .unlimited(),
        storm(
            "K-532",
            "events before their join",
            flood(none(), event("2", "ask", &json!({}))).at_least(400_000),
        )
        .within(SMALL)
        .unlimited(),
        storm(
            "K-533",
            "events that crash the channel, and joins",
            flood(none(), unknown).at_least(8_000),
        )
        .unlimited(),
        storm(
            "K-534",
            "large events for a channel that is busy",
            flood(vec![join(TOPIC), stall.clone()], large).after(5_000).at_least(5_000),
        )
        .holding(full_inboxes(HALF))
        .unlimited()
        .within(LARGE),
        storm(
            "K-535",
            "small events for a channel that is busy",
            flood(vec![join(TOPIC), stall], event("3", "ask", &json!({})))
                .after(100_000)
                .at_least(200_000),
        )
        .within(SMALL)
        .holding(full_inboxes(1 << 10))
        .unlimited(),
        storm(
            "K-536",
            "events that a channel answers",
            flood(vec![join(TOPIC)], event("3", "ask", &json!({}))).at_least(100_000),
        )
        .holding(full_inboxes(1 << 10))
        .unlimited(),
        storm(
            "K-537",
            "events whose answers of 64 KiB are compressed",
            flood(vec![join(TOPIC)], event("3", "large", &json!({}))).at_least(1_000),
        )
        .holding(full_inboxes(1 << 10) + full_outboxes(1 << 16))
        .unlimited(),
    ]
}

pub(crate) fn connections() -> Vec<Storm> {
    let closed = || [upgrade(SOCKET, ""), frame(FIN | 8, b"")].concat();
    let lines: String = (0..95).map(|n| format!("X-{n}: {n}\r\n")).collect();
    let long = format!("X-A: {}\r\n", "a".repeat(60_000));
    let too_long = format!("X-A: {}\r\n", "a".repeat(1 << 20));
    let pipelined = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1000);
    let half = head(FIN | TEXT, HALF as u64);
    let forged = upgrade("/token/websocket?vsn=2.0.0&token=SFMyNTY.g2gDYQduBgAA.AAAA", "");
    let nested = format!("/socket/websocket?{}", "a[b][c][d]=1&".repeat(900));
    vec![
        storm("K-540", "connections without a byte", connects(vec![], End::Close).at_least(100)),
        storm(
            "K-541",
            "connections that are reset without a byte",
            connects(vec![], End::Reset).at_least(100),
        ),
        storm(
            "K-542",
            "handshakes whose connection is closed at once",
            connects(upgrade(SOCKET, ""), End::Close).at_least(50),
        ),
        storm(
            "K-543",
            "handshakes whose connection is reset at once",
            connects(upgrade(SOCKET, ""), End::Reset).at_least(50),
        ),
        storm(
            "K-544",
            "sockets that are closed at once",
            connects(closed(), End::Answered).at_least(20),
        ),
        storm(
            "K-545",
            "sockets that join and are reset",
            connects([upgrade(SOCKET, ""), join(TOPIC)].concat(), End::Reset).at_least(50),
        ),
        storm(
            "K-546",
            "handshakes of a foreign origin",
            connects(upgrade(SOCKET, "Origin: https://evil.test\r\n"), End::Answered).at_least(20),
        ),
        storm(
            "K-547",
            "handshakes with forged tokens",
            connects(forged, End::Answered).at_least(20),
        ),
        storm(
            "K-548",
            "handshakes with a hundred headers",
            connects(upgrade(SOCKET, &lines), End::Answered).at_least(20),
        ),
        storm(
            "K-549",
            "handshakes with a header of 60,000 bytes",
            connects(upgrade(SOCKET, &long), End::Answered).at_least(20),
        ),
        storm(
            "K-550",
            "handshakes with a header of a megabyte",
            connects(upgrade(SOCKET, &too_long), End::Answered).at_least(10),
        ),
        storm(
            "K-551",
            "handshakes with a thousand nested parameters",
            connects(upgrade(&nested, ""), End::Answered).at_least(20),
        ),
        storm(
            "K-552",
            "a thousand requests at once",
            connects(pipelined, End::Answered).at_least(1),
        ),
        storm("K-553", "six hundred silent connections", silent(300, None, vec![]))
            .besides(600 * (16 << 10))
            .within(IDLE),
        storm(
            "K-554",
            "six hundred half requests",
            silent(300, None, b"GET / HTTP/1.1\r\nHost: ".to_vec()),
        )
        .besides(600 * (16 << 10))
        .within(IDLE),
        storm("K-555", "six hundred silent sockets", silent(300, Some(SOCKET), vec![]))
            .besides(600 * (8 << 10))
            .within(IDLE),
        storm(
            "K-556",
            "two hundred sockets with half a frame",
            silent(100, Some(SOCKET), [half, vec![b'x'; 60_000]].concat()),
        )
        .holding(200 << 16)
        .within(IDLE),
        storm("K-557", "handshakes of a byte a second", drips(500, vec![], upgrade(SOCKET, "")))
            .besides(1000 * (24 << 10))
            .within(IDLE),
        storm(
            "K-558",
            "frames of a byte a second",
            drips(500, [upgrade(SOCKET, ""), join(TOPIC)].concat(), heartbeat("1")),
        )
        .besides(1000 * (16 << 10))
        .within(IDLE),
    ]
}

/// Sends a request for each of its steps, over one connection.
fn requests_of(request: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Attack {
    Attack::new("requests", move |address, signals: &Signals| {
        let token = session(address).map_err(io::Error::other)?;
        let mut client = Client::tcp(address)?;
        while signals.is_on() {
            client.request(&request(&token)).map_err(io::Error::other)?;
            signals.acted(1);
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
    let cancelled = Attack::new("requests", move |address, signals: &Signals| {
        let token = session(address).map_err(io::Error::other)?;
        for _ in 0..100 {
            Client::tcp(address)?.send(poll(&token).as_bytes())?;
            signals.acted(1);
        }
        Ok(())
    });
    let sessions = Attack::new("requests", move |address, signals: &Signals| {
        let mut client = Client::tcp(address)?;
        while signals.is_on() {
            client.request(open.as_bytes()).map_err(io::Error::other)?;
            signals.acted(1);
        }
        Ok(())
    });
    vec![
        storm("K-560", "sessions that are never polled", sessions.at_least(20))
            .besides(4000 * (4 << 10)),
        storm(
            "K-561",
            "messages of a polling client",
            requests_of(move |token| post(token, "", &beat)).at_least(20),
        )
        .holding(2 * FEW),
        storm(
            "K-562",
            "a thousand messages in each request",
            requests_of(move |token| post(token, LINES, &beats)).at_least(2),
        )
        .holding(full_outboxes(1 << 10) + FEW),
        storm(
            "K-563",
            "bodies of a megabyte",
            requests_of(move |token| post(token, "", &large)).at_least(10),
        )
        .holding(passing(MESSAGE))
        .within(LARGE),
        storm(
            "K-564",
            "messages with forged tokens",
            requests_of(|_| post("forged", "", "[]")).at_least(20),
        ),
        storm("K-565", "polls that are cancelled", cancelled.at_least(50)),
    ]
}

pub(crate) fn slow_readers() -> Vec<Storm> {
    // Fifty callbacks, each of which pushes 64 KiB. A push does not wait, and a broadcast that may does.
    let of = |id, what, server, reads| {
        let event_name = if server == Kind::Block { "waiting_pushes" } else { "pushes" };
        let pushes = event("2", event_name, &json!({})).repeat(50);
        let attack = deaf(join(TOPIC), pushes, reads).at_least(100_000);
        // Each push has 8 KiB.
        let outboxes = HOSTILE * (SMALL_OUTBOX + (9 << 10));
        // A client whose broadcasts wait is closed, and connects again while the socket before still
        // holds its inbox, until its channel has ended.
        let inboxes = full_inboxes(1 << 10) * if server == Kind::Block { 2 } else { 1 };
        Storm { server, ..storm(id, what, attack).holding(inboxes + outboxes) }
    };
    let replies = |id, what, again: Vec<u8>| {
        storm(id, what, deaf(join(TOPIC), again, false).at_least(300_000)).unlimited()
    };
    vec![
        of("K-570", "pushes to clients that never read: disconnect", Kind::Disconnect, false),
        of("K-571", "pushes to clients that never read: drop the oldest", Kind::DropOldest, false),
        of("K-572", "pushes to clients that never read: drop the newest", Kind::DropNewest, false),
        of("K-573", "pushes to clients that never read: keep the latest", Kind::KeepLatest, false),
        of("K-574", "broadcasts that wait for clients that never read: block", Kind::Block, false),
        of(
            "K-575",
            "pushes to clients that read a byte now and then: disconnect",
            Kind::Disconnect,
            true,
        ),
        of(
            "K-576",
            "pushes to clients that read a byte now and then: drop the oldest",
            Kind::DropOldest,
            true,
        ),
        of(
            "K-577",
            "pushes to clients that read a byte now and then: drop the newest",
            Kind::DropNewest,
            true,
        ),
        of(
            "K-578",
            "pushes to clients that read a byte now and then: keep the latest",
            Kind::KeepLatest,
            true,
        ),
        of(
            "K-579",
            "broadcasts that wait for clients that read a byte now and then: block",
            Kind::Block,
            true,
        ),
        replies("K-580", "replies to clients that never read", heartbeat("1").repeat(1000))
            .holding(full_outboxes(1 << 10)),
        replies(
            "K-581",
            "replies of 64 KiB to clients that never read",
            event("2", "large", &json!({})).repeat(100),
        )
        .holding(full_inboxes(1 << 10) + full_outboxes(1 << 16)),
        replies(
            "K-582",
            "pongs of 125 bytes to clients that never read",
            frame(FIN | PING, &[0; 125]).repeat(1000),
        )
        .holding(full_outboxes(125)),
    ]
}

/// Sends all inputs of a group again and again, and counts them.
fn all_of(group: fn() -> Group) -> Attack {
    let cases: Vec<Case> = group().cases;
    let inputs = cases.into_iter().filter_map(|case| match case.act {
        Act::Frames { path, lines, joins, bytes } => {
            let first = if joins { join(TOPIC) } else { vec![] };
            Some([upgrade(path, lines), first, bytes].concat())
        }
        Act::Http(bytes) => Some(bytes),
        Act::Posted { .. } | Act::Steps(_) | Act::Own(..) => None,
    });
    let inputs: Vec<_> = inputs.collect();
    let (count, next) = (inputs.len(), AtomicUsize::new(0));
    let attack = Attack::new("inputs", move |address, signals: &Signals| {
        // The hostile clients take turns, so all inputs come, however long that takes.
        let bytes = &inputs[next.fetch_add(1, Relaxed) % inputs.len()];
        let mut client = Client::tcp(address)?;
        client.stream.set_write_timeout(Some(Duration::from_millis(50)))?;
        // A server that has closed need not read the rest.
        let _ = client.send(bytes);
        client.finish();
        // The server has handled it when it closes, and not before: each client has one input in
        // progress.
        client.stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        client.rest().map_err(io::Error::other)?;
        signals.acted(1);
        Ok(())
    });
    attack.at_least(count as u64)
}

pub(crate) fn groups() -> Vec<Storm> {
    vec![
        storm("K-590", "all inputs of the group of frames", all_of(frames::group))
            .holding(passing(MESSAGE)),
        storm("K-591", "all inputs of the group of compression", all_of(deflate::group))
            .holding(passing(MESSAGE))
            .within(LARGE),
        storm("K-592", "all inputs of the group of messages", all_of(messages::group))
            .besides(16 * MESSAGE)
            .holding(passing(MESSAGE))
            .within(WHOLE),
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
