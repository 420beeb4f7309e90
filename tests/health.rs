//! Health checks while the process starts, is overloaded, and drains.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::time::Duration;

use axum::Router;
use pipeline::{
    ExitReason, Graph, Pipeline,
    health::Health,
    serve,
    source::{Queue, QueueOptions, queue},
    step::for_each,
    subscription::SubscribeOptions,
    supervisor::ConsumerSupervisor,
    ws::{Endpoint, listen},
};
use pipeline_test_support::{Gate, Response, eventually, gate, get};
use tokio::sync::oneshot;

const DAY: Duration = Duration::from_secs(86_400);

/// One worker that waits at a gate, and a queue with room for two.
fn narrow(gate: Gate) -> (Queue<u64>, Pipeline) {
    let (queue, producer) = queue(QueueOptions::new().capacity(2));
    let worker = async move |n: &u64| gate.pass(*n).await;
    let pipeline = Pipeline::builder("push")
        .producer(producer)
        .consumer_supervisor(ConsumerSupervisor::new(worker), SubscribeOptions::new().max_demand(1))
        .start()
        .unwrap();
    (queue, pipeline)
}

fn said(response: &Response) -> (u16, &str) {
    (response.status, response.body.trim_end())
}

#[tokio::test]
async fn it_is_alive_and_not_ready_until_all_stages_have_started() {
    let (gate, _keeper) = gate();
    let (_queue, pipeline) = narrow(gate);
    let health = Health::new().pipeline(pipeline.observer());
    // No stage has run yet.
    assert_eq!(health.readiness().unwrap_err().to_string(), "not ready: pipeline push is starting");
    assert_eq!(health.liveness(), Ok(()));
    eventually(|| health.readiness().is_ok()).await;
}

#[tokio::test]
async fn it_is_not_ready_while_a_queue_is_full_with_overloaded_at() {
    let (gate, mut control) = gate();
    let (queue, pipeline) = narrow(gate);
    let default = Health::new().pipeline(pipeline.observer());
    let (health, half) = (default.clone().overloaded_at(1.0), default.clone().overloaded_at(0.5));
    queue.push(1).await.unwrap();
    control.started(1).await;
    assert_eq!((health.readiness(), half.readiness()), (Ok(()), Ok(())));

    queue.push(2).await.unwrap();
    assert!(health.readiness().is_ok(), "the queue has room for another");
    assert!(half.readiness().is_err(), "but the queue is half full");
    queue.push(3).await.unwrap();
    let why = health.readiness().unwrap_err();
    assert_eq!(
        why.reasons(),
        ["pipeline push is overloaded: 2 items wait in the queue of stage producer"]
    );
    assert_eq!(default.readiness(), Ok(()), "or all processes would leave a balancer together");
    assert_eq!(health.liveness(), Ok(()), "a restart would lose the items that it holds");

    control.release(1);
    control.started(1).await;
    assert_eq!(health.readiness(), Ok(()));
}

#[tokio::test]
async fn while_draining_it_answers_on_the_admin_listener_until_the_end() {
    let (gate, mut control) = gate();
    let (queue, pipeline) = narrow(gate);
    let endpoint = Endpoint::builder().build().unwrap();
    let health = Health::new().pipeline(pipeline.observer()).endpoint(endpoint.observer());
    let (listener, admin) =
        (listen("127.0.0.1:0").await.unwrap(), listen("127.0.0.1:0").await.unwrap());
    let (public, private) =
        (listener.local_addr().unwrap(), admin.local_addr().unwrap().to_string());
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = serve(listener, Router::new().merge(health.router()))
        .pipeline(pipeline)
        .endpoint(endpoint)
        .health(&health)
        .admin(admin, health.router())
        .drain_within(DAY)
        .until(async { drop(stopped.await) });
    let serving = tokio::spawn(serving.into_future());
    queue.push(1).await.unwrap();
    control.started(1).await;
    for address in [&public.to_string(), &private] {
        assert_eq!(said(&get(address, "/readyz").await), (200, "ready"));
        assert_eq!(said(&get(address, "/livez").await), (200, "alive"));
    }

    stop.send(()).unwrap();
    eventually(|| health.readiness().is_err_and(|why| why.reasons().len() == 2)).await;
    let ready = get(&private, "/readyz").await;
    assert_eq!(
        said(&ready),
        (503, "not ready: the process is stopping; pipeline push is draining")
    );
    assert!(ready.head.contains("cache-control: no-store"), "{}", ready.head);
    assert_eq!(said(&get(&private, "/livez").await), (200, "alive"));

    control.release(1);
    assert!(serving.await.unwrap().unwrap().is_clean());
    let why = health.readiness().unwrap_err().to_string();
    assert!(why.ends_with("pipeline push has ended; the endpoint is gone"), "{why}");
    assert_eq!(health.liveness(), Ok(()), "it ended on request");
}

#[tokio::test]
async fn it_is_not_alive_when_a_pipeline_has_failed() {
    let (queue, producer) = queue(QueueOptions::new());
    let mut pipeline = Pipeline::builder("numbers")
        .producer(producer)
        .consumer(for_each(async |n: &str| n.parse::<u8>().map(drop)), SubscribeOptions::new())
        .start()
        .unwrap();
    let health = Health::new().pipeline(pipeline.observer());
    queue.push("seven").await.unwrap();
    pipeline.join().await;
    let why = health.liveness().unwrap_err();
    assert_eq!(
        why.to_string(),
        "not alive: pipeline numbers has failed: stage consumer ended (failed: invalid digit found in string)"
    );
    assert_eq!(health.readiness().unwrap_err().reasons(), ["pipeline numbers has ended"]);
}

#[tokio::test]
async fn it_is_not_alive_once_a_stage_has_failed_while_others_still_run() {
    let (queue, producer) = queue(QueueOptions::new());
    let fail = async |_: &u64| Err(ExitReason::failed("no luck"));
    let supervisor = ConsumerSupervisor::new(fail).max_restarts(0, Duration::from_secs(5));
    let mut graph = Graph::new("numbers");
    let source = graph.producer("source", producer);
    let workers = graph.consumer_supervisor("workers", supervisor);
    graph.subscribe(&workers, &source, SubscribeOptions::new());
    let pipeline = graph.start().unwrap();
    let health = Health::new().pipeline(pipeline.observer());
    assert_eq!(health.liveness(), Ok(()));
    queue.push(1).await.unwrap();
    eventually(|| health.liveness().is_err()).await;
    assert!(source.is_running());
    let why = health.liveness().unwrap_err().to_string();
    assert!(why.contains("stage workers ended (failed: too many restarts of workers"), "{why}");
}
