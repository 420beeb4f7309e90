//! `pres:*` and `named:*`: presence.

use std::{sync::Arc, time::Duration};

use pipeline::ws::{
    Channel, Payload, Presence, Topic,
    channel::{ChannelContext, HandleMessage, JoinContext, JoinError, Reply, Stop},
    presence::{PresenceError, PresenceList, TrackerOptions},
};
use serde_json::{Value, json};

use crate::socket::UserSocket;

/// Tracks its client, unless the client only watches, and handles its requests.
pub struct Present {
    presence: Presence,
}

/// Sent after the join, with the join's parameters.
pub struct Joined(Value);

/// The presence of `named:*`, which adds a name to each key.
pub fn named() -> Presence {
    Presence::builder().name("named").tracker(tracker()).fetch(with_names).build()
}

/// Nodes hear of each other's changes soon, because an example is tried out.
pub fn tracker() -> TrackerOptions {
    TrackerOptions::new().broadcast_period(Duration::from_millis(200))
}

async fn with_names(_: Arc<str>, mut who: PresenceList) -> PresenceList {
    let keys: Vec<_> = who.keys().map(str::to_owned).collect();
    for key in keys {
        who.add(&key, "user", json!({ "name": key.to_uppercase() }));
    }
    who
}

/// The tracked key: the user, unless the client sends another one.
fn user(cx: &ChannelContext<Present>) -> &str {
    cx.assigns().user_id.as_deref().unwrap_or_default()
}

impl Channel for Present {
    type Socket = UserSocket;
    type Config = Presence;

    async fn join(
        _: &Topic,
        payload: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        cx.send_after(Duration::ZERO, Joined(payload.parse().unwrap_or_default()))?;
        Ok(Self { presence: cx.config().clone() })
    }

    async fn handle_in(
        &mut self,
        event: &str,
        payload: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        let presence = &self.presence;
        let params: Value = payload.parse().unwrap_or_default();
        let key = params["key"].as_str().unwrap_or(user(cx));
        let device = json!({ "device": params["device"] });
        match event {
            "set" => {
                presence.update_with(cx, user(cx), |meta| {
                    meta.insert("status".to_owned(), params["status"].clone());
                })?;
                Ok(Reply::ok())
            }
            "replace" => {
                presence.update(cx, user(cx), &device)?;
                Ok(Reply::ok())
            }
            "untrack" => {
                presence.untrack(cx, user(cx));
                Ok(Reply::ok())
            }
            "track" => answer(presence.track(cx, key, &device)),
            "update" => answer(presence.update(cx, key, &device)),
            "list" => Ok(Reply::ok().with(presence.list(cx.topic()).await)),
            "get" => {
                let found = presence.get_by_key(cx.topic(), key).await;
                let found = found.map_or_else(|| json!([]), Value::Object);
                Ok(Reply::ok().with(json!({ "found": found })))
            }
            "crash" => panic!("crash requested"),
            other => Err(Stop::unknown_event(other)),
        }
    }
}

impl HandleMessage<Joined> for Present {
    async fn handle_message(
        &mut self,
        Joined(params): Joined,
        cx: &ChannelContext<Self>,
    ) -> Result<(), Stop> {
        if params["lurk"].is_null() {
            self.presence.track(cx, user(cx), &json!({ "device": params["device"] }))?;
        }
        cx.push("presence_state", self.presence.list(cx.topic()).await)?;
        Ok(())
    }
}

fn answer(tracked: Result<String, PresenceError>) -> Result<Reply, Stop> {
    let refused = match tracked {
        Ok(reference) => return Ok(Reply::ok().with(json!({ "ref": reference }))),
        Err(PresenceError::AlreadyTracked { topic, key }) => {
            json!({ "reason": "already_tracked", "topic": *topic, "key": *key })
        }
        Err(PresenceError::NotTracked { .. }) => json!({ "reason": "nopresence" }),
        Err(other) => return Err(other.into()),
    };
    Ok(Reply::error().with(refused))
}
