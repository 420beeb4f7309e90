//! A channel that does what its client requests.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use pipeline_core::ExitReason;
use pipeline_ws_sink::{
    Channel, Payload, Topic,
    channel::{ChannelContext, HandleMessage, JoinContext, JoinError, Reply, SocketRef, Stop},
    pubsub::SubscriberId,
};
use serde_json::{Map, Value, json};
use tokio::sync::{Semaphore, mpsc};

use crate::support::channels::NamedSocket;

pub(crate) struct Room {
    asked: mpsc::Sender<Asked>,
    gate: Arc<Semaphore>,
    assigns: Map<String, Value>,
}

pub(crate) struct RoomConfig {
    pub(crate) asked: mpsc::Sender<Asked>,
    pub(crate) gate: Arc<Semaphore>,
}

/// A message for the test to reply to, and its room.
pub(crate) struct Asked {
    pub(crate) to: SocketRef,
    pub(crate) room: SubscriberId,
}

/// Greets the client after its join.
struct Greet;

/// Ends the room.
enum End {
    Stop,
    Crash,
}

impl Channel for Room {
    type Socket = NamedSocket;
    type Config = RoomConfig;

    const INTERCEPT: &'static [&'static str] = &["stamped", "renamed", "private"];

    async fn join(
        _: &Topic,
        payload: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        let params: Value = payload.parse()?;
        if let Some(reason) = params["reject"].as_str() {
            return Err(JoinError::reason(reason));
        }
        assert!(params["crash"].is_null(), "crash requested");
        if params["bad"].is_string() {
            params["bad"].as_str().unwrap_or_default().parse::<u64>()?;
        }
        if let Some(response) = params.get("reply") {
            cx.reply(response);
        }
        if params["greet"].is_boolean() {
            cx.send_after(Duration::ZERO, Greet)?;
        }
        let RoomConfig { asked, gate } = cx.config();
        Ok(Self { asked: asked.clone(), gate: gate.clone(), assigns: Map::new() })
    }

    async fn handle_in(
        &mut self,
        event: &str,
        payload: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        match event {
            "ping" => return Ok(Reply::ok().with(payload)),
            "ack" => {}
            "fail" => return Ok(Reply::error().with(payload)),
            "later" => return Ok(Reply::status("later").with(payload)),
            "silent" => return Ok(Reply::none()),
            "list" => return Ok(Reply::ok().with(json!([1, "two", null]))),
            // Events that the protocol itself sends, and that no client needs to send.
            "phx_close" | "phx_error" | "phx_reply" => {
                return Ok(Reply::ok().with(json!({ "event": event })));
            }

            "push" => cx.push("pushed", payload)?,
            "push_list" => cx.push("pushed", json!([1, 2]))?,
            "push_many" => {
                for i in 1..=4 {
                    cx.push("tick", json!({ "i": i }))?;
                }
            }
            "push_bytes" => cx.push("pushed", bytes(&payload))?,
            "reply_bytes" => return Ok(Reply::ok().with(bytes(&payload))),
            "size" => {
                let size = payload.as_binary().map(Bytes::len);
                return Ok(Reply::ok().with(json!({ "size": size })));
            }

            "shout" => cx.broadcast("shouted", payload)?,
            "others" => cx.broadcast_from("othered", payload)?,
            "stamp" => cx.broadcast("stamped", payload)?,
            "rename" => cx.broadcast("renamed", payload)?,
            "private" => cx.broadcast("private", payload)?,
            "kick" => {
                let id = cx.socket_id().unwrap_or_default();
                cx.pubsub().broadcast(id, "disconnect", json!({}))?;
            }

            "ask" => {
                let to = cx.socket_ref()?;
                self.asked.send(Asked { to, room: cx.id() }).await?;
                return Ok(Reply::none());
            }
            "double" => {
                let to = cx.socket_ref()?;
                to.reply(Reply::ok().with(json!({ "nth": 1 })))?;
                to.reply(Reply::ok().with(json!({ "nth": 2 })))?;
                return Ok(Reply::ok().with(json!({ "nth": 3 })));
            }
            "wait" => self.gate.acquire().await?.forget(),

            "set" => self.assigns.extend(payload.parse::<Map<_, _>>()?),
            "get" => return Ok(Reply::ok().with(&self.assigns)),

            "stop" => return Err(Stop::normal().reply(Reply::ok().with(payload))),
            "stop_silent" => return Err(Stop::normal()),
            "stop_shutdown" => {
                let reason = ExitReason::ShutdownWith("bye".into());
                return Err(Stop::because(reason).reply(Reply::ok().with(payload)));
            }
            "stop_abnormal" => {
                let reason = ExitReason::failed("boom");
                return Err(Stop::because(reason).reply(Reply::error().with(payload)));
            }
            "crash" => panic!("crash requested"),
            "nonsense" => return Ok(Reply::ok().with(json!(payload.parse::<u64>()?))),
            "stop_later" => cx.send_after(Duration::ZERO, End::Stop)?,
            "crash_later" => cx.send_after(Duration::ZERO, End::Crash)?,
            other => return Err(Stop::unknown_event(other)),
        }
        Ok(Reply::ok())
    }

    async fn handle_out(
        &mut self,
        event: &str,
        payload: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<(), Stop> {
        let mut fields: Map<String, Value> = payload.parse()?;
        match event {
            "stamped" => {
                fields.insert("for".into(), json!(cx.assigns()));
                cx.push("stamped", fields)?;
            }
            "renamed" => cx.push("renamed_out", payload)?,
            "private" if fields["to"] == **cx.assigns() => cx.push("private", payload)?,
            _ => {}
        }
        Ok(())
    }
}

/// The bytes from the client, or default ones.
fn bytes(payload: &Payload) -> Payload {
    if payload.is_binary() { payload.clone() } else { Payload::binary(vec![7, 8, 9]) }
}

impl HandleMessage<Greet> for Room {
    async fn handle_message(&mut self, _: Greet, cx: &ChannelContext<Self>) -> Result<(), Stop> {
        Ok(cx.push("welcome", json!({ "topic": cx.topic().as_str() }))?)
    }
}

impl HandleMessage<End> for Room {
    async fn handle_message(&mut self, end: End, _: &ChannelContext<Self>) -> Result<(), Stop> {
        match end {
            End::Stop => Err(Stop::because(ExitReason::ShutdownWith("later".into()))),
            End::Crash => panic!("crash requested"),
        }
    }
}
