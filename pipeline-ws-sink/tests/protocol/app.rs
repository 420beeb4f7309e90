//! The server of these tests, its channels except for the room, and the frames of its clients.

use std::sync::Arc;

use pipeline_core::ExitReason;
use pipeline_test_support::{Client, reply};
use pipeline_ws_sink::{
    Channel, Endpoint, Mount, Payload, Topic,
    channel::{ChannelContext, JoinContext, JoinError, Reply, Stop},
    pubsub::Broadcast,
};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    room::{Asked, Room, RoomConfig},
    support::{
        channels::{NamedSocket, Slow},
        server::Server,
    },
};

/// The topic of most tests.
pub(crate) const T: &str = "room:lobby";

/// A server with all the channels.
pub(crate) struct App {
    pub(crate) server: Server,
    /// Permits that complete joins of `slow:*`, and that release rooms from `wait`.
    pub(crate) gate: Arc<Semaphore>,
    asked: mpsc::Receiver<Asked>,
}

impl App {
    pub(crate) async fn start() -> Self {
        Self::with(|mount| mount).await
    }

    pub(crate) async fn with(
        options: impl FnOnce(Mount<NamedSocket>) -> Mount<NamedSocket>,
    ) -> Self {
        let gate = Arc::new(Semaphore::new(0));
        let (sender, asked) = mpsc::channel(10);
        let mount = Mount::new(NamedSocket)
            .channel_with::<Named>("room:vip", "vip")
            .channel_with::<Room>("room:*", RoomConfig { asked: sender, gate: gate.clone() })
            .channel_with::<Named>("late:*", "wildcard")
            .channel_with::<Named>("late:special", "special")
            .channel_with::<Named>("feed*", "feed")
            .channel_with::<Slow>("slow:*", gate.clone())
            .channel::<Farewell>("bye:*")
            .channel::<External>("ext:*");
        let server = Server::start(Endpoint::builder().mount("/socket", options(mount))).await;
        Self { server, gate, asked }
    }

    /// A client of version 2 with this name.
    pub(crate) async fn client(&self, name: &str) -> Client {
        self.server.connect(&format!("name={name}")).await
    }

    /// A client of version 1 with this name.
    pub(crate) async fn v1(&self, name: &str) -> Client {
        self.server.try_connect(&format!("name={name}")).await.unwrap()
    }

    /// A client of version 2 that has joined [`T`] with this join reference.
    pub(crate) async fn joined(&self, name: &str, join_ref: &str) -> Client {
        let mut client = self.client(name).await;
        client.join(join_ref, T).await;
        client
    }

    /// The next message that a room forwards to the test for a reply.
    pub(crate) async fn asked(&mut self) -> Asked {
        self.asked.recv().await.unwrap()
    }
}

/// A server, and Ada, who has joined [`T`] with the join reference 1.
pub(crate) async fn joined() -> (App, Client) {
    let app = App::start().await;
    let ada = app.joined("ada", "1").await;
    (app, ada)
}

/// Sends an event to [`T`] with the join reference 1.
pub(crate) async fn send(client: &mut Client, reference: &str, event: &str, payload: Value) {
    client.send(json!(["1", reference, T, event, payload])).await;
}

/// The reply `ok` to an event on [`T`] with the join reference 1.
pub(crate) fn ok(reference: &str, response: Value) -> Value {
    reply("1", reference, T, "ok", response)
}

/// The reply to a message for a topic that is not joined.
pub(crate) fn unmatched(reference: &str, topic: &str) -> Value {
    json!([null, reference, topic, "phx_reply", {"status": "error", "response": {"reason": "unmatched topic"}}])
}

/// The frame after a normal end of a channel on [`T`].
pub(crate) fn close(join_ref: &str) -> Value {
    json!([join_ref, join_ref, T, "phx_close", {}])
}

/// The frame after a crash of a channel on [`T`].
pub(crate) fn error(join_ref: &str) -> Value {
    json!([join_ref, join_ref, T, "phx_error", {"reason": "channel_crash"}])
}

/// A push of a channel on [`T`] with this join reference.
pub(crate) fn push(join_ref: &str, event: &str, payload: Value) -> Value {
    json!([join_ref, null, T, event, payload])
}

/// A broadcast on [`T`].
pub(crate) fn broadcast(event: &str, payload: Value) -> Value {
    json!([null, null, T, event, payload])
}

/// A message on [`T`] in version 1.
pub(crate) fn v1(event: &str, reference: Value, payload: Value) -> Value {
    json!({"topic": T, "event": event, "ref": reference, "payload": payload})
}

/// Asserts that the client's next frame is a close with this code.
pub(crate) async fn assert_closed(client: &mut Client, code: u16) {
    match client.next().await {
        Message::Close(Some(frame)) => assert_eq!(u16::from(frame.code), code),
        other => panic!("expected a close, got {other:?}"),
    }
}

/// Replies with the pattern of the join, and the assigns.
struct Named;

impl Channel for Named {
    type Socket = NamedSocket;
    type Config = &'static str;

    async fn join(
        _: &Topic,
        _: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        cx.reply(json!({ "kind": cx.config(), "user": cx.assigns() }));
        Ok(Self)
    }
}

/// Sends a farewell to its client, and to a topic that the client names.
struct Farewell {
    tell: Option<String>,
}

impl Channel for Farewell {
    type Socket = NamedSocket;
    type Config = ();

    async fn join(
        _: &Topic,
        payload: Payload,
        _: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        let params: Value = payload.parse()?;
        Ok(Self { tell: params["tell"].as_str().map(Into::into) })
    }

    async fn handle_in(
        &mut self,
        _: &str,
        _: Payload,
        _: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        panic!("crash requested")
    }

    async fn terminate(&mut self, reason: &ExitReason, cx: &ChannelContext<Self>) {
        let farewell = json!({ "topic": cx.topic().as_str(), "reason": reason.to_string() });
        let _ = cx.push("farewell", &farewell);
        if let Some(topic) = &self.tell {
            cx.pubsub().broadcast(topic, "terminated", farewell).unwrap();
        }
    }
}

/// Forwards broadcasts of `news:` with the rest of its topic.
struct External;

impl External {
    fn news(topic: &Topic) -> String {
        format!("news:{}", topic.rest())
    }
}

impl Channel for External {
    type Socket = NamedSocket;
    type Config = ();

    async fn join(
        topic: &Topic,
        _: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        cx.subscribe(&Self::news(topic));
        Ok(Self)
    }

    async fn handle_in(
        &mut self,
        event: &str,
        _: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        match event {
            "ping" => {}
            "again" => cx.subscribe(&Self::news(cx.topic())),
            "unsubscribe" => cx.unsubscribe(&Self::news(cx.topic())),
            other => return Err(Stop::unknown_event(other)),
        }
        Ok(Reply::ok())
    }

    async fn handle_broadcast(
        &mut self,
        broadcast: Broadcast,
        cx: &ChannelContext<Self>,
    ) -> Result<(), Stop> {
        let payload: Value = broadcast.payload().parse()?;
        let (topic, event) = (broadcast.topic(), broadcast.event());
        Ok(cx.push("relayed", json!({ "topic": topic, "event": event, "payload": payload }))?)
    }
}
