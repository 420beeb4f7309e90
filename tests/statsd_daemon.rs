//! The example's metrics, received by the original StatsD daemon from npm.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::{
    net::{TcpListener, UdpSocket},
    path::PathBuf,
    process::Stdio,
};

use pipeline_test_support::{Example, PATIENCE, connect, interop};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::{Child, Command},
    time::timeout,
};

/// The daemon. Killed when it is dropped.
struct Daemon {
    _node: Child,
    port: u16,
    management: u16,
    config: PathBuf,
}

impl Daemon {
    async fn start() -> Self {
        let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let management = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = json!({
            "address": "127.0.0.1", "port": port,
            "mgmt_address": "127.0.0.1", "mgmt_port": management,
            "backends": ["./backends/console"],
            // It forgets at each flush what it has counted, so it is not to flush during the test.
            "flushInterval": 3_600_000,
        });
        // It reads the file again when it changes, so the file has to stay.
        let file = std::env::temp_dir().join(format!("statsd-{port}.js"));
        std::fs::write(&file, format!("({config})")).unwrap();
        let mut node = Command::new("node");
        node.args(["node_modules/statsd/stats.js".as_ref(), file.as_os_str()]);
        node.current_dir(interop()).kill_on_drop(true).stdout(Stdio::null());
        let daemon = Self { _node: node.spawn().unwrap(), port, management, config: file };
        let up = async {
            while TcpStream::connect(("127.0.0.1", management)).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, up).await.unwrap();
        daemon
    }

    /// What it has received so far: `counters` or `timers`, by name.
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

    /// The values of a timer, once there are so many.
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
    let worked = daemon
        .timer("pipeline.worker.process_time;pipeline=push;stage=consumer_supervisor", PUSHES)
        .await;
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
