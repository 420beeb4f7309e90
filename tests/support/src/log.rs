//! Recorders of log lines and spans.

use std::{
    fmt::Debug,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;
use tracing::{
    Dispatch, Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span::{Attributes, Id, Record},
    subscriber::DefaultGuard,
};
use tracing_core::span::Current;

/// Records the events logged on this thread, each with its level and fields.
#[derive(Clone, Debug, Default)]
pub struct Log {
    events: Arc<Mutex<Vec<String>>>,
    up_to: Option<LevelFilter>,
    panic_at: Arc<Mutex<Option<&'static str>>>,
    always_panics: Arc<AtomicBool>,
    panics: Arc<AtomicU64>,
}

impl Log {
    /// Starts recording on this thread, until the guard is dropped.
    #[must_use]
    pub fn keep() -> (Self, DefaultGuard) {
        Self::default().begin()
    }

    /// The same, for these levels only.
    #[must_use]
    pub fn up_to(level: LevelFilter) -> (Self, DefaultGuard) {
        Self { up_to: Some(level), ..Self::default() }.begin()
    }

    fn begin(self) -> (Self, DefaultGuard) {
        // With a single subscriber, tracing caches the interest of whichever thread reaches a call site
        // first, also that of a thread without a subscriber. Two subscribers prevent that.
        static OTHER: OnceLock<Dispatch> = OnceLock::new();
        OTHER.get_or_init(|| Dispatch::new(Self::default()));
        let guard = tracing::subscriber::set_default(self.clone());
        (self, guard)
    }

    /// Panics at the next event with this text, once, instead of recording it.
    pub fn panic_at(&self, text: &'static str) {
        *self.panic_at.lock() = Some(text);
    }

    /// Panics from now on, at every event and whenever a span changes.
    pub fn always_panic(&self) {
        self.always_panics.store(true, Relaxed);
    }

    /// The number of panics so far.
    #[must_use]
    pub fn panics(&self) -> u64 {
        self.panics.load(Relaxed)
    }

    fn may_panic(&self, at: &str) {
        let panics = self.panic_at.lock().take_if(|text| at.contains(*text)).is_some();
        if panics || self.always_panics.load(Relaxed) {
            self.panics.fetch_add(1, Relaxed);
            panic!("the log panics at {at}");
        }
    }

    /// The events since the last call: `LEVEL field=value ..`, with fields ordered by name.
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
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.up_to.is_none_or(|most| *metadata.level() <= most)
    }

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields(Vec::new());
        event.record(&mut fields);
        fields.0.sort();
        let level = event.metadata().level();
        let line = format!("{level} {}", fields.0.join(" "));
        self.may_panic(&line);
        self.events.lock().push(line);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        self.may_panic("a new span");
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {
        self.may_panic("a field of a span");
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {
        self.may_panic("entering a span");
    }

    fn exit(&self, _: &Id) {
        self.may_panic("leaving a span");
    }

    fn try_close(&self, _: Id) -> bool {
        self.may_panic("closing a span");
        true
    }
}

/// Records the spans around each event logged on this thread.
#[derive(Clone, Debug, Default)]
pub struct Spans(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    /// By span number: name and fields, parent, and call site.
    spans: Vec<(String, Option<usize>, &'static Metadata<'static>)>,
    entered: Vec<usize>,
    /// The messages, each with its span.
    events: Vec<(String, Option<usize>)>,
}

impl Spans {
    /// Starts recording on this thread, until the guard is dropped.
    #[must_use]
    pub fn keep() -> (Self, DefaultGuard) {
        // See `Log`.
        static OTHER: OnceLock<Dispatch> = OnceLock::new();
        OTHER.get_or_init(|| Dispatch::new(Self::default()));
        let spans = Self::default();
        let guard = tracing::subscriber::set_default(spans.clone());
        (spans, guard)
    }

    /// The spans around the first event with this message, outermost first: `name{field=value ..}`.
    #[must_use]
    pub fn of(&self, message: &str) -> String {
        let kept = self.0.lock();
        let event = kept.events.iter().find(|(said, _)| said.contains(message));
        let (_, mut span) = event.expect("it was logged").clone();
        let mut around = Vec::new();
        while let Some(id) = span {
            let (name, parent, _) = &kept.spans[id - 1];
            around.insert(0, name.clone());
            span = *parent;
        }
        around.join(": ")
    }

    /// The number of spans created so far.
    #[must_use]
    pub fn made(&self) -> usize {
        self.0.lock().spans.len()
    }
}

impl Subscriber for Spans {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields(Vec::new());
        event.record(&mut fields);
        let mut kept = self.0.lock();
        let span = kept.entered.last().copied();
        kept.events.push((fields.0.join(" "), span));
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut fields = Fields(Vec::new());
        span.record(&mut fields);
        fields.0.sort();
        let name = format!("{}{{{}}}", span.metadata().name(), fields.0.join(" "));
        let mut kept = self.0.lock();
        let around = if span.is_contextual() {
            kept.entered.last().copied()
        } else {
            span.parent().map(number)
        };
        kept.spans.push((name, around, span.metadata()));
        Id::from_u64(kept.spans.len() as u64)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, span: &Id) {
        self.0.lock().entered.push(number(span));
    }

    fn exit(&self, _: &Id) {
        self.0.lock().entered.pop();
    }

    fn current_span(&self) -> Current {
        let kept = self.0.lock();
        let current = kept.entered.last();
        current.map_or_else(Current::none, |id| {
            Current::new(Id::from_u64(*id as u64), kept.spans[*id - 1].2)
        })
    }
}

/// A span's number in the order of creation, from 1.
fn number(span: &Id) -> usize {
    usize::try_from(span.into_u64()).expect("few spans")
}
