//! A polling client, request by request.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "these are tests too")]

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::{handshake_server::Response, memory::MemoryServer};

/// The content type of a body with one message per line.
pub const BATCH: (&str, &str) = ("content-type", "application/x-ndjson");

/// Sends a request over a separate stream, and reads the response.
pub async fn request(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Response {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    let length = body.len();
    stream.write_all(format!("{head}content-length: {length}\r\n\r\n").as_bytes()).await.unwrap();
    // The receiver may have been dropped.
    let _ = stream.write_all(body.as_bytes()).await;
    Response::read(&mut stream).await
}

/// The response body for a status.
pub fn body_of(answer: &Response) -> Value {
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/json; charset=utf-8"));
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    serde_json::from_str(&answer.body).unwrap()
}

/// A client with a session.
#[derive(Clone)]
pub struct Poller<'a> {
    pub server: &'a MemoryServer,
    pub query: String,
    pub token: String,
}

impl<'a> Poller<'a> {
    /// Requests a new session.
    pub async fn connect(server: &'a MemoryServer, query: &str) -> Self {
        let mut poller = Self { server, query: query.to_owned(), token: "null".to_owned() };
        let opened = poller.poll().await;
        assert_eq!((&opened["status"], &opened["messages"]), (&json!(410), &json!([])));
        opened["token"].as_str().unwrap().clone_into(&mut poller.token);
        poller
    }

    pub fn path(&self) -> String {
        format!("/socket/longpoll?{}&token={}", self.query, self.token)
    }

    pub async fn poll(&self) -> Value {
        body_of(&request(self.server.stream().await, "GET", &self.path(), &[], "").await)
    }

    /// Sends lines of version 2.
    pub async fn post(&self, lines: &str) -> Value {
        body_of(&request(self.server.stream().await, "POST", &self.path(), &[BATCH], lines).await)
    }

    /// Polls for pending messages, and expects at least one.
    pub async fn messages(&self) -> Vec<Value> {
        let polled = self.poll().await;
        assert_eq!((&polled["status"], &polled["token"]), (&json!(200), &json!(self.token)));
        let messages = polled["messages"].as_array().unwrap();
        messages.iter().map(|text| serde_json::from_str(text.as_str().unwrap()).unwrap()).collect()
    }

    /// Joins a topic, and fetches the reply.
    pub async fn join(&self, topic: &str) {
        let join = json!(["1", "1", topic, "phx_join", {}]).to_string();
        assert_eq!(self.post(&join).await, json!({ "status": 200 }));
        let replied = json!(["1", "1", topic, "phx_reply", {"status": "ok", "response": {}}]);
        assert_eq!(self.messages().await, [replied]);
    }

    /// The response to a poll without messages.
    pub fn nothing(&self) -> Value {
        json!({ "status": 204, "token": self.token, "messages": [] })
    }
}
