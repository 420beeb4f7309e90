//! The wire protocol. Pure: no code here waits, locks, logs or reads a clock.

pub(crate) mod binary;
pub(crate) mod connection;
pub(crate) mod deflate;
pub(crate) mod escape;
pub(crate) mod frame;
pub(crate) mod longpoll;
pub(crate) mod message;
pub(crate) mod reference;
pub(crate) mod v1;
pub(crate) mod v2;
pub(crate) mod version;
