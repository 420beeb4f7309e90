//! What tests of channels need.

mod pattern;

#[doc(hidden)]
pub use self::pattern::Pattern;
