//! How the pages look: on phones, in the dark, and to readers with weak eyes.

use fantoccini::Locator;
use pipeline_test_support::{Example, FAINT_TEXTS, PATIENCE, connect};
use serde_json::json;

use crate::driver::Browser;

/// The faint texts of the page, in each state that a stage of a drawing may have.
fn faint_texts() -> String {
    format!(
        "const faint = new Set({FAINT_TEXTS})
        for (const state of ['busy', 'waiting_for_demand', 'waiting_for_events']) {{
            document.querySelectorAll('.stage').forEach(stage => stage.dataset.state = state)
            for (const text of {FAINT_TEXTS}) faint.add(`${{state}}: ${{text}}`)
        }}
        return [innerWidth, document.documentElement.scrollWidth, ...faint]"
    )
}

/// Asserts that the page fits a phone, and can be read in both colour schemes.
async fn fits_and_can_be_read(browser: &Browser, page: &str) {
    browser.phone(390, 844, 1).await;
    for colors in ["light", "dark"] {
        browser.prefers(colors).await;
        let shown = browser.client.execute(&faint_texts(), vec![]).await.unwrap();
        assert_eq!(
            shown,
            json!([390, 390]),
            "{page}, {colors}: it is too wide, or texts are faint"
        );
    }
}

/// Looks up a user on the page of sockets, and closes their socket there.
async fn a_user_is_looked_up(browser: &Browser, example: &Example) {
    let mut ada = connect(&example.socket_url(1).await).await.unwrap();
    ada.join("1", "user:1").await;
    browser.client.goto(&format!("http://{}/inspect/lookup", example.address)).await.unwrap();
    let waits = async |path: &str| {
        let found = browser.client.wait().at_most(PATIENCE).for_element(Locator::XPath(path)).await;
        found.unwrap_or_else(|error| panic!("{path}: {error}"))
    };
    waits("//*[@id='none'][text()='nothing waits']").await;
    let id = browser.client.find(Locator::Css("#id")).await.unwrap();
    id.send_keys("user_socket:1\n").await.unwrap();
    let topic = waits("//table[@id='found']//td/div").await;
    assert!(topic.text().await.unwrap().starts_with("user:1"));
    // It confirms each question.
    browser.client.execute("window.confirm = () => true", vec![]).await.unwrap();
    waits("//table[@id='found']//button[text()='close']").await.click().await.unwrap();
    assert_eq!(ada.closed().await, 1001);
    drop(ada);
    waits("//*[@id='status'][text()='no open socket on this node']").await;
}

#[tokio::test]
async fn the_pages_fit_a_phone_and_can_be_read_in_light_and_dark() {
    let (example, room) =
        tokio::join!(Example::start(&["--demo", "--operator"]), Example::room(&[]));
    let browser = Browser::start().await;
    browser.open(&example, 1).await;
    browser.arrivals(2).await;
    fits_and_can_be_read(&browser, "push_to_users").await;

    browser.client.goto(&format!("http://{}/inspect/", example.address)).await.unwrap();
    let live = Locator::Css("#status[data-state=live]");
    browser.client.wait().at_most(PATIENCE).for_element(live).await.unwrap();
    fits_and_can_be_read(&browser, "inspector").await;
    a_user_is_looked_up(&browser, &example).await;
    fits_and_can_be_read(&browser, "sockets").await;

    browser.client.goto(&format!("http://{}/?name=ada", room.address)).await.unwrap();
    browser.joined().await;
    let field = browser.client.find(Locator::Css("#text")).await.unwrap();
    field
        .send_keys("a word that has no end and is as long as a narrow telephone is not\n")
        .await
        .unwrap();
    let time = Locator::Css("#messages li > time[datetime]");
    let time = browser.client.wait().at_most(PATIENCE).for_element(time).await.unwrap();
    let text = time.text().await.unwrap();
    assert!(text.len() == 5 && text.as_bytes()[2] == b':', "when it was said: {text}");
    fits_and_can_be_read(&browser, "room").await;
    browser.close().await;
}
