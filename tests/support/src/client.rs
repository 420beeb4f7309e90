//! A scriptable client of the channel protocol.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, client_async, connect_async,
    tungstenite::{Error, Message, protocol::CloseFrame},
};

use crate::PATIENCE;

/// A connected client.
#[derive(Debug)]
pub struct Client<S = MaybeTlsStream<TcpStream>> {
    /// For messages without a method.
    pub stream: WebSocketStream<S>,
    patience: Duration,
}

/// Connects to a `ws://` address.
///
/// # Errors
///
/// The status of the refusal.
pub async fn connect(url: &str) -> Result<Client, u16> {
    match timeout(PATIENCE, connect_async(url)).await.unwrap() {
        Ok((stream, _)) => Ok(Client { stream, patience: PATIENCE }),
        Err(Error::Http(response)) => Err(response.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// Connects over the test's own stream, on the test's own clock: an hour passes at once when all
    /// tasks are idle.
    pub async fn over(stream: S, url: &str) -> Self {
        let (stream, _) = client_async(url, stream).await.unwrap();
        Self { stream, patience: Duration::from_secs(3600) }
    }

    /// Sends a message: join ref, ref, topic, event, payload.
    pub async fn send(&mut self, message: Value) {
        self.send_text(&message.to_string()).await;
    }

    /// Sends a text frame.
    pub async fn send_text(&mut self, text: &str) {
        self.stream.send(Message::text(text)).await.unwrap();
    }

    /// The next message.
    pub async fn receive(&mut self) -> Value {
        match self.next().await {
            Message::Text(text) => serde_json::from_str(&text).unwrap(),
            other => panic!("expected a text, got {other:?}"),
        }
    }

    /// The next frame of any kind.
    pub async fn next(&mut self) -> Message {
        timeout(self.patience, self.stream.next()).await.expect("a frame arrives").unwrap().unwrap()
    }

    /// Asserts that the next messages are these.
    pub async fn expect(&mut self, messages: impl IntoIterator<Item = Value>) {
        for message in messages {
            assert_eq!(self.receive().await, message);
        }
    }

    /// Joins a topic with this join ref, and expects success.
    pub async fn join(&mut self, join_ref: &str, topic: &str) {
        self.send(json!([join_ref, join_ref, topic, "phx_join", {}])).await;
        self.expect([reply(join_ref, join_ref, topic, "ok", json!({}))]).await;
    }

    /// Asserts that no frame has arrived: the reply to a heartbeat is the next one.
    ///
    /// The socket itself answers the heartbeat, so a channel may still send frames later.
    pub async fn expect_nothing_else(&mut self) {
        self.send(json!([null, "beat", "phoenix", "heartbeat", {}])).await;
        let answer = json!({"status": "ok", "response": {}});
        self.expect([json!([null, "beat", "phoenix", "phx_reply", answer])]).await;
    }

    /// Waits for the server to close, skipping messages. Returns the close code.
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

/// The reply to a client's message.
#[must_use]
pub fn reply(join_ref: &str, reference: &str, topic: &str, status: &str, response: Value) -> Value {
    json!([join_ref, reference, topic, "phx_reply", {"status": status, "response": response}])
}
