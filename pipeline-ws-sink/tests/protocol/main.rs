//! The cases of section 32 of `docs/spec/channels.md` that concern messages, one test each, with a file
//! for each of its tables.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]
#![allow(clippy::needless_pass_by_value, reason = "json!(..) reads best where it stands")]

#[path = "../support/mod.rs"]
mod support;

mod app;
mod binary;
mod broadcasts;
mod duplicate_join;
mod ending;
mod events;
mod frames;
mod heartbeat;
mod joining;
mod room;
mod socket_id;
