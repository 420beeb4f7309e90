//! How many of a client's messages wait for joins. Pure.

use std::collections::VecDeque;

use super::inbox::InboxBytes;
use crate::protocol::message::Received;

/// How many messages of a socket wait for its joins before it is not read from any more. The
/// official client sends none before its join is answered, and another join when that takes ten
/// seconds.
const MESSAGES: usize = 256;

/// How many bytes of them, as the inbox counts them.
const BYTES: usize = 128 << 10;

/// The messages that wait for the join of one topic, in order.
pub(super) type WaitingMessages = VecDeque<(Received, InboxBytes)>;

/// The messages of one socket that wait for its joins, all topics together.
///
/// A socket is read much faster than joins are handled. Without a bound of its own, what waits for
/// them would fill the inbox.
#[derive(Debug, Default)]
pub(super) struct Behind {
    messages: usize,
    bytes: usize,
}

impl Behind {
    pub(super) fn add(&mut self, held: &InboxBytes) {
        self.messages += 1;
        self.bytes += held.bytes();
    }

    pub(super) fn remove(&mut self, held: &InboxBytes) {
        self.messages -= 1;
        self.bytes -= held.bytes();
    }

    /// Whether no more may wait. A single message may have any size.
    pub(super) fn is_full(&self) -> bool {
        self.messages >= MESSAGES || self.bytes >= BYTES
    }
}
