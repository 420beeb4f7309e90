//! A browser with a page of an example.

use std::ops::Deref;

use fantoccini::Locator;
use pipeline_test_support::{Chromium, Example, PATIENCE};

/// A browser controlled by a test.
pub(crate) struct Browser(Chromium);

impl Deref for Browser {
    type Target = Chromium;

    fn deref(&self) -> &Chromium {
        &self.0
    }
}

impl Browser {
    pub(crate) async fn start() -> Self {
        Self(Chromium::start(1100, 900).await)
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

    /// Emulates the screen of a phone.
    pub(crate) async fn narrow(&self) {
        self.phone(375, 812, 2).await;
    }

    /// Closes the browser cleanly, which is not needed after a panic.
    pub(crate) async fn close(self) {
        self.0.close().await;
    }
}
