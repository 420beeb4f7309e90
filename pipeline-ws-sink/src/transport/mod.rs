//! The transports: WebSocket and long polling.

pub(crate) mod answer_body;
pub(crate) mod endings;
pub(crate) mod io;
pub(crate) mod longpoll;
pub(crate) mod longpoll_relay;
pub(crate) mod longpoll_sessions;
mod read_pace;
pub(crate) mod websocket;
