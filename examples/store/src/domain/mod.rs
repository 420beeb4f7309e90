//! The shop's rules, without the network, the database and the clock.

pub mod cart;
pub mod catalogue;
pub mod change;
pub mod ids;
pub mod level;
pub mod moment;
pub mod telling;
