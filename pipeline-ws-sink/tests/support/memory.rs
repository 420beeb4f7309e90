//! A server with in-memory streams, for tests on a paused clock.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "these are tests too")]

use std::{io, net::SocketAddr};

use pipeline_test_support::{Client, Recorded};
use pipeline_ws_sink::{Endpoint, endpoint::EndpointBuilder};
use tokio::{io::DuplexStream, sync::mpsc};

/// An endpoint behind a server without a network.
pub struct MemoryServer {
    pub endpoint: Endpoint,
    pub recorded: Recorded,
    streams: mpsc::Sender<DuplexStream>,
}

/// A listener of in-memory streams.
struct Memory(mpsc::Receiver<DuplexStream>);

impl MemoryServer {
    pub fn start(builder: EndpointBuilder) -> Self {
        let (telemetry, recorded) = Recorded::new();
        let endpoint = builder.telemetry(telemetry).build().unwrap();
        let (streams, listener) = mpsc::channel(1);
        let app: axum::Router = axum::Router::new().fallback_service(endpoint.clone());
        tokio::spawn(async { axum::serve(Memory(listener), app).await.unwrap() });
        Self { endpoint, recorded, streams }
    }

    /// A client behind a stream with a buffer of this many bytes.
    pub async fn connect(&self, holds: usize) -> Client<DuplexStream> {
        self.connect_at("/socket", holds).await
    }

    /// The same at another path.
    pub async fn connect_at(&self, path: &str, holds: usize) -> Client<DuplexStream> {
        let (ours, theirs) = tokio::io::duplex(holds);
        self.streams.send(theirs).await.unwrap();
        Client::over(ours, &format!("ws://x{path}/websocket?vsn=2.0.0&name=ada")).await
    }

    /// A stream for raw requests.
    pub async fn stream(&self) -> DuplexStream {
        self.stream_of(1 << 16).await
    }

    /// The same, with a buffer of this many bytes in each direction.
    pub async fn stream_of(&self, holds: usize) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(holds);
        self.streams.send(theirs).await.unwrap();
        ours
    }
}

impl axum::serve::Listener for Memory {
    type Io = DuplexStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (DuplexStream, SocketAddr) {
        match self.0.recv().await {
            Some(stream) => (stream, SocketAddr::from(([127, 0, 0, 1], 1))),
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::from(([127, 0, 0, 1], 0)))
    }
}
