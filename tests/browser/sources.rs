//! Durable sources on the page of the example and in the inspector.

use std::time::Duration;

use axum::Router;
use fantoccini::Locator;
use pipeline::{
    ExitReason, Pipeline,
    inspect::Inspector,
    stage::{Emitter, Producer, ProducerHandle, StageContext},
    step::for_each,
    subscription::SubscribeOptions,
    ws::listen,
};
use pipeline_test_support::{Example, PATIENCE};
use serde_json::{Value, json};

use crate::{driver::Browser, push};

/// The texts of a table's cells.
async fn cells(browser: &Browser, table: &str) -> Value {
    let script = format!(
        "return [...document.querySelectorAll('{table} td')].map(cell => cell.textContent)"
    );
    browser.client.execute(&script, vec![]).await.unwrap()
}

/// The column of the inspector's table of sources that shows the age of the oldest item.
const AGE: usize = 4;

fn texts(cells: Value) -> Vec<String> {
    serde_json::from_value(cells).unwrap()
}

#[tokio::test]
async fn the_page_and_the_inspector_show_the_durable_queue() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pushes.db");
    let mut flags = vec!["--durable", file.to_str().unwrap(), "--lease-secs", "2"];
    flags.extend(["--delay-ms", "3600000", "--drain-secs", "0"]);
    let example = Example::start(&flags).await;
    push(&example, 1, json!({})).await;
    let connection = rusqlite::Connection::open(&file).unwrap();
    let is_delivered = || {
        let count = "SELECT count(*) FROM pipeline_items WHERE deliveries = 1";
        connection.query_row(count, [], |row| row.get::<_, i64>(0)).unwrap() == 1
    };
    let delivered = async {
        while !is_delivered() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, delivered).await.expect("it is not delivered");
    example.kill().await;
    // It waits for an hour already, and is delivered again.
    let age = "UPDATE pipeline_items SET enqueued_at = enqueued_at - 3600000";
    connection.execute(age, []).unwrap();
    let example = Example::start(&flags).await;
    let add = "INSERT INTO pipeline_items (queue, payload) VALUES ('pushes', 'no push')";
    connection.execute(add, []).unwrap();
    // One push of a user is in work at a time.
    for user in 2..=3 {
        push(&example, user, json!({})).await;
    }
    let browser = Browser::start().await;
    browser.open(&example, 1).await;
    let shown = |id: &str, text: &str| format!("//*[@id='{id}'][text()='{text}']");
    let zeros = ["retried", "released", "set-aside"].map(|id| (id, "0"));
    let others = [("backlog", "3"), ("dead", "1"), ("redelivered", "1")];
    for (id, text) in others.into_iter().chain(zeros) {
        let element = browser.client.wait().at_most(PATIENCE);
        element.for_element(Locator::XPath(&shown(id, text))).await.unwrap();
    }
    let age = Locator::XPath("//*[@id='oldest'][contains(text(), ' min')]");
    browser.client.wait().at_most(PATIENCE).for_element(age).await.unwrap();

    browser.client.goto(&format!("http://{}/inspect", example.address)).await.unwrap();
    let row = Locator::Css("#source-table td");
    browser.client.wait().at_most(PATIENCE).for_element(row).await.unwrap();
    let reads = "the queue pushes in a SQLite file";
    let expected = ["push › source", reads, "connected", "3", "3", "1", "1", "1", "0", "–"];
    // The inspector shows its last sample first, which may be older than the pushes.
    let waited = tokio::time::timeout(PATIENCE, async {
        loop {
            let mut shown = texts(cells(&browser, "#source-table").await);
            let age = shown.remove(AGE);
            if shown == expected && age.ends_with(" min") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    if waited.await.is_err() {
        panic!("{}", cells(&browser, "#source-table").await);
    }
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    browser.close().await;
}

#[tokio::test]
async fn without_a_durable_queue_none_is_shown() {
    let example = Example::start(&[]).await;
    let browser = Browser::start().await;
    browser.open(&example, 1).await;
    assert_eq!(example.request("GET", "/queue", "", "").await.json(), Value::Null);
    assert!(
        !browser.client.find(Locator::Css("#queue")).await.unwrap().is_displayed().await.unwrap()
    );
    browser.close().await;
}

/// A producer of one's own that reports hostile texts.
struct Hostile;

impl Producer for Hostile {
    type Event = u64;

    fn init(&mut self, context: &StageContext<ProducerHandle<Self>>) -> Result<(), ExitReason> {
        context.source_report().update(|source| {
            source.broker = "<b>a queue</b>".into();
            source.last_error = Some("<script>document.title = 'mine'</script>".into());
            source.connection_errors = 1;
        });
        Ok(())
    }

    async fn handle_demand(
        &mut self,
        _demand: usize,
        _out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        Ok(())
    }
}

#[tokio::test]
async fn texts_of_a_source_are_shown_as_text() {
    let pipeline = Pipeline::builder("<i>push</i>")
        .producer(Hostile)
        .consumer(for_each(async |_: u64| ()), SubscribeOptions::new())
        .start()
        .unwrap();
    let inspector = Inspector::builder().pipeline(pipeline.observer()).build().unwrap();
    let listener = listen("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().nest_service("/inspect", inspector);
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    let browser = Browser::start().await;
    browser.client.goto(&format!("http://{address}/inspect")).await.unwrap();
    let row = Locator::Css("#source-table td");
    browser.client.wait().at_most(PATIENCE).for_element(row).await.unwrap();
    let shown = cells(&browser, "#source-table").await;
    let script = "<script>document.title = 'mine'</script>";
    let (stage, reads) = ("<i>push</i> › producer", "<b>a queue</b>");
    let expected = [stage, reads, "not connected", "–", "–", "0", "0", "0", "–", "1", script];
    assert_eq!(shown, json!(expected));
    assert_eq!(browser.client.title().await.unwrap(), "Pipelines");
    browser.close().await;
}
