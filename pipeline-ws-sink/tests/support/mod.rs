//! Shared helpers of this crate's tests.

pub(crate) mod channels;
pub(crate) mod cluster;
pub(crate) mod handshake_server;
pub(crate) mod memory;
pub(crate) mod poller;
pub(crate) mod raw;
pub(crate) mod server;
