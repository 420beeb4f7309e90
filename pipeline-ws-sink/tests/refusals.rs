//! Clients that `connect` refuses, and that learn why from a close frame.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

mod support;

use std::{process::Stdio, time::Duration};

use futures::{StreamExt, future::join_all};
use http::StatusCode;
use pipeline_test_support::{Client, PATIENCE, descriptors, eventually, interop};
use pipeline_ws_sink::{
    Endpoint, Mount, Socket,
    endpoint::EndpointBuilder,
    mount::LongPoll,
    socket::{ConnectError, ConnectInfo, Params},
};
use serde_json::{Value, json};
use support::{poller::body_of, poller::request, server::Server};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::Command,
    time::timeout,
};
use tokio_tungstenite::tungstenite::{Message, protocol::CloseFrame};

const NOW: Duration = Duration::ZERO;

/// Refuses every client, in the way that its name says.
struct Closed;

impl Socket for Closed {
    type Assigns = ();

    async fn connect(&self, params: &Params, _: &ConnectInfo) -> Result<(), ConnectError> {
        let error = ConnectError::because("for a reason of the program's");
        Err(match params.require("name")? {
            "banned" => error.close_with(4403, "banned"),
            "normal" => error.close_with(1000, "it would stay away for good"),
            "long" => error.close_with(4000, "é".repeat(100)),
            "status" => error.respond(StatusCode::TOO_MANY_REQUESTS, "later"),
            "both" => error.respond(StatusCode::TOO_MANY_REQUESTS, "x").close_with(4429, "later"),
            "panic" => panic!("no luck"),
            "welcome" => return Ok(()),
            _ => error,
        })
    }
}

fn endpoint() -> EndpointBuilder {
    Endpoint::builder().mount("/socket", Mount::new(Closed).longpoll(LongPoll::new()))
}

fn of(name: &str) -> String {
    format!("vsn=2.0.0&name={name}")
}

/// The code and the reason of the close frame, which is the first that this client receives.
async fn told(client: &mut Client) -> (u16, String) {
    match client.next().await {
        Message::Close(Some(CloseFrame { code, reason })) => (code.into(), reason.to_string()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn refused_clients_see_the_code_and_the_reason_of_the_program() {
    let server = Server::start(endpoint().tell_refused(NOW)).await;
    for (name, code, reason) in [
        ("banned", 4403, "banned".to_owned()),
        ("both", 4429, "later".to_owned()),
        ("normal", 1008, "it would stay away for good".to_owned()),
        ("long", 4000, "é".repeat(61)),
        ("plain", 1008, String::new()),
        ("panic", 1008, String::new()),
    ] {
        let mut client = server.try_connect(&of(name)).await.unwrap();
        // It is too early to be handled, and not handled later.
        client.send(json!(["1", "1", "room:1", "phx_join", {}])).await;
        assert_eq!(told(&mut client).await, (code, reason), "{name}");
        while let Some(Ok(_)) = client.stream.next().await {}
    }
    assert_eq!(server.try_connect(&of("status")).await.unwrap_err(), 429);
    eventually(|| server.endpoint.open_sockets() == 0).await;
    let mut ended = 0;
    eventually(|| {
        let counted = server.recorded.counters("socket.refusals");
        ended += counted
            .iter()
            .map(|(outcome, count)| {
                assert_eq!(outcome, "outcome=told");
                count
            })
            .sum::<u64>();
        ended == 6
    })
    .await;
}

#[tokio::test]
async fn without_the_option_refused_clients_are_answered_with_their_status() {
    let server = Server::start(endpoint()).await;
    for (name, status) in [("banned", 403), ("plain", 403), ("panic", 403), ("both", 429)] {
        assert_eq!(server.try_connect(&of(name)).await.unwrap_err(), status, "{name}");
    }
}

#[tokio::test]
async fn what_is_refused_before_connect_and_a_polling_client_keep_their_answers() {
    let server = Server::start(endpoint().tell_refused(NOW)).await;
    assert_eq!(server.try_connect("vsn=9.0.0&name=banned").await.unwrap_err(), 403);
    let path = format!("/socket/longpoll?{}", of("banned"));
    let polled = request(server.connect_tcp().await, "GET", &path, &[], "").await;
    assert_eq!(body_of(&polled), json!({ "status": 403 }));
}

#[tokio::test]
async fn a_refused_client_that_never_reads_or_closes_gives_its_place_back() {
    let server = Server::start(endpoint().max_sockets(1).tell_refused(NOW)).await;
    let mut silent = server.connect_tcp().await;
    let head = format!(
        "GET /socket/websocket?{} HTTP/1.1\r\nhost: {}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        of("banned"),
        server.address(),
    );
    silent.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    silent.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 101");
    // It never answers the close frame. Its place is taken until the deadline, and free after it.
    assert_eq!(server.try_connect(&of("welcome")).await.unwrap_err(), 503);
    let free = async {
        while server.try_connect(&of("welcome")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, free).await.unwrap();
    // It has got the close frame, although it did not answer.
    let told = ("outcome=told".to_owned(), 1);
    assert_eq!(server.recorded.counters("socket.refusals"), [told]);
    drop(silent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn refused_clients_that_leave_give_their_places_back_at_once() {
    let minute = Duration::from_secs(60);
    let server = Server::start(endpoint().max_sockets(8).tell_refused(minute)).await;
    for number in 0..20 {
        let mut client = server.try_connect(&of("banned")).await.unwrap();
        // What it sends does not hide that it leaves.
        client.send(json!(["1", "1", "room:1", "phx_join", {}])).await;
        if number % 2 == 1 {
            // Nor does what is no frame.
            let tcp = client.stream.get_mut();
            tcp.write_all(b"\xff nonsense").await.unwrap();
        }
        drop(client);
        // The eighth of the places for such clients is one, so the next one would be told nothing.
        eventually(|| server.recorded.counters("socket.refusals").contains(&gone())).await;
        assert_eq!(server.try_connect(&of("welcome")).await.map(drop), Ok(()), "{number}");
    }
}

#[tokio::test]
async fn refused_clients_take_an_eighth_of_the_places_at_most() {
    let minute = Duration::from_secs(60);
    let server = Server::start(endpoint().max_sockets(16).tell_refused(minute)).await;
    let waiting = [
        server.try_connect(&of("banned")).await.unwrap(),
        server.try_connect(&of("banned")).await.unwrap(),
    ];
    assert_eq!(server.try_connect(&of("banned")).await.unwrap_err(), 403);
    let connects = join_all((0..14).map(|_| server.try_connect("vsn=2.0.0&name=welcome"))).await;
    assert!(connects.iter().all(Result::is_ok));
    drop(waiting);
}

#[tokio::test]
async fn a_refused_client_that_closes_during_the_delay_is_answered_at_once() {
    let server = Server::start(endpoint().tell_refused(Duration::from_secs(60))).await;
    let mut client = server.try_connect(&of("banned")).await.unwrap();
    client.stream.close(None).await.unwrap();
    assert_eq!(told(&mut client).await, (4403, "banned".to_owned()));
}

/// One client that left before it was told, since the last look.
fn gone() -> (String, u64) {
    ("outcome=gone".to_owned(), 1)
}

#[tokio::test]
async fn more_than_a_thousand_refused_clients_at_once_are_answered_with_a_status() {
    // Both ends of the connections are in this process.
    descriptors::raise();
    let server = Server::start(endpoint().tell_refused(Duration::from_secs(60))).await;
    // All of them wait to be told, and stay.
    let mut waiting = Vec::new();
    for _ in 0..20 {
        let connects = join_all((0..50).map(|_| server.try_connect("vsn=2.0.0&name=banned"))).await;
        waiting.extend(connects.into_iter().map(Result::unwrap));
    }
    assert_eq!(server.try_connect(&of("banned")).await.unwrap_err(), 403);
    assert_eq!(server.try_connect(&of("welcome")).await.map(drop), Ok(()));
    let crowded = ("outcome=crowded".to_owned(), 1);
    assert_eq!(server.recorded.counters("socket.refusals"), [crowded]);
    // A drain does not wait for the delay.
    let draining = server.endpoint.drain(PATIENCE);
    let told = join_all(waiting.iter_mut().map(Client::closed));
    let (report, codes) = timeout(PATIENCE, async { tokio::join!(draining, told) }).await.unwrap();
    assert_eq!(report.aborted, 0);
    assert!(codes.iter().all(|&code| code == 4403));
}

#[tokio::test]
async fn the_official_client_sees_the_code_and_comes_again_after_the_delay() {
    let server = Server::start(endpoint().tell_refused(Duration::from_millis(300))).await;
    let base = format!("http://{}", server.address());
    let mut node = Command::new("node");
    node.args(["closes.mjs", &base, "websocket", "banned"]).current_dir(interop());
    let mut node = node.kill_on_drop(true).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(node.stdout.take().unwrap()).lines();
    let mut says = async || {
        let line = timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
        serde_json::from_str::<Value>(&line).unwrap()
    };
    for _ in 0..3 {
        assert_eq!(says().await, json!({ "open": true }));
        assert_eq!(says().await, json!({ "closed": [4403, "banned"] }));
    }
}
