//! Reads orders from a durable queue, adds the price to each, and writes them to a file in batches. An
//! order is acknowledged when its batch is written, so `kill -9` loses none.
//!
//! It needs the features `fs`, `io-util` and `time` of tokio, besides those in the README.

use std::{env::args, error::Error, time::Duration};

use pipeline::{
    Pipeline,
    processing::{Batch, Batcher, Failure, Message, Processors},
    shutdown_signal,
    sources::{SourceOptions, sqlite::SqliteQueue},
};
use serde::Deserialize;
use tokio::{fs::File, io::AsyncWriteExt, time::sleep};

#[derive(Deserialize)]
struct Order {
    article: String,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let file = args().nth(1).ok_or("which file has the queue?")?;
    let orders = SqliteQueue::open(&file, "orders").await?.source(SourceOptions::new());
    let add_price = async |order: &mut Message<Order>| with_price(&order.article).await;
    let write = async move |batch: &mut Batch<Order, String>| {
        let lines: String = batch.outputs().map(String::as_str).collect();
        let mut priced = File::options().create(true).append(true).open(file + ".priced").await?;
        priced.write_all(lines.as_bytes()).await?;
        Ok(priced.sync_all().await?)
    };
    let pipeline = Pipeline::of_messages("orders")
        .source(orders.json::<Order>())
        .processors(Processors::from_fn(add_price).concurrency(20))
        .batcher(Batcher::from_fn(write).size(100).within(Duration::from_millis(200)))
        .start()?;
    shutdown_signal()?.await;
    println!("{}", pipeline.drain(Duration::from_secs(10)).await);
    Ok(())
}

/// A line with the price, as another service would tell it.
async fn with_price(article: &str) -> Result<String, Failure> {
    sleep(Duration::from_millis(5)).await;
    let known = [("tea", 450), ("cup", 1250)].into_iter().find(|(name, _)| *name == article);
    let (_, cents) = known.ok_or_else(|| Failure::new("no such article").give_up())?;
    Ok(format!("{article} {cents}\n"))
}
