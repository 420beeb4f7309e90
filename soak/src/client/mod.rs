//! A client of Phoenix Channels over WebSocket or long polling, which can behave badly.

mod http;
mod longpoll;
mod websocket;

use std::{io, net::SocketAddr, time::Duration};

use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout};

pub(crate) use self::{http::Http, websocket::RECEIVE_BUFFER};
use self::{longpoll::LongPoll, websocket::WebSocket};

/// How long a connection may take, and how long an answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The way to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    WebSocket,
    LongPoll,
}

/// A connected client.
#[derive(Debug)]
pub(crate) enum Client {
    WebSocket(WebSocket),
    LongPoll(Box<LongPoll>),
}

/// Why a connection is over.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The server closed the WebSocket with this code.
    Closed(u16),
    /// The long-polling session does not exist any more.
    Gone,
    /// The session did not take a message for this long, and may live. As the official client does, this one ends it.
    NotTaken(Duration),
    /// The connection broke.
    Broken,
    /// The server refused the connection.
    Refused,
    /// The server sent something that is not in the protocol.
    #[expect(dead_code, reason = "it is shown with Debug")]
    Invalid(String),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::InvalidData => Self::Invalid(error.to_string()),
            _ => Self::Broken,
        }
    }
}

/// A message of the server, in version 2 of the protocol: the references of the join and of the message, the topic,
/// the event, and the payload.
pub(crate) type Message<'a> = (IgnoredAny, Option<String>, String, String, &'a RawValue);

impl Client {
    /// Connects as the client with this name.
    pub(crate) async fn connect(
        address: SocketAddr,
        transport: Transport,
        name: &str,
    ) -> Result<Self, Ended> {
        let connecting = async {
            match transport {
                Transport::WebSocket => {
                    Ok(Self::WebSocket(WebSocket::connect(address, name).await?))
                }
                Transport::LongPoll => {
                    Ok(Self::LongPoll(Box::new(LongPoll::connect(address, name).await?)))
                }
            }
        };
        timeout(PATIENCE, connecting).await.unwrap_or(Err(Ended::Broken))
    }

    /// The next text. Cancel safe.
    pub(crate) async fn receive(&mut self) -> Result<Vec<u8>, Ended> {
        match self {
            Self::WebSocket(socket) => socket.receive().await,
            Self::LongPoll(session) => session.receive().await,
        }
    }

    pub(crate) async fn send(&mut self, text: &str) -> Result<(), Ended> {
        match self {
            Self::WebSocket(socket) => socket.send(text).await,
            Self::LongPoll(session) => session.send(text).await,
        }
    }

    /// When the last poll was sent, and the longest time from one to the next. None over a WebSocket.
    pub(crate) fn polls(&self) -> Option<(Instant, Duration)> {
        match self {
            Self::WebSocket(_) => None,
            Self::LongPoll(session) => Some(session.polls()),
        }
    }

    /// Ends the connection with RST instead of FIN, as a client does whose process or machine fails.
    pub(crate) fn reset(self) {
        match self {
            Self::WebSocket(socket) => socket.reset(),
            Self::LongPoll(session) => session.reset(),
        }
    }

    /// Ends the connection in the way that the protocol has for it.
    pub(crate) async fn close(self) {
        if let Self::WebSocket(socket) = self {
            socket.close().await;
        }
    }
}
