//! A server to talk to, and a client that is told what to say.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests too")]
#![allow(clippy::needless_pass_by_value, reason = "json!(..) is read better where it stands")]

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use futures::{SinkExt, StreamExt};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use parking_lot::Mutex;
use pipeline_core::Telemetry;
use pipeline_ws_sink::{Endpoint, EndpointBuilder};
use serde_json::{Value, json};
use tokio::{net::TcpStream, task::JoinHandle, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Error, Message, protocol::CloseFrame},
};

/// Longer than anything here takes; when it is over, the test has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// An endpoint behind a real server.
pub struct Server {
    pub endpoint: Endpoint,
    pub recorded: Recorded,
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    pub async fn start(builder: EndpointBuilder) -> Self {
        let recorder = DebuggingRecorder::new();
        let recorded = Recorded::of(&recorder);
        let endpoint = builder.telemetry(Telemetry::to(recorder)).build().unwrap();
        let listener = pipeline_ws_sink::listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app: axum::Router = axum::Router::new().fallback_service(endpoint.clone());
        let task = tokio::spawn(async { axum::serve(listener, app).await.unwrap() });
        Self { endpoint, recorded, address, task }
    }

    pub fn url(&self, query: &str) -> String {
        format!("ws://{}/socket/websocket?{query}", self.address)
    }

    /// Connects, with these parameters besides the version.
    pub async fn connect(&self, params: &str) -> Client {
        self.try_connect(&format!("vsn=2.0.0&{params}")).await.unwrap()
    }

    /// Connects, or says with which status it was refused.
    pub async fn try_connect(&self, query: &str) -> Result<Client, u16> {
        match timeout(PATIENCE, connect_async(self.url(query))).await.unwrap() {
            Ok((stream, _)) => Ok(Client { stream }),
            Err(Error::Http(response)) => Err(response.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }

    /// Connects without a WebSocket.
    pub async fn connect_tcp(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Waits until this many sockets are open.
    pub async fn open_sockets(&self, count: usize) {
        let waiting = async {
            while self.endpoint.open_sockets() != count {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, waiting).await.unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A client that says what the test says.
pub struct Client {
    pub stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Client {
    /// Sends a message: join ref, ref, topic, event, payload.
    pub async fn send(&mut self, message: Value) {
        self.send_text(&message.to_string()).await;
    }

    pub async fn send_text(&mut self, text: &str) {
        self.stream.send(Message::text(text)).await.unwrap();
    }

    /// The next message, whatever it is.
    pub async fn receive(&mut self) -> Value {
        match self.next().await {
            Message::Text(text) => serde_json::from_str(&text).unwrap(),
            other => panic!("expected a text, got {other:?}"),
        }
    }

    /// The next frame. A ping is answered on the way.
    pub async fn next(&mut self) -> Message {
        timeout(PATIENCE, self.stream.next()).await.expect("something to arrive").unwrap().unwrap()
    }

    /// Asserts that the next messages are these.
    pub async fn expect(&mut self, messages: impl IntoIterator<Item = Value>) {
        for message in messages {
            assert_eq!(self.receive().await, message);
        }
    }

    /// Joins a topic with this join ref, and is let in.
    pub async fn join(&mut self, join_ref: &str, topic: &str) {
        self.send(json!([join_ref, join_ref, topic, "phx_join", {}])).await;
        self.expect([reply(join_ref, join_ref, topic, "ok", json!({}))]).await;
    }

    /// Asserts that nothing has arrived: the answer to a heartbeat is the next thing that does.
    pub async fn expect_nothing_else(&mut self) {
        self.send(json!([null, "beat", "phoenix", "heartbeat", {}])).await;
        self.expect([
            json!([null, "beat", "phoenix", "phx_reply", {"status": "ok", "response": {}}]),
        ])
        .await;
    }

    /// Waits for the server to close; the code.
    pub async fn closed(&mut self) -> u16 {
        loop {
            match self.next().await {
                Message::Close(Some(CloseFrame { code, .. })) => return code.into(),
                Message::Text(_) => {}
                other => panic!("expected a close, got {other:?}"),
            }
        }
    }
}

pub fn reply(join_ref: &str, reference: &str, topic: &str, status: &str, response: Value) -> Value {
    json!([join_ref, reference, topic, "phx_reply", {"status": status, "response": response}])
}

/// What was recorded.
pub struct Recorded {
    snapshotter: Snapshotter,
    /// Samples that were seen while looking for something else: a snapshot takes them all.
    seen: Mutex<HashMap<String, Vec<f64>>>,
}

impl Recorded {
    pub fn of(recorder: &DebuggingRecorder) -> Self {
        Self { snapshotter: recorder.snapshotter(), seen: Mutex::default() }
    }

    /// The values of a counter since the last look, by its labels, as `name=value` in the order of
    /// their names.
    pub fn counters(&self, name: &str) -> Vec<(String, u64)> {
        let mut counters = Vec::new();
        for (key, .., value) in self.snapshotter.snapshot().into_vec() {
            let key = key.key();
            match value {
                DebugValue::Counter(count) if key.name() == name && count > 0 => {
                    let mut labels: Vec<_> =
                        key.labels().map(|l| format!("{}={}", l.key(), l.value())).collect();
                    labels.sort();
                    counters.push((labels.join(","), count));
                }
                DebugValue::Histogram(samples) => {
                    let mut seen = self.seen.lock();
                    let samples = samples.into_iter().map(f64::from);
                    seen.entry(key.name().to_owned()).or_default().extend(samples);
                }
                _ => {}
            }
        }
        counters.sort();
        counters
    }

    /// The samples of a histogram since the last look.
    pub fn samples(&self, name: &str) -> Vec<f64> {
        self.counters("");
        self.seen.lock().remove(name).unwrap_or_default()
    }
}
