//! What became of a push: how many sockets it was written to.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod support;

use std::time::Duration;

use futures::{FutureExt, poll};
use pipeline_core::ExitReason;
use pipeline_test_support::{PATIENCE, settle};
use pipeline_ws_sink::{
    Channel, Endpoint, Mount, Payload, PubSub, Topic,
    channel::{ChannelContext, HandleMessage, JoinContext, JoinError, Reply, Stop},
    channel_test::{TestEndpoint, assert_push},
    mount::{LongPoll, WhenFull},
    pubsub::{
        Adapter, AdapterError, Broadcast, Delivered, LocalNode, PreparedBroadcast, PushOutcome,
    },
};
use serde_json::json;
use support::{
    channels::{NamedSocket, endpoint_with},
    memory::MemoryServer,
    poller::Poller,
    server::Server,
};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

const T: &str = "room:lobby";
const SECOND: Duration = Duration::from_secs(1);

fn server(options: impl FnOnce(Mount<NamedSocket>) -> Mount<NamedSocket>) -> MemoryServer {
    MemoryServer::start(endpoint_with(options).0)
}

fn news() -> PreparedBroadcast {
    PreparedBroadcast::new(T, "news", json!({ "text": "x".repeat(100) })).unwrap()
}

async fn deliver(pubsub: &PubSub) -> PushOutcome {
    pubsub.deliver(news()).await.unwrap()
}

/// The outcome with these numbers.
fn numbers(delivered: Delivered) -> [usize; 4] {
    let Delivered { written, dropped, closed, pending, .. } = delivered;
    [written, dropped, closed, pending]
}

#[tokio::test(start_paused = true)]
async fn every_socket_of_the_topic_is_counted_once_it_has_taken_the_frame() {
    let server = server(|mount| mount);
    let mut clients = Vec::new();
    for _ in 0..3 {
        // Its stream takes a part of the frame.
        let mut client = server.connect(64).await;
        client.join("1", T).await;
        clients.push(client);
    }
    let mut outside = server.connect(1 << 16).await;
    outside.join("1", "room:other").await;
    let mut outcome = deliver(server.endpoint.pubsub()).await;
    for (read, client) in clients.iter_mut().enumerate() {
        settle().await;
        assert!(poll!(&mut outcome).is_pending());
        assert_eq!(numbers(outcome.so_far()), [read, 0, 0, 3 - read]);
        assert_eq!(client.receive().await[3], "news");
    }
    let delivered = outcome.await;
    assert_eq!(numbers(delivered), [3, 0, 0, 0]);
    assert!(delivered.is_complete() && !delivered.is_unheard());
}

#[tokio::test(start_paused = true)]
async fn a_push_to_a_topic_without_clients_is_unheard() {
    let server = server(|mount| mount);
    // A task that listens is no client.
    let mut listening = server.endpoint.subscribe(T);
    for outcome in [
        server.endpoint.pubsub().deliver(news()).await.unwrap(),
        server.endpoint.pubsub().deliver_now(news()).unwrap(),
    ] {
        let delivered = outcome.now_or_never().unwrap();
        assert_eq!(delivered, Delivered::default());
        assert!(delivered.is_unheard());
        assert_eq!(listening.recv().await.unwrap().event(), "news");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_disconnects_has_not_taken_what_waited_for_it() {
    let server = server(|mount| mount);
    let mut client = server.connect(64).await;
    client.join("1", T).await;
    let outcome = deliver(server.endpoint.pubsub()).await;
    drop(client);
    let delivered = outcome.await;
    assert_eq!(numbers(delivered), [0, 0, 1, 0]);
    assert!(delivered.is_unheard(), "its only client has gone");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_reads_holds_an_outcome_no_longer_than_its_socket_lives() {
    let server = server(|mount| mount.send_timeout(Duration::from_secs(30)));
    let mut client = server.connect(64).await;
    client.join("1", T).await;
    let pubsub = server.endpoint.pubsub();
    let (late, outcome) = (deliver(pubsub).await, deliver(pubsub).await);
    let delivered = late.within(Duration::from_secs(5)).await;
    assert_eq!(numbers(delivered), [0, 0, 0, 1]);
    let delivered = timeout(Duration::from_secs(120), outcome).await.unwrap();
    assert_eq!(numbers(delivered), [0, 0, 1, 0]);
    drop(client);
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_costs_what_its_policy_says() {
    for policy in
        [WhenFull::DropOldest, WhenFull::DropNewest, WhenFull::KeepLatest, WhenFull::Disconnect]
    {
        let server = server(|mount| mount.max_outbox(2, 1 << 20).when_full(policy));
        let mut client = server.connect(64).await;
        client.join("1", T).await;
        let pubsub = server.endpoint.pubsub();
        let mut outcomes = Vec::new();
        for _ in 0..10 {
            outcomes.push(pubsub.deliver_now(news()).unwrap());
        }
        settle().await;
        let so_far = outcomes.iter().map(PushOutcome::so_far).map(numbers);
        let sum = so_far.fold([0; 4], |sum, one| std::array::from_fn(|at| sum[at] + one[at]));
        assert_eq!(sum.iter().sum::<usize>(), 10, "{policy:?}: {sum:?}");
        // One may be on its way, and two wait.
        let is_kept = policy != WhenFull::Disconnect;
        assert_eq!((7..=8).contains(&sum[1]), is_kept, "{policy:?}: {sum:?}");
        drop(client);
        for outcome in outcomes {
            let delivered = outcome.await;
            assert_eq!(numbers(delivered).iter().sum::<usize>(), 1, "{policy:?}");
            assert_eq!(delivered.pending, 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_polling_client_has_taken_a_push_with_the_answer_that_carries_it() {
    let server = server(|mount| mount.longpoll(LongPoll::new().window(Duration::from_secs(1))));
    let poller = Poller::connect(&server, "vsn=2.0.0&name=ada").await;
    poller.join(T).await;
    let pubsub = server.endpoint.pubsub();
    let mut outcome = deliver(pubsub).await;
    settle().await;
    assert!(poll!(&mut outcome).is_pending());
    let (messages, delivered) = tokio::join!(poller.messages(), outcome);
    assert_eq!(messages[0][3], "news");
    assert_eq!(numbers(delivered), [1, 0, 0, 0]);

    // An answer is text.
    let bytes = PreparedBroadcast::new(T, "bytes", Payload::binary(vec![1])).unwrap();
    let outcome = pubsub.deliver(bytes).await.unwrap();
    assert_eq!(poller.poll().await["messages"], json!([]));
    let delivered = outcome.await;
    assert_eq!((numbers(delivered), delivered.unsupported), ([0; 4], 1));

    // A session that nothing polls ends.
    let outcome = deliver(pubsub).await;
    assert_eq!(numbers(outcome.await), [0, 0, 1, 0]);
}

#[tokio::test]
async fn clients_of_the_first_version_are_counted_and_those_that_cannot_read_bytes_are_counted_apart()
 {
    let server = Server::start(endpoint_with(|mount| mount).0).await;
    let mut old = server.try_connect("name=ada").await.unwrap();
    old.send(json!({ "topic": T, "event": "phx_join", "payload": {}, "ref": "1" })).await;
    old.receive().await;
    let pubsub = server.endpoint.pubsub();
    let delivered = timeout(PATIENCE, deliver(pubsub).await).await.unwrap();
    assert_eq!(numbers(delivered), [1, 0, 0, 0]);
    let bytes = PreparedBroadcast::new(T, "bytes", Payload::binary(vec![1])).unwrap();
    let delivered = pubsub.deliver(bytes).await.unwrap().await;
    assert_eq!((numbers(delivered), delivered.unsupported), ([0; 4], 1));
    assert!(delivered.is_unheard());
}

#[tokio::test(start_paused = true)]
async fn what_an_intercepting_channel_pushes_to_its_client_is_counted() {
    let server = server(|mount| mount);
    let mut client = server.connect(1 << 16).await;
    client.join("1", T).await;
    let broadcast = PreparedBroadcast::new(T, "stamped", json!({})).unwrap();
    let delivered = server.endpoint.pubsub().deliver(broadcast).await.unwrap().await;
    assert_eq!((numbers(delivered), delivered.intercepted), ([1, 0, 0, 0], 1));
    assert_eq!(client.receive().await[3], "stamped");
    // A channel that crashes instead has lost it, while its socket is still there.
    let broadcast = PreparedBroadcast::new(T, "cursed", json!({})).unwrap();
    let delivered = server.endpoint.pubsub().deliver(broadcast).await.unwrap().await;
    assert_eq!((numbers(delivered), delivered.intercepted), ([0, 1, 0, 0], 0));
    assert!(!delivered.is_unheard() && !delivered.is_complete());
}

/// Intercepts all that it is sent, and never ends.
struct Stuck;

impl Channel for Stuck {
    type Socket = NamedSocket;
    type Config = ();

    const INTERCEPT: &'static [&'static str] = &["news"];

    async fn join(_: &Topic, _: Payload, _: &mut JoinContext<'_, Self>) -> Result<Self, JoinError> {
        Ok(Self)
    }

    async fn handle_out(
        &mut self,
        _: &str,
        _: Payload,
        _: &ChannelContext<Self>,
    ) -> Result<(), Stop> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_intercepting_channel_has_lost_is_dropped_and_what_it_has_not_begun_is_closed() {
    let mount = || Mount::new(NamedSocket).channel::<Stuck>("room:*");
    // With too many broadcasts it crashes: the one that it has begun ends with it, and all others are lost.
    let server = MemoryServer::start(Endpoint::builder().mount("/socket", mount()));
    let mut client = server.connect(1 << 16).await;
    client.join("1", T).await;
    let mut outcomes = Vec::new();
    for _ in 0..300 {
        outcomes.push(server.endpoint.pubsub().deliver_now(news()).unwrap());
        settle().await;
    }
    assert_eq!(numbers(outcomes[0].so_far()), [0, 0, 0, 1]);
    assert_eq!(numbers(outcomes[299].so_far()), [0, 1, 0, 0]);
    drop(client);
    let mut sum = [0; 4];
    for outcome in outcomes {
        let delivered = timeout(PATIENCE, outcome).await.unwrap();
        assert_eq!(numbers(delivered).iter().sum::<usize>(), 1, "{delivered:?}");
        assert_eq!(delivered.intercepted, 0);
        sum = std::array::from_fn(|at| sum[at] + numbers(delivered)[at]);
    }
    assert!(sum[0] == 0 && sum[1] > 0 && sum[2] > 0 && sum[3] == 0, "{sum:?}");

    // One whose client leaves has handled nothing.
    let server = MemoryServer::start(Endpoint::builder().mount("/socket", mount()));
    let mut client = server.connect(1 << 16).await;
    client.join("1", T).await;
    let outcomes =
        [deliver(server.endpoint.pubsub()).await, deliver(server.endpoint.pubsub()).await];
    settle().await;
    assert_eq!(numbers(outcomes[1].so_far()), [0, 0, 0, 1]);
    drop(client);
    for outcome in outcomes {
        let delivered = timeout(PATIENCE, outcome).await.unwrap();
        assert_eq!((numbers(delivered), delivered.intercepted), ([0, 0, 1, 0], 0));
        assert!(delivered.is_unheard());
    }
}

/// Intercepts pushes, and works with what its client sends, until it ends in some way.
struct Busy;

impl Channel for Busy {
    type Socket = NamedSocket;
    type Config = ();

    const INTERCEPT: &'static [&'static str] = &["news"];

    async fn join(_: &Topic, _: Payload, _: &mut JoinContext<'_, Self>) -> Result<Self, JoinError> {
        Ok(Self)
    }

    async fn handle_in(
        &mut self,
        event: &str,
        _: Payload,
        _: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        match event {
            "crash" => {
                sleep(SECOND).await;
                Err(Stop::because(ExitReason::failed("a curse")))
            }
            "nap" => {
                sleep(SECOND).await;
                Ok(Reply::none())
            }
            _ => std::future::pending().await,
        }
    }

    async fn handle_out(
        &mut self,
        _: &str,
        _: Payload,
        _: &ChannelContext<Self>,
    ) -> Result<(), Stop> {
        std::future::pending().await
    }

    async fn terminate(&mut self, _: &ExitReason, _: &ChannelContext<Self>) {
        sleep(SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_an_intercepting_channel_that_ends_is_dropped_unless_its_socket_has_ended() {
    let mount = Mount::new(NamedSocket).channel::<Busy>("room:*");
    let server = MemoryServer::start(Endpoint::builder().mount("/socket", mount));
    let pubsub = server.endpoint.pubsub();
    let mut client = server.connect(1 << 16).await;
    let expect = async |outcomes: Vec<PushOutcome>, expected: [usize; 4]| {
        for outcome in outcomes {
            let delivered = timeout(PATIENCE, outcome).await.unwrap();
            assert_eq!((numbers(delivered), delivered.intercepted), (expected, 0));
        }
    };

    // A crash for another message: while that is handled, and while the channel terminates.
    client.join("1", T).await;
    client.send(json!(["1", "2", T, "crash", {}])).await;
    settle().await;
    let mut outcomes = vec![deliver(pubsub).await];
    sleep(SECOND * 3 / 2).await;
    outcomes.push(deliver(pubsub).await);
    settle().await;
    assert_eq!(numbers(outcomes[0].so_far()), [0, 0, 0, 1]);
    assert_eq!(numbers(outcomes[1].so_far()), [0, 0, 0, 1]);
    expect(outcomes, [0, 1, 0, 0]).await;
    assert_eq!(client.receive().await[3], "phx_error");

    // The client joins again, with one in work and one that waits.
    client.join("3", T).await;
    let outcomes = vec![deliver(pubsub).await, deliver(pubsub).await];
    settle().await;
    client.join("4", T).await;
    expect(outcomes, [0, 1, 0, 0]).await;
    assert_eq!(client.receive().await[3], "phx_close");

    // The client leaves, and may join again.
    client.send(json!(["4", "5", T, "nap", {}])).await;
    client.send(json!(["4", "6", T, "phx_leave", {}])).await;
    settle().await;
    expect(vec![deliver(pubsub).await], [0, 1, 0, 0]).await;
    assert_eq!(client.receive().await[3], "phx_reply");
    assert_eq!(client.receive().await[3], "phx_close");

    // Its socket ends.
    client.join("7", T).await;
    client.send(json!(["7", "8", T, "work", {}])).await;
    settle().await;
    let outcomes = vec![deliver(pubsub).await, deliver(pubsub).await];
    settle().await;
    drop(client);
    expect(outcomes, [0, 0, 1, 0]).await;
}

#[tokio::test(start_paused = true)]
async fn the_outcome_is_known_with_the_last_of_thousands() {
    const CLIENTS: usize = 3000;
    let server = server(|mount| mount);
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = server.connect(64).await;
        client.join("1", T).await;
        clients.push(client);
    }
    let mut outcome = deliver(server.endpoint.pubsub()).await;
    let mut last = clients.pop().unwrap();
    for client in &mut clients {
        client.receive().await;
    }
    settle().await;
    assert!(poll!(&mut outcome).is_pending());
    assert_eq!(numbers(outcome.so_far()), [CLIENTS - 1, 0, 0, 1]);
    last.receive().await;
    assert_eq!(numbers(outcome.await), [CLIENTS, 0, 0, 0]);
}

/// Other nodes that take everything.
struct Others;

impl Adapter for Others {
    fn node_name(&self) -> &str {
        "this"
    }

    fn start(&self, _: LocalNode) {}

    fn broadcast(&self, _: &Broadcast) -> Result<(), AdapterError> {
        Ok(())
    }

    fn direct_broadcast(&self, _: &str, _: &Broadcast) -> Result<(), AdapterError> {
        Ok(())
    }
}

#[tokio::test]
async fn a_push_that_other_nodes_may_have_clients_for_is_not_unheard() {
    let endpoint = Endpoint::builder().adapter(Others).build().unwrap();
    let delivered = deliver(endpoint.pubsub()).await.await;
    assert_eq!((numbers(delivered), delivered.elsewhere), ([0; 4], true));
    assert!(!delivered.is_unheard());
}

/// Hands tickets to its client, and says whether it has them.
struct Tickets;

/// Hand over a ticket, and answer with what became of it.
struct HandOver(oneshot::Sender<PushOutcome>);

impl Channel for Tickets {
    type Socket = NamedSocket;
    type Config = ();

    async fn join(_: &Topic, _: Payload, _: &mut JoinContext<'_, Self>) -> Result<Self, JoinError> {
        Ok(Self)
    }
}

impl HandleMessage<HandOver> for Tickets {
    async fn handle_message(
        &mut self,
        HandOver(answer): HandOver,
        cx: &ChannelContext<Self>,
    ) -> Result<(), Stop> {
        let _ = answer.send(cx.deliver("ticket", json!({ "seat": 12 }))?);
        Ok(())
    }
}

#[tokio::test]
async fn a_channel_learns_whether_its_own_client_has_taken_a_push() {
    let kit = TestEndpoint::new(Mount::new(NamedSocket).channel::<Tickets>("tickets:*"));
    let socket = kit.connect(json!({ "name": "ada" })).await.unwrap();
    let channel = socket.join("tickets:1", json!({})).await.unwrap();
    let (answer, outcome) = oneshot::channel();
    channel.handle::<Tickets>().send(HandOver(answer)).await.unwrap();
    let delivered = outcome.await.unwrap().await;
    assert_push!(channel, "ticket", { "seat": 12 });
    assert_eq!(numbers(delivered), [1, 0, 0, 0]);
}
