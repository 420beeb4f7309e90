//! Limits of a server's connections, and the end of connections.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::{
    future::{self, Future, IntoFuture},
    io,
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::ConnectInfo,
    routing::{get, post},
};
use http_body_util::BodyExt;
use pipeline::{
    ExitReason, Pipeline,
    health::Health,
    report::PipelineReport,
    serve,
    serve::{Serve, ShutdownReport},
    source::{QueueOptions, queue},
    step::for_each,
    subscription::SubscribeOptions,
    supervisor::ConsumerSupervisor,
    ws::{
        Endpoint, Mount, listen,
        mount::{Drainer, LongPoll},
    },
};
use pipeline_test_support::{
    AnyChannel, AnySocket, Log, PATIENCE, Recorded, connect, eventually, gate, request,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    sync::{oneshot, watch},
    task::{JoinHandle, yield_now},
    time::{Instant, sleep, timeout},
};

/// A short limit.
const SHORT: Duration = Duration::from_millis(100);

const DAY: Duration = Duration::from_secs(86_400);

/// A server in a background task.
struct Server {
    address: String,
    recorded: Recorded,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<io::Result<ShutdownReport>>,
}

impl Server {
    async fn start(app: Router, set: impl FnOnce(Serve) -> Serve) -> Self {
        let listener = listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (telemetry, recorded) = Recorded::new();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = serve(listener, app).telemetry(telemetry);
        let serving = set(serving).until(async { drop(stopped.await) });
        let serving = tokio::spawn(serving.into_future());
        Self { address, recorded, stop: Some(stop), serving }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(&self.address).await.unwrap()
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let response = pipeline_test_support::get(&self.address, path).await;
        (response.status, response.body)
    }

    fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    async fn stopped(self) -> ShutdownReport {
        timeout(PATIENCE, self.serving).await.unwrap().unwrap().unwrap()
    }
}

fn app() -> Router {
    Router::new()
        .route("/", get(async || "hello"))
        .route("/peer", get(async |ConnectInfo(peer): ConnectInfo<SocketAddr>| peer.to_string()))
        .route("/length", post(async |body: String| body.len().to_string()))
}

/// All bytes until the connection ends, by a close or a reset.
async fn until_the_end(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    // A reset is an end as well.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut all)).await.expect("the connection ends");
    String::from_utf8(all).unwrap()
}

/// Sends the beginning, then continues a byte at a time until the connection ends.
async fn dribble(mut stream: TcpStream, beginning: &str, bytes: &[u8]) {
    stream.write_all(beginning.as_bytes()).await.unwrap();
    let (mut read, mut write) = stream.split();
    let dribbling = async {
        for byte in bytes.iter().cycle() {
            if write.write_all(&[*byte]).await.is_err() {
                break;
            }
            sleep(SHORT / 10).await;
        }
    };
    let reading = async {
        let mut unread = [0; 1024];
        while read.read(&mut unread).await.is_ok_and(|read| read > 0) {}
    };
    let ended = async {
        tokio::select! { () = dribbling => {}, () = reading => {} }
    };
    timeout(PATIENCE, ended).await.expect("the connection ends");
}

/// Sends requests until `other` completes, and expects each to be answered.
async fn calm_meanwhile<T>(server: &Server, other: impl Future<Output = T>) -> T {
    let mut other = std::pin::pin!(other);
    loop {
        tokio::select! {
            done = &mut other => return done,
            () = sleep(SHORT / 10) => assert_eq!(server.get("/").await, (200, "hello".into())),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_with_slow_requests_are_disconnected_and_others_are_served() {
    let server = Server::start(app(), |serve| {
        serve.header_timeout(SHORT).keep_alive_timeout(SHORT).body_timeout(SHORT)
    })
    .await;
    let slow = async {
        let mut silent = Vec::new();
        for _ in 0..20 {
            silent.push(server.connect().await);
        }
        for stream in &mut silent {
            assert_eq!(until_the_end(stream).await, "");
        }
        let mut half = server.connect().await;
        half.write_all(b"GET / HTTP/1.1\r\nHost: ").await.unwrap();
        assert_eq!(until_the_end(&mut half).await, "");
        dribble(server.connect().await, "GET / HTTP/1.1\r\nLong: ", b"a").await;

        let mut idle = server.connect().await;
        idle.write_all(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n").await.unwrap();
        assert!(until_the_end(&mut idle).await.ends_with("hello"));
        let kept = server.connect().await;
        dribble(kept, "GET / HTTP/1.1\r\nHost: here\r\n\r\nGET / HTTP/1.1\r\nLong: ", b"a").await;

        let mut half_a_body = server.connect().await;
        let head = b"POST /length HTTP/1.1\r\nHost: here\r\nContent-Length: 100\r\n\r\nhalf";
        half_a_body.write_all(head).await.unwrap();
        let answer = until_the_end(&mut half_a_body).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    };
    calm_meanwhile(&server, slow).await;
    assert_eq!(
        server.recorded.counters("http.connections_timed_out"),
        [("reason=body".into(), 1), ("reason=head".into(), 22), ("reason=idle".into(), 2)]
    );
}

#[cfg(any(target_os = "android", target_os = "linux"))]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_not_read_are_disconnected_and_others_are_served() {
    let large = get(async || vec![b'a'; 64 << 20]);
    let app = app().route("/large", large);
    let server = Server::start(app, |serve| serve.write_timeout(SHORT)).await;
    let mut stalled = server.connect().await;
    stalled.write_all(b"GET /large HTTP/1.1\r\nHost: here\r\n\r\n").await.unwrap();
    // The server stops reading from a client that keeps sending requests, and closes its connection.
    let mut asking = server.connect().await;
    let asked = async {
        let requests = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n".repeat(1_000);
        while asking.write_all(&requests).await.is_ok() {}
    };
    calm_meanwhile(&server, async {
        timeout(PATIENCE, asked).await.expect("the connection is closed");
    })
    .await;
    let timed_out = || server.recorded.counters("http.connections_timed_out");
    let ended = eventually(|| timed_out() == [("reason=write".to_owned(), 2)]);
    calm_meanwhile(&server, ended).await;
    // A client that reads receives the whole answer, however long that takes.
    assert_eq!(server.get("/large").await.1.len(), 64 << 20);
}

#[tokio::test]
async fn a_slow_body_is_read_while_it_does_not_pause() {
    let server = Server::start(app(), |serve| serve.body_timeout(SHORT * 10)).await;
    let mut stream = server.connect().await;
    let head =
        b"POST /length HTTP/1.1\r\nHost: here\r\nConnection: close\r\nContent-Length: 30\r\n\r\n";
    stream.write_all(head).await.unwrap();
    for _ in 0..30 {
        stream.write_all(b"x").await.unwrap();
        sleep(SHORT / 2).await;
    }
    assert!(until_the_end(&mut stream).await.ends_with("30"));
}

#[tokio::test]
async fn a_head_above_the_limit_is_refused() {
    let server = Server::start(app(), |serve| serve).await;
    let mut stream = server.connect().await;
    let long = format!("GET / HTTP/1.1\r\nHost: here\r\nLong: {}", "a".repeat(64 * 1024));
    stream.write_all(long.as_bytes()).await.unwrap();
    assert!(until_the_end(&mut stream).await.starts_with("HTTP/1.1 431 "));
}

#[tokio::test]
async fn a_head_has_64_kib_at_most_however_it_arrives_and_blanks_count() {
    const LIMIT: usize = 64 * 1024;
    let server = Server::start(app(), |serve| serve).await;
    for (filling, bytes, status) in [
        ("a", 60_000, 200),
        ("a", LIMIT, 200),
        ("a", LIMIT + 1, 431),
        ("a", 70_000, 431),
        ("a", 100_000, 431),
        (" ", LIMIT, 200),
        (" ", LIMIT + 1, 431),
        (" ", 80_000, 431),
        (" ", 110_000, 431),
    ] {
        let (start, end) =
            ("GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\nLong: ", "\r\n\r\n");
        let filled = filling.repeat(bytes - start.len() - end.len());
        let head = [start, &filled, end].concat();
        for pieces in [1, 2, 9] {
            let mut stream = server.connect().await;
            for piece in head.as_bytes().chunks(head.len().div_ceil(pieces)) {
                // A server that has refused the head need not read the rest.
                let _ = stream.write_all(piece).await;
                yield_now().await;
            }
            let answer = until_the_end(&mut stream).await;
            let is_expected = answer.starts_with(&format!("HTTP/1.1 {status} "));
            assert!(is_expected, "{bytes} bytes of {filling:?} in {pieces} pieces: {answer}");
        }
    }
}

/// On one thread, so that other tasks run only between two polls of a task.
#[tokio::test]
async fn a_client_that_pipelines_requests_gets_few_answers_per_poll() {
    const REQUESTS: usize = 200;
    let answered = Arc::new(AtomicUsize::new(0));
    let counted = answered.clone();
    let count = get(async move || counted.fetch_add(1, Relaxed).to_string());
    let server = Server::start(Router::new().route("/", count), |serve| serve).await;
    let mut stream = server.connect().await;
    let requests = "GET / HTTP/1.1\r\nHost: here\r\n\r\n".repeat(REQUESTS);
    stream.write_all(requests.as_bytes()).await.unwrap();
    let (mut seen, mut most) = (0, 0);
    let all_are_answered = async {
        while seen < REQUESTS {
            yield_now().await;
            let now = answered.load(Relaxed);
            most = most.max(now - seen);
            seen = now;
        }
    };
    timeout(PATIENCE, all_are_answered).await.unwrap();
    assert!((1..=16).contains(&most), "{most} answers in one poll");
}

#[tokio::test]
async fn a_failed_body_has_ended() {
    let twice = post(async |mut body: Body| {
        let failed = matches!(body.frame().await, Some(Err(_)));
        format!("{failed} {}", body.frame().await.is_none())
    });
    let app = app().route("/twice", twice);
    let server = Server::start(app, |serve| serve.body_timeout(SHORT)).await;
    let mut stream = server.connect().await;
    let head =
        b"POST /twice HTTP/1.1\r\nHost: here\r\nConnection: close\r\nContent-Length: 9\r\n\r\n";
    stream.write_all(head).await.unwrap();
    assert!(until_the_end(&mut stream).await.ends_with("true true"));
}

#[tokio::test]
async fn requests_carry_the_address_of_their_client() {
    let server = Server::start(app(), |serve| serve).await;
    let mut stream = server.connect().await;
    let address = stream.local_addr().unwrap().to_string();
    stream
        .write_all(b"GET /peer HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    assert!(until_the_end(&mut stream).await.ends_with(&address));
}

#[tokio::test]
async fn a_connection_above_the_limit_is_refused_until_another_ends() {
    let server = Server::start(app(), |serve| serve.max_connections(2).header_timeout(DAY)).await;
    let (silent, _other) = (server.connect().await, server.connect().await);
    let refused = pipeline_test_support::get(&server.address, "/").await;
    assert_eq!((refused.status, &*refused.body), (503, "too many connections\n"));
    assert!(refused.head.contains("retry-after: 1"), "{}", refused.head);
    assert_eq!(server.recorded.counters("http.connections_refused"), [(String::new(), 1)]);
    drop(silent);
    let open = || server.recorded.levels("http.connections");
    eventually(|| open() == [(String::new(), 1.0)]).await;
    assert_eq!(server.get("/").await, (200, "hello".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consecutive_clients_never_exceed_the_limit() {
    let server = Server::start(app(), |serve| serve.max_connections(1)).await;
    let open = || server.recorded.levels("http.connections");
    for _ in 0..20 {
        assert_eq!(server.get("/").await, (200, "hello".into()));
        eventually(|| open() == [(String::new(), 0.0)]).await;
    }
    assert_eq!(server.recorded.counters("http.connections_refused"), []);
}

#[tokio::test]
async fn incomplete_requests_do_not_delay_the_shutdown() {
    let mut server = Server::start(app(), |serve| {
        serve.header_timeout(Duration::MAX).keep_alive_timeout(Duration::MAX)
    })
    .await;
    let mut slow = Vec::new();
    for n in 0..50 {
        let mut stream = server.connect().await;
        let said =
            ["", "GET / HTTP/1.1\r\nHost: ", "GET / HTTP/1.1\r\nHost: here\r\n\r\nGET "][n % 3];
        stream.write_all(said.as_bytes()).await.unwrap();
        slow.push(stream);
    }
    // Each has been accepted, as the ones before it.
    assert_eq!(server.get("/").await, (200, "hello".into()));
    // From here on the paused clock only moves when all tasks wait for it.
    tokio::time::pause();
    let began = Instant::now();
    server.stop();
    assert!(server.stopped().await.is_clean());
    assert_eq!(began.elapsed(), Duration::ZERO);
    tokio::time::resume();
    for stream in &mut slow {
        until_the_end(stream).await;
    }
}

#[tokio::test]
async fn a_pending_request_is_answered_during_the_shutdown() {
    let (gate, mut control) = gate();
    let waits = get(async move || {
        gate.pass(1).await.unwrap();
        "done"
    });
    let mut server = Server::start(app().route("/waits", waits), |serve| serve).await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET /waits HTTP/1.1\r\nHost: here\r\n\r\n").await.unwrap();
    control.started(1).await;
    server.stop();
    control.release(1);
    assert!(until_the_end(&mut stream).await.ends_with("done"));
    assert!(server.stopped().await.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipeline_accepts_given_up_items_of_another_that_drains() {
    let (open_gate, gate) = watch::channel(false);
    let (failed, failed_source) = queue(QueueOptions::new());
    let (orders, source) = queue(QueueOptions::new());
    let fail = async move |_: &u64| {
        let _ = gate.clone().wait_for(|open| *open).await;
        Err::<(), _>(ExitReason::failed("it always does"))
    };
    let put_aside = failed.clone();
    let refused = Arc::new(AtomicUsize::new(0));
    let counted = refused.clone();
    let supervisor = ConsumerSupervisor::new(fail).tries(1).on_given_up(move |order, _| {
        counted.fetch_add(usize::from(put_aside.offer(order).is_err()), Relaxed);
    });
    let first = Pipeline::builder("orders")
        .producer(source)
        .consumer_supervisor(supervisor, SubscribeOptions::new())
        .start()
        .unwrap();
    let written = Arc::new(AtomicUsize::new(0));
    let count = written.clone();
    let write = for_each(async move |_: u64| {
        count.fetch_add(1, Relaxed);
    });
    let second = Pipeline::builder("failed orders")
        .producer(failed_source)
        .consumer(write, SubscribeOptions::new())
        .start()
        .unwrap();
    let mut server =
        Server::start(app(), |serve| serve.pipeline(first).pipeline(second).drain_within(DAY))
            .await;
    for order in 0..100 {
        orders.push(order).await.unwrap();
    }
    server.stop();
    eventually(|| orders.is_closed()).await;
    // Draining both at the same time would have closed this one by now, because it is idle.
    sleep(SHORT).await;
    assert!(!failed.is_closed());
    open_gate.send_replace(true);
    let report = server.stopped().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(
        report.pipelines.iter().map(|it| &*it.pipeline).collect::<Vec<_>>(),
        ["orders", "failed orders"]
    );
    assert_eq!((written.load(Relaxed), refused.load(Relaxed)), (100, 0));
}

#[tokio::test(start_paused = true)]
async fn the_drain_timeout_covers_all_pipelines() {
    let minute = Duration::from_secs(60);
    let stuck = |name: &str| {
        let (queue, producer) = queue::<u64>(QueueOptions::new());
        let never = ConsumerSupervisor::new(async |_: &u64| future::pending().await);
        let pipeline = Pipeline::builder(name)
            .producer(producer)
            .consumer_supervisor(never, SubscribeOptions::new())
            .start()
            .unwrap();
        (queue, pipeline)
    };
    let (one, first) = stuck("one");
    let (other, second) = stuck("other");
    let mut server =
        Server::start(app(), |serve| serve.pipeline(first).pipeline(second).drain_within(minute))
            .await;
    one.push(1).await.unwrap();
    other.push(1).await.unwrap();
    let began = Instant::now();
    server.stop();
    let report = server.serving.await.unwrap().unwrap();
    let left: Vec<_> = report.pipelines.iter().map(PipelineReport::unprocessed).collect();
    assert_eq!(left, [1, 1]);
    assert!(began.elapsed() < minute + minute / 2, "{:?}", began.elapsed());
}

/// Every step takes all of its time: the pipelines are stuck, a polling client fetches nothing, a socket's
/// batch is never due and its client does not answer the close, and a request is never answered.
#[tokio::test]
async fn a_shutdown_whose_every_step_hangs_takes_no_longer_than_its_maximum() {
    const LINGER: Duration = Duration::from_secs(5);
    const DRAIN: Duration = Duration::from_secs(10);
    const CLOSE: Duration = Duration::from_secs(30);
    const SECOND: Duration = Duration::from_secs(1);
    let stuck = |name: &str| {
        let (queue, producer) = queue::<u64>(QueueOptions::new());
        let pipeline = Pipeline::builder(name)
            .producer(producer)
            .consumer(for_each(async |_| future::pending::<()>().await), SubscribeOptions::new())
            .start()
            .unwrap();
        (queue, pipeline)
    };
    let [(one, first), (other, second)] = ["one", "other"].map(stuck);
    let drainer = Drainer::new().batch_size(1).batch_interval(DAY);
    let mount = Mount::new(AnySocket).channel::<AnyChannel>("user:*").drainer(drainer);
    // The longest, so that the session lives until the pipelines have drained.
    let mount = mount.longpoll(LongPoll::new().window(20 * SECOND - SECOND / 10));
    let endpoint = Endpoint::builder().mount("/socket", mount).build().unwrap();
    let app = Router::new().route("/stuck", get(future::pending::<()>));
    let mut server = Server::start(app.fallback_service(endpoint.clone()), |serve| {
        let serve = serve.pipeline(first).pipeline(second).endpoint(endpoint.clone());
        serve.linger(LINGER).drain_within(DRAIN).close_within(CLOSE)
    })
    .await;
    one.push(1).await.unwrap();
    other.push(1).await.unwrap();
    let mut silent = Vec::new();
    for user in ["user:1", "user:2"] {
        let url = format!("ws://{}/socket/websocket?vsn=2.0.0", server.address);
        let mut client = connect(&url).await.unwrap();
        client.join("1", user).await;
        silent.push(client);
    }
    let path = "/socket/longpoll?vsn=2.0.0";
    let opened = pipeline_test_support::get(&server.address, path).await.json();
    let path = format!("{path}&token={}", opened["token"].as_str().unwrap());
    let join = r#"["1","1","user:3","phx_join",{}]"#;
    let headers = [("content-type", "application/json")];
    assert_eq!(request(&server.address, "POST", &path, &headers, join).await.json()["status"], 200);
    let mut waiting = server.connect().await;
    waiting.write_all(b"GET /stuck HTTP/1.1\r\nHost: here\r\n\r\n").await.unwrap();
    assert_eq!(server.get("/nowhere").await.0, 404);

    // From here on the paused clock only moves when all tasks wait for it.
    tokio::time::pause();
    let began = Instant::now();
    server.stop();
    let report = server.serving.await.unwrap().unwrap();
    let took = began.elapsed();
    assert!(!report.is_clean(), "{report}");
    // 1 s for a stage that does not stop, and for each pipeline after the first; 2 s for the polling client,
    // 1 s for the socket that does not abort, and 6 s for the request. There is no StatsD.
    let most = LINGER + DRAIN + CLOSE + (1 + 2 + 1 + 6) * SECOND + SECOND;
    assert!(took <= most, "{took:?} of {most:?}: {report}");
    assert!(
        took >= LINGER + DRAIN + CLOSE + (2 + 6) * SECOND,
        "{took:?}: a step did not hang: {report}"
    );
}

#[cfg(unix)]
#[tokio::test]
async fn the_first_signal_during_a_shutdown_without_one_does_not_interrupt_it() {
    let (log, _guard) = Log::keep();
    let (gate, mut control) = gate();
    let (queue, producer) = queue::<u64>(QueueOptions::new());
    let work = async move |n: &u64| gate.pass(*n).await;
    let pipeline = Pipeline::builder("slow")
        .producer(producer)
        .consumer_supervisor(ConsumerSupervisor::new(work), SubscribeOptions::new())
        .start()
        .unwrap();
    let health = Health::new();
    let mut server =
        Server::start(app(), |serve| serve.health(&health).pipeline(pipeline).drain_within(DAY))
            .await;
    queue.push(1).await.unwrap();
    control.started(1).await;
    server.stop();
    eventually(|| health.readiness().is_err()).await;
    // An orchestrator sees that the process is not ready, and signals it to stop.
    let id = std::process::id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().await.unwrap().success());
    let mut lines = Vec::new();
    eventually(|| {
        lines.extend(log.take());
        lines.iter().any(|line: &String| line.contains("already stopping"))
    })
    .await;
    control.release(1);
    let report = server.stopped().await;
    assert!(report.is_clean() && !report.interrupted, "{report}");
}

#[tokio::test]
async fn while_it_lingers_it_is_not_ready_and_still_accepts_connections() {
    let health = Health::new();
    let app = app().merge(health.router());
    let mut server = Server::start(app, |serve| serve.health(&health).linger(DAY)).await;
    assert_eq!(server.get("/readyz").await.0, 200);
    server.stop();
    eventually(|| health.readiness().is_err()).await;
    assert_eq!(server.get("/readyz").await.0, 503);
    let mut stream = server.connect().await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n").await.unwrap();
    let answer = until_the_end(&mut stream).await;
    assert!(answer.contains("connection: close") && answer.ends_with("hello"), "{answer}");
    assert!(!server.serving.is_finished());
    server.serving.abort();
}

#[tokio::test]
async fn an_after_shutdown_that_panics_is_logged_and_the_report_is_returned() {
    let (log, _guard) = Log::keep();
    let (queue, producer) = queue::<u64>(QueueOptions::new());
    let pipeline = Pipeline::builder("numbers")
        .producer(producer)
        .consumer(for_each(async |_: u64| ()), SubscribeOptions::new())
        .start()
        .unwrap();
    queue.push(1).await.unwrap();
    let mut server = Server::start(app(), |serve| {
        serve.pipeline(pipeline).after_shutdown(|| panic!("the flush failed"))
    })
    .await;
    server.stop();
    let report = server.stopped().await;
    assert!(report.is_clean() && report.pipelines.len() == 1, "{report}");
    let lines = log.take();
    let is_logged = |line: &String| {
        line.contains("after_shutdown callback panicked") && line.contains("the flush failed")
    };
    assert!(lines.iter().any(is_logged), "{lines:?}");
}

#[tokio::test]
async fn it_logs_its_address() {
    let (log, _guard) = Log::keep();
    let server = Server::start(app(), |serve| serve).await;
    let line = format!("INFO address={} message=listening", server.address);
    let mut lines = Vec::new();
    while !lines.contains(&line) {
        lines.extend(log.take());
        yield_now().await;
    }
}

#[tokio::test]
async fn a_polling_client_can_fetch_messages_of_a_draining_pipeline() {
    let sockets = Mount::new(AnySocket).channel::<AnyChannel>("user:*");
    let sockets = sockets.longpoll(LongPoll::new().window(SHORT * 10));
    let endpoint = Endpoint::builder().mount("/socket", sockets).build().unwrap();
    let (gate, mut control) = gate();
    let (queue, producer) = queue::<u64>(QueueOptions::new());
    let users = endpoint.clone();
    let push = async move |n: &u64| {
        gate.pass(*n).await?;
        users.broadcast("user:1", "push", json!({ "n": n })).map_err(ExitReason::failed)
    };
    let pipeline = Pipeline::builder("push")
        .producer(producer)
        .consumer_supervisor(ConsumerSupervisor::new(push), SubscribeOptions::new())
        .start()
        .unwrap();
    let app = Router::new().fallback_service(endpoint.clone());
    let mut server =
        Server::start(app, |serve| serve.pipeline(pipeline).endpoint(endpoint).drain_within(DAY))
            .await;

    let address = server.address.clone();
    let path = "/socket/longpoll?vsn=2.0.0";
    let opened = pipeline_test_support::get(&address, path).await.json();
    let path = format!("{path}&token={}", opened["token"].as_str().unwrap());
    let join = r#"["1","1","user:1","phx_join",{}]"#;
    let headers = [("content-type", "application/json")];
    assert_eq!(request(&address, "POST", &path, &headers, join).await.json()["status"], 200);
    let joined = pipeline_test_support::get(&address, &path).await.json();
    assert_eq!(joined["status"], 200, "{joined}");

    queue.push(7).await.unwrap();
    control.started(1).await;
    server.stop();
    eventually(|| queue.is_closed()).await;
    // No poll is pending when it is sent.
    control.release(1);
    sleep(SHORT).await;
    let fetched = pipeline_test_support::get(&address, &path).await.json();
    assert_eq!(fetched["status"], 200, "{fetched}");
    assert!(fetched["messages"][0].as_str().unwrap().contains(r#"{"n":7}"#), "{fetched}");
    assert!(server.stopped().await.is_clean());
}

#[tokio::test]
async fn a_timeout_of_zero_is_refused() {
    type Set = fn(Serve, Duration) -> Serve;
    let set: [(Set, &str); 3] = [
        (Serve::header_timeout, "header_timeout has to be above zero"),
        (Serve::body_timeout, "body_timeout has to be above zero"),
        (Serve::write_timeout, "write_timeout has to be above zero"),
    ];
    for (set, starts_with) in set {
        let serve = serve(listen("127.0.0.1:0").await.unwrap(), Router::new());
        let panic = catch_unwind(AssertUnwindSafe(|| drop(set(serve, Duration::ZERO))));
        let panic = panic.expect_err("zero was accepted");
        let said = panic.downcast_ref::<&str>().unwrap();
        assert!(said.starts_with(starts_with), "{said}");
    }
}
