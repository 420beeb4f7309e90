//! Many clients that join a topic with presence at once, over real sockets.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod support;

use std::{fs, time::Duration};

use pipeline_test_support::AnySocket;
use pipeline_ws_sink::{
    Channel, Endpoint, Mount, Payload, Presence, Topic,
    channel::{ChannelContext, HandleMessage, JoinContext, JoinError, Stop},
};
use serde_json::json;
use support::{
    raw::{FIN, RawClient, TEXT},
    server::Server,
};

const ROOM: &str = "room:lobby";

/// Tracks each client under its own name, and sends it the state.
struct Room(Presence);

struct Joined(String);

impl Channel for Room {
    type Socket = AnySocket;
    type Config = Presence;

    async fn join(
        _: &Topic,
        name: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        cx.send_after(Duration::ZERO, Joined(name.parse()?))?;
        Ok(Self(cx.config().clone()))
    }
}

impl HandleMessage<Joined> for Room {
    async fn handle_message(
        &mut self,
        Joined(name): Joined,
        cx: &ChannelContext<Self>,
    ) -> Result<(), Stop> {
        self.0.track(cx, &name, &json!({ "device": "phone" }))?;
        cx.push("presence_state", self.0.list(cx.topic()).await)?;
        Ok(())
    }
}

/// A thousand, or as many as this process may open: a client and its socket have a descriptor each.
fn clients() -> usize {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let most = files.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    let most: usize = most.unwrap_or(1_000);
    1_000.min(most.saturating_sub(100) / 2)
}

/// Reads until the client has received all presences.
async fn all_there(mut client: RawClient) {
    loop {
        let (first, payload) = client.next().await;
        assert_eq!(first, FIN | TEXT, "the server has closed the connection: {payload:?}");
        let text = String::from_utf8(payload).unwrap();
        if text.contains(r#""all_there""#) {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_thousand_simultaneous_joins_with_presence_none_is_closed_as_slow() {
    let presence = Presence::new();
    let sockets = Mount::new(AnySocket).channel_with::<Room>("room:*", presence.clone());
    let builder = Endpoint::builder().presence(&presence).mount("/socket", sockets);
    let server = Server::start(builder).await;
    let count = clients();
    let mut connected = Vec::new();
    for _ in 0..count {
        connected.push(RawClient::connect(server.connect_tcp().await, "").await);
    }
    let mut reading = Vec::new();
    for (n, mut client) in connected.into_iter().enumerate() {
        let join = json!(["1", "1", ROOM, "phx_join", format!("user:{n}")]).to_string();
        client.send(FIN | TEXT, join.as_bytes()).await;
        reading.push(tokio::spawn(all_there(client)));
    }
    while presence.tracked() < count {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    server.endpoint.broadcast(ROOM, "all_there", json!({})).unwrap();
    for client in reading {
        client.await.unwrap();
    }
    let closed: u64 = server.recorded.counters("socket.closed_slow").iter().map(|one| one.1).sum();
    assert_eq!(closed, 0);
}
