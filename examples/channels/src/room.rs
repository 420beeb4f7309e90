//! `room:*`: a channel with one example of each feature.

use std::{fmt::Display, time::Duration};

use axum::body::Bytes;
use pipeline::{
    ExitReason,
    ws::{
        Channel, Payload, Topic,
        channel::{ChannelContext, HandleMessage, JoinContext, JoinError, Reply, SocketRef, Stop},
        payload::PayloadError,
    },
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::{
    task::{JoinSet, coop::consume_budget},
    time::sleep,
};

use crate::socket::UserSocket;

/// Maximum number of bytes that a client may request.
const MAX_BYTES: usize = 1 << 20;

/// Maximum number of pushes that a client may request.
const MAX_PUSHES: u64 = 10_000;

/// Maximum delay that a client may request, in milliseconds. The server keeps its message as long.
const MAX_DELAY: u64 = 60_000;

/// A room. Its assigns are separate from those of the socket's other channels.
pub struct Room {
    assigns: Map<String, Value>,
    /// The tasks that answer by themselves. They end with the room: a client that is gone leaves
    /// nothing behind.
    answering: JoinSet<Result<(), PayloadError>>,
}

/// Greets the client after its join.
struct Greet;

/// Answers a message when its time has come.
struct Answer {
    to: SocketRef,
    with: Payload,
}

/// Ends the room.
enum End {
    Stop,
    Crash,
}

/// A broadcast that a client requests.
#[derive(Deserialize)]
struct Relay {
    topic: String,
    event: String,
    payload: Value,
}

impl Channel for Room {
    type Socket = UserSocket;
    type Config = ();

    const INTERCEPT: &'static [&'static str] = &["stamped", "renamed", "private"];

    async fn join(
        _: &Topic,
        params: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        let params: Map<String, Value> = params.parse().unwrap_or_default();
        let has = |key| params.contains_key(key);
        if let Some(reason) = params.get("reject") {
            return Err(JoinError::with(json!({ "reason": reason })));
        }
        assert!(!has("crash"), "crash requested");
        if has("bad") {
            // Any error that is not a refusal crashes the channel.
            "no number".parse::<u64>()?;
        }
        if let Some(reply) = params.get("reply") {
            cx.reply(reply);
        } else if has("info") {
            cx.reply(cx.assigns().info.clone());
        } else if has("params") {
            cx.reply(json!({ "params": cx.assigns().params }));
        } else if has("greet") {
            cx.send_after(Duration::ZERO, Greet)?;
        }
        Ok(Self { assigns: Map::new(), answering: JoinSet::new() })
    }

    async fn handle_in(
        &mut self,
        event: &str,
        payload: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        if let Some(rest) = event.strip_prefix("any:") {
            let payload: Value = payload.parse()?;
            return Ok(Reply::ok().with(json!({ "rest": rest, "payload": payload })));
        }
        if payload.is_binary() && event != "ping" {
            return self.handle_bytes(event, payload, cx);
        }
        match event {
            "ping" => return Ok(Reply::ok().with(payload)),
            "ack" => {}
            "fail" => return Ok(Reply::error().with(payload)),
            "fail_bare" => return Ok(Reply::error()),
            "status" => return status(payload),
            "silent" => return Ok(Reply::none()),
            "list_reply" => return Ok(Reply::ok().with(json!([1, "two", null]))),

            "push" => {
                cx.push("pushed", payload)?;
                return Ok(Reply::none());
            }
            "push_then_reply" => {
                cx.push("pushed", &payload)?;
                return Ok(Reply::ok().with(payload));
            }
            "push_many" => {
                let n = at_most(MAX_PUSHES, field(&payload, "n")?)?;
                for i in 1..=n {
                    cx.push("tick", json!({ "i": i }))?;
                    // The client chooses the number, so yield in between.
                    consume_budget().await;
                }
                return Ok(Reply::ok().with(json!({ "n": n })));
            }
            "push_bad" => cx.push("pushed", json!([1, 2]))?,

            "shout" => cx.broadcast("shouted", payload)?,
            "others" => cx.broadcast_from("othered", payload)?,
            "stamp" => cx.broadcast("stamped", payload)?,
            "rename" => cx.broadcast("renamed", payload)?,
            "private" => cx.broadcast("private", payload)?,
            "relay" => {
                let Relay { topic, event, payload } = payload.parse()?;
                cx.pubsub().broadcast(&topic, &event, payload)?;
            }
            "relay_from" => {
                let Relay { topic, event, payload } = payload.parse()?;
                cx.pubsub().broadcast_from(cx.id(), &topic, &event, payload)?;
            }
            "kick" => {
                let user: String = field(&payload, "user")?;
                cx.pubsub().broadcast(&format!("users_socket:{user}"), "disconnect", json!({}))?;
                return Ok(Reply::none());
            }

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
            "bad_return" => {
                return Err(Stop::because(ExitReason::failed("invalid return requested")));
            }
            "stop_in" => cx.send_after(after(&payload, "ms")?, End::Stop)?,
            "die_in" => cx.send_after(after(&payload, "ms")?, End::Crash)?,

            "async" => {
                let (to, delay) = (cx.socket_ref()?, after(&payload, "delay")?);
                cx.send_after(delay, Answer { to, with: payload })?;
                return Ok(Reply::none());
            }
            "async_detached" => {
                let (to, delay) = (cx.socket_ref()?, after(&payload, "delay")?);
                while self.answering.try_join_next().is_some() {}
                self.answering.spawn(async move {
                    sleep(delay).await;
                    to.reply(Reply::ok().with(payload))
                });
                return Ok(Reply::none());
            }
            "double" => {
                let to = cx.socket_ref()?;
                to.reply(Reply::ok().with(json!({ "nth": 1 })))?;
                to.reply(Reply::ok().with(json!({ "nth": 2 })))?;
                return Ok(Reply::ok().with(payload));
            }
            "busy" => {
                sleep(after(&payload, "ms")?).await;
                return Ok(Reply::ok().with(payload));
            }

            "set" => {
                let (key, value): (String, Value) = (field(&payload, "k")?, field(&payload, "v")?);
                self.assigns.insert(key, value);
            }
            "get" => {
                let key: String = field(&payload, "k")?;
                return Ok(Reply::ok().with(json!({ "v": self.assigns.get(&key) })));
            }
            "who" => {
                return Ok(Reply::ok().with(json!({
                    "user": cx.assigns().user_id,
                    "topic": cx.topic().as_str(),
                    "id": cx.socket_id(),
                    "transport": cx.transport(),
                    "ref": cx.reference(),
                    "join_ref": cx.join_ref(),
                })));
            }
            "bin_make" => {
                let bytes = vec![7; at_most(MAX_BYTES, field(&payload, "size")?)?];
                return Ok(Reply::ok().with(Payload::binary(bytes)));
            }
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
        let user = &cx.assigns().user_id;
        match event {
            "stamped" => {
                let mut payload: Map<String, Value> = payload.parse()?;
                payload.insert("for".into(), json!(user));
                cx.push("stamped", payload)?;
            }
            "renamed" => cx.push("renamed_out", payload)?,
            "private" => {
                let to: Value = field(&payload, "to")?;
                if to == json!(user) {
                    cx.push("private", payload)?;
                }
            }
            other => return Err(Stop::unknown_event(other)),
        }
        Ok(())
    }
}

impl Room {
    /// Handles an event with a binary payload.
    fn handle_bytes(
        &self,
        event: &str,
        payload: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        match event {
            "bin_echo" => Ok(Reply::ok().with(payload)),
            "bin_error" => Ok(Reply::error().with(payload)),
            "bin_size" => {
                let size = payload.as_binary().map_or(0, Bytes::len);
                Ok(Reply::ok().with(json!({ "size": size })))
            }
            "bin_push" => {
                cx.push("bin_pushed", payload)?;
                Ok(Reply::none())
            }
            "bin_shout" => {
                cx.broadcast("bin_shouted", payload)?;
                Ok(Reply::none())
            }
            other => Err(Stop::unknown_event(other)),
        }
    }
}

impl HandleMessage<Greet> for Room {
    async fn handle_message(&mut self, _: Greet, cx: &ChannelContext<Self>) -> Result<(), Stop> {
        Ok(cx.push("welcome", json!({ "topic": cx.topic().as_str() }))?)
    }
}

impl HandleMessage<Answer> for Room {
    async fn handle_message(
        &mut self,
        Answer { to, with }: Answer,
        _: &ChannelContext<Self>,
    ) -> Result<(), Stop> {
        Ok(to.reply(Reply::ok().with(with))?)
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

/// Replies with the requested status, if the room knows it.
fn status(payload: Payload) -> Result<Reply, Stop> {
    let status: String = field(&payload, "as")?;
    match &*status {
        "later" | "timeout" => Ok(Reply::status(status).with(payload)),
        other => Err(Stop::because(ExitReason::failed(format!("no such status: {other:?}")))),
    }
}

/// A number from a client, unless it is above the limit.
fn at_most<N: Copy + PartialOrd + Display>(most: N, number: N) -> Result<N, Stop> {
    if number > most {
        return Err(Stop::because(ExitReason::failed(format!("{number} is more than {most}"))));
    }
    Ok(number)
}

/// A field of an object.
fn field<T: for<'a> Deserialize<'a>>(payload: &Payload, name: &str) -> Result<T, Stop> {
    let mut fields: Map<String, Value> = payload.parse()?;
    Ok(serde_json::from_value(fields.remove(name).unwrap_or_default())?)
}

/// A number of milliseconds in an object.
fn after(payload: &Payload, name: &str) -> Result<Duration, Stop> {
    Ok(Duration::from_millis(at_most(MAX_DELAY, field(payload, name)?)?))
}
