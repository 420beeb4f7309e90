//! Whether the server may have ended a client's connection. Pure.

use std::time::Duration;

use crate::{
    client::Ended,
    endings::End,
    server::{BURST_BYTES, OUTBOX_BYTES},
};

/// For how long a poll waits, and within which a session has to take a message.
pub(crate) const WINDOW: Duration = Duration::from_secs(4);

/// The time without a poll after which a long-polling session expires: one and a half windows.
const EXPIRES_AFTER: Duration = Duration::from_secs(6);

/// How late a tick has to be for a message not to be taken in time.
const DISTURBED: Duration = Duration::from_secs(1);

/// The least number of items that wait for a client when its outbox is full of a burst. Some of the bytes in it may be
/// of replies and presences.
const FULL: u64 = (OUTBOX_BYTES / (BURST_BYTES + 1024)) as u64;

/// What a client knows of a connection that is over.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Known {
    /// How long it lasted, until the client noticed its end.
    pub(crate) lasted: Duration,
    /// The longest time for which it was not read from.
    pub(crate) frozen: Duration,
    /// The longest time from one poll to the next, or from the last one to the end.
    pub(crate) unpolled: Duration,
    /// The last item of its user that it received, or that was broadcast before it subscribed.
    pub(crate) seen: u64,
    /// How late a tick was at most, in the clients' process, since some time before the end.
    pub(crate) late: Duration,
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
    /// The machine was so late that the session did not take a message in time. The client has given it up.
    Untaken,
}

/// The excuse for an end that the client has not caused. `end` is what the server has recorded for this connection.
///
/// - A client was too slow if a burst was broadcast to its user while it was connected, and so many items that its
///   outbox cannot hold more were broadcast before the end and did not arrive.
/// - A session has expired if there was no poll for as long as a session waits, by the client's clock. Either process
///   may have been late: that much is added.
/// - A message is not taken only if a process was late for a second.
pub(crate) fn excuse(ended: &Ended, end: Option<&End>, known: Known) -> Result<Excuse, String> {
    let fault =
        || Err(format!("its connection ended with {ended:?}, recorded as {end:?}: {known:?}"));
    let Some(end) = end else { return fault() };
    let late = known.late.max(Duration::from_millis(end.late_millis));
    let is_full = end.broadcast.saturating_sub(known.seen) >= FULL;
    let in_burst = end.burst_millis.is_some_and(|ago| Duration::from_millis(ago) <= known.lasted);
    match (ended, &*end.reason) {
        (Ended::Closed(1011), "Overflow") if is_full && in_burst => Ok(Excuse::Slow),
        (Ended::Broken | Ended::Gone | Ended::NotTaken(_), "Overflow") if is_full && in_burst => {
            Ok(Excuse::SlowAndBroken)
        }
        (Ended::Gone | Ended::NotTaken(_), "Inactive")
            if known.unpolled + late >= EXPIRES_AFTER =>
        {
            Ok(Excuse::Expired)
        }
        (Ended::NotTaken(took), "Inactive") if *took >= WINDOW && late >= DISTURBED => {
            Ok(Excuse::Untaken)
        }
        _ => fault(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(reason: &str) -> End {
        let reason = reason.to_owned();
        End { reason, broadcast: 1000, burst_millis: None, late_millis: 0 }
    }

    /// An end while a burst of which the last item was broadcast two seconds before.
    fn slow() -> End {
        End { burst_millis: Some(2000), ..end("Overflow") }
    }

    /// A connection of ten seconds, which has received all but so many items.
    fn missed(items: u64) -> Known {
        Known { lasted: Duration::from_secs(10), seen: 1000 - items, ..Known::default() }
    }

    #[test]
    fn only_what_was_recorded_for_this_connection_is_an_excuse() {
        let unpolled = |millis| Known { unpolled: Duration::from_millis(millis), ..missed(0) };
        let late = |known, millis| Known { late: Duration::from_millis(millis), ..known };
        let untaken = |millis| Ended::NotTaken(Duration::from_millis(millis));
        let excused = [
            (Ended::Closed(1011), slow(), missed(FULL), Excuse::Slow),
            (Ended::Broken, slow(), missed(FULL), Excuse::SlowAndBroken),
            (Ended::Gone, slow(), missed(FULL), Excuse::SlowAndBroken),
            (untaken(0), slow(), missed(FULL), Excuse::SlowAndBroken),
            (Ended::Gone, end("Inactive"), unpolled(6000), Excuse::Expired),
            (untaken(0), end("Inactive"), unpolled(6000), Excuse::Expired),
            (Ended::Gone, end("Inactive"), late(unpolled(5500), 500), Excuse::Expired),
            (
                Ended::Gone,
                End { late_millis: 500, ..end("Inactive") },
                unpolled(5500),
                Excuse::Expired,
            ),
            (untaken(4000), end("Inactive"), late(unpolled(3000), 1000), Excuse::Untaken),
        ];
        for (ended, end, known, expected) in excused {
            assert_eq!(excuse(&ended, Some(&end), known), Ok(expected), "{ended:?}, {end:?}");
        }
        let before = End { burst_millis: Some(10_001), ..slow() };
        let frozen = Known { frozen: Duration::from_secs(8), ..missed(0) };
        let faults = [
            (Ended::Closed(1011), slow(), missed(FULL - 1)),
            (Ended::Closed(1011), slow(), frozen),
            (Ended::Closed(1011), before, missed(FULL)),
            (Ended::Closed(1011), end("Overflow"), missed(FULL)),
            (Ended::Closed(1011), end("BadMessage"), missed(FULL)),
            (Ended::Closed(1002), slow(), missed(FULL)),
            (Ended::Broken, end("Lost"), missed(FULL)),
            (Ended::Broken, end("Inactive"), unpolled(8000)),
            (Ended::Gone, end("Inactive"), unpolled(5999)),
            (Ended::Gone, end("Inactive"), late(unpolled(5499), 500)),
            (Ended::Gone, end("Inactive"), frozen),
            (Ended::Gone, end("Inactive"), late(unpolled(3000), 1000)),
            (Ended::Closed(1011), slow(), unpolled(8000)),
            (untaken(3999), end("Inactive"), late(unpolled(3000), 1000)),
            (untaken(4000), end("Inactive"), late(unpolled(3000), 999)),
            (Ended::Refused, slow(), missed(FULL)),
        ];
        for (ended, end, known) in faults {
            assert!(excuse(&ended, Some(&end), known).is_err(), "{ended:?}, {end:?}, {known:?}");
        }
        assert!(excuse(&Ended::Gone, None, unpolled(8000)).is_err(), "nothing was recorded");
    }
}
