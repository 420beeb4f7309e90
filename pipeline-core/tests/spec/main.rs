//! The cases of docs/spec/stages.md, by their numbers.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

mod adapters;
mod arithmetic;
mod children;
mod custom_dispatcher;
mod supervisor;
