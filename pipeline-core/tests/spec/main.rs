//! The cases of docs/spec/stages.md, by their numbers.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

mod arithmetic;
mod buffer;
mod demand_mode;
mod markers;
mod producer_consumer;
mod stages;
