//! A server for tests.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "these are tests too")]

use std::net::SocketAddr;

use pipeline_test_support::{Client, PATIENCE, Recorded, connect};
use pipeline_ws_sink::{Endpoint, endpoint::EndpointBuilder};
use tokio::{net::TcpStream, task::JoinHandle, time::timeout};

/// An endpoint behind a real server.
pub struct Server {
    pub endpoint: Endpoint,
    pub recorded: Recorded,
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    pub async fn start(builder: EndpointBuilder) -> Self {
        let (telemetry, recorded) = Recorded::new();
        let endpoint = builder.telemetry(telemetry).build().unwrap();
        let listener = pipeline_ws_sink::listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app: axum::Router = axum::Router::new().fallback_service(endpoint.clone());
        let task = tokio::spawn(async { axum::serve(listener, app).await.unwrap() });
        Self { endpoint, recorded, address, task }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self, query: &str) -> String {
        format!("ws://{}/socket/websocket?{query}", self.address)
    }

    /// Connects, with these parameters in addition to the version.
    pub async fn connect(&self, params: &str) -> Client {
        self.try_connect(&format!("vsn=2.0.0&{params}")).await.unwrap()
    }

    /// Connects, or returns the status of the refusal.
    pub async fn try_connect(&self, query: &str) -> Result<Client, u16> {
        connect(&self.url(query)).await
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
