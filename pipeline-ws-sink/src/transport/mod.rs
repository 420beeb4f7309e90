//! How a client's messages come and go.

pub(crate) mod handshake;
pub(crate) mod io;
pub(crate) mod longpoll;
pub(crate) mod polled;
mod read_pace;
mod websocket;
