//! Channels with one feature each.

use pipeline::ws::{
    Channel, Payload, Topic,
    channel::{ChannelContext, JoinContext, JoinError, Reply, Stop},
    pubsub::Broadcast,
};
use serde_json::json;

use crate::socket::UserSocket;

/// `room:vip`: replies with its kind, and echoes.
pub struct Vip;

impl Channel for Vip {
    type Socket = UserSocket;
    type Config = ();

    async fn join(
        topic: &Topic,
        _: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        cx.reply(json!({ "kind": "vip", "topic": topic.as_str() }));
        Ok(Self)
    }

    async fn handle_in(
        &mut self,
        event: &str,
        payload: Payload,
        _: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        match event {
            "ping" => Ok(Reply::ok().with(payload)),
            other => Err(Stop::unknown_event(other)),
        }
    }
}

/// `late:*`, `feed*` and `plain`: reply with their kind, which is the route's config.
pub struct Kind;

impl Channel for Kind {
    type Socket = UserSocket;
    type Config = &'static str;

    async fn join(
        topic: &Topic,
        _: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        cx.reply(json!({ "kind": cx.config(), "topic": topic.as_str() }));
        Ok(Self)
    }
}

/// `role:*`: replies with the role, which is the route's config.
pub struct Role;

impl Channel for Role {
    type Socket = UserSocket;
    type Config = &'static str;

    async fn join(
        _: &Topic,
        _: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        cx.reply(json!({ "role": cx.config(), "user": cx.assigns().user_id }));
        Ok(Self)
    }
}

/// `wild:a:b`: accepts a join only if b is twice a.
pub struct Wild;

impl Channel for Wild {
    type Socket = UserSocket;
    type Config = ();

    async fn join(
        topic: &Topic,
        _: Payload,
        _: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        let numbers = topic.rest().split_once(':').and_then(|(a, b)| {
            let (a, b): (u64, u64) = (a.parse().ok()?, b.parse().ok()?);
            Some((a, b))
        });
        match numbers {
            Some((a, b)) if a.checked_mul(2) == Some(b) => Ok(Self),
            Some((a, b)) => Err(JoinError::reason(&format!("{b} is not twice {a}"))),
            None => Err(JoinError::reason("wild:A:B needs two numbers")),
        }
    }
}

/// `ext:*`: forwards broadcasts of the `news:` topic of the same name.
pub struct External;

fn news(topic: &Topic) -> String {
    format!("news:{}", topic.rest())
}

impl Channel for External {
    type Socket = UserSocket;
    type Config = ();

    async fn join(
        topic: &Topic,
        _: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        cx.subscribe(&news(topic));
        Ok(Self)
    }

    async fn handle_in(
        &mut self,
        event: &str,
        _: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        match event {
            "unsub" => {
                cx.unsubscribe(&news(cx.topic()));
                Ok(Reply::ok())
            }
            other => Err(Stop::unknown_event(other)),
        }
    }

    async fn handle_broadcast(
        &mut self,
        broadcast: Broadcast,
        cx: &ChannelContext<Self>,
    ) -> Result<(), Stop> {
        let payload: serde_json::Value = broadcast.payload().parse()?;
        let relayed = json!({
            "topic": broadcast.topic(),
            "event": broadcast.event(),
            "payload": payload,
        });
        Ok(cx.push("relayed", relayed)?)
    }
}
