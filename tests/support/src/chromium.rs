//! A browser controlled by a test.

use std::process::Stdio;

use fantoccini::{Client, ClientBuilder, wd::Capabilities};
use hyper_util::client::legacy::connect::HttpConnector;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::timeout,
};

use crate::PATIENCE;

/// A headless Chromium and its driver, with a separate profile. Both are killed on drop.
#[derive(Debug)]
pub struct Chromium {
    /// Controls the pages.
    pub client: Client,
    /// The port of the driver.
    port: String,
    driver: Child,
}

impl Chromium {
    /// Starts both. The window has this size, in pixels.
    pub async fn start(width: u32, height: u32) -> Self {
        let mut driver = Command::new("chromedriver");
        // Chromium stays in the group of its driver, so that both can be killed.
        driver.arg("--port=0").process_group(0).kill_on_drop(true).stdout(Stdio::piped());
        let mut driver = driver.spawn().expect("chromedriver is installed: see CONTRIBUTING.md");
        let mut said = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = loop {
            let line = timeout(PATIENCE, said.next_line()).await.unwrap().unwrap().unwrap();
            if let Some((_, port)) = line.rsplit_once("successfully on port ") {
                break port.trim_end_matches('.').to_owned();
            }
        };
        let size = format!("--window-size={width},{height}");
        let options = json!({"args": [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--hide-scrollbars", size,
        ]});
        let capabilities = Capabilities::from_iter([
            ("goog:chromeOptions".to_owned(), options),
            ("goog:loggingPrefs".to_owned(), json!({"browser": "ALL"})),
        ]);
        let mut builder = ClientBuilder::new(HttpConnector::new());
        builder.capabilities(capabilities);
        let client = builder.connect(&format!("http://127.0.0.1:{port}")).await.unwrap();
        Self { client, port, driver }
    }

    /// Sends a command of Chromium's developer tools.
    pub async fn devtools(&self, command: &str, params: Value) -> Value {
        self.command("goog/cdp/execute", json!({"cmd": command, "params": params})).await
    }

    /// Emulates the screen of a phone. One point has `scale` pixels.
    pub async fn phone(&self, width: u32, height: u32, scale: u32) {
        let metrics =
            json!({"width": width, "height": height, "deviceScaleFactor": scale, "mobile": true});
        self.devtools("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    /// The warnings and errors of the console since the last call.
    pub async fn complaints(&self) -> Vec<String> {
        let said = self.command("se/log", json!({"type": "browser"})).await;
        let said = said.as_array().unwrap().iter();
        let faults =
            said.filter(|line| ["SEVERE", "WARNING"].map(Value::from).contains(&line["level"]));
        faults.map(ToString::to_string).collect()
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

    /// Stops both from running, as a machine that sleeps does. Nothing can be asked of the browser until it thaws.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets both run on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let group = self.driver.id().and_then(|id| Pid::from_raw(id.try_into().ok()?));
        if let Some(group) = group {
            // The group is gone if all its processes have ended.
            let _ = kill_process_group(group, signal);
        }
    }

    /// Closes the browser cleanly, which is not needed after a panic.
    pub async fn close(self) {
        self.client.clone().close().await.unwrap();
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}
