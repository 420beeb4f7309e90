//! Broadcasts between tasks, and to other nodes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

mod support;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::{FutureExt, StreamExt};
use pipeline_test_support::{eventually, reply};
use pipeline_ws_sink::{
    Endpoint, PubSub,
    payload::PayloadError,
    pubsub::{
        Adapter, AdapterError, Broadcast, BroadcastError, Lagged, LocalNode, PreparedBroadcast,
        UntilReceives,
    },
};
use serde_json::json;
use support::{
    channels::endpoint,
    cluster::{Cluster, events, nothing},
    server::Server,
};
use tokio::sync::Semaphore;

const T: &str = "room:lobby";

#[test]
fn a_task_receives_the_broadcasts_of_its_topic() {
    let endpoint = Endpoint::builder().build().unwrap();
    let pubsub = endpoint.pubsub();
    let mut lobby = pubsub.subscribe(T);
    assert_eq!(lobby.topic(), T);
    pubsub.broadcast("room:other", "elsewhere", json!({})).unwrap();
    pubsub.broadcast(T, "news", json!({ "n": 1 })).unwrap();
    let news = lobby.recv().now_or_never().unwrap().unwrap();
    assert_eq!(
        (news.topic(), news.event(), news.payload().json()),
        (T, "news", Some(r#"{"n":1}"#))
    );
    assert_eq!(events(&mut lobby), nothing());
}

#[test]
fn two_subscriptions_receive_twice_and_a_dropped_one_nothing() {
    let endpoint = Endpoint::builder().build().unwrap();
    let (mut first, second) = (endpoint.subscribe(T), endpoint.subscribe(T));
    assert_ne!(first.id(), second.id());
    endpoint.broadcast(T, "news", json!({})).unwrap();
    drop(second);
    endpoint.broadcast(T, "more", json!({})).unwrap();
    assert_eq!(events(&mut first), ["news", "more"]);
}

#[test]
fn a_task_can_broadcast_to_all_but_itself() {
    let endpoint = Endpoint::builder().build().unwrap();
    let pubsub = endpoint.pubsub();
    let (mut first, mut second) = (pubsub.subscribe(T), pubsub.subscribe(T));
    pubsub.broadcast_from(first.id(), T, "far", json!({})).unwrap();
    pubsub.local_broadcast_from(first.id(), T, "near", json!({})).unwrap();
    pubsub.local_broadcast(T, "all", json!({})).unwrap();
    assert_eq!(events(&mut first), ["all"]);
    assert_eq!(events(&mut second), ["far", "near", "all"]);
}

#[tokio::test]
async fn a_subscription_is_a_stream() {
    let endpoint = Endpoint::builder().build().unwrap();
    let subscription = endpoint.subscribe(T);
    let reading = tokio::spawn(async { subscription.take(2).collect::<Vec<_>>().await });
    tokio::task::yield_now().await;
    endpoint.broadcast(T, "one", json!({})).unwrap();
    endpoint.broadcast(T, "two", json!({})).unwrap();
    let read = reading.await.unwrap();
    let events: Vec<_> = read.iter().map(|read| read.as_ref().unwrap().event()).collect();
    assert_eq!(events, ["one", "two"]);
}

#[test]
fn a_slow_task_receives_the_number_of_missed_broadcasts() {
    let endpoint = Endpoint::builder().build().unwrap();
    let mut subscription = endpoint.subscribe(T);
    for n in 0..1026 {
        endpoint.broadcast(T, "news", json!({ "n": n })).unwrap();
    }
    let mut next = || subscription.recv().now_or_never().unwrap();
    assert_eq!(next(), Err(Lagged(2)));
    assert_eq!(next().unwrap().payload().json(), Some(r#"{"n":2}"#));
}

/// Every way to broadcast rejects an invalid payload.
#[test]
fn a_payload_that_is_not_an_object_is_not_sent() {
    let cluster = Cluster::default();
    let (here, _) = (cluster.join("here"), cluster.join("there"));
    let mut subscription = here.subscribe(T);
    let (pubsub, list, id) = (here.pubsub(), json!([1]), subscription.id());
    for sent in [
        pubsub.broadcast(T, "news", &list),
        pubsub.broadcast_from(id, T, "news", &list),
        pubsub.local_broadcast(T, "news", &list),
        pubsub.local_broadcast_from(id, T, "news", &list),
        pubsub.direct_broadcast("here", T, "news", &list),
    ] {
        assert!(
            matches!(sent, Err(BroadcastError::Payload(PayloadError::NotAnObject))),
            "{sent:?}"
        );
    }
    let node = LocalNode::of(pubsub);
    let delivered = node.deliver(&Broadcast::new(T, "news", list).unwrap());
    assert!(matches!(delivered, Err(PayloadError::NotAnObject)), "{delivered:?}");
    assert_eq!(events(&mut subscription), nothing());
    assert_eq!(cluster.sent(), nothing());
}

#[test]
fn a_broadcast_reaches_each_node_once_and_the_others_first() {
    let cluster = Cluster::default();
    let [here, there, far] = ["here", "there", "far"].map(|name| cluster.join(name));
    let mut listening = [&here, &there, &far].map(|endpoint| endpoint.subscribe(T));
    cluster.witness(here.subscribe(T));
    here.broadcast(T, "news", json!({})).unwrap();
    // The receiving node does not forward it.
    assert_eq!(cluster.sent(), ["here to all: news"]);
    for subscription in &mut listening {
        assert_eq!(events(subscription), ["news"]);
    }
}

#[test]
fn an_excluded_subscriber_is_skipped_here_and_other_nodes_receive_it() {
    let cluster = Cluster::default();
    let (here, there) = (cluster.join("here"), cluster.join("there"));
    let (mut sender, mut near, mut far) =
        (here.subscribe(T), here.subscribe(T), there.subscribe(T));
    here.broadcast_from(sender.id(), T, "news", json!({})).unwrap();
    assert_eq!(events(&mut sender), nothing());
    assert_eq!(events(&mut near), ["news"]);
    assert_eq!(events(&mut far), ["news"]);
}

#[test]
fn local_broadcasts_stay_on_their_node() {
    let cluster = Cluster::default();
    let (here, there) = (cluster.join("here"), cluster.join("there"));
    let (mut near, mut far) = (here.subscribe(T), there.subscribe(T));
    here.pubsub().local_broadcast(T, "one", json!({})).unwrap();
    // A subscriber of another endpoint does not count here.
    here.pubsub().local_broadcast_from(far.id(), T, "two", json!({})).unwrap();
    assert_eq!(cluster.sent(), nothing());
    assert_eq!(events(&mut near), ["one", "two"]);
    assert_eq!(events(&mut far), nothing());
}

#[test]
fn if_the_adapter_fails_the_broadcast_is_not_sent_here_either() {
    let cluster = Cluster::default();
    let here = cluster.join("here");
    let (mut first, mut second) = (here.subscribe(T), here.subscribe(T));
    cluster.down(true);
    let pubsub = here.pubsub();
    for sent in [
        pubsub.broadcast(T, "news", json!({})),
        pubsub.broadcast_from(first.id(), T, "news", json!({})),
        pubsub.direct_broadcast("here", T, "news", json!({})),
    ] {
        let Err(BroadcastError::Adapter(error)) = sent else { panic!("{sent:?}") };
        assert_eq!(error.to_string(), "failed to reach the other nodes: the network is down");
    }
    assert_eq!(events(&mut second), nothing());
    pubsub.local_broadcast(T, "local", json!({})).unwrap();
    assert_eq!(events(&mut first), ["local"]);
}

#[test]
fn a_broadcast_can_go_to_one_node_even_the_own() {
    let cluster = Cluster::default();
    let [here, there, far] = ["here", "there", "far"].map(|name| cluster.join(name));
    let [mut near, mut chosen, mut other] =
        [&here, &there, &far].map(|endpoint| endpoint.subscribe(T));
    here.pubsub().direct_broadcast("there", T, "one", json!({})).unwrap();
    here.pubsub().direct_broadcast("here", T, "two", json!({})).unwrap();
    assert_eq!(cluster.sent(), ["here to there: one", "here to here: two"]);
    assert_eq!(events(&mut near), ["two"]);
    assert_eq!(events(&mut chosen), ["one"]);
    assert_eq!(events(&mut other), nothing());
}

#[test]
fn without_an_adapter_a_direct_broadcast_fails() {
    let endpoint = Endpoint::builder().build().unwrap();
    let sent = endpoint.pubsub().direct_broadcast("here", T, "news", json!({}));
    let Err(BroadcastError::Adapter(error)) = sent else { panic!("{sent:?}") };
    assert_eq!(error.cause().to_string(), "there is no adapter");
}

#[test]
fn messages_after_the_drop_of_the_endpoint_are_discarded() {
    let endpoint = Endpoint::builder().build().unwrap();
    let pubsub: PubSub = endpoint.pubsub().clone();
    let node = LocalNode::of(&pubsub);
    let news = Broadcast::new(T, "news", json!({})).unwrap();
    drop(endpoint);
    let mut subscription = pubsub.subscribe(T);
    node.deliver(&news).unwrap();
    assert_eq!(events(&mut subscription), ["news"], "the subscription is still open");
    drop(pubsub);
    node.deliver(&news).unwrap();
    assert_eq!(events(&mut subscription), nothing());
}

/// An adapter that sends nothing and follows topics.
#[derive(Default)]
struct Following(Arc<OnceLock<LocalNode>>);

impl Adapter for Following {
    fn node_name(&self) -> &str {
        "following"
    }

    fn start(&self, node: LocalNode) {
        self.0.set(node).unwrap();
    }

    fn follows_topics(&self) -> bool {
        true
    }

    fn broadcast(&self, _: &Broadcast) -> Result<(), AdapterError> {
        Ok(())
    }

    fn direct_broadcast(&self, _: &str, _: &Broadcast) -> Result<(), AdapterError> {
        Ok(())
    }
}

#[tokio::test]
async fn an_adapter_learns_of_the_first_and_the_last_subscriber_of_a_topic() {
    let node = Arc::new(OnceLock::new());
    let endpoint = Endpoint::builder().adapter(Following(node.clone())).build().unwrap();
    let node = node.get().unwrap().clone();
    let changed = || node.changed_topics().now_or_never();
    assert_eq!(changed(), None, "nothing has changed");
    let first = endpoint.subscribe(T);
    assert_eq!(changed().flatten().unwrap(), [T.into()]);
    assert!(node.has_subscribers(T));
    let second = endpoint.subscribe(T);
    drop(first);
    assert_eq!(changed(), None, "the topic has had a subscriber all the time");
    drop(second);
    drop(endpoint.subscribe(T));
    drop(endpoint.subscribe("phx_presence:room"));
    assert_eq!(changed().flatten().unwrap(), [T.into()], "once, and not for trackers");
    assert!(!node.has_subscribers(T));

    let waiting = tokio::spawn({
        let node = node.clone();
        async move { node.changed_topics().await }
    });
    tokio::task::yield_now().await;
    let third = endpoint.subscribe("room:3");
    assert_eq!(waiting.await.unwrap().unwrap(), ["room:3".into()]);
    let waiting = tokio::spawn({
        let node = node.clone();
        async move { node.changed_topics().await }
    });
    tokio::task::yield_now().await;
    drop((third, endpoint));
    assert!(waiting.await.unwrap().is_none_or(|topics| topics == ["room:3".into()]));
    assert_eq!(changed(), Some(None), "the endpoint is gone");
}

/// An adapter that says when a join may be answered.
struct Gated {
    node: Arc<OnceLock<LocalNode>>,
    gate: Arc<Semaphore>,
    /// Whether it panics when it is asked, and when it is waited for.
    panics: [bool; 2],
}

impl Gated {
    fn with(panics: [bool; 2]) -> Self {
        Self { node: Arc::default(), gate: Arc::new(Semaphore::new(0)), panics }
    }
}

impl Adapter for Gated {
    fn node_name(&self) -> &str {
        "gated"
    }

    fn start(&self, node: LocalNode) {
        self.node.set(node).unwrap();
    }

    fn follows_topics(&self) -> bool {
        true
    }

    fn until_receives(&self, topic: &str) -> Option<UntilReceives> {
        assert!(!self.panics[0]);
        let (gate, panics) = (self.gate.clone(), self.panics[1]);
        (topic == T || panics).then(|| -> UntilReceives {
            Box::pin(async move {
                assert!(!panics);
                gate.acquire().await.unwrap().forget();
            })
        })
    }

    fn broadcast(&self, _: &Broadcast) -> Result<(), AdapterError> {
        Ok(())
    }

    fn direct_broadcast(&self, _: &str, _: &Broadcast) -> Result<(), AdapterError> {
        Ok(())
    }
}

#[tokio::test]
async fn a_join_is_answered_when_the_adapter_receives_its_topic() {
    let adapter = Gated::with([false, false]);
    let (node, gate) = (adapter.node.clone(), adapter.gate.clone());
    let server = Server::start(endpoint().0.adapter(adapter)).await;
    let node = node.get().unwrap();
    let mut ada = server.connect("name=ada").await;
    ada.join("1", "room:free").await;
    assert_eq!(node.changed_topics().await.unwrap(), ["room:free".into()]);

    ada.send(json!(["2", "2", T, "phx_join", {}])).await;
    assert_eq!(node.changed_topics().await.unwrap(), [T.into()]);
    assert!(node.has_subscribers(T), "for the adapter");
    server.endpoint.local_broadcast(T, "early", json!({})).unwrap();
    ada.expect_nothing_else().await;
    gate.add_permits(1);
    ada.expect([reply("2", "2", T, "ok", json!({}))]).await;
    assert!(node.has_subscribers(T));

    // A client that leaves meanwhile, and the topic that it has not joined.
    let mut bob = server.connect("name=bob").await;
    ada.send(json!(["2", "3", T, "phx_leave", {}])).await;
    eventually(|| !node.has_subscribers(T)).await;
    bob.send(json!(["1", "1", T, "phx_join", {}])).await;
    eventually(|| node.has_subscribers(T)).await;
    drop(bob);
    gate.add_permits(1);
    eventually(|| !node.has_subscribers(T)).await;
    assert_eq!(node.changed_topics().await.unwrap(), [T.into()]);
}

#[tokio::test]
async fn a_join_is_answered_if_the_adapter_panics() {
    for panics in [[true, false], [false, true]] {
        let server = Server::start(endpoint().0.adapter(Gated::with(panics))).await;
        server.connect("name=ada").await.join("1", T).await;
    }
}

#[test]
fn messages_of_trackers_and_disconnects_are_for_every_node() {
    let broadcast = |topic, event| Broadcast::new(topic, event, json!({})).unwrap();
    assert!(broadcast("phx_presence:room", "tracker").is_for_every_node());
    assert!(broadcast("users:7", "disconnect").is_for_every_node());
    assert!(!broadcast(T, "news").is_for_every_node());
}

#[tokio::test]
async fn a_timed_broadcast_of_another_node_is_timed_over_its_whole_way() {
    let cluster = Cluster::default();
    let here = cluster.join("here");
    let there = Server::start(endpoint().0.adapter(cluster.node("there"))).await;
    let mut ada = there.connect("name=ada").await;
    ada.join("1", T).await;
    let enqueued_at = tokio::time::Instant::now() - Duration::from_millis(250);
    here.broadcast_timed(enqueued_at, T, "news", json!({})).unwrap();
    ada.expect([json!([null, null, T, "news", {}])]).await;
    let delivered = there.recorded.samples("pipeline.push_delivered");
    assert!(matches!(delivered[..], [ms] if ms >= 250.0), "{delivered:?}");
    let written = there.recorded.samples("pipeline.push_written");
    assert!(matches!(written[..], [ms] if ms < delivered[0]), "{written:?}");
}

#[tokio::test]
async fn a_timed_broadcast_can_stay_on_its_node() {
    let cluster = Cluster::default();
    let here = Server::start(endpoint().0.adapter(cluster.node("here"))).await;
    let there = cluster.join("there");
    let mut elsewhere = there.subscribe(T);
    let mut ada = here.connect("name=ada").await;
    ada.join("1", T).await;
    let now = tokio::time::Instant::now();
    here.endpoint.local_broadcast_timed(now, T, "news", json!({})).unwrap();
    ada.expect([json!([null, null, T, "news", {}])]).await;
    let prepared = || PreparedBroadcast::new(T, "more", json!({})).unwrap().here_only();
    here.endpoint.pubsub().broadcast_when_ready(&prepared().timed(now)).await.unwrap();
    ada.expect([json!([null, null, T, "more", {}])]).await;
    let outcome = here.endpoint.pubsub().deliver_now(prepared()).unwrap();
    ada.expect([json!([null, null, T, "more", {}])]).await;
    assert!(!outcome.within(Duration::from_secs(5)).await.elsewhere);
    assert_eq!(here.recorded.samples("pipeline.push_delivered").len(), 2);
    assert_eq!((events(&mut elsewhere), cluster.sent()), (Vec::new(), Vec::new()));
}

#[tokio::test]
async fn clients_of_other_nodes_receive_broadcasts_and_disconnects() {
    let cluster = Cluster::default();
    let here = Server::start(endpoint().0.adapter(cluster.node("here"))).await;
    let there = Server::start(endpoint().0.adapter(cluster.node("there"))).await;
    let (mut ada, mut phone) = (here.connect("name=ada").await, there.connect("name=ada").await);
    let mut joe = there.connect("name=joe").await;
    for client in [&mut ada, &mut phone, &mut joe] {
        client.join("1", T).await;
    }
    here.endpoint.broadcast(T, "news", json!({})).unwrap();
    for client in [&mut ada, &mut phone, &mut joe] {
        client.expect([json!([null, null, T, "news", {}])]).await;
    }

    assert_eq!(here.endpoint.disconnect("named:ada"), 1, "only sockets of this node are counted");
    assert_eq!((ada.closed().await, phone.closed().await), (1001, 1001));
    there.endpoint.broadcast("named:joe", "disconnect", json!({})).unwrap();
    assert_eq!(joe.closed().await, 1001);
    assert_eq!(
        cluster.sent().iter().filter(|line| line.ends_with("disconnect")).count(),
        2,
        "each was sent once"
    );
}

#[tokio::test]
async fn sockets_are_disconnected_here_even_if_the_adapter_fails() {
    let cluster = Cluster::default();
    let here = Server::start(endpoint().0.adapter(cluster.node("here"))).await;
    let mut ada = here.connect("name=ada").await;
    here.open_sockets(1).await;
    cluster.down(true);
    assert_eq!(here.endpoint.disconnect("named:ada"), 1);
    assert_eq!(ada.closed().await, 1001);
}
