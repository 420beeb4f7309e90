//! Metrics of an application, with the library's. They go through the same facade, so they arrive at the same server,
//! with the same prefix and tags.

use std::{sync::Arc, time::Duration};

use axum::{Router, extract::State, http::StatusCode, routing::post};
use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};
use pipeline::{
    ExitReason, Pipeline,
    source::{QueueOptions, TimedQueue, timed_queue},
    statsd::StatsdRecorder,
    subscription::SubscribeOptions,
    supervisor::ConsumerSupervisor,
    timed::Timed,
    ws::Endpoint,
};
use serde_json::json;
use tokio::time::Instant;

use crate::{Failed, user};

/// The handles, registered once: recording a value then needs no look-up by name. A user's id is no label, because each
/// value of a label is a series of its own.
struct OrderMetrics {
    placed: Counter,
    refused: Counter,
    price_time: Histogram,
    last_cents: Gauge,
}

impl OrderMetrics {
    fn register() -> Self {
        describe_counter!("orders.placed", "orders, by result");
        // With a unit of time, StatsD gets milliseconds.
        describe_histogram!("orders.price_time", Unit::Milliseconds, "time to price an order");
        describe_gauge!("orders.last_cents", "the price of the last order");
        Self {
            placed: counter!("orders.placed", "result" => "ok"),
            refused: counter!("orders.placed", "result" => "refused"),
            price_time: histogram!("orders.price_time"),
            last_cents: gauge!("orders.last_cents"),
        }
    }
}

fn start(
    endpoint: &Endpoint,
    metrics: Arc<OrderMetrics>,
) -> Result<(TimedQueue<u32>, Pipeline), Failed> {
    let (orders, producer) = timed_queue(QueueOptions::new());
    let pubsub = endpoint.pubsub().clone();
    let price = async move |order: &Timed<u32>| {
        let began = Instant::now();
        if **order == 0 {
            metrics.refused.increment(1);
            return Err(ExitReason::failed("nothing was ordered"));
        }
        let cents = **order * 250; // a real one asks another service
        metrics.price_time.record(began.elapsed().as_secs_f64() * 1e3);
        metrics.last_cents.set(f64::from(cents));
        metrics.placed.increment(1);
        pubsub.broadcast_timed(order, "user:7", "priced", json!({ "cents": cents }))?;
        Ok(())
    };
    let pipeline = Pipeline::builder("orders")
        .producer(producer)
        .consumer_supervisor(ConsumerSupervisor::new(price).tries(1), SubscribeOptions::new())
        .start()?;
    Ok((orders, pipeline))
}

pub(crate) async fn run() -> Result<(), Failed> {
    let statsd = StatsdRecorder::udp("127.0.0.1:8125")?.prefix("shop");
    let _statsd = statsd.flush_every(Duration::from_secs(1)).install()?;
    let endpoint = Endpoint::builder().mount("/socket", user::mount(user::signer()?)).build()?;
    let (orders, pipeline) = start(&endpoint, Arc::new(OrderMetrics::register()))?;
    let order = async |State(orders): State<TimedQueue<u32>>, count: String| {
        let pushed = orders.try_push_timed(count.trim().parse().unwrap_or_default());
        pushed.map_or(StatusCode::SERVICE_UNAVAILABLE, |()| StatusCode::ACCEPTED)
    };
    println!("see: nc -ul 8125; order: curl -d 2 http://127.0.0.1:4030/orders");
    user::run(Router::new().route("/orders", post(order)).with_state(orders), endpoint, pipeline)
        .await
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use pipeline::ws::channel_test::{TestEndpoint, assert_push};

    use super::*;

    #[tokio::test]
    async fn the_metrics_of_an_order_arrive() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        server.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let statsd = StatsdRecorder::udp(server.local_addr().unwrap().to_string()).unwrap();
        let (recorder, flusher) = statsd.prefix("shop").build().unwrap();
        let metrics = metrics::with_local_recorder(&recorder, OrderMetrics::register);

        let kit = TestEndpoint::new(user::mount(user::signer().unwrap()));
        let (orders, pipeline) = start(kit.endpoint(), Arc::new(metrics)).unwrap();
        let buyer = user::joined(&kit, 7).await;
        orders.push_timed(0).await.unwrap();
        orders.push_timed(2).await.unwrap();
        assert_push!(buyer, "priced", { "cents": 500 }, within: Duration::from_secs(20));
        pipeline.drain(Duration::from_secs(20)).await;

        flusher.flush();
        let mut packet = [0; 2048];
        let length = server.recv(&mut packet).unwrap();
        let lines = str::from_utf8(&packet[..length]).unwrap();
        for line in [
            "shop.orders.placed:1|c|#result:ok",
            "shop.orders.placed:1|c|#result:refused",
            "shop.orders.last_cents:500|g",
            "|ms",
        ] {
            assert!(lines.contains(line), "{line} is not in {lines}");
        }
    }
}
