//! Whether the server may have ended a client's connection. Pure.

use std::time::Duration;

use crate::client::Ended;

/// The time without a poll after which a long-polling session may expire: one and a half windows.
pub(crate) const EXPIRES_AFTER: Duration = Duration::from_secs(6);

/// What a client knows of a connection that is over.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Known {
    /// The longest time for which it was not read from.
    pub(crate) frozen: Duration,
    /// The longest time from one poll to the next. A client may also be late because its machine is busy.
    pub(crate) unpolled: Duration,
    /// Whether there was a burst to its user, which may be faster than any client. Its items need not have arrived.
    pub(crate) in_burst: bool,
}

/// A reason for which the server may have ended the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Excuse {
    /// The client was too slow, and has read the close.
    Slow,
    /// The client was too slow for the close as well, or has no connection to close.
    SlowAndBroken,
    /// The client has not polled for too long.
    Expired,
}

/// The excuse for an end that the client has not caused. `counted` is the reason that the server has counted for this
/// connection.
pub(crate) fn excuse(ended: &Ended, counted: Option<&str>, known: Known) -> Result<Excuse, String> {
    let may_be_slow = known.frozen > Duration::ZERO || known.in_burst;
    match (ended, counted) {
        (Ended::Closed(1011), Some("Overflow")) if may_be_slow => Ok(Excuse::Slow),
        (Ended::Broken | Ended::Gone, Some("Overflow")) if may_be_slow => Ok(Excuse::SlowAndBroken),
        (Ended::Gone, Some("Inactive")) if known.unpolled >= EXPIRES_AFTER => Ok(Excuse::Expired),
        _ => Err(format!(
            "its connection ended with {ended:?}, for which the server counted {counted:?}: {known:?}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reason_counted_for_this_connection_is_an_excuse() {
        let calm = Known::default();
        let frozen = |millis| Known { frozen: Duration::from_millis(millis), ..calm };
        let unpolled = |millis| Known { unpolled: Duration::from_millis(millis), ..calm };
        let in_burst = Known { in_burst: true, ..calm };
        let slow = Some("Overflow");
        let excused = [
            (Ended::Closed(1011), slow, frozen(500), Excuse::Slow),
            (Ended::Closed(1011), slow, in_burst, Excuse::Slow),
            (Ended::Broken, slow, frozen(500), Excuse::SlowAndBroken),
            (Ended::Gone, slow, frozen(500), Excuse::SlowAndBroken),
            (Ended::Gone, Some("Inactive"), unpolled(6000), Excuse::Expired),
        ];
        for (ended, counted, known, expected) in excused {
            assert_eq!(excuse(&ended, counted, known), Ok(expected), "{ended:?}, {counted:?}");
        }
        let faults = [
            (Ended::Closed(1011), slow, calm),
            (Ended::Closed(1011), None, frozen(8000)),
            (Ended::Closed(1011), Some("BadMessage"), frozen(8000)),
            (Ended::Closed(1002), slow, frozen(8000)),
            (Ended::Broken, None, frozen(8000)),
            (Ended::Broken, Some("Lost"), frozen(8000)),
            (Ended::Gone, None, frozen(8000)),
            (Ended::Gone, Some("Inactive"), unpolled(5999)),
            (Ended::Gone, Some("Inactive"), frozen(8000)),
            (Ended::Closed(1011), slow, unpolled(8000)),
            (Ended::Gone, Some("Inactive"), in_burst),
            (Ended::Refused, slow, frozen(8000)),
        ];
        for (ended, counted, known) in faults {
            assert!(excuse(&ended, counted, known).is_err(), "{ended:?}, {counted:?}, {known:?}");
        }
    }
}
