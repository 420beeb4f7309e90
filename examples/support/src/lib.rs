//! Shared parts of the examples.

mod log;
mod output;
mod phoenix;

pub use self::{
    log::log_to_stderr,
    output::{complain, finish, say},
    phoenix::{NoClient, PhoenixClient, javascript},
};

/// The colours of the examples' pages, as a style sheet.
pub const COLORS: &str = include_str!("colors.css");
