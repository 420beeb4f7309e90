//! A live dashboard: values arrive by the thousand, and each page gets the latest of each key, ten times a second. A
//! page that reads slowly skips what is no longer the latest.

use std::{collections::BTreeMap, time::Duration};

use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
use pipeline::{
    Pipeline,
    source::{Queue, QueueOptions, queue},
    subscription::SubscribeOptions,
    supervisor::ConsumerSupervisor,
    ws::{
        Channel, Endpoint, Mount, Payload, Topic,
        channel::{JoinContext, JoinError},
        mount::WhenFull,
        pubsub::PreparedBroadcast,
        token::Signer,
    },
};
use serde::Deserialize;
use serde_json::json;

use crate::{Failed, user, user::UserSocket};

const TICK: Duration = Duration::from_millis(100);

#[derive(Clone, Debug, Deserialize)]
struct Reading {
    sensor: String,
    value: f64,
}

struct Dashboard;

impl Channel for Dashboard {
    type Socket = UserSocket;
    type Config = ();

    async fn join(_: &Topic, _: Payload, _: &mut JoinContext<'_, Self>) -> Result<Self, JoinError> {
        Ok(Dashboard)
    }
}

fn mount(signer: Signer) -> Mount<UserSocket> {
    Mount::new(UserSocket(signer))
        .channel::<Dashboard>("dashboard")
        // A page that is behind needs the last picture only.
        .when_full(WhenFull::KeepLatest)
        .max_outbox(16, 256 * 1024)
}

/// The latest value of each sensor.
fn latest(readings: Vec<Reading>) -> BTreeMap<String, f64> {
    readings.into_iter().map(|reading| (reading.sensor, reading.value)).collect()
}

fn start(endpoint: &Endpoint) -> Result<(Queue<Reading>, Pipeline), Failed> {
    let (readings, producer) = queue(QueueOptions::new().capacity(50_000));
    let draw = endpoint.pubsub().broadcast_worker(|values: &BTreeMap<String, f64>| {
        PreparedBroadcast::new("dashboard", "values", json!({ "values": values }))
    });
    let pipeline = Pipeline::builder("dashboard")
        .producer(producer)
        .batch(10_000, TICK) // sent when it is full, or at the tick
        .map(latest)
        .consumer_supervisor(ConsumerSupervisor::new(draw), SubscribeOptions::new().max_demand(1))
        .start()?;
    Ok((readings, pipeline))
}

/// A reading that finds no room displaces the oldest: the newest is what counts.
async fn read(State(readings): State<Queue<Reading>>, Json(reading): Json<Reading>) -> StatusCode {
    match readings.offer(reading) {
        Ok(_) => StatusCode::ACCEPTED,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

pub(crate) async fn run() -> Result<(), Failed> {
    let endpoint = Endpoint::builder().mount("/socket", mount(user::signer()?)).build()?;
    let (readings, pipeline) = start(&endpoint)?;
    println!(
        "the topic is dashboard; send: curl --json '{{\"sensor\":\"a\",\"value\":1}}' http://127.0.0.1:4030/readings"
    );
    let app = Router::new().route("/readings", post(read)).with_state(readings);
    user::run(app, endpoint, pipeline).await
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use pipeline::ws::channel_test::{TestEndpoint, assert_push, refute_push};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_page_gets_the_latest_of_each_sensor_at_each_tick() {
        let signer = user::signer().unwrap();
        let token = signer.sign(&7, SystemTime::now()).unwrap();
        let kit = TestEndpoint::new(mount(signer));
        let (readings, pipeline) = start(kit.endpoint()).unwrap();
        let socket = kit.connect(json!({ "token": token })).await.unwrap();
        let page = socket.join("dashboard", json!({})).await.unwrap();

        for value in 0..1_000 {
            for sensor in ["a", "b"] {
                let reading = Reading { sensor: sensor.to_owned(), value: f64::from(value) };
                assert_eq!(
                    read(State(readings.clone()), Json(reading)).await,
                    StatusCode::ACCEPTED
                );
            }
        }
        let drawn = assert_push!(page, "values", within: Duration::from_secs(20));
        let drawn: serde_json::Value = drawn.parse().unwrap();
        assert_eq!(drawn["values"], json!({ "a": 999.0, "b": 999.0 }));
        refute_push!(page, "values");
        pipeline.drain(Duration::from_secs(20)).await;
    }
}
