//! What goes over the wire. Pure: nothing here waits, locks, logs or reads a clock.

pub(crate) mod connection;
pub(crate) mod deflate;
pub(crate) mod escape;
pub(crate) mod frame;
pub(crate) mod message;
pub(crate) mod version;
