//! A test kit for channels: an endpoint without a network, clients that join its channels, and
//! assertions on pushes, replies and broadcasts.
//!
//! Requires the feature `test-kit`. It is the counterpart of `Phoenix.ChannelTest`, and works best
//! on tokio's paused clock, `#[tokio::test(start_paused = true)]`: then no assertion takes real
//! time, and `tokio::time::advance` or `sleep` make the timers of channels fire.
//!
//! The example of [`TestEndpoint`] is a whole test.
//!
//! # Assertions
//!
//! An assertion searches all messages that the client or the subscriber has received, in any order,
//! and waits up to 100 ms for a match; `within:` sets another time. It takes and returns the match;
//! all other messages stay.
//!
//! | assertion | searches for |
//! |---|---|
//! | [`assert_push!`] | an event that the client received |
//! | [`assert_reply!`] | the answer to a message of the client |
//! | [`assert_broadcast!`] | an event that was broadcast on a topic that the test has subscribed to |
//!
//! [`refute_push!`], [`refute_reply!`] and [`refute_broadcast!`] assert that there is no such
//! message.
//!
//! The expected payload comes last, in one of these forms:
//!
//! ```
//! # use std::time::Duration;
//! # use pipeline_ws_sink::channel_test::{TestChannel, assert_push};
//! # use serde_json::json;
//! # async fn test(room: TestChannel) {
//! // Nothing. Returns the `Payload`.
//! assert_push!(room, "shouted");
//! // JSON: every field that is named has to be there, `_` is anything, lists have as many items.
//! // Values may be expressions. Returns the whole JSON.
//! let user = 42;
//! let shouted = assert_push!(room, "shouted", { "user": { "id": user }, "tags": ["a", _] });
//! assert!(shouted["at"].is_u64());
//! // JSON, and nothing more than that.
//! assert_push!(room, "shouted", == json!({ "user": { "id": 42 } }));
//! // A pattern of a type of your own. Returns a value of that type.
//! #[derive(serde::Deserialize)]
//! struct Shouted {
//!     body: String,
//! }
//! let Shouted { body } = assert_push!(room, "shouted", Shouted { body } if body.len() > 3);
//! // A predicate on any payload, including binary ones. Returns the `Payload`.
//! assert_push!(room, "photo", |photo| photo.as_binary().is_some_and(|bytes| bytes.len() > 3));
//! // How long to wait.
//! assert_push!(room, "tick", { "n": 1 }, within: Duration::from_secs(60));
//! # }
//! ```
//!
//! An assertion that fails lists the waiting messages. A channel that crashes fails the next
//! assertion, with its reason: see [`TestChannel::unlink`].
#![expect(clippy::panic, reason = "it is how a test fails")]

mod channel;
mod connection;
mod endpoint;
mod inbox;
mod macros;
mod message;
mod pattern;
mod search;
mod socket;
mod topic;

#[doc(inline)]
pub use crate::{
    __assert_broadcast as assert_broadcast, __assert_push as assert_push,
    __assert_reply as assert_reply, __refute_broadcast as refute_broadcast,
    __refute_push as refute_push, __refute_reply as refute_reply,
};

pub use self::{
    channel::TestChannel,
    endpoint::TestEndpoint,
    message::WireFrame,
    socket::{JoinRefused, TestSocket},
    topic::TestTopic,
};
pub(crate) use self::{connection::TestConnection, inbox::Probe};
#[doc(hidden)]
pub use self::{
    pattern::Pattern,
    search::{Search, again, json},
};
