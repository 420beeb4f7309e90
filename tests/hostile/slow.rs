//! Clients that are slow, or say nothing.

use std::{io::Write, time::Duration};

use pipeline::serve::Serve;

use crate::{
    arena::{Arena, Options, pause},
    case::{Act, Case, Expect::As},
    client::{Client, SOCKET, upgrade},
};

/// The timeouts of these cases.
const SHORT: Duration = Duration::from_millis(150);

/// A server with short timeouts.
fn impatient() -> Arena {
    let serve =
        |serve: Serve| serve.header_timeout(SHORT).keep_alive_timeout(SHORT).body_timeout(SHORT);
    Arena::start_with(1, &Options { serve, ..Options::default() })
}

/// A silent client is disconnected after these bytes.
fn is_cut_off(bytes: &[u8], expected: &str) -> Result<(), String> {
    let arena = impatient();
    let mut client = Client::tcp(arena.address).map_err(|error| error.to_string())?;
    client.send(bytes).map_err(|error| error.to_string())?;
    let rest = client.rest()?;
    let rest = String::from_utf8_lossy(&rest);
    if rest.starts_with(expected) && (rest.is_empty() == expected.is_empty()) {
        Ok(())
    } else {
        Err(rest.into_owned())
    }
}

/// A client that sends these bytes one by one is disconnected before the last one.
fn is_cut_off_between(beginning: &[u8], bytes: &[u8]) -> Result<(), String> {
    let arena = impatient();
    let mut client = Client::tcp(arena.address).map_err(|error| error.to_string())?;
    client.send(beginning).map_err(|error| error.to_string())?;
    // As slow as one byte a second for a limit of ten seconds.
    for byte in bytes {
        if client.stream.write_all(&[*byte]).is_err() {
            return Ok(());
        }
        pause(SHORT / 10);
    }
    let rest = client.rest()?;
    if rest.starts_with(b"HTTP/1.1 101 ") { Err("it was upgraded".to_owned()) } else { Ok(()) }
}

pub(crate) fn cases() -> Vec<Case> {
    let case = |id, what, act, expect| Case { id, what, act: Act::Steps(act), expect: As(expect) };
    vec![
        case(
            "K-394",
            "nothing after it has connected",
            |_| is_cut_off(b"", ""),
            "the connection ends after the timeout of heads",
        ),
        case(
            "K-395",
            "half a request line",
            |_| is_cut_off(b"GET /sock", ""),
            "the connection ends after the timeout of heads",
        ),
        case(
            "K-396",
            "all headers but no empty line",
            |_| {
                let request = upgrade(SOCKET, "");
                is_cut_off(&request[..request.len() - 2], "")
            },
            "the connection ends after the timeout of heads",
        ),
        case(
            "K-397",
            "a handshake of a byte a second",
            |_| is_cut_off_between(b"", &upgrade(SOCKET, "")),
            "the connection ends after the timeout of heads",
        ),
        case(
            "K-398",
            "a second request of a byte a second",
            |_| is_cut_off_between(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", &upgrade(SOCKET, "")),
            "the connection ends after the timeout of idle connections",
        ),
        case(
            "K-399",
            "nothing after an answered request",
            |_| is_cut_off(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 404 "),
            "the connection ends after the timeout of idle connections",
        ),
    ]
}
