//! The example's page in a real browser.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::process::Stdio;

use fantoccini::{Client, ClientBuilder, Locator, wd::Capabilities};
use hyper_util::client::legacy::connect::HttpConnector;
use pipeline_test_support::{Example, PATIENCE};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::timeout,
};

/// A headless Chromium and its driver, with a profile of its own. Ended when it is dropped.
struct Browser {
    client: Client,
    /// Where the driver listens.
    port: String,
    _driver: Child,
}

impl Browser {
    async fn start() -> Self {
        let mut driver = Command::new("chromedriver");
        driver.arg("--port=0").kill_on_drop(true).stdout(Stdio::piped());
        let mut driver = driver.spawn().expect("chromedriver is installed: see CONTRIBUTING.md");
        let mut said = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = loop {
            let line = timeout(PATIENCE, said.next_line()).await.unwrap().unwrap().unwrap();
            if let Some((_, port)) = line.rsplit_once("successfully on port ") {
                break port.trim_end_matches('.').to_owned();
            }
        };
        let options = json!({"args": [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--window-size=1100,900",
        ]});
        let capabilities = Capabilities::from_iter([
            ("goog:chromeOptions".to_owned(), options),
            ("goog:loggingPrefs".to_owned(), json!({"browser": "ALL"})),
        ]);
        let mut builder = ClientBuilder::new(HttpConnector::new());
        builder.capabilities(capabilities);
        let client = builder.connect(&format!("http://127.0.0.1:{port}")).await.unwrap();
        Self { client, port, _driver: driver }
    }

    /// Opens the page as a user, and waits until it listens.
    async fn open(&self, example: &Example, user: u64) {
        self.client.goto(&format!("http://{}/?user={user}", example.address)).await.unwrap();
        self.joined().await;
    }

    async fn joined(&self) {
        self.client
            .wait()
            .at_most(PATIENCE)
            .for_element(Locator::Css("#status[data-state=joined]"))
            .await
            .unwrap();
    }

    /// Waits until so many pushes are shown; the text of each, the newest first.
    async fn arrivals(&self, count: usize) -> Vec<String> {
        let last = format!("#arrivals li:nth-child({count})");
        self.client.wait().at_most(PATIENCE).for_element(Locator::Css(&last)).await.unwrap();
        let script =
            "return [...document.querySelectorAll('#arrivals li')].map(item => item.innerText)";
        serde_json::from_value(self.client.execute(script, vec![]).await.unwrap()).unwrap()
    }

    async fn text(&self, selector: &str) -> String {
        self.client.find(Locator::Css(selector)).await.unwrap().text().await.unwrap()
    }

    /// Has the driver do what is Chromium's own.
    async fn command(&self, command: &str, body: Value) -> Value {
        let session = self.client.session_id().await.unwrap().unwrap();
        let (address, body) = (format!("127.0.0.1:{}", self.port), body.to_string());
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let head = format!(
            "POST /session/{session}/{command} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).await.unwrap();
        // The driver keeps the connection, so what it says is read to the end of its length.
        let (mut reader, mut line, mut length) = (BufReader::new(stream), String::new(), 0);
        while timeout(PATIENCE, reader.read_line(&mut line)).await.unwrap().unwrap() > 2 {
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            line.clear();
        }
        let mut body = vec![0; length];
        timeout(PATIENCE, reader.read_exact(&mut body)).await.unwrap().unwrap();
        serde_json::from_slice::<Value>(&body).unwrap()["value"].clone()
    }

    /// Lets the page believe that it is on a phone.
    async fn narrow(&self) {
        let metrics = json!({"width": 375, "height": 812, "deviceScaleFactor": 2, "mobile": true});
        let command = json!({"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics});
        self.command("goog/cdp/execute", command).await;
    }

    /// What the console has said since it was last asked, but for what is no fault.
    async fn complaints(&self) -> Vec<String> {
        let said = self.command("se/log", json!({"type": "browser"})).await;
        let said = said.as_array().unwrap().iter();
        let faults =
            said.filter(|line| ["SEVERE", "WARNING"].map(Value::from).contains(&line["level"]));
        faults.map(ToString::to_string).collect()
    }

    /// Ends it in good order, which a panic does not need.
    async fn close(self) {
        self.client.close().await.unwrap();
    }
}

async fn push(example: &Example, user: u64, data: Value) {
    let body = json!({"user_id": user, "event": "push_timed", "data": data});
    assert_eq!(example.push(&body.to_string()).await.status, 202);
}

#[tokio::test]
async fn the_page_shows_what_arrives_for_its_user_and_how_long_it_took() {
    let example = Example::start(&["--max-demand", "1"]).await;
    let browser = Browser::start().await;
    browser.open(&example, 1).await;
    push(&example, 1, json!({"text": "first"})).await;
    push(&example, 2, json!({"text": "for somebody else"})).await;
    push(&example, 1, json!({"text": "<b>second</b>"})).await;
    let arrivals = browser.arrivals(2).await;
    assert!(arrivals[0].contains(r#"{"text":"<b>second</b>"}"#), "{arrivals:?}");
    assert!(arrivals[1].contains(r#"{"text":"first"}"#), "{arrivals:?}");
    assert_eq!(arrivals.len(), 2);
    assert!(arrivals.iter().all(|line| line.contains("push_timed") && line.contains(" ms")));

    let shown = |text: &str| format!("//*[@id='count'][text()='{text}']");
    browser.client.wait().at_most(PATIENCE).for_element(Locator::XPath(&shown("2"))).await.unwrap();
    for percentile in ["#p50", "#p95", "#p99"] {
        let text = browser.text(percentile).await;
        let value: f64 = text.trim_end_matches(" ms").parse().unwrap();
        assert!(value < 60_000.0, "{percentile}: {text}");
    }
    // The plot has two dots in the colour of dots.
    let script = "
        const canvas = document.getElementById('plot')
        const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)
        let orange = 0
        for (let i = 0; i < data.length; i += 4)
            if (data[i] > 180 && data[i + 2] < 90 && data[i + 3] > 200) orange += 1
        return orange";
    let dots = browser.client.execute(script, vec![]).await.unwrap();
    assert!(dots.as_u64().unwrap() > 10, "{dots} pixels");
    browser.close().await;
}

#[tokio::test]
async fn the_page_connects_again_after_a_restart_and_signs_in_anew() {
    let example = Example::start(&[]).await;
    let port = example.address.rsplit(':').next().unwrap().to_owned();
    let browser = Browser::start().await;
    browser.open(&example, 1).await;
    example.signal("-TERM").await;
    let lost = Locator::Css("#status[data-state=error]");
    browser.client.wait().at_most(PATIENCE).for_element(lost).await.unwrap();
    example.ended().await;
    // It has a new secret now, so the page's token is worth nothing.
    let example = Example::start(&["--port", &port]).await;
    browser.joined().await;
    push(&example, 1, json!({"text": "after"})).await;
    assert!(browser.arrivals(1).await[0].contains("after"));
    browser.close().await;
}

#[tokio::test]
async fn the_page_says_what_is_wrong_with_a_sign_in() {
    let example = Example::start(&[]).await;
    let browser = Browser::start().await;
    browser.client.goto(&format!("http://{}/?user=nobody", example.address)).await.unwrap();
    let refused = Locator::Css("#status[data-state=error]");
    browser.client.wait().at_most(PATIENCE).for_element(refused).await.unwrap();
    let text = browser.text("#status").await;
    assert!(text.contains("cannot sign in as nobody"), "{text}");
    browser.close().await;
}

#[tokio::test]
async fn the_inspector_shows_the_stages_on_a_phone_too() {
    let example = Example::start(&["--demo"]).await;
    let browser = Browser::start().await;
    for path in ["/inspect", "/inspect/"] {
        browser.client.goto(&format!("http://{}{path}", example.address)).await.unwrap();
        let live = Locator::Css("#status[data-state=live]");
        browser.client.wait().at_most(PATIENCE).for_element(live).await.unwrap();
        let script =
            "return [...document.querySelectorAll('.stage')].map(stage => stage.dataset.stage)";
        let stages = browser.client.execute(script, vec![]).await.unwrap();
        assert_eq!(stages, json!(["producer", "consumer_supervisor"]), "{path}");
    }
    assert_eq!(browser.text("#channels td").await, "user:*");
    browser.narrow().await;
    browser.client.refresh().await.unwrap();
    let stage = Locator::Css(".stage[data-stage=producer]");
    browser.client.wait().at_most(PATIENCE).for_element(stage).await.unwrap();
    let script = "
        const boxes = [...document.querySelectorAll('.stage .box')].map(box => box.getBoundingClientRect())
        return [innerWidth, document.documentElement.scrollWidth, boxes[0].bottom < boxes[1].top]";
    let shown = browser.client.execute(script, vec![]).await.unwrap();
    assert_eq!(shown, json!([375, 375, true]), "nothing to scroll, one box below the other");
    assert_eq!(browser.complaints().await, Vec::<String>::new());

    // When the server is gone, it says so, and finds it again.
    let port = example.address.rsplit(':').next().unwrap().to_owned();
    example.signal("-TERM").await;
    let lost = Locator::Css("#status[data-state=lost]");
    browser.client.wait().at_most(PATIENCE).for_element(lost).await.unwrap();
    example.ended().await;
    let _example = Example::start(&["--port", &port]).await;
    let live = Locator::Css("#status[data-state=live]");
    browser.client.wait().at_most(PATIENCE).for_element(live).await.unwrap();
    browser.close().await;
}

/// Takes the picture in the README, if it is told where to put it.
#[tokio::test]
async fn the_picture_of_the_running_page_can_be_taken() {
    let example = Example::start(&["--demo"]).await;
    let browser = Browser::start().await;
    browser.open(&example, 1).await;
    browser.arrivals(3).await;
    let wanted = std::env::var_os("PIPELINE_PICTURE");
    if wanted.is_some() {
        // Almost a minute, so that the plot is full.
        let full = Locator::XPath("//*[@id='count'][number(text()) > 185]");
        let minutes = 4 * PATIENCE;
        browser.client.wait().at_most(minutes).for_element(full).await.unwrap();
    }
    let picture = browser.client.screenshot().await.unwrap();
    assert!(picture.starts_with(b"\x89PNG"));
    if let Some(path) = wanted {
        std::fs::write(path, picture).unwrap();
    }
    browser.close().await;
}
