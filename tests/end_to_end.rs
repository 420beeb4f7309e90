//! From the push into the queue to the frame in a user's client, in one process.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]
#![allow(clippy::needless_pass_by_value, reason = "json!(..) reads best where it stands")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use axum::Router;
use futures::StreamExt;
use pipeline::{
    ExitReason, Graph, Pipeline,
    dispatcher::PartitionDispatcher,
    serve,
    source::{QueueOptions, TimedQueue, queue, timed_queue},
    stage::Stage,
    subscription::SubscribeOptions,
    supervisor::ConsumerSupervisor,
    telemetry::Telemetry,
    timed::Timed,
    ws::{
        Channel, Endpoint, Mount, Payload, Socket, Topic,
        channel::{JoinContext, JoinError},
        listen,
        mount::Drainer,
        socket::{ConnectError, ConnectInfo, Params},
        token::Signer,
    },
};
use pipeline_test_support::{Client, Gate, GateControl, Recorded, connect, gate, reply};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};

const DAY: Duration = Duration::from_secs(86_400);

fn signer() -> Signer {
    Signer::new("a secret for tests, long enough", "user socket").unwrap()
}

struct UserSocket;

impl Socket for UserSocket {
    type Assigns = u64;

    async fn connect(&self, params: &Params, _: &ConnectInfo) -> Result<u64, ConnectError> {
        Ok(signer().verify(params.require("token")?, SystemTime::now())?)
    }
}

struct UserChannel;

impl Channel for UserChannel {
    type Socket = UserSocket;
    type Config = ();

    async fn join(
        topic: &Topic,
        _: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        let own = topic.rest() == cx.assigns().to_string();
        own.then_some(Self).ok_or(JoinError::unauthorized())
    }
}

type Item = Timed<(u64, Value)>;

/// The whole system: a queue, workers that push to users, an endpoint, a server.
struct App {
    pushes: TimedQueue<(u64, Value)>,
    pipeline: Option<Pipeline>,
    endpoint: Endpoint,
    listener: Option<TcpListener>,
    address: String,
    recorded: Recorded,
    serving: Option<JoinHandle<std::io::Result<serve::ShutdownReport>>>,
    stop: Option<oneshot::Sender<()>>,
}

impl App {
    /// A system with at most `workers` workers. Each waits at the gate first, if there is one.
    async fn new(workers: usize, gate: Option<Gate>) -> Self {
        let (telemetry, recorded) = Recorded::new();
        let endpoint = endpoint(telemetry.clone());
        let (pushes, producer) = timed_queue(QueueOptions::new().capacity(100));
        let users = endpoint.clone();
        let push_to_user = async move |push: &Item| {
            let (user, payload) = &**push;
            if let Some(gate) = &gate {
                gate.pass(*user).await?;
            }
            let topic = format!("user:{user}");
            Ok(users.broadcast_timed(push, &topic, "push_timed", payload)?)
        };
        let demand = SubscribeOptions::new().max_demand(workers).min_demand(workers - 1);
        let pipeline = Pipeline::builder("push")
            .telemetry(telemetry)
            .producer(producer)
            .consumer_supervisor(ConsumerSupervisor::new(push_to_user), demand)
            .start()
            .unwrap();
        let listener = listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut app = Self {
            pushes,
            pipeline: Some(pipeline),
            endpoint,
            listener: Some(listener),
            address,
            recorded,
            serving: None,
            stop: None,
        };
        app.serve();
        app
    }

    fn serve(&mut self) {
        let (stop, stopped) = oneshot::channel();
        let app = Router::new().fallback_service(self.endpoint.clone());
        let serving = serve(self.listener.take().unwrap(), app)
            .pipeline(self.pipeline.take().unwrap())
            .endpoint(self.endpoint.clone())
            .drain_within(Duration::from_millis(200))
            .until(async { drop(stopped.await) });
        self.serving = Some(tokio::spawn(serving.into_future()));
        self.stop = Some(stop);
    }

    async fn stop(&mut self) -> serve::ShutdownReport {
        self.stop.take().unwrap().send(()).unwrap();
        self.serving.take().unwrap().await.unwrap().unwrap()
    }

    async fn connect(&self, token: &str) -> Result<Client, u16> {
        connect(&format!("ws://{}/socket/websocket?vsn=2.0.0&token={token}", self.address)).await
    }

    /// A client that has signed in and joined its own topic.
    async fn user(&self, user: u64) -> Client {
        let token = signer().sign(&user, SystemTime::now()).unwrap();
        let mut client = self.connect(&token).await.unwrap();
        client.join("1", &format!("user:{user}")).await;
        client
    }

    async fn push(&self, user: u64, payload: Value) {
        self.pushes.push_timed((user, payload)).await.unwrap();
    }
}

fn endpoint(telemetry: Telemetry) -> Endpoint {
    let sockets = Mount::new(UserSocket).channel::<UserChannel>("user:*");
    Endpoint::builder().mount("/socket", sockets).telemetry(telemetry).build().unwrap()
}

fn pushed(user: u64, payload: Value) -> Value {
    json!([null, null, format!("user:{user}"), "push_timed", payload])
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_arrive_in_order_with_one_worker() {
    const MANY: u64 = 500;
    let app = App::new(1, None).await;
    let mut ada = app.user(1).await;
    let pushes = app.pushes.clone();
    tokio::spawn(async move {
        for n in 0..MANY {
            pushes.push_timed((1, json!({ "n": n }))).await.unwrap();
        }
    });
    for n in 0..MANY {
        ada.expect([pushed(1, json!({ "n": n }))]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_item_is_delivered_to_its_user_and_never_to_another() {
    let app = App::new(1, None).await;
    let (mut ada, mut joe) = (app.user(1).await, app.user(11).await);
    for n in 0..50 {
        app.push(1, json!({ "n": n, "secret": true })).await;
        app.push(2, json!({ "n": n, "user": "absent" })).await;
    }
    // With one worker, joe's item comes after all others: by its arrival, anything else for joe would
    // have arrived.
    app.push(11, json!({ "sentinel": "joe" })).await;
    app.push(1, json!({ "sentinel": "ada" })).await;
    joe.expect([pushed(11, json!({ "sentinel": "joe" }))]).await;
    for n in 0..50 {
        ada.expect([pushed(1, json!({ "n": n, "secret": true }))]).await;
    }
    ada.expect([pushed(1, json!({ "sentinel": "ada" }))]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_delivery_and_each_worker_is_timed() {
    let app = App::new(5, None).await;
    let mut phone = app.user(1).await;
    let mut laptop = app.user(1).await;
    let mut joe = app.user(2).await;
    for n in 0..20 {
        app.push(1, json!({ "n": n })).await;
        app.push(2, json!({ "n": n })).await;
        app.push(3, json!({ "user": "absent" })).await;
    }
    for client in [&mut phone, &mut laptop, &mut joe] {
        for _ in 0..20 {
            assert_eq!(client.receive().await[3], "push_timed");
        }
    }
    // A frame may arrive before its write is recorded.
    let mut delivered = Vec::new();
    while delivered.len() < 60 {
        delivered.extend(app.recorded.samples("pipeline.push_delivered"));
        tokio::task::yield_now().await;
    }
    assert_eq!(delivered.len(), 60, "one for each socket with a delivery");
    assert!(delivered.iter().all(|ms| *ms > 0.0), "{delivered:?}");
    let mut worked = 0;
    while worked < 60 {
        worked += app.recorded.samples("pipeline.worker.process_time").len();
        tokio::task::yield_now().await;
    }
    assert_eq!(worked, 60, "one for each item");
}

#[tokio::test]
async fn the_parts_of_a_push_time_add_up_and_show_the_delay() {
    const HELD_UP: Duration = Duration::from_millis(50);
    let (gate, mut control): (Gate, GateControl) = gate();
    let app = App::new(1, Some(gate)).await;
    let mut ada = app.user(1).await;
    let recorded = async |name: &str| loop {
        // A frame may arrive before its write is recorded.
        if let [sample, ..] = app.recorded.samples(name)[..] {
            return sample;
        }
        tokio::task::yield_now().await;
    };
    app.push(1, json!({ "n": 1 })).await;
    control.started(1).await;
    // The only worker is busy, and there is no demand.
    app.push(1, json!({ "n": 2 })).await;
    tokio::time::sleep(HELD_UP).await;
    let at_least = HELD_UP.as_secs_f64() * 1e3;
    for (n, slow) in [(1, "worked"), (2, "queued")] {
        control.release(1);
        ada.expect([pushed(1, json!({ "n": n }))]).await;
        let whole = recorded("pipeline.push_delivered").await;
        let mut sum = 0.0;
        for leg in ["queued", "waited", "worked", "written"] {
            let took = recorded(&format!("pipeline.push_{leg}")).await;
            assert!(leg != slow || took >= at_least, "{n}: {leg} for {took} ms");
            sum += took;
        }
        assert!((whole - sum).abs() < 0.001, "{n}: {sum} is not {whole}");
    }
}

#[tokio::test]
async fn max_demand_bounds_the_workers_exactly() {
    let (gate, mut control): (Gate, GateControl) = gate();
    let app = App::new(3, Some(gate)).await;
    let mut ada = app.user(1).await;
    for n in 0..10 {
        app.push(1, json!({ "n": n })).await;
    }
    control.started(3).await;
    control.assert_none_starts().await;
    ada.expect_nothing_else().await;
    for _ in 0..7 {
        control.release(1);
        assert_eq!(ada.receive().await[3], "push_timed");
        control.started(1).await;
        control.assert_none_starts().await;
    }
    control.release(3);
    for _ in 0..3 {
        assert_eq!(ada.receive().await[3], "push_timed");
    }
}

#[tokio::test]
async fn a_client_with_another_users_token_is_refused() {
    let app = App::new(1, None).await;
    let now = SystemTime::now();
    let token = |signer: Signer, at| signer.sign(&1_u64, at).unwrap();
    let forged = Signer::new("another secret, also long enough", "user socket").unwrap();
    let other_salt = Signer::new("a secret for tests, long enough", "password reset").unwrap();
    for (token, why) in [
        (String::new(), "empty"),
        ("nonsense".to_owned(), "nonsense"),
        (token(forged, now), "signed with another secret"),
        (token(other_salt, now), "signed for something else"),
        (token(signer(), now - DAY - Duration::from_secs(1)), "expired"),
        (token(signer(), now + DAY), "from the future"),
        (signer().sign("ada", now).unwrap(), "of another type"),
    ] {
        assert_eq!(app.connect(&token).await.err(), Some(403), "{why}");
    }
    let nearly_expired = token(signer(), now - DAY + Duration::from_secs(60));
    let mut ada = app.connect(&nearly_expired).await.unwrap();

    let unauthorized = json!({"reason": "unauthorized"});
    for topic in ["user:2", "user:", "user:01", "user:1 "] {
        ada.send(json!(["1", "1", topic, "phx_join", {}])).await;
        ada.expect([reply("1", "1", topic, "error", unauthorized.clone())]).await;
    }
    app.push(2, json!({})).await;
    ada.join("2", "user:1").await;
    app.push(1, json!({ "for": "ada" })).await;
    ada.expect([pushed(1, json!({ "for": "ada" }))]).await;
    assert_eq!(
        app.recorded.counters("socket_connect"),
        [
            ("socket=UserSocket,status=fail".into(), 7),
            ("socket=UserSocket,status=success".into(), 1)
        ]
    );
    assert_eq!(
        app.recorded.counters("channel_join"),
        [
            ("channel=UserChannel,status=fail".into(), 4),
            ("channel=UserChannel,status=success".into(), 1)
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_under_load_delivers_or_reports_every_accepted_item() {
    let mut app = App::new(4, None).await;
    let mut ada = app.user(1).await;
    let accepted = Arc::new(AtomicUsize::new(0));
    let pushers: Vec<_> = (0..4)
        .map(|_| {
            let (pushes, accepted) = (app.pushes.clone(), accepted.clone());
            tokio::spawn(async move {
                while pushes.push_timed((1, json!({ "some": "thing" }))).await.is_ok() {
                    accepted.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    // The load runs for a while before the shutdown.
    for _ in 0..200 {
        assert_eq!(ada.receive().await[3], "push_timed");
    }
    let reading = tokio::spawn(async move {
        let mut arrived = 200;
        loop {
            match ada.next().await {
                tokio_tungstenite::tungstenite::Message::Text(_) => arrived += 1,
                tokio_tungstenite::tungstenite::Message::Close(frame) => {
                    return (arrived, u16::from(frame.unwrap().code));
                }
                other => unreachable!("{other:?}"),
            }
        }
    });
    let report = app.stop().await;
    for pusher in pushers {
        pusher.await.unwrap();
    }
    let (arrived, code) = reading.await.unwrap();
    assert_eq!(code, 1012, "so that the client reconnects");
    let accepted = accepted.load(Ordering::SeqCst);
    assert_eq!(accepted, arrived + report.pipelines[0].unprocessed(), "{report}");
    assert_eq!(report.endpoint.unwrap().closed, 1);
    assert!(app.pushes.is_closed());
}

#[tokio::test]
async fn the_exact_number_of_unprocessed_items_is_reported() {
    let (gate, mut control) = gate();
    let mut app = App::new(2, Some(gate)).await;
    for n in 0..10 {
        app.push(1, json!({ "n": n })).await;
    }
    control.started(2).await;
    let report = app.stop().await;
    assert!(!report.is_clean());
    assert_eq!(report.pipelines[0].unprocessed(), 10);
    let text = report.to_string();
    assert!(text.contains("10 unprocessed events"), "{text}");
    assert!(text.contains("8 events pending"), "{text}");
    assert!(text.contains("2 events in progress"), "{text}");
    assert!(text.contains("0 sockets closed, 0 aborted"), "{text}");
}

#[tokio::test]
async fn a_failed_pipeline_stops_the_server_and_reports_the_reason() {
    let endpoint = endpoint(Telemetry::global());
    let (pushes, producer) = queue(QueueOptions::new());
    let fails = async |_: &u64| Err(ExitReason::failed("no luck"));
    let pipeline = Pipeline::builder("push")
        .producer(producer)
        .consumer_supervisor(
            ConsumerSupervisor::new(fails).max_restarts(0, DAY),
            SubscribeOptions::new(),
        )
        .start()
        .unwrap();
    let listener = listen("127.0.0.1:0").await.unwrap();
    let app = Router::new().fallback_service(endpoint.clone());
    let serving =
        serve(listener, app).pipeline(pipeline).endpoint(endpoint).until(std::future::pending());
    pushes.push(1).await.unwrap();
    let report = serving.await.unwrap();
    assert!(!report.is_clean());
    assert_eq!(report.pipelines[0].unprocessed(), 1);
}

#[tokio::test]
async fn a_failed_stage_of_a_graph_stops_the_server_although_the_others_could_run_on() {
    let (pushes, producer) = queue(QueueOptions::new());
    let dispatcher = || PartitionDispatcher::by_key(0..2u64, |push: &u64| Some(push % 2));
    let mut graph = Graph::new("push");
    let source = graph.producer_with(Stage::new(producer).named("source").dispatcher(dispatcher));
    let handled = Arc::new(AtomicUsize::new(0));
    let even = {
        let handled = handled.clone();
        async move |_: &u64| {
            handled.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    };
    let odd = async |_: &u64| Err(ExitReason::failed("no luck"));
    let even = graph.consumer_supervisor("even", ConsumerSupervisor::new(even));
    let odd = graph.consumer_supervisor("odd", ConsumerSupervisor::new(odd).max_restarts(0, DAY));
    // A small demand, so that the events of the failed partition do not take all of it.
    graph.subscribe(&even, &source, SubscribeOptions::new().max_demand(10).partition(0u64));
    graph.subscribe(&odd, &source, SubscribeOptions::new().max_demand(10).partition(1u64));
    let pipeline = graph.start().unwrap();
    let observer = pipeline.observer();
    let listener = listen("127.0.0.1:0").await.unwrap();
    let serving = serve(listener, Router::new()).pipeline(pipeline).until(std::future::pending());
    for push in [0, 2, 1] {
        pushes.push(push).await.unwrap();
    }
    let report = tokio::time::timeout(DAY / 1000, serving).await.expect("it has stopped").unwrap();
    assert!(observer.failed().await);
    assert_eq!(handled.load(Ordering::SeqCst), 2);
    assert!(report.pipelines[0].failure().is_some());
    assert_eq!(report.pipelines[0].unprocessed(), 1);
    let why = report.into_result().unwrap_err().to_string();
    assert!(why.contains("odd ended (failed: too many restarts of workers"), "{why}");
}

#[tokio::test]
async fn sockets_that_do_not_close_in_time_are_aborted_and_counted() {
    let drainer = Drainer::new().batch_size(1).batch_interval(DAY);
    let sockets = Mount::new(UserSocket).channel::<UserChannel>("user:*").drainer(drainer);
    let endpoint = Endpoint::builder().mount("/socket", sockets).build().unwrap();
    let listener = listen("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = serve(listener, Router::new().fallback_service(endpoint.clone()))
        .endpoint(endpoint)
        .close_within(Duration::from_secs(1))
        .until(async { drop(stopped.await) });
    let serving = tokio::spawn(serving.into_future());
    let mut clients = Vec::new();
    for user in [1, 2] {
        let token = signer().sign(&user, SystemTime::now()).unwrap();
        let url = format!("ws://{address}/socket/websocket?vsn=2.0.0&token={token}");
        let mut client = connect(&url).await.unwrap();
        client.join("1", &format!("user:{user}")).await;
        clients.push(client);
    }
    stop.send(()).unwrap();
    // The first client answers the close frame; the second one does not.
    let silent = clients.pop().unwrap();
    assert!(was_closed(clients.pop().unwrap()).await);
    let report = serving.await.unwrap().unwrap();
    assert_eq!(report.to_string(), "1 sockets closed, 1 aborted");
    drop(silent);
}

/// Waits for the end of a connection. Returns whether it was closed cleanly.
async fn was_closed(mut client: Client) -> bool {
    let mut closed = false;
    while let Some(Ok(frame)) = client.stream.next().await {
        closed |= frame.is_close();
    }
    closed
}

#[tokio::test]
async fn sockets_have_the_same_time_to_close_as_in_phoenix() {
    let serving = serve(listen("127.0.0.1:0").await.unwrap(), Router::new());
    assert!(format!("{serving:?}").contains("close_within: 30s"), "{serving:?}");
}
