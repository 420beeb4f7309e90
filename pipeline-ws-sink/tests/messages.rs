//! Messages to channels from tasks and timers, on a paused clock.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

mod support;

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use pipeline_test_support::{reply, settle};
use pipeline_ws_sink::{
    Channel, Mount, Payload, Topic,
    channel::{
        ChannelContext, ChannelHandle, HandleMessage, JoinContext, JoinError, Reply, SendError,
        Stop, TooManyTimers,
    },
    channel_test::{TestChannel, TestEndpoint, TestSocket, assert_push, assert_reply, refute_push},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use support::channels::NamedSocket;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

const T: &str = "worker:1";
const SECOND: Duration = Duration::from_secs(1);

/// Pushes the messages that it receives, and passes its handle to the test before the join completes.
struct Worker;

/// A type of message.
#[derive(Serialize, Deserialize)]
struct Note {
    n: u64,
}

/// Another type.
enum Order {
    Stop,
    Crash,
    /// Never returns from the handler.
    Hang,
}

/// Sends itself again after it has been handled, which takes time.
struct Again;

impl Channel for Worker {
    type Socket = NamedSocket;
    type Config = mpsc::Sender<ChannelHandle<Worker>>;

    async fn join(
        _: &Topic,
        payload: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        let params: Value = payload.parse()?;
        if params["early"].is_boolean() {
            cx.send_after(Duration::ZERO, Note { n: 1 })?;
            cx.handle().try_send(Note { n: 2 })?;
        }
        cx.config().try_send(cx.handle())?;
        if params["refuse"].is_boolean() { Err(JoinError::unauthorized()) } else { Ok(Self) }
    }

    async fn handle_in(
        &mut self,
        event: &str,
        payload: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        match event {
            // A timer for each of these times, with its index.
            "timers" => {
                let seconds: Vec<u32> = payload.parse()?;
                for (n, seconds) in (1..).zip(seconds) {
                    cx.send_after(SECOND * seconds, Note { n })?;
                }
                Ok(Reply::ok())
            }
            "as_many_as_there_may_be" => {
                for _ in 0..1024 {
                    cx.send_after(SECOND, Note { n: 0 })?;
                }
                let one_more = cx.send_after(SECOND, Note { n: 0 });
                assert_eq!(one_more, Err(TooManyTimers));
                Ok(Reply::ok())
            }
            "ping" => Ok(Reply::ok()),
            other => Err(Stop::unknown_event(other)),
        }
    }
}

impl HandleMessage<Note> for Worker {
    async fn handle_message(&mut self, note: Note, cx: &ChannelContext<Self>) -> Result<(), Stop> {
        assert!(cx.reference().is_null(), "no message of the client is being handled");
        Ok(cx.push("note", note)?)
    }
}

impl HandleMessage<Again> for Worker {
    async fn handle_message(&mut self, _: Again, cx: &ChannelContext<Self>) -> Result<(), Stop> {
        sleep(Duration::from_millis(5)).await;
        Ok(cx.send_after(Duration::ZERO, Again)?)
    }
}

impl HandleMessage<Order> for Worker {
    async fn handle_message(&mut self, order: Order, _: &ChannelContext<Self>) -> Result<(), Stop> {
        match order {
            Order::Stop => Err(Stop::normal()),
            Order::Crash => panic!("crash requested"),
            Order::Hang => pending().await,
        }
    }
}

/// A client, and the handles of all channels that it joins.
fn client() -> (TestSocket, mpsc::Receiver<ChannelHandle<Worker>>) {
    let (sender, handles) = mpsc::channel(10);
    let mount = Mount::new(NamedSocket).channel_with::<Worker>("worker:*", sender);
    (TestEndpoint::new(mount).socket::<NamedSocket>(None, "ada".to_owned()), handles)
}

/// The handle of a client's channel.
async fn joined() -> TestChannel {
    client().0.join(T, json!({})).await.unwrap()
}

/// The next notes, in the order of arrival.
async fn notes(worker: &TestChannel, count: usize) -> Vec<u64> {
    let mut notes = Vec::new();
    while notes.len() < count {
        let Note { n } = assert_push!(worker, "note", Note { .. }, within: SECOND * 30);
        notes.push(n);
    }
    notes
}

/// Sends an event, and waits until it has been handled.
async fn handled(worker: &TestChannel, event: &str, payload: Value) {
    let sent = worker.push(event, payload);
    assert_reply!(worker, sent, "ok", {});
}

#[tokio::test(start_paused = true)]
async fn messages_of_a_task_are_handled_in_order() {
    let worker = joined().await;
    let handle = worker.handle::<Worker>();
    let sending = tokio::spawn(async move {
        handle.send(Note { n: 1 }).await.unwrap();
        handle.try_send(Note { n: 2 }).unwrap();
        handle.clone().send(Note { n: 3 }).await.unwrap();
    });
    assert_eq!(notes(&worker, 3).await, [1, 2, 3]);
    sending.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_message_may_stop_a_channel_or_crash_it() {
    let worker = joined().await;
    worker.handle::<Worker>().send(Order::Stop).await.unwrap();
    assert_push!(worker, "phx_close");
    assert_eq!(worker.exit_reason().await.to_string(), "normal");

    let worker = joined().await;
    worker.handle::<Worker>().send(Order::Crash).await.unwrap();
    assert_eq!(worker.exit_reason().await.to_string(), "panicked: crash requested");
    assert_push!(worker, "phx_error", == json!({"reason": "channel_crash"}));
}

#[tokio::test(start_paused = true)]
async fn sending_to_an_ended_channel_fails() {
    let (socket, mut handles) = client();
    let worker = socket.join(T, json!({})).await.unwrap();
    let handle = handles.recv().await.unwrap();
    worker.leave();
    worker.exit_reason().await;
    assert_eq!(handle.send(Note { n: 1 }).await, Err(SendError::Ended));
    assert_eq!(handle.try_send(Note { n: 1 }), Err(SendError::Ended));
    refute_push!(worker, "note");

    // The same holds for a refused channel, and for one whose client has disconnected.
    socket.join(T, json!({"refuse": true})).await.unwrap_err();
    settle().await;
    let handle = handles.recv().await.unwrap();
    assert_eq!(handle.send(Note { n: 1 }).await, Err(SendError::Ended));
    let worker = socket.join(T, json!({})).await.unwrap();
    worker.close().await;
    let handle = handles.recv().await.unwrap();
    assert_eq!(handle.send(Note { n: 1 }).await, Err(SendError::Ended));
}

#[tokio::test(start_paused = true)]
async fn a_send_waits_while_256_messages_are_queued_and_fails_when_the_channel_ends() {
    let worker = joined().await;
    let handle = worker.handle::<Worker>();
    handle.send(Order::Hang).await.unwrap();
    settle().await;
    for n in 0..256 {
        handle.try_send(Note { n }).unwrap();
    }
    assert_eq!(handle.try_send(Note { n: 256 }), Err(SendError::Full));
    let waiting = tokio::spawn(async move { handle.send(Note { n: 256 }).await });
    settle().await;
    assert!(!waiting.is_finished());
    // The channel has five seconds to end, and hangs.
    worker.close().await;
    assert_eq!(waiting.await.unwrap(), Err(SendError::Ended));
}

#[tokio::test(start_paused = true)]
async fn timers_fire_when_due_and_in_order_at_the_same_time() {
    let worker = joined().await;
    let set = Instant::now();
    handled(&worker, "timers", json!([20, 10, 20, 0])).await;
    assert_eq!(notes(&worker, 1).await, [4]);
    assert_eq!(set.elapsed().as_secs(), 0);
    assert_eq!(notes(&worker, 1).await, [2]);
    assert_eq!(set.elapsed().as_secs(), 10);
    assert_eq!(notes(&worker, 2).await, [1, 3]);
    assert_eq!(set.elapsed().as_secs(), 20);
}

#[tokio::test(start_paused = true)]
async fn messages_are_handled_before_a_timer_and_a_due_timer_comes_first() {
    let worker = joined().await;
    let handle = worker.handle::<Worker>();
    handled(&worker, "timers", json!([10])).await;
    handle.send(Note { n: 7 }).await.unwrap();
    assert_eq!(notes(&worker, 1).await, [7]);
    // Both are ready when the channel runs.
    tokio::time::advance(SECOND * 10).await;
    handle.try_send(Note { n: 8 }).unwrap();
    assert_eq!(notes(&worker, 2).await, [1, 8]);
}

#[tokio::test(start_paused = true)]
async fn timers_that_are_always_due_do_not_starve_messages() {
    let worker = joined().await;
    let handle = worker.handle::<Worker>();
    // Two, so that one is due whenever the other has been handled.
    handle.send(Again).await.unwrap();
    handle.send(Again).await.unwrap();
    sleep(SECOND).await;
    handled(&worker, "ping", json!({})).await;
    handle.send(Note { n: 1 }).await.unwrap();
    assert_eq!(notes(&worker, 1).await, [1]);
}

#[tokio::test(start_paused = true)]
async fn a_timer_ends_with_its_channel() {
    let (socket, _handles) = client();
    let left = socket.join(T, json!({})).await.unwrap();
    handled(&left, "timers", json!([10])).await;
    left.leave();
    left.exit_reason().await;
    let replaced = socket.join(T, json!({})).await.unwrap();
    handled(&replaced, "timers", json!([10])).await;
    let worker = socket.join(T, json!({})).await.unwrap();
    replaced.exit_reason().await;
    for channel in [left, replaced, worker] {
        refute_push!(channel, "note", within: SECOND * 20);
    }
}

#[tokio::test(start_paused = true)]
async fn messages_sent_in_a_join_come_after_its_reply() {
    let (socket, _handles) = client();
    socket.send(json!(["1", "1", T, "phx_join", {"early": true}]));
    let note = |n: u64| json!(["1", null, T, "note", {"n": n}]);
    for message in [reply("1", "1", T, "ok", json!({})), note(1), note(2)] {
        assert_eq!(socket.frame().await.json(), message);
    }
}

#[tokio::test(start_paused = true)]
async fn a_channel_has_1024_timers_and_no_more() {
    let worker = joined().await;
    handled(&worker, "as_many_as_there_may_be", json!({})).await;
    assert_eq!(notes(&worker, 1024).await, vec![0; 1024]);
    refute_push!(worker, "note", within: SECOND * 30);
}

/// A channel whose state is a number that all share.
struct Numbered(Arc<AtomicU64>);

/// Pushes the state.
struct Load;

impl Channel for Numbered {
    type Socket = NamedSocket;
    type Config = Arc<AtomicU64>;

    async fn join(
        t: &Topic,
        _: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        let number = cx.config().clone();
        cx.reply(json!({ "n": number.load(SeqCst) }));
        cx.send_after(Duration::ZERO, Load)?;
        // As another task may, after the state was read.
        number.store(1, SeqCst);
        cx.pubsub().broadcast(t.as_str(), "changed", json!({ "n": 1 }))?;
        Ok(Self(number))
    }
}

impl HandleMessage<Load> for Numbered {
    async fn handle_message(&mut self, _: Load, cx: &ChannelContext<Self>) -> Result<(), Stop> {
        Ok(cx.push("state", json!({ "n": self.0.load(SeqCst) }))?)
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_during_a_join_is_in_a_state_that_is_read_after_it_and_nowhere_else() {
    const T: &str = "number:1";
    let mount = Mount::new(NamedSocket).channel_with::<Numbered>("number:*", Arc::default());
    let kit = TestEndpoint::new(mount);
    let socket = kit.socket::<NamedSocket>(None, "ada".to_owned());
    socket.send(json!(["1", "1", T, "phx_join", {}]));
    let state = json!(["1", null, T, "state", {"n": 1}]);
    for message in [reply("1", "1", T, "ok", json!({"n": 0})), state] {
        assert_eq!(socket.frame().await.json(), message);
    }
    kit.endpoint().broadcast(T, "changed", json!({ "n": 2 })).unwrap();
    let next = json!([null, null, T, "changed", {"n": 2}]);
    assert_eq!(socket.frame().await.json(), next, "the first change is not received");
}
