//! Clients that are slow, or say nothing.

use std::{io::Write, net::SocketAddr, thread, time::Duration};

use pipeline::serve::Serve;
use tokio::time::Instant;

use crate::{
    arena::{Arena, Options, pause},
    case::{Act, Case, Expect::As},
    client::{Client, SOCKET, upgrade},
};

/// The timeout of the first server of a case. The second one waits for four times as long.
const SHORT: Duration = Duration::from_millis(150);

/// A complete request.
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// The timeout that ends the connection. The others are far longer.
#[derive(Clone, Copy)]
enum Timeout {
    Heads,
    Idle,
}

/// Servers with this timeout, and with four times this timeout.
fn impatient(timeout: Timeout) -> [(Duration, Arena); 2] {
    let serves: [fn(Serve) -> Serve; 2] = match timeout {
        Timeout::Heads => [|it| it.header_timeout(SHORT), |it| it.header_timeout(SHORT * 4)],
        Timeout::Idle => [|it| it.keep_alive_timeout(SHORT), |it| it.keep_alive_timeout(SHORT * 4)],
    };
    let start = |serve| Arena::start_with(1, &Options { serve, ..Options::default() });
    let [short, long] = serves.map(start);
    [(SHORT, short), (SHORT * 4, long)]
}

/// Connections to both servers are ended after the timeout, and the one with the shorter timeout
/// first.
fn are_ended(
    timeout: Timeout,
    connection: impl Fn(SocketAddr) -> Result<(), String> + Sync,
) -> Result<(), String> {
    let servers = impatient(timeout);
    let times = thread::scope(|scope| {
        let ended = servers.each_ref().map(|(_, arena)| {
            scope.spawn(|| {
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
fn is_cut_off(timeout: Timeout, bytes: &[u8], expected: &str) -> Result<(), String> {
    are_ended(timeout, |address| {
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
fn is_cut_off_between(timeout: Timeout, beginning: &[u8], bytes: &[u8]) -> Result<(), String> {
    are_ended(timeout, |address| {
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
    let case = |id, what, act, expect| Case { id, what, act: Act::Steps(act), expect: As(expect) };
    vec![
        case(
            "K-394",
            "nothing after it has connected",
            |_| is_cut_off(Timeout::Heads, b"", ""),
            "the connection ends after the timeout of heads",
        ),
        case(
            "K-395",
            "half a request line",
            |_| is_cut_off(Timeout::Heads, b"GET /sock", ""),
            "the connection ends after the timeout of heads",
        ),
        case(
            "K-396",
            "all headers but no empty line",
            |_| {
                let request = upgrade(SOCKET, "");
                is_cut_off(Timeout::Heads, &request[..request.len() - 2], "")
            },
            "the connection ends after the timeout of heads",
        ),
        case(
            "K-397",
            "a handshake of a byte a second",
            |_| is_cut_off_between(Timeout::Heads, b"", &upgrade(SOCKET, "")),
            "the connection ends after the timeout of heads",
        ),
        case(
            "K-398",
            "a second request of a byte a second",
            |_| is_cut_off_between(Timeout::Idle, REQUEST, &upgrade(SOCKET, "")),
            "the connection ends after the timeout of idle connections",
        ),
        case(
            "K-399",
            "nothing after an answered request",
            |_| is_cut_off(Timeout::Idle, REQUEST, "HTTP/1.1 404 "),
            "the connection ends after the timeout of idle connections",
        ),
    ]
}
