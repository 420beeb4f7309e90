//! The last messages.

use std::{
    collections::VecDeque,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::Serialize;

/// A chat message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// The number of the message, by which a page skips messages that it has.
    pub number: u64,
    pub name: String,
    pub text: String,
    /// When it was said, in milliseconds since 1970.
    pub at_ms: u64,
}

/// The last messages, oldest first.
#[derive(Debug, Default)]
pub struct History {
    last: VecDeque<Message>,
    count: u64,
}

impl History {
    /// Maximum number of messages. Older ones are dropped.
    pub const MAX: usize = 50;

    pub fn add(&mut self, name: &str, text: String, at: SystemTime) -> Message {
        if self.last.len() == Self::MAX {
            self.last.pop_front();
        }
        self.count += 1;
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let at_ms = since.as_millis().try_into().unwrap_or(u64::MAX);
        let message = Message { number: self.count, name: name.to_owned(), text, at_ms };
        self.last.push_back(message.clone());
        message
    }

    pub fn messages(&self) -> Vec<Message> {
        self.last.iter().cloned().collect()
    }
}
