//! The targets, a file each.

use crate::Target;

macro_rules! targets {
    ($($name:ident)*) => {
        $(mod $name;)*

        /// All targets.
        pub const TARGETS: &[Target] = &[$(Target {
            name: stringify!($name),
            run: $name::run,
            dictionary: $name::DICTIONARY,
        },)*];
    };
}

targets! {
    frames
    deflate
    client_messages
    server_messages
    handshake
    tokens
    jwt
    longpoll
    paths
    queries
    origins
    hosts
    traces
    node_frames
    statsd
    tracker
    demand
    buffers
    outlets
    dispatchers
    queues
}
