//! Polling clients behind a load balancer without sticky sessions: each request may meet another node.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod support;

use std::time::Duration;

use pipeline_test_support::settle;
use pipeline_ws_sink::{
    Payload,
    mount::LongPoll,
    pubsub::{Adapter, Broadcast, PreparedBroadcast},
};
use serde_json::json;
use support::{
    channels::{Room, endpoint_with},
    cluster::Cluster,
    handshake_server::Response,
    memory::MemoryServer,
    poller::{BATCH, Poller, body_of, request},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep, timeout},
};

const T: &str = "room:lobby";
const V2: &str = "vsn=2.0.0&name=ada";
const WINDOW: Duration = Duration::from_secs(1);
const SECRET: &str = "a secret of all nodes of this cluster";

/// A node of a cluster.
fn node(cluster: &Cluster, name: &str) -> MemoryServer {
    let polled = LongPoll::new().window(WINDOW);
    let (builder, _) = endpoint_with(|mount| {
        mount.longpoll(polled).max_outbox(1000, 8 << 20).max_message_size(1 << 20)
    });
    MemoryServer::start(builder.adapter(cluster.node(name)).cluster_secret(SECRET))
}

fn nodes() -> (Cluster, MemoryServer, MemoryServer) {
    let cluster = Cluster::default();
    let (left, right) = (node(&cluster, "left"), node(&cluster, "right"));
    (cluster, left, right)
}

/// The same client, whose requests meet another node.
fn at<'a>(server: &'a MemoryServer, poller: &Poller<'_>) -> Poller<'a> {
    Poller { server, query: poller.query.clone(), token: poller.token.clone() }
}

fn relayed(server: &MemoryServer) -> Vec<(String, u64)> {
    server.recorded.counters("socket.longpoll_relayed")
}

#[tokio::test(start_paused = true)]
async fn requests_that_meet_another_node_are_served_by_that_of_the_session() {
    let (_cluster, left, right) = nodes();
    let here = Poller::connect(&left, V2).await;
    let there = at(&right, &here);
    there.join(T).await;
    assert_eq!((left.endpoint.open_sockets(), right.endpoint.open_sockets()), (1, 0));
    for n in 0..10 {
        let (polls, posts) = if n % 2 == 0 { (&here, &there) } else { (&there, &here) };
        let echo = json!(["1", n.to_string(), T, "ping", { "n": n }]).to_string();
        let (polled, posted) = tokio::join!(polls.messages(), posts.post(&echo));
        assert_eq!(posted, json!({ "status": 200 }));
        assert_eq!(polled[0][4]["response"], json!({ "n": n }));
    }
    // A poll that waits gets what is broadcast on either node, and nothing when its window is over.
    let waiting = tokio::spawn({
        let (poller, broadcasting) = (there.server.stream().await, right.endpoint.clone());
        let path = there.path();
        async move {
            let polling = request(poller, "GET", &path, &[], "");
            let broadcast = async {
                sleep(WINDOW / 2).await;
                broadcasting.broadcast(T, "tick", json!({})).unwrap();
            };
            tokio::join!(polling, broadcast).0
        }
    });
    assert!(waiting.await.unwrap().body.contains("tick"));
    let begun = Instant::now();
    assert_eq!(there.poll().await, there.nothing());
    assert!(begun.elapsed() >= WINDOW && begun.elapsed() < 2 * WINDOW, "{:?}", begun.elapsed());
    let outcomes = relayed(&right);
    assert!(outcomes.iter().all(|(outcome, count)| outcome == "outcome=answered" || *count == 0));
    assert!(relayed(&left).iter().all(|(_, count)| *count == 0));
}

#[tokio::test(start_paused = true)]
async fn long_answers_and_requests_are_passed_on_in_parts() {
    let (_cluster, left, right) = nodes();
    let here = Poller::connect(&left, V2).await;
    let there = at(&right, &here);
    there.join(T).await;
    let long = "x".repeat(700_000);
    let echo = json!(["1", "2", T, "ping", { "long": long }]).to_string();
    assert_eq!(there.post(&echo).await, json!({ "status": 200 }));
    assert_eq!(there.messages().await[0][4]["response"]["long"], json!(long));
}

#[tokio::test(start_paused = true)]
async fn a_client_begins_anew_at_once_when_its_node_has_no_such_session() {
    let (cluster, left, right) = nodes();
    let here = Poller::connect(&left, V2).await;
    let there = at(&right, &here);
    there.join(T).await;
    let begun = Instant::now();
    // The session ends while a poll that met the other node waits.
    let (polled, report) = tokio::join!(there.poll(), async {
        settle().await;
        left.endpoint.drain(Duration::from_secs(5)).await
    });
    assert_eq!((polled["status"].clone(), report.closed), (json!(410), 1));
    assert_ne!(polled["token"], json!(there.token));
    assert_eq!(right.endpoint.open_sockets(), 1, "the new session is where the request came");
    // And after its end.
    assert_eq!(there.post("[]").await, json!({ "status": 410 }));
    assert_eq!(there.poll().await["status"], 410);
    // A node that was started again under its name knows none of its former sessions.
    let again = node(&cluster, "left");
    assert_eq!(there.poll().await["status"], 410);
    assert_eq!(at(&again, &here).poll().await["status"], 410);
    assert!(begun.elapsed() < WINDOW / 2, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_client_begins_anew_soon_when_its_node_does_not_answer() {
    let (cluster, left, right) = nodes();
    let here = Poller::connect(&left, V2).await;
    let there = at(&right, &here);
    // The node is gone without a word: no message reaches it.
    cluster.remove("left");
    let begun = Instant::now();
    assert_eq!(there.post("[]").await, json!({ "status": 410 }));
    assert_eq!(there.poll().await["status"], 410);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    // No message can be sent at all.
    cluster.down(true);
    let begun = Instant::now();
    assert_eq!(there.post("[]").await, json!({ "status": 410 }));
    assert_eq!(there.poll().await["status"], 410);
    assert!(begun.elapsed() < WINDOW, "{:?}", begun.elapsed());
    let silent = ("outcome=silent".to_owned(), 4);
    assert!(relayed(&right).contains(&silent), "{:?}", relayed(&right));
}

#[tokio::test(start_paused = true)]
async fn a_client_whose_answer_is_lost_between_the_nodes_begins_anew() {
    let (cluster, left, right) = nodes();
    let here = Poller::connect(&left, V2).await;
    let there = at(&right, &here);
    there.join(T).await;
    let (polled, ()) = tokio::join!(there.poll(), async {
        sleep(WINDOW / 2).await;
        cluster.down(true);
    });
    assert_eq!(polled["status"], 410);
}

#[tokio::test(start_paused = true)]
async fn what_comes_late_is_not_done() {
    let cluster = Cluster::default();
    let node = |name| {
        let (builder, _) = endpoint_with(|mount| mount.longpoll(LongPoll::new()));
        MemoryServer::start(builder.adapter(cluster.node(name)).cluster_secret(SECRET))
    };
    let (left, right) = (node("left"), node("right"));
    let here = Poller::connect(&left, V2).await;
    let there = at(&right, &here);
    there.join(T).await;
    let echo = |n: u32| json!(["1", n.to_string(), T, "ping", {}]).to_string();
    // The request is late, and its client has been answered.
    cluster.hold_after(0);
    assert_eq!(there.post(&echo(1)).await, json!({ "status": 410 }));
    cluster.release();
    assert_eq!(here.poll().await, here.nothing());
    // It was heard, and its body asked for, which is late.
    cluster.hold_after(3);
    let second = echo(2);
    let (posted, polled) = tokio::join!(there.post(&second), here.poll());
    assert_eq!((posted, polled), (json!({ "status": 408 }), here.nothing()));
    cluster.release();
    assert_eq!(here.poll().await, here.nothing());
    assert_eq!(there.post(&echo(3)).await, json!({ "status": 200 }));
    assert_eq!(here.messages().await[0][1], json!("3"));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_drains_lets_its_polls_meet_another_one() {
    let (_cluster, left, right) = nodes();
    let here = Poller::connect(&left, V2).await;
    let there = at(&right, &here);
    there.join(T).await;
    let begun = Instant::now();
    let (polled, _) = tokio::join!(there.poll(), async {
        settle().await;
        right.endpoint.drain(Duration::from_secs(5)).await
    });
    assert_eq!(polled, there.nothing());
    assert!(begun.elapsed() < WINDOW, "{:?}", begun.elapsed());
    left.endpoint.broadcast(T, "tick", json!({})).unwrap();
    assert_eq!(here.messages().await[0][3], json!("tick"));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_its_client_may_not_have_got_ends_the_session() {
    let (cluster, left, right) = nodes();
    let here = Poller::connect(&left, V2).await;
    let there = at(&right, &here);
    there.join(T).await;
    // The client reads nothing of a long answer: it is counted, and no other poll is answered.
    let long = "x".repeat(700_000);
    left.endpoint.broadcast(T, "long", json!({ "long": long })).unwrap();
    let mut unread = right.stream_of(64).await;
    unread
        .write_all(format!("GET {} HTTP/1.1\r\nhost: x\r\n\r\n", there.path()).as_bytes())
        .await
        .unwrap();
    settle().await;
    assert!(left.endpoint.snapshot().frames_waiting == 0, "the answer is on its way");
    let begun = Instant::now();
    assert_eq!(here.poll().await["status"], 410);
    let took = begun.elapsed();
    assert!((2..4).contains(&took.as_secs()), "{took:?}");
    assert_eq!(left.endpoint.open_sockets(), 1, "the new one");
    drop(unread);

    // The connection ends while the client reads the answer.
    let here = Poller::connect(&left, V2).await;
    let there = at(&right, &here);
    there.join(T).await;
    left.endpoint.broadcast(T, "long", json!({ "long": "x".repeat(700_000) })).unwrap();
    let mut broken = right.stream_of(64).await;
    broken
        .write_all(format!("GET {} HTTP/1.1\r\nhost: x\r\n\r\n", there.path()).as_bytes())
        .await
        .unwrap();
    let mut some = vec![0; 300_000];
    broken.read_exact(&mut some).await.unwrap();
    drop(broken);
    settle().await;
    assert_eq!(here.poll().await["status"], 410);

    // The node that the client met ends before it says that the client has the answer.
    let here = Poller::connect(&left, V2).await;
    let there = at(&right, &here);
    there.join(T).await;
    left.endpoint.broadcast(T, "tick", json!({})).unwrap();
    // It is asked, says that it has heard, and answers. Then no more is said.
    cluster.hold_after(3);
    assert_eq!(there.messages().await[0][3], json!("tick"));
    assert_eq!(here.poll().await["status"], 410);
}

#[tokio::test(start_paused = true)]
async fn an_endless_poll_ends_soon_when_the_node_of_its_session_is_gone() {
    let cluster = Cluster::default();
    let node = |name| {
        let polled = LongPoll::new().window(Duration::MAX);
        let (builder, _) = endpoint_with(|mount| mount.longpoll(polled));
        MemoryServer::start(builder.adapter(cluster.node(name)).cluster_secret(SECRET))
    };
    let (left, right) = (node("left"), node("right"));
    let here = Poller::connect(&left, V2).await;
    let there = at(&right, &here);
    there.join(T).await;
    let begun = Instant::now();
    let (messages, ()) = tokio::join!(there.messages(), async {
        sleep(Duration::from_secs(60)).await;
        left.endpoint.broadcast(T, "tick", json!({})).unwrap();
    });
    assert_eq!((messages[0][3].clone(), begun.elapsed().as_secs()), (json!("tick"), 60));
    let (polled, ()) = tokio::join!(there.poll(), async {
        sleep(Duration::from_secs(30)).await;
        cluster.remove("left");
    });
    assert_eq!(polled["status"], 410);
    assert!(begun.elapsed() < Duration::from_secs(60 + 30 + 20), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_poll_takes_no_longer_than_the_official_client_waits() {
    let cluster = Cluster::default();
    let node = |name| {
        let polled = LongPoll::new().window(Duration::from_secs(19));
        let (builder, _) = endpoint_with(|mount| mount.longpoll(polled));
        MemoryServer::start(builder.adapter(cluster.node(name)).cluster_secret(SECRET))
    };
    let (left, right) = (node("left"), node("right"));
    let here = Poller::connect(&left, V2).await;
    let there = at(&right, &here);
    there.join(T).await;
    for is_gone in [false, true] {
        let begun = Instant::now();
        let (polled, ()) = tokio::join!(there.poll(), async {
            settle().await;
            if is_gone {
                // No answer reaches it.
                cluster.remove("right");
            }
        });
        assert_eq!(polled["status"], if is_gone { 410 } else { 204 });
        assert!(begun.elapsed() < Duration::from_secs(19), "{:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_poll_that_is_given_up_at_another_node_takes_no_messages() {
    let (_cluster, left, right) = nodes();
    let here = Poller::connect(&left, V2).await;
    let there = at(&right, &here);
    there.join(T).await;
    let mut stream = right.stream().await;
    stream
        .write_all(format!("GET {} HTTP/1.1\r\nhost: x\r\n\r\n", there.path()).as_bytes())
        .await
        .unwrap();
    settle().await;
    drop(stream);
    settle().await;
    left.endpoint.broadcast(T, "tick", json!({})).unwrap();
    assert_eq!(there.messages().await[0][3], json!("tick"));
}

#[tokio::test(start_paused = true)]
async fn without_other_nodes_a_token_of_another_node_is_no_session() {
    let (_cluster, left, _right) = nodes();
    let here = Poller::connect(&left, V2).await;
    let polled = LongPoll::new().window(WINDOW);
    let alone = MemoryServer::start(endpoint_with(|mount| mount.longpoll(polled)).0);
    let there = at(&alone, &here);
    assert_eq!(there.post("[]").await, json!({ "status": 410 }));
    let polled = there.poll().await;
    assert_eq!(polled["status"], 410);
    // The token of a node that is alone names none.
    assert!(!polled["token"].as_str().unwrap().contains('~'));
}

#[tokio::test(start_paused = true)]
async fn what_is_no_request_of_another_node_is_ignored() {
    let (cluster, left, _right) = nodes();
    let here = Poller::connect(&left, V2).await;
    let mut subscribed = left.endpoint.subscribe("phx_longpoll:relay");
    let intruder = cluster.node("intruder");
    let head = json!({ "id": 1, "from": "intruder", "what": { "Poll": { "path": "/no", "token": here.token, "within": 9 } } });
    let bytes: [Vec<u8>; 6] = [
        vec![],
        b"\n".to_vec(),
        b"{}\n".to_vec(),
        b"no line".to_vec(),
        format!("{head}\n").into_bytes(),
        br#"{"id":7,"from":"x","what":{"Answer":{"status":7,"part":0,"last":true,"keeps":false}}}"#
            .to_vec(),
    ];
    for bytes in bytes {
        let message =
            Broadcast::new("phx_longpoll:relay", "relay", Payload::binary(bytes)).unwrap();
        intruder.direct_broadcast("left", &message).unwrap();
    }
    let text = Broadcast::new("phx_longpoll:relay", "relay", json!({})).unwrap();
    intruder.direct_broadcast("left", &text).unwrap();
    let nothing = timeout(Duration::from_secs(1), subscribed.recv());
    assert!(nothing.await.is_err(), "they reach no subscriber");
    here.join(T).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_cannot_write_messages_between_nodes() {
    let cluster = Cluster::default();
    let (builder, _) =
        endpoint_with(|mount| mount.channel::<Room>("*").longpoll(LongPoll::new().window(WINDOW)));
    let left = builder.adapter(cluster.node("left")).cluster_secret(SECRET);
    let left = MemoryServer::start(left);
    let right = node(&cluster, "right");
    let here = Poller::connect(&left, V2).await;
    // No route matches the topic, not even one that matches all.
    let join = json!(["1", "1", "phx_longpoll:relay", "phx_join", {}]).to_string();
    here.post(&join).await;
    let refused = &here.messages().await[0][4];
    assert_eq!(refused["response"], json!({ "reason": "unmatched topic" }));
    // A channel that lets its clients choose the topic passes nothing on.
    let head = json!({ "id": 1, "from": "left", "what": { "Poll": { "path": "/no", "token": "", "within": 9 } } });
    let bytes = || Payload::binary(format!("{head}\n").into_bytes());
    cluster.sent();
    left.endpoint.broadcast("phx_longpoll:relay", "relay", bytes()).unwrap_err();
    let prepared = PreparedBroadcast::new("phx_longpoll:relay", "relay", bytes()).unwrap();
    left.endpoint.pubsub().broadcast_when_ready(&prepared).await.unwrap_err();
    let direct =
        left.endpoint.pubsub().direct_broadcast("right", "phx_longpoll:relay", "relay", bytes());
    direct.unwrap_err();
    for topic in ["phx_presence:users", "phx_longpoll:relay"] {
        let pubsub = left.endpoint.pubsub();
        let (mut subscribed, from) = (pubsub.subscribe(topic), pubsub.subscribe("other").id());
        let object = || json!({});
        let prepared = || PreparedBroadcast::new(topic, "relay", object()).unwrap();
        let refused = [
            pubsub.broadcast(topic, "relay", object()),
            pubsub.broadcast_from(from, topic, "relay", object()),
            pubsub.broadcast_timed(Instant::now(), topic, "relay", object()),
            pubsub.local_broadcast(topic, "relay", object()),
            pubsub.local_broadcast_from(from, topic, "relay", object()),
            pubsub.local_broadcast_timed(Instant::now(), topic, "relay", object()),
            pubsub.direct_broadcast("right", topic, "relay", object()),
            pubsub.broadcast_when_ready(&prepared()).await,
            pubsub.broadcast_when_ready(&prepared().here_only()).await,
            pubsub.deliver_now(prepared()).map(drop),
        ];
        for (n, outcome) in refused.into_iter().enumerate() {
            let error = outcome.expect_err(&format!("{topic}, {n}")).to_string();
            assert!(error.contains("reserved for messages between nodes"), "{topic}, {n}: {error}");
        }
        let nothing = timeout(Duration::from_millis(1), subscribed.recv());
        assert!(nothing.await.is_err(), "{topic}: its own node hears nothing either");
    }
    // And a message with another event is none of a node.
    let shout = Broadcast::new("phx_longpoll:relay", "shout", bytes()).unwrap();
    cluster.node("intruder").direct_broadcast("right", &shout).unwrap();
    settle().await;
    let sent = cluster.sent();
    assert!(sent.iter().all(|line| line.ends_with("shout")), "right has answered: {sent:?}");
    assert_eq!(right.endpoint.open_sockets(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_no_node_gives_is_not_passed_on() {
    let (cluster, left, right) = nodes();
    let here = Poller::connect(&left, V2).await;
    let mut there = at(&right, &here);
    there.token = format!("{}{}", "x".repeat(512), here.token);
    cluster.sent();
    assert_eq!(there.post("[]").await, json!({ "status": 410 }));
    assert_eq!(cluster.sent(), Vec::<String>::new());
    // One whose node is another than it was given for, as any client can write it.
    let (session, _) = here.token.split_once('~').unwrap();
    let signature = here.token.rsplit_once('~').unwrap().1;
    for node in ["bm9ib2R5", "cmlnaHQx", "bGVmdA"] {
        for signature in [signature, "", "x"] {
            there.token = format!("{session}~{node}~{signature}");
            if there.token != here.token {
                assert_eq!(there.post("[]").await, json!({ "status": 410 }));
                assert_eq!(there.poll().await["status"], 410);
            }
        }
    }
    assert_eq!(cluster.sent(), Vec::<String>::new());
    // A node that has not the secret takes it for no session.
    let (builder, _) = endpoint_with(|mount| mount.longpoll(LongPoll::new()));
    let other = MemoryServer::start(builder.adapter(cluster.node("other")));
    assert_eq!(at(&other, &here).post("[]").await, json!({ "status": 410 }));
    assert_eq!(cluster.sent(), Vec::<String>::new());
    // The token of a node with the longest name is.
    let longest = "n".repeat(255);
    let named = node(&cluster, &longest);
    let here = Poller::connect(&named, V2).await;
    at(&right, &here).join(T).await;
}

#[tokio::test(start_paused = true)]
async fn a_body_is_not_read_for_a_request_that_cannot_be_passed_on() {
    let cluster = Cluster::default();
    let left = node(&cluster, "left");
    let polled = LongPoll::new().window(WINDOW).max_sessions(1);
    let (builder, _) = endpoint_with(|mount| mount.longpoll(polled));
    let right = builder.adapter(cluster.node("right")).cluster_secret(SECRET);
    let right = MemoryServer::start(right);
    let here = Poller::connect(&left, V2).await;
    let there = at(&right, &here);
    // Two polls for each session that may be open.
    let mut polls = Vec::new();
    for _ in 0..2 {
        let (stream, path) = (right.stream().await, there.path());
        polls.push(tokio::spawn(async move { request(stream, "GET", &path, &[], "").await }));
    }
    settle().await;
    let mut stream = right.stream().await;
    let head = format!("POST {} HTTP/1.1\r\nhost: x\r\ncontent-length: 7\r\n\r\n", there.path());
    stream.write_all(head.as_bytes()).await.unwrap();
    let begun = Instant::now();
    assert_eq!(Response::read(&mut stream).await.status, 503);
    assert!(begun.elapsed() < WINDOW / 2, "{:?}", begun.elapsed());
    for poll in polls {
        poll.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_post_of_no_session_is_answered_at_once() {
    let (_cluster, left, right) = nodes();
    let here = Poller::connect(&left, V2).await;
    let mut there = at(&right, &here);
    there.token = there.token.replacen(|c: char| c.is_ascii_alphanumeric(), "-", 1);
    let begun = Instant::now();
    assert_eq!(there.post(&"x".repeat(700_000)).await, json!({ "status": 410 }));
    assert!(begun.elapsed() < WINDOW, "at once: {:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_client_may_have_no_more_requests_at_once_than_at_its_own_node() {
    let (_cluster, left, right) = nodes();
    let here = Poller::connect(&left, V2).await;
    let there = at(&right, &here);
    // A join that does not end, and messages that wait behind it.
    let mut waiting = Vec::new();
    for n in 0..8 {
        let event = if n == 0 { "phx_join" } else { "ping" };
        let message = json!(["1", n.to_string(), "slow:1", event, {}]).to_string();
        let (stream, path) = (right.stream().await, there.path());
        waiting.push(tokio::spawn(async move {
            request(stream, "POST", &path, &[BATCH], &message).await
        }));
        settle().await;
    }
    let ninth = request(right.stream().await, "POST", &there.path(), &[BATCH], "[]").await;
    assert_eq!(ninth.status, 429);
    for answer in waiting {
        assert_eq!(body_of(&answer.await.unwrap()), json!({ "status": 408 }));
    }
}
