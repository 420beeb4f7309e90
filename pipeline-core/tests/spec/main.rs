//! The cases of docs/spec/stages.md, by their numbers.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

mod adapters;
mod arithmetic;
mod buffer;
mod cancelling;
mod children;
mod conservation;
mod custom_dispatcher;
mod demand_mode;
mod dispatchers;
mod emission;
mod mapper;
mod markers;
mod producer_consumer;
mod subscribing;
mod supervisor;
mod support;
