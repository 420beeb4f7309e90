//! From a durable source to a user's socket: an item is gone when its push has come far enough, and not
//! before.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::{collections::HashSet, path::PathBuf, time::Duration};

use pipeline::{
    Pipeline,
    backoff::{Backoff, Jitter},
    processing::{Message, Processors},
    sources::{
        Item, SourceOptions,
        sqlite::{SqliteOptions, SqliteQueue},
    },
    ws::{
        Channel, Endpoint, Mount, Payload, Topic,
        channel::{ChannelContext, JoinContext, JoinError, Reply, Stop},
        channel_test::{TestChannel, TestEndpoint, assert_push, assert_reply, refute_push},
        pubsub::{Acknowledge, Expired, NoSubscribers, Push},
    },
};
use pipeline_test_support::{AnySocket, PATIENCE};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

/// A user's channel, whose client confirms.
struct User;

impl Channel for User {
    type Socket = AnySocket;
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

fn endpoint() -> TestEndpoint {
    let mount = Mount::new(AnySocket).channel::<User>("user:*");
    TestEndpoint::of(Endpoint::builder().mount("/socket", mount).build().unwrap())
}

async fn join(kit: &TestEndpoint, topic: &str) -> TestChannel {
    kit.connect(json!({})).await.unwrap().join(topic, json!({})).await.unwrap()
}

/// A queue whose items are delivered again quickly.
async fn queue(path: PathBuf) -> SqliteQueue {
    let options = SqliteOptions::new().lease(Duration::from_millis(300));
    SqliteQueue::open_with(path, "pushes", options).await.unwrap()
}

fn file() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("queue.db");
    (folder, path)
}

fn quick() -> Backoff {
    Backoff::new(Duration::from_millis(20), Duration::from_millis(20)).jitter(Jitter::None)
}

/// Pushes the items of a queue to the users that are their keys.
fn pushing(
    queue: &SqliteQueue,
    kit: &TestEndpoint,
    level: Acknowledge,
    absent: NoSubscribers,
) -> Pipeline {
    pushing_again(queue, kit, level, absent, quick())
}

/// The same, and what is kept is looked at again after these delays.
fn pushing_again(
    queue: &SqliteQueue,
    kit: &TestEndpoint,
    level: Acknowledge,
    absent: NoSubscribers,
    look_again: Backoff,
) -> Pipeline {
    let push = kit.endpoint().pubsub().push_messages(|item: &Message<Item>| {
        let user = item.key.as_deref().unwrap_or_default();
        let text = String::from_utf8(item.payload.to_vec())?;
        Ok(Push::new(format!("user:{user}"), "news", json!({ "text": text })))
    });
    let push = push.acknowledge(level).no_subscribers(absent).look_again(look_again);
    let options = SourceOptions::new().redeliver_after(quick());
    Pipeline::of_messages("pushes")
        .source(queue.source(options))
        .processors(Processors::new(push).concurrency(4))
        .start()
        .unwrap()
}

async fn items(queue: &SqliteQueue) -> Option<u64> {
    queue.backlog().await.unwrap().items
}

async fn items_left(queue: &SqliteQueue) -> u64 {
    items(queue).await.unwrap()
}

async fn until_empty(queue: &SqliteQueue) {
    let waiting = async {
        while items(queue).await != Some(0) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_is_pushed_again_after_a_death_and_gone_once_it_is_confirmed() {
    let ((_folder, path), kit) = (file(), endpoint());
    let (queue, ada) = (queue(path).await, join(&kit, "user:ada").await);
    queue.push(Item::new("hello").key("ada")).await.unwrap();
    let level = Acknowledge::Confirmed { within: PATIENCE };
    let killed = pushing(&queue, &kit, level, NoSubscribers::Done);
    let before = assert_push!(ada, "news", { "text": "hello", "ack": _ }, within: PATIENCE);
    // Dropping a pipeline ends its tasks at once, as the death of its process does.
    drop(killed);
    let second = pushing(&queue, &kit, level, NoSubscribers::Done);
    let after = assert_push!(ada, "news", { "text": "hello", "ack": _ }, within: PATIENCE);
    assert_ne!(before["ack"], after["ack"]);
    let late = ada.push("ack", json!({ "id": before["ack"] }));
    assert_reply!(ada, late, "error", { "reason": "unknown" });
    assert_eq!(items(&queue).await, Some(1));
    let ack = ada.push("ack", json!({ "id": after["ack"] }));
    assert_reply!(ada, ack, "ok");
    until_empty(&queue).await;
    second.drain(PATIENCE).await;
    refute_push!(ada, "news");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_are_gone_once_they_are_written() {
    let ((_folder, path), kit) = (file(), endpoint());
    let (queue, ada) = (queue(path).await, join(&kit, "user:ada").await);
    for n in 0..100 {
        queue.push(Item::new(n.to_string()).key("ada")).await.unwrap();
    }
    let pipeline = pushing(&queue, &kit, Acknowledge::Written, NoSubscribers::Done);
    until_empty(&queue).await;
    pipeline.drain(PATIENCE).await;
    for n in 0..100 {
        assert_push!(ada, "news", { "text": n.to_string() });
    }
    refute_push!(ada, "news");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_not_confirm_delay_no_other_however_many_they_are() {
    const USERS: usize = 30;
    // Many more than the four processors.
    const SILENT: usize = 20;
    let ((_folder, path), kit) = (file(), endpoint());
    let queue = queue(path).await;
    let topic = |user: usize| format!("user:{user}");
    let mut clients = Vec::new();
    for user in 0..USERS {
        clients.push(join(&kit, &topic(user)).await);
    }
    let items = (0..USERS).map(|user| Item::new("hello").key(user.to_string())).collect();
    queue.push_all(items).await.unwrap();
    // They do not confirm in the test's time.
    let level = Acknowledge::Confirmed { within: PATIENCE * 10 };
    let pipeline = pushing(&queue, &kit, level, NoSubscribers::Done);
    let mut unconfirmed = Vec::new();
    for client in &clients[..SILENT] {
        unconfirmed.push(assert_push!(client, "news", { "ack": _ }, within: PATIENCE));
    }
    for client in &clients[SILENT..] {
        let news = assert_push!(client, "news", { "ack": _ }, within: PATIENCE);
        let ack = client.push("ack", json!({ "id": news["ack"] }));
        assert_reply!(client, ack, "ok");
    }
    let others_done = async {
        while items_left(&queue).await > SILENT as u64 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, others_done).await.unwrap();
    // They still wait, for their own clients alone, and a drain waits for them.
    let draining = tokio::spawn(pipeline.drain(PATIENCE));
    for (client, news) in clients.iter().zip(unconfirmed) {
        let ack = client.push("ack", json!({ "id": news["ack"] }));
        assert_reply!(client, ack, "ok");
    }
    until_empty(&queue).await;
    assert!(draining.await.unwrap().is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_for_a_user_who_is_not_there_waits_for_the_user_or_is_given_up() {
    let ((_folder, path), kit) = (file(), endpoint());
    let queue = queue(path).await;
    let keep = |keep_for| NoSubscribers::Keep { keep_for, then: Expired::GiveUp };
    queue.push(Item::new("hello").key("ada")).await.unwrap();
    let pipeline = pushing(&queue, &kit, Acknowledge::Written, keep(PATIENCE * 10));
    // More looks than deliveries that fail would be allowed.
    let looks = || pipeline.snapshot().stages[0].source.as_ref().map_or(0, |seen| seen.fetched);
    let looked = async {
        while looks() < 12 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, looked).await.unwrap();
    assert_eq!(items(&queue).await, Some(1));
    let ada = join(&kit, "user:ada").await;
    assert_push!(ada, "news", { "text": "hello" }, within: PATIENCE);
    until_empty(&queue).await;
    pipeline.drain(PATIENCE).await;

    queue.push(Item::new("too late").key("joe")).await.unwrap();
    let pipeline = pushing(&queue, &kit, Acknowledge::Written, keep(Duration::from_millis(100)));
    until_empty(&queue).await;
    pipeline.drain(PATIENCE).await;
    let dead = queue.dead_letters(0, 10).await.unwrap();
    let reasons: Vec<_> = dead.iter().map(|dead| &*dead.reason).collect();
    assert_eq!(reasons, ["no client has joined the topic"]);
}

/// Keeps items, and looks at none of them again in a test's time.
const KEEP: NoSubscribers =
    NoSubscribers::Keep { keep_for: Duration::from_secs(86_400), then: Expired::GiveUp };

fn seldom() -> Backoff {
    Backoff::new(PATIENCE * 100, PATIENCE * 100).jitter(Jitter::None)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_wakes_what_is_kept_for_its_topic_and_nothing_else() {
    let ((_folder, path), kit) = (file(), endpoint());
    let queue = queue(path).await;
    for n in 0..10 {
        queue.push(Item::new(n.to_string()).key("ada")).await.unwrap();
        queue.push(Item::new(n.to_string()).key("joe")).await.unwrap();
    }
    let pipeline = pushing_again(&queue, &kit, Acknowledge::Written, KEEP, seldom());
    let kept = || pipeline.snapshot().stages[0].source.as_ref().map_or(0, |seen| seen.released);
    let all_kept = async {
        while kept() < 20 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, all_kept).await.unwrap();
    for (user, left) in [("ada", 10), ("joe", 0)] {
        let client = join(&kit, &format!("user:{user}")).await;
        let mut texts = HashSet::new();
        for _ in 0..10 {
            let news = assert_push!(client, "news", { "text": _ }, within: PATIENCE);
            texts.insert(news["text"].to_string());
        }
        assert_eq!(texts.len(), 10);
        let others_kept = async {
            while items_left(&queue).await > left {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, others_kept).await.unwrap();
        assert_eq!(items_left(&queue).await, left);
    }
    pipeline.drain(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_push_is_left_behind_by_a_user_who_joins_while_it_is_kept() {
    let ((_folder, path), kit) = (file(), endpoint());
    let queue = queue(path).await;
    let pipeline = pushing_again(&queue, &kit, Acknowledge::Written, KEEP, seldom());
    let mut clients = Vec::new();
    for user in 0..40_u64 {
        queue.push(Item::new("hello").key(user.to_string())).await.unwrap();
        // At any moment from before the push until after the delay is stored.
        sleep(Duration::from_micros(user * 50)).await;
        clients.push(join(&kit, &format!("user:{user}")).await);
    }
    for client in clients {
        assert_push!(client, "news", { "text": "hello" }, within: PATIENCE);
    }
    until_empty(&queue).await;
    pipeline.drain(PATIENCE).await;
}
