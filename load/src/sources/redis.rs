//! The queue in a stream of Redis, and the same reads and acknowledgements by the bare client.

use std::hint::black_box;

use pipeline_sources::{
    Item,
    redis::{RedisOptions, RedisQueue},
};
use tokio::time::Instant;

use super::{PATIENCE, PAYLOAD, failed, handled, in_batches, new_name};
use crate::error::LoadError;

async fn filled(url: &str, items: u64) -> Result<RedisQueue, LoadError> {
    let options = RedisOptions::new().call_timeout(PATIENCE);
    let queue = RedisQueue::open_with(url, new_name(), options).map_err(failed)?;
    for first in (0..items).step_by(1000) {
        let some = first..items.min(first + 1000);
        let some = some.map(|_| Item::new(PAYLOAD.to_vec())).collect();
        queue.push_all(some).await.map_err(failed)?;
    }
    Ok(queue)
}

/// Handles items by a source.
pub(crate) async fn source(url: &str, at_once: usize, items: u64) -> Result<f64, LoadError> {
    handled(filled(url, items).await?, at_once, items).await
}

/// Reads by a consumer group, acknowledges and removes, with a call for each batch of either.
pub(crate) async fn bare(url: &str, at_once: usize, items: u64) -> Result<f64, LoadError> {
    let queue = filled(url, items).await?;
    let client = redis::Client::open(url).map_err(failed)?;
    let began = Instant::now();
    let mut connection = client.get_multiplexed_async_connection().await.map_err(failed)?;
    let name = queue.name();
    let mut create = redis::cmd("XGROUP");
    create.arg("CREATE").arg(name).arg("bare").arg(0);
    create.query_async::<()>(&mut connection).await.map_err(failed)?;
    in_batches(items, began, async || {
        type Read = Option<Vec<(String, Vec<(String, Vec<Vec<u8>>)>)>>;
        let mut connection = connection.clone();
        let mut read = redis::cmd("XREADGROUP");
        read.arg("GROUP").arg("bare").arg("one").arg("COUNT").arg(at_once);
        read.arg("STREAMS").arg(name).arg(">");
        let read: Read = read.query_async(&mut connection).await.map_err(failed)?;
        let entries = black_box(read).into_iter().flatten().flat_map(|(_, entries)| entries);
        let ids: Vec<_> = entries.map(|(id, _)| id).collect();
        // The other one has read the last.
        if !ids.is_empty() {
            let mut done = redis::pipe();
            done.cmd("XACK").arg(name).arg("bare").arg(&ids).ignore();
            done.cmd("XDEL").arg(name).arg(&ids).ignore();
            done.query_async::<()>(&mut connection).await.map_err(failed)?;
        }
        Ok(ids.len())
    })
    .await
}
