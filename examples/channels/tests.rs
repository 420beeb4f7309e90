//! The channels that the recordings do not know, on a clock that the test turns.
#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::{
    io,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use axum::{Router, serve::Listener};
use pipeline::ws::{Endpoint, Signer};
use pipeline_test_support::{Client, reply};
use serde_json::{Value, json};
use tokio::{
    io::DuplexStream,
    sync::mpsc,
    time::{Instant, sleep},
};

use crate::mounts;

/// The sample application, behind streams that never leave the process.
struct Server {
    endpoint: Endpoint,
    signer: Signer,
    streams: mpsc::Sender<DuplexStream>,
}

impl Server {
    fn start() -> Self {
        let signer = Signer::new("a secret for tests, long enough", "user socket").unwrap();
        let endpoint = mounts::endpoint(&signer).unwrap();
        let (streams, listener) = mpsc::channel(1);
        let app = Router::new().fallback_service(endpoint.clone());
        tokio::spawn(async { axum::serve(Memory(listener), app).await });
        Self { endpoint, signer, streams }
    }

    /// A client that has joined nothing yet.
    async fn user(&self, user: &str) -> Client<DuplexStream> {
        let (ours, theirs) = tokio::io::duplex(65_536);
        self.streams.send(theirs).await.unwrap();
        let url = format!("ws://localhost/socket/websocket?vsn=2.0.0&user_id={user}");
        Client::over(ours, &url).await
    }
}

struct Memory(mpsc::Receiver<DuplexStream>);

impl Listener for Memory {
    type Io = DuplexStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (DuplexStream, SocketAddr) {
        match self.0.recv().await {
            Some(stream) => (stream, SocketAddr::from(([127, 0, 0, 1], 1))),
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::from(([127, 0, 0, 1], 0)))
    }
}

#[tokio::test(start_paused = true)]
async fn wild_lets_in_only_where_the_second_number_is_twice_the_first() {
    let server = Server::start();
    let mut client = server.user("ada").await;
    for (n, topic) in ["wild:2:4", "wild:0:0", "wild:21:42"].into_iter().enumerate() {
        client.join(&n.to_string(), topic).await;
    }
    for (topic, why) in [
        ("wild:2:5", "5 is not twice 2"),
        ("wild:4:2", "2 is not twice 4"),
        ("wild:9223372036854775808:0", "0 is not twice 9223372036854775808"),
        ("wild:2", "wild:A:B needs two numbers"),
        ("wild:", "wild:A:B needs two numbers"),
        ("wild:-1:-2", "wild:A:B needs two numbers"),
        ("wild:2:4:8", "wild:A:B needs two numbers"),
    ] {
        client.send(json!(["9", "9", topic, "phx_join", {}])).await;
        client.expect([reply("9", "9", topic, "error", json!({ "reason": why }))]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn token_pushes_one_that_verifies_and_another_whenever_it_has_grown_old() {
    let server = Server::start();
    let mut ada = server.user("ada").await;
    ada.join("1", "token:ada").await;
    let joined = Instant::now();
    for round in 0..3 {
        let message = ada.receive().await;
        assert_eq!(message[3], "token");
        let token = message[4]["token"].as_str().unwrap();
        let user: String = server.signer.verify(token, SystemTime::now()).unwrap();
        assert_eq!(user, "ada");
        let after = joined.elapsed().as_secs_f64();
        let expected = f64::from(round) * 60.0;
        assert!((expected..expected + 1.0).contains(&after), "the token {round} after {after} s");
        // Who says nothing for a minute is disconnected. There is no token before its time.
        sleep(Duration::from_secs(30)).await;
        ada.expect_nothing_else().await;
    }
}

#[tokio::test(start_paused = true)]
async fn token_is_for_the_user_alone() {
    let server = Server::start();
    let mut ada = server.user("ada").await;
    ada.send(json!(["1", "1", "token:joe", "phx_join", {}])).await;
    let refused = json!({"reason": "unauthorized"});
    ada.expect([reply("1", "1", "token:joe", "error", refused)]).await;
}

/// The numbers among the next messages, when so many have come.
async fn numbers(client: &mut Client<DuplexStream>, count: usize) -> Vec<Value> {
    let mut numbers = vec![];
    while numbers.len() < count {
        let message = client.receive().await;
        if message[3] == "number" {
            numbers.push(message[4]["number"].clone());
        }
    }
    numbers
}

#[tokio::test(start_paused = true)]
async fn dedup_pushes_each_number_of_a_second_once_and_in_order() {
    let server = Server::start();
    let topic = "dedup:numbers";
    let (mut ada, mut joe) = (server.user("ada").await, server.user("joe").await);
    ada.join("1", topic).await;
    joe.join("1", topic).await;
    let say = |n: i64| json!(["1", null, topic, "broadcast", {"number": n}]);
    let began = Instant::now();
    for n in [3, 1, 3, -2, 1, 3] {
        ada.send(say(n)).await;
        sleep(Duration::from_millis(100)).await;
    }
    for client in [&mut ada, &mut joe] {
        assert_eq!(numbers(client, 3).await, [-2, 1, 3]);
    }
    let passed = began.elapsed().as_millis();
    assert!((1000..1050).contains(&passed), "{passed} ms");

    // The next second knows nothing of the last.
    server.endpoint.broadcast(topic, "number", json!({"number": 3})).unwrap();
    server.endpoint.broadcast(topic, "number", json!({"number": 3})).unwrap();
    for client in [&mut ada, &mut joe] {
        assert_eq!(numbers(client, 1).await, [3]);
        client.expect_nothing_else().await;
    }
    sleep(Duration::from_secs(10)).await;
    for client in [&mut ada, &mut joe] {
        client.expect_nothing_else().await;
    }
}

/// How many seconds it takes until five pings are answered, which are sent all at once.
async fn five_pings(topic: &str) -> u64 {
    let server = Server::start();
    let mut client = server.user("ada").await;
    client.join("1", topic).await;
    let began = Instant::now();
    for n in 0..5 {
        client.send(json!(["1", n.to_string(), topic, "ping", {"n": n}])).await;
    }
    let mut answers = vec![];
    for _ in 0..5 {
        answers.push(client.receive().await);
    }
    answers.sort_by_key(|answer| answer[4]["response"]["n"].as_i64());
    for (n, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer, reply("1", &n.to_string(), topic, "ok", json!({"n": n})));
    }
    began.elapsed().as_secs()
}

#[tokio::test(start_paused = true)]
async fn slow_pings_are_answered_one_after_the_other() {
    assert_eq!(five_pings("ping:slow").await, 15);
}

#[tokio::test(start_paused = true)]
async fn parallel_pings_are_answered_beside_each_other() {
    assert_eq!(five_pings("ping:parallel").await, 3);
}

#[tokio::test(start_paused = true)]
async fn a_slow_ping_keeps_no_other_channel_waiting() {
    let server = Server::start();
    let mut client = server.user("ada").await;
    client.join("1", "ping:slow").await;
    client.join("2", "room:other").await;
    client.send(json!(["1", "3", "ping:slow", "ping", {}])).await;
    client.send(json!(["2", "4", "room:other", "ping", {}])).await;
    client.expect([reply("2", "4", "room:other", "ok", json!({}))]).await;
    client.expect([reply("1", "3", "ping:slow", "ok", json!({}))]).await;
}
