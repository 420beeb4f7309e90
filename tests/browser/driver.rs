//! A browser controlled by a test.

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

/// A headless Chromium and its driver, with a separate profile. Both are stopped on drop.
pub(crate) struct Browser {
    pub(crate) client: Client,
    /// The address of the driver.
    port: String,
    _driver: Child,
}

impl Browser {
    pub(crate) async fn start() -> Self {
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

    /// Opens the page as a user, and waits until it has joined.
    pub(crate) async fn open(&self, example: &Example, user: u64) {
        self.client.goto(&format!("http://{}/?user={user}", example.address)).await.unwrap();
        self.joined().await;
    }

    pub(crate) async fn joined(&self) {
        self.client
            .wait()
            .at_most(PATIENCE)
            .for_element(Locator::Css("#status[data-state=joined]"))
            .await
            .unwrap();
    }

    /// Waits until this many pushes are shown. Returns the text of each, the newest first.
    pub(crate) async fn arrivals(&self, count: usize) -> Vec<String> {
        let last = format!("#arrivals li:nth-child({count})");
        self.client.wait().at_most(PATIENCE).for_element(Locator::Css(&last)).await.unwrap();
        let script =
            "return [...document.querySelectorAll('#arrivals li')].map(item => item.innerText)";
        serde_json::from_value(self.client.execute(script, vec![]).await.unwrap()).unwrap()
    }

    pub(crate) async fn text(&self, selector: &str) -> String {
        self.client.find(Locator::Css(selector)).await.unwrap().text().await.unwrap()
    }

    /// Sends one of Chromium's own commands to the driver.
    pub(crate) async fn command(&self, command: &str, body: Value) -> Value {
        let session = self.client.session_id().await.unwrap().unwrap();
        let (address, body) = (format!("127.0.0.1:{}", self.port), body.to_string());
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let head = format!(
            "POST /session/{session}/{command} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).await.unwrap();
        // The driver keeps the connection open, so the body is read up to its length.
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

    /// Emulates the screen of a phone.
    pub(crate) async fn narrow(&self) {
        let metrics = json!({"width": 375, "height": 812, "deviceScaleFactor": 2, "mobile": true});
        let command = json!({"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics});
        self.command("goog/cdp/execute", command).await;
    }

    /// The console's messages since the last call, without harmless ones.
    pub(crate) async fn complaints(&self) -> Vec<String> {
        let said = self.command("se/log", json!({"type": "browser"})).await;
        let said = said.as_array().unwrap().iter();
        let faults =
            said.filter(|line| ["SEVERE", "WARNING"].map(Value::from).contains(&line["level"]));
        faults.map(ToString::to_string).collect()
    }

    /// Closes the browser cleanly, which is not needed after a panic.
    pub(crate) async fn close(self) {
        self.client.close().await.unwrap();
    }
}
