//! The pages of the example and of the inspector in a real browser.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

mod driver;
mod live_view;
mod looks;
mod nodes;
mod room;
mod sources;

use fantoccini::Locator;
use pipeline_test_support::{Example, PATIENCE};
use serde_json::{Value, json};

use self::driver::Browser;

async fn push(example: &Example, user: u64, data: Value) {
    let body = json!({"user_id": user, "event": "push_timed", "data": data});
    assert_eq!(example.push(&body.to_string()).await.status, 202);
}

#[tokio::test]
async fn the_page_shows_its_users_pushes_and_their_times() {
    let example = Example::start(&["--max-demand", "1"]).await;
    let browser = Browser::start().await;
    browser.open(&example, 1).await;
    push(&example, 1, json!({"text": "first"})).await;
    push(&example, 2, json!({"text": "for another user"})).await;
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
async fn the_button_of_the_page_pushes_and_a_link_leads_to_the_live_view() {
    let example = Example::start(&[]).await;
    let browser = Browser::start().await;
    browser.open(&example, 1).await;
    browser.client.find(Locator::Css("#push")).await.unwrap().click().await.unwrap();
    assert!(browser.arrivals(1).await[0].contains(r#"{"text":"hello"}"#));
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    browser.client.find(Locator::LinkText("live view")).await.unwrap().click().await.unwrap();
    let live = Locator::Css("#status[data-state=live]");
    browser.client.wait().at_most(PATIENCE).for_element(live).await.unwrap();
    browser.close().await;
}

#[tokio::test]
async fn the_page_reconnects_after_a_restart_with_a_new_token() {
    let example = Example::start(&[]).await;
    let port = example.address.rsplit(':').next().unwrap().to_owned();
    let browser = Browser::start().await;
    browser.open(&example, 1).await;
    example.signal("-TERM").await;
    let lost = Locator::Css("#status[data-state=error]");
    browser.client.wait().at_most(PATIENCE).for_element(lost).await.unwrap();
    example.wait().await;
    // The restarted server has a new secret, so the page's token is invalid.
    let example = Example::start(&["--port", &port]).await;
    browser.joined().await;
    push(&example, 1, json!({"text": "after"})).await;
    assert!(browser.arrivals(1).await[0].contains("after"));
    browser.close().await;
}

#[tokio::test]
async fn the_page_shows_the_error_of_a_sign_in() {
    let example = Example::start(&[]).await;
    let browser = Browser::start().await;
    browser.client.goto(&format!("http://{}/?user=absent", example.address)).await.unwrap();
    let refused = Locator::Css("#status[data-state=error]");
    browser.client.wait().at_most(PATIENCE).for_element(refused).await.unwrap();
    let text = browser.text("#status").await;
    assert!(text.contains("cannot sign in as absent"), "{text}");
    // It does not ask again by itself, but its reader may want it to.
    let count = "
        const real = fetch
        window.asked = 0
        window.fetch = (what, ...rest) => {
            if (what.startsWith('/token')) window.asked += 1
            return real(what, ...rest)
        }";
    browser.client.execute(count, vec![]).await.unwrap();
    browser.client.find(Locator::Css("#retry")).await.unwrap().click().await.unwrap();
    let offered = Locator::Css("#retry:not([hidden])");
    browser.client.wait().at_most(PATIENCE).for_element(offered).await.unwrap();
    let asked = browser.client.execute("return window.asked", vec![]).await.unwrap();
    assert_eq!(asked, 1);
    browser.close().await;
}

#[tokio::test]
async fn a_client_that_cannot_be_loaded_is_named_and_loaded_again() {
    let example = Example::start(&[]).await;
    let browser = Browser::start().await;
    let blocked = async |urls: Value| {
        browser.devtools("Network.setBlockedURLs", json!({"urls": urls})).await;
    };
    browser.devtools("Network.enable", json!({})).await;
    blocked(json!(["*/phoenix.mjs*"])).await;
    browser.client.goto(&format!("http://{}/?user=1", example.address)).await.unwrap();
    let failed = Locator::Css("#status[data-state=error]");
    browser.client.wait().at_most(PATIENCE).for_element(failed).await.unwrap();
    assert_eq!(browser.text("#status").await, "the server cannot be reached, trying again");
    blocked(json!([])).await;
    browser.joined().await;
    browser.close().await;
}

#[tokio::test]
async fn the_inspector_shows_the_stages_on_a_phone() {
    let example = Example::start(&["--demo"]).await;
    let browser = Browser::start().await;
    for path in ["/inspect", "/inspect/"] {
        browser.client.goto(&format!("http://{}{path}", example.address)).await.unwrap();
        let live = Locator::Css("#status[data-state=live]");
        browser.client.wait().at_most(PATIENCE).for_element(live).await.unwrap();
        let script =
            "return [...document.querySelectorAll('.stage')].map(stage => stage.dataset.stage)";
        let stages = browser.client.execute(script, vec![]).await.unwrap();
        assert_eq!(stages, json!(["queue", "push"]), "{path}");
    }
    assert_eq!(browser.text("#channels td").await, "user:*");
    browser.narrow().await;
    browser.client.refresh().await.unwrap();
    let stage = Locator::Css(".stage[data-stage=queue]");
    browser.client.wait().at_most(PATIENCE).for_element(stage).await.unwrap();
    let script = "
        const boxes = [...document.querySelectorAll('.stage .box')].map(box => box.getBoundingClientRect())
        return [innerWidth, document.documentElement.scrollWidth, boxes[0].bottom < boxes[1].top]";
    let shown = browser.client.execute(script, vec![]).await.unwrap();
    assert_eq!(shown, json!([375, 375, true]), "no scrolling, one box below the other");
    assert_eq!(browser.complaints().await, Vec::<String>::new());

    // Without the server, the page reports that, and reconnects later.
    let port = example.address.rsplit(':').next().unwrap().to_owned();
    example.signal("-TERM").await;
    let lost = Locator::Css("#status[data-state=lost]");
    browser.client.wait().at_most(PATIENCE).for_element(lost).await.unwrap();
    example.wait().await;
    let _example = Example::start(&["--port", &port]).await;
    let live = Locator::Css("#status[data-state=live]");
    browser.client.wait().at_most(PATIENCE).for_element(live).await.unwrap();
    browser.close().await;
}

/// Takes the screenshot of the README, if an output path is set.
#[tokio::test]
async fn a_screenshot_of_the_running_page_can_be_taken() {
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
