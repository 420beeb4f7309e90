//! A pipeline that skips work for topics without subscribers.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod support;

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;

use pipeline_core::{
    Pipeline,
    source::{Queue, QueueOptions, queue},
    step::map,
    subscription::SubscribeOptions,
    supervisor::ConsumerSupervisor,
};
use pipeline_ws_sink::{
    Endpoint, PubSub,
    presence::TrackerOptions,
    pubsub::{FilterSubscribed, PreparedBroadcast},
};
use serde_json::json;
use support::{channels::endpoint_with, cluster::Cluster, memory::MemoryServer};
use tokio::time::sleep;

/// Items name a room, and an expensive stage processes them.
struct Rooms {
    items: Queue<&'static str>,
    _pipeline: Pipeline,
    /// The items that reached the expensive stage.
    enriched: Arc<Mutex<Vec<&'static str>>>,
}

/// The topic of an item.
type RoomOf = fn(&&'static str) -> &'static str;

impl Rooms {
    fn start(pubsub: &PubSub) -> Self {
        Self::start_with(pubsub, pubsub.filter_subscribed(|room| *room))
    }

    fn start_with(pubsub: &PubSub, filter: FilterSubscribed<&'static str, RoomOf>) -> Self {
        let (items, producer) = queue(QueueOptions::new());
        let enriched = Arc::<Mutex<Vec<_>>>::default();
        let note = enriched.clone();
        let enrich = move |room| {
            note.lock().push(room);
            room
        };
        let push = |room: &&str| PreparedBroadcast::new(room, "news", json!({ "for": room }));
        let pipeline = Pipeline::builder("news")
            .producer(producer)
            .producer_consumer(filter, SubscribeOptions::new())
            .producer_consumer(map(enrich), SubscribeOptions::new())
            .consumer_supervisor(
                ConsumerSupervisor::new(pubsub.broadcast_worker(push)),
                SubscribeOptions::new().max_demand(1).min_demand(0),
            )
            .start()
            .unwrap();
        Self { items, _pipeline: pipeline, enriched }
    }

    /// The expensive stage is for what is sent here only.
    fn start_here(pubsub: &PubSub) -> Self {
        Self::start_with(pubsub, pubsub.filter_subscribed_here(|room| *room))
    }

    async fn push(&self, rooms: &[&'static str]) {
        for room in rooms {
            self.items.push(room).await.unwrap();
        }
    }

    fn enriched(&self) -> Vec<&'static str> {
        self.enriched.lock().clone()
    }
}

#[tokio::test(start_paused = true)]
async fn items_pass_while_their_topic_has_a_subscriber() {
    let server = MemoryServer::start(endpoint_with(|mount| mount).0);
    let rooms = Rooms::start(server.endpoint.pubsub());
    let mut client = server.connect(1 << 16).await;
    client.join("1", "room:a").await;
    rooms.push(&["room:b", "room:a", "room:b", "room:a", "room:c"]).await;
    for _ in 0..2 {
        assert_eq!(client.receive().await[4], json!({ "for": "room:a" }));
    }
    // And no others: the next pushed item is the next that arrives.
    client.join("2", "room:b").await;
    rooms.push(&["room:c", "room:b"]).await;
    assert_eq!(client.receive().await[4], json!({ "for": "room:b" }));
    assert_eq!(rooms.enriched(), ["room:a", "room:a", "room:b"]);
    assert_eq!(server.recorded.counters("pipeline.events_without_subscribers")[0].1, 4);
}

#[tokio::test(start_paused = true)]
async fn a_subscribed_task_counts_until_it_unsubscribes() {
    let server = MemoryServer::start(endpoint_with(|mount| mount).0);
    let pubsub = server.endpoint.pubsub();
    let rooms = Rooms::start(pubsub);
    let (mut gone, mut here) = (pubsub.subscribe("room:a"), pubsub.subscribe("room:b"));
    rooms.push(&["room:a"]).await;
    assert_eq!(gone.recv().await.unwrap().topic(), "room:a");
    drop(gone);
    rooms.push(&["room:a", "room:b"]).await;
    assert_eq!(here.recv().await.unwrap().topic(), "room:b");
    assert_eq!(rooms.enriched(), ["room:a", "room:b"]);
}

fn sharing(cluster: &Cluster, name: &str) -> Endpoint {
    let builder = Endpoint::builder().adapter(cluster.node(name));
    builder.sync_subscriptions(TrackerOptions::new()).build().unwrap()
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn subscribers_of_other_nodes_count_where_nodes_share_them() {
    let cluster = Cluster::default();
    let (here, there) = (sharing(&cluster, "here"), sharing(&cluster, "there"));
    let has_subscribers = || here.pubsub().has_subscribers("room:a");
    sleep(SECOND * 10).await;
    assert!(!has_subscribers());
    let first = there.subscribe("room:a");
    sleep(SECOND * 2).await;
    assert!(has_subscribers());
    // A subscribe and an unsubscribe within a period change nothing.
    drop(first);
    let second = there.subscribe("room:a");
    sleep(SECOND * 2).await;
    assert!(has_subscribers());
    drop(second);
    sleep(SECOND * 2).await;
    assert!(!has_subscribers());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_has_just_started_drops_no_items_for_other_nodes() {
    let cluster = Cluster::default();
    let there = sharing(&cluster, "there");
    let _listening = there.subscribe("room:a");
    sleep(SECOND * 10).await;
    let here = sharing(&cluster, "here");
    let has_subscribers = |topic| here.pubsub().has_subscribers(topic);
    for _ in 0..100 {
        assert!(has_subscribers("room:a"));
        sleep(SECOND / 10).await;
    }
    assert!(!has_subscribers("room:b"), "the node has received it by now");
}

#[tokio::test(start_paused = true)]
async fn a_lost_message_at_the_start_hides_no_subscriber() {
    let cluster = Cluster::default();
    let there = sharing(&cluster, "there");
    let _listening = there.subscribe("room:a");
    sleep(SECOND * 10).await;
    cluster.down(true);
    let here = sharing(&cluster, "here");
    sleep(SECOND).await;
    cluster.down(false);
    for _ in 0..100 {
        assert!(here.pubsub().has_subscribers("room:a"));
        sleep(SECOND / 10).await;
    }
    assert!(!here.pubsub().has_subscribers("room:b"), "the node has received it by now");
}

#[tokio::test(start_paused = true)]
async fn while_a_node_is_silent_every_topic_counts_until_it_is_back_or_removed() {
    let cluster = Cluster::default();
    let (here, there) = (sharing(&cluster, "here"), sharing(&cluster, "there"));
    let has_subscribers = |topic| here.pubsub().has_subscribers(topic);
    let _listening = there.subscribe("room:a");
    sleep(SECOND * 10).await;
    cluster.down(true);
    sleep(SECOND * 40).await;
    let _later = there.subscribe("room:b");
    assert!(has_subscribers("room:a") && has_subscribers("room:b") && has_subscribers("room:c"));
    cluster.down(false);
    for _ in 0..300 {
        assert!(has_subscribers("room:a") && has_subscribers("room:b"));
        sleep(SECOND / 10).await;
    }
    assert!(!has_subscribers("room:c"));
    cluster.down(true);
    sleep(SECOND * 1_300).await;
    assert!(!has_subscribers("room:a"), "the node was removed");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_shuts_down_cleanly_is_removed_at_once() {
    let cluster = Cluster::default();
    let (here, there) = (sharing(&cluster, "here"), sharing(&cluster, "there"));
    let _listening = there.subscribe("room:a");
    sleep(SECOND * 10).await;
    assert!(here.pubsub().has_subscribers("room:a"));
    drop(there);
    sleep(SECOND * 60).await;
    assert!(!here.pubsub().has_subscribers("room:a"));
}

#[tokio::test]
async fn where_nodes_do_not_share_it_every_topic_counts() {
    let cluster = Cluster::default();
    let here = cluster.join("here");
    assert!(here.pubsub().has_subscribers("room:a"));
    let alone = Endpoint::builder().sync_subscriptions(TrackerOptions::new()).build().unwrap();
    assert!(!alone.pubsub().has_subscribers("room:a"), "there are no other nodes");
}

/// What is sent here only, other nodes do not receive, so they are no reason to work it out: neither where nothing is known of
/// them, nor where it is known that they listen.
#[tokio::test(start_paused = true)]
async fn for_what_is_sent_here_only_the_subscribers_of_other_nodes_do_not_count() {
    let cluster = Cluster::default();
    let blind = cluster.join("blind");
    let (here, there) = (sharing(&cluster, "here"), sharing(&cluster, "there"));
    let _elsewhere = there.subscribe("room:a");
    sleep(SECOND * 10).await;
    for node in [&blind, &here] {
        let pubsub = node.pubsub();
        assert!(pubsub.has_subscribers("room:a"), "a broadcast to all would reach one");
        assert!(!pubsub.has_subscribers_here("room:a"));
        let mut listening = pubsub.subscribe("room:b");
        assert!(pubsub.has_subscribers_here("room:b"));
        let rooms = Rooms::start_here(pubsub);
        rooms.push(&["room:a", "room:b"]).await;
        assert_eq!(listening.recv().await.unwrap().topic(), "room:b");
        assert_eq!(rooms.enriched(), ["room:b"]);
    }
}
