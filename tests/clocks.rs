//! Examples whose wall clock is set while clients are connected.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use pipeline_test_support::{Client, Example, WallClock, connect, request};
use serde_json::{Value, json};

/// Twenty days in seconds: more than any limit that is given in wall-clock time.
const STEP: i64 = 20 * 86_400;

/// The clock's differences to the system's, one after the other: right, ahead, right again, behind, and from
/// there ahead and back at once.
const STEPS: [i64; 6] = [0, STEP, 0, -STEP, STEP, -STEP];

/// The URL of the socket with this token.
fn socket(example: &Example, token: &str) -> String {
    format!("ws://{}/socket/websocket?vsn=2.0.0&token={token}", example.address)
}

/// A client that has joined its user's topic.
async fn joined(example: &Example, token: &str) -> Result<Client, u16> {
    let mut client = connect(&socket(example, token)).await?;
    client.join("1", "user:1").await;
    Ok(client)
}

/// Pushes numbered items, and receives them in this order. Returns the seconds since 1970 by the example's
/// clock.
async fn pushes(example: &Example, client: &mut Client, numbers: std::ops::Range<u64>) -> i64 {
    let line = |n| format!(r#"{{"user_id":1,"event":"push","data":{{"n":{n}}}}}"#);
    let lines: Vec<_> = numbers.clone().map(line).collect();
    let kind = "application/x-ndjson";
    let response = example.request("POST", "/push", kind, &lines.join("\n")).await;
    assert_eq!(response.status, 202, "{}", response.body);
    let mut at_us = 0;
    for n in numbers {
        let message = client.receive().await;
        assert_eq!(message[4]["data"], json!({ "n": n }));
        at_us = message[4]["at_us"].as_i64().unwrap();
    }
    at_us / 1_000_000
}

/// A viewer of the inspector, which sends a view every second.
async fn viewer(example: &Example) -> Client {
    let url = format!("ws://{}/inspect/socket/websocket?vsn=2.0.0", example.address);
    let mut viewer = connect(&url).await.unwrap();
    viewer.send(json!(["1", "1", "inspect", "phx_join", {}])).await;
    viewer
}

/// Receives views until one is of a second after this call. No time in them is that of a step, and each follows the one
/// before.
async fn views(example: &Example, viewer: &mut Client, last: &mut f64) {
    let latest = example.request("GET", "/inspect/data.json", "", "").await.json();
    let until = latest["uptime_seconds"].as_f64().unwrap() + 1.0;
    let is_sane = |value: &Value, most: f64| (0.0..=most).contains(&value.as_f64().unwrap());
    while *last < until {
        let message = viewer.receive().await;
        let view = &message[4];
        // The answer to the join is none.
        let Some(uptime) = view["uptime_seconds"].as_f64() else { continue };
        assert!(uptime >= *last && uptime < *last + 3600.0, "{uptime} after {last}: {view}");
        assert!(is_sane(&view["window_seconds"], 3600.0), "{view}");
        let stages = view["pipelines"].as_array().unwrap().iter();
        for stage in stages.flat_map(|pipeline| pipeline["stages"].as_array().unwrap()) {
            let shares = ["busy", "waiting_for_events", "waiting_for_demand"];
            assert!(shares.iter().all(|share| is_sane(&stage[*share], 1.0)), "{stage}");
            let rates = ["in_per_second", "out_per_second"];
            assert!(rates.iter().all(|rate| is_sane(&stage[*rate], 1e6)), "{stage}");
        }
        *last = uptime;
    }
}

#[tokio::test]
async fn a_clock_that_is_set_costs_no_socket_and_no_push() {
    let Some(clock) = WallClock::new() else { return };
    let mut example = Example::with_clock(&clock, &["--statsd-lines", "--delay-ms", "1"]).await;
    let mut ada = joined(&example, &example.token(1).await).await.unwrap();
    let (mut viewer, mut seen) = (viewer(&example).await, 0.0);
    let mut began = None;
    for (at, difference) in (0..).zip(STEPS) {
        clock.set(difference);
        // A heartbeat is answered.
        ada.expect_nothing_else().await;
        viewer.send(json!([null, "beat", "phoenix", "heartbeat", {}])).await;
        let now = pushes(&example, &mut ada, 500 * at..500 * (at + 1)).await;
        let since = now - *began.get_or_insert(now) - difference;
        assert!((0..3600).contains(&since), "the clock was not set to {difference:+}: {now}");
        // StatsD is still flushed, and no time in it is that of the step.
        let line = example.line_with("pipeline.push_delivered:").await;
        let times = line.split(['|', ':']).filter_map(|part| part.trim().parse::<f64>().ok());
        let times: Vec<_> = times.collect();
        let is_sane = times.iter().all(|time| (0.0..60_000.0).contains(time));
        assert!(is_sane && !times.is_empty(), "after {difference:+}: {line}");
        views(&example, &mut viewer, &mut seen).await;
    }
    example.signal("-TERM").await;
    assert_eq!(ada.closed().await, 1012);
    drop(ada);
    let (status, lines) = example.wait().await;
    assert!(status.success(), "{lines:?}");
}

#[tokio::test]
async fn a_tokens_age_is_that_of_the_clock_and_open_sockets_stay() {
    let Some(clock) = WallClock::new() else { return };
    // A token is valid for an hour.
    let example = Example::with_clock(&clock, &[]).await;
    let early = example.token(1).await;
    let mut ada = joined(&example, &early).await.unwrap();
    clock.set(7200);
    let late = example.token(1).await;
    assert_eq!(joined(&example, &early).await.unwrap_err(), 403, "it is two hours old");
    joined(&example, &late).await.unwrap();
    clock.set(0);
    assert_eq!(joined(&example, &late).await.unwrap_err(), 403, "it is from the future");
    joined(&example, &early).await.unwrap();
    clock.set(-7200);
    assert_eq!(joined(&example, &early).await.unwrap_err(), 403, "it is from the future");
    ada.expect_nothing_else().await;
    pushes(&example, &mut ada, 0..10).await;
}

/// A poll or, with lines, a post of a long-polling client.
async fn poll(example: &Example, token: &str, lines: Option<&str>) -> Value {
    let path = format!("/strict/longpoll?vsn=2.0.0&token={token}");
    let method = if lines.is_some() { "POST" } else { "GET" };
    let headers = [("content-type", "application/x-ndjson")];
    request(&example.address, method, &path, &headers, lines.unwrap_or_default()).await.json()
}

#[tokio::test]
async fn a_long_polling_session_survives_a_clock_that_is_set() {
    let Some(clock) = WallClock::new() else { return };
    let example = Example::channels_with_clock(&clock).await;
    let opened = poll(&example, "null", None).await;
    let token = opened["token"].as_str().unwrap();
    let join = json!(["1", "1", "room:lobby", "phx_join", {}]).to_string();
    assert_eq!(poll(&example, token, Some(&join)).await["status"], 200);
    assert_eq!(poll(&example, token, None).await["status"], 200);
    for difference in STEPS {
        clock.set(difference);
        let ping = json!(["1", "2", "room:lobby", "ping", {"at": difference}]).to_string();
        let posted = poll(&example, token, Some(&ping)).await;
        assert_eq!(posted["status"], 200, "after {difference:+}: {posted}");
        let polled = poll(&example, token, None).await;
        let answer = polled["messages"][0].as_str().unwrap_or_default();
        assert!(answer.contains(&format!("\"at\":{difference}")), "{difference:+}: {polled}");
    }
}
