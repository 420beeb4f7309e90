//! What was said last.

use std::collections::VecDeque;

use serde::Serialize;

/// What somebody said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Messages are counted, so that a page knows the ones that it has.
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
    /// How many are kept. Older ones are forgotten.
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
