//! The queue of RabbitMQ, and the same deliveries and acknowledgements by the bare client.

use std::hint::black_box;

use futures::StreamExt;
use lapin::{
    Connection, ConnectionProperties,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions},
    types::FieldTable,
};
use pipeline_sources::rabbitmq::RabbitQueue;
use tokio::time::Instant;

use super::{BATCHES, failed, handled, new_name, pushed};
use crate::error::LoadError;

async fn filled(url: &str, items: u64) -> Result<RabbitQueue, LoadError> {
    let queue = RabbitQueue::new(url, &new_name()).map_err(failed)?;
    let adding = queue.clone();
    pushed(items, move |item| {
        let queue = adding.clone();
        async move { queue.push(item).await.map(drop) }
    })
    .await?;
    Ok(queue)
}

/// Handles items by a source.
pub(crate) async fn source(url: &str, at_once: usize, items: u64) -> Result<f64, LoadError> {
    handled(filled(url, items).await?, at_once, items).await
}

/// Consumes items, of which as many batches are on the way at the same time as with a source, and acknowledges
/// those of each batch together. At the end it waits until the server has read this.
pub(crate) async fn bare(url: &str, at_once: usize, items: u64) -> Result<f64, LoadError> {
    let queue = filled(url, items).await?;
    let began = Instant::now();
    let connected = Connection::connect(url, ConnectionProperties::default()).await;
    let connection = connected.map_err(failed)?;
    let channel = connection.create_channel().await.map_err(failed)?;
    let prefetch = u16::try_from(BATCHES * at_once).unwrap_or(u16::MAX);
    channel.basic_qos(prefetch, BasicQosOptions::default()).await.map_err(failed)?;
    let (options, name) = (BasicConsumeOptions::default(), queue.name());
    let consumer =
        channel.basic_consume(name.into(), "bare".into(), options, FieldTable::default());
    let mut consumer = consumer.await.map_err(failed)?;
    let mut handled = 0;
    while handled < items {
        let Some(delivered) = consumer.next().await else {
            return Err(LoadError::Missing { arrived: handled, of: items });
        };
        let tag = black_box(delivered.map_err(failed)?).delivery_tag;
        handled += 1;
        if handled % at_once as u64 == 0 || handled == items {
            let all_before = BasicAckOptions { multiple: true };
            channel.basic_ack(tag, all_before).await.map_err(failed)?;
        }
    }
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let read = channel.queue_declare(name.into(), passive, FieldTable::default());
    read.await.map_err(failed)?;
    let took = began.elapsed();
    connection.close(200, "done".into()).await.map_err(failed)?;
    Ok(items as f64 / took.as_secs_f64())
}
