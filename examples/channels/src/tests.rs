//! The channels that the recordings do not cover, on a paused clock.
#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::time::{Duration, SystemTime};

use pipeline::ws::{
    channel_test::{TestChannel, TestEndpoint, TestSocket, assert_push, assert_reply, refute_push},
    token::Signer,
};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    runtime::Handle,
    time::{Instant, sleep},
};

use crate::mounts;

const SECOND: Duration = Duration::from_secs(1);

/// The sample application.
fn kit() -> TestEndpoint {
    TestEndpoint::of(mounts::endpoint(&signer()).build().unwrap())
}

fn signer() -> Signer {
    Signer::new("a secret for tests, long enough", "user socket").unwrap()
}

/// A client without channels.
async fn user(kit: &TestEndpoint, user: &str) -> TestSocket {
    kit.connect(json!({ "user_id": user })).await.unwrap()
}

/// A client that has joined this topic.
async fn joined(kit: &TestEndpoint, name: &str, topic: &str) -> TestChannel {
    user(kit, name).await.join(topic, json!({})).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn wild_accepts_only_a_second_number_that_is_twice_the_first() {
    let ada = user(&kit(), "ada").await;
    for topic in ["wild:2:4", "wild:0:0", "wild:21:42"] {
        ada.join(topic, json!({})).await.unwrap();
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
        let refused = ada.join(topic, json!({})).await.unwrap_err();
        assert_eq!(refused.json(), json!({ "reason": why }));
    }
}

#[tokio::test(start_paused = true)]
async fn token_pushes_a_valid_token_and_a_new_one_before_it_expires() {
    let ada = joined(&kit(), "ada", "token:ada").await;
    let joined = Instant::now();
    for round in 0..3 {
        let pushed = assert_push!(ada, "token", { "token": _ }, within: SECOND * 31);
        let token = pushed["token"].as_str().unwrap();
        let user: String = signer().verify(token, SystemTime::now()).unwrap();
        assert_eq!(user, "ada");
        let after = joined.elapsed().as_secs_f64();
        let expected = f64::from(round) * 60.0;
        assert!((expected..expected + 1.0).contains(&after), "the token {round} after {after} s");
        // No token is pushed early.
        refute_push!(ada, "token", within: SECOND * 30);
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_topic_is_for_its_own_user_only() {
    let refused = user(&kit(), "ada").await.join("token:joe", json!({})).await.unwrap_err();
    assert_eq!(refused.json(), json!({ "reason": "unauthorized" }));
}

#[derive(Deserialize)]
struct Number {
    number: i64,
}

/// The next numbers, in the order of arrival.
async fn numbers(channel: &TestChannel, count: usize) -> Vec<i64> {
    let mut numbers = vec![];
    while numbers.len() < count {
        let Number { number } = assert_push!(channel, "number", Number { .. }, within: SECOND * 2);
        numbers.push(number);
    }
    numbers
}

#[tokio::test(start_paused = true)]
async fn dedup_pushes_each_number_of_a_second_once_and_in_order() {
    let (kit, topic) = (kit(), "dedup:numbers");
    let (ada, joe) = (joined(&kit, "ada", topic).await, joined(&kit, "joe", topic).await);
    let began = Instant::now();
    for n in [3, 1, 3, -2, 1, 3] {
        ada.push("broadcast", json!({ "number": n }));
        sleep(Duration::from_millis(100)).await;
    }
    for channel in [&ada, &joe] {
        assert_eq!(numbers(channel, 3).await, [-2, 1, 3]);
    }
    let passed = began.elapsed().as_millis();
    assert!((1000..1050).contains(&passed), "{passed} ms");

    // The next second starts empty.
    kit.endpoint().broadcast(topic, "number", json!({ "number": 3 })).unwrap();
    kit.endpoint().broadcast(topic, "number", json!({ "number": 3 })).unwrap();
    for channel in [&ada, &joe] {
        assert_eq!(numbers(channel, 1).await, [3]);
    }
    for channel in [&ada, &joe] {
        refute_push!(channel, "number", within: SECOND * 10);
    }
}

/// The seconds until five concurrent pings are answered.
async fn five_pings(topic: &str) -> u64 {
    let ada = joined(&kit(), "ada", topic).await;
    let began = Instant::now();
    let pings: Vec<_> = (0..5).map(|n| (n, ada.push("ping", json!({ "n": n })))).collect();
    for (n, ping) in pings {
        assert_reply!(ada, ping, "ok", { "n": n }, within: SECOND * 4);
    }
    began.elapsed().as_secs()
}

#[tokio::test(start_paused = true)]
async fn slow_pings_are_answered_one_after_the_other() {
    assert_eq!(five_pings("ping:slow").await, 15);
}

#[tokio::test(start_paused = true)]
async fn parallel_pings_are_answered_concurrently() {
    assert_eq!(five_pings("ping:parallel").await, 3);
}

#[tokio::test(start_paused = true)]
async fn the_tasks_that_answer_a_client_end_with_its_channel() {
    let kit = kit();
    for (topic, event, payload) in [
        ("room:lobby", "async_detached", json!({ "delay": 60_000 })),
        ("ping:parallel", "ping", json!({})),
    ] {
        let ada = joined(&kit, "ada", topic).await;
        let before = Handle::current().metrics().num_alive_tasks();
        for _ in 0..10 {
            ada.push(event, &payload);
        }
        let alive = async || {
            sleep(Duration::from_millis(100)).await;
            Handle::current().metrics().num_alive_tasks()
        };
        assert_eq!(alive().await, before + 10, "{event}");
        ada.leave();
        assert!(alive().await <= before, "{event}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_ping_does_not_block_other_channels() {
    let ada = user(&kit(), "ada").await;
    let slow = ada.join("ping:slow", json!({})).await.unwrap();
    let other = ada.join("room:other", json!({})).await.unwrap();
    let (first, second) = (slow.push("ping", json!({})), other.push("ping", json!({})));
    assert_reply!(other, second, "ok", {});
    assert_reply!(slow, first, "ok", {}, within: SECOND * 4);
}

#[tokio::test(start_paused = true)]
async fn an_excessive_request_crashes_its_own_channel_only() {
    let kit = kit();
    for (event, payload) in [
        ("bin_make", json!({ "size": 1_000_000_000_000_000_u64 })),
        ("push_many", json!({ "n": u64::MAX })),
        ("async_detached", json!({ "delay": u64::MAX })),
    ] {
        let ada = joined(&kit, "ada", "room:lobby").await;
        ada.unlink();
        ada.push(event, payload);
        let why = ada.exit_reason().await.to_string();
        assert!(why.contains("is more than"), "{why}");
        joined(&kit, "ben", "room:lobby").await;
    }
}
