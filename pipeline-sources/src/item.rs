//! An item of a durable source.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use bytes::Bytes;
use pipeline_core::{processing::Metadata, timed::TraceContext};

/// An item to be added to a durable source: its payload and what goes with it.
///
/// ```
/// use pipeline_sources::Item;
///
/// let item = Item::new(r#"{"id": 7}"#).key("customer 12").header("kind", "order");
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[must_use]
pub struct Item {
    /// What it is about.
    pub payload: Bytes,
    /// Items with the same key belong together. Where a source keeps an order, it is that of a key.
    pub key: Option<Arc<str>>,
    /// Names and values for the handler.
    pub headers: BTreeMap<Arc<str>, Arc<str>>,
    /// The trace that it belongs to.
    pub trace: Option<TraceContext>,
}

impl Item {
    /// An item with a payload only.
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self { payload: payload.into(), ..Self::default() }
    }

    /// The same with a key.
    pub fn key(mut self, key: impl Into<Arc<str>>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// The same with a header.
    pub fn header(mut self, name: impl Into<Arc<str>>, value: impl Into<Arc<str>>) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }

    /// How many bytes it has.
    pub(crate) fn bytes(&self) -> usize {
        let headers = self.headers.iter().map(|(name, value)| name.len() + value.len());
        let key = self.key.as_ref().map_or(0, |key| key.len());
        self.payload.len().saturating_add(key).saturating_add(headers.sum())
    }

    /// The same with a trace.
    pub fn trace(mut self, trace: TraceContext) -> Self {
        self.trace = Some(trace);
        self
    }
}

/// An item as a broker delivers it.
#[derive(Clone, Debug)]
pub struct Delivery<R> {
    /// What identifies this delivery to the broker.
    pub receipt: R,
    /// The id of the item in its source.
    pub id: Arc<str>,
    /// The item.
    pub item: Item,
    /// When it was added.
    pub enqueued_at: Option<SystemTime>,
    /// How often it has been delivered, this time included. 0 if the broker does not count.
    pub deliveries: u32,
    /// How often it has failed before, as the last [`Outcome::Retry`](crate::Outcome::Retry) said, and 0 if
    /// there was none. `None` if the broker cannot keep that: a source then counts itself, as long as it
    /// remembers the item.
    pub failures: Option<u32>,
    /// Why the item cannot be read, if another program has added it and it is not valid. It is given up
    /// at once for this reason.
    pub malformed: Option<Arc<str>>,
}

/// An item that was given up, as its broker keeps it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeadLetter<Id = i64> {
    /// Its id among the dead letters.
    pub id: Id,
    /// The item.
    pub item: Item,
    /// When it was added to the queue.
    pub enqueued_at: Option<SystemTime>,
    /// When it was given up.
    pub given_up_at: Option<SystemTime>,
    /// How often it was delivered.
    pub deliveries: u32,
    /// Why it has failed the last time.
    pub reason: Arc<str>,
}

impl<Id> DeadLetter<Id> {
    /// The dead letter of an item that was delivered once, at times that are not known. For tests, and for a source of your
    /// own.
    #[must_use]
    pub fn new(id: Id, item: Item, reason: impl Into<Arc<str>>) -> Self {
        let reason = reason.into();
        Self { id, item, enqueued_at: None, given_up_at: None, deliveries: 1, reason }
    }

    /// The same with its id converted, for a program that treats those of several sources alike.
    #[must_use]
    pub fn map_id<T>(self, convert: impl FnOnce(Id) -> T) -> DeadLetter<T> {
        let Self { id, item, enqueued_at, given_up_at, deliveries, reason } = self;
        DeadLetter { id: convert(id), item, enqueued_at, given_up_at, deliveries, reason }
    }
}

/// An item that is not done, as its broker has it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct QueuedItem<Id = i64> {
    /// Its id in the queue.
    pub id: Id,
    /// The item.
    pub item: Item,
    /// When it was added to the queue.
    pub enqueued_at: Option<SystemTime>,
    /// How often it was delivered.
    pub deliveries: u32,
    /// What it waits for.
    pub state: QueuedState,
    /// Why it will be given up, if it cannot be read.
    pub malformed: Option<Arc<str>>,
}

/// What an item waits for that is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueuedState {
    /// Delivered when a pipeline asks for it.
    Available,
    /// In work, or its process has died. If its lease is not renewed until this time, it is delivered
    /// again.
    InWork {
        /// When its lease ends.
        until: SystemTime,
    },
    /// Delivered again at this time.
    Later {
        /// The time.
        at: SystemTime,
    },
    /// Waiting for an earlier item of its key, or for one in work.
    Blocked,
}

impl<R> Delivery<R> {
    /// The metadata of the item's message.
    pub(crate) fn metadata(&self) -> Metadata {
        let mut metadata = Metadata::default();
        metadata.id = Some(self.id.clone());
        metadata.key = self.item.key.clone();
        let headers = self.item.headers.iter();
        metadata.headers = headers.map(|(name, value)| (name.clone(), value.clone())).collect();
        metadata.enqueued_at = self.enqueued_at;
        metadata.deliveries = self.deliveries;
        metadata.trace = self.item.trace;
        metadata
    }
}
