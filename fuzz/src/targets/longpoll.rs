//! Long polling: the messages in the bodies of requests against a naive reading, and the answers as a client
//! reads them.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use pipeline_ws_sink::fuzzing::{longpoll_answer, longpoll_messages};
use serde_json::{Value, json};

use crate::input::Input;

pub(crate) const DICTIONARY: &[&[u8]] = &[
    b"\n",
    b"\r\n",
    b"[",
    b"[\"1\",\"2\",\"t\",\"e\",{}]\n",
    b"AAEBAQFhYmNk\n",
    b"==",
    b"application/x-ndjson",
    b"; charset=utf-8",
];

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.below(4) {
        0 => body(Some("application/x-ndjson"), input.rest()),
        1 => body(Some("Application/X-NDJSON ; charset=utf-8"), input.rest()),
        2 => {
            let content_type = input.text(40);
            body(Some(&content_type), input.rest());
        }
        _ => answer(input),
    }
}

fn body(content_type: Option<&str>, data: &[u8]) {
    let messages = longpoll_messages(content_type, Bytes::copy_from_slice(data));
    let essence = content_type.and_then(|name| name.split(';').next()).unwrap_or_default();
    let expected = if essence.trim().eq_ignore_ascii_case("application/x-ndjson") {
        let lines = data.split(|byte| *byte == b'\n');
        let lines = lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        lines.filter(|line| !line.is_empty()).map(message).collect()
    } else {
        vec![Some((false, Bytes::copy_from_slice(data)))]
    };
    assert_eq!(messages, expected, "the messages of a body of type {content_type:?}");
}

/// The message in a line, and whether it is binary.
fn message(line: &[u8]) -> Option<(bool, Bytes)> {
    if line.starts_with(b"[") {
        return Some((false, Bytes::copy_from_slice(line)));
    }
    let decoded = STANDARD.decode(line).ok()?;
    assert_eq!(STANDARD.encode(&decoded).as_bytes(), line, "base64 has one form");
    Some((true, decoded.into()))
}

fn answer(mut input: Input<'_>) {
    let token = input.text(40);
    let texts: Vec<String> = (0..input.below(5)).map(|_| input.text(100)).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let answer = longpoll_answer(&token, &texts);
    let answer: Value = serde_json::from_slice(&answer).expect("an answer is JSON");
    assert_eq!(answer, json!({ "status": 200, "token": token, "messages": texts }));
}
