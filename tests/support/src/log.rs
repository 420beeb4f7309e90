//! Reading the log.

use std::{
    fmt::Debug,
    sync::{Arc, OnceLock},
};

use parking_lot::Mutex;
use tracing::{
    Dispatch, Event, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
    subscriber::DefaultGuard,
};

/// Keeps what is logged on this thread: of each event, its level and its fields.
#[derive(Clone, Debug, Default)]
pub struct Log {
    events: Arc<Mutex<Vec<String>>>,
}

impl Log {
    /// Begins to keep what is logged on this thread, until the guard is dropped.
    #[must_use]
    pub fn keep() -> (Self, DefaultGuard) {
        // With only one subscriber alive, tracing asks whichever thread comes first to a call site
        // whether anybody listens, and remembers a no of a thread that has none. So there are two.
        static OTHER: OnceLock<Dispatch> = OnceLock::new();
        OTHER.get_or_init(|| Dispatch::new(Self::default()));
        let log = Self::default();
        let guard = tracing::subscriber::set_default(log.clone());
        (log, guard)
    }

    /// What was logged since the last call: `LEVEL field=value ..`, the fields in the order of their
    /// names.
    #[must_use]
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.events.lock())
    }
}

struct Fields(Vec<String>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.push(format!("{}={value:?}", field.name()));
    }
}

impl Subscriber for Log {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields(Vec::new());
        event.record(&mut fields);
        fields.0.sort();
        let level = event.metadata().level();
        self.events.lock().push(format!("{level} {}", fields.0.join(" ")));
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}
