//! What an operator asks of a socket whose type is not known.

use std::{sync::Arc, time::Duration};

use tokio::sync::oneshot;

use super::{Connection, SessionEvent};
use crate::socket::Socket;

/// A question to a session, which alone knows its channels.
#[derive(Debug)]
pub(crate) enum Question {
    /// Which topics are joined.
    Joined(oneshot::Sender<Vec<Arc<str>>>),
    /// Ends the channel of this topic. The answer is whether it was joined.
    End(Box<str>, oneshot::Sender<bool>),
}

/// A socket that can be asked.
pub(crate) trait Questioned: Send + Sync {
    /// Asks. The question is dropped if too many wait, or if the socket has ended.
    fn ask(&self, question: Question);

    /// The name of the transport.
    fn transport(&self) -> &'static str;

    /// The time until the socket's end, if it has one.
    fn expires_in(&self) -> Option<Duration>;
}

impl<S: Socket> Questioned for Connection<S> {
    fn ask(&self, question: Question) {
        if !self.outbox.has_ended() && self.events.admit_question() {
            self.events.send(SessionEvent::Asked(question));
        }
    }

    fn transport(&self) -> &'static str {
        self.transport
    }

    fn expires_in(&self) -> Option<Duration> {
        self.expiry.remaining()
    }
}
