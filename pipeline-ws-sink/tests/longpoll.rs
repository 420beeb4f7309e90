//! Polling clients: the cases C-163 to C-182, and those of the handshake that concern them, on a paused
//! clock.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod support;

use std::{sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use futures::future::join_all;
use pipeline_test_support::settle;
use pipeline_ws_sink::{
    Endpoint, Mount, Payload,
    endpoint::BuildError,
    mount::{CheckOrigin, LongPoll},
};
use serde_json::{Value, json};
use support::{
    channels::{NamedSocket, endpoint_with},
    handshake_server::{HandshakeServer, Response},
    memory::MemoryServer,
    poller::{BATCH, Poller, body_of, request},
};
use tokio::{
    io::{AsyncWriteExt, DuplexStream},
    net::TcpStream,
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};

const T: &str = "room:lobby";
const V2: &str = "vsn=2.0.0&name=ada";
const WINDOW: Duration = Duration::from_secs(1);

fn server() -> MemoryServer {
    server_with(|mount| mount).0
}

fn server_with(
    options: impl FnOnce(Mount<NamedSocket>) -> Mount<NamedSocket>,
) -> (MemoryServer, Arc<Semaphore>) {
    let polled = LongPoll::new().window(WINDOW);
    let (builder, gate) = endpoint_with(|mount| options(mount.longpoll(polled)));
    (MemoryServer::start(builder), gate)
}

async fn get(server: &MemoryServer, path: &str, headers: &[(&str, &str)]) -> Value {
    body_of(&request(server.stream().await, "GET", path, headers, "").await)
}

fn heartbeat(reference: &str) -> String {
    json!([null, reference, "phoenix", "heartbeat", {}]).to_string()
}

fn beaten(reference: &str) -> Value {
    json!([null, reference, "phoenix", "phx_reply", {"status": "ok", "response": {}}])
}

#[tokio::test(start_paused = true)]
async fn c_032_a_foreign_origin_is_refused_in_the_body() {
    let (server, _) = server_with(|mount| mount.check_origin(CheckOrigin::list(["//localhost"])));
    let evil = [("origin", "http://evil.test")];
    let path = format!("/socket/longpoll?{V2}");
    assert_eq!(get(&server, &path, &evil).await, json!({ "status": 403 }));
    let answer = request(server.stream().await, "POST", &path, &evil, "").await;
    assert_eq!(body_of(&answer), json!({ "status": 403 }));
    let own = [("origin", "http://localhost")];
    assert_eq!(get(&server, &path, &own).await["status"], 410);
    assert_eq!(server.endpoint.open_sockets(), 1);
}

#[tokio::test]
async fn c_043_the_auth_token_comes_in_a_header() {
    let mut server =
        HandshakeServer::open(|mount| mount.auth_token(true).longpoll(LongPoll::new())).await;
    for (headers, token) in
        [(&[("x-phoenix-authtoken", "my-token")][..], Some("my-token")), (&[], None)]
    {
        let stream = TcpStream::connect(server.address()).await.unwrap();
        let answer = request(stream, "GET", "/socket/longpoll?vsn=2.0.0", headers, "").await;
        assert_eq!(body_of(&answer)["status"], 410);
        assert_eq!(server.seen().1.auth_token.as_deref(), token);
    }
}

#[tokio::test(start_paused = true)]
async fn c_163_a_pending_poll_ends_with_its_window_while_the_endpoint_drains() {
    let server = server();
    let poller = Poller::connect(&server, V2).await;
    let begun = Instant::now();
    let draining = async {
        sleep(WINDOW / 4).await;
        server.endpoint.drain(Duration::from_secs(5)).await
    };
    let (polled, report) = tokio::join!(poller.poll(), draining);
    assert_eq!(polled, poller.nothing());
    assert!(begun.elapsed() >= WINDOW, "{:?}", begun.elapsed());
    assert_eq!((report.closed, report.aborted), (1, 0));
    let path = format!("/socket/longpoll?{V2}");
    let answer = request(server.stream().await, "GET", &path, &[], "").await;
    assert_eq!(answer.status, 503, "no more clients are accepted");
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
}

#[tokio::test(start_paused = true)]
async fn a_session_with_unfetched_messages_counts_as_aborted() {
    for fetches in [true, false] {
        let server = server();
        let poller = Poller::connect(&server, V2).await;
        poller.join(T).await;
        for n in 0..20 {
            server.endpoint.broadcast(T, "tick", json!({ "n": n })).unwrap();
        }
        if fetches {
            assert_eq!(poller.messages().await.len(), 20);
        }
        let report = server.endpoint.drain(WINDOW).await;
        let expected = if fetches { (1, 0) } else { (0, 1) };
        assert_eq!((report.closed, report.aborted), expected);
        let dropped = server.endpoint.snapshot().dropped;
        let ended = if fetches { None } else { Some(&20) };
        assert_eq!((dropped.get("ended"), dropped.len()), (ended, ended.iter().len()));
    }
}

#[tokio::test(start_paused = true)]
async fn clients_that_wait_in_a_poll_get_what_is_broadcast_just_before_a_drain() {
    let server = server();
    let mut pollers = Vec::new();
    for _ in 0..40 {
        let poller = Poller::connect(&server, V2).await;
        poller.join(T).await;
        pollers.push(poller);
    }
    let draining = async {
        sleep(WINDOW / 4).await;
        server.endpoint.broadcast(T, "bye", json!({})).unwrap();
        server.endpoint.drain(Duration::from_secs(5)).await
    };
    let waiting = join_all(pollers.iter().map(Poller::poll));
    let (polled, report) = tokio::join!(waiting, draining);
    let notified = polled.iter().filter(|polled| polled.to_string().contains("bye")).count();
    assert_eq!((notified, report.closed, report.aborted), (40, 40, 0));
}

#[tokio::test(start_paused = true)]
async fn c_164_a_client_without_a_token_gets_a_session() {
    let server = server();
    let opened = get(&server, &format!("/socket/longpoll?{V2}"), &[]).await;
    let token = opened["token"].as_str().unwrap();
    assert_eq!(opened, json!({ "status": 410, "token": token, "messages": [] }));
    assert_eq!(server.endpoint.open_sockets(), 1);
}

#[tokio::test(start_paused = true)]
async fn c_165_a_client_with_a_bad_token_gets_a_new_session() {
    let server = server();
    let good = Poller::connect(&server, V2).await.token;
    let forged = Poller::connect(&self::server(), V2).await.token;
    let tampered = format!("{}x", &good[..good.len() - 1]);
    for token in ["null", "", "garbage", &forged, &tampered] {
        let opened = get(&server, &format!("/socket/longpoll?{V2}&token={token}"), &[]).await;
        assert_eq!(opened["status"], 410, "{token}");
        assert_ne!(opened["token"], token);
    }
    assert_eq!(server.endpoint.open_sockets(), 6);
}

#[tokio::test(start_paused = true)]
async fn c_166_a_sent_line_is_accepted() {
    let server = server();
    let poller = Poller::connect(&server, V2).await;
    assert_eq!(poller.post(&heartbeat("1")).await, json!({ "status": 200 }));
}

#[tokio::test(start_paused = true)]
async fn c_167_a_poll_returns_all_pending_messages_at_once() {
    let server = server();
    let poller = Poller::connect(&server, V2).await;
    poller.join(T).await;
    poller.post(&format!("{}\n{}", heartbeat("2"), heartbeat("3"))).await;
    let begun = Instant::now();
    assert_eq!(poller.messages().await, [beaten("2"), beaten("3")]);
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn c_168_a_poll_without_messages_ends_with_its_window() {
    let server = server();
    let poller = Poller::connect(&server, V2).await;
    let begun = Instant::now();
    assert_eq!(poller.poll().await, poller.nothing());
    let waited = begun.elapsed();
    assert!((WINDOW..WINDOW * 2).contains(&waited), "{waited:?}");
    poller.post(&heartbeat("1")).await;
    assert_eq!(poller.messages().await, [beaten("1")], "later messages wait for the next poll");
}

#[tokio::test(start_paused = true)]
async fn c_169_a_broadcast_completes_a_pending_poll() {
    let server = server();
    let poller = Poller::connect(&server, V2).await;
    poller.join(T).await;
    let begun = Instant::now();
    let broadcasting = async {
        sleep(WINDOW / 4).await;
        server.endpoint.broadcast(T, "news", json!({"n": 1})).unwrap();
    };
    let (messages, ()) = tokio::join!(poller.messages(), broadcasting);
    assert_eq!(messages, [json!([null, null, T, "news", {"n": 1}])]);
    assert!(begun.elapsed() < WINDOW / 2, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn c_170_a_client_of_version_1_sends_and_receives_objects() {
    let server = server();
    let poller = Poller::connect(&server, "vsn=1.0.0&name=ada").await;
    let path = format!("/socket/longpoll?token={}", poller.token);
    let join = json!({"topic": T, "event": "phx_join", "ref": "1", "payload": {}}).to_string();
    let json_type = [("content-type", "application/json")];
    let answer = request(server.stream().await, "POST", &path, &json_type, &join).await;
    assert_eq!(body_of(&answer), json!({ "status": 200 }));
    let payload = json!({"status": "ok", "response": {}});
    let replied = json!({"topic": T, "event": "phx_reply", "ref": "1", "payload": payload});
    assert_eq!(poller.messages().await, [replied]);
}

#[tokio::test(start_paused = true)]
async fn c_171_a_message_without_a_session_is_answered_with_gone() {
    let server = server();
    for token in ["", "&token=null", "&token=garbage"] {
        let path = format!("/socket/longpoll?{V2}{token}");
        let answer = request(server.stream().await, "POST", &path, &[BATCH], "[]").await;
        assert_eq!(body_of(&answer), json!({ "status": 410 }));
    }
    assert_eq!(server.endpoint.open_sockets(), 0);
}

#[tokio::test(start_paused = true)]
async fn c_172_a_refused_client_gets_the_status_in_the_body() {
    let server = server();
    for query in ["vsn=2.0.0", "vsn=2.0.0&name=panic", "vsn=2.0.0&name=no-id", "vsn=3.0.0&name=ada"]
    {
        let refused = get(&server, &format!("/socket/longpoll?{query}"), &[]).await;
        assert_eq!(refused, json!({ "status": 403 }), "{query}");
    }
    assert_eq!(server.endpoint.open_sockets(), 0);
}

#[tokio::test(start_paused = true)]
async fn c_173_a_cors_preflight_is_answered() {
    let server = server();
    let asked = [("access-control-request-headers", "content-type, x-phoenix-longpoll-token")];
    let answer = request(server.stream().await, "OPTIONS", "/socket/longpoll", &asked, "").await;
    assert_eq!((answer.status, &*answer.body), (200, ""));
    for (name, value) in [
        ("access-control-allow-origin", "*"),
        ("access-control-allow-headers", asked[0].1),
        ("access-control-allow-methods", "get, post, options"),
        ("access-control-max-age", "3600"),
    ] {
        assert_eq!(answer.header(name), Some(value), "{name}");
    }
    assert_eq!(answer.header("access-control-allow-credentials"), None);
}

#[tokio::test(start_paused = true)]
async fn c_174_other_methods_are_refused_with_400() {
    let server = server();
    for method in ["PUT", "DELETE"] {
        let path = format!("/socket/longpoll?{V2}");
        let answer = request(server.stream().await, method, &path, &[], "").await;
        assert_eq!((answer.status, &*answer.body), (400, ""), "{method}");
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"), "{method}");
    }
}

#[tokio::test(start_paused = true)]
async fn c_175_the_token_may_come_in_a_header() {
    let server = server();
    let poller = Poller::connect(&server, V2).await;
    let headers = [BATCH, ("x-phoenix-longpoll-token", &*poller.token)];
    let path = format!("/socket/longpoll?{V2}");
    let answer = request(server.stream().await, "POST", &path, &headers, &heartbeat("1")).await;
    assert_eq!(body_of(&answer), json!({ "status": 200 }));
    let polled = get(&server, &format!("{path}&token=null"), &headers[1..]).await;
    assert_eq!((&polled["status"], &polled["token"]), (&json!(200), &json!(poller.token)));
}

#[tokio::test(start_paused = true)]
async fn c_176_an_error_reply_comes_with_the_next_poll() {
    let server = server();
    let poller = Poller::connect(&server, V2).await;
    let join = json!(["1", "1", "nope:1", "phx_join", {}]).to_string();
    assert_eq!(poller.post(&join).await, json!({ "status": 200 }));
    let response = json!({"status": "error", "response": {"reason": "unmatched topic"}});
    assert_eq!(poller.messages().await, [json!([null, "1", "nope:1", "phx_reply", response])]);
}

#[tokio::test(start_paused = true)]
async fn c_177_an_invalid_message_ends_the_session() {
    let server = server();
    let poller = Poller::connect(&server, V2).await;
    assert_eq!(poller.post("[not json").await, json!({ "status": 408 }));
    assert_eq!(poller.poll().await["status"], 410);
    assert_eq!(poller.post(&heartbeat("1")).await, json!({ "status": 410 }));
}

#[tokio::test(start_paused = true)]
async fn c_178_a_line_that_is_neither_text_nor_base64_ends_no_session() {
    let server = server();
    let poller = Poller::connect(&server, V2).await;
    assert_eq!(poller.post("not json").await, json!({ "status": 400 }));
    assert_eq!(poller.post(&heartbeat("1")).await, json!({ "status": 200 }));
    assert_eq!(poller.messages().await, [beaten("1")]);
}

#[tokio::test(start_paused = true)]
async fn c_179_a_join_that_takes_longer_than_the_window_is_answered_later() {
    let (server, gate) = server_with(|mount| mount);
    let poller = Poller::connect(&server, V2).await;
    let join = json!(["1", "1", "slow:x", "phx_join", {}]).to_string();
    let lines = format!("{join}\n{}", heartbeat("2"));
    assert_eq!(poller.post(&lines).await, json!({ "status": 408 }));
    gate.add_permits(1);
    let replied = json!(["1", "1", "slow:x", "phx_reply", {"status": "ok", "response": {}}]);
    assert_eq!(poller.messages().await, [replied], "the lines after it are not handled");
}

#[tokio::test(start_paused = true)]
async fn c_180_a_session_that_is_never_polled_again_ends() {
    let server = server();
    let poller = Poller::connect(&server, V2).await;
    poller.join(T).await;
    let mut room = server.endpoint.subscribe(T);
    let begun = Instant::now();
    let kept_busy = async {
        loop {
            // Sending does not keep the session alive.
            poller.post(&heartbeat("2")).await;
            sleep(WINDOW / 4).await;
        }
    };
    let gone = tokio::select! {
        gone = room.recv() => gone.unwrap(),
        () = kept_busy => unreachable!(),
    };
    let alive = begun.elapsed();
    assert!((WINDOW * 3 / 2..=WINDOW * 3).contains(&alive), "{alive:?}");
    assert_eq!(gone.event(), "gone");
    let reason: Value = gone.payload().parse().unwrap();
    assert_eq!(reason, json!({"reason": "shutdown: inactive"}));
    assert_eq!(poller.post(&heartbeat("3")).await, json!({ "status": 410 }));
    let opened = poller.poll().await;
    assert_eq!(opened["status"], 410);
    assert_ne!(opened["token"], poller.token);
}

#[tokio::test(start_paused = true)]
async fn c_181_a_pending_poll_ends_with_its_window_when_its_user_is_disconnected() {
    let server = server();
    let poller = Poller::connect(&server, V2).await;
    let begun = Instant::now();
    let disconnecting = async {
        sleep(WINDOW / 4).await;
        assert_eq!(server.endpoint.disconnect("named:ada"), 1);
    };
    let (polled, ()) = tokio::join!(poller.poll(), disconnecting);
    assert_eq!(polled, poller.nothing());
    assert!(begun.elapsed() >= WINDOW, "{:?}", begun.elapsed());
    assert_eq!(poller.poll().await["status"], 410);
}

#[tokio::test(start_paused = true)]
async fn of_two_polls_the_newer_one_gets_the_messages() {
    let server = server();
    let poller = Poller::connect(&server, V2).await;
    let newer = async {
        sleep(WINDOW / 4).await;
        poller.messages().await
    };
    let posting = async {
        sleep(WINDOW / 2).await;
        poller.post(&heartbeat("1")).await
    };
    let begun = Instant::now();
    let (older, newer, _) = tokio::join!(poller.poll(), newer, posting);
    assert_eq!((older, newer), (poller.nothing(), vec![beaten("1")]));
    assert!(begun.elapsed() >= WINDOW);
}

#[tokio::test(start_paused = true)]
async fn messages_for_a_cancelled_poll_wait_for_the_next() {
    let server = server();
    let poller = Poller::connect(&server, V2).await;
    assert!(timeout(WINDOW / 4, poller.poll()).await.is_err());
    settle().await;
    poller.post(&heartbeat("1")).await;
    assert_eq!(poller.messages().await, [beaten("1")]);
}

#[tokio::test(start_paused = true)]
async fn c_182_text_and_base64_lines_are_handled_in_order() {
    let server = server();
    let poller = Poller::connect(&server, V2).await;
    poller.join(T).await;
    // The binary frame of a heartbeat: kind, lengths, then ref, topic and event.
    let binary = STANDARD.encode(b"\x00\x00\x01\x07\x092phoenixheartbeat");
    poller.post(&format!("{}\n{binary}\n{}", heartbeat("1"), heartbeat("3"))).await;
    assert_eq!(poller.messages().await, [beaten("1"), beaten("2"), beaten("3")]);
}

#[tokio::test(start_paused = true)]
async fn a_binary_frame_is_skipped_and_later_frames_arrive() {
    let server = server();
    let poller = Poller::connect(&server, V2).await;
    poller.join(T).await;
    server.endpoint.broadcast(T, "picture", Payload::binary(vec![0xff])).unwrap();
    server.endpoint.broadcast(T, "news", json!({"n": 1})).unwrap();
    assert_eq!(poller.messages().await, [json!([null, null, T, "news", {"n": 1}])]);
}

#[tokio::test(start_paused = true)]
async fn a_polled_session_stays_open() {
    let server = server();
    let poller = Poller::connect(&server, V2).await;
    for _ in 0..10 {
        assert_eq!(poller.poll().await, poller.nothing());
        sleep(WINDOW / 4).await;
    }
    assert_eq!(server.endpoint.open_sockets(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_body_beyond_the_limit_is_refused_with_400_and_the_session_stays() {
    let (server, _) = server_with(|mount| mount.max_message_size(100));
    let poller = Poller::connect(&server, V2).await;
    let path = format!("/socket/longpoll?{V2}&token={}", poller.token);
    let body = " ".repeat(101);
    let answer = request(server.stream().await, "POST", &path, &[BATCH], &body).await;
    assert_eq!((answer.status, &*answer.body), (400, ""));
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    assert_eq!(poller.post(&heartbeat("1")).await, json!({ "status": 200 }));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_too_far_behind_loses_its_session() {
    let (server, _) = server_with(|mount| mount.max_outbox(4, 1 << 20));
    let poller = Poller::connect(&server, V2).await;
    poller.join(T).await;
    for n in 0..5 {
        server.endpoint.broadcast(T, "news", json!({ "n": n })).unwrap();
    }
    assert_eq!(poller.poll().await["status"], 410);
    assert_eq!(server.recorded.counters("socket.closed_slow"), [(String::new(), 1)]);
}

#[tokio::test(start_paused = true)]
async fn polling_is_refused_where_it_is_not_enabled() {
    let server = MemoryServer::start(endpoint_with(|mount| mount).0);
    let path = format!("/socket/longpoll?{V2}");
    assert_eq!(request(server.stream().await, "GET", &path, &[], "").await.status, 404);
}

#[tokio::test(start_paused = true)]
async fn a_query_that_cannot_be_decoded_is_refused_with_400() {
    let server = server();
    let answer = request(server.stream().await, "GET", "/socket/longpoll?a=%ff", &[], "").await;
    assert_eq!((answer.status, &*answer.body), (400, ""));
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
}

#[tokio::test(start_paused = true)]
async fn the_path_may_have_variables_and_every_request_matches_it() {
    let mount = Mount::new(NamedSocket).longpoll(LongPoll::new().path("/poll/:name"));
    let server = MemoryServer::start(Endpoint::builder().mount("/socket", mount));
    let opened = get(&server, "/socket/poll/ada?vsn=2.0.0", &[]).await;
    let path = format!("/socket/poll/ada?token={}", opened["token"].as_str().unwrap());
    let answer = request(server.stream().await, "POST", &path, &[BATCH], &heartbeat("1")).await;
    assert_eq!(body_of(&answer), json!({ "status": 200 }));
    assert_eq!(get(&server, &path, &[]).await["messages"].as_array().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn sessions_count_as_open_sockets() {
    let server = server();
    let _poller = Poller::connect(&server, V2).await;
    let observer = server.endpoint.observer();
    assert_eq!(observer.snapshot().unwrap().sockets[0].open, 1);
    server.endpoint.drain(WINDOW).await;
    assert_eq!(observer.snapshot().unwrap().sockets[0].open, 0);
}

#[test]
fn both_transports_cannot_share_a_path() {
    let mount = Mount::new(NamedSocket).longpoll(LongPoll::new().path("/websocket"));
    let error = Endpoint::builder().mount("/socket", mount).build().unwrap_err();
    assert_eq!(error, BuildError::PathTaken { path: "/socket/websocket".to_owned() });
}

#[tokio::test(start_paused = true)]
async fn the_number_of_polling_clients_is_limited() {
    let builder =
        endpoint_with(|mount| mount.longpoll(LongPoll::new().window(WINDOW).max_sessions(2)));
    let server = MemoryServer::start(builder.0);
    let first = Poller::connect(&server, V2).await;
    let _second = Poller::connect(&server, V2).await;
    let path = format!("/socket/longpoll?{V2}");
    for _ in 0..3 {
        let refused = request(server.stream().await, "GET", &path, &[], "").await;
        assert_eq!(refused.status, 503);
    }
    let refused = server.recorded.counters("socket.longpoll_refused");
    assert_eq!(refused, [("socket=NamedSocket".to_owned(), 3)]);
    assert_eq!(server.endpoint.open_sockets(), 2);
    first.join(T).await;
    sleep(WINDOW * 4).await;
    settle().await;
    assert_eq!(server.endpoint.open_sockets(), 0, "no client has polled");
    Poller::connect(&server, V2).await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_client_does_not_count_towards_the_limit() {
    let polled = LongPoll::new().max_sessions(1);
    let server = MemoryServer::start(endpoint_with(|mount| mount.longpoll(polled)).0);
    for _ in 0..2 {
        let refused = get(&server, "/socket/longpoll?vsn=2.0.0", &[]).await;
        assert_eq!(refused, json!({ "status": 403 }));
    }
    Poller::connect(&server, V2).await;
}

#[tokio::test(start_paused = true)]
async fn an_unlimited_window_never_ends() {
    let polled = LongPoll::new().window(Duration::MAX);
    let server = MemoryServer::start(endpoint_with(|mount| mount.longpoll(polled)).0);
    let poller = Poller::connect(&server, V2).await;
    poller.join(T).await;
    let polling = poller.clone();
    let waiting = async { polling.messages().await };
    let said = async {
        sleep(Duration::from_secs(100_000)).await;
        server.endpoint.broadcast(T, "late", json!({})).unwrap();
    };
    let (messages, ()) = tokio::join!(waiting, said);
    assert_eq!(messages, [json!([null, null, T, "late", {}])]);
}

/// Begins a request whose body sends this many empty lines, and not the last one.
async fn begin_post(poller: &Poller<'_>, server: &MemoryServer, lines: usize) -> DuplexStream {
    begin_part(poller, server, lines, lines + 1).await
}

/// Begins a request whose body sends this many empty lines first.
async fn begin_part(
    poller: &Poller<'_>,
    server: &MemoryServer,
    first: usize,
    all: usize,
) -> DuplexStream {
    let mut stream = server.stream_of(1 << 21).await;
    let head = format!(
        "POST /socket/longpoll?{V2}&token={} HTTP/1.1\r\nhost: x\r\n\
         content-type: application/x-ndjson\r\ncontent-length: {}\r\n\r\n",
        poller.token, all
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![b'\n'; first]).await.unwrap();
    stream
}

fn limited_by_inbox(server: &MemoryServer) -> u64 {
    let counters = server.recorded.counters("socket.messages_refused").into_iter();
    counters.filter(|(labels, _)| labels.contains("reason=inbox")).map(|(_, count)| count).sum()
}

#[tokio::test(start_paused = true)]
async fn a_client_has_at_most_eight_concurrent_posts() {
    let server = server();
    let poller = Poller::connect(&server, V2).await;
    let mut begun = Vec::new();
    for _ in 0..8 {
        begun.push(begin_post(&poller, &server, 100_000).await);
    }
    settle().await;
    let held = server.endpoint.snapshot().inbox_bytes;
    assert!((700_000..2_000_000).contains(&held), "{held}");
    let path = format!("/socket/longpoll?{V2}&token={}", poller.token);
    let answer = request(server.stream().await, "POST", &path, &[BATCH], &heartbeat("1")).await;
    assert_eq!((answer.status, &*answer.body), (429, "too many requests at once"));
    assert_eq!(limited_by_inbox(&server), 1);
    // The bodies have a window to arrive.
    for stream in &mut begun {
        assert_eq!(body_of(&Response::read(stream).await), json!({ "status": 408 }));
    }
    assert_eq!(server.endpoint.snapshot().inbox_bytes, 0);
    assert_eq!(poller.post(&heartbeat("1")).await, json!({ "status": 200 }));
}

#[tokio::test(start_paused = true)]
async fn bodies_stay_within_the_endpoints_limit() {
    let polled = LongPoll::new().window(WINDOW);
    let (builder, _) = endpoint_with(|mount| mount.longpoll(polled));
    let server = MemoryServer::start(builder.max_inboxes(1 << 20));
    let mut begun = Vec::new();
    for _ in 0..4 {
        let poller = Poller::connect(&server, V2).await;
        for _ in 0..4 {
            begun.push(begin_post(&poller, &server, (1 << 20) - 1).await);
        }
    }
    sleep(WINDOW / 2).await;
    let held = server.endpoint.snapshot().inbox_bytes;
    assert!((1 << 20..3 << 20).contains(&held), "{held}");
    for stream in &mut begun {
        assert_eq!(body_of(&Response::read(stream).await), json!({ "status": 408 }));
    }
    assert_eq!(server.endpoint.snapshot().inbox_bytes, 0);
}

#[tokio::test(start_paused = true)]
async fn a_body_without_room_is_refused() {
    let polled = LongPoll::new().window(WINDOW);
    let (builder, gate) = endpoint_with(|mount| mount.longpoll(polled));
    gate.add_permits(1);
    let server = MemoryServer::start(builder.max_inboxes(1 << 20));
    let mut greedy = server.connect(1 << 22).await;
    greedy.join("1", "slow:busy").await;
    greedy.send(json!(["1", null, "slow:busy", "wait", {}])).await;
    let large = json!(["1", null, "slow:busy", "ping", { "padding": "x".repeat(300_000) }]);
    for _ in 0..4 {
        greedy.send(large.clone()).await;
    }
    settle().await;
    let poller = Poller::connect(&server, V2).await;
    assert_eq!(poller.post(&" ".repeat(50_000)).await, json!({ "status": 408 }));
    assert_eq!(limited_by_inbox(&server), 1);
    // A body within its share is accepted all the same.
    let poller = Poller::connect(&server, V2).await;
    assert_eq!(poller.post(&heartbeat("1")).await, json!({ "status": 200 }));
}

#[tokio::test(start_paused = true)]
async fn concurrent_bodies_are_all_accepted_eventually() {
    let (server, _) = server_with(|mount| mount.max_inbox(1 << 20));
    let poller = Poller::connect(&server, V2).await;
    // Together they exceed the inbox of a client, and each holds its part while it waits.
    let (pieces, piece, mut begun) = (20, vec![b'\n'; 15_000], Vec::new());
    for _ in 0..8 {
        begun.push(begin_part(&poller, &server, 0, pieces * piece.len()).await);
    }
    for _ in 0..pieces {
        for stream in &mut begun {
            stream.write_all(&piece).await.unwrap();
        }
        settle().await;
    }
    for stream in &mut begun {
        assert_eq!(body_of(&Response::read(stream).await), json!({ "status": 200 }));
    }
    assert_eq!(server.endpoint.snapshot().inbox_bytes, 0);
}

#[tokio::test(start_paused = true)]
async fn a_body_is_abandoned_when_its_session_has_ended() {
    let server = server();
    let poller = Poller::connect(&server, V2).await;
    let mut begun = begin_post(&poller, &server, 100_000).await;
    settle().await;
    let ended = Instant::now();
    assert_eq!(server.endpoint.disconnect("named:ada"), 1);
    assert_eq!(body_of(&Response::read(&mut begun).await), json!({ "status": 408 }));
    assert_eq!(ended.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_body_may_be_larger_than_the_inbox_of_its_client() {
    let (server, _) = server_with(|mount| mount.max_inbox(2000));
    let poller = Poller::connect(&server, V2).await;
    let lines: Vec<_> = (1..=100).map(|n| heartbeat(&n.to_string())).collect();
    assert_eq!(poller.post(&lines.join("\n")).await, json!({ "status": 200 }));
    assert_eq!(poller.messages().await.len(), 100);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_joins_of_a_topic_in_one_request_are_accepted_one_after_the_other() {
    let server = server();
    let poller = Poller::connect(&server, V2).await;
    let join = |n: usize| json!([n.to_string(), n.to_string(), T, "phx_join", {}]).to_string();
    let lines: Vec<_> = (1..=1000).map(join).collect();
    assert_eq!(poller.post(&lines.join("\n")).await, json!({ "status": 200 }));
    // Each ends the one before.
    assert_eq!(poller.messages().await.len(), 1999);
}

#[tokio::test(start_paused = true)]
async fn messages_whose_requests_are_given_up_wait_behind_a_join_within_its_bound() {
    let (server, gate) = server_with(|mount| mount);
    let poller = Poller::connect(&server, V2).await;
    let message = |n: usize| match n {
        0 => json!(["1", "0", "slow:x", "phx_join", {}]).to_string(),
        n => json!(["1", n.to_string(), "slow:x", "ping", {}]).to_string(),
    };
    let mut refused = 0;
    for n in 0..=300 {
        // Each request is answered after its window, as the join has not ended.
        let message = message(n);
        let (posted, polled) = tokio::join!(poller.post(&message), poller.poll());
        assert_eq!(posted["status"], 408, "{n}");
        refused += polled["messages"].as_array().map_or(0, Vec::len);
    }
    gate.add_permits(1);
    let mut accepted = 0;
    while refused + accepted < 301 {
        for message in poller.messages().await {
            let message = message.to_string();
            let is_ok = message.contains(r#""status":"ok""#);
            assert!(is_ok || message.contains("too many messages are waiting"), "{message}");
            *(if is_ok { &mut accepted } else { &mut refused }) += 1;
        }
    }
    assert_eq!((accepted, refused), (257, 44), "the join, and 256 behind it");
}

#[tokio::test(start_paused = true)]
async fn a_polling_client_is_rate_limited_too() {
    let polled = LongPoll::new();
    let (builder, _) = endpoint_with(|mount| mount.longpoll(polled).frame_rate_limit(100));
    let server = MemoryServer::start(builder);
    let poller = Poller::connect(&server, V2).await;
    let begun = Instant::now();
    let lines = vec![heartbeat("1"); 1500].join("\n");
    assert_eq!(poller.post(&lines).await, json!({ "status": 200 }));
    let took = begun.elapsed().as_secs();
    assert!((4..=6).contains(&took), "1000 at once, the rest at the rate: {took}");
    assert_eq!(poller.messages().await.len(), 1500);
    let paused = server.recorded.counters("socket.reads_paused");
    assert!(paused.iter().any(|(labels, count)| labels == "reason=rate" && *count > 10));
    // All lines of a request together have one window.
    let begun = Instant::now();
    let lines = vec![heartbeat("1"); 5000].join("\n");
    let polling = async {
        let polled = poller.poll().await;
        assert_eq!(polled["status"], 200);
    };
    let (posted, ()) = tokio::join!(poller.post(&lines), polling);
    assert_eq!(posted, json!({ "status": 408 }));
    let took = begun.elapsed().as_secs();
    assert!((10..=11).contains(&took), "{took}");
}
