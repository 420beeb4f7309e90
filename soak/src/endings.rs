//! The reasons for which the server ended its connections, as it logs them, and what it had sent by then.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt::Debug,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span::{Id, Record},
};
use tracing_subscriber::{
    layer::{Context, Layer},
    registry::LookupSpan,
};

use crate::lateness::Ticks;

/// The number of ends that are kept for each client. A client asks for its last one, until it has the answer, and
/// connects again only then. So the end is there for as long as it may ask.
const KEPT: usize = 8;

/// Ticks that were due in this time before an end may have caused it: a session's window, and half of it.
const LATE_WITHIN: Duration = Duration::from_secs(10);

/// The target of the log lines.
const TRANSPORT: &str = "pipeline_ws_sink::transport";

/// The end of a connection.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct End {
    /// The reason that was logged.
    pub(crate) reason: String,
    /// The last item that had been broadcast to the client's user.
    pub(crate) broadcast: u64,
    /// How long before that an item of a burst was last broadcast to the user, in milliseconds.
    pub(crate) burst_millis: Option<u64>,
    /// By how many milliseconds a tick of the server was late at most, in the time before.
    pub(crate) late_millis: u64,
}

/// What was broadcast to each user.
#[derive(Debug, Default)]
pub(crate) struct Progress(Mutex<Vec<Broadcast>>);

#[derive(Clone, Copy, Debug, Default)]
struct Broadcast {
    last: u64,
    burst_at: Option<Instant>,
}

impl Progress {
    pub(crate) fn new(users: usize) -> Self {
        Self(Mutex::new(vec![Broadcast::default(); users]))
    }

    /// An item is on its way to all subscribers, as all that have lower numbers.
    pub(crate) fn add(&self, user: usize, k: u64, is_burst: bool) {
        let mut broadcasts = self.0.lock();
        let Some(broadcast) = broadcasts.get_mut(user) else { return };
        broadcast.last = broadcast.last.max(k);
        if is_burst {
            broadcast.burst_at = Some(Instant::now());
        }
    }

    /// The last item that was broadcast to a user.
    pub(crate) fn last(&self, user: usize) -> u64 {
        self.of(user).last
    }

    fn of(&self, user: usize) -> Broadcast {
        self.0.lock().get(user).copied().unwrap_or_default()
    }
}

/// The ends of all connections: how many for each reason, and the last ones of each client.
#[derive(Clone, Debug)]
pub(crate) struct Endings {
    ended: Arc<Mutex<Ended>>,
    broadcasts: Arc<Progress>,
    ticks: Ticks,
}

#[derive(Debug, Default)]
struct Ended {
    counts: BTreeMap<String, u64>,
    /// Further ends of the same connection.
    unused: u64,
    /// By client: connections and reasons.
    last: HashMap<String, VecDeque<(String, End)>>,
}

/// The socket's id, kept with its span: that of a connection.
struct Connection(String);

impl Endings {
    pub(crate) fn new(broadcasts: Arc<Progress>, ticks: Ticks) -> Self {
        Self { ended: Arc::default(), broadcasts, ticks }
    }

    /// How many connections ended for each reason.
    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        self.ended.lock().counts.clone()
    }

    /// The end of a connection: `client.visit`.
    pub(crate) fn of(&self, connection: &str) -> Option<End> {
        let ended = self.ended.lock();
        let last = ended.last.get(client(connection))?;
        last.iter().find(|(id, _)| id == connection).map(|(_, end)| end.clone())
    }

    /// How many sessions ended under the name of a connection that had ended before: those that were opened for a
    /// poll that came too late.
    pub(crate) fn unused(&self) -> u64 {
        self.ended.lock().unused
    }

    fn add(&self, connection: &str, reason: String) {
        let number = client(connection).parse().unwrap_or_default();
        let Broadcast { last: broadcast, burst_at } = self.broadcasts.of(user_of(number));
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let end = End {
            reason: reason.clone(),
            broadcast,
            burst_millis: burst_at.map(|at| millis(at.elapsed())),
            late_millis: millis(self.ticks.worst_within(LATE_WITHIN)),
        };
        let Ended { counts, unused, last } = &mut *self.ended.lock();
        let last = last.entry(client(connection).to_owned()).or_default();
        if last.iter().any(|(id, _)| id == connection) {
            *unused += 1;
            return;
        }
        *counts.entry(reason).or_default() += 1;
        if last.len() == KEPT {
            last.pop_front();
        }
        last.push_back((connection.to_owned(), end));
    }
}

/// The client of a connection.
pub(crate) fn client(connection: &str) -> &str {
    connection.split_once('.').map_or(connection, |(client, _)| client)
}

/// The user of a client in the soak: there are two clients on each topic.
pub(crate) fn user_of(client: usize) -> usize {
    client / 2
}

/// Only the sockets' spans, and the lines of their ends.
impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Endings {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        if metadata.is_span() {
            metadata.name() == "socket"
        } else {
            metadata.target().starts_with(TRANSPORT)
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::DEBUG)
    }

    fn on_record(&self, span: &Id, values: &Record<'_>, cx: Context<'_, S>) {
        let (Some(id), Some(span)) = (Text::of("id", |text| values.record(text)), cx.span(span))
        else {
            return;
        };
        span.extensions_mut().replace(Connection(id));
    }

    fn on_event(&self, event: &Event<'_>, cx: Context<'_, S>) {
        let Some(reason) = Text::of("end", |text| event.record(text)) else { return };
        for span in cx.event_scope(event).into_iter().flatten() {
            if let Some(Connection(connection)) = span.extensions().get() {
                return self.add(connection, reason);
            }
        }
        self.add("", reason);
    }
}

/// The value of one field as text.
struct Text {
    field: &'static str,
    value: Option<String>,
}

impl Text {
    fn of(field: &'static str, record: impl FnOnce(&mut Self)) -> Option<String> {
        let mut text = Self { field, value: None };
        record(&mut text);
        text.value
    }
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == self.field {
            self.value = Some(value.to_owned());
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == self.field {
            self.value = Some(format!("{value:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_ends_of_each_client_are_kept_and_all_are_counted() {
        let broadcasts = Arc::new(Progress::new(5));
        let endings = Endings::new(broadcasts.clone(), Ticks::start());
        let reason = |connection: &str| endings.of(connection).map(|end| end.reason);
        for visit in 0..10 {
            endings.add(&format!("7.{visit}"), format!("Overflow{}", visit % 2));
        }
        endings.add("8.0", "Inactive".to_owned());
        assert_eq!(reason("7.1"), None, "forgotten");
        endings.add("7.9", "Inactive".to_owned());
        assert_eq!(reason("7.9").as_deref(), Some("Overflow1"), "the first one");
        assert_eq!(endings.unused(), 1);
        assert_eq!(reason("8.0").as_deref(), Some("Inactive"));
        assert_eq!(reason("8.1"), None, "has not ended");
        let expected = [("Inactive", 1), ("Overflow0", 5), ("Overflow1", 5)];
        assert_eq!(endings.counts(), expected.map(|(of, n)| (of.to_owned(), n)).into());
    }

    #[tokio::test]
    async fn an_end_has_what_was_broadcast_to_its_user_before_it() {
        let broadcasts = Arc::new(Progress::new(5));
        let endings = Endings::new(broadcasts.clone(), Ticks::start());
        broadcasts.add(3, 18, false);
        broadcasts.add(4, 7, true);
        endings.add("7.0", "Overflow".to_owned());
        broadcasts.add(3, 20, true);
        broadcasts.add(3, 19, false);
        endings.add("6.0", "Overflow".to_owned());
        let [before, after] = ["7.0", "6.0"].map(|connection| endings.of(connection).unwrap());
        assert_eq!((before.broadcast, before.burst_millis), (18, None));
        assert_eq!((after.broadcast, after.burst_millis.is_some()), (20, true));
    }
}
