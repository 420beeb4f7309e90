//! Long-polling clients.

use std::{cell::Cell, net::SocketAddr, thread, time::Duration};

use pipeline::ws::mount::LongPoll;
use pipeline_test_support::PATIENCE;
use serde_json::{Value, json};

use crate::{
    arena::{Arena, Options, WINDOW, signer},
    case::{
        Act, Case,
        Expect::{As, Only},
        Group, POLLED, session,
    },
    client::{Client, TOPIC, beaten},
};

pub(crate) fn group() -> Group {
    Group {
        title: "Long polling",
        bounded: "a session holds an inbox and an outbox as a socket does, and ends when it is \
                  not polled for a window; its bodies count in the inbox as they arrive, and at \
                  most eight of them arrive at the same time.",
        cases: [tokens(), bodies(), sessions()].into_iter().flatten().collect(),
    }
}

fn case(
    id: &'static str,
    what: &'static str,
    expect: &'static str,
    act: fn(&Arena) -> Result<(), String>,
) -> Case {
    Case { id, what, act: Act::Steps(act), expect: As(expect) }
}

/// The answer to a request with this token and this body.
fn send(
    address: SocketAddr,
    method: &str,
    token: &str,
    lines: &str,
    body: &[u8],
) -> Result<Value, String> {
    let mut client = begin(address, method, token, lines, body)?;
    client.request(b"")
}

/// Sends a request.
fn begin(
    address: SocketAddr,
    method: &str,
    token: &str,
    lines: &str,
    body: &[u8],
) -> Result<Client, String> {
    let mut client = Client::tcp(address).map_err(|error| error.to_string())?;
    let length = body.len();
    let length = if lines.contains("Content-Length") || lines.contains("chunked") {
        String::new()
    } else {
        format!("Content-Length: {length}\r\n")
    };
    let head = format!(
        "{method} {POLLED}&token={token} HTTP/1.1\r\nHost: localhost\r\n{length}{lines}\r\n"
    );
    let _ = client.send(&[head.as_bytes(), body].concat());
    Ok(client)
}

fn post(arena: &Arena, token: &str, body: &[u8]) -> Result<Value, String> {
    send(arena.address, "POST", token, "", body)
}

fn poll(arena: &Arena, token: &str) -> Result<Value, String> {
    send(arena.address, "GET", token, "", b"")
}

/// A poll of a client with a small receive buffer, which reads nothing of its answer. The answer has
/// begun to arrive, so its messages are no longer in the session's outbox.
fn unread_poll(address: SocketAddr, token: &str) -> Result<socket2::Socket, String> {
    let poll = || -> std::io::Result<_> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.set_recv_buffer_size(4096)?;
        socket.connect(&address.into())?;
        let request = format!("GET {POLLED}&token={token} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        socket.send(request.as_bytes())?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.peek(&mut [std::mem::MaybeUninit::uninit()])?;
        Ok(socket)
    };
    poll().map_err(|error| error.to_string())
}

/// Expects this status in the body of an answer, or as its own.
fn has_status(answer: &Value, status: u16) -> Result<(), String> {
    let seen = if answer.is_object() { &answer["status"] } else { answer };
    if *seen == status { Ok(()) } else { Err(format!("answered: {answer}")) }
}

const HEARTBEAT: &[u8] = br#"[null,"1","phoenix","heartbeat",{}]"#;

const LINES: &str = "Content-Type: application/x-ndjson\r\n";

const GONE: &str = "`410` in the body";
const NEW: &str = "`410` in the body, with the token of a new session";

/// A poll with this token opens another session.
fn is_new(arena: &Arena, token: &str) -> Result<(), String> {
    let answer = poll(arena, token)?;
    has_status(&answer, 410)?;
    if answer["token"].is_string() && answer["token"] != token {
        Ok(())
    } else {
        Err(answer.to_string())
    }
}

fn tokens() -> Vec<Case> {
    vec![
        case("K-480", "a poll with a token that is no token", NEW, |arena| is_new(arena, "forged")),
        case("K-481", "a poll with an empty token", NEW, |arena| is_new(arena, "")),
        case("K-482", "a poll with a token of another key", NEW, |arena| {
            is_new(arena, &signer().sign(&1, std::time::SystemTime::now()).unwrap())
        }),
        case("K-483", "a poll with a token of another server", NEW, |arena| {
            let other = Arena::start(1);
            is_new(arena, &session(other.address)?)
        }),
        case("K-484", "a poll with a token whose last character is changed", NEW, |arena| {
            let token = session(arena.address)?;
            is_new(
                arena,
                &format!(
                    "{}{}",
                    &token[..token.len() - 1],
                    if token.ends_with('A') { 'Q' } else { 'A' }
                ),
            )
        }),
        case("K-485", "a poll with half a token", NEW, |arena| {
            let token = session(arena.address)?;
            is_new(arena, &token[..token.len() / 2])
        }),
        case("K-486", "a message with a token that is no token", GONE, |arena| {
            has_status(&post(arena, "forged", HEARTBEAT)?, 410)
        }),
        case("K-487", "a message without a token", GONE, |arena| {
            has_status(&post(arena, "", HEARTBEAT)?, 410)
        }),
        case("K-488", "a megabyte with a token that is no token", GONE, |arena| {
            has_status(&post(arena, "forged", &vec![b'x'; 1 << 20])?, 410)
        }),
        case("K-489", "a message with a token of 60,000 bytes", GONE, |arena| {
            has_status(&post(arena, &"A".repeat(60_000), HEARTBEAT)?, 410)
        }),
    ]
}

fn bodies() -> Vec<Case> {
    let posted = |id, what, lines: &str, body| Case {
        id,
        what,
        act: Act::Posted { lines: lines.to_owned(), body },
        expect: Only(400),
    };
    vec![
        case("K-490", "a body of the maximum size", "`200` in the body", |arena| {
            let body = [HEARTBEAT, &vec![b' '; (1 << 20) - HEARTBEAT.len()]].concat();
            has_status(&post(arena, &session(arena.address)?, &body)?, 200)
        }),
        case("K-491", "a body one byte over the maximum", "HTTP 400", |arena| {
            has_status(&post(arena, &session(arena.address)?, &vec![b' '; (1 << 20) + 1])?, 400)
        }),
        case(
            "K-492",
            "a body of which a gigabyte is announced and ten bytes are sent",
            "`408` in the body after a window",
            |arena| {
                let token = session(arena.address)?;
                has_status(
                    &send(
                        arena.address,
                        "POST",
                        &token,
                        "Content-Length: 1073741824\r\n",
                        b"[null,\"1\",",
                    )?,
                    408,
                )
            },
        ),
        case("K-493", "chunks without an end", "HTTP 400 at the maximum", |arena| {
            let token = session(arena.address)?;
            let chunk = [&b"10000\r\n"[..], &[b' '; 1 << 16], b"\r\n"].concat();
            let body = chunk.repeat(17);
            has_status(
                &send(arena.address, "POST", &token, "Transfer-Encoding: chunked\r\n", &body)?,
                400,
            )
        }),
        posted(
            "K-494",
            "a chunk with an extension of 20,000 bytes",
            "Transfer-Encoding: chunked\r\n",
            format!("1;a={}\r\nx\r\n0\r\n\r\n", "b".repeat(20_000)),
        ),
        case(
            "K-495",
            "a body that is no message",
            "`200` or `408` in the body, then `410`: the session has ended",
            |arena| ends_the_session(arena, "", b"hello"),
        ),
        case(
            "K-496",
            "a body that is not UTF-8",
            "`200` or `408` in the body, then `410`: the session has ended",
            |arena| ends_the_session(arena, "", b"\"\xff\""),
        ),
        case(
            "K-497",
            "a line that is no message",
            "`200` or `408` in the body, then `410`: the session has ended",
            |arena| ends_the_session(arena, LINES, b"[1,2]\n"),
        ),
        case("K-498", "a line that is neither text nor base64", "`400` in the body", |arena| {
            let token = session(arena.address)?;
            has_status(&send(arena.address, "POST", &token, LINES, b"???\n")?, 400)
        }),
        case("K-499", "a million empty lines", "`200` in the body", |arena| {
            let token = session(arena.address)?;
            has_status(&send(arena.address, "POST", &token, LINES, &vec![b'\n'; 1_000_000])?, 200)
        }),
        case(
            "K-500",
            "a line of brackets half a million deep",
            "`200` or `408` in the body, then `410`: the session has ended",
            |arena| ends_the_session(arena, LINES, &vec![b'['; 500_000]),
        ),
        case("K-501", "the method PUT", "HTTP 400", |arena| {
            has_status(&send(arena.address, "PUT", &session(arena.address)?, "", HEARTBEAT)?, 400)
        }),
        case("K-502", "the method DELETE", "HTTP 400", |arena| {
            has_status(&send(arena.address, "DELETE", &session(arena.address)?, "", b"")?, 400)
        }),
        case("K-503", "a foreign origin", "`403` in the body", |arena| {
            has_status(&send(arena.address, "GET", "", "Origin: https://evil.test\r\n", b"")?, 403)
        }),
        case("K-504", "a poll with a body", "`204` in the body after a window", |arena| {
            has_status(&send(arena.address, "GET", &session(arena.address)?, "", HEARTBEAT)?, 204)
        }),
    ]
}

/// The next poll after this body finds no session.
fn ends_the_session(arena: &Arena, lines: &str, body: &[u8]) -> Result<(), String> {
    let token = session(arena.address)?;
    let answer = send(arena.address, "POST", &token, lines, body)?;
    has_status(&answer, 200).or_else(|_| has_status(&answer, 408))?;
    let begun = tokio::time::Instant::now();
    loop {
        match has_status(&poll(arena, &token)?, 410) {
            Err(error) if begun.elapsed() > Duration::from_secs(10) => return Err(error),
            Err(_) => {}
            Ok(()) => return Ok(()),
        }
    }
}

fn sessions() -> Vec<Case> {
    vec![
        case("K-505", "nine requests at the same time", "HTTP 429 to the ninth", |arena| {
            let token = session(arena.address)?;
            let half = vec![b'['; 60_000];
            let half = || begin(arena.address, "POST", &token, "Content-Length: 100000\r\n", &half);
            let mut begun = Vec::new();
            for _ in 0..8 {
                begun.push(half()?);
            }
            // Each of them counts with about 114,000 bytes, its announced length included.
            arena.eventually("eight bodies are being read", |arena| arena.held() > 800_000)?;
            has_status(&post(arena, &token, HEARTBEAT)?, 429)?;
            for client in &mut begun {
                has_status(&client.request(b"")?, 408)?;
            }
            Ok(())
        }),
        case(
            "K-506",
            "a hundred polls at the same time",
            "`204` in the body of each after a window",
            |arena| {
                let token = session(arena.address)?;
                let mut polls = Vec::new();
                for _ in 0..100 {
                    polls.push(begin(arena.address, "GET", &token, "", b"")?);
                }
                for client in &mut polls {
                    has_status(&client.request(b"")?, 204)?;
                }
                Ok(())
            },
        ),
        case(
            "K-507",
            "a poll that is cancelled a hundred times",
            "the session stays, and once a poll has waited in vain, each of ten messages is answered",
            |arena| {
                let token = session(arena.address)?;
                for _ in 0..100 {
                    drop(begin(arena.address, "GET", &token, "", b"")?);
                }
                // A message in the answer to a client that has just gone would be lost. When this poll
                // comes back after a window, the server has noticed that all of them have.
                has_status(&poll(arena, &token)?, 204)?;
                for n in 0..10 {
                    let beat = json!([null, n.to_string(), "phoenix", "heartbeat", {}]);
                    has_status(&post(arena, &token, beat.to_string().as_bytes())?, 200)?;
                    let answer = poll(arena, &token)?;
                    has_status(&answer, 200)?;
                    let message = answer["messages"][0].as_str().unwrap_or_default();
                    let message: Value = serde_json::from_str(message).unwrap_or_default();
                    if message != beaten(&n.to_string()) {
                        return Err(format!("message {n} was answered: {answer}"));
                    }
                }
                Ok(())
            },
        ),
        case(
            "K-508",
            "a session that is never polled",
            "the session ends after a window",
            |arena| {
                arena.eventually("earlier sessions stay", Arena::has_only_the_calm)?;
                session(arena.address)?;
                arena.eventually("the session stays", Arena::has_only_the_calm)
            },
        ),
        case(
            "K-509",
            "a thousand sessions that are never polled",
            "all sessions end after a window",
            |arena| {
                arena.eventually("earlier sessions stay", Arena::has_only_the_calm)?;
                for _ in 0..1000 {
                    session(arena.address)?;
                }
                arena.eventually("sessions stay", Arena::has_only_the_calm)
            },
        ),
        case(
            "K-510",
            "large messages that are never fetched",
            "at most twice the outbox is held; the session ends, and its outbox is free",
            |arena| {
                arena.eventually("earlier sessions stay", Arena::has_only_the_calm)?;
                let token = session(arena.address)?;
                let join = json!(["1", "1", TOPIC, "phx_join", {}]).to_string();
                has_status(&post(arena, &token, join.as_bytes())?, 200)?;
                let ask = json!(["1", "2", TOPIC, "large", {}]).to_string() + "\n";
                let asks = ask.repeat(500);
                let most = Cell::new(0);
                let answer = thread::scope(|scope| {
                    let sent = || send(arena.address, "POST", &token, LINES, asks.as_bytes());
                    let sending = scope.spawn(sent);
                    let ended = arena.eventually("the session stays", |arena| {
                        most.set(most.get().max(arena.endpoint.snapshot().outbox_bytes));
                        sending.is_finished() && Arena::has_only_the_calm(arena)
                    });
                    ended.and_then(|()| sending.join().unwrap())
                })?;
                // The session may end while its messages are taken.
                if has_status(&answer, 200).is_err() {
                    has_status(&answer, 408)?;
                }
                if most.get() > 9 << 20 {
                    return Err(format!("{} bytes were in the outbox", most.get()));
                }
                arena.is_at_rest()?;
                let gone = poll(arena, &token)?;
                if gone["status"] == 410 { Ok(()) } else { Err(format!("answered: {gone}")) }
            },
        ),
        Case {
            id: "K-511",
            what: "a session above the maximum of sessions",
            act: Act::Own(
                || {
                    let mount = |mount: pipeline::ws::Mount<_>| {
                        mount.longpoll(LongPoll::new().window(WINDOW).max_sessions(2))
                    };
                    Options { mount, ..Options::default() }
                },
                |arena| {
                    arena.eventually("earlier sessions stay", Arena::has_only_the_calm)?;
                    for _ in 0..2 {
                        session(arena.address)?;
                    }
                    has_status(&send(arena.address, "GET", "", "", b"")?, 503)
                },
            ),
            expect: As("HTTP 503"),
        },
        case("K-512", "a poll of a session that has ended", NEW, |arena| {
            arena.eventually("earlier sessions stay", Arena::has_only_the_calm)?;
            let token = session(arena.address)?;
            arena.eventually("the session stays", Arena::has_only_the_calm)?;
            is_new(arena, &token)
        }),
        Case {
            id: "K-513",
            what: "polls that do not read their answers of 3.5 MiB",
            act: Act::Own(
                // Long enough for a busy machine to fill the outbox between two polls.
                || {
                    let mount = |mount: pipeline::ws::Mount<_>| {
                        mount.longpoll(LongPoll::new().window(5 * WINDOW))
                    };
                    Options { mount, ..Options::default() }
                },
                |arena| {
                    let token = session(arena.address)?;
                    let join = json!(["1", "1", TOPIC, "phx_join", {}]).to_string();
                    has_status(&post(arena, &token, join.as_bytes())?, 200)?;
                    has_status(&poll(arena, &token)?, 200)?;
                    // More than the system takes for a connection over the loopback interface.
                    const ASKS: usize = 7;
                    let padding = "x".repeat(1 << 19);
                    let ask = json!(["1", "2", TOPIC, "ask", { "padding": padding }]).to_string();
                    let fill = |arena: &Arena| {
                        (0..ASKS).try_for_each(|_| {
                            has_status(&post(arena, &token, ask.as_bytes())?, 200)
                        })
                    };
                    let mut unread = Vec::new();
                    for _ in 0..2 {
                        fill(arena)?;
                        unread.push(unread_poll(arena.address, &token)?);
                    }
                    fill(arena)?;
                    arena.eventually("the answers are not counted", |arena| {
                        arena.held() >= 3 * ASKS * padding.len()
                    })?;
                    has_status(&poll(arena, &token)?, 204)?;
                    unread.pop();
                    let next = poll(arena, &token)?;
                    has_status(&next, 200)?;
                    match &next["messages"] {
                        Value::Array(messages) if messages.len() == ASKS => Ok(()),
                        _ => {
                            Err("messages are lost that waited for the earlier answers".to_owned())
                        }
                    }
                },
            ),
            expect: As(
                "two answers count as held, and the next poll gets nothing until one of them has ended",
            ),
        },
    ]
}

#[test]
fn polling_clients_are_refused_or_answered() {
    group().run();
}
