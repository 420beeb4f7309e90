//! A browser controlled by a test.

use std::{ops::Deref, time::Duration};

use pipeline_test_support::{Chromium, PATIENCE};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

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

/// A browser that shows the shop.
pub(crate) struct Browser(Chromium);

impl Deref for Browser {
    type Target = Chromium;

    fn deref(&self) -> &Chromium {
        &self.0
    }
}

impl Browser {
    pub(crate) async fn start() -> Self {
        Self(Chromium::start(1280, 900).await)
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

    /// Emulates the screen of a phone.
    pub(crate) async fn narrow(&self, height: u32) {
        self.phone(390, height, 1).await;
    }

    /// Closes the browser cleanly, which is not needed after a panic.
    pub(crate) async fn close(self) {
        self.0.close().await;
    }
}
