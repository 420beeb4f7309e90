//! A browser controlled by a test.

use std::{process::Stdio, time::Duration};

use fantoccini::{Client, ClientBuilder, wd::Capabilities};
use hyper_util::client::legacy::connect::HttpConnector;
use pipeline_test_support::PATIENCE;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

/// How often a page is looked at.
const AGAIN: Duration = Duration::from_millis(25);

/// Writes down what the page does with sockets, timers and listeners, before its scripts run.
const RECORDER: &str = "
    window.seen = {frames: [], sockets: 0, listeners: 0, timers: new Set()}
    const Real = window.WebSocket
    window.WebSocket = class extends Real {
        constructor(...args) {
            super(...args)
            window.seen.sockets += 1
            window.seen.frames.push('open')
            this.addEventListener('close', () => window.seen.frames.push('close'))
        }
        send(data) {
            const [, , topic, event] = JSON.parse(data)
            if (event !== 'heartbeat') window.seen.frames.push(event + ' ' + topic)
            super.send(data)
        }
    }
    for (const [name, by] of [['addEventListener', 1], ['removeEventListener', -1]]) {
        const real = window[name].bind(window)
        window[name] = (...args) => { window.seen.listeners += by; return real(...args) }
    }
    const [start, stop] = [window.setTimeout.bind(window), window.clearTimeout.bind(window)]
    window.setTimeout = (callback, ...rest) => {
        const id = start((...args) => { window.seen.timers.delete(id); callback(...args) }, ...rest)
        window.seen.timers.add(id)
        return id
    }
    window.clearTimeout = (id) => { window.seen.timers.delete(id); stop(id) }";

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
            "--window-size=1280,900", "--hide-scrollbars",
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

    pub(crate) async fn open(&self, url: &str) {
        self.client.goto(url).await.unwrap();
    }

    /// What the script returns.
    pub(crate) async fn run(&self, script: &str) -> Value {
        self.client.execute(script, vec![]).await.unwrap()
    }

    /// Waits until the expression is true.
    pub(crate) async fn until(&self, expression: &str) {
        self.becomes(expression, &json!(true)).await;
    }

    /// Waits until the expression has this value.
    pub(crate) async fn becomes(&self, expression: &str, expected: &Value) {
        let (script, end) = (format!("return {expression}"), Instant::now() + PATIENCE);
        loop {
            let shown = self.client.execute(&script, vec![]).await;
            if shown.as_ref().is_ok_and(|shown| shown == expected) {
                return;
            }
            if Instant::now() > end {
                let page = self.client.source().await.unwrap_or_default();
                panic!("{expression} is {shown:?}, expected {expected}, on {page}");
            }
            sleep(AGAIN).await;
        }
    }

    /// Clicks on what the selector finds, as a script does.
    pub(crate) async fn click(&self, selector: &str) {
        let found = format!("document.querySelector('{selector}') !== null");
        self.until(&found).await;
        self.run(&format!("document.querySelector('{selector}').click()")).await;
    }

    /// Opens another tab of this profile, and looks at it.
    pub(crate) async fn tab(&self, url: &str) {
        let tab = self.client.new_window(true).await.unwrap().handle;
        self.client.switch_to_window(tab).await.unwrap();
        self.open(url).await;
    }

    /// Looks at the tab with this number, in the order in which they were opened.
    pub(crate) async fn look_at(&self, tab: &fantoccini::wd::WindowHandle) {
        self.client.switch_to_window(tab.clone()).await.unwrap();
    }

    /// Records what pages do from now on: `window.seen`.
    pub(crate) async fn record(&self) {
        self.devtools("Page.addScriptToEvaluateOnNewDocument", json!({"source": RECORDER})).await;
    }

    /// Sends a command of Chromium's developer tools.
    pub(crate) async fn devtools(&self, command: &str, params: Value) -> Value {
        self.command("goog/cdp/execute", json!({"cmd": command, "params": params})).await
    }

    /// Emulates the screen of a phone, or ends it.
    pub(crate) async fn narrow(&self, height: u32) {
        let metrics =
            json!({"width": 390, "height": height, "deviceScaleFactor": 1, "mobile": true});
        self.devtools("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    /// Emulates what a visitor prefers.
    pub(crate) async fn prefers(&self, colors: &str) {
        let features = json!([
            {"name": "prefers-color-scheme", "value": colors},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]);
        self.devtools("Emulation.setEmulatedMedia", json!({"features": features})).await;
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

    /// Sends one of Chromium's own commands to the driver.
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
}
