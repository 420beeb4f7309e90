//! Pure: an item as a record of Kafka, and back.

use std::{
    collections::BTreeMap,
    fmt,
    str::{FromStr, from_utf8},
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use rdkafka::{
    Message,
    message::{Header, Headers, OwnedHeaders},
};
use thiserror::Error;

use crate::{
    item::{DeadLetter, Item},
    reason::{cut, with_note},
};

/// The longest reason that is kept of a dead letter that is too large, in bytes.
const SHORT_REASON: usize = 300;

/// The largest key that is kept in a dead letter that is too large otherwise.
const SMALL_KEY: usize = 200;

/// The trace, as in HTTP.
pub(super) const TRACE: &str = "traceparent";
/// Names that begin so are the library's.
pub(super) const OWN: &str = "pipeline-";
/// When an item was added that was given up, in milliseconds since 1970.
const ENQUEUED_AT: &str = "pipeline-enqueued-at";
/// Of a dead letter: its item's key, why and when it was given up, how often it was delivered, and where
/// it was.
const KEY: &str = "pipeline-key";
const REASON: &str = "pipeline-reason";
const GIVEN_UP_AT: &str = "pipeline-given-up-at";
const DELIVERIES: &str = "pipeline-deliveries";
const FROM: &str = "pipeline-from";
/// The offset of the dead letter that this record removes.
const DROPS: &str = "pipeline-drops";

/// The place of a record in its topic. As text, `partition-offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KafkaId {
    /// The partition.
    pub partition: i32,
    /// The offset in it.
    pub offset: i64,
}

impl fmt::Display for KafkaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.partition, self.offset)
    }
}

/// A text that is no [`KafkaId`].
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("not a partition and an offset, such as 0-17")]
pub struct NoKafkaId;

impl FromStr for KafkaId {
    type Err = NoKafkaId;

    fn from_str(text: &str) -> Result<Self, NoKafkaId> {
        let (partition, offset) = text.split_once('-').ok_or(NoKafkaId)?;
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(partition) || !digits(offset) {
            return Err(NoKafkaId);
        }
        Ok(Self {
            partition: partition.parse().map_err(|_| NoKafkaId)?,
            offset: offset.parse().map_err(|_| NoKafkaId)?,
        })
    }
}

/// A record as it was read.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) item: Item,
    pub(super) enqueued_at: Option<SystemTime>,
    pub(super) malformed: Option<Arc<str>>,
    /// The parts of it as bytes, of which the item may have less.
    key: Option<Bytes>,
    payload: Option<Bytes>,
    headers: Vec<(Arc<str>, Option<Bytes>)>,
}

impl Record {
    /// About how much memory it takes, in bytes.
    pub(super) fn size(&self) -> usize {
        let bytes = |it: &Option<Bytes>| it.as_ref().map_or(0, Bytes::len);
        // Headers are kept as bytes and as texts.
        let headers = self.headers.iter().map(|(name, value)| (name.len() + bytes(value)) * 2);
        bytes(&self.payload) + bytes(&self.key) * 2 + headers.sum::<usize>()
    }

    /// Whether it has no payload.
    pub(super) fn is_tombstone(&self) -> bool {
        self.payload.is_none()
    }
}

/// A record that is to be written.
#[derive(Debug)]
pub(super) struct ToWrite {
    pub(super) key: Option<Bytes>,
    pub(super) payload: Option<Bytes>,
    pub(super) headers: OwnedHeaders,
}

/// The record of an item.
pub(super) fn to_write(item: &Item) -> ToWrite {
    let mut headers = OwnedHeaders::new_with_capacity(item.headers.len() + 1);
    for (name, value) in &item.headers {
        let is_replaced = item.trace.is_some() && **name == *TRACE;
        if !is_replaced {
            headers = with(headers, name, value.as_bytes());
        }
    }
    if let Some(trace) = item.trace {
        headers = with(headers, TRACE, trace.to_string().as_bytes());
    }
    let key = item.key.as_ref().map(|key| Bytes::copy_from_slice(key.as_bytes()));
    ToWrite { key, payload: Some(item.payload.clone()), headers }
}

/// The first name of an item's headers that is the library's.
pub(super) fn own_header(item: &Item) -> Option<Arc<str>> {
    item.headers.keys().find(|name| name.starts_with(OWN)).cloned()
}

/// Reads a record. What has no payload, or a key that is not text, is malformed. Headers that are not text
/// are left out of the item.
pub(super) fn read(message: &impl Message) -> Record {
    let mut headers = Vec::new();
    for header in message.headers().into_iter().flat_map(Headers::iter) {
        headers.push((Arc::from(header.key), header.value.map(Bytes::copy_from_slice)));
    }
    let key = message.key().map(Bytes::copy_from_slice);
    let payload = message.payload().map(Bytes::copy_from_slice);
    let added = message.timestamp().to_millis();
    let mut item = Item::new(payload.clone().unwrap_or_default());
    let mut malformed = None;
    match key.as_deref().map(from_utf8) {
        Some(Ok(key)) => item.key = Some(key.into()),
        Some(Err(error)) => malformed = Some(format!("the key is not UTF-8: {error}").into()),
        None => {}
    }
    if payload.is_none() {
        malformed = Some("the record has no payload".into());
    }
    read_headers(&mut item, &headers);
    let first_added = text(&headers, ENQUEUED_AT).and_then(|ms| ms.parse().ok());
    let enqueued_at = first_added.or(added).and_then(from_ms);
    Record { item, enqueued_at, malformed, key, payload, headers }
}

/// Reads the headers that are an item's, and its trace.
fn read_headers(item: &mut Item, headers: &[(Arc<str>, Option<Bytes>)]) {
    let texts = headers
        .iter()
        .filter_map(|(name, value)| Some((name.clone(), from_utf8(value.as_deref()?).ok()?)));
    let mut read = BTreeMap::new();
    for (name, value) in texts {
        if *name == *TRACE
            && let Ok(trace) = value.parse()
        {
            item.trace = Some(trace);
        } else if !name.starts_with(OWN) {
            read.insert(name, value.into());
        }
    }
    item.headers = read;
}

/// What of an item is kept in its dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    All,
    /// All but the payload.
    Headers,
    /// Its key, unless it is large, and its times.
    Nothing,
}

/// The record of an item that is given up. Its key names the place of the item, so that a compacted topic
/// keeps it until it is dropped. The reason says what of the item is not kept.
pub(super) fn dead_letter(
    record: &Record,
    topic: &str,
    id: KafkaId,
    deliveries: u32,
    reason: &str,
    now: SystemTime,
    kept: Kept,
) -> ToWrite {
    let from = format!("{topic}-{id}");
    let mut headers = OwnedHeaders::new_with_capacity(record.headers.len() + 6);
    let of_item = record.headers.iter().filter(|(name, _)| !name.starts_with(OWN));
    for (name, value) in of_item.filter(|_| kept != Kept::Nothing) {
        headers = headers.insert(Header { key: name, value: value.as_deref() });
    }
    let is_kept = |key: &&Bytes| kept != Kept::Nothing || key.len() <= SMALL_KEY;
    if let Some(key) = record.key.as_ref().filter(is_kept) {
        headers = with(headers, KEY, key);
    }
    let reason = match kept {
        Kept::All => cut(reason).to_owned(),
        Kept::Headers => with_note(reason, "its payload did not fit", SHORT_REASON),
        Kept::Nothing => with_note(reason, "its payload and headers did not fit", SHORT_REASON),
    };
    if let Some(added) = record.enqueued_at {
        headers = with(headers, ENQUEUED_AT, to_ms(added).to_string().as_bytes());
    }
    headers = with(headers, REASON, reason.as_bytes());
    headers = with(headers, GIVEN_UP_AT, to_ms(now).to_string().as_bytes());
    headers = with(headers, DELIVERIES, deliveries.to_string().as_bytes());
    headers = with(headers, FROM, from.as_bytes());
    // A record without a payload would remove others of its key.
    let payload = record.payload.clone().filter(|_| kept == Kept::All);
    let payload = Some(payload.unwrap_or_default());
    ToWrite { key: Some(from.into()), payload, headers }
}

/// Reads a dead letter.
pub(super) fn read_dead_letter(record: &Record, id: KafkaId) -> DeadLetter<KafkaId> {
    let text = |name| text(&record.headers, name);
    let time = |name| text(name).and_then(|ms| ms.parse().ok()).and_then(from_ms);
    let mut item = record.item.clone();
    item.key = text(KEY).map(Into::into);
    DeadLetter {
        id,
        item,
        enqueued_at: time(ENQUEUED_AT),
        given_up_at: time(GIVEN_UP_AT),
        deliveries: text(DELIVERIES).and_then(|n| n.parse().ok()).unwrap_or_default(),
        reason: text(REASON).unwrap_or_default().into(),
    }
}

/// The record that adds the item of a dead letter to its queue again, as it was. It is as old as a new item.
pub(super) fn replayed(record: &Record) -> ToWrite {
    let value = |name: &str| {
        let header = record.headers.iter().rev().find(|(key, _)| **key == *name);
        header.and_then(|(_, value)| value.clone())
    };
    let mut headers = OwnedHeaders::new_with_capacity(record.headers.len() + 1);
    for (name, value) in record.headers.iter().filter(|(name, _)| !name.starts_with(OWN)) {
        headers = headers.insert(Header { key: name, value: value.as_deref() });
    }
    ToWrite { key: value(KEY), payload: record.payload.clone(), headers }
}

/// The record that removes a dead letter: one of its key without a payload.
pub(super) fn tombstone(record: &Record, id: KafkaId) -> ToWrite {
    let headers = with(OwnedHeaders::new(), DROPS, id.offset.to_string().as_bytes());
    ToWrite { key: record.key.clone(), payload: None, headers }
}

/// The offset of the dead letter that a record removes.
pub(super) fn drops(record: &Record) -> Option<i64> {
    if record.payload.is_some() {
        return None;
    }
    text(&record.headers, DROPS).and_then(|offset| offset.parse().ok())
}

fn with(headers: OwnedHeaders, key: &str, value: &[u8]) -> OwnedHeaders {
    headers.insert(Header { key, value: Some(value) })
}

/// The last header with a name, if it is text.
fn text<'a>(headers: &'a [(Arc<str>, Option<Bytes>)], name: &str) -> Option<&'a str> {
    let (_, value) = headers.iter().rev().find(|(key, _)| **key == *name)?;
    from_utf8(value.as_deref()?).ok()
}

/// Milliseconds since 1970, or 0 before.
fn to_ms(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn from_ms(ms: i64) -> Option<SystemTime> {
    let since = Duration::from_millis(u64::try_from(ms).ok()?);
    SystemTime::UNIX_EPOCH.checked_add(since)
}
