//! Messages to channels from tasks and timers, on a clock that the test turns.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

mod support;

use std::{future::pending, time::Duration};

use pipeline_test_support::{Client, reply, settle};
use pipeline_ws_sink::{
    Channel, ChannelContext, ChannelHandle, Endpoint, HandleInfo, JoinContext, JoinError, Mount,
    Payload, Reply, SendError, Stop, TooManyTimers, Topic,
};
use serde_json::{Value, json};
use support::{channels::NamedSocket, memory::MemoryServer};
use tokio::{
    io::DuplexStream,
    sync::mpsc,
    time::{Instant, sleep},
};

const T: &str = "worker:1";
const SECOND: Duration = Duration::from_secs(1);

/// Pushes what it is sent, and gives its handle to the test.
struct Worker;

/// One kind of message.
struct Note(u64);

/// Another kind.
enum Order {
    Stop,
    Crash,
    /// Never to handle anything again.
    Hang,
}

/// Comes again as soon as it has been handled, which takes its time.
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
            cx.send_after(Duration::ZERO, Note(1))?;
            cx.handle().try_send(Note(2))?;
        }
        cx.config().send(cx.handle()).await?;
        if params["refuse"].is_boolean() { Err(JoinError::unauthorized()) } else { Ok(Self) }
    }

    async fn handle_in(
        &mut self,
        event: &str,
        payload: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        match event {
            // A timer for each of these times, with its place in the list.
            "timers" => {
                let seconds: Vec<u32> = payload.parse()?;
                for (n, seconds) in (1..).zip(seconds) {
                    cx.send_after(SECOND * seconds, Note(n))?;
                }
                Ok(Reply::ok())
            }
            "as_many_as_there_may_be" => {
                for _ in 0..1024 {
                    cx.send_after(SECOND, Note(0))?;
                }
                let one_more = cx.send_after(SECOND, Note(0));
                assert_eq!(one_more, Err(TooManyTimers));
                Ok(Reply::ok())
            }
            "ping" => Ok(Reply::ok()),
            other => Err(Stop::unknown_event(other)),
        }
    }
}

impl HandleInfo<Note> for Worker {
    async fn handle_info(&mut self, note: Note, cx: &ChannelContext<Self>) -> Result<(), Stop> {
        assert!(cx.reference().is_null(), "no message of the client is being handled");
        Ok(cx.push("note", json!({ "n": note.0 }))?)
    }
}

impl HandleInfo<Again> for Worker {
    async fn handle_info(&mut self, _: Again, cx: &ChannelContext<Self>) -> Result<(), Stop> {
        sleep(Duration::from_millis(5)).await;
        Ok(cx.send_after(Duration::ZERO, Again)?)
    }
}

impl HandleInfo<Order> for Worker {
    async fn handle_info(&mut self, order: Order, _: &ChannelContext<Self>) -> Result<(), Stop> {
        match order {
            Order::Stop => Err(Stop::normal()),
            Order::Crash => panic!("told to crash"),
            Order::Hang => pending().await,
        }
    }
}

struct Office {
    server: MemoryServer,
    handles: mpsc::Receiver<ChannelHandle<Worker>>,
}

impl Office {
    fn open() -> Self {
        let (sender, handles) = mpsc::channel(10);
        let mount = Mount::new(NamedSocket).channel_with::<Worker>("worker:*", sender);
        // Time passes here, and nobody says anything.
        let mount = mount.timeout(SECOND * 1_000_000);
        Self { server: MemoryServer::start(Endpoint::builder().mount("/socket", mount)), handles }
    }

    /// A client that has joined with the join reference 1, and the handle of its channel.
    async fn joined(&mut self) -> (Client<DuplexStream>, ChannelHandle<Worker>) {
        let mut client = self.server.connect(1 << 16).await;
        client.join("1", T).await;
        (client, self.handle().await)
    }

    async fn handle(&mut self) -> ChannelHandle<Worker> {
        self.handles.recv().await.unwrap()
    }
}

fn note(n: u64) -> Value {
    json!(["1", null, T, "note", {"n": n}])
}

/// The answer to a message with the reference 2.
fn done() -> Value {
    reply("1", "2", T, "ok", json!({}))
}

fn closed() -> Value {
    json!(["1", "1", T, "phx_close", {}])
}

fn crashed() -> Value {
    json!(["1", "1", T, "phx_error", {"reason": "channel_crash"}])
}

#[tokio::test(start_paused = true)]
async fn a_task_sends_a_channel_messages_and_they_are_handled_in_order() {
    let mut office = Office::open();
    let (mut client, handle) = office.joined().await;
    let sending = tokio::spawn(async move {
        handle.send(Note(1)).await.unwrap();
        handle.try_send(Note(2)).unwrap();
        handle.clone().send(Note(3)).await.unwrap();
    });
    client.expect([note(1), note(2), note(3)]).await;
    sending.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_message_may_stop_a_channel_or_crash_it() {
    let mut office = Office::open();
    let (mut client, handle) = office.joined().await;
    handle.send(Order::Stop).await.unwrap();
    client.expect([closed()]).await;

    client.join("1", T).await;
    office.handle().await.send(Order::Crash).await.unwrap();
    client.expect([crashed()]).await;
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_has_ended_is_sent_nothing() {
    let mut office = Office::open();
    let (mut client, handle) = office.joined().await;
    client.send(json!(["1", "2", T, "phx_leave", {}])).await;
    client.expect([done(), closed()]).await;
    assert_eq!(handle.send(Note(1)).await, Err(SendError::Ended));
    assert_eq!(handle.try_send(Note(1)), Err(SendError::Ended));
    client.expect_nothing_else().await;

    // Nor is one that was not let in, or whose client is gone.
    client.send(json!(["1", "1", T, "phx_join", {"refuse": true}])).await;
    assert_eq!(client.receive().await[4]["status"], "error");
    settle().await;
    assert_eq!(office.handle().await.send(Note(1)).await, Err(SendError::Ended));
    client.join("1", T).await;
    let handle = office.handle().await;
    drop(client);
    settle().await;
    assert_eq!(handle.send(Note(1)).await, Err(SendError::Ended));
}

#[tokio::test(start_paused = true)]
async fn a_task_waits_while_256_messages_wait_and_is_told_when_the_channel_ends_meanwhile() {
    let mut office = Office::open();
    let (client, handle) = office.joined().await;
    handle.send(Order::Hang).await.unwrap();
    settle().await;
    for n in 0..256 {
        handle.try_send(Note(n)).unwrap();
    }
    assert_eq!(handle.try_send(Note(256)), Err(SendError::Full));
    let waiting = tokio::spawn(async move { handle.send(Note(256)).await });
    settle().await;
    assert!(!waiting.is_finished());
    // The channel has five seconds to end, and hangs.
    drop(client);
    assert_eq!(waiting.await.unwrap(), Err(SendError::Ended));
}

#[tokio::test(start_paused = true)]
async fn timers_fire_when_they_are_due_and_those_of_one_time_in_their_order() {
    let mut office = Office::open();
    let (mut client, _handle) = office.joined().await;
    client.send(json!(["1", "2", T, "timers", [20, 10, 20, 0]])).await;
    let set = Instant::now();
    client.expect([done(), note(4)]).await;
    assert_eq!(set.elapsed().as_secs(), 0);
    client.expect([note(2)]).await;
    assert_eq!(set.elapsed().as_secs(), 10);
    client.expect([note(1), note(3)]).await;
    assert_eq!(set.elapsed().as_secs(), 20);
}

#[tokio::test(start_paused = true)]
async fn a_channel_handles_messages_while_a_timer_waits_and_the_timer_first_when_it_is_due() {
    let mut office = Office::open();
    let (mut client, handle) = office.joined().await;
    client.send(json!(["1", "2", T, "timers", [10]])).await;
    client.expect([done()]).await;
    handle.send(Note(7)).await.unwrap();
    client.expect([note(7)]).await;
    // Both are there when the channel has its turn.
    tokio::time::advance(SECOND * 10).await;
    handle.try_send(Note(8)).unwrap();
    client.expect([note(1), note(8)]).await;
}

#[tokio::test(start_paused = true)]
async fn timers_that_are_always_due_keep_no_message_from_its_turn() {
    let mut office = Office::open();
    let (mut client, handle) = office.joined().await;
    // Two, so that one is due whenever the other has been handled.
    handle.send(Again).await.unwrap();
    handle.send(Again).await.unwrap();
    sleep(SECOND).await;
    client.send(json!(["1", "2", T, "ping", {}])).await;
    client.expect([done()]).await;
    handle.send(Note(1)).await.unwrap();
    client.expect([note(1)]).await;
}

#[tokio::test(start_paused = true)]
async fn a_timer_ends_with_its_channel() {
    let mut office = Office::open();
    let (mut client, _handle) = office.joined().await;
    client.send(json!(["1", "2", T, "timers", [10]])).await;
    client.send(json!(["1", "2", T, "phx_leave", {}])).await;
    client.expect([done(), done(), closed()]).await;
    client.join("1", T).await;
    client.send(json!(["1", "2", T, "timers", [10]])).await;
    client.send(json!(["1", "1", T, "phx_join", {}])).await;
    client.expect([done(), reply("1", "1", T, "ok", json!({})), closed()]).await;
    sleep(SECOND * 20).await;
    client.send(json!(["1", "2", T, "ping", {}])).await;
    client.expect([done()]).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_in_a_join_comes_after_its_answer() {
    let office = Office::open();
    let mut client = office.server.connect(4096).await;
    client.send(json!(["1", "1", T, "phx_join", {"early": true}])).await;
    client.expect([reply("1", "1", T, "ok", json!({})), note(1), note(2)]).await;
}

#[tokio::test(start_paused = true)]
async fn a_channel_has_1024_timers_and_no_more() {
    let mut office = Office::open();
    let (mut client, _handle) = office.joined().await;
    client.send(json!(["1", "2", T, "as_many_as_there_may_be", {}])).await;
    client.expect([done()]).await;
    client.expect(std::iter::repeat_n(note(0), 1024)).await;
    client.expect_nothing_else().await;
}
