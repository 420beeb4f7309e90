//! A push to a user.

use std::time::{SystemTime, UNIX_EPOCH};

use pipeline::timed::Timed;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use thiserror::Error;

/// Maximum size of a push in bytes.
pub const MAX_BYTES: usize = 64 * 1024;

/// A push to a user's topic.
#[derive(Debug)]
pub struct Push {
    pub user: u64,
    pub event: String,
    pub payload: Delivered,
}

/// The payload that the browser receives. The data is passed on unchanged and never parsed.
#[derive(Debug, Serialize)]
pub struct Delivered {
    data: Box<RawValue>,
    /// The Unix time of the enqueue in microseconds. The browser computes the delivery time from it with
    /// its own clock.
    at_us: u64,
}

#[cfg(feature = "durable")]
impl Delivered {
    pub fn at_us(&self) -> u64 {
        self.at_us
    }
}

/// The JSON form of a push.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    user_id: u64,
    event: String,
    data: Box<RawValue>,
}

/// The JSON form of a push, to be parsed again.
#[cfg(feature = "durable")]
#[derive(Serialize)]
struct Output<'a> {
    user_id: u64,
    event: &'a str,
    data: &'a RawValue,
}

/// An error in a push.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Fault {
    #[error("{message}, at {}column {column}", if *.line == 1 { String::new() } else { format!("line {line}, ") })]
    Json { message: String, line: usize, column: usize },
    #[error("event is empty, expected a name such as \"push_timed\"")]
    NoEvent,
    #[error("event is {0:?}, but names that begin with \"phx_\" belong to the protocol")]
    ReservedEvent(String),
    #[error("data is not a JSON object, expected {{..}}")]
    DataNotAnObject,
    #[error("longer than {MAX_BYTES} bytes")]
    TooLong,
}

impl Push {
    /// Parses a push, and timestamps it.
    pub fn parse(json: &[u8]) -> Result<Timed<Self>, Fault> {
        if json.len() > MAX_BYTES {
            return Err(Fault::TooLong);
        }
        let Input { user_id, event, data } = serde_json::from_slice(json).map_err(|error| {
            let text = error.to_string();
            // The position is reported separately.
            let message = text.rsplit_once(" at line ").map_or(&*text, |(message, _)| message);
            Fault::Json { message: message.to_owned(), line: error.line(), column: error.column() }
        })?;
        if event.is_empty() {
            return Err(Fault::NoEvent);
        }
        if event.starts_with("phx_") {
            return Err(Fault::ReservedEvent(event));
        }
        if !data.get().starts_with('{') {
            return Err(Fault::DataNotAnObject);
        }
        Ok(Self::now(user_id, event, data))
    }

    pub fn now(user: u64, event: String, data: Box<RawValue>) -> Timed<Self> {
        let at_us = us(SystemTime::now());
        Timed::now(Self { user, event, payload: Delivered { data, at_us } })
    }

    /// The same push as it comes out of a durable queue: it was accepted at this time.
    #[cfg(feature = "durable")]
    pub fn fetched(json: &[u8], accepted: SystemTime) -> Result<Timed<Self>, Fault> {
        let mut push = Self::parse(json)?.into_inner();
        push.payload.at_us = us(accepted);
        Ok(Timed::fetched(push, accepted.elapsed().unwrap_or_default()))
    }

    /// Its JSON form.
    #[cfg(feature = "durable")]
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        let Self { user, event, payload } = self;
        serde_json::to_vec(&Output { user_id: *user, event, data: &payload.data })
    }
}

/// A time as a browser has it, but in microseconds.
fn us(time: SystemTime) -> u64 {
    let since_1970 = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since_1970.as_micros().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(json: &str) -> String {
        Push::parse(json.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn a_push_keeps_its_data_unchanged() {
        let json = r#"{"user_id": 7, "event": "news", "data": {"n": 1.0, "b":[ ]}}"#;
        let push = Push::parse(json.as_bytes()).unwrap();
        assert_eq!((push.user, &*push.event), (7, "news"));
        let payload = serde_json::to_string(&push.payload).unwrap();
        assert!(payload.starts_with(r#"{"data":{"n": 1.0, "b":[ ]},"at_us":"#), "{payload}");
    }

    #[cfg(feature = "durable")]
    #[test]
    fn a_push_comes_out_of_a_queue_as_it_was_accepted() {
        let json = r#"{"event": "a\u00e9\n", "user_id": 7, "data": {"n": 1.0, "b":[ ]}}"#;
        let push = Push::parse(json.as_bytes()).unwrap();
        let accepted = SystemTime::now() - std::time::Duration::from_secs(60);
        let fetched = Push::fetched(&push.to_json().unwrap(), accepted).unwrap();
        assert_eq!((fetched.user, &*fetched.event), (7, "a\u{e9}\n"));
        assert_eq!(fetched.payload.data.get(), push.payload.data.get());
        assert_eq!(fetched.payload.at_us, us(accepted));
        let waited = fetched.timeline().queue_time().unwrap().as_secs();
        assert!((60..120).contains(&waited), "{waited} s");
    }

    #[test]
    fn a_fault_states_the_error_and_its_position() {
        assert_eq!(fault(r#"{"user_id":1,"event":"e"}"#), "missing field `data`, at column 25");
        assert_eq!(
            fault(r#"{"user_id":1,"event":"e","data":{},"more":1}"#),
            "unknown field `more`, expected one of `user_id`, `event`, `data`, at column 41"
        );
        assert_eq!(
            fault(r#"{"user_id":"1","event":"e","data":{}}"#),
            "invalid type: string \"1\", expected u64, at column 14"
        );
        assert_eq!(fault("{\"user_id\":1,\n\"event\": e"), "expected value, at line 2, column 10");
        assert_eq!(fault(r#"{"user_id":1,"#), "EOF while parsing a value, at column 13");
        assert_eq!(
            fault(r#"{"user_id":1,"event":"","data":{}}"#),
            "event is empty, expected a name such as \"push_timed\""
        );
        assert_eq!(
            fault(r#"{"user_id":1,"event":"phx_close","data":{}}"#),
            "event is \"phx_close\", but names that begin with \"phx_\" belong to the protocol"
        );
        assert_eq!(
            fault(r#"{"user_id":1,"event":"e","data":[1]}"#),
            "data is not a JSON object, expected {..}"
        );
        assert_eq!(fault(&" ".repeat(MAX_BYTES + 1)), "longer than 65536 bytes");
    }
}
