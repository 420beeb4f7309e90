//! The room's channel.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use pipeline::ws::{
    Channel, Payload, Presence, Topic,
    channel::{ChannelContext, HandleMessage, JoinContext, JoinError, Reply, Stop},
    presence::PresenceError,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{history::History, visitor::VisitorSocket};

/// Maximum length of a message in characters.
const MAX_TEXT: usize = 1000;

/// The state that all channels of the room share.
#[derive(Debug)]
pub struct Lobby {
    presence: Presence,
    history: Mutex<History>,
}

impl Lobby {
    pub fn new(presence: Presence) -> Self {
        Self { presence, history: Mutex::default() }
    }
}

/// The channel `room:lobby` of one visitor.
pub struct Room {
    lobby: Arc<Lobby>,
}

/// Sent to the channel after its join.
pub struct Joined;

/// A message from the client.
#[derive(Deserialize)]
struct Said {
    text: String,
}

/// A typing notification.
#[derive(Deserialize)]
struct Typing {
    typing: bool,
}

impl Channel for Room {
    type Socket = VisitorSocket;
    type Config = Arc<Lobby>;

    async fn join(
        _: &Topic,
        _: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        let lobby = cx.config().clone();
        cx.reply(json!({ "messages": lobby.history.lock().messages() }));
        cx.send_after(Duration::ZERO, Joined)?;
        Ok(Self { lobby })
    }

    async fn handle_in(
        &mut self,
        event: &str,
        payload: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        let name = &cx.assigns().name;
        match event {
            "say" => {
                let Ok(Said { text }) = payload.parse() else {
                    return Ok(Reply::error().with(json!({ "reason": "expected a text" })));
                };
                if text.trim().is_empty() || text.chars().count() > MAX_TEXT {
                    let reason = format!("expected a text of 1 to {MAX_TEXT} characters");
                    return Ok(Reply::error().with(json!({ "reason": reason })));
                }
                // Stored before the broadcast: a visitor who joins now receives the message with the
                // history, perhaps twice, and its page skips the second one.
                let message = self.lobby.history.lock().add(name, text, SystemTime::now());
                cx.broadcast("said", json!(message))?;
                self.is_typing(false, cx)?;
                Ok(Reply::ok())
            }
            // Typing is part of the presence, so it ends when the visitor disconnects.
            "typing" => {
                let Ok(Typing { typing }) = payload.parse() else {
                    return Ok(Reply::error().with(json!({ "reason": "expected typing" })));
                };
                self.is_typing(typing, cx)?;
                Ok(Reply::none())
            }
            other => Err(Stop::unknown_event(other)),
        }
    }
}

impl Room {
    /// Updates the presence, which all visitors receive.
    fn is_typing(&self, typing: bool, cx: &ChannelContext<Self>) -> Result<(), PresenceError> {
        let change = |meta: &mut Map<String, Value>| {
            meta.insert("typing".to_owned(), typing.into());
        };
        self.lobby.presence.update_with(cx, &cx.assigns().name, change)?;
        Ok(())
    }
}

impl HandleMessage<Joined> for Room {
    async fn handle_message(&mut self, _: Joined, cx: &ChannelContext<Self>) -> Result<(), Stop> {
        let visitor = cx.assigns();
        let meta = json!({ "device": visitor.device, "typing": false });
        self.lobby.presence.track(cx, &visitor.name, &meta)?;
        cx.push("presence_state", self.lobby.presence.list(cx.topic()).await)?;
        Ok(())
    }
}
