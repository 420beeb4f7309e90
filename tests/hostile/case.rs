//! Cases: what a hostile client sends, and what the server answers.

use std::{cell::Cell, fmt, net::SocketAddr, sync::LazyLock, time::Duration};

use parking_lot::RwLock;
use pipeline_test_support::PATIENCE;
use serde_json::{Value, json, value::RawValue};
use tokio::time::Instant;

use crate::{
    arena::{Arena, Calm, Options},
    client::{
        self, CLOSE, Client, FIN, Frame, OFFER, PONG, SOCKET, TOPIC, beaten, heartbeat, json_text,
    },
};

/// Sustained attacks are measured next to nothing else.
pub(crate) static ALONE: RwLock<()> = RwLock::new(());

/// Cases of the same kind.
pub(crate) struct Group {
    pub(crate) title: &'static str,
    /// The memory that is bounded in all of them, and by what.
    pub(crate) bounded: &'static str,
    pub(crate) cases: Vec<Case>,
}

/// One case of the table.
pub(crate) struct Case {
    pub(crate) id: &'static str,
    pub(crate) what: &'static str,
    pub(crate) act: Act,
    pub(crate) expect: Expect,
}

/// The actions of a hostile client.
pub(crate) enum Act {
    /// Connects a WebSocket at this path with these header lines, joins the topic of hostile
    /// clients or not, and sends these bytes.
    Frames { path: &'static str, lines: &'static str, joins: bool, bytes: Vec<u8> },
    /// Sends these bytes over TCP.
    Http(Vec<u8>),
    /// Opens a long-polling session, and sends it a request with these header lines and this body,
    /// with another request behind it.
    Posted { lines: String, body: String },
    /// Takes several steps, and compares the answers itself.
    Steps(fn(&Arena) -> Result<(), String>),
    /// The same with a server of its own, which has these options. The calm client is that server's.
    Own(fn() -> Options, fn(&Arena) -> Result<(), String>),
}

/// The answer.
pub(crate) enum Expect {
    /// The socket is closed with this code, and the server ends its connection.
    Close(u16),
    /// These answers to the frames before the violation, then this close.
    ThenClose(Vec<Answer>, u16),
    /// These messages, and the socket stays open.
    Messages(Vec<Value>),
    /// A reply with the status `ok`, and the socket stays open.
    Ok,
    /// A pong with this payload, and the socket stays open.
    Pong(&'static [u8]),
    /// Nothing, and the socket stays open.
    Ignored,
    /// The channel crashes, and the socket stays open.
    Crash,
    /// An HTTP answer with this status.
    Status(u16),
    /// This status, and nothing else until the end of the connection: what follows a request with
    /// an ambiguous length is no request.
    Only(u16),
    /// The end of the connection, without an answer.
    End,
    /// What the steps compare.
    As(&'static str),
}

/// An answer to a frame before a violation.
pub(crate) enum Answer {
    Message(Value),
    /// This message, or nothing.
    Perhaps(Value),
    Pong(&'static [u8]),
}

/// The path of long-polling clients.
pub(crate) const POLLED: &str = "/socket/longpoll?vsn=2.0.0";

/// The token of a new long-polling session.
pub(crate) fn session(address: SocketAddr) -> Result<String, String> {
    let mut client = Client::tcp(address).map_err(|error| error.to_string())?;
    let request = format!("GET {POLLED} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let answer = client.request(request.as_bytes())?;
    let token = answer["token"].as_str();
    token.map(str::to_owned).ok_or_else(|| format!("no token: {answer}"))
}

/// A case over a WebSocket without compression.
pub(crate) fn ws(id: &'static str, what: &'static str, bytes: Vec<u8>, expect: Expect) -> Case {
    at(SOCKET, id, what, bytes, expect)
}

/// A case at another path.
pub(crate) fn at(
    path: &'static str,
    id: &'static str,
    what: &'static str,
    bytes: Vec<u8>,
    expect: Expect,
) -> Case {
    Case { id, what, act: Act::Frames { path, lines: "", joins: false, bytes }, expect }
}

/// A case over a WebSocket whose client has joined a topic.
pub(crate) fn joined(id: &'static str, what: &'static str, bytes: Vec<u8>, expect: Expect) -> Case {
    Case { id, what, act: Act::Frames { path: SOCKET, lines: "", joins: true, bytes }, expect }
}

/// A case over a WebSocket with compression.
pub(crate) fn compressed(
    id: &'static str,
    what: &'static str,
    bytes: Vec<u8>,
    expect: Expect,
) -> Case {
    Case { id, what, act: Act::Frames { path: SOCKET, lines: OFFER, joins: false, bytes }, expect }
}

impl Expect {
    /// The reply `error` with this reason, without a join reference.
    pub(crate) fn error(reference: &Value, topic: &Value, reason: &str) -> Self {
        let response = json!({ "status": "error", "response": { "reason": reason } });
        Self::Messages(vec![json!([null, reference, topic, "phx_reply", response])])
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Close(code) => write!(f, "close {code}"),
            Self::ThenClose(_, code) => {
                write!(f, "answers to the frames before, then close {code}")
            }
            Self::Messages(messages) => {
                let answer = |message: &Value| match (&message[3], &message[4]["status"]) {
                    (event, status) if event == "phx_reply" => match &message[4]["response"] {
                        response if response["reason"].is_string() => {
                            format!("reply {status} with reason {}", response["reason"])
                        }
                        _ => format!("reply {status}"),
                    },
                    (event, _) => format!("{event}"),
                };
                let answers: Vec<_> = messages.iter().map(answer).collect();
                f.write_str(&answers.join(", "))
            }
            Self::Ok => f.write_str("answered"),
            Self::Pong(payload) => write!(f, "pong of {} bytes", payload.len()),
            Self::Ignored => f.write_str("nothing; the socket stays open"),
            Self::Crash => f.write_str("`phx_error`; the socket stays open"),
            Self::Status(status) => write!(f, "HTTP {status}"),
            Self::Only(status) => write!(f, "HTTP {status}, and no other answer"),
            Self::End => f.write_str("the connection ends"),
            Self::As(text) => f.write_str(text),
        }
    }
}

impl Case {
    /// Acts, and compares the answer.
    pub(crate) fn run(&self, arena: &Arena) -> Result<(), String> {
        match &self.act {
            Act::Steps(steps) | Act::Own(_, steps) => steps(arena),
            Act::Posted { lines, body } => {
                let path = format!("{POLLED}&token={}", session(arena.address)?);
                let request = format!(
                    "POST {path} HTTP/1.1\r\nHost: a\r\n{lines}\r\n{body}\
                     GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
                );
                self.expect.of_http(arena.address, request.as_bytes())
            }
            Act::Http(bytes) => self.expect.of_http(arena.address, bytes),
            Act::Frames { path, lines, joins, bytes } => {
                let client = Client::open(arena.address, path, lines);
                let mut client = client.map_err(|error| error.to_string())?;
                if *joins {
                    client.join()?;
                }
                // A server that has closed need not read the rest.
                let _ = client.send(bytes);
                self.expect.of_socket(&mut client)
            }
        }
    }
}

impl Expect {
    fn of_http(&self, address: SocketAddr, bytes: &[u8]) -> Result<(), String> {
        let mut client = Client::tcp(address).map_err(|error| error.to_string())?;
        let _ = client.send(bytes);
        match self {
            Self::Status(expected) => {
                client.read_head().map_err(|error| format!("{error} instead of an answer"))?;
                let status = client.status();
                if status == *expected { Ok(()) } else { Err(format!("answered: {}", client.head)) }
            }
            Self::Only(expected) => {
                client.finish();
                let rest = client.rest()?;
                let rest = String::from_utf8_lossy(&rest);
                let is_only = rest.matches("HTTP/1.1 ").count() == 1;
                if is_only && rest.starts_with(&format!("HTTP/1.1 {expected} ")) {
                    Ok(())
                } else {
                    Err(format!("answered: {rest}"))
                }
            }
            Self::End => {
                client.finish();
                let rest = client.rest()?;
                let rest = String::from_utf8_lossy(&rest);
                if rest.is_empty() { Ok(()) } else { Err(format!("answered: {rest}")) }
            }
            other => Err(format!("{other} is no answer to a request")),
        }
    }

    /// Compares it with what comes over a WebSocket.
    pub(crate) fn of_socket(&self, client: &mut Client) -> Result<(), String> {
        let mut next = || client.next().map_err(|error| format!("{error} instead of {self}"));
        match self {
            Self::Close(expected) | Self::ThenClose(_, expected) => {
                let answers =
                    if let Self::ThenClose(answers, _) = self { &answers[..] } else { &[] };
                let mut frame = next()?;
                for expected in answers {
                    match expected.is(&frame) {
                        Ok(()) => frame = next()?,
                        Err(_) if matches!(expected, Answer::Perhaps(_)) => {}
                        Err(error) => return Err(error),
                    }
                }
                let code = frame.payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                if frame.first != FIN | CLOSE || code != Some(*expected) {
                    return Err(format!("{frame} came"));
                }
                // After an invalid frame or the client's own close, the server waits for nothing. After
                // other closes it waits for that of the client.
                if [1008, 1011].contains(expected) {
                    let _ = client.send(&client::frame(FIN | CLOSE, &expected.to_be_bytes()));
                }
                return client.has_ended().map_err(|error| format!("{frame}, and {error}"));
            }
            Self::Messages(messages) => {
                for expected in messages {
                    is_message(&next()?, expected)?;
                }
            }
            Self::Ok => {
                let frame = next()?;
                // It may hold numbers and depths that this client cannot parse.
                if !String::from_utf8_lossy(&frame.payload).contains(r#""status":"ok""#) {
                    return Err(format!("{frame} came"));
                }
            }
            Self::Pong(payload) => {
                Answer::Pong(payload).is(&next()?)?;
            }
            Self::Crash => {
                let message = next()?.message()?;
                if message[3] != "phx_error" {
                    return Err(format!("{message} came"));
                }
            }
            Self::Ignored => {}
            other => return Err(format!("{other} is no answer to frames")),
        }
        let last = client.ask(&heartbeat("last"))?;
        if last != beaten("last") {
            return Err(format!("{last} came in addition"));
        }
        // A channel answers in order, so its answer to the input would come before this one.
        let asked = client.ask(&json_text(&json!([null, "asked", TOPIC, "ask", {}])))?;
        let is_answer = asked[1] == "asked" && asked[3] == "phx_reply";
        if is_answer { Ok(()) } else { Err(format!("{asked} came in addition, late")) }
    }
}

impl Answer {
    /// Compares it with a frame.
    fn is(&self, frame: &Frame) -> Result<(), String> {
        match self {
            Self::Message(expected) | Self::Perhaps(expected) => is_message(frame, expected),
            Self::Pong(payload) if frame.first == FIN | PONG && frame.payload == *payload => Ok(()),
            Self::Pong(_) => Err(format!("{frame} came")),
        }
    }
}

fn is_message(frame: &Frame, expected: &Value) -> Result<(), String> {
    let message = frame.message()?;
    if message == *expected { Ok(()) } else { Err(format!("{message} came instead of {expected}")) }
}

/// How often the calm client is asked during a case, which is repeated meanwhile, and without it.
const QUESTIONS: usize = 30;

/// How often a case is measured at most: another program on the machine may disturb one measurement,
/// and does not disturb all of them.
const ROUNDS: usize = 6;

/// What the calm client's median and its 99th percentile may take in addition to the factors. Other
/// groups run at the same time, so six threads may be ready on two cores, and the system gives each a
/// slice of three milliseconds.
const NOISE: [Duration; 2] = [Duration::from_millis(6), Duration::from_millis(30)];

/// How many turns of the case the median and the 99th percentile may take in addition: a question waits
/// while the server handles an input that is whole, or a step of it, and the case is repeated. A turn
/// is the shortest time of the whole case, and no more than [`largest`].
const TURNS: [u32; 2] = [1, 3];

/// A message of the maximum size, masked.
static LARGEST: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let keys: Vec<_> = (0..80_000).map(|n| format!("\"{n:06}\":{n}")).collect();
    client::masked(format!("{{{}}}", keys.join(",")).as_bytes())
});

/// The time in which this build unmasks and parses it now.
fn largest() -> Duration {
    let begun = Instant::now();
    let parsed = serde_json::from_slice::<&RawValue>(&client::masked(&LARGEST)).is_ok();
    assert!(parsed, "it is JSON");
    begun.elapsed()
}

impl Case {
    /// Acts next to a calm client, whose median response time may be twice, and whose 99th percentile
    /// may be five times, its own without the case. Then the server's memory is free again.
    fn is_passed(&self, arena: &Arena, calm: &Calm) -> Result<(), String> {
        let mut seen = Vec::new();
        for _ in 0..ROUNDS {
            let control = calm.times_during(QUESTIONS, || Ok(()))?;
            let shortest = Cell::new(PATIENCE);
            let attacked = calm.times_during(QUESTIONS, || {
                let begun = Instant::now();
                self.run(arena)
                    .map_err(|seen| format!("expected: {}; seen: {seen}", self.expect))?;
                shortest.set(shortest.get().min(begun.elapsed()));
                Ok(())
            })?;
            arena.is_at_rest()?;
            let is_fast = |turn: Duration| {
                attacked.median <= control.median * 2 + turn * TURNS[0] + NOISE[0]
                    && attacked.p99 <= control.p99 * 5 + turn * TURNS[1] + NOISE[1]
            };
            let turn = match is_fast(Duration::ZERO) {
                true => Duration::ZERO,
                false => largest().min(shortest.get()),
            };
            seen.push(format!("{attacked}, and {control} without, with turns of {turn:?}"));
            if is_fast(turn) {
                if std::env::var_os("HOSTILE_TIMES").is_some() {
                    println!("{}: {}", self.id, seen.join("; "));
                }
                return Ok(());
            }
        }
        Err(format!("the calm client's median and p99: {}", seen.join("; ")))
    }
}

impl Group {
    /// Runs all cases, with the server on one worker thread and on two.
    pub(crate) fn run(&self) {
        let only = std::env::var("HOSTILE_ONLY").ok();
        let is_run = |case: &&Case| only.as_ref().is_none_or(|only| only == case.id);
        let _together = ALONE.read();
        let mut failed = Vec::new();
        for workers in [1, 2] {
            let (own, shared) = self
                .cases
                .iter()
                .filter(is_run)
                .partition::<Vec<_>, _>(|case| matches!(case.act, Act::Own(..)));
            let mut run = |options: &Options, cases: &[&Case]| {
                let arena = Arena::start_with(workers, options);
                let calm = Calm::start(&arena);
                for case in cases {
                    if let Err(error) = case.is_passed(&arena, &calm) {
                        let Case { id, what, .. } = case;
                        failed.push(format!("{id} ({what}), {workers} workers: {error}"));
                    }
                }
                if let Err(error) = arena.eventually("sockets stay open", Arena::has_only_the_calm)
                {
                    failed.push(format!("{workers} workers: {error}"));
                }
            };
            run(&Options::default(), &shared);
            for case in own {
                let Act::Own(options, _) = &case.act else { continue };
                run(&options(), &[case]);
            }
        }
        assert!(failed.is_empty(), "{}", failed.join("\n"));
    }
}
