//! Notifications by a trigger: whatever changes a row, the application, a migration or an operator's SQL, its user
//! learns of it. The statements that change rows do not know the queue.

use std::{path::Path, sync::Arc, time::Duration};

use axum::{Router, extract::State, routing::post};
use parking_lot::Mutex;
use pipeline::{
    Pipeline,
    processing::{Message, Processors},
    sources::{Item, SourceOptions, sqlite::SqliteQueue},
    ws::{Endpoint, Payload, pubsub::Push},
};
use rusqlite::Connection;

use crate::{Failed, user};

/// The queue and the payload of an item are enough. Its key is the user.
const TABLES: &str = "
CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, user TEXT NOT NULL, state TEXT NOT NULL);
CREATE TRIGGER IF NOT EXISTS orders_changed AFTER UPDATE OF state ON orders
WHEN OLD.state <> NEW.state
BEGIN
    INSERT INTO pipeline_items (queue, key, payload)
        VALUES ('orders', NEW.user, json_object('order', NEW.id, 'state', NEW.state));
END;
INSERT OR IGNORE INTO orders VALUES (1, '7', 'paid');
";

/// Opens the application's file. The queue comes first: the trigger needs its tables.
async fn open(path: &Path) -> Result<(Connection, SqliteQueue), Failed> {
    let queue = SqliteQueue::open(path, "orders").await?;
    let database = Connection::open(path)?;
    // The queue writes to the file, too.
    database.busy_timeout(Duration::from_secs(10))?;
    database.execute_batch(TABLES)?;
    Ok((database, queue))
}

fn start(queue: &SqliteQueue, endpoint: &Endpoint) -> Result<Pipeline, Failed> {
    let push = endpoint.pubsub().push_messages(|change: &Message<Item>| {
        let user = change.key.as_deref().unwrap_or_default();
        let payload = Payload::json_text(change.payload.clone())?;
        Ok(Push::new(format!("user:{user}"), "order", payload))
    });
    let pipeline = Pipeline::of_messages("orders")
        .source(queue.source(SourceOptions::new()))
        // `pipeline.push_delivered` is the time from the row's change to the socket.
        .processors(Processors::new(push.timed()).concurrency(100))
        .start()?;
    Ok(pipeline)
}

pub(crate) async fn run() -> Result<(), Failed> {
    let (database, queue) = open(&std::env::temp_dir().join("recipe-trigger.db")).await?;
    let endpoint = Endpoint::builder().mount("/socket", user::mount(user::signer()?)).build()?;
    let pipeline = start(&queue, &endpoint)?;
    let state = (Arc::new(Mutex::new(database)), queue);
    let change = async |State((database, queue)): State<(Arc<Mutex<Connection>>, SqliteQueue)>,
                        state: String| {
        let changed = database.lock().execute("UPDATE orders SET state = ?1 WHERE id = 1", [state]);
        // Changes of other processes are found by looking, ten times a second.
        queue.wake();
        changed.map(|_| ()).map_err(|error| error.to_string())
    };
    println!("change: curl -d shipped http://127.0.0.1:4030/order");
    println!("or: sqlite3 /tmp/recipe-trigger.db \"UPDATE orders SET state = 'lost'\"");
    let router = Router::new().route("/order", post(change)).with_state(state);
    user::run(router, endpoint, pipeline).await
}

#[cfg(test)]
mod tests {
    use pipeline::ws::channel_test::{TestEndpoint, assert_push, refute_push};

    use super::*;

    #[tokio::test]
    async fn each_change_that_is_committed_reaches_its_user_and_nothing_else_does() {
        let folder = tempfile::tempdir().unwrap();
        let (mut database, queue) = open(&folder.path().join("app.db")).await.unwrap();
        let kit = TestEndpoint::new(user::mount(user::signer().unwrap()));
        let pipeline = start(&queue, kit.endpoint()).unwrap();
        let buyer = user::joined(&kit, 7).await;
        let transaction = database.transaction().unwrap();
        transaction.execute("UPDATE orders SET state = 'lost'", []).unwrap();
        drop(transaction); // rolled back
        for state in ["paid", "packed", "shipped"] {
            database.execute("UPDATE orders SET state = ?1", [state]).unwrap();
            queue.wake();
            if state != "paid" {
                let within = Duration::from_secs(20);
                assert_push!(buyer, "order", { "order": 1, "state": state }, within: within);
            }
        }
        refute_push!(buyer, "order");
        pipeline.drain(Duration::from_secs(20)).await;
    }
}
