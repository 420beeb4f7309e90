//! The example `room`: visitors, devices, typing and messages.

use std::time::Duration;

use fantoccini::Locator;
use pipeline_test_support::{Example, PATIENCE};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::driver::Browser;

/// The polling interval of the page.
const AGAIN: Duration = Duration::from_millis(20);

/// Enters the room, and waits until the page has joined.
async fn enter(browser: &Browser, example: &Example, who: &str) {
    browser.client.goto(&format!("http://{}/?{who}", example.address)).await.unwrap();
    browser.joined().await;
}

/// The page's content: visitors with their devices, who is typing, and the messages.
async fn shown(browser: &Browser) -> Value {
    let script = "
        const texts = (root, tag) => [...root.querySelectorAll(tag)].map(found => found.textContent)
        const people = [...document.querySelectorAll('#people li')]
        return [
            Object.fromEntries(people.map(person => [person.dataset.name, texts(person, 'small').sort()])),
            document.getElementById('typing').textContent,
            [...document.querySelectorAll('#messages li')].map(message => texts(message, 'b, span').join(' ')),
        ]";
    browser.client.execute(script, vec![]).await.unwrap()
}

/// Waits until the page shows this.
async fn shows(browser: &Browser, people: Value, typing: &str, messages: &[&str]) {
    let (expected, end) = (json!([people, typing, messages]), Instant::now() + PATIENCE);
    loop {
        let shown = shown(browser).await;
        if shown == expected {
            return;
        }
        assert!(Instant::now() < end, "it shows {shown}, expected {expected}");
        sleep(AGAIN).await;
    }
}

/// Types into the field without sending.
async fn write(browser: &Browser, text: &str) {
    let field = browser.client.find(Locator::Css("#text")).await.unwrap();
    field.send_keys(text).await.unwrap();
}

async fn send(browser: &Browser) {
    browser.client.find(Locator::Css("#say button")).await.unwrap().click().await.unwrap();
}

#[tokio::test]
async fn two_visitors_see_each_other_join_type_and_leave_on_every_device() {
    let example = Example::room(&[]).await;
    let (ada, ben) = (Browser::start().await, Browser::start().await);
    enter(&ada, &example, "name=ada&device=phone").await;
    shows(&ada, json!({"ada": ["phone"]}), "", &[]).await;
    enter(&ben, &example, "name=ben&device=laptop").await;
    let both = || json!({"ada": ["phone"], "ben": ["laptop"]});
    shows(&ada, both(), "", &[]).await;
    shows(&ben, both(), "", &[]).await;

    write(&ben, "hello").await;
    shows(&ada, both(), "ben is typing", &[]).await;
    send(&ben).await;
    shows(&ada, both(), "", &["ben hello"]).await;
    shows(&ben, both(), "", &["ben hello"]).await;
    // A visitor stops typing after a pause or with an empty field.
    write(&ada, "<b>hi</b>").await;
    shows(&ben, both(), "ada is typing", &["ben hello"]).await;
    shows(&ben, both(), "", &["ben hello"]).await;
    send(&ada).await;
    let said = ["ben hello", "ada <b>hi</b>"];
    shows(&ben, both(), "", &said).await;

    // A second device of the same visitor, which receives the earlier messages.
    let phone = ada.client.window().await.unwrap();
    let tablet = ada.client.new_window(true).await.unwrap().handle;
    ada.client.switch_to_window(tablet).await.unwrap();
    enter(&ada, &example, "name=ada&device=tablet").await;
    let three = json!({"ada": ["phone", "tablet"], "ben": ["laptop"]});
    shows(&ada, three.clone(), "", &said).await;
    shows(&ben, three.clone(), "", &said).await;
    if let Some(path) = std::env::var_os("PIPELINE_ROOM") {
        write(&ben, "see you").await;
        shows(&ada, three, "ben is typing", &said).await;
        std::fs::write(path, ada.client.screenshot().await.unwrap()).unwrap();
    }
    ada.client.close_window().await.unwrap();
    ada.client.switch_to_window(phone).await.unwrap();
    shows(&ben, both(), "", &said).await;
    shows(&ada, both(), "", &said).await;

    // A visitor who has left is not typing.
    write(&ben, "bye").await;
    shows(&ada, both(), "ben is typing", &said).await;
    assert_eq!(ben.complaints().await, Vec::<String>::new());
    ben.close().await;
    shows(&ada, json!({"ada": ["phone"]}), "", &said).await;
    assert_eq!(ada.complaints().await, Vec::<String>::new());
    ada.close().await;
}

#[tokio::test]
async fn a_polling_visitor_is_in_the_room_like_any_other() {
    let example = Example::room(&[]).await;
    let browser = Browser::start().await;
    enter(&browser, &example, "name=ada&device=phone").await;
    let first = browser.client.window().await.unwrap();
    let second = browser.client.new_window(true).await.unwrap().handle;
    browser.client.switch_to_window(second).await.unwrap();
    enter(&browser, &example, "name=ben&device=laptop&transport=longpoll").await;
    let both = || json!({"ada": ["phone"], "ben": ["laptop"]});
    shows(&browser, both(), "", &[]).await;
    write(&browser, "by polling").await;
    send(&browser).await;
    shows(&browser, both(), "", &["ben by polling"]).await;
    browser.client.switch_to_window(first).await.unwrap();
    shows(&browser, both(), "", &["ben by polling"]).await;
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    browser.close().await;
}

#[tokio::test]
async fn a_visitor_without_a_name_gets_an_explanation() {
    let example = Example::room(&[]).await;
    let browser = Browser::start().await;
    browser.client.goto(&format!("http://{}/?name=", example.address)).await.unwrap();
    let refused = Locator::Css("#status[data-state=error]");
    browser.client.wait().at_most(PATIENCE).for_element(refused).await.unwrap();
    let text = browser.text("#status").await;
    assert_eq!(text, "cannot sign in as : a name has 1 to 30 characters");
    browser.close().await;
}
