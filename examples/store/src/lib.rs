//! A shop that sells limited shoes in drops.
//!
//! Its specification is `docs/spec/store.md`; the names of its tests begin with the rows that they show.

pub mod admins;
pub mod balance;
pub mod channels;
pub mod clock;
pub mod database;
pub mod domain;
pub mod http;
pub mod inventory;
pub mod pages;
pub mod pipelines;
pub mod shop;
pub mod store;
pub mod telemetry;
