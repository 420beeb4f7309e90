//! How a socket ends.

use pipeline_core::ExitReason;

use crate::protocol::{
    connection::ProtocolError,
    message::{Field, Unreadable},
};

/// Why a socket ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SocketEnd {
    /// The client closed it.
    Closed,
    /// The connection broke.
    Lost,
    /// Nothing was heard and nothing was said for too long.
    Idle,
    /// The client has not come to poll for too long.
    Inactive,
    /// The client broke the rules of RFC 6455.
    Protocol(ProtocolError),
    /// The client sent something that is not a message.
    BadMessage,
    /// The client sent a message whose topic, event or reference, which is named here, is too long.
    NameTooLong(Field),
    /// The client said more than it may.
    Limited,
    /// The endpoint's sockets have received more than can be handled.
    Overloaded,
    /// The client reads more slowly than it is written to.
    Overflow,
    /// It was disconnected by its id, or the endpoint is gone.
    Disconnected,
    /// The endpoint drains.
    Draining,
}

impl From<Unreadable> for SocketEnd {
    fn from(unreadable: Unreadable) -> Self {
        match unreadable {
            Unreadable::NotAMessage => Self::BadMessage,
            Unreadable::NotUtf8 => Self::Protocol(ProtocolError::NotUtf8),
        }
    }
}

impl SocketEnd {
    /// The code of the close frame. None makes a client stay away for good: that would be 1000.
    pub(crate) fn close_code(self) -> Option<u16> {
        match self {
            // What a client gets back, whatever code it sent.
            Self::Closed => Some(1000),
            // The latter has no connection that could be closed.
            Self::Lost | Self::Inactive => None,
            Self::Idle => Some(1002),
            Self::Protocol(error) => Some(error.close_code()),
            Self::BadMessage | Self::NameTooLong(_) | Self::Overflow => Some(1011),
            Self::Limited => Some(1008),
            Self::Overloaded => Some(1013),
            Self::Disconnected => Some(1001),
            Self::Draining => Some(1012),
        }
    }

    /// What the close frame says beside its code, for those who write clients.
    pub(crate) fn explanation(self) -> &'static str {
        match self {
            Self::NameTooLong(Field::JoinRef) => "the join_ref is longer than 255 bytes",
            Self::NameTooLong(Field::Reference) => "the ref is longer than 255 bytes",
            Self::NameTooLong(Field::Topic) => "the topic is longer than 255 bytes",
            Self::NameTooLong(Field::Event) => "the event is longer than 255 bytes",
            Self::Overloaded => "the server has received more than it can handle",
            _ => "",
        }
    }

    /// What the socket's channels are told.
    pub(crate) fn reason(self) -> ExitReason {
        ExitReason::ShutdownWith(match self {
            Self::Disconnected => "disconnected".into(),
            Self::Draining => "draining".into(),
            Self::Inactive => "inactive".into(),
            _ => "closed".into(),
        })
    }
}
