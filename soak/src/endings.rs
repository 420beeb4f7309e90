//! The reasons for which the server ended its connections, as it logs them.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt::Debug,
    sync::Arc,
};

use parking_lot::Mutex;
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

/// The number of ends that are kept for each client. A client asks for the last one.
const KEPT: usize = 8;

/// The target of the log lines.
const TRANSPORT: &str = "pipeline_ws_sink::transport";

/// The ends of all connections: how many for each reason, and the last ones of each client.
#[derive(Clone, Debug, Default)]
pub(crate) struct Endings(Arc<Mutex<Ended>>);

#[derive(Debug, Default)]
struct Ended {
    counts: BTreeMap<String, u64>,
    /// Further ends of the same connection.
    unused: u64,
    /// By client: connections and reasons.
    last: HashMap<String, VecDeque<(String, String)>>,
}

/// The socket's id, kept with its span: that of a connection.
struct Connection(String);

impl Endings {
    /// How many connections ended for each reason.
    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        self.0.lock().counts.clone()
    }

    /// The reason for the end of a connection: `client.visit`.
    pub(crate) fn of(&self, connection: &str) -> Option<String> {
        let ended = self.0.lock();
        let last = ended.last.get(client(connection))?;
        last.iter().find(|(id, _)| id == connection).map(|(_, reason)| reason.clone())
    }

    /// How many sessions ended under the name of a connection that had ended before: those that were opened for a
    /// poll that came too late.
    pub(crate) fn unused(&self) -> u64 {
        self.0.lock().unused
    }

    fn add(&self, connection: &str, reason: String) {
        let Ended { counts, unused, last } = &mut *self.0.lock();
        let last = last.entry(client(connection).to_owned()).or_default();
        if last.iter().any(|(id, _)| id == connection) {
            *unused += 1;
            return;
        }
        *counts.entry(reason.clone()).or_default() += 1;
        if last.len() == KEPT {
            last.pop_front();
        }
        last.push_back((connection.to_owned(), reason));
    }
}

/// The client of a connection.
pub(crate) fn client(connection: &str) -> &str {
    connection.split_once('.').map_or(connection, |(client, _)| client)
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

    #[test]
    fn the_last_ends_of_each_client_are_kept_and_all_are_counted() {
        let endings = Endings::default();
        for visit in 0..10 {
            endings.add(&format!("7.{visit}"), format!("Overflow{}", visit % 2));
        }
        endings.add("8.0", "Inactive".to_owned());
        assert_eq!(endings.of("7.1"), None, "forgotten");
        endings.add("7.9", "Inactive".to_owned());
        assert_eq!(endings.of("7.9").as_deref(), Some("Overflow1"), "the first one");
        assert_eq!(endings.unused(), 1);
        assert_eq!(endings.of("8.0").as_deref(), Some("Inactive"));
        assert_eq!(endings.of("8.1"), None, "has not ended");
        let expected = [("Inactive", 1), ("Overflow0", 5), ("Overflow1", 5)];
        assert_eq!(endings.counts(), expected.map(|(of, n)| (of.to_owned(), n)).into());
    }
}
