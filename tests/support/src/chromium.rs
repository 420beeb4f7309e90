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

/// An expression of JavaScript: the texts with less contrast than 4.5:1, in front of the nearest background that is
/// a plain colour. Of a text in a drawing this is the first rectangle of its group, if there is one.
pub const FAINT_TEXTS: &str = "(() => {
    const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true})
    const rgba = (color) => {
        canvas.clearRect(0, 0, 1, 1)
        canvas.fillStyle = color
        canvas.fillRect(0, 0, 1, 1)
        return [...canvas.getImageData(0, 0, 1, 1).data]
    }
    const light = ([r, g, b]) => {
        const [x, y, z] = [r, g, b].map(it => it / 255).map(it => it <= 0.04045 ? it / 12.92 : ((it + 0.055) / 1.055) ** 2.4)
        return 0.2126 * x + 0.7152 * y + 0.0722 * z
    }
    const behind = (element) => {
        const box = element instanceof SVGElement && element.closest('g')?.querySelector('rect')
        if (box) return rgba(getComputedStyle(box).fill)
        for (let it = element; it; it = it.parentElement) {
            const color = rgba(getComputedStyle(it).backgroundColor)
            if (color[3] === 255) return color
        }
        return [255, 255, 255, 255]
    }
    const faint = []
    for (const element of document.body.querySelectorAll('*')) {
        const said = [...element.childNodes].filter(it => it.nodeType === 3 && it.textContent.trim() !== '')
        if (said.length === 0 || !element.checkVisibility()) continue
        for (const pseudo of [undefined, '::after']) {
            const style = getComputedStyle(element, pseudo)
            const color = rgba(element instanceof SVGElement ? style.fill : style.color)
            const [one, other] = [light(color), light(behind(element))].sort((a, b) => b - a)
            const ratio = (one + 0.05) / (other + 0.05)
            if (ratio < 4.5) faint.push(`${element.tagName} ${element.className.baseVal ?? element.className} ${pseudo ?? ''} ${ratio.toFixed(2)}`)
        }
    }
    return faint
})()";

/// A headless Chromium and its driver, with a separate profile. Both are killed on drop.
#[derive(Debug)]
pub struct Chromium {
    /// Controls the pages.
    pub client: Client,
    /// The port of the driver.
    port: String,
    driver: Child,
}

/// A driver, and its port. None if it ends before it has one.
async fn start_driver() -> Option<(Child, String)> {
    let mut driver = Command::new("chromedriver");
    // Chromium stays in the group of its driver, so that both can be killed.
    driver.arg("--port=0").process_group(0).kill_on_drop(true).stdout(Stdio::piped());
    let mut driver = driver.spawn().expect("chromedriver is installed: see CONTRIBUTING.md");
    let mut said = BufReader::new(driver.stdout.take().unwrap()).lines();
    while let Some(line) = timeout(PATIENCE, said.next_line()).await.unwrap().unwrap() {
        if let Some((_, port)) = line.rsplit_once("successfully on port ") {
            return Some((driver, port.trim_end_matches('.').to_owned()));
        }
    }
    None
}

impl Chromium {
    /// Starts both. The window has this size, in pixels.
    pub async fn start(width: u32, height: u32) -> Self {
        // A driver that finds a port takes it for IPv4 and for IPv6, and ends where another program has one of them.
        let mut tries = 0;
        let (driver, port) = loop {
            if let Some(started) = start_driver().await {
                break started;
            }
            tries += 1;
            assert!(tries < 10, "chromedriver ends without a port");
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

    /// Emulates what a visitor prefers.
    pub async fn prefers(&self, colors: &str) {
        let features = json!([
            {"name": "prefers-color-scheme", "value": colors},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]);
        self.devtools("Emulation.setEmulatedMedia", json!({"features": features})).await;
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
