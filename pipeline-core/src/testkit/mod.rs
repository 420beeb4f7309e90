//! Checks for what is built on this crate, by the feature `test-kit`.
//!
//! They try many random sequences, and panic with the shortest one they find that breaks a rule.

mod dispatcher;

pub use self::dispatcher::{Delivering, DispatcherCheck, check_dispatcher};
