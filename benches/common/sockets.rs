//! An endpoint with in-memory sockets.

use std::{io, net::SocketAddr};

use axum::Router;
use pipeline::ws::{
    Channel, Endpoint, Mount, Payload, Socket, Topic,
    channel::{ChannelContext, JoinContext, JoinError, Reply, Stop},
    mount::WhenFull,
    socket::{ConnectError, ConnectInfo, Params},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::mpsc,
};

/// The buffer of a stream in bytes.
const HOLDS: usize = 1 << 20;

pub(crate) struct Anyone;

impl Socket for Anyone {
    type Assigns = ();

    async fn connect(&self, _: &Params, _: &ConnectInfo) -> Result<(), ConnectError> {
        Ok(())
    }
}

/// A channel with an empty reply to every event.
pub(crate) struct Room;

impl Channel for Room {
    type Socket = Anyone;
    type Config = ();

    async fn join(_: &Topic, _: Payload, _: &mut JoinContext<'_, Self>) -> Result<Self, JoinError> {
        Ok(Self)
    }

    async fn handle_in(
        &mut self,
        _: &str,
        _: Payload,
        _: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        Ok(Reply::ok())
    }
}

/// A server without a network.
pub(crate) struct MemoryServer {
    pub(crate) endpoint: Endpoint,
    streams: mpsc::Sender<DuplexStream>,
}

impl MemoryServer {
    pub(crate) fn start() -> Self {
        let mount = Mount::new(Anyone).channel::<Room>("room:*").when_full(WhenFull::DropNewest);
        let endpoint = Endpoint::builder().mount("/socket", mount).build().unwrap();
        let (streams, listener) = mpsc::channel(1);
        let app = Router::new().fallback_service(endpoint.clone());
        tokio::spawn(async { axum::serve(Memory(listener), app).await });
        Self { endpoint, streams }
    }

    /// Opens a WebSocket with this protocol version.
    pub(crate) async fn connect(&self, version: &str) -> DuplexStream {
        let (mut ours, theirs) = tokio::io::duplex(HOLDS);
        self.streams.send(theirs).await.unwrap();
        let request = format!(
            "GET /socket/websocket?vsn={version} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\
             Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Version: 13\r\n\r\n"
        );
        ours.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(ours.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 101"));
        ours
    }
}

/// A listener of in-memory streams.
struct Memory(mpsc::Receiver<DuplexStream>);

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
