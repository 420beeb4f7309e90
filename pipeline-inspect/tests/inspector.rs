//! The inspector over HTTP, as a browser and a script use it, next to the observed endpoint.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::time::Duration;

use axum::Router;
use pipeline_core::{
    ExitReason, Graph, Pipeline,
    snapshot::{Activity, PipelinePhase, StageKind},
    source::{QueueOptions, from_iter, queue},
    step::{for_each, map},
    subscription::SubscribeOptions,
    supervisor::ConsumerSupervisor,
};
use pipeline_inspect::{Inspector, VERSION, View};
use pipeline_test_support::{AnyChannel, AnySocket, PATIENCE, connect, eventually, gate};
use pipeline_ws_sink::{Endpoint, Mount, mount::CheckOrigin};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

fn endpoint() -> Endpoint {
    let sockets = Mount::new(AnySocket).channel::<AnyChannel>("user:*");
    Endpoint::builder().mount("/socket", sockets).build().unwrap()
}

/// Serves the app; returns `HOST:PORT`.
async fn serve(app: Router) -> String {
    let listener = pipeline_ws_sink::listen("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async { axum::serve(listener, app).await });
    address
}

/// The head and the body of an answer.
async fn request(address: &str, method: &str, path: &str) -> (String, String) {
    let response = pipeline_test_support::request(address, method, path, &[], "").await;
    (response.head, response.body)
}

async fn data(address: &str) -> View {
    let (_, body) = request(address, "GET", "/inspect/data.json").await;
    serde_json::from_str(&body).unwrap()
}

/// Polls until the view satisfies the condition.
async fn until(address: &str, shows: impl Fn(&View) -> bool) -> View {
    let asking = async {
        loop {
            let view = data(address).await;
            if shows(&view) {
                return view;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(PATIENCE, asking).await.expect("the view is shown in time")
}

#[tokio::test]
async fn json_and_channel_agree_with_the_pushed_events() {
    let (queue, producer) = queue::<u64>(QueueOptions::new().capacity(50));
    let (gate, mut control) = gate();
    let worker = async move |event: &u64| gate.pass(*event).await;
    let pipeline = Pipeline::builder("push")
        .producer(producer)
        .consumer_supervisor(
            ConsumerSupervisor::new(worker),
            SubscribeOptions::new().max_demand(4).min_demand(0),
        )
        .start()
        .unwrap();
    let endpoint = endpoint();
    let inspector = Inspector::builder()
        .pipeline(pipeline.observer())
        .endpoint(endpoint.observer())
        .build()
        .unwrap();
    let app = Router::new().nest_service("/inspect", inspector).fallback_service(endpoint.clone());
    let address = serve(app).await;

    let mut user = connect(&format!("ws://{address}/socket/websocket?vsn=2.0.0")).await.unwrap();
    user.join("1", "user:1").await;
    for event in 0..10 {
        queue.push(event).await.unwrap();
    }
    control.started(4).await;
    let start = tokio::time::Instant::now();
    endpoint.broadcast_timed(start, "user:1", "push", json!({})).unwrap();
    user.receive().await;

    let view = until(&address, |view| {
        view.pipelines[0].bottleneck.is_some()
            && view.endpoint.as_ref().is_some_and(|seen| seen.delivered.count == 1)
    })
    .await;
    assert_eq!(view.version, VERSION);
    let push = &view.pipelines[0];
    let [source, work] = &push.stages[..] else { panic!("two stages: {push:?}") };
    assert_eq!((&*push.name, push.phase), ("push", PipelinePhase::Running));
    assert_eq!(push.bottleneck.as_deref(), Some(work.name()));
    let (seen, busy) = (&source.snapshot, &work.snapshot);
    assert_eq!((seen.kind, busy.kind), (StageKind::Producer, StageKind::ConsumerSupervisor));
    assert_eq!((seen.queued, seen.queue_capacity, source.demand), (6, Some(50), 0));
    assert_eq!((seen.events_out, busy.events_in, busy.workers), (4, 4, Some(4)));
    assert_eq!(source.mostly, Activity::WaitingForDemand);
    assert_eq!((source.layer, work.layer), (0, 1));
    let [edge] = &push.edges[..] else { panic!("one edge: {push:?}") };
    assert_eq!((&*edge.from, &*edge.to), (source.name(), work.name()));
    assert_eq!((edge.sent, edge.pending_demand), (4, 0));

    let seen = view.endpoint.unwrap();
    let users = &seen.sockets[0].snapshot;
    assert_eq!((users.open, users.connected), (1, 1));
    let users = &seen.channels[0].snapshot;
    assert_eq!((&*users.pattern, users.open, users.topics, users.joined), ("user:*", 1, 1, 1));
    assert_eq!((seen.snapshot.topics, seen.snapshot.broadcasts), (1, 1));
    assert!(seen.delivered.windows.iter().all(|window| window.count == 1 && window.p50.is_some()));

    // A new viewer receives the view at once, and again every second.
    let url = format!("ws://{address}/inspect/socket/websocket?vsn=2.0.0");
    let mut viewer = connect(&url).await.unwrap();
    viewer.send(json!(["1", "1", "inspect", "phx_join", {}])).await;
    let joined: Value = viewer.receive().await;
    assert_eq!((&joined[3], &joined[4]["status"]), (&json!("phx_reply"), &json!("ok")));
    let view: View = serde_json::from_value(joined[4]["response"].clone()).unwrap();
    assert_eq!(view.pipelines[0].edges, push.edges);
    control.release(10);
    loop {
        let message = viewer.receive().await;
        assert_eq!((&message[2], &message[3]), (&json!("inspect"), &json!("view")));
        let view: View = serde_json::from_value(message[4].clone()).unwrap();
        if view.pipelines[0].stages[1].snapshot.events_in == 10 {
            break;
        }
    }
    // The inspector's own viewers are not observed.
    assert_eq!(data(&address).await.endpoint.unwrap().sockets[0].snapshot.open, 1);
}

#[tokio::test]
async fn the_page_is_served_with_and_without_a_slash_and_nothing_else_is() {
    let inspector = Inspector::builder().build().unwrap();
    let address = serve(Router::new().nest_service("/ops/inspect", inspector)).await;
    for path in ["/ops/inspect", "/ops/inspect/"] {
        let (head, body) = request(&address, "GET", path).await;
        assert!(head.starts_with("http/1.1 200"), "{path}: {head}");
        assert!(head.contains("content-type: text/html; charset=utf-8"), "{head}");
        assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
        assert!(head.contains("x-content-type-options: nosniff"), "{head}");
        assert!(body.starts_with("<!doctype html>"));
    }
    let (head, body) = request(&address, "GET", "/ops/inspect/data.json").await;
    assert!(head.contains("content-type: application/json"), "{head}");
    assert!(head.contains("cache-control: no-store"), "{head}");
    assert!(serde_json::from_str::<View>(&body).unwrap().pipelines.is_empty());
    let (head, _) = request(&address, "GET", "/ops/inspect/other").await;
    assert!(head.starts_with("http/1.1 404"), "{head}");
    let (head, _) = request(&address, "POST", "/ops/inspect/").await;
    assert!(head.starts_with("http/1.1 405") && head.contains("allow: get, head"), "{head}");
    let (head, body) = request(&address, "HEAD", "/ops/inspect/").await;
    assert!(head.starts_with("http/1.1 200") && body.is_empty(), "{head}");
}

#[tokio::test]
async fn stages_in_any_shape_have_their_edges() {
    let mut graph = Graph::new("fan");
    let numbers = graph.producer("numbers", from_iter(0..10u64));
    let double = graph.producer_consumer("double", map(|n: u64| 2 * n));
    let print = graph.consumer("print", for_each(async |_: u64| Ok::<(), ExitReason>(())));
    let mut pipeline = graph.start().unwrap();
    print.subscribe(&double, SubscribeOptions::new()).await.unwrap();
    double.subscribe(&numbers, SubscribeOptions::new()).await.unwrap();
    let observer = pipeline.observer();
    assert_eq!(pipeline.join().await.unprocessed(), 0);
    // The inspector also works after the pipeline has ended.
    let view = Inspector::builder().pipeline(observer).build().unwrap().view();
    let fan = &view.pipelines[0];
    let stages = fan.stages.iter().map(|stage| &stage.snapshot);
    let totals: Vec<_> = stages.map(|stage| (stage.events_in, stage.events_out)).collect();
    assert_eq!(totals, [(0, 10), (10, 10), (10, 0)]);
    assert_eq!((fan.phase, &fan.bottleneck), (PipelinePhase::Ended, &None));
}

#[tokio::test(start_paused = true)]
async fn it_stops_sampling_when_the_last_clone_is_dropped() {
    let endpoint = endpoint();
    let inspector = Inspector::builder().endpoint(endpoint.observer()).build().unwrap();
    let clone = inspector.clone();
    drop(inspector);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(clone.view().uptime_seconds.floor(), 2.0);
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    drop(clone);
    eventually(|| tasks() < before).await;
}

#[tokio::test]
async fn it_does_not_keep_an_endpoint_open() {
    let endpoint = endpoint();
    let inspector = Inspector::builder().endpoint(endpoint.observer()).build().unwrap();
    assert!(inspector.view().endpoint.is_some());
    drop(endpoint);
    tokio::time::pause();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(inspector.view().endpoint.is_none());
}

#[tokio::test]
async fn an_unknown_host_name_is_refused() {
    let app = |inspector: Inspector| Router::new().nest_service("/inspect", inspector);
    let strict = serve(app(Inspector::builder().build().unwrap())).await;
    let ours = Inspector::builder().host("Ops.example.com").build().unwrap();
    let ours = serve(app(ours)).await;
    let any = serve(app(Inspector::builder().any_host().build().unwrap())).await;
    // A browser's request after DNS rebinding: the page's host name resolves to this server.
    let ask = async |address: &str, host: &str, path: &str| {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer.split(' ').nth(1).unwrap().to_owned()
    };
    for path in ["/inspect", "/inspect/data.json"] {
        for (address, host, status) in [
            (&strict, "evil.example", "403"),
            (&strict, "ops.example.com", "403"),
            (&strict, "localhost:4001", "200"),
            (&strict, "[::1]:4001", "200"),
            (&ours, "evil.example", "403"),
            (&ours, "ops.example.com:8443", "200"),
            (&any, "evil.example", "200"),
        ] {
            assert_eq!(ask(address, host, path).await, status, "{host} {path}");
        }
    }
    assert_eq!(ask(&strict, "evil.example", "/inspect/socket/websocket").await, "403");
}

#[tokio::test]
async fn pages_of_the_inspector_may_connect_and_foreign_pages_may_not() {
    let app = |inspector: Inspector| Router::new().nest_service("/inspect", inspector);
    let strict = serve(app(Inspector::builder().build().unwrap())).await;
    let ours = Inspector::builder().host("ops.example.com").build().unwrap();
    let ours = serve(app(ours)).await;
    let any = serve(app(Inspector::builder().any_host().build().unwrap())).await;
    let listed = CheckOrigin::list(["https://ops.example.com"]);
    let listed = Inspector::builder().any_host().check_origin(listed).build().unwrap();
    let listed = serve(app(listed)).await;
    for (address, host, origin, status) in [
        (&strict, "127.0.0.1:4001", "http://127.0.0.1:4001", "101"),
        (&strict, "127.0.0.1:4001", "http://evil.example", "403"),
        (&strict, "localhost", "null", "403"),
        (&ours, "ops.example.com", "https://ops.example.com", "101"),
        (&ours, "127.0.0.1:4001", "http://127.0.0.1:4001", "101"),
        (&ours, "127.0.0.1:4001", "https://ops.example.com", "101"),
        (&ours, "ops.example.com", "https://evil.example", "403"),
        (&any, "ops.example.com", "https://ops.example.com", "101"),
        (&any, "ops.example.com", "https://evil.example", "403"),
        (&listed, "ops.example.com", "https://ops.example.com", "101"),
        (&listed, "other.example.com", "https://other.example.com", "403"),
    ] {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!(
            "GET /inspect/socket/websocket?vsn=2.0.0 HTTP/1.1\r\nHost: {host}\r\nOrigin: {origin}\r\n\
             Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = [0; "HTTP/1.1 101".len()];
        timeout(PATIENCE, stream.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(answer, *format!("HTTP/1.1 {status}").as_bytes(), "{host} {origin}");
    }
}

#[tokio::test]
async fn a_viewer_above_the_limit_is_refused_until_another_leaves() {
    let inspector = Inspector::builder().max_viewers(2).build().unwrap();
    let address = serve(Router::new().nest_service("/inspect", inspector)).await;
    let url = format!("ws://{address}/inspect/socket/websocket?vsn=2.0.0");
    let (first, _second) = (connect(&url).await.unwrap(), connect(&url).await.unwrap());
    assert_eq!(connect(&url).await.err(), Some(503));
    drop(first);
    while connect(&url).await.is_err() {}
}
