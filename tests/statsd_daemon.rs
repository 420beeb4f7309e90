//! Metrics as received and reported by the original StatsD daemon from npm.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::{
    collections::BTreeMap,
    net::{TcpListener, UdpSocket},
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use metrics::{Unit, counter, describe_histogram, gauge, histogram, with_local_recorder};
use pipeline::statsd::{Dialect, FlushReport, StatsdRecorder};
use pipeline_test_support::{Example, PATIENCE, connect, interop};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStdout, Command},
    time::timeout,
};

/// The daemon. Killed on drop.
struct Daemon {
    _node: Child,
    stdout: Lines<BufReader<ChildStdout>>,
    port: u16,
    management: u16,
    config: PathBuf,
}

impl Daemon {
    /// A daemon that does not flush during the test: a flush resets its counts.
    async fn start() -> Self {
        Self::flushing_every(Duration::from_secs(3600)).await
    }

    async fn flushing_every(interval: Duration) -> Self {
        let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let management = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = json!({
            "address": "127.0.0.1", "port": port,
            "mgmt_address": "127.0.0.1", "mgmt_port": management,
            "backends": [interop().join("reporter.cjs")],
            "flushInterval": interval.as_secs_f64() * 1000.0,
        });
        // It reads the file again when it changes, so the file has to stay.
        let file = std::env::temp_dir().join(format!("statsd-{port}.js"));
        std::fs::write(&file, format!("({config})")).unwrap();
        let mut node = Command::new("node");
        node.args(["node_modules/statsd/stats.js".as_ref(), file.as_os_str()]);
        node.current_dir(interop()).kill_on_drop(true).stdout(Stdio::piped());
        let mut node = node.spawn().unwrap();
        let stdout = BufReader::new(node.stdout.take().unwrap()).lines();
        let daemon = Self { _node: node, stdout, port, management, config: file };
        let up = async {
            while TcpStream::connect(("127.0.0.1", management)).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, up).await.unwrap();
        daemon
    }

    /// The data received so far: `counters` or `timers`, by name.
    async fn ask(&self, what: &str) -> Value {
        let mut stream = TcpStream::connect(("127.0.0.1", self.management)).await.unwrap();
        stream.write_all(format!("{what}\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        let mut chunk = [0; 4096];
        while !answer.trim_end().ends_with("END") {
            let length = timeout(PATIENCE, stream.read(&mut chunk)).await.unwrap().unwrap();
            answer.push_str(std::str::from_utf8(&chunk[..length]).unwrap());
        }
        let json = answer.trim_end().trim_end_matches("END");
        // It answers with a JavaScript literal.
        let node = Command::new("node")
            .args(["-e", "console.log(JSON.stringify(eval(`(${process.argv[1]})`)))", json])
            .output();
        serde_json::from_slice(&node.await.unwrap().stdout).unwrap()
    }

    /// Collects reports until this counter is in one.
    async fn reported_until(&mut self, counter: &str) -> Reported {
        let mut reported = Reported::default();
        while reported.counters.get(counter).is_none_or(|count| *count == 0.0) {
            let line = timeout(PATIENCE, self.stdout.next_line()).await.unwrap().unwrap().unwrap();
            // It also prints other lines, for instance that it is up.
            if let Ok(flush) = serde_json::from_str(&line) {
                reported.add(&flush);
            }
        }
        reported
    }

    /// The values of a timer, once there are `count` of them.
    async fn timer(&self, name: &str, count: usize) -> Vec<f64> {
        let arriving = async {
            loop {
                let timers = self.ask("timers").await;
                let values = timers[name].as_array().cloned().unwrap_or_default();
                if values.len() >= count {
                    return values.iter().map(|value| value.as_f64().unwrap()).collect();
                }
            }
        };
        timeout(PATIENCE, arriving).await.unwrap()
    }
}

/// The daemon's reports of all flushes.
#[derive(Debug, Default)]
struct Reported {
    counters: BTreeMap<String, f64>,
    gauges: BTreeMap<String, f64>,
    timers: BTreeMap<String, Vec<f64>>,
    /// The number of samples of each timer, including those without a line.
    timer_counters: BTreeMap<String, f64>,
}

impl Reported {
    fn add(&mut self, flush: &Value) {
        let numbers = |of: &str| {
            let object = flush[of].as_object().cloned().unwrap_or_default();
            object.into_iter().map(|(name, value)| (name, value.as_f64().unwrap()))
        };
        for (name, value) in numbers("counters") {
            *self.counters.entry(name).or_default() += value;
        }
        self.gauges.extend(numbers("gauges"));
        for (name, value) in numbers("timer_counters") {
            *self.timer_counters.entry(name).or_default() += value;
        }
        for (name, values) in flush["timers"].as_object().unwrap() {
            let values = values.as_array().unwrap().iter().map(|value| value.as_f64().unwrap());
            let known = self.timers.entry(name.clone()).or_default();
            known.extend(values);
            known.sort_by(f64::total_cmp);
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.config);
    }
}

#[tokio::test]
async fn the_original_daemon_understands_every_line() {
    const PUSHES: usize = 40;
    let daemon = Daemon::start().await;
    let server = format!("127.0.0.1:{}", daemon.port);
    let example = Example::start(&["--statsd", &server, "--statsd-dialect", "statsd"]).await;
    let mut ada = connect(&example.socket_url(1).await).await.unwrap();
    ada.join("1", "user:1").await;
    ada.send(json!(["2", "2", "user:2", "phx_join", {}])).await;
    ada.receive().await;
    assert_eq!(
        connect(&format!("ws://{}/socket/websocket?vsn=2.0.0", example.address)).await.err(),
        Some(403)
    );
    for n in 0..PUSHES {
        let body = json!({"user_id": 1, "event": "push_timed", "data": {"n": n}});
        assert_eq!(example.push(&body.to_string()).await.status, 202);
        ada.receive().await;
    }
    let delivered = daemon.timer("pipeline.push_delivered", PUSHES).await;
    let worked =
        daemon.timer("pipeline.worker.process_time;pipeline=push;stage=push", PUSHES).await;
    assert_eq!((delivered.len(), worked.len()), (PUSHES, PUSHES));
    assert!(delivered.iter().chain(&worked).all(|ms| *ms > 0.0), "fractions are kept");

    let counters = daemon.ask("counters").await;
    assert_eq!(counters["statsd.bad_lines_seen"], json!(0), "{counters}");
    for (name, count) in [
        ("socket_connect;socket=UserSocket;status=success", 1),
        ("socket_connect;socket=UserSocket;status=fail", 1),
        ("channel_join;channel=UserChannel;status=success", 1),
        ("channel_join;channel=UserChannel;status=fail", 1),
    ] {
        assert_eq!(counters[name], json!(count), "{name}: {counters}");
    }
}

#[tokio::test]
async fn the_original_daemon_reports_the_recorded_values() {
    let mut daemon = Daemon::flushing_every(Duration::from_millis(100)).await;
    let (recorder, flusher) = StatsdRecorder::udp(("127.0.0.1", daemon.port))
        .unwrap()
        .dialect(Dialect::StatsD)
        .prefix("app")
        .tag("env", "test")
        .histogram_samples(100)
        .flush_every(Duration::MAX)
        .build()
        .unwrap();

    let mut flushes = Vec::new();
    let mut sent = |record: &dyn Fn()| {
        with_local_recorder(&recorder, record);
        flushes.push(flusher.flush());
    };
    sent(&|| {
        describe_histogram!("took", Unit::Milliseconds, "");
        describe_histogram!("lasted", Unit::Seconds, "");
        counter!("joins", "result" => "ok").increment(2);
        counter!("total").absolute(100);
        gauge!("level").set(12.5);
        gauge!("below").set(5);
        gauge!("steps").increment(1.5);
        histogram!("took").record(0.75);
        histogram!("lasted").record(Duration::from_micros(1500));
        histogram!("bytes").record(512.5);
        (0..1234).for_each(|n| histogram!("many").record(n % 2));
    });
    sent(&|| {
        counter!("joins", "result" => "ok").increment(3);
        counter!("total").absolute(130);
        gauge!("level").set(0.1 + 0.2);
        gauge!("below").set(-7.25); // a plain minus would make it -2.25
        gauge!("steps").decrement(4);
        histogram!("took").record(0.001_234);
        histogram!("bytes").record(3);
        (0..66).for_each(|_| histogram!("many").record(1));
        counter!("a b:c|d\ne", "k;=" => "v:1|c\nevil:9|c").increment(1);
        counter!("", "half" => "").increment(1);
    });
    // Gauges are sent again, and negative ones keep their value.
    sent(&|| ());
    sent(&|| counter!("end").increment(1));
    let reported = daemon.reported_until("app.end;env=test").await;

    let of = |name: &str| format!("app.{name};env=test");
    assert_eq!(reported.counters["statsd.bad_lines_seen"], 0.0, "{reported:?}");
    assert_eq!(reported.counters["app.joins;env=test;result=ok"], 5.0);
    assert_eq!(reported.counters[&of("total")], 130.0);
    assert_eq!(reported.counters["app.a_b_c_d_e;env=test;k__=v_1_c_evil_9_c"], 1.0);
    assert_eq!(reported.counters[&of("_")], 1.0);
    assert_eq!(reported.gauges[&of("level")], 0.3);
    assert_eq!(reported.gauges[&of("below")], -7.25);
    assert_eq!(reported.gauges[&of("steps")], -2.5);
    assert_eq!(reported.timers[&of("took")], [0.001_234, 0.75]);
    assert_eq!(reported.timers[&of("lasted")], [1.5]);
    assert_eq!(reported.timers[&of("bytes")], [3.0, 512.5]);
    // The lines that represent several samples are few, and the total is known nevertheless.
    assert_eq!(reported.timers[&of("many")].len(), 166);
    assert_eq!(reported.timer_counters[&of("many")].round(), 1300.0);
    assert!(!reported.counters.contains_key(&of("bytes")), "a histogram is no counter");

    // It received the lines, and the recorder's own counters report them.
    let sum = |what: fn(&FlushReport) -> u64| flushes.iter().map(what).sum::<u64>() as f64;
    assert_eq!(reported.counters["statsd.metrics_received"], sum(|flush| flush.lines));
    assert_eq!(reported.counters["statsd.packets_received"], sum(|flush| flush.packets));
    let last = flushes.last().unwrap();
    let count = &reported.counters[&of("statsd.client.lines")];
    assert_eq!(*count, sum(|flush| flush.lines) - last.lines as f64);
    let count = &reported.counters[&of("statsd.client.bytes")];
    assert_eq!(*count, sum(|flush| flush.bytes) - last.bytes as f64);
}
