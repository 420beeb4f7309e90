//! The queue in a SQLite file, and the same transactions by bare rusqlite.

use std::path::Path;

use pipeline_sources::{
    Item,
    sqlite::{SqliteQueue, push_in},
};
use rusqlite::{Connection, TransactionBehavior, params};
use tempfile::TempDir;
use tokio::time::Instant;

use super::{PAYLOAD, PUSHERS, failed, handled, pushed};
use crate::error::LoadError;

/// The name of the queue.
const QUEUE: &str = "load";

/// A queue in a new file.
async fn new_queue() -> Result<(SqliteQueue, TempDir), LoadError> {
    let folder = tempfile::tempdir()?;
    let queue = SqliteQueue::open(folder.path().join("queue.db"), QUEUE).await;
    Ok((queue.map_err(failed)?, folder))
}

async fn filled(items: u64) -> Result<(SqliteQueue, TempDir), LoadError> {
    let (queue, folder) = new_queue().await?;
    for first in (0..items).step_by(1000) {
        let some = first..items.min(first + 1000);
        let some = some.map(|_| Item::new(PAYLOAD.to_vec())).collect();
        queue.push_all(some).await.map_err(failed)?;
    }
    Ok((queue, folder))
}

/// Pushes from many tasks.
pub(crate) async fn pushes(items: u64) -> Result<f64, LoadError> {
    let (queue, _folder) = new_queue().await?;
    pushed(items, move |item| {
        let queue = queue.clone();
        async move { queue.push(item).await.map(|_| ()) }
    })
    .await
}

/// Inserts by rusqlite alone, in one thread, with as many in a transaction as there are pushers.
pub(crate) async fn bare_pushes(items: u64) -> Result<f64, LoadError> {
    let (queue, folder) = new_queue().await?;
    drop(queue);
    let mut connection = connection(folder.path())?;
    let item = Item::new(PAYLOAD.to_vec());
    let began = Instant::now();
    for _ in 0..items / PUSHERS {
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        for _ in 0..PUSHERS {
            push_in(&transaction, QUEUE, &item).map_err(failed)?;
        }
        transaction.commit().map_err(failed)?;
    }
    Ok((items / PUSHERS * PUSHERS) as f64 / began.elapsed().as_secs_f64())
}

/// Handles items by a source.
pub(crate) async fn source(at_once: usize, items: u64) -> Result<f64, LoadError> {
    let (queue, _folder) = filled(items).await?;
    handled(queue, at_once, items).await
}

/// Leases and removes items by rusqlite alone, in one thread, with a transaction for each lease of a batch and
/// for each removal.
pub(crate) async fn bare_source(at_once: usize, items: u64) -> Result<f64, LoadError> {
    let (queue, folder) = filled(items).await?;
    drop(queue);
    let mut connection = connection(folder.path())?;
    let began = Instant::now();
    let mut handled = 0;
    while handled < items {
        let ids = lease(&mut connection, at_once).map_err(failed)?;
        remove(&mut connection, &ids).map_err(failed)?;
        handled += ids.len() as u64;
    }
    Ok(items as f64 / began.elapsed().as_secs_f64())
}

fn connection(folder: &Path) -> Result<Connection, LoadError> {
    let open = || {
        let connection = Connection::open(folder.join("queue.db"))?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        Ok(connection)
    };
    open().map_err(|error: rusqlite::Error| failed(error))
}

fn lease(connection: &mut Connection, at_once: usize) -> rusqlite::Result<Vec<i64>> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let ids = {
        let mut available = transaction.prepare_cached(
            "SELECT id FROM pipeline_items WHERE queue = ?1 AND available_at <= 0
             ORDER BY available_at, id LIMIT ?2",
        )?;
        let ids = available
            .query_map(params![QUEUE, u32::try_from(at_once).unwrap_or(u32::MAX)], |row| {
                row.get(0)
            })?;
        ids.collect::<rusqlite::Result<Vec<i64>>>()?
    };
    {
        let mut lease = transaction.prepare_cached(
            "UPDATE pipeline_items SET available_at = 9000000000000, deliveries = deliveries + 1
             WHERE id = ?1 RETURNING payload, enqueued_at",
        )?;
        for id in &ids {
            let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
            let (payload, _): (Vec<u8>, i64) = lease.query_row([id], read)?;
            std::hint::black_box(payload);
        }
    }
    transaction.commit()?;
    Ok(ids)
}

fn remove(connection: &mut Connection, ids: &[i64]) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    {
        let mut remove = transaction.prepare_cached("DELETE FROM pipeline_items WHERE id = ?1")?;
        for id in ids {
            remove.execute([id])?;
        }
    }
    transaction.commit()
}
