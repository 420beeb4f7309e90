//! Clients confirm that they have got a push.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod support;

use std::time::Duration;

use futures::{FutureExt, poll};
use pipeline_test_support::Recorded;
use pipeline_ws_sink::{
    Channel, Endpoint, Mount, Payload, Topic,
    channel::{ChannelContext, JoinContext, JoinError, Reply, Stop},
    channel_test::{TestChannel, TestEndpoint, assert_push, assert_reply},
    pubsub::{Confirmation, NotConfirmed, PreparedBroadcast},
};
use serde_json::{Value, json};
use support::channels::NamedSocket;
use tokio::time::{Instant, sleep};

const T: &str = "user:ada";
const SECOND: Duration = Duration::from_secs(1);

/// A user's channel, whose client confirms.
struct User;

impl Channel for User {
    type Socket = NamedSocket;
    type Config = ();

    async fn join(_: &Topic, _: Payload, _: &mut JoinContext<'_, Self>) -> Result<Self, JoinError> {
        Ok(Self)
    }

    async fn handle_in(
        &mut self,
        event: &str,
        payload: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        match event {
            "ack" => Ok(cx.confirm(&payload)),
            other => Err(Stop::unknown_event(other)),
        }
    }
}

struct Confirming {
    kit: TestEndpoint,
    recorded: Recorded,
}

impl Confirming {
    /// An endpoint on which so many pushes may wait.
    fn new(at_most: usize) -> Self {
        let (telemetry, recorded) = Recorded::new();
        let mount = Mount::new(NamedSocket).channel::<User>("user:*");
        let builder = Endpoint::builder().mount("/socket", mount).max_confirmations(at_most);
        let kit = TestEndpoint::of(builder.telemetry(telemetry).build().unwrap());
        Self { kit, recorded }
    }

    async fn join(&self, name: &str) -> TestChannel {
        let socket = self.kit.connect(json!({ "name": name })).await.unwrap();
        socket.join(&format!("user:{name}"), json!({})).await.unwrap()
    }

    /// Pushes to a user what is to be confirmed.
    async fn push(&self, topic: &str) -> Confirmation {
        let pubsub = self.kit.endpoint().pubsub();
        let confirmation = pubsub.confirmation(topic).unwrap();
        let payload = json!({ "ack": confirmation.id() });
        let ticket = PreparedBroadcast::new(topic, "ticket", payload).unwrap();
        pubsub.deliver(ticket).await.unwrap();
        confirmation
    }

    /// The numbers of confirmations by outcome.
    fn counted(&self) -> Vec<(String, u64)> {
        self.recorded.counters("socket.confirmations")
    }
}

/// The id of the next ticket of a client.
async fn id(channel: &TestChannel) -> Value {
    assert_push!(channel, "ticket", { "ack": _ })["ack"].clone()
}

fn outcomes(of: &[(&str, u64)]) -> Vec<(String, u64)> {
    of.iter().map(|(outcome, count)| (format!("outcome={outcome}"), *count)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_push_is_confirmed_by_its_client_once() {
    let server = Confirming::new(10);
    let ada = server.join("ada").await;
    let mut waiting = std::pin::pin!(server.push(T).await.within(SECOND));
    assert!(poll!(&mut waiting).is_pending());
    let id = id(&ada).await;
    let ack = ada.push("ack", json!({ "id": id }));
    assert_reply!(ada, ack, "ok");
    assert_eq!(waiting.await, Ok(()));
    let again = ada.push("ack", json!({ "id": id }));
    assert_reply!(ada, again, "error", { "reason": "unknown" });
    assert_eq!(server.counted(), outcomes(&[("confirmed", 1), ("unknown", 1)]));
}

#[tokio::test(start_paused = true)]
async fn a_confirmation_that_comes_too_late_is_unknown() {
    let server = Confirming::new(10);
    let ada = server.join("ada").await;
    let begun = Instant::now();
    let late = server.push(T).await.within(5 * SECOND).await;
    assert_eq!((late, begun.elapsed()), (Err(NotConfirmed::Late), 5 * SECOND));
    let ack = ada.push("ack", json!({ "id": id(&ada).await }));
    assert_reply!(ada, ack, "error", { "reason": "unknown" });
    assert_eq!(server.counted(), outcomes(&[("late", 1), ("unknown", 1)]));
}

#[tokio::test(start_paused = true)]
async fn a_forged_confirmation_confirms_nothing() {
    let server = Confirming::new(10);
    let ada = server.join("ada").await;
    let mut waiting = std::pin::pin!(server.push(T).await.within(SECOND));
    assert!(poll!(&mut waiting).is_pending());
    let own = id(&ada).await;
    let of_an_earlier_process = format!("0123456789abcdef-{}", &own.as_str().unwrap()[17..]);
    let forged = [
        json!({ "id": of_an_earlier_process }),
        json!({ "id": format!("{}0", own.as_str().unwrap()) }),
        json!({ "id": "" }),
        json!({ "id": 1 }),
        json!({ "ack": own }),
        json!(null),
    ];
    for payload in &forged {
        let ack = ada.push("ack", payload);
        assert_reply!(ada, ack, "error", { "reason": "unknown" });
    }
    assert!(poll!(&mut waiting).is_pending());
    let ack = ada.push("ack", Payload::binary(own.to_string().into_bytes()));
    assert_reply!(ada, ack, "error", { "reason": "unknown" });
    let ack = ada.push("ack", json!({ "id": own }));
    assert_reply!(ada, ack, "ok");
    assert_eq!(waiting.await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_user_cannot_confirm_the_push_of_another() {
    let server = Confirming::new(10);
    let (ada, joe) = (server.join("ada").await, server.join("joe").await);
    let mut waiting = std::pin::pin!(server.push(T).await.within(SECOND));
    assert!(poll!(&mut waiting).is_pending());
    let id = id(&ada).await;
    let ack = joe.push("ack", json!({ "id": id }));
    assert_reply!(joe, ack, "error", { "reason": "unknown" });
    assert!(poll!(&mut waiting).is_pending());
    let ack = ada.push("ack", json!({ "id": id }));
    assert_reply!(ada, ack, "ok");
    assert_eq!(waiting.await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn the_wait_ends_when_the_last_client_has_left_and_not_before() {
    let server = Confirming::new(10);
    let (first, second) = (server.join("ada").await, server.join("ada").await);
    let begun = Instant::now();
    let waiting = tokio::spawn(server.push(T).await.within(60 * SECOND));
    for (client, left) in [(first, false), (second, true)] {
        client.leave();
        sleep(SECOND).await;
        assert_eq!(waiting.is_finished(), left);
    }
    assert_eq!(waiting.await.unwrap(), Err(NotConfirmed::Left));
    assert!(begun.elapsed() < 10 * SECOND);
    assert_eq!(server.counted(), outcomes(&[("left", 1)]));
}

#[tokio::test(start_paused = true)]
async fn the_table_is_bounded_and_empty_in_the_end() {
    let server = Confirming::new(2);
    let ada = server.join("ada").await;
    let pubsub = server.kit.endpoint().pubsub();
    for _ in 0..10 {
        let (dropped, confirmed) = (server.push(T).await, server.push(T).await);
        assert_eq!(pubsub.confirmation(T).unwrap_err().limit, 2);
        assert_eq!(pubsub.confirmation("user:joe").unwrap_err().limit, 2);
        drop(dropped);
        let (_, id) = (id(&ada).await, id(&ada).await);
        let ack = ada.push("ack", json!({ "id": id }));
        assert_reply!(ada, ack, "ok");
        assert_eq!(confirmed.within(SECOND).now_or_never(), Some(Ok(())));
    }
    assert_eq!(server.counted(), outcomes(&[("confirmed", 10), ("refused", 20)]));
    sleep(2 * SECOND).await;
    assert_eq!(server.recorded.gauges("socket.confirmations_waiting"), [(String::new(), 0.0)]);
}
