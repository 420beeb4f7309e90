//! A process that is killed again and again while it adds or handles the items of a queue loses none.
//!
//! `cargo xtask kills --source sqlite` makes a longer run and prints its figures.
#![cfg(all(feature = "sqlite", unix))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

mod kills;

use pipeline_sources::{
    Item,
    sqlite::{SqliteOptions, SqliteQueue},
};
use tempfile::TempDir;

impl kills::Queue for SqliteQueue {
    type Broker = Self;

    async fn open(address: &str) -> Self {
        let options = SqliteOptions::new().lease(kills::LEASE).ordered_by_key(true);
        Self::open_with(address, "numbers", options).await.unwrap()
    }

    fn broker(&self) -> Self {
        self.clone()
    }

    async fn push(&self, item: Item) {
        Self::push(self, item).await.unwrap();
    }

    async fn is_empty(&self) -> bool {
        self.backlog().await.unwrap().items == Some(0)
    }
}

fn file() -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("queue.db").to_str().unwrap().to_owned();
    (folder, path)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_loses_no_item_and_keeps_the_order_of_each_key() {
    if kills::inside::<SqliteQueue>().await {
        return;
    }
    let (_folder, path) = file();
    let test = "a_process_that_is_killed_loses_no_item_and_keeps_the_order_of_each_key";
    kills::handling::<SqliteQueue>(test, &path, kills::Order::OfEachKey).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_whose_push_has_returned_is_delivered_although_its_process_was_killed() {
    if kills::inside::<SqliteQueue>().await {
        return;
    }
    let (_folder, path) = file();
    let test = "an_item_whose_push_has_returned_is_delivered_although_its_process_was_killed";
    kills::pushing::<SqliteQueue>(test, &path).await;
}
