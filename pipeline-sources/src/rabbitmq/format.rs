//! Pure: an item as the properties and the payload of a message of AMQP.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, LongString, ShortString},
};
use pipeline_core::timed::TraceContext;
use serde::{Deserialize, Serialize};

use super::{dead_ids::NUMBERED, headers::hash};
use crate::{
    item::{DeadLetter, Item},
    reason::{cut, with_note},
};

/// The key of an item.
const KEY: &str = "pipeline-key";

/// The headers of an item whose names are taken or too long, as a JSON object.
const REST: &str = "pipeline-item";

/// The trace of an item, as the W3C has defined it.
const TRACE: &str = "traceparent";

/// How often an item was delivered, until it was added again for a retry or as a dead letter.
const DELIVERIES: &str = "pipeline-deliveries";

/// How often an item has failed.
const FAILURES: &str = "pipeline-failures";

/// Of a dead letter: why, when in milliseconds since 1970, and its id.
const REASON: &str = "pipeline-reason";
const GIVEN_UP_AT: &str = "pipeline-given-up-at";
pub(super) const DEAD_ID: &str = "pipeline-dead-letter-id";

/// Why the properties of a message could not be read. They are replaced by this one before they are read.
pub(super) const UNREADABLE: &str = "pipeline-unreadable";

/// How often a quorum queue has delivered a message before.
const DELIVERY_COUNT: &str = "x-delivery-count";

/// How the server itself has moved a message to other queues, the last time first.
const DEATHS: &str = "x-death";

/// A time in seconds since 1970, which is in 1973 if it is in milliseconds.
const YEAR_5138: u64 = 100_000_000_000;

/// The persistent mode of a message.
const PERSISTENT: u8 = 2;

/// The headers of an item whose names are taken or too long.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Rest<'a> {
    #[serde(borrow, default)]
    headers: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(value))
}

/// A header's name, if AMQP can have it and nothing gives it a meaning.
fn plain_name(name: &str) -> Option<ShortString> {
    (!is_taken(name)).then(|| ShortString::try_new(name).ok())?
}

fn is_taken(name: &str) -> bool {
    let begins =
        |with: &str| name.get(..with.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(with));
    begins("x-") || begins("pipeline-") || [TRACE, "CC", "BCC"].contains(&name)
}

/// Whether a header is of the server, or of an earlier life of a message.
fn is_of_a_delivery(name: &str) -> bool {
    let own = [DELIVERIES, FAILURES, REASON, GIVEN_UP_AT, DEAD_ID, UNREADABLE];
    name.starts_with("x-") || own.contains(&name)
}

/// The properties of an item with this id.
pub(super) fn to_properties(item: &Item, id: &str, now: SystemTime) -> BasicProperties {
    let mut headers = FieldTable::default();
    let mut rest = Rest::default();
    for (name, value) in &item.headers {
        match plain_name(name) {
            Some(name) => {
                headers.insert(name, text(value));
            }
            None => {
                rest.headers.insert((&**name).into(), (&**value).into());
            }
        }
    }
    if let Some(key) = &item.key {
        headers.insert(KEY.into(), text(key));
    }
    if let Some(trace) = item.trace {
        headers.insert(TRACE.into(), text(&trace.to_string()));
    }
    // Texts can always be written as JSON.
    if let (false, Ok(rest)) = (rest.headers.is_empty(), serde_json::to_string(&rest)) {
        headers.insert(REST.into(), text(&rest));
    }
    let properties = BasicProperties::default()
        .with_headers(headers)
        .with_delivery_mode(PERSISTENT)
        .with_timestamp(to_timestamp(now));
    match ShortString::try_new(id) {
        Ok(id) => properties.with_message_id(id),
        Err(_) => properties,
    }
}

/// What a message tells of its item.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) item: Item,
    /// Why it cannot be read.
    pub(super) malformed: Option<Arc<str>>,
    pub(super) enqueued_at: Option<SystemTime>,
    /// How often it was delivered, this time included, and has failed before.
    pub(super) counts: Counts,
}

/// How often an item was delivered, and has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) deliveries: u32,
    pub(super) failures: u32,
}

pub(super) fn told(properties: &BasicProperties, payload: Bytes, redelivered: bool) -> Told {
    let mut item = Item::new(payload);
    let mut malformed = None;
    let none = FieldTable::default();
    let headers = properties.headers().as_ref().unwrap_or(&none);
    for (name, value) in headers {
        if let (false, Some(value)) = (is_taken(name.as_str()), to_text(value)) {
            item.headers.insert(name.as_str().into(), value.into());
        }
    }
    let get = |name: &str| headers.inner().get(name);
    match get(KEY).map(to_text) {
        Some(Some(key)) => item.key = Some(key.into()),
        Some(None) => malformed = Some(format!("the header {KEY} is not text").into()),
        None => {}
    }
    let trace = get(TRACE).and_then(to_text);
    item.trace = trace.and_then(|trace| trace.parse::<TraceContext>().ok());
    if let Some(rest) = get(REST) {
        let rest = to_text(rest).unwrap_or_default();
        match serde_json::from_str::<Rest<'_>>(&rest) {
            Ok(rest) => {
                let headers = rest.headers.iter();
                item.headers.extend(headers.map(|(name, it)| ((&**name).into(), (&**it).into())));
            }
            Err(error) => {
                malformed = Some(format!("the header {REST} is not valid: {error}").into());
            }
        }
    }
    if let Some(why) = get(UNREADABLE) {
        let why = to_text(why).unwrap_or_else(|| "its properties cannot be read".into());
        malformed = Some(why.into());
    }
    // A queue that does not count tells at least whether it is the first time.
    let here = get(DELIVERY_COUNT).and_then(to_number).unwrap_or(u64::from(redelivered));
    let before = get(DELIVERIES).and_then(to_number).unwrap_or_default();
    let deliveries = before.saturating_add(here).saturating_add(1);
    let failures = get(FAILURES).and_then(to_number).unwrap_or_default();
    let count = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    Told {
        item,
        malformed,
        enqueued_at: properties.timestamp().and_then(from_timestamp),
        counts: Counts { deliveries: count(deliveries), failures: count(failures) },
    }
}

/// A timestamp is in seconds. Many programs give milliseconds.
fn from_timestamp(timestamp: u64) -> Option<SystemTime> {
    match timestamp {
        ..YEAR_5138 => from_unix(Duration::from_secs(timestamp)),
        ms if ms / 1000 < YEAR_5138 => from_unix(Duration::from_millis(ms)),
        _ => None,
    }
}

fn to_timestamp(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn from_unix(since: Duration) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(since)
}

/// A header as text. Other programs may have added numbers.
fn to_text(value: &AMQPValue) -> Option<String> {
    Some(match value {
        AMQPValue::LongString(text) => String::from_utf8(text.as_bytes().to_vec()).ok()?,
        AMQPValue::ShortString(text) => text.to_string(),
        AMQPValue::Boolean(it) => it.to_string(),
        AMQPValue::Float(it) => it.to_string(),
        AMQPValue::Double(it) => it.to_string(),
        AMQPValue::LongLongInt(it) => it.to_string(),
        AMQPValue::LongInt(it) => it.to_string(),
        AMQPValue::ShortInt(it) => it.to_string(),
        AMQPValue::ShortShortInt(it) => it.to_string(),
        other => to_number(other)?.to_string(),
    })
}

fn to_number(value: &AMQPValue) -> Option<u64> {
    match value {
        AMQPValue::LongLongInt(it) => u64::try_from(*it).ok(),
        AMQPValue::LongInt(it) => u64::try_from(*it).ok(),
        AMQPValue::ShortInt(it) => u64::try_from(*it).ok(),
        AMQPValue::ShortShortInt(it) => u64::try_from(*it).ok(),
        AMQPValue::LongUInt(it) => Some((*it).into()),
        AMQPValue::ShortUInt(it) => Some((*it).into()),
        AMQPValue::ShortShortUInt(it) => Some((*it).into()),
        AMQPValue::Timestamp(it) => Some(*it),
        _ => None,
    }
}

/// The properties with which a message is added again as it is, with this id unless it has one.
fn again(properties: &BasicProperties, id: &str) -> (BasicProperties, FieldTable) {
    let mut headers = FieldTable::default();
    for (name, value) in properties.headers().iter().flatten() {
        if !is_of_a_delivery(name.as_str()) {
            headers.insert(name.clone(), value.clone());
        }
    }
    // Of the others, some would be checked by the server, and the expiration would remove the message.
    let mut same = BasicProperties::default().with_delivery_mode(PERSISTENT);
    macro_rules! keep {
        ($($get:ident $with:ident),*) => {
            $(if let Some(value) = properties.$get().clone() {
                same = same.$with(value);
            })*
        };
    }
    keep!(
        content_type with_content_type,
        content_encoding with_content_encoding,
        priority with_priority,
        correlation_id with_correlation_id,
        reply_to with_reply_to,
        timestamp with_timestamp,
        kind with_type,
        app_id with_app_id
    );
    let id = properties.message_id().clone().or_else(|| ShortString::try_new(id).ok());
    (id.into_iter().fold(same, BasicProperties::with_message_id), headers)
}

/// The properties of a message that waits for a retry. It keeps its timestamp as it is, or gets that of its first delivery if
/// it has none that can be read.
pub(super) fn for_retry(
    properties: &BasicProperties,
    id: &str,
    Counts { deliveries, failures }: Counts,
    added: SystemTime,
    delay_ms: u64,
) -> BasicProperties {
    let (same, mut headers) = again(properties, id);
    headers.insert(DELIVERIES.into(), AMQPValue::LongLongInt(deliveries.into()));
    headers.insert(FAILURES.into(), AMQPValue::LongLongInt(failures.into()));
    let mut same = same.with_headers(headers);
    if properties.timestamp().and_then(from_timestamp).is_none() {
        same = same.with_timestamp(to_timestamp(added));
    }
    same.with_expiration(delay_ms.to_string().into())
}

/// How a message becomes a dead letter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Death<'a> {
    pub(super) deliveries: u32,
    pub(super) reason: &'a str,
    pub(super) now: SystemTime,
    pub(super) dead_id: &'a str,
}

impl Death<'_> {
    fn headers(&self, reason: &str) -> FieldTable {
        let since = self.now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let ms = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
        let mut headers = FieldTable::default();
        headers.insert(DELIVERIES.into(), AMQPValue::LongLongInt(self.deliveries.into()));
        headers.insert(REASON.into(), text(reason));
        headers.insert(GIVEN_UP_AT.into(), AMQPValue::LongLongInt(ms));
        headers.insert(DEAD_ID.into(), text(self.dead_id));
        headers
    }
}

/// The properties of a message that is given up, of no more than `limit` bytes: what does not fit is left out,
/// the smallest headers stay, and the reason says so.
pub(super) fn for_dead_letter(
    properties: &BasicProperties,
    id: &str,
    death: &Death<'_>,
    limit: usize,
) -> BasicProperties {
    let (same, before) = again(properties, id);
    let reason = cut(death.reason);
    let with = |own: FieldTable, kept: &[(&ShortString, &AMQPValue)]| {
        let mut headers = own;
        for (name, value) in kept {
            headers.insert((*name).clone(), (*value).clone());
        }
        same.clone().with_headers(headers)
    };
    let mut kept: Vec<_> = before.inner().iter().collect();
    let whole = with(death.headers(reason), &kept);
    if size(&whole) <= limit {
        return whole;
    }
    // The key and the trace first, and of the others as many as fit.
    let of_item = |name: &ShortString| ![KEY, TRACE].contains(&name.as_str());
    kept.sort_by_key(|(name, value)| (of_item(name), size_of_header(name, value)));
    let all = kept.len();
    let marked = |left_out: usize| {
        with_note(reason, &format!("{left_out} of its headers did not fit"), usize::MAX)
    };
    let mut room = limit.checked_sub(size(&with(death.headers(&marked(all)), &[])));
    kept.retain(|(name, value)| {
        let left = room.and_then(|room| room.checked_sub(size_of_header(name, value)));
        room = left.or(room);
        left.is_some()
    });
    let fitted = with(death.headers(&marked(all - kept.len())), &kept);
    if size(&fitted) <= limit {
        return fitted;
    }
    // A server whose frames are very small.
    let reason = with_note(reason, "nothing else of it did fit", 200);
    let least = BasicProperties::default().with_delivery_mode(PERSISTENT);
    let least = same.message_id().clone().into_iter().fold(least, BasicProperties::with_message_id);
    least.with_headers(death.headers(&reason))
}

/// The properties of a dead letter that is added to its queue again. It is as old as a new item.
pub(super) fn for_replay(
    properties: &BasicProperties,
    id: &str,
    now: SystemTime,
) -> BasicProperties {
    let (same, headers) = again(properties, id);
    same.with_headers(headers).with_timestamp(to_timestamp(now))
}

/// The id of a dead letter. One that the server has given up itself has that of its message, which may have none, and
/// a hash of its payload: if two have the same, it does not matter which of them is replayed.
pub(super) fn dead_id(properties: &BasicProperties, payload: &[u8]) -> Arc<str> {
    let none = FieldTable::default();
    let headers = properties.headers().as_ref().unwrap_or(&none).inner();
    let id = headers.get(DEAD_ID).and_then(to_text);
    let is_own = |id: &str| !headers.contains_key(UNREADABLE) && !id.contains(NUMBERED);
    match id {
        Some(id) if is_own(&id) => id.into(),
        id => {
            let message_id = || properties.message_id().as_ref().map(ToString::to_string);
            let id = id.or_else(message_id).unwrap_or_default();
            format!("{id}-{:016x}", hash(payload)).into()
        }
    }
}

/// A dead letter with the id that it has in its queue.
pub(super) fn dead_letter(
    id: Arc<str>,
    properties: &BasicProperties,
    payload: Bytes,
) -> DeadLetter<Arc<str>> {
    let none = FieldTable::default();
    let headers = properties.headers().as_ref().unwrap_or(&none).inner();
    let told = told(properties, payload, false);
    let given_up_at = headers.get(GIVEN_UP_AT).and_then(to_number);
    let deliveries = headers.get(DELIVERIES).and_then(to_number).unwrap_or_default();
    let reason = [REASON, UNREADABLE].iter().find_map(|name| to_text(headers.get(*name)?));
    let reason = reason.or_else(|| {
        let AMQPValue::FieldArray(deaths) = headers.get(DEATHS)? else { return None };
        let AMQPValue::FieldTable(death) = deaths.as_slice().first()? else { return None };
        let why = to_text(death.inner().get("reason")?)?;
        Some(format!("the server has given it up: {why}"))
    });
    DeadLetter {
        id,
        item: told.item,
        enqueued_at: told.enqueued_at,
        given_up_at: given_up_at.and_then(|ms| from_unix(Duration::from_millis(ms))),
        deliveries: u32::try_from(deliveries).unwrap_or(u32::MAX),
        reason: reason.unwrap_or_default().into(),
    }
}

/// The size of the properties in bytes, or a little more. They have to fit into one frame.
pub(super) fn size(properties: &BasicProperties) -> usize {
    let texts = [
        properties.content_type(),
        properties.content_encoding(),
        properties.correlation_id(),
        properties.reply_to(),
        properties.expiration(),
        properties.message_id(),
        properties.kind(),
        properties.user_id(),
        properties.app_id(),
        properties.cluster_id(),
    ];
    let texts = texts.into_iter().flatten().map(|text| text.as_str().len() + 1);
    let headers = properties.headers().iter().flatten();
    let headers = headers.map(|(name, value)| size_of_header(name, value));
    // The flags, the numbers, and the length of the headers.
    texts.chain(headers).sum::<usize>() + 32
}

fn size_of_header(name: &ShortString, value: &AMQPValue) -> usize {
    name.as_str().len() + 1 + size_of_value(value)
}

/// With its type and its length.
fn size_of_value(value: &AMQPValue) -> usize {
    let inner = match value {
        AMQPValue::LongString(text) => text.len(),
        AMQPValue::ByteArray(bytes) => bytes.len(),
        AMQPValue::ShortString(text) => text.as_str().len(),
        AMQPValue::FieldArray(values) => values.as_slice().iter().map(size_of_value).sum(),
        AMQPValue::FieldTable(table) => {
            table.inner().iter().map(|(name, value)| size_of_header(name, value)).sum()
        }
        _ => 8,
    };
    inner + 5
}

/// How long the messages of a queue of retries wait at least, in milliseconds: a power of two that is not
/// longer than the delay. A message waits for those before it, which wait less than twice as long.
pub(super) fn group_of(delay_ms: u64) -> u64 {
    1 << delay_ms.max(1).ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The dead letter with these properties.
    fn letter(properties: &BasicProperties) -> DeadLetter<Arc<str>> {
        dead_letter(dead_id(properties, b"x"), properties, "x".into())
    }

    fn counts(deliveries: u32, failures: u32) -> Counts {
        Counts { deliveries, failures }
    }

    const AT: SystemTime = SystemTime::UNIX_EPOCH;

    fn back(properties: &BasicProperties) -> Told {
        told(properties, "x".into(), false)
    }

    #[test]
    fn an_item_comes_back_as_it_was() {
        let long = "n".repeat(300);
        let item = Item::new("x")
            .key("ключ\n")
            .header("kind", "a \"test\"\r\n ")
            .header("", "no name")
            .header("x-delivery-count", "7")
            .header("Pipeline-Key", "8")
            .header("traceparent", "9")
            .header(long, "long")
            .trace(TraceContext::random());
        let told = back(&to_properties(&item, "7", AT));
        assert_eq!((told.item, told.counts.deliveries, told.malformed), (item, 1, None));
        assert_eq!(told.enqueued_at, Some(AT));
    }

    #[test]
    fn deliveries_are_counted_over_retries() {
        let first = to_properties(&Item::new("x").header("kind", "order"), "7", AT);
        let retried = for_retry(&first, "", counts(3, 1), AT, 5000);
        assert_eq!(retried.expiration().as_ref().map(ToString::to_string), Some("5000".into()));
        assert_eq!(back(&retried).counts, counts(4, 1));
        let mut headers = retried.headers().clone().unwrap();
        headers.insert(DELIVERY_COUNT.into(), AMQPValue::LongLongInt(2));
        let again = retried.with_headers(headers);
        assert_eq!(back(&again).counts, counts(6, 1));
        assert_eq!(told(&first, "x".into(), true).counts, counts(2, 0));
        let twice = for_retry(&again, "", counts(6, 2), AT, 1);
        assert_eq!(back(&twice).counts, counts(7, 2));
        assert_eq!(back(&twice).item, back(&first).item);
    }

    #[test]
    fn a_dead_letter_tells_how_it_became_one_and_is_as_before_when_it_is_replayed() {
        let item = Item::new("x").key("k").header("kind", "order");
        let first = to_properties(&item, "7", AT).with_expiration("9".into());
        let at = AT + Duration::from_millis(1234);
        let death = Death { deliveries: 3, reason: "it\nis bad", now: at, dead_id: "d1" };
        let given_up = for_dead_letter(&first, "", &death, 10_000);
        assert_eq!(*given_up.expiration(), None);
        let dead = letter(&given_up);
        assert_eq!((&*dead.id, &*dead.reason, dead.deliveries), ("d1", "it\nis bad", 3));
        assert_eq!((dead.item.clone(), dead.given_up_at), (item.clone(), Some(at)));
        let later = AT + Duration::from_secs(7);
        let replayed = back(&for_replay(&given_up, "", later));
        assert_eq!((replayed.item, replayed.counts), (item, counts(1, 0)));
        assert_eq!(replayed.enqueued_at, Some(later));
    }

    #[test]
    fn dead_letters_of_the_server_have_the_same_id_only_if_they_have_the_same_payload() {
        let none = BasicProperties::default();
        let named = none.clone().with_message_id("7".into());
        let mut headers = FieldTable::default();
        headers.insert(DEAD_ID.into(), text("d~2"));
        let numbered = none.clone().with_headers(headers);
        for (properties, begin) in [(&none, "-"), (&named, "7-"), (&numbered, "d~2-")] {
            let id = |payload: &[u8]| dead_id(properties, payload);
            assert!(id(b"a").starts_with(begin) && id(b"a") == id(b"a") && id(b"a") != id(b"b"));
        }
    }

    #[test]
    fn a_dead_letter_always_fits_and_says_what_it_lacks() {
        let death = Death { deliveries: 3, reason: "it is bad", now: AT, dead_id: "d1" };
        let mut headers =
            to_properties(&Item::new("x").key("k"), "7", AT).headers().clone().unwrap();
        let mut table = FieldTable::default();
        for n in 0..100 {
            headers.insert(format!("small{n}").into(), text("small"));
            table.insert(format!("n{n}").into(), text(&"x".repeat(1000)));
        }
        headers.insert("table".into(), AMQPValue::FieldTable(table));
        headers.insert("text".into(), text(&"x".repeat(60_000)));
        let large = BasicProperties::default().with_message_id("7".into()).with_headers(headers);
        assert!(size(&large) > 160_000 && size(&large) < 170_000, "{}", size(&large));
        let fitted = for_dead_letter(&large, "", &death, 90_000);
        assert!(size(&fitted) < 90_000);
        let dead = letter(&fitted);
        assert!(dead.item.headers.contains_key("text"));
        assert!(dead.reason.starts_with("it is bad (1 of its headers"), "{}", dead.reason);
        let fitted = for_dead_letter(&large, "", &death, 30_000);
        let dead = letter(&fitted);
        assert_eq!((dead.item.headers.len(), dead.item.key.as_deref()), (100, Some("k")));
        assert!(dead.reason.contains("2 of its headers"), "{}", dead.reason);
        let fitted = for_dead_letter(&large, "", &death, 100);
        let dead = letter(&fitted);
        assert!(dead.item.headers.is_empty() && dead.reason.contains("nothing else"), "{dead:?}");
        assert_eq!((&*dead.id, dead.deliveries), ("d1", 3));
    }

    #[test]
    fn a_message_without_an_id_gets_one() {
        let given = for_retry(&BasicProperties::default(), "7", counts(1, 0), AT, 1);
        assert_eq!(given.message_id().as_ref().map(ToString::to_string), Some("7".into()));
    }

    #[test]
    fn a_time_is_in_seconds_or_in_milliseconds_or_is_that_of_the_first_delivery() {
        let stamped = |timestamp| BasicProperties::default().with_timestamp(timestamp);
        let added = |timestamp| back(&stamped(timestamp)).enqueued_at;
        assert_eq!(added(to_timestamp(AT)), Some(AT));
        let ms = u64::try_from(AT.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis());
        assert_eq!(added(ms.unwrap()), Some(AT));
        // Another program may read it as it has written it.
        let later = AT + Duration::from_secs(3600);
        let kept = for_retry(&stamped(ms.unwrap()), "", counts(1, 0), later, 1);
        assert_eq!(*kept.timestamp(), Some(ms.unwrap()));
        for odd in [stamped(u64::MAX), stamped(YEAR_5138 * 1000), BasicProperties::default()] {
            assert_eq!(back(&odd).enqueued_at, None);
            assert_eq!(back(&for_retry(&odd, "", counts(1, 0), AT, 1)).enqueued_at, Some(AT));
        }
    }

    #[test]
    fn what_other_programs_add_is_read_as_far_as_it_is_text() {
        let mut headers = FieldTable::default();
        headers.insert("n".into(), AMQPValue::LongInt(-7));
        headers.insert("big".into(), AMQPValue::LongUInt(7));
        headers.insert("yes".into(), AMQPValue::Boolean(true));
        headers.insert("bytes".into(), AMQPValue::LongString(vec![0xff].into()));
        headers.insert("traceparent".into(), text("nonsense"));
        let told_of =
            |headers: &FieldTable| back(&BasicProperties::default().with_headers(headers.clone()));
        let told = told_of(&headers);
        let seen: Vec<_> = told.item.headers.iter().map(|(k, v)| (&**k, &**v)).collect();
        assert_eq!(seen, [("big", "7"), ("n", "-7"), ("yes", "true")]);
        assert!(told.malformed.is_none() && told.item.trace.is_none());
        headers.insert(KEY.into(), AMQPValue::LongString(vec![0xff].into()));
        assert_eq!(
            told_of(&headers).malformed.as_deref(),
            Some("the header pipeline-key is not text")
        );
        headers.insert(KEY.into(), text("k"));
        headers.insert(REST.into(), text("{"));
        let malformed = told_of(&headers).malformed.unwrap();
        assert!(malformed.starts_with("the header pipeline-item is not valid"), "{malformed}");
    }

    #[test]
    fn delays_are_grouped_by_powers_of_two() {
        let groups = [0, 1, 2, 3, 1000, 1024, 300_000].map(group_of);
        assert_eq!(groups, [1, 1, 2, 2, 512, 1024, 262_144]);
    }
}
