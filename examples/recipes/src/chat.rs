//! A chat with presence: messages for all who are in a room, and a list of who is there, on which devices.

use std::time::Duration;

use axum::Router;
use pipeline::ws::{
    Channel, Endpoint, Mount, Payload, Presence, Topic,
    channel::{ChannelContext, HandleMessage, JoinContext, JoinError, Reply, Stop},
    endpoint::BuildError,
    token::Signer,
};
use serde::Deserialize;
use serde_json::json;

use crate::{Failed, user, user::UserSocket};

/// The channel of one user on one device.
struct Room {
    presence: Presence,
    device: String,
}

/// The channel's message to itself after the join.
struct Joined;

#[derive(Deserialize)]
struct Visitor {
    device: String,
}

#[derive(Deserialize)]
struct Said {
    text: String,
}

impl Channel for Room {
    type Socket = UserSocket;
    type Config = Presence;

    async fn join(
        _: &Topic,
        params: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        let Ok(Visitor { device }) = params.parse() else {
            return Err(JoinError::reason("expected a device"));
        };
        // The client is subscribed when the message arrives, so it misses no change after the list.
        cx.send_after(Duration::ZERO, Joined)?;
        Ok(Room { presence: cx.config().clone(), device })
    }

    async fn handle_in(
        &mut self,
        event: &str,
        payload: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        match (event, payload.parse()) {
            ("say", Ok(Said { text })) if (1..=1_000).contains(&text.len()) => {
                cx.broadcast("said", json!({ "user": cx.assigns(), "text": text }))?;
                Ok(Reply::ok())
            }
            ("say", _) => Ok(Reply::error().with(json!({ "reason": "expected a text" }))),
            (other, _) => Err(Stop::unknown_event(other)),
        }
    }
}

impl HandleMessage<Joined> for Room {
    async fn handle_message(&mut self, _: Joined, cx: &ChannelContext<Self>) -> Result<(), Stop> {
        let meta = json!({ "device": self.device });
        self.presence.track(cx, &cx.assigns().to_string(), &meta)?;
        cx.push("presence_state", self.presence.list(cx.topic()).await)?;
        Ok(())
    }
}

fn endpoint(signer: Signer) -> Result<Endpoint, BuildError> {
    let presence = Presence::new();
    let sockets = Mount::new(UserSocket(signer)).channel_with::<Room>("room:*", presence.clone());
    Endpoint::builder().mount("/socket", sockets).presence(&presence).build()
}

pub(crate) async fn run() -> Result<(), Failed> {
    println!(
        "the topic is room:lobby, and its payload has a device; the event is say, with a text"
    );
    user::run(Router::new(), endpoint(user::signer()?)?, None).await
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use pipeline::ws::channel_test::{TestChannel, TestEndpoint, assert_push, assert_reply};

    use super::*;

    async fn enter(kit: &TestEndpoint, user: u64, device: &str) -> TestChannel {
        let token = user::signer().unwrap().sign(&user, SystemTime::now()).unwrap();
        let socket = kit.connect(json!({ "token": token })).await.unwrap();
        socket.join("room:lobby", json!({ "device": device })).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn visitors_see_who_is_there_and_what_is_said() {
        let kit = TestEndpoint::of(endpoint(user::signer().unwrap()).unwrap());
        let ada = enter(&kit, 7, "phone").await;
        assert_push!(ada, "presence_state", { "7": { "metas": [{ "device": "phone" }] } });
        let ben = enter(&kit, 8, "laptop").await;
        assert_push!(ben, "presence_state", { "7": _, "8": _ });
        assert_push!(ada, "presence_diff", { "joins": { "8": _ } });

        let said = ben.push("say", json!({ "text": "hello" }));
        assert_reply!(ben, said, "ok");
        assert_push!(ada, "said", == json!({ "user": 8, "text": "hello" }));
        let said = ben.push("say", json!({ "text": "" }));
        assert_reply!(ben, said, "error");

        ben.close().await;
        assert_push!(ada, "presence_diff", { "leaves": { "8": _ } });
    }
}
