//! A channel, and its test.

use pipeline_ws_sink::{
    Channel, Mount, Payload, Socket, Topic,
    channel::{ChannelContext, JoinContext, JoinError, Reply, Stop},
    channel_test::{TestEndpoint, assert_broadcast, assert_push, assert_reply, refute_push},
    socket::{ConnectError, ConnectInfo, Params},
};
use serde_json::json;

struct UserSocket;

impl Socket for UserSocket {
    type Assigns = String;

    async fn connect(&self, params: &Params, _: &ConnectInfo) -> Result<String, ConnectError> {
        Ok(params.require("user")?.to_owned())
    }
}

#[derive(serde::Deserialize)]
struct Shout {
    body: String,
}

struct RoomChannel {
    messages: usize,
}

impl Channel for RoomChannel {
    type Socket = UserSocket;
    type Config = ();

    async fn join(
        topic: &Topic,
        _: Payload,
        _: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        if topic.rest() == "secret" {
            Err(JoinError::unauthorized())
        } else {
            Ok(Self { messages: 0 })
        }
    }

    async fn handle_in(
        &mut self,
        event: &str,
        payload: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        match event {
            "shout" => {
                let Shout { body } = payload.parse()?;
                cx.broadcast("shouted", json!({ "from": cx.assigns(), "body": body }))?;
                self.messages += 1;
                Ok(Reply::ok().with(json!({ "messages": self.messages })))
            }
            other => Err(Stop::unknown_event(other)),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_room_counts_shouts_and_broadcasts_them() {
    let kit = TestEndpoint::new(Mount::new(UserSocket).channel::<RoomChannel>("room:*"));
    let socket = kit.connect(json!({ "user": "ada" })).await.unwrap();
    let room = socket.join("room:1", json!({})).await.unwrap();

    let shouted = room.push("shout", json!({ "body": "hi" }));
    assert_reply!(room, shouted, "ok", { "messages": 1 });
    assert_push!(room, "shouted", { "from": "ada", "body": "hi" });
    assert_broadcast!(room, "shouted", { "body": "hi" });
    refute_push!(room, "shouted");

    let refused = socket.join("room:secret", json!({})).await.unwrap_err();
    assert_eq!(refused.json(), json!({ "reason": "unauthorized" }));
}
