//! The last messages.

use std::collections::VecDeque;

use serde::Serialize;

/// A chat message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// The number of the message, by which a page skips messages that it has.
    pub number: u64,
    pub name: String,
    pub text: String,
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

    pub fn add(&mut self, name: &str, text: String) -> Message {
        if self.last.len() == Self::MAX {
            self.last.pop_front();
        }
        self.count += 1;
        let message = Message { number: self.count, name: name.to_owned(), text };
        self.last.push_back(message.clone());
        message
    }

    pub fn messages(&self) -> Vec<Message> {
        self.last.iter().cloned().collect()
    }
}
