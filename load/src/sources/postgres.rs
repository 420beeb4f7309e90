//! The queue in a table of PostgreSQL, and the same reads and removals by the bare client.

use std::hint::black_box;

use pipeline_sources::{Item, postgres::PostgresQueue};
use tokio::time::Instant;
use tokio_postgres::{NoTls, Row};

use super::{PAYLOAD, failed, handled, in_batches, new_name};
use crate::error::LoadError;

/// Leases items.
const LEASE: &str = "
UPDATE pipeline_items SET available_at = now() + interval '30 seconds', lease = 1,
    deliveries = deliveries + 1
WHERE id IN (
    SELECT id FROM pipeline_items WHERE queue = $1 AND available_at <= now()
    ORDER BY available_at, id LIMIT $2 FOR UPDATE SKIP LOCKED
)
RETURNING id, payload, enqueued_at::text, deliveries";

const REMOVE: &str = "DELETE FROM pipeline_items WHERE id = ANY($1)";

async fn filled(url: &str, items: u64) -> Result<PostgresQueue, LoadError> {
    let queue = PostgresQueue::open(url, new_name()).map_err(failed)?;
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

/// Leases and removes items by the bare client, with a statement for each batch of either.
pub(crate) async fn bare(url: &str, at_once: usize, items: u64) -> Result<f64, LoadError> {
    let queue = filled(url, items).await?;
    let began = Instant::now();
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.map_err(failed)?;
    let connection = tokio::spawn(connection);
    let lease = client.prepare(LEASE).await.map_err(failed)?;
    let remove = client.prepare(REMOVE).await.map_err(failed)?;
    let most = i64::try_from(at_once).unwrap_or(i64::MAX);
    let per_second = in_batches(items, began, async || {
        let rows = client.query(&lease, &[&queue.name(), &most]).await.map_err(failed)?;
        let ids: Vec<i64> = rows.iter().map(|row: &Row| row.get(0)).collect();
        for row in &rows {
            black_box(row.get::<_, Vec<u8>>(1));
        }
        client.execute(&remove, &[&ids]).await.map_err(failed)?;
        Ok(ids.len())
    });
    let per_second = per_second.await;
    connection.abort();
    per_second
}
