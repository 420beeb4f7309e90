//! The shop's rules, without the network, the database and the clock.

pub mod level;
