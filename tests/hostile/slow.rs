//! Clients that are slow, or say nothing.

use std::{io::Write, net::SocketAddr, thread, time::Duration};

use pipeline::serve::Serve;
use tokio::time::Instant;

use crate::{
    arena::{Arena, Options, pause},
    case::{Act, Case, Expect::As},
    client::{Client, SOCKET, upgrade},
};

/// The timeout of the attacked server. Another one waits for four times as long.
const SHORT: Duration = Duration::from_millis(150);

/// A complete request.
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// The timeout that ends the connection. The others are far longer.
#[derive(Clone, Copy)]
enum Timeout {
    Heads,
    Idle,
}

/// A server with this timeout.
fn impatient(serve: fn(Serve) -> Serve) -> Options {
    Options { serve, ..Options::default() }
}

impl Timeout {
    /// The options of the server that is attacked.
    fn short(self) -> fn() -> Options {
        match self {
            Self::Heads => || impatient(|it| it.header_timeout(SHORT)),
            Self::Idle => || impatient(|it| it.keep_alive_timeout(SHORT)),
        }
    }

    /// The options of the server that waits for four times as long.
    fn long(self) -> Options {
        match self {
            Self::Heads => impatient(|it| it.header_timeout(SHORT * 4)),
            Self::Idle => impatient(|it| it.keep_alive_timeout(SHORT * 4)),
        }
    }
}

/// A connection to the attacked server is ended after the timeout, and later if that is longer: the
/// same connection to another server is compared.
fn are_ended(
    attacked: &Arena,
    timeout: Timeout,
    connection: impl Fn(SocketAddr) -> Result<(), String> + Sync,
) -> Result<(), String> {
    let patient = Arena::start_with(1, &timeout.long());
    let times = thread::scope(|scope| {
        let ended = [attacked, &patient].map(|arena| {
            let connection = &connection;
            scope.spawn(move || {
                let begun = Instant::now();
                connection(arena.address).map(|()| begun.elapsed())
            })
        });
        ended.map(|ended| ended.join().unwrap())
    });
    let [short, long] = times;
    let (short, long) = (short?, long?);
    if short >= SHORT && long >= SHORT * 4 && short < long {
        return Ok(());
    }
    Err(format!(
        "the connections ended after {short:?}, of {SHORT:?}, and {long:?}, of four times that"
    ))
}

/// A silent client is disconnected after these bytes.
fn is_cut_off(arena: &Arena, timeout: Timeout, bytes: &[u8], expected: &str) -> Result<(), String> {
    are_ended(arena, timeout, |address| {
        let mut client = Client::tcp(address).map_err(|error| error.to_string())?;
        client.send(bytes).map_err(|error| error.to_string())?;
        let rest = client.rest()?;
        let rest = String::from_utf8_lossy(&rest);
        if rest.starts_with(expected) && (rest.is_empty() == expected.is_empty()) {
            Ok(())
        } else {
            Err(rest.into_owned())
        }
    })
}

/// A client that sends these bytes one by one is disconnected before the last one.
fn is_cut_off_between(
    arena: &Arena,
    timeout: Timeout,
    beginning: &[u8],
    bytes: &[u8],
) -> Result<(), String> {
    are_ended(arena, timeout, |address| {
        let mut client = Client::tcp(address).map_err(|error| error.to_string())?;
        client.send(beginning).map_err(|error| error.to_string())?;
        // As slow as one byte a second for a limit of ten seconds.
        for byte in bytes {
            if client.stream.write_all(&[*byte]).is_err() {
                return Ok(());
            }
            pause(SHORT / 10);
        }
        let rest = client.rest()?;
        let upgraded = String::from_utf8_lossy(&rest).contains("HTTP/1.1 101 ");
        if upgraded { Err("it was upgraded".to_owned()) } else { Ok(()) }
    })
}

pub(crate) fn cases() -> Vec<Case> {
    let case = |id, what, timeout: Timeout, act, expect| Case {
        id,
        what,
        act: Act::Own(timeout.short(), act),
        expect: As(expect),
    };
    vec![
        case(
            "K-394",
            "nothing after it has connected",
            Timeout::Heads,
            |arena| is_cut_off(arena, Timeout::Heads, b"", ""),
            "the connection ends after the timeout of heads",
        ),
        case(
            "K-395",
            "half a request line",
            Timeout::Heads,
            |arena| is_cut_off(arena, Timeout::Heads, b"GET /sock", ""),
            "the connection ends after the timeout of heads",
        ),
        case(
            "K-396",
            "all headers but no empty line",
            Timeout::Heads,
            |arena| {
                let request = upgrade(SOCKET, "");
                is_cut_off(arena, Timeout::Heads, &request[..request.len() - 2], "")
            },
            "the connection ends after the timeout of heads",
        ),
        case(
            "K-397",
            "a handshake of a byte a second",
            Timeout::Heads,
            |arena| is_cut_off_between(arena, Timeout::Heads, b"", &upgrade(SOCKET, "")),
            "the connection ends after the timeout of heads",
        ),
        case(
            "K-398",
            "a second request of a byte a second",
            Timeout::Idle,
            |arena| is_cut_off_between(arena, Timeout::Idle, REQUEST, &upgrade(SOCKET, "")),
            "the connection ends after the timeout of idle connections",
        ),
        case(
            "K-399",
            "nothing after an answered request",
            Timeout::Idle,
            |arena| is_cut_off(arena, Timeout::Idle, REQUEST, "HTTP/1.1 404 "),
            "the connection ends after the timeout of idle connections",
        ),
    ]
}
