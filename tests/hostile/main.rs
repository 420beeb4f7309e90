//! Hostile clients next to a calm one: the cases of `docs/spec/hostile.md`.
//!
//! Every case runs against the server that users run, over real TCP, with the server on one worker
//! thread and on two. Hostile and calm clients are threads with blocking I/O, which the server's
//! runtime cannot slow down. Meanwhile a calm client sends one request after the other.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "helpers of tests are tests too"
)]

mod arena;
mod autobahn;
mod case;
mod client;
mod cut;
mod deflate;
mod document;
mod frames;
mod messages;
mod others;
mod polls;
mod requests;
mod server;
mod slow;
mod storms;
mod sustained;
mod tokens;
