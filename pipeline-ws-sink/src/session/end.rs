//! The reasons for a socket's end.

use pipeline_core::ExitReason;

use crate::protocol::{
    connection::ProtocolError,
    message::{Field, Unreadable},
};

/// The code of the close frame of a socket whose end has come. From the range for applications, so
/// that a client can tell it from all other ends; as 401 of HTTP, it needs another token.
const EXPIRED: u16 = 4401;

/// Why a socket ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SocketEnd {
    /// The client closed it.
    Closed,
    /// The connection broke.
    Lost,
    /// No traffic in either direction for too long.
    Idle,
    /// A long-polling client has not polled for too long.
    Inactive,
    /// The client violated RFC 6455.
    Protocol(ProtocolError),
    /// The client sent an invalid message.
    BadMessage,
    /// The client sent a message whose topic, event or reference, named here, is too long.
    NameTooLong(Field),
    /// The client exceeded its rate limit.
    Limited,
    /// The endpoint has received more than it can handle.
    Overloaded,
    /// The client reads too slowly.
    Overflow,
    /// The socket was disconnected by its id, or the endpoint is gone.
    Disconnected,
    /// The endpoint is draining.
    Draining,
    /// The client may not connect, and learns why.
    Refused,
    /// The socket had an end, and it has come.
    Expired,
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
    /// The code of the close frame. No code makes a client stay away for good: that would be 1000.
    pub(crate) fn close_code(self) -> Option<u16> {
        match self {
            // The answer to a client's close frame, whatever code it has.
            Self::Closed => Some(1000),
            // An inactive client has no connection to close.
            Self::Lost | Self::Inactive => None,
            Self::Idle => Some(1002),
            Self::Protocol(error) => Some(error.close_code()),
            Self::BadMessage | Self::NameTooLong(_) | Self::Overflow => Some(1011),
            Self::Limited | Self::Refused => Some(1008),
            Self::Overloaded => Some(1013),
            Self::Disconnected => Some(1001),
            Self::Draining => Some(1012),
            Self::Expired => Some(EXPIRED),
        }
    }

    /// The reason in the close frame, for authors of clients.
    pub(crate) fn explanation(self) -> &'static str {
        match self {
            Self::NameTooLong(Field::JoinRef) => "the join_ref is longer than 255 bytes",
            Self::NameTooLong(Field::Reference) => "the ref is longer than 255 bytes",
            Self::NameTooLong(Field::Topic) => "the topic is longer than 255 bytes",
            Self::NameTooLong(Field::Event) => "the event is longer than 255 bytes",
            Self::Expired => "the socket has expired",
            Self::Overloaded => "the server has received more than it can handle",
            _ => "",
        }
    }

    /// The exit reason of the socket's channels.
    pub(crate) fn reason(self) -> ExitReason {
        ExitReason::ShutdownWith(match self {
            Self::Disconnected => "disconnected".into(),
            Self::Draining => "draining".into(),
            Self::Inactive => "inactive".into(),
            Self::Expired => "expired".into(),
            _ => "closed".into(),
        })
    }
}
