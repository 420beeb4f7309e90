//! The end of a pipeline of messages: when it is done with a push.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::Poll,
    time::{Duration, SystemTime},
};

use futures::poll;
use parking_lot::Mutex;
use pipeline_core::{
    ExitReason, Pipeline,
    backoff::{Backoff, Jitter},
    processing::{Acknowledger, Failure, Message, Metadata, Processor, Processors, Redelivery},
    source::from_iter,
};
use pipeline_test_support::{Client, Log, Recorded, settle};
use pipeline_ws_sink::{
    Channel, Endpoint, Mount, Payload, Topic,
    channel::{ChannelContext, JoinContext, JoinError, Reply, Stop},
    endpoint::EndpointBuilder,
    mount::WhenFull,
    presence::TrackerOptions,
    pubsub::{
        Acknowledge, ClientsElsewhere, Delivered, Expired, NoSubscribers, PreparedBroadcast, Push,
        PushMessages, WhenCrowded,
    },
};
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::{Value, json};
use support::{channels::NamedSocket, cluster::Cluster, memory::MemoryServer};
use tokio::{
    io::DuplexStream,
    time::{Instant, sleep},
};

const T: &str = "user:ada";
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const CONFIRMED: Acknowledge = Acknowledge::Confirmed { within: SECOND };
const ALL_CROWDED: [WhenCrowded; 3] =
    [WhenCrowded::GiveBackBusyTopics, WhenCrowded::KeepPlace, WhenCrowded::GiveBack];
const ALL: [Acknowledge; 4] =
    [Acknowledge::TakenOver, Acknowledge::Handled, Acknowledge::Written, CONFIRMED];

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

fn server(options: impl FnOnce(Mount<NamedSocket>) -> Mount<NamedSocket>) -> MemoryServer {
    let mount = Mount::new(NamedSocket).channel::<User>("user:*");
    MemoryServer::start(Endpoint::builder().mount("/socket", options(mount)))
}

/// A client whose stream takes this many bytes unread.
async fn ada(server: &MemoryServer, holds: usize) -> Client<DuplexStream> {
    let mut client = server.connect(holds).await;
    client.join("1", T).await;
    client
}

/// Keeps what becomes of messages.
#[derive(Default)]
struct Acks(Mutex<Vec<Result<u32, (u32, Failure)>>>);

impl Acknowledger for Acks {
    type Receipt = u32;

    fn acknowledge(&self, done: Vec<u32>, failed: Vec<(u32, Failure)>) {
        let mut all = self.0.lock();
        all.extend(done.into_iter().map(Ok));
        all.extend(failed.into_iter().map(Err));
    }
}

/// A message of a hundred bytes that was added so long ago, for the `nth` time.
fn message(age: Duration, nth: u32) -> Message<Value> {
    let mut metadata = Metadata::default();
    metadata.enqueued_at = SystemTime::now().checked_sub(age);
    metadata.deliveries = nth;
    Message::unacknowledged(json!({ "text": "x".repeat(100) })).with_metadata(metadata)
}

trait Pushing: Processor<Value, Output = Delivered> {}

impl<P: Processor<Value, Output = Delivered>> Pushing for P {}

type PushValue = fn(&Message<Value>) -> Result<Push<Value>, Failure>;

/// Pushes to the user.
fn pushing(server: &MemoryServer) -> PushMessages<PushValue> {
    let push: PushValue = |message| Ok(Push::new(T, "ticket", message.data().clone()));
    server.endpoint.pubsub().push_messages(push)
}

async fn push(to: &impl Pushing) -> Result<Delivered, Failure> {
    to.handle_message(&mut message(Duration::ZERO, 1)).await
}

/// What has become of messages, by the metric.
fn counted(recorded: &Recorded) -> Vec<(String, u64)> {
    recorded.counters("socket.messages_pushed")
}

fn outcomes(of: &[(&str, u64)]) -> Vec<(String, u64)> {
    of.iter().map(|(outcome, count)| (format!("outcome={outcome}"), *count)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_taken_over_is_done_before_its_push() {
    let server = server(|mount| mount);
    let to =
        pushing(&server).acknowledge(Acknowledge::TakenOver).no_subscribers(NoSubscribers::Done);
    let acks = Arc::new(Acks::default());
    let mut message = Message::new(json!({}), 7, &acks);
    let pushed = to.handle_message(&mut message).await;
    assert!(pushed.is_ok());
    assert!(matches!(acks.0.lock()[..], [Ok(7)]));
    assert_eq!(counted(&server.recorded), outcomes(&[("taken_over", 1)]));
}

#[tokio::test(start_paused = true)]
async fn a_message_whose_push_cannot_be_encoded_is_given_up_at_any_level() {
    let server = server(|mount| mount);
    let _client = ada(&server, 1 << 16).await;
    for level in ALL {
        let to = server
            .endpoint
            .pubsub()
            .push_messages(|_: &Message<Value>| Ok(Push::new(T, "ticket", json!([1]))))
            .acknowledge(level);
        let acks = Arc::new(Acks::default());
        let mut message = Message::new(json!({}), 7, &acks);
        let failure = to.handle_message(&mut message).await.unwrap_err();
        assert_eq!(failure.redelivery(), Redelivery::Never, "{level:?}");
        assert!(acks.0.lock().is_empty(), "{level:?}: it has not been taken over");
    }
    assert_eq!(counted(&server.recorded), []);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_handled_is_done_although_its_client_has_read_nothing() {
    let server = server(|mount| mount);
    let _client = ada(&server, 64).await;
    push(&pushing(&server).acknowledge(Acknowledge::Handled)).await.unwrap();
    assert_eq!(counted(&server.recorded), outcomes(&[("handled", 1)]));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_to_be_written_is_done_when_all_clients_have_taken_it() {
    let server = server(|mount| mount);
    let (mut one, mut other) = (ada(&server, 64).await, ada(&server, 64).await);
    let to = pushing(&server);
    let mut pushed = std::pin::pin!(push(&to));
    for client in [&mut one, &mut other] {
        settle().await;
        assert!(poll!(&mut pushed).is_pending());
        assert_eq!(client.receive().await[3], "ticket");
    }
    assert_eq!(pushed.await.unwrap().written, 2);
    assert_eq!(counted(&server.recorded), outcomes(&[("written", 1)]));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_to_be_confirmed_is_done_when_a_client_has_confirmed_it() {
    let server = server(|mount| mount);
    let mut client = ada(&server, 1 << 16).await;
    let to = pushing(&server).acknowledge(CONFIRMED);
    for payload in [json!({}), json!({ "seat": 12 }), json!({ "ack": "my own" })] {
        let mut message = Message::unacknowledged(payload.clone());
        let mut pushed = std::pin::pin!(to.handle_message(&mut message));
        assert!(poll!(&mut pushed).is_pending());
        settle().await;
        assert!(poll!(&mut pushed).is_pending());
        let received = client.receive().await;
        assert_eq!(received[4]["seat"], payload["seat"]);
        client.send(json!(["1", "2", T, "ack", { "id": received[4]["ack"] }])).await;
        assert_eq!(client.receive().await[4]["status"], "ok");
        pushed.await.unwrap();
    }
    assert_eq!(counted(&server.recorded), outcomes(&[("confirmed", 3)]));
}

/// Counts how often it is encoded.
struct Counted(Arc<AtomicUsize>);

impl Serialize for Counted {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.fetch_add(1, SeqCst);
        serializer.serialize_map(Some(0))?.end()
    }
}

#[tokio::test(start_paused = true)]
async fn a_push_whose_outcome_is_counted_is_encoded_once_for_all_sockets() {
    const CLIENTS: usize = 20;
    let server = server(|mount| mount);
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(ada(&server, 1 << 16).await);
    }
    let pubsub = server.endpoint.pubsub();
    let encoded = Arc::new(AtomicUsize::new(0));
    let counts = encoded.clone();
    let pushing = || {
        let counts = counts.clone();
        let push = move |_: &Message<Value>| Ok(Push::new(T, "ticket", Counted(counts.clone())));
        pubsub.push_messages(push)
    };
    for level in ALL {
        let to = pushing().acknowledge(level);
        let mut message = message(Duration::ZERO, 1);
        let mut pushed = std::pin::pin!(to.handle_message(&mut message));
        let at_once = poll!(&mut pushed);
        let mut id = Value::Null;
        for client in &mut clients {
            let received = client.receive().await;
            assert_eq!(received[3], "ticket");
            id = received[4]["ack"].clone();
        }
        let pushed = match at_once {
            Poll::Ready(pushed) => pushed,
            Poll::Pending => {
                if level == CONFIRMED {
                    clients[0].send(json!(["1", "2", T, "ack", { "id": id }])).await;
                    assert_eq!(clients[0].receive().await[4]["status"], "ok");
                }
                pushed.await
            }
        };
        assert_eq!(pushed.unwrap().dropped, 0);
        assert_eq!(encoded.swap(0, SeqCst), 1, "{level:?}");
    }
    let push = PreparedBroadcast::new(T, "news", Counted(counts.clone())).unwrap();
    assert_eq!(pubsub.deliver(push).await.unwrap().await.written, CLIENTS);
    for client in &mut clients {
        client.expect([json!([null, null, T, "news", {}])]).await;
    }
    assert_eq!(encoded.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_not_confirmed_in_time_or_before_its_client_leaves_has_failed() {
    let server = server(|mount| mount);
    for leaves in [false, true] {
        let mut client = ada(&server, 1 << 16).await;
        let to = pushing(&server).acknowledge(CONFIRMED);
        let begun = Instant::now();
        let mut pushed = std::pin::pin!(push(&to));
        assert!(poll!(&mut pushed).is_pending());
        client.receive().await;
        if leaves {
            drop(client);
        }
        let failure = pushed.await.unwrap_err();
        assert_eq!(failure.redelivery(), Redelivery::Usual);
        assert_eq!(begun.elapsed() < SECOND, leaves, "{failure}");
    }
    assert_eq!(counted(&server.recorded), outcomes(&[("unconfirmed", 2)]));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_dropped_while_it_waits_for_a_confirmation_leaves_nothing() {
    let mount = Mount::new(NamedSocket).channel::<User>("user:*");
    let builder = Endpoint::builder().mount("/socket", mount).max_confirmations(1);
    let server = MemoryServer::start(builder);
    let mut client = ada(&server, 1 << 16).await;
    let to = pushing(&server).acknowledge(CONFIRMED);
    let mut last = json!(null);
    for _ in 0..5 {
        let mut pushed = std::pin::pin!(push(&to));
        assert!(poll!(&mut pushed).is_pending());
        last = client.receive().await[4]["ack"].clone();
    }
    client.send(json!(["1", "2", T, "ack", { "id": last }])).await;
    assert_eq!(client.receive().await[4]["status"], "error");
}

#[tokio::test(start_paused = true)]
async fn a_push_that_cannot_carry_an_id_is_given_up() {
    let server = server(|mount| mount);
    let _client = ada(&server, 1 << 16).await;
    for payload in [Payload::binary(vec![1]), Payload::new(&[1]).unwrap()] {
        let to = server
            .endpoint
            .pubsub()
            .push_messages(move |_: &Message<Value>| Ok(Push::new(T, "ticket", payload.clone())));
        let failure = push(&to.acknowledge(CONFIRMED)).await.unwrap_err();
        assert_eq!(failure.redelivery(), Redelivery::Never);
    }
}

#[tokio::test(start_paused = true)]
async fn a_user_who_is_not_there_misses_a_message_at_any_level_if_that_is_the_choice() {
    let server = server(|mount| mount);
    for level in ALL {
        let begun = Instant::now();
        let to = pushing(&server).acknowledge(level).no_subscribers(NoSubscribers::Done);
        let delivered = push(&to).await.unwrap();
        assert!(delivered.is_unheard());
        assert_eq!(begun.elapsed(), Duration::ZERO, "{level:?}");
    }
    assert_eq!(counted(&server.recorded), outcomes(&[("absent", 3), ("taken_over", 1)]));
}

#[tokio::test(start_paused = true)]
async fn a_message_for_a_user_who_is_not_there_is_kept_by_default() {
    let server = server(|mount| mount);
    for level in ALL {
        let failure = push(&pushing(&server).acknowledge(level)).await.unwrap_err();
        assert!(matches!(failure.redelivery(), Redelivery::Later(_)), "{level:?}: {failure:?}");
    }
    assert_eq!(counted(&server.recorded), outcomes(&[("kept", 4)]));
}

#[tokio::test(start_paused = true)]
async fn a_message_for_a_user_who_is_not_there_is_kept_until_its_time_is_over() {
    let server = server(|mount| mount);
    let backoff = Backoff::new(SECOND, 60 * SECOND).jitter(Jitter::None);
    // An hour has passed for the server, and not on the wall clock.
    let old = |age: Duration, nth| {
        let mut metadata = message(Duration::ZERO, nth).metadata().clone();
        metadata.enqueued_at = (SystemTime::now() + HOUR).checked_sub(age);
        message(Duration::ZERO, nth).with_metadata(metadata)
    };
    for level in ALL {
        for then in [Expired::Done, Expired::GiveUp] {
            let to = pushing(&server)
                .acknowledge(level)
                .no_subscribers(NoSubscribers::Keep { keep_for: HOUR, then })
                .look_again(backoff);
            // A new one looks again soon, whatever the age.
            let failure = to.handle_message(&mut message(HOUR / 2, 20)).await.unwrap_err();
            assert_eq!(failure.redelivery(), Redelivery::Later(SECOND));
            tokio::time::advance(HOUR).await;
            for (age, nth, delay) in [
                (Duration::ZERO, 1, 1),
                (SECOND * 3 / 2, 2, 2),
                (HOUR / 2, 20, 60),
                (HOUR - SECOND, 20, 1),
            ] {
                let failure = to.handle_message(&mut old(age, nth)).await.unwrap_err();
                let Redelivery::Later(after) = failure.redelivery() else {
                    unreachable!("{failure:?}")
                };
                // Some milliseconds pass on the wall clock.
                let expected = Duration::from_secs(delay);
                assert!(after.abs_diff(expected) < SECOND / 2, "{after:?}");
            }
            let expired = to.handle_message(&mut old(2 * HOUR, 20)).await;
            match then {
                Expired::Done => assert!(expired.unwrap().is_unheard()),
                Expired::GiveUp => {
                    assert_eq!(expired.unwrap_err().redelivery(), Redelivery::Never);
                }
            }
        }
    }
    assert_eq!(counted(&server.recorded), outcomes(&[("expired", 8), ("kept", 40)]));
}

#[tokio::test(start_paused = true)]
async fn a_message_from_the_future_is_not_looked_for_each_second() {
    let server = server(|mount| mount);
    let keep = NoSubscribers::Keep { keep_for: HOUR, then: Expired::GiveUp };
    let backoff = Backoff::new(SECOND, 60 * SECOND).jitter(Jitter::None);
    let to = pushing(&server).no_subscribers(keep).look_again(backoff);
    tokio::time::advance(HOUR).await;
    // Another clock may be a little ahead, or be in another time zone.
    for (ahead, delay) in [(SECOND * 30, SECOND), (HOUR * 2, SECOND * 60)] {
        let mut metadata = message(Duration::ZERO, 3).metadata().clone();
        metadata.enqueued_at = Some(SystemTime::now() + HOUR + ahead);
        let mut message = message(Duration::ZERO, 3).with_metadata(metadata);
        let failure = to.handle_message(&mut message).await.unwrap_err();
        assert_eq!(failure.redelivery(), Redelivery::Later(delay), "{ahead:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_from_the_future_is_kept_no_longer_than_others() {
    let server = server(|mount| mount);
    let keep = NoSubscribers::Keep { keep_for: HOUR, then: Expired::GiveUp };
    let to = pushing(&server).no_subscribers(keep);
    let from_future = |ahead: Duration| {
        let mut metadata = message(Duration::ZERO, 1).metadata().clone();
        metadata.id = Some("7".into());
        metadata.enqueued_at = Some(SystemTime::UNIX_EPOCH + HOUR * 24 * 365 * 1000 + ahead);
        message(Duration::ZERO, 1).with_metadata(metadata)
    };
    let outcome = async |ahead| {
        let failure = to.handle_message(&mut from_future(ahead)).await.unwrap_err();
        failure.redelivery()
    };
    let is_kept = |redelivery| matches!(redelivery, Redelivery::Later(_));
    assert!(is_kept(outcome(Duration::ZERO).await));
    tokio::time::advance(HOUR - SECOND).await;
    assert!(is_kept(outcome(Duration::ZERO).await));
    assert!(is_kept(outcome(SECOND).await), "it is another one");
    tokio::time::advance(SECOND).await;
    // Also when it is delivered again because its outcome was not stored.
    for _ in 0..2 {
        assert_eq!(outcome(Duration::ZERO).await, Redelivery::Never);
    }
    assert!(is_kept(outcome(SECOND).await));
}

#[tokio::test(start_paused = true)]
async fn a_message_whose_time_comes_while_it_is_kept_is_as_old_as_it_is_known() {
    let server = server(|mount| mount);
    let keep = NoSubscribers::Keep { keep_for: 24 * HOUR, then: Expired::GiveUp };
    let backoff = Backoff::new(SECOND, 60 * SECOND).jitter(Jitter::None);
    let to = pushing(&server).no_subscribers(keep).look_again(backoff);
    let mut metadata = message(Duration::ZERO, 1).metadata().clone();
    // Another clock is two hours ahead.
    metadata.enqueued_at = Some(SystemTime::now() + 2 * HOUR);
    let mut message = message(Duration::ZERO, 1).with_metadata(metadata);
    let begun = Instant::now();
    for (at, expected) in [
        (Duration::ZERO, Redelivery::Later(SECOND)),
        (HOUR, Redelivery::Later(60 * SECOND)),
        (2 * HOUR - SECOND, Redelivery::Later(60 * SECOND)),
        (2 * HOUR + SECOND, Redelivery::Later(60 * SECOND)),
        (24 * HOUR - SECOND, Redelivery::Later(SECOND)),
        (24 * HOUR, Redelivery::Never),
    ] {
        tokio::time::advance(at - begun.elapsed()).await;
        let failure = to.handle_message(&mut message).await.unwrap_err();
        assert_eq!(failure.redelivery(), expected, "after {at:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_kept_message_without_a_time_is_counted_by_its_source() {
    let server = server(|mount| mount);
    let keep = NoSubscribers::Keep { keep_for: HOUR, then: Expired::GiveUp };
    let backoff = Backoff::new(SECOND, 60 * SECOND).jitter(Jitter::None);
    let to = pushing(&server).no_subscribers(keep).look_again(backoff);
    let mut message = message(Duration::ZERO, 3);
    let mut metadata = message.metadata().clone();
    metadata.enqueued_at = None;
    message = message.with_metadata(metadata);
    let failure = to.handle_message(&mut message).await.unwrap_err();
    assert_eq!(failure.redelivery(), Redelivery::After(4 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_message_is_kept_if_its_only_client_ends_before_it_has_taken_it() {
    let server = server(|mount| mount);
    let client = ada(&server, 64).await;
    let keep = NoSubscribers::Keep { keep_for: HOUR, then: Expired::GiveUp };
    let to = pushing(&server).no_subscribers(keep);
    let mut pushed = std::pin::pin!(push(&to));
    assert!(poll!(&mut pushed).is_pending());
    drop(client);
    assert!(matches!(pushed.await.unwrap_err().redelivery(), Redelivery::Later(_)));
}

#[tokio::test(start_paused = true)]
async fn a_message_whose_client_is_back_before_its_old_socket_has_ended_is_delivered_soon() {
    let server = server(|mount| mount);
    let to = pushing(&server).look_again(Backoff::new(HOUR, HOUR).jitter(Jitter::None));
    let old = ada(&server, 64).await;
    let mut pushed = std::pin::pin!(push(&to));
    assert!(poll!(&mut pushed).is_pending());
    let _back = ada(&server, 1 << 16).await;
    drop(old);
    let redelivery = pushed.await.unwrap_err().redelivery();
    assert!(matches!(redelivery, Redelivery::Later(after) if after < SECOND), "{redelivery:?}");
}

#[tokio::test(start_paused = true)]
async fn a_push_is_made_of_a_message_by_an_async_function_whose_failure_fails_the_message() {
    let server = server(|mount| mount);
    let mut client = ada(&server, 1 << 16).await;
    let to = server.endpoint.pubsub().push_messages_async(async |message: &mut Message<Value>| {
        sleep(SECOND).await;
        let Some(seat) = message["seat"].as_u64() else { return Err(Failure::new("no seat")) };
        Ok(Push::new(T, "ticket", json!({ "seat": seat, "price": 2 * seat })))
    });
    let mut ticket = Message::unacknowledged(json!({ "seat": 12 }));
    assert_eq!(to.handle_message(&mut ticket).await.unwrap().written, 1);
    assert_eq!(client.receive().await[4], json!({ "seat": 12, "price": 24 }));
    let mut none = Message::unacknowledged(json!({}));
    let failure = to.handle_message(&mut none).await.unwrap_err();
    assert_eq!(failure.to_string(), "no seat");
    client.expect_nothing_else().await;
    assert_eq!(counted(&server.recorded), outcomes(&[("written", 1)]));
}

/// By how much the number of waiting pushes has changed since the last look, after which it is zero here.
fn waiting_more(recorded: &Recorded) -> f64 {
    recorded.look();
    let [(_, more)] = recorded.gauges("socket.messages_waiting").try_into().unwrap();
    more
}

#[tokio::test(start_paused = true)]
async fn pushes_in_order_wait_for_the_one_before_and_are_given_back_beyond_their_share() {
    let server = server(|mount| mount);
    let mut client = ada(&server, 1 << 16).await;
    let confirmed = Acknowledge::Confirmed { within: HOUR };
    let to = pushing(&server).acknowledge(confirmed).in_order().max_waiting(32, 1 << 20);
    let pushes: Vec<_> = (0..5).map(|_| Box::pin(push(&to))).collect();
    let [mut first, mut second, mut third, mut fourth, mut fifth] = pushes.try_into().ok().unwrap();
    for waits in [&mut first, &mut second, &mut third] {
        assert!(poll!(waits).is_pending());
    }
    assert!((waiting_more(&server.recorded) - 3.0).abs() < 0.1);
    // An eighth of what is free, rounded down.
    for more in [&mut fourth, &mut fifth] {
        let Poll::Ready(Err(failure)) = poll!(more) else { panic!("it waits") };
        assert_eq!(failure.redelivery(), Redelivery::Later(SECOND));
    }
    for mut pushed in [first, second, third] {
        // It notices its turn, and is sent.
        assert!(poll!(&mut pushed).is_pending());
        assert!(poll!(&mut pushed).is_pending());
        let received = client.receive().await;
        client.expect_nothing_else().await;
        client.send(json!(["1", "2", T, "ack", { "id": received[4]["ack"] }])).await;
        assert_eq!(client.receive().await[4]["status"], "ok");
        pushed.await.unwrap();
        assert!((waiting_more(&server.recorded) + 1.0).abs() < 0.1);
    }
    assert_eq!(counted(&server.recorded), outcomes(&[("confirmed", 3), ("given_back", 2)]));
}

#[tokio::test(start_paused = true)]
async fn beyond_what_may_wait_a_push_keeps_its_place_or_is_given_back() {
    for when in ALL_CROWDED {
        let server = server(|mount| mount);
        let mut client = ada(&server, 1 << 16).await;
        client.join("2", "user:joe").await;
        let by_number: PushValue = |message| {
            let topic = if *message.data() == json!({}) { T } else { "user:joe" };
            Ok(Push::new(topic, "ticket", message.data().clone()))
        };
        let to = server.endpoint.pubsub().push_messages(by_number).acknowledge(CONFIRMED);
        let to = to.max_waiting(1, 1 << 20).when_crowded(when);
        let [mut one, mut other] = [json!({}), json!({ "to": "joe" })].map(Message::unacknowledged);
        let mut waits = std::pin::pin!(to.handle_message(&mut one));
        assert!(poll!(&mut waits).is_pending());
        assert_eq!(client.receive().await[2], T);
        let mut more = std::pin::pin!(to.handle_message(&mut other));
        let polled = poll!(&mut more);
        assert!((waiting_more(&server.recorded) - 1.0).abs() < 0.1);
        let crowded = server.recorded.counters("socket.messages_crowded");
        if when != WhenCrowded::GiveBack {
            assert!(polled.is_pending());
            assert_eq!(client.receive().await[2], "user:joe");
            assert_eq!(crowded, [(String::new(), 1)]);
        } else {
            let Poll::Ready(Err(failure)) = polled else { panic!("it waits") };
            assert_eq!(failure.redelivery(), Redelivery::Later(SECOND));
            client.expect_nothing_else().await;
            assert_eq!(crowded, []);
        }
    }
}

/// Confirms a push that a client receives.
async fn confirm(client: &mut Client<DuplexStream>, join: &str) -> Value {
    let received = client.receive().await;
    let ack = json!([join, "2", received[2], "ack", { "id": received[4]["ack"] }]);
    client.send(ack).await;
    assert_eq!(client.receive().await[4]["status"], "ok");
    received
}

#[tokio::test(start_paused = true)]
async fn a_push_in_order_without_room_keeps_its_place_and_comes_after_the_one_before() {
    for when in ALL_CROWDED {
        let server = server(|mount| mount);
        let mut client = ada(&server, 1 << 16).await;
        let confirmed = Acknowledge::Confirmed { within: HOUR };
        let to = pushing(&server).acknowledge(confirmed).in_order();
        let to = to.max_waiting(1, 1 << 20).when_crowded(when);
        let [mut first, mut second] =
            [1, 2].map(|nth| Message::unacknowledged(json!({ "nth": nth })));
        let mut first = std::pin::pin!(to.handle_message(&mut first));
        assert!(poll!(&mut first).is_pending());
        let mut second = std::pin::pin!(to.handle_message(&mut second));
        let polled = poll!(&mut second);
        if when == WhenCrowded::GiveBack {
            let Poll::Ready(Err(failure)) = polled else { panic!("it waits") };
            assert_eq!(failure.redelivery(), Redelivery::Later(SECOND));
            continue;
        }
        assert!(polled.is_pending());
        assert_eq!(server.recorded.counters("socket.messages_crowded"), [(String::new(), 1)]);
        for (nth, pushed) in [(1, &mut first), (2, &mut second)] {
            // It notices its turn, and is sent.
            assert!(poll!(&mut *pushed).is_pending());
            assert!(poll!(&mut *pushed).is_pending());
            assert_eq!(confirm(&mut client, "1").await[4]["nth"], nth);
            pushed.await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_push_for_which_no_confirmation_is_free_keeps_its_place_or_is_given_back() {
    for when in [WhenCrowded::KeepPlace, WhenCrowded::GiveBack] {
        let mount = Mount::new(NamedSocket).channel::<User>("user:*");
        let builder = Endpoint::builder().mount("/socket", mount).max_confirmations(1);
        let server = MemoryServer::start(builder);
        let mut client = ada(&server, 1 << 16).await;
        let confirmed = Acknowledge::Confirmed { within: HOUR };
        let to = pushing(&server).acknowledge(confirmed).when_crowded(when);
        let mut pushes: Vec<_> = (0..3).map(|_| Box::pin(push(&to))).collect();
        assert!(poll!(&mut pushes[0]).is_pending());
        for more in &mut pushes[1..] {
            let polled = poll!(more);
            if when == WhenCrowded::KeepPlace {
                assert!(polled.is_pending());
            } else {
                let Poll::Ready(Err(failure)) = polled else { panic!("it waits") };
                assert_eq!(failure.redelivery(), Redelivery::Later(SECOND));
            }
        }
        let crowded = server.recorded.counters("socket.messages_crowded");
        if when == WhenCrowded::GiveBack {
            assert_eq!(crowded, []);
            continue;
        }
        assert_eq!(crowded, [(String::new(), 2)]);
        for mut pushed in pushes {
            assert!(poll!(&mut pushed).is_pending());
            confirm(&mut client, "1").await;
            client.expect_nothing_else().await;
            pushed.await.unwrap();
        }
        assert_eq!(counted(&server.recorded), outcomes(&[("confirmed", 3)]));
    }
}

#[tokio::test(start_paused = true)]
async fn a_push_in_order_keeps_its_turn_between_its_tries() {
    let server = server(|mount| mount);
    let mut client = ada(&server, 1 << 16).await;
    let to = pushing(&server).acknowledge(CONFIRMED).in_order();
    let messages = (0..3).map(|nth| Message::unacknowledged(json!({ "nth": nth })));
    let backoff = Backoff::new(SECOND, SECOND).jitter(Jitter::None);
    let mut pipeline = Pipeline::of_messages("tickets")
        .source(from_iter(messages))
        .processors(Processors::new(to).concurrency(1).tries(3, backoff))
        .start()
        .unwrap();
    // The client misses the first push once.
    assert_eq!(client.receive().await[4]["nth"], 0);
    for nth in 0..3 {
        assert_eq!(confirm(&mut client, "1").await[4]["nth"], nth);
    }
    pipeline.join().await;
    assert_eq!(counted(&server.recorded), outcomes(&[("confirmed", 3), ("unconfirmed", 1)]));
}

/// What became of messages, in their order: done, failed as usual, or given back to be delivered after a time.
fn fates(acks: &Acks) -> Vec<(u32, Fate)> {
    let fate = |outcome: &Result<u32, (u32, Failure)>| match outcome {
        Ok(nth) => (*nth, Fate::Done),
        Err((nth, failure)) => match failure.redelivery() {
            Redelivery::Usual => (*nth, Fate::Failed),
            Redelivery::Later(after) => (*nth, Fate::Later(after)),
            other => panic!("{other:?}"),
        },
    };
    let mut fates: Vec<_> = acks.0.lock().iter().map(fate).collect();
    fates.sort_unstable_by_key(|(nth, _)| *nth);
    fates
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Done,
    Failed,
    Later(Duration),
}

fn numbered(acks: &Arc<Acks>, count: u32) -> Vec<Message<Value>> {
    (0..count).map(|nth| Message::new(json!({ "nth": nth }), nth, acks)).collect()
}

#[tokio::test(start_paused = true)]
async fn the_time_of_a_push_in_order_begins_with_its_turn() {
    let server = server(|mount| mount);
    let mut client = ada(&server, 1 << 16).await;
    let to = pushing(&server).acknowledge(Acknowledge::Confirmed { within: 10 * SECOND });
    let acks = Arc::new(Acks::default());
    let mut pipeline = Pipeline::of_messages("tickets")
        .source(from_iter(numbered(&acks, 20)))
        .processors(Processors::new(to.in_order()).concurrency(4).handle_within(15 * SECOND))
        .start()
        .unwrap();
    for nth in 0..20 {
        assert_eq!(client.receive().await[4]["nth"], nth);
        client.expect_nothing_else().await;
        settle().await;
        assert_eq!(fates(&acks), (0..nth).map(|nth| (nth, Fate::Failed)).collect::<Vec<_>>());
    }
    pipeline.join().await;
    // Each had all of its time.
    assert_eq!(counted(&server.recorded), outcomes(&[("unconfirmed", 20)]));
}

#[tokio::test(start_paused = true)]
async fn a_drain_gives_back_pushes_whose_turn_has_not_come() {
    let server = server(|mount| mount);
    let mut client = ada(&server, 1 << 16).await;
    let to = pushing(&server).acknowledge(Acknowledge::Confirmed { within: 10 * SECOND });
    let acks = Arc::new(Acks::default());
    let pipeline = Pipeline::of_messages("tickets")
        .source(from_iter(numbered(&acks, 100)))
        .processors(Processors::new(to.in_order()).concurrency(4))
        .start()
        .unwrap();
    assert_eq!(client.receive().await[4]["nth"], 0);
    // All others wait for their turn.
    sleep(SECOND).await;
    assert!(pipeline.drain(HOUR).await.is_clean());
    let later = (1..100).map(|nth| (nth, Fate::Later(Duration::ZERO)));
    assert_eq!(fates(&acks), [(0, Fate::Failed)].into_iter().chain(later).collect::<Vec<_>>());
    client.expect_nothing_else().await;
    assert_eq!(counted(&server.recorded), outcomes(&[("given_back", 99), ("unconfirmed", 1)]));
}

#[tokio::test(start_paused = true)]
async fn a_drain_gives_back_pushes_for_which_no_confirmation_is_free() {
    let mount = Mount::new(NamedSocket).channel::<User>("user:*");
    let server =
        MemoryServer::start(Endpoint::builder().mount("/socket", mount).max_confirmations(1));
    let mut client = ada(&server, 1 << 16).await;
    let to = pushing(&server).acknowledge(Acknowledge::Confirmed { within: 10 * SECOND });
    let acks = Arc::new(Acks::default());
    let pipeline = Pipeline::of_messages("tickets")
        .source(from_iter(numbered(&acks, 4)))
        .processors(Processors::new(to).concurrency(4))
        .start()
        .unwrap();
    client.receive().await;
    sleep(SECOND).await;
    assert!(pipeline.drain(HOUR).await.is_clean());
    let fates = fates(&acks).into_iter().map(|(_, fate)| fate).collect::<Vec<_>>();
    let count = |wanted| fates.iter().filter(|fate| **fate == wanted).count();
    assert_eq!((count(Fate::Failed), count(Fate::Later(Duration::ZERO))), (1, 3));
    client.expect_nothing_else().await;
    assert_eq!(counted(&server.recorded), outcomes(&[("given_back", 3), ("unconfirmed", 1)]));
}

#[tokio::test(start_paused = true)]
async fn a_push_that_waits_in_a_place_for_its_turn_does_not_take_that_of_the_one_before() {
    let server = server(|mount| mount);
    let mut client = ada(&server, 1 << 16).await;
    let to = pushing(&server).acknowledge(Acknowledge::Confirmed { within: 14 * SECOND });
    let backoff = Backoff::new(HOUR, HOUR).jitter(Jitter::None);
    let acks = Arc::new(Acks::default());
    let to = to.in_order().max_waiting(3, 1 << 20).when_crowded(WhenCrowded::KeepPlace);
    let processors =
        Processors::new(to).concurrency(1).handle_within(15 * SECOND).tries(3, backoff);
    let _pipeline = Pipeline::of_messages("tickets")
        .source(from_iter(numbered(&acks, 4)))
        .processors(processors)
        .start()
        .unwrap();
    // There is no room for the fourth, which occupies the only processor.
    for nth in 0..4 {
        let received = tokio::time::timeout(60 * SECOND, client.receive()).await;
        assert_eq!(received.unwrap()[4]["nth"], nth);
    }
}

#[tokio::test(start_paused = true)]
async fn pushes_in_order_are_tried_again_although_there_is_no_room() {
    for when in ALL_CROWDED {
        let server = server(|mount| mount);
        let mut client = ada(&server, 1 << 16).await;
        let to = pushing(&server).acknowledge(CONFIRMED).in_order();
        let to = to.max_waiting(1, 1 << 20).when_crowded(when);
        let backoff = Backoff::new(SECOND, SECOND).jitter(Jitter::None);
        let acks = Arc::new(Acks::default());
        let mut pipeline = Pipeline::of_messages("tickets")
            .source(from_iter(numbered(&acks, 5)))
            .processors(Processors::new(to).concurrency(1).tries(3, backoff))
            .start()
            .unwrap();
        // The client misses the first push, and gets it again.
        assert_eq!(client.receive().await[4]["nth"], 0);
        let mut seen = Vec::new();
        let confirms = async {
            loop {
                let received = client.receive().await;
                if let Some(nth) = received[4]["nth"].as_u64() {
                    seen.push(nth);
                    let ack = json!(["1", "2", T, "ack", { "id": received[4]["ack"] }]);
                    client.send(ack).await;
                }
            }
        };
        tokio::select! {
            () = confirms => {}
            _ = pipeline.join() => {}
        }
        let fates = fates(&acks);
        assert_eq!(fates.len(), 5);
        let done = fates.iter().filter(|(_, fate)| *fate == Fate::Done).count();
        seen.sort_unstable();
        assert_eq!(seen.len(), done, "{seen:?} {fates:?}");
        assert!(seen.contains(&0) && (done == 5 || when == WhenCrowded::GiveBack), "{fates:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_push_that_has_failed_for_good_passes_its_turn_on_although_no_place_is_free() {
    let server = server(|mount| mount);
    let mut client = ada(&server, 1 << 16).await;
    let to = server.endpoint.pubsub().push_messages_async(async |message: &mut Message<Value>| {
        if message["nth"] == 2 {
            std::future::pending::<()>().await;
        }
        Ok(Push::new(T, "ticket", message.data().clone()))
    });
    let acks = Arc::new(Acks::default());
    let _pipeline = Pipeline::of_messages("tickets")
        .source(from_iter(numbered(&acks, 3)))
        .processors(Processors::new(to.acknowledge(CONFIRMED).in_order()).concurrency(1))
        .start()
        .unwrap();
    // The third occupies the processor for ever.
    for nth in 0..2 {
        let received = tokio::time::timeout(60 * SECOND, client.receive()).await;
        assert_eq!(received.unwrap()[4]["nth"], nth);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_topic_has_beyond_its_share_keeps_its_place_if_that_is_the_choice() {
    for when in ALL_CROWDED {
        let server = server(|mount| mount);
        let mut client = ada(&server, 1 << 16).await;
        let confirmed = Acknowledge::Confirmed { within: HOUR };
        let to = pushing(&server).acknowledge(confirmed).max_waiting(16, 1 << 20);
        let to = to.when_crowded(when);
        let mut pushes: Vec<_> = (0..5).map(|_| Box::pin(push(&to))).collect();
        let mut waits = 0;
        for pushed in &mut pushes {
            waits += usize::from(poll!(pushed).is_pending());
        }
        assert_eq!(waits, if when == WhenCrowded::KeepPlace { 5 } else { 2 }, "{when:?}");
        for _ in 0..waits {
            assert_eq!(client.receive().await[3], "ticket");
        }
        client.expect_nothing_else().await;
    }
}

/// A user's channel that crashes with each push.
struct Cursed;

impl Channel for Cursed {
    type Socket = NamedSocket;
    type Config = ();

    const INTERCEPT: &'static [&'static str] = &["ticket"];

    async fn join(_: &Topic, _: Payload, _: &mut JoinContext<'_, Self>) -> Result<Self, JoinError> {
        Ok(Self)
    }

    async fn handle_out(
        &mut self,
        _: &str,
        _: Payload,
        _: &ChannelContext<Self>,
    ) -> Result<(), Stop> {
        Err(Stop::because(ExitReason::failed("a curse")))
    }
}

#[tokio::test(start_paused = true)]
async fn a_push_that_an_intercepting_channel_loses_has_failed() {
    let mount = Mount::new(NamedSocket).channel::<Cursed>("user:*");
    let server = MemoryServer::start(Endpoint::builder().mount("/socket", mount));
    let _client = ada(&server, 1 << 16).await;
    let failure = push(&pushing(&server)).await.unwrap_err();
    assert_eq!(failure.redelivery(), Redelivery::Usual);
    assert_eq!(counted(&server.recorded), outcomes(&[("stuck", 1)]));
}

#[tokio::test(start_paused = true)]
async fn a_push_that_a_socket_drops_or_does_not_take_in_time_has_failed() {
    let server = server(|mount| mount.max_outbox(2, 1 << 20).when_full(WhenFull::DropNewest));
    let _client = ada(&server, 64).await;
    let to = pushing(&server).written_within(5 * SECOND);
    let pushes = (0..5).map(|_| push(&to));
    let failures = futures::future::join_all(pushes).await;
    let failures: Vec<_> = failures.into_iter().map(|pushed| pushed.unwrap_err()).collect();
    assert!(failures.iter().all(|failure| failure.redelivery() == Redelivery::Usual));
    let of = |what: &str| failures.iter().filter(|why| why.to_string().contains(what)).count();
    assert_eq!(of("in time") + of("dropped"), 5);
    assert!((1..=3).contains(&of("dropped")), "{failures:?}");
    assert_eq!(counted(&server.recorded), outcomes(&[("stuck", 5)]));
}

/// The parts of the time of a message's push in seconds, and the whole.
async fn times(
    to: &impl Pushing,
    mut message: Message<Value>,
    client: &mut Client<DuplexStream>,
    recorded: &Recorded,
) -> [Option<u64>; 5] {
    to.handle_message(&mut message).await.unwrap();
    assert_eq!(client.receive().await[3], "ticket");
    ["queued", "waited", "worked", "written", "delivered"].map(|part| {
        let samples = recorded.samples(&format!("pipeline.push_{part}"));
        samples.first().map(|ms| Duration::from_secs_f64(ms / 1000.0).as_secs())
    })
}

#[tokio::test(start_paused = true)]
async fn a_durable_push_is_timed_from_when_it_was_added_until_it_is_written() {
    const MINUTE: Duration = Duration::from_secs(60);
    const OWN: &str = "it has times of its own";
    let server = server(|mount| mount);
    let mut client = ada(&server, 1 << 16).await;
    let pubsub = server.endpoint.pubsub();
    let to = pubsub.push_messages_async(async |message: &mut Message<Value>| {
        sleep(SECOND).await;
        let push = Push::new(T, "ticket", message.data().clone());
        let is_own = message.data()["text"] == OWN;
        Ok::<_, Failure>(if is_own { push.timed(Instant::now()) } else { push })
    });
    let recorded = &server.recorded;
    let old = message(HOUR, 1);
    assert_eq!(times(&to, old, &mut client, recorded).await, [None; 5], "it is not timed");
    let to = to.timed();
    let [zero, second, hour, whole] = [0, 1, 3600, 3601].map(Some);
    let old = times(&to, message(HOUR, 1), &mut client, recorded).await;
    assert_eq!(old, [hour, zero, second, zero, whole]);
    // One of the future, and one without a time, were added when the processor began.
    let (mut ahead, mut unknown) = (message(HOUR, 1), message(HOUR, 1));
    let mut metadata = ahead.metadata().clone();
    metadata.enqueued_at = Some(SystemTime::now() + MINUTE);
    ahead = ahead.with_metadata(metadata.clone());
    metadata.enqueued_at = None;
    unknown = unknown.with_metadata(metadata);
    for message in [ahead, unknown] {
        let new = times(&to, message, &mut client, recorded).await;
        assert_eq!(new, [zero, zero, second, zero, second]);
    }
    let own = Message::unacknowledged(json!({ "text": OWN }));
    let own = times(&to, own, &mut client, recorded).await;
    assert_eq!(own, [None, None, None, zero, zero]);
}

#[tokio::test(start_paused = true)]
async fn a_push_to_a_topic_that_no_client_can_join_is_logged_once_for_its_kind() {
    let (log, _guard) = Log::keep();
    let server = server(|mount| mount);
    let push = async |topic: String| {
        let to = server.endpoint.pubsub().push_messages(move |_: &Message<Value>| {
            Ok(Push::new(topic.clone(), "ticket", json!({})))
        });
        to.handle_message(&mut message(Duration::ZERO, 1)).await.unwrap_err();
        log.take().into_iter().filter(|line| line.contains("cannot join")).collect::<Vec<_>>()
    };
    let lines = push("users:7".to_owned()).await;
    assert!(lines.len() == 1 && lines[0].contains("users:7"), "{lines:?}");
    for topic in ["users:8", "user:7"] {
        assert_eq!(push(topic.to_owned()).await, Vec::<String>::new(), "{topic}");
    }
    // One that a task reads is no mistake.
    let _reads = server.endpoint.subscribe("audit:all");
    assert_eq!(push("audit:all".to_owned()).await, Vec::<String>::new());
}

/// Pushes to the user's clients on this node.
fn pushing_here(server: &MemoryServer) -> PushMessages<PushValue> {
    let push: PushValue = |message| Ok(Push::new(T, "ticket", message.data().clone()).here_only());
    server.endpoint.pubsub().push_messages(push).no_subscribers(NoSubscribers::Done)
}

/// Two nodes that know of each other's subscribers.
fn nodes(cluster: &Cluster) -> [MemoryServer; 2] {
    ["here", "there"].map(|name| {
        let mount = Mount::new(NamedSocket).channel::<User>("user:*");
        let builder = Endpoint::builder().mount("/socket", mount).adapter(cluster.node(name));
        MemoryServer::start(builder.sync_subscriptions(TrackerOptions::new()))
    })
}

#[tokio::test(start_paused = true)]
async fn a_message_from_the_future_for_a_client_of_another_node_is_looked_at_as_seldom_as_others() {
    let cluster = Cluster::default();
    let [here, there] = nodes(&cluster);
    let _elsewhere = ada(&there, 1 << 16).await;
    let keep = NoSubscribers::Keep { keep_for: HOUR, then: Expired::GiveUp };
    let to = pushing(&here).clients_elsewhere(ClientsElsewhere::GiveBack).unwrap();
    let to = to.no_subscribers(keep);
    sleep(3 * SECOND).await;
    for ahead in [Duration::ZERO, 2 * HOUR] {
        let mut metadata = message(Duration::ZERO, 1).metadata().clone();
        metadata.enqueued_at = Some(SystemTime::now() + ahead);
        let mut message = message(Duration::ZERO, 1).with_metadata(metadata);
        let failure = to.handle_message(&mut message).await.unwrap_err();
        let half_a_second = Duration::from_millis(500);
        assert_eq!(failure.redelivery(), Redelivery::Later(half_a_second), "{ahead:?}");
    }
}

/// Every topic would count as one with clients elsewhere, and every message as done at its first broadcast.
#[tokio::test(start_paused = true)]
async fn messages_are_given_back_to_other_nodes_only_where_nodes_know_of_each_others_clients() {
    let cluster = Cluster::default();
    let start = |builder: EndpointBuilder| {
        let mount = Mount::new(NamedSocket).channel::<User>("user:*");
        MemoryServer::start(builder.mount("/socket", mount))
    };
    let with_adapter = || Endpoint::builder().adapter(cluster.node("here"));
    let of = |server: &MemoryServer, elsewhere| pushing(server).clients_elsewhere(elsewhere);
    let blind = start(with_adapter());
    let why = of(&blind, ClientsElsewhere::GiveBack).err().unwrap();
    assert!(why.to_string().contains("sync_subscriptions"), "{why}");
    assert!(of(&blind, ClientsElsewhere::Broadcast).is_ok());
    let knows = start(with_adapter().sync_subscriptions(TrackerOptions::new()));
    assert!(of(&knows, ClientsElsewhere::GiveBack).is_ok());
    let alone = start(Endpoint::builder());
    assert!(of(&alone, ClientsElsewhere::GiveBack).is_ok(), "there are no other nodes");
}

#[tokio::test(start_paused = true)]
async fn a_push_for_here_only_is_for_the_clients_of_its_node_and_done_without_those_of_others() {
    let cluster = Cluster::default();
    let [here, there] = nodes(&cluster);
    let mut elsewhere = ada(&there, 1 << 16).await;
    sleep(3 * SECOND).await;
    let knows = || here.endpoint.pubsub().has_subscribers(T);
    assert!(knows(), "a push for all would go to the other node");
    cluster.sent();
    // No client is here. It is neither broadcast to those of the other node, nor given back for them.
    for elsewhere in [ClientsElsewhere::Broadcast, ClientsElsewhere::GiveBack] {
        for acknowledge in ALL {
            let to = pushing_here(&here).clients_elsewhere(elsewhere).unwrap();
            let to = to.acknowledge(acknowledge);
            let delivered = push(&to).await.unwrap();
            assert!(!delivered.elsewhere, "{acknowledge:?}");
        }
    }
    let counted = counted(&here.recorded);
    assert_eq!(counted, outcomes(&[("absent", 6), ("taken_over", 2)]));
    let mut client = ada(&here, 1 << 16).await;
    let delivered = push(&pushing_here(&here)).await.unwrap();
    assert_eq!((delivered.written, delivered.elsewhere), (1, false));
    assert_eq!(client.receive().await[3], "ticket");
    let sent = cluster.sent();
    assert!(!sent.iter().any(|line| line.contains("ticket")), "{sent:?}");
    // A sentinel.
    there.endpoint.local_broadcast(T, "last", json!({})).unwrap();
    assert_eq!(elsewhere.receive().await[3], "last");
}
