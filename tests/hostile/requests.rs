//! HTTP requests and handshakes: what is no request, what is ambiguous, and what may not connect.

use std::time::Duration;

use pipeline_test_support::PATIENCE;
use tokio::time::Instant;

use crate::{
    arena::{Arena, Options, pause},
    case::{
        Act, Case,
        Expect::{self, As, End, Only, Status},
        Group,
    },
    client::{Client, SOCKET, upgrade},
    slow,
};

pub(crate) fn group() -> Group {
    let parts =
        [malformed(), ambiguous(), handshakes(), queries(), origins(), large(), slow::cases()];
    Group {
        title: "Requests and handshakes",
        bounded: "a request's head has at most 64 KiB and 100 headers, and 10 seconds to arrive \
                  (in these cases less); a server has at most 10,000 connections; nothing of a \
                  refused request is kept.",
        cases: parts.into_iter().flatten().collect(),
    }
}

fn http(id: &'static str, what: &'static str, bytes: impl Into<Vec<u8>>, expect: Expect) -> Case {
    Case { id, what, act: Act::Http(bytes.into()), expect }
}

/// A request for a WebSocket with these changes: each text is replaced by another.
fn changed(id: &'static str, what: &'static str, changes: &[(&str, &str)], expect: Expect) -> Case {
    let mut request = String::from_utf8(upgrade(SOCKET, "")).unwrap();
    for (from, to) in changes {
        assert!(request.contains(from), "{id}: {from}");
        request = request.replace(from, to);
    }
    http(id, what, request, expect)
}

/// A request for a WebSocket with these additional lines.
fn with(id: &'static str, what: &'static str, lines: &str, expect: Expect) -> Case {
    http(id, what, upgrade(SOCKET, lines), expect)
}

fn malformed() -> Vec<Case> {
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(50);
    vec![
        http(
            "K-300",
            "bytes that are no request",
            b"\x00\x01\x02\xff\xfe\r\n\r\n".to_vec(),
            Status(400),
        ),
        http("K-301", "the first message of a TLS handshake", hello, Status(400)),
        http("K-302", "the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", End),
        http(
            "K-303",
            "a request of an unknown version",
            "GET / HTTP/9.9\r\nHost: a\r\n\r\n",
            Status(400),
        ),
        http("K-304", "a request without a version", "GET /\r\n\r\n", Status(400)),
        http("K-305", "a request of HTTP/0.9 with a space", "GET / \r\n\r\n", Status(400)),
        http(
            "K-306",
            "a request line with three spaces",
            "GET / x HTTP/1.1\r\nHost: a\r\n\r\n",
            Status(400),
        ),
        http(
            "K-307",
            "a path with a space and a tab",
            "GET /\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
            Status(400),
        ),
        http("K-308", "a path with a NUL", "GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", Status(400)),
        http("K-309", "an answer instead of a request", "HTTP/1.1 200 OK\r\n\r\n", Status(400)),
        http(
            "K-310",
            "a method with a control character",
            "GE\u{1}T / HTTP/1.1\r\nHost: a\r\n\r\n",
            Status(400),
        ),
        changed(
            "K-311",
            "a header without a colon",
            &[("Upgrade: websocket", "Upgrade websocket")],
            Status(400),
        ),
        changed(
            "K-312",
            "a header without a name",
            &[("Upgrade: websocket", ": websocket")],
            Status(400),
        ),
        changed(
            "K-313",
            "a header with a NUL",
            &[("Upgrade: websocket", "Upgrade: web\0socket")],
            Status(400),
        ),
        changed(
            "K-314",
            "a header with a carriage return within",
            &[("Upgrade: websocket", "Upgrade: web\rsocket")],
            Status(400),
        ),
        changed(
            "K-315",
            "a header whose name has a space",
            &[("Upgrade: websocket", "Up grade: websocket")],
            Status(400),
        ),
        with("K-316", "a header with bytes above 127", "X-A: \u{e9}\r\n", Status(101)),
    ]
}

fn ambiguous() -> Vec<Case> {
    let of = |id, what, lines: &str, body: &str| {
        let act = Act::Posted { lines: lines.to_owned(), body: body.to_owned() };
        Case { id, what, act, expect: Only(400) }
    };
    // The chunks count, and the connection closes: a proxy in front may have read it differently.
    let chunked = |case: Case| Case { expect: Only(200), ..case };
    vec![
        of(
            "K-317",
            "two different lengths of a body",
            "Content-Length: 2\r\nContent-Length: 3\r\n",
            "{}",
        ),
        of("K-318", "two lengths in one header", "Content-Length: 2, 3\r\n", "{}"),
        of("K-319", "a length with a plus", "Content-Length: +2\r\n", "{}"),
        of("K-320", "a negative length", "Content-Length: -2\r\n", "{}"),
        of("K-321", "a hexadecimal length", "Content-Length: 0x2\r\n", "{}"),
        of("K-322", "a length above 64 bits", "Content-Length: 18446744073709551618\r\n", "{}"),
        of("K-323", "an empty length", "Content-Length: \r\n", "{}"),
        chunked(of(
            "K-324",
            "a length and chunks",
            "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
            "0\r\n\r\n",
        )),
        chunked(of(
            "K-325",
            "chunks and a length",
            "Transfer-Encoding: chunked\r\nContent-Length: 2\r\n",
            "0\r\n\r\n",
        )),
        of("K-326", "an unknown encoding", "Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
        of(
            "K-327",
            "chunks that are not the last encoding",
            "Transfer-Encoding: chunked, identity\r\n",
            "0\r\n\r\n",
        ),
        of(
            "K-328",
            "a space before the colon of an encoding",
            "Transfer-Encoding : chunked\r\n",
            "0\r\n\r\n",
        ),
        of(
            "K-329",
            "a folded header",
            "X-A: b\r\n Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
            "",
        ),
        of(
            "K-330",
            "a chunk whose size is no number",
            "Transfer-Encoding: chunked\r\n",
            "x\r\n\r\n",
        ),
        of(
            "K-331",
            "a chunk of a size above 64 bits",
            "Transfer-Encoding: chunked\r\n",
            "fffffffffffffffff\r\n",
        ),
        of(
            "K-332",
            "a chunk that is longer than its size",
            "Transfer-Encoding: chunked\r\n",
            "1\r\nabc\r\n0\r\n\r\n",
        ),
        of(
            "K-333",
            "a chunk with a line feed alone",
            "Transfer-Encoding: chunked\r\n",
            "1\na\n0\n\n",
        ),
        of(
            "K-334",
            "a header whose line ends with a carriage return alone",
            "X-A: b\rTransfer-Encoding: chunked\r\n",
            "",
        ),
        with("K-335", "a body with an upgrade", "Content-Length: 2\r\n", Status(400)),
        with("K-336", "chunks with an upgrade", "Transfer-Encoding: chunked\r\n", Status(400)),
        with("K-337", "two hosts", "Host: evil.test\r\n", Status(400)),
        changed("K-338", "no host", &[("Host: localhost\r\n", "")], Status(400)),
        with(
            "K-339",
            "two origins",
            "Origin: http://localhost\r\nOrigin: http://evil.test\r\n",
            Status(400),
        ),
    ]
}

fn handshakes() -> Vec<Case> {
    vec![
        changed(
            "K-340",
            "a request that is no upgrade",
            &[("Upgrade: websocket\r\n", ""), ("Connection: Upgrade\r\n", "")],
            Status(400),
        ),
        changed(
            "K-341",
            "a connection header without upgrade",
            &[("Connection: Upgrade", "Connection: keep-alive")],
            Status(400),
        ),
        changed(
            "K-342",
            "an upgrade to something else",
            &[("Upgrade: websocket", "Upgrade: h2c")],
            Status(400),
        ),
        changed("K-343", "the POST of an upgrade", &[("GET ", "POST ")], Status(400)),
        changed("K-344", "the method get in small letters", &[("GET ", "get ")], Status(400)),
        changed("K-345", "an upgrade in HTTP/1.0", &[("HTTP/1.1", "HTTP/1.0")], Status(400)),
        changed(
            "K-346",
            "no version of WebSocket",
            &[("Sec-WebSocket-Version: 13\r\n", "")],
            Status(400),
        ),
        changed(
            "K-347",
            "the version 8 of WebSocket",
            &[("Version: 13", "Version: 8")],
            Status(400),
        ),
        changed(
            "K-348",
            "no key",
            &[("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "")],
            Status(400),
        ),
        changed("K-349", "an empty key", &[("dGhlIHNhbXBsZSBub25jZQ==", "")], Status(400)),
        changed("K-350", "a key of 3 bytes", &[("dGhlIHNhbXBsZSBub25jZQ==", "YWJj")], Status(400)),
        changed(
            "K-351",
            "a key that is not base64",
            &[("dGhlIHNhbXBsZSBub25jZQ==", "????????????????????????")],
            Status(400),
        ),
        changed("K-352", "an unknown path", &[("/socket/", "/unheard-of/")], Status(404)),
        changed(
            "K-353",
            "a path with dots",
            &[("/socket/websocket", "/x/../socket/websocket")],
            Status(404),
        ),
        changed(
            "K-354",
            "a path with an encoded slash",
            &[("/socket/websocket", "/socket%2fwebsocket")],
            Status(404),
        ),
        changed(
            "K-355",
            "a subprotocol that is not supported",
            &[
                ("/socket/", "/page/"),
                ("Upgrade: websocket", "Upgrade: websocket\r\nSec-WebSocket-Protocol: mqtt"),
            ],
            Status(403),
        ),
        changed(
            "K-356",
            "a thousand subprotocols",
            &[
                ("/socket/", "/page/"),
                (
                    "Upgrade: websocket",
                    &format!(
                        "Upgrade: websocket\r\nSec-WebSocket-Protocol: {}x",
                        "a, ".repeat(1000)
                    ),
                ),
            ],
            Status(403),
        ),
        with("K-357", "a hundred requests at once before the upgrade", "", Status(101)),
    ]
}

fn queries() -> Vec<Case> {
    let query = |id, what, query: &str, status| {
        http(id, what, upgrade(&format!("/socket/websocket?{query}"), ""), Status(status))
    };
    vec![
        query("K-358", "an unknown version of the protocol", "vsn=3.0.0", 403),
        query("K-359", "a version that is no number", "vsn=2", 403),
        query("K-360", "a version that is an object", "vsn[a]=2.0.0", 403),
        query("K-361", "an invalid percent encoding", "vsn=2.0.0&a=%zz", 400),
        query("K-362", "an incomplete percent encoding", "vsn=2.0.0&a=%4", 400),
        query("K-363", "an encoded byte that is not UTF-8", "vsn=2.0.0&a=%ff", 400),
        query("K-364", "an encoded NUL", "vsn=2.0.0&a=%00", 101),
        query(
            "K-365",
            "a thousand and one parameters",
            &format!("vsn=2.0.0&{}", "a&".repeat(1000)),
            400,
        ),
        query(
            "K-366",
            "a parameter nested 33 deep",
            &format!("vsn=2.0.0&a{}=1", "[b]".repeat(32)),
            400,
        ),
        query(
            "K-367",
            "a parameter nested ten thousand deep",
            &format!("vsn=2.0.0&a{}=1", "[]".repeat(10_000)),
            400,
        ),
        query(
            "K-368",
            "a parameter with brackets that do not match",
            "vsn=2.0.0&a[[]]]=1&b]=2&[c=3",
            101,
        ),
        query(
            "K-369",
            "a parameter that is a string, a list and an object",
            "vsn=2.0.0&a=1&a[]=2&a[b]=3",
            101,
        ),
    ]
}

fn origins() -> Vec<Case> {
    let origin = |id, what, path: &str, origin: &str, status| {
        http(id, what, upgrade(path, &format!("Origin: {origin}\r\n")), Status(status))
    };
    const PAGE: &str = "/page/websocket?vsn=2.0.0";
    vec![
        origin("K-370", "a foreign origin", PAGE, "https://evil.test", 403),
        origin(
            "K-371",
            "an origin that only begins like the allowed one",
            PAGE,
            "https://example.com.evil.test",
            403,
        ),
        origin(
            "K-372",
            "an origin that only ends like the allowed one",
            PAGE,
            "https://evilexample.com",
            403,
        ),
        origin("K-373", "the allowed origin with another scheme", PAGE, "http://example.com", 403),
        origin(
            "K-374",
            "the allowed origin with another port",
            PAGE,
            "https://example.com:8443",
            403,
        ),
        origin("K-375", "the origin null", PAGE, "null", 403),
        origin("K-376", "an empty origin", PAGE, "", 403),
        origin("K-377", "an origin that is no URL", PAGE, "%%%", 403),
        origin("K-378", "an origin with a user name", PAGE, "https://example.com@evil.test", 403),
        origin(
            "K-379",
            "an origin with the allowed one in its path",
            PAGE,
            "https://evil.test/https://example.com",
            403,
        ),
        origin("K-380", "a foreign origin with the default rule", SOCKET, "https://evil.test", 403),
        origin(
            "K-381",
            "a foreign origin that names the same host",
            SOCKET,
            "http://localhost.evil.test",
            403,
        ),
    ]
}

fn large() -> Vec<Case> {
    let lines = |count: usize| (0..count).map(|n| format!("X-{n}: y\r\n")).collect::<String>();
    let long = |bytes: usize| format!("X-A: {}\r\n", "a".repeat(bytes));
    vec![
        // Six lines are those of the handshake.
        with("K-382", "a hundred headers", &lines(95), Status(101)),
        with("K-383", "a hundred and one headers", &lines(96), Status(431)),
        with("K-384", "ten thousand headers", &lines(10_000), Status(431)),
        with("K-385", "a header of 60,000 bytes", &long(60_000), Status(101)),
        with("K-386", "a header of 66,000 bytes", &long(66_000), Status(431)),
        with("K-387", "a header of a megabyte", &long(1 << 20), Status(431)),
        http(
            "K-388",
            "a path of 70,000 bytes",
            upgrade(&format!("/{}", "a".repeat(70_000)), ""),
            Status(431),
        ),
        http(
            "K-389",
            "a method of 100,000 bytes",
            format!("{} / HTTP/1.1\r\n\r\n", "A".repeat(100_000)),
            Status(431),
        ),
        http("K-390", "a megabyte without a line break", "A".repeat(1 << 20), Status(431)),
        http("K-391", "ten thousand empty lines", "\r\n".repeat(10_000), End),
        Case {
            id: "K-392",
            what: "a connection above the maximum of connections",
            act: Act::Own(
                // The calm client's connection has become a WebSocket, so it is none of them.
                || Options { serve: |serve| serve.max_connections(3), ..Options::default() },
                |arena| {
                    let _held = [(); 3].map(|()| accepted(arena));
                    let _held = _held.into_iter().collect::<Result<Vec<_>, _>>()?;
                    let mut refused =
                        Client::tcp(arena.address).map_err(|error| error.to_string())?;
                    refused.read_head().map_err(|error| error.to_string())?;
                    is_refused_for("1", &refused.head)
                },
            ),
            expect: As("HTTP 503 with `retry-after: 1`"),
        },
        Case {
            id: "K-393",
            what: "a WebSocket above the maximum of sockets",
            act: Act::Own(
                || Options { endpoint: |builder| builder.max_sockets(3), ..Options::default() },
                |arena| {
                    arena.eventually("earlier sockets stay", Arena::has_only_the_calm)?;
                    let open = || {
                        Client::open(arena.address, SOCKET, "").map_err(|error| error.to_string())
                    };
                    let _held = [open()?, open()?];
                    let mut refused =
                        Client::tcp(arena.address).map_err(|error| error.to_string())?;
                    refused.send(&upgrade(SOCKET, "")).map_err(|error| error.to_string())?;
                    refused.read_head().map_err(|error| error.to_string())?;
                    is_refused_for("5", &refused.head)
                },
            ),
            expect: As("HTTP 503 with `retry-after: 5`"),
        },
    ]
}

/// A connection that is not refused: earlier ones may not have ended yet.
fn accepted(arena: &Arena) -> Result<Client, String> {
    let begun = Instant::now();
    loop {
        let mut client = Client::tcp(arena.address).map_err(|error| error.to_string())?;
        // A refused connection may be closed before this.
        let _ = client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        if client.read_head().is_ok() && client.status() == 404 {
            return Ok(client);
        }
        if begun.elapsed() > PATIENCE {
            return Err(format!("no connection is accepted: {}", client.head));
        }
        pause(Duration::from_millis(1));
    }
}

/// The refusal names this number of seconds.
fn is_refused_for(seconds: &str, head: &str) -> Result<(), String> {
    let is_line = |line: &str| line.eq_ignore_ascii_case(&format!("retry-after: {seconds}"));
    let is_refused = head.starts_with("HTTP/1.1 503 ") && head.lines().any(is_line);
    if is_refused { Ok(()) } else { Err(head.to_owned()) }
}

#[test]
fn requests_are_refused_or_answered() {
    group().run();
}
