//! Clients that come all at once, where the rate is limited, on a paused clock.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod support;

use std::time::Duration;

use futures::{StreamExt, future::join_all, stream};
use pipeline_ws_sink::{endpoint::ArrivalRate, mount::LongPoll};
use serde_json::{Value, json};
use support::{
    channels::{endpoint, endpoint_with},
    memory::MemoryServer,
    poller::request,
};
use tokio::time::{Instant, sleep, timeout};

const RATE: u32 = 100;

fn rate() -> ArrivalRate {
    ArrivalRate::new(RATE).wait(Duration::from_secs(2))
}

/// The status with which a client that connects is answered.
async fn connects(server: &MemoryServer) -> u16 {
    connects_from("192.0.2.1", server).await
}

/// The same for a client that a proxy says to have this address.
async fn connects_from(address: &str, server: &MemoryServer) -> u16 {
    let websocket = [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("x-forwarded-for", address),
    ];
    let path = "/socket/websocket?vsn=2.0.0&name=ada";
    let answer = request(server.stream().await, "GET", path, &websocket, "").await;
    assert_eq!(answer.status == 503, answer.header("retry-after").is_some(), "{answer:?}");
    answer.status
}

fn sum(server: &MemoryServer, name: &str) -> u64 {
    server.recorded.counters(name).iter().map(|(_, count)| count).sum()
}

#[tokio::test(start_paused = true)]
async fn clients_that_come_at_once_are_let_in_at_the_rate_and_all_in_the_end() {
    let server = MemoryServer::start(endpoint().0.connect_rate(rate()));
    let mut there = server.connect(1 << 16).await;
    let begun = Instant::now();
    // Each tries again when it is refused, as the official client does.
    let tries = |_| async {
        let mut tries = 1;
        while connects(&server).await == 503 {
            tries += 1;
            sleep(Duration::from_secs(1)).await;
        }
        tries
    };
    let all = join_all((0..500).map(tries));
    // A client that is there does not notice.
    let alive = async {
        for n in 0..40 {
            let asked = Instant::now();
            there.send(json!([null, n.to_string(), "phoenix", "heartbeat", {}])).await;
            let _: Value = there.receive().await;
            assert!(asked.elapsed() < Duration::from_millis(100), "{:?}", asked.elapsed());
            sleep(Duration::from_millis(100)).await;
        }
    };
    let (tries, ()) = tokio::join!(all, alive);
    let took = begun.elapsed().as_secs_f64();
    assert!((4.5..8.0).contains(&took), "500 clients at {RATE} a second: {took} s");
    let refused = tries.iter().sum::<u64>() - 500;
    assert!(refused > 0);
    assert_eq!(sum(&server, "socket.connects_over_rate"), refused);
}

#[tokio::test(start_paused = true)]
async fn no_client_waits_for_longer_than_it_may() {
    let server = MemoryServer::start(endpoint().0.connect_rate(rate()));
    let begun = Instant::now();
    let answers = join_all((0..1000).map(|_| async { (connects(&server).await, begun.elapsed()) }));
    let answers = answers.await;
    let served = answers.iter().filter(|(status, _)| *status == 101).count();
    // Those of the burst and of two seconds.
    assert!((200..=215).contains(&served), "{served}");
    for (status, took) in answers {
        let most = if status == 503 { Duration::ZERO } else { Duration::from_secs(2) };
        assert!(took <= most + Duration::from_millis(100), "{status} after {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn clients_that_leave_while_they_wait_free_their_places() {
    let server = MemoryServer::start(endpoint().0.connect_rate(rate()));
    // More in each second than may come, and each leaves at once.
    for _ in 0..50 {
        let leaving = join_all((0..20).map(|_| connects(&server)));
        assert!(timeout(Duration::from_millis(20), leaving).await.is_err());
    }
    let begun = Instant::now();
    assert_eq!(connects(&server).await, 101);
    assert!(begun.elapsed() < Duration::from_millis(100), "{:?}", begun.elapsed());
    assert!(sum(&server, "socket.connects_given_up") > 100);
}

#[tokio::test(start_paused = true)]
async fn one_address_cannot_take_all_turns() {
    let server = MemoryServer::start(endpoint().0.connect_rate(rate().behind_proxies(1)));
    // What a client puts in front makes it no other address.
    let greedy = |n: usize| {
        let forwarded = format!("198.51.100.{}, 203.0.113.9", n % 200);
        let server = &server;
        async move { connects_from(&forwarded, server).await }
    };
    let all = join_all((0..500).map(greedy));
    let others = async {
        sleep(Duration::from_millis(100)).await;
        for n in 0..20 {
            let begun = Instant::now();
            assert_eq!(connects_from(&format!("192.0.2.{n}"), &server).await, 101);
            assert!(begun.elapsed() < Duration::from_millis(100), "{:?}", begun.elapsed());
        }
    };
    let (statuses, ()) = tokio::join!(all, others);
    // Those that wait are refused for others, or have their turn.
    let served = statuses.iter().filter(|status| **status == 101).count();
    assert!((180..=215).contains(&served), "{served}");
}

#[tokio::test(start_paused = true)]
async fn one_socket_cannot_take_all_joins() {
    let server = MemoryServer::start(endpoint().0.join_rate(rate().max_waiting(50)));
    let join = |topic: String| json!([topic, topic, format!("room:{topic}"), "phx_join", {}]);
    let mut greedy = server.connect(1 << 16).await;
    for n in 0..90 {
        greedy.send(join(n.to_string())).await;
    }
    sleep(Duration::from_millis(1)).await;
    for n in 0..10 {
        let mut other = server.connect(1 << 16).await;
        let begun = Instant::now();
        other.send(join(n.to_string())).await;
        let answer: Value = other.receive().await;
        assert_eq!(answer[4]["status"], "ok");
        assert!(begun.elapsed() < Duration::from_millis(100), "{:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn polling_clients_count_too_and_a_drain_refuses_those_that_wait() {
    let polled = LongPoll::new();
    let (builder, _) = endpoint_with(|mount| mount.longpoll(polled));
    let server = MemoryServer::start(builder.connect_rate(ArrivalRate::new(1)));
    let path = "/socket/longpoll?vsn=2.0.0&name=ada";
    let poll = || async {
        let asked = Instant::now();
        let answer = request(server.stream().await, "GET", path, &[], "").await;
        (answer.status, asked.elapsed().as_secs())
    };
    assert_eq!(poll().await, (200, 0));
    assert_eq!(poll().await, (200, 0), "one may come early");
    let draining = async {
        sleep(Duration::from_millis(100)).await;
        server.endpoint.drain(Duration::from_secs(5)).await
    };
    let (waiting, _) = tokio::join!(poll(), draining);
    assert_eq!(waiting.0, 503);
}

#[tokio::test(start_paused = true)]
async fn joins_come_at_the_rate_and_those_beyond_are_refused() {
    let server = MemoryServer::start(endpoint().0.join_rate(rate()));
    let begun = Instant::now();
    let clients = stream::iter(0..100).then(|_| server.connect(1 << 16)).collect::<Vec<_>>().await;
    let joined = join_all(clients.into_iter().map(|mut client| async move {
        for n in 0..4 {
            let topic = format!("room:{n}");
            client.send(json!([n.to_string(), n.to_string(), topic, "phx_join", {}])).await;
        }
        // While joins wait, other messages are answered.
        client.send(json!([null, "9", "phoenix", "heartbeat", {}])).await;
        let mut first = None;
        let mut accepted = 0;
        for _ in 0..5 {
            let answer: Value = client.receive().await;
            first.get_or_insert(answer[1].clone());
            match answer[4]["status"].as_str().unwrap() {
                "ok" => accepted += usize::from(answer[1] != "9"),
                _ => assert_eq!(answer[4]["response"], json!({ "reason": "too many joins" })),
            }
        }
        (accepted, client)
    }));
    let joined = timeout(Duration::from_secs(10), joined).await.unwrap();
    let accepted: usize = joined.iter().map(|(accepted, _)| accepted).sum();
    assert!((200..=215).contains(&accepted), "{accepted}");
    // After a pause, those of a tenth of a second and one more come at once.
    assert!(begun.elapsed() >= Duration::from_millis(1_850), "{:?}", begun.elapsed());
    assert_eq!(sum(&server, "channel.joins_over_rate"), 400 - accepted as u64);
    assert_eq!(server.endpoint.snapshot().channels[0].open, accepted);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_while_its_join_waits_leaves_nothing() {
    let server = MemoryServer::start(endpoint().0.join_rate(ArrivalRate::new(1)));
    let mut client = server.connect(1 << 16).await;
    for n in 0..4 {
        client
            .send(json!([n.to_string(), n.to_string(), format!("room:{n}"), "phx_join", {}]))
            .await;
    }
    let _: Value = client.receive().await;
    drop(client);
    let begun = Instant::now();
    let report = server.endpoint.drain(Duration::from_secs(5)).await;
    assert_eq!(report.aborted, 0);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    // They were not refused.
    let joins = server.recorded.counters("channel_join");
    let of = |status| joins.iter().filter(move |(labels, _)| labels.contains(status));
    assert!(of("success").any(|(_, count)| *count > 0), "{joins:?}");
    assert!(of("fail").all(|(_, count)| *count == 0), "{joins:?}");
}
