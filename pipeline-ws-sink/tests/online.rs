//! A pipeline that does no work for people who are away.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod support;

use std::sync::Arc;

use parking_lot::Mutex;

use pipeline_core::{
    ConsumerSupervisor, Pipeline, Queue, QueueOptions, SubscribeOptions, map, queue,
};
use pipeline_ws_sink::{PubSub, Push};
use serde_json::json;
use support::{channels::endpoint_with, memory::MemoryServer};

/// Items go to the room that they name, and are made dear on the way.
struct Rooms {
    items: Queue<&'static str>,
    _pipeline: Pipeline,
    /// What was made dear.
    enriched: Arc<Mutex<Vec<&'static str>>>,
}

impl Rooms {
    fn start(pubsub: &PubSub) -> Self {
        let (items, producer) = queue(QueueOptions::new());
        let enriched = Arc::<Mutex<Vec<_>>>::default();
        let note = enriched.clone();
        let enrich = move |room| {
            note.lock().push(room);
            room
        };
        let push = |room: &&str| Push::new(room, "news", json!({ "for": room }));
        let pipeline = Pipeline::builder("news")
            .producer(producer)
            .producer_consumer(
                pubsub.only_online(|room: &&'static str| *room),
                SubscribeOptions::new(),
            )
            .producer_consumer(map(enrich), SubscribeOptions::new())
            .consumer_supervisor(
                ConsumerSupervisor::new(pubsub.pusher(push)),
                SubscribeOptions::new().max_demand(1).min_demand(0),
            )
            .start()
            .unwrap();
        Self { items, _pipeline: pipeline, enriched }
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
async fn items_go_on_while_somebody_has_joined_their_topic() {
    let server = MemoryServer::start(endpoint_with(|mount| mount).0);
    let rooms = Rooms::start(server.endpoint.pubsub());
    let mut client = server.connect(1 << 16).await;
    client.join("1", "room:a").await;
    rooms.push(&["room:b", "room:a", "room:b", "room:a", "room:c"]).await;
    for _ in 0..2 {
        assert_eq!(client.receive().await[4], json!({ "for": "room:a" }));
    }
    // And no more: what is pushed next is the next that arrives.
    client.join("2", "room:b").await;
    rooms.push(&["room:c", "room:b"]).await;
    assert_eq!(client.receive().await[4], json!({ "for": "room:b" }));
    assert_eq!(rooms.enriched(), ["room:a", "room:a", "room:b"]);
    assert_eq!(server.recorded.counters("pipeline.events_offline")[0].1, 4);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_listens_is_somebody_too_until_it_no_longer_does() {
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
