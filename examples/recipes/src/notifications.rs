//! Notifications from a table: a row of the application and its notification are written in one transaction, so
//! there is none without the other. The user gets it now, or within a day.

use std::{path::Path, time::Duration};

use axum::{Router, extract::State, routing::post};
use pipeline::{
    Pipeline,
    processing::{Message, Processors},
    sources::{
        Item, SourceOptions,
        sqlite::{SqliteOptions, SqliteQueue, push_in},
    },
    ws::{
        Endpoint, Payload,
        pubsub::{Expired, NoSubscribers, Push},
    },
};
use rusqlite::{Connection, Transaction, params};
use serde_json::json;

use crate::{Failed, user};

const QUEUE: &str = "notices";
const A_DAY: Duration = Duration::from_secs(86_400);

/// Writes a comment, and notifies the author of the post.
fn comment(transaction: &Transaction<'_>, author: u64, text: &str) -> rusqlite::Result<()> {
    let row = params![author.to_string(), text];
    transaction.execute("INSERT INTO comments (author, text) VALUES (?1, ?2)", row)?;
    let notice = Item::new(json!({ "text": text }).to_string()).key(author.to_string());
    push_in(transaction, QUEUE, &notice)?;
    Ok(())
}

/// Opens the application's file. The tables of the queue are in it, too.
async fn open(path: &Path) -> Result<(Connection, SqliteQueue), Failed> {
    // The notices of a user arrive in order.
    let options = SqliteOptions::new().ordered_by_key(true);
    let queue = SqliteQueue::open_with(path, QUEUE, options).await?;
    let database = Connection::open(path)?;
    database.execute("CREATE TABLE IF NOT EXISTS comments (author TEXT, text TEXT)", [])?;
    Ok((database, queue))
}

fn start(queue: &SqliteQueue, endpoint: &Endpoint) -> Result<Pipeline, Failed> {
    let push = endpoint
        .pubsub()
        .push_messages(|notice: &Message<Item>| {
            let user = notice.key.as_deref().unwrap_or_default();
            let payload = Payload::json_text(notice.payload.clone())?;
            Ok(Push::new(format!("user:{user}"), "notice", payload))
        })
        .no_subscribers(NoSubscribers::Keep { keep_for: A_DAY, then: Expired::GiveUp });
    let pipeline = Pipeline::of_messages("notices")
        .source(queue.source(SourceOptions::new()))
        .processors(Processors::new(push).concurrency(100))
        .start()?;
    Ok(pipeline)
}

pub(crate) async fn run() -> Result<(), Failed> {
    let path = std::env::temp_dir().join("recipe-notifications.db");
    let (database, queue) = open(&path).await?;
    let endpoint = Endpoint::builder().mount("/socket", user::mount(user::signer()?)).build()?;
    let pipeline = start(&queue, &endpoint)?;
    let database = std::sync::Arc::new(parking_lot::Mutex::new(database));
    let write = async |State(database): State<std::sync::Arc<parking_lot::Mutex<Connection>>>,
                       text: String| {
        // A short write; a larger application has a thread or a pool for it.
        let mut database = database.lock();
        let written = database.transaction().and_then(|transaction| {
            comment(&transaction, 7, &text)?;
            transaction.commit()
        });
        written.map_err(|error| error.to_string())
    };
    println!("comment: curl -d 'Nice!' http://127.0.0.1:4030/comments");
    user::run(
        Router::new().route("/comments", post(write)).with_state(database),
        endpoint,
        pipeline,
    )
    .await
}

#[cfg(test)]
mod tests {
    use pipeline::ws::channel_test::{TestEndpoint, assert_push, refute_push};

    use super::*;

    #[tokio::test]
    async fn a_comment_that_is_committed_arrives_and_one_that_is_rolled_back_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let (mut database, queue) = open(&folder.path().join("app.db")).await.unwrap();
        let kit = TestEndpoint::new(user::mount(user::signer().unwrap()));
        let pipeline = start(&queue, kit.endpoint()).unwrap();
        let author = user::joined(&kit, 7).await;

        let transaction = database.transaction().unwrap();
        comment(&transaction, 7, "never mind").unwrap();
        drop(transaction); // rolled back
        let transaction = database.transaction().unwrap();
        comment(&transaction, 7, "nice").unwrap();
        transaction.commit().unwrap();

        assert_push!(author, "notice", { "text": "nice" }, within: Duration::from_secs(20));
        // It would have come first.
        refute_push!(author, "notice");
        pipeline.drain(Duration::from_secs(20)).await;
    }
}
