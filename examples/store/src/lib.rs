//! A shop that sells limited shoes in drops.
//!
//! Its specification is `docs/spec/store.md`; the names of its tests begin with the rows that they show.

pub mod domain;
pub mod pages;
