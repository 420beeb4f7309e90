//! The assertions.

/// Asserts that a channel pushes this event to its client, or has pushed it: on its own, or because
/// of a broadcast. Returns the payload.
///
/// See [the module](crate::channel_test#assertions) for the forms of an expected payload, and for the
/// time limit. This is `assert_push` of `Phoenix.ChannelTest`.
///
/// ```
/// # use pipeline_ws_sink::channel_test::{TestChannel, assert_push};
/// # async fn test(room: TestChannel) {
/// let shouted = assert_push!(room, "shouted", { "body": "hi" });
/// assert!(shouted["at"].is_u64());
/// # }
/// ```
#[doc(hidden)]
#[macro_export]
macro_rules! __assert_push {
    ($room:expr, $event:expr $(, $($expected:tt)*)?) => {
        $crate::__expect!(find, $room.pushes($event), $($($expected)*)?)
    };
}

/// Asserts that a channel does not push this event to its client.
///
/// It waits as long as [`assert_push!`](crate::channel_test::assert_push) would. This is `refute_push` of
/// `Phoenix.ChannelTest`.
#[doc(hidden)]
#[macro_export]
macro_rules! __refute_push {
    ($room:expr, $event:expr $(, $($expected:tt)*)?) => {
        $crate::__expect!(refute, $room.pushes($event), $($($expected)*)?)
    };
}

/// Asserts that a message is answered with this status. Returns the response.
///
/// The reference is that of [`TestChannel::push`](crate::channel_test::TestChannel::push) or
/// [`leave`](crate::channel_test::TestChannel::leave). See [the module](crate::channel_test#assertions) for
/// the forms of an expected response, and for the time limit. This is `assert_reply` of
/// `Phoenix.ChannelTest`.
///
/// ```
/// # use pipeline_ws_sink::channel_test::{TestChannel, assert_reply};
/// # use serde_json::json;
/// # async fn test(room: TestChannel) {
/// let shouted = room.push("shout", json!({ "body": "hi" }));
/// assert_reply!(room, shouted, "ok", { "messages": 1 });
/// # }
/// ```
#[doc(hidden)]
#[macro_export]
macro_rules! __assert_reply {
    ($room:expr, $reference:expr, $status:expr $(, $($expected:tt)*)?) => {
        $crate::__expect!(find, $room.replies(&$reference, $status), $($($expected)*)?)
    };
}

/// Asserts that a message is not answered with this status.
///
/// It waits as long as [`assert_reply!`](crate::channel_test::assert_reply) would. This is `refute_reply` of
/// `Phoenix.ChannelTest`.
#[doc(hidden)]
#[macro_export]
macro_rules! __refute_reply {
    ($room:expr, $reference:expr, $status:expr $(, $($expected:tt)*)?) => {
        $crate::__expect!(refute, $room.replies(&$reference, $status), $($($expected)*)?)
    };
}

/// Asserts that this event is broadcast, or has been since the test subscribed: on the topic of a
/// [`TestChannel`](crate::channel_test::TestChannel) or a [`TestTopic`](crate::channel_test::TestTopic).
/// Returns the payload.
///
/// See [the module](crate::channel_test#assertions) for the forms of an expected payload, and for the
/// time limit. This is `assert_broadcast` of `Phoenix.ChannelTest`.
///
/// ```
/// # use pipeline_ws_sink::channel_test::{TestChannel, TestEndpoint, assert_broadcast};
/// # async fn test(kit: TestEndpoint, room: TestChannel) {
/// let lobby = kit.subscribe("lobby");
/// assert_broadcast!(room, "shouted", { "body": "hi" });
/// assert_broadcast!(lobby, "room_opened");
/// # }
/// ```
#[doc(hidden)]
#[macro_export]
macro_rules! __assert_broadcast {
    ($listener:expr, $event:expr $(, $($expected:tt)*)?) => {
        $crate::__expect!(find, $listener.broadcasts($event), $($($expected)*)?)
    };
}

/// Asserts that this event is not broadcast.
///
/// It waits as long as [`assert_broadcast!`](crate::channel_test::assert_broadcast) would. This is
/// `refute_broadcast` of `Phoenix.ChannelTest`.
#[doc(hidden)]
#[macro_export]
macro_rules! __refute_broadcast {
    ($listener:expr, $event:expr $(, $($expected:tt)*)?) => {
        $crate::__expect!(refute, $listener.broadcasts($event), $($($expected)*)?)
    };
}

/// Parses the expectation. The rules are tried in this order.
#[doc(hidden)]
#[macro_export]
macro_rules! __expect {
    (@look $do:ident, $search:expr, ($($within:expr)?), $text:expr, $make:expr) => {
        match $search $(.within($within))? .$do($text, $make).await {
            ::std::result::Result::Ok(found) => found,
            ::std::result::Result::Err(failure) => ::std::panic!("{failure}"),
        }
    };
    (@json $do:ident, $search:expr, $within:tt, $text:expr, $pattern:expr) => {
        $crate::__expect!(@look $do, $search, $within, $text, $crate::channel_test::json($pattern))
    };
    ($do:ident, $search:expr, $(,)?) => {
        $crate::__expect!($do, $search, _)
    };
    ($do:ident, $search:expr, within: $within:expr $(,)?) => {
        $crate::__expect!($do, $search, _, within: $within)
    };
    ($do:ident, $search:expr, _ $(, within: $within:expr)? $(,)?) => {
        $crate::__expect!(@look $do, $search, ($($within)?), "", |payload: &$crate::Payload| {
            ::std::option::Option::Some(::std::clone::Clone::clone(payload))
        })
    };
    ($do:ident, $search:expr, { $($json:tt)* } $(, within: $within:expr)? $(,)?) => {
        $crate::__expect!(@json $do, $search, ($($within)?), ::std::stringify!({ $($json)* }),
            $crate::__pattern!({ $($json)* }))
    };
    ($do:ident, $search:expr, [ $($json:tt)* ] $(, within: $within:expr)? $(,)?) => {
        $crate::__expect!(@json $do, $search, ($($within)?), ::std::stringify!([ $($json)* ]),
            $crate::__pattern!([ $($json)* ]))
    };
    ($do:ident, $search:expr, null $(, within: $within:expr)? $(,)?) => {
        $crate::__expect!(@json $do, $search, ($($within)?), "null", $crate::__pattern!(null))
    };
    ($do:ident, $search:expr, $json:literal $(, within: $within:expr)? $(,)?) => {
        $crate::__expect!(@json $do, $search, ($($within)?), ::std::stringify!($json),
            $crate::__pattern!($json))
    };
    ($do:ident, $search:expr, == $json:expr $(, within: $within:expr)? $(,)?) => {
        $crate::__expect!(@json $do, $search, ($($within)?), ::std::stringify!(== $json),
            $crate::__pattern!($json))
    };
    ($do:ident, $search:expr, |$payload:pat_param| $guard:expr $(, within: $within:expr)? $(,)?) => {
        $crate::__expect!(@look $do, $search, ($($within)?), ::std::concat!("|", ::std::stringify!($payload), "| ", ::std::stringify!($guard)),
            |payload: &$crate::Payload| {
                let fits = |$payload: &$crate::Payload| -> bool { $guard };
                fits(payload).then(|| ::std::clone::Clone::clone(payload))
            })
    };
    ($do:ident, $search:expr, $pattern:pat $(if $guard:expr)? $(, within: $within:expr)? $(,)?) => {
        $crate::__expect!(@look $do, $search, ($($within)?),
            ::std::stringify!($pattern $(if $guard)?),
            |payload: &$crate::Payload| {
                let value = payload.parse().ok()?;
                #[allow(unused_variables, reason = "a binding may only document the pattern")]
                match $crate::channel_test::again(&value, payload) {
                    ::std::option::Option::Some($pattern) $(if $guard)? => {
                        ::std::option::Option::Some(value)
                    }
                    _ => ::std::option::Option::None,
                }
            })
    };
}
