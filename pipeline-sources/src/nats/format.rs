//! Pure: an item as the headers and the payload of a message of NATS, and what a delivery tells of itself.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_nats::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use bytes::Bytes;
use pipeline_core::timed::TraceContext;
use serde::{Deserialize, Serialize};

use crate::{
    item::Item,
    reason::{LONGEST, cut, cut_to, with_note},
};

/// The key of an item.
const KEY: &str = "Pipeline-Key";

/// What of an item cannot be a header of NATS.
const REST: &str = "Pipeline-Item";

/// The trace of an item, as the W3C has defined it.
const TRACE: &str = "traceparent";

/// How an item became a dead letter.
const DEAD_LETTER: &str = "Pipeline-Dead-Letter";

/// What the server compares to find messages that were added before.
pub(super) const MESSAGE_ID: &str = "Nats-Msg-Id";

/// The server stores no headers of more bytes than these: 64 KiB with what it adds itself.
pub(super) const MOST_HEADERS: usize = 65_000;

/// Headers of so many bytes are kept when the payload is too large.
const FEW_HEADERS: usize = 8 * 1024;

/// What cannot be a header of NATS: texts with line ends, with space around them, or of a name that is taken.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Rest<'a> {
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    key: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
}

/// How an item became a dead letter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Death {
    /// Why it has failed the last time.
    #[serde(default)]
    pub(super) reason: String,
    /// How often it was delivered.
    #[serde(default)]
    pub(super) deliveries: u32,
    /// When it was added, in milliseconds since 1970.
    #[serde(default)]
    enqueued_at_ms: Option<u64>,
    /// When it was given up, in milliseconds since 1970.
    #[serde(default)]
    given_up_at_ms: Option<u64>,
}

impl Death {
    pub(super) fn new(
        reason: &str,
        deliveries: u32,
        enqueued_at: Option<SystemTime>,
        given_up_at: SystemTime,
    ) -> Self {
        let ms = |time: SystemTime| {
            let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
            u64::try_from(since.as_millis()).ok()
        };
        Self {
            reason: cut(reason).to_owned(),
            deliveries,
            enqueued_at_ms: enqueued_at.and_then(ms),
            given_up_at_ms: ms(given_up_at),
        }
    }

    pub(super) fn enqueued_at(&self) -> Option<SystemTime> {
        self.enqueued_at_ms.and_then(from_ms)
    }

    pub(super) fn given_up_at(&self) -> Option<SystemTime> {
        self.given_up_at_ms.and_then(from_ms)
    }
}

fn from_ms(ms: u64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ms))
}

/// The headers of an item.
pub(super) fn to_headers(item: &Item) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut rest = Rest::default();
    for (name, value) in &item.headers {
        match plain_name(name) {
            Some(name) if is_plain(value) => headers.insert(name, &**value),
            _ => {
                rest.headers.insert((&**name).into(), (&**value).into());
            }
        }
    }
    match &item.key {
        Some(key) if is_plain(key) => headers.insert(KEY, &**key),
        Some(key) => rest.key = Some((&**key).into()),
        None => {}
    }
    if let Some(trace) = item.trace {
        headers.insert(TRACE, trace.to_string());
    }
    let is_empty = rest.key.is_none() && rest.headers.is_empty();
    // Texts can always be written as JSON.
    if let (false, Ok(rest)) = (is_empty, serde_json::to_string(&rest)) {
        headers.insert(REST, rest);
    }
    headers
}

/// A header's name, if NATS can have it and gives it no meaning.
fn plain_name(name: &str) -> Option<HeaderName> {
    let may_be = !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && b != b':');
    (may_be && !is_taken(name)).then(|| name.parse().ok())?
}

fn is_taken(name: &str) -> bool {
    let begins =
        |with: &str| name.get(..with.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(with));
    begins("Nats-") || begins("Pipeline-") || name.eq_ignore_ascii_case(TRACE)
}

/// Whether a text arrives as it is if it is the value of a header.
fn is_plain(value: &str) -> bool {
    !value.chars().any(char::is_control) && value.trim() == value
}

/// The item of a message, or why it cannot be read.
pub(super) fn to_item(
    headers: Option<&HeaderMap>,
    payload: Bytes,
) -> Result<Item, (Item, Arc<str>)> {
    let mut item = Item::new(payload);
    let Some(headers) = headers else { return Ok(item) };
    for (name, values) in headers.iter() {
        let name: &str = name.as_ref();
        if !is_taken(name) {
            let values: Vec<_> = values.iter().map(HeaderValue::as_str).collect();
            item.headers.insert(name.into(), values.join(", ").into());
        }
    }
    let get = |name: &str| headers.get(name).map(HeaderValue::as_str);
    item.key = get(KEY).map(Into::into);
    item.trace = get(TRACE).and_then(|trace| trace.parse::<TraceContext>().ok());
    let Some(rest) = get(REST) else { return Ok(item) };
    match serde_json::from_str::<Rest<'_>>(rest) {
        Ok(rest) => {
            item.key = rest.key.map(|key| Arc::from(&*key)).or(item.key);
            let headers =
                rest.headers.iter().map(|(name, value)| ((&**name).into(), (&**value).into()));
            item.headers.extend(headers);
            Ok(item)
        }
        Err(error) => Err((item, format!("the header {REST} is not valid: {error}").into())),
    }
}

/// Adds to the headers of an item how it became a dead letter.
pub(super) fn with_death(headers: &mut HeaderMap, death: &Death) {
    // Texts and numbers can always be written as JSON.
    if let Ok(death) = serde_json::to_string(death) {
        headers.insert(DEAD_LETTER, death);
    }
}

/// The size of headers in a message, in bytes.
pub(super) fn size_of_headers(headers: &HeaderMap) -> usize {
    let sizes = headers.iter().map(|(name, values)| size_of_header(name, values));
    // The line of the version, and the empty one.
    sizes.sum::<usize>() + 12
}

fn size_of_header(name: &HeaderName, values: &[HeaderValue]) -> usize {
    let name: &str = name.as_ref();
    values.iter().map(|value| name.len() + value.as_str().len() + 4).sum()
}

/// Makes the headers and the payload of a dead letter fit into a message of this size. The largest headers are
/// left out, and of what is too large without them the end of the payload. The reason says so.
pub(super) fn fit(
    headers: &mut HeaderMap,
    payload: &mut Bytes,
    limit: usize,
    reason: &str,
    death: impl Fn(&str) -> Death,
) {
    // Of a very small limit, a part is for the reason. The note has to fit too.
    let reason = cut_to(reason, (limit / 16).min(LONGEST - 200));
    let death = |headers: usize, bytes: usize| {
        let note = match (headers, bytes) {
            (headers, 0) => format!("{headers} of its headers did not fit"),
            (0, bytes) => format!("its last {bytes} bytes did not fit"),
            (headers, bytes) => {
                format!("{headers} of its headers and its last {bytes} bytes did not fit")
            }
        };
        death(&with_note(reason, &note, LONGEST))
    };
    let mut own = HeaderMap::new();
    with_death(&mut own, &death(usize::MAX, usize::MAX));
    let room = limit.saturating_sub(size_of_headers(&own));
    let most = MOST_HEADERS.saturating_sub(size_of_headers(&own));
    let mut of_item: Vec<_> = headers
        .iter()
        .filter(|(name, _)| <_ as AsRef<str>>::as_ref(*name) != DEAD_LETTER)
        .map(|(name, values)| (size_of_header(name, values), name.clone(), values.clone()))
        .collect();
    // The key and the trace are left out last.
    of_item.sort_by_key(|(size, name, _)| (![KEY, TRACE].contains(&name.as_ref()), *size));
    let (all, mut size) = (of_item.len(), of_item.iter().map(|(size, ..)| size).sum::<usize>());
    let few = FEW_HEADERS.min(room);
    while size > most || (size > few && size + payload.len() > room) {
        let Some((largest, ..)) = of_item.pop() else { break };
        size -= largest;
    }
    let kept = payload.len().min(room.saturating_sub(size));
    let death = death(all - of_item.len(), payload.len() - kept);
    payload.truncate(kept);
    let mut fitted = HeaderMap::new();
    for (_, name, values) in of_item {
        values.into_iter().for_each(|value| fitted.append(name.clone(), value));
    }
    with_death(&mut fitted, &death);
    *headers = fitted;
}

/// How an item became a dead letter. A dead letter of another program may not say so.
pub(super) fn death(headers: &HeaderMap) -> Death {
    let death =
        headers.get(DEAD_LETTER).and_then(|death| serde_json::from_str(death.as_str()).ok());
    death.unwrap_or_default()
}

/// The headers of a dead letter as they were before.
pub(super) fn without_death(headers: &HeaderMap) -> HeaderMap {
    let mut before = HeaderMap::new();
    for (name, values) in headers.iter() {
        let text: &str = name.as_ref();
        let server_reads = text.get(..5).is_some_and(|begin| begin.eq_ignore_ascii_case("Nats-"));
        if text != DEAD_LETTER && !server_reads {
            values.iter().for_each(|value| before.append(name.clone(), value.clone()));
        }
    }
    before
}

/// The headers of a stored message, from its bytes. What is not valid is left out.
pub(super) fn parse_headers(bytes: &[u8]) -> HeaderMap {
    let text = String::from_utf8_lossy(bytes);
    let mut headers = HeaderMap::new();
    // The first line is the version.
    for line in text.lines().skip(1) {
        let Some((name, value)) = line.split_once(':') else { continue };
        if let Ok(name) = name.parse::<HeaderName>() {
            headers.append(name, value.trim());
        }
    }
    headers
}

/// Whether the client library can read these headers. It closes its connection at those that it cannot.
pub(super) fn is_readable(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    if text.is_empty() {
        return true; // a message without headers
    }
    let mut lines = text.lines().peekable();
    // The first line may have a status of three digits, as an answer of the server has.
    let Some(first) = lines.next().and_then(|line| line.strip_prefix("NATS/1.0")) else {
        return false;
    };
    let status = first.trim().split(' ').next().unwrap_or_default();
    if !status.is_empty() && status.parse::<StatusCode>().is_err() {
        return false;
    }
    while let Some(line) = lines.next() {
        if line.is_empty() {
            continue;
        }
        let Some((name, _)) = line.split_once(':') else { return false };
        if name.parse::<HeaderName>().is_err() {
            return false;
        }
        while lines.next_if(|line| line.starts_with(char::is_whitespace)).is_some() {}
    }
    true
}

/// What the reply subject of a delivery tells: `$JS.ACK.<stream>.<consumer>.<deliveries>.<sequence of the
/// stream>.<of the consumer>.<nanoseconds since 1970>.<pending>`. Servers of a domain put two names before
/// the stream, and more may follow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Told {
    pub(super) deliveries: u32,
    pub(super) sequence: u64,
    pub(super) enqueued_at: Option<SystemTime>,
}

pub(super) fn told(reply: &str) -> Option<Told> {
    let tokens: Vec<_> = reply.split('.').collect();
    let first = match tokens.len() {
        9 => 4,
        12.. => 6,
        _ => return None,
    };
    let number = |at: usize| tokens.get(first + at)?.parse::<u64>().ok();
    (tokens[..2] == ["$JS", "ACK"]).then_some(())?;
    Some(Told {
        deliveries: u32::try_from(number(0)?).unwrap_or(u32::MAX),
        sequence: number(1)?,
        enqueued_at: number(3)
            .and_then(|ns| SystemTime::UNIX_EPOCH.checked_add(Duration::from_nanos(ns))),
    })
}

/// A time in UTC as the server writes it, such as `2026-11-29T14:01:59.123Z`.
pub(super) fn from_rfc3339(text: &str) -> Option<SystemTime> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<u64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut clock = clock.splitn(3, ':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    // The server writes the year 1 for a time that there is not.
    if !(1970..10_000).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Years that begin in March, so that the leap day is the last one.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year / 4 - year / 100 + year / 400;
    // 719,468 days lie between the beginning of March of the year 0 and 1970.
    let days = (year * 365 + leap_days + (month * 153 + 2) / 5 + day - 1).checked_sub(719_468)?;
    let nanoseconds = format!("{fraction:0<9}").get(..9)?.parse::<u64>().ok()?;
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second;
    let since = Duration::from_secs(seconds).checked_add(Duration::from_nanos(nanoseconds))?;
    SystemTime::UNIX_EPOCH.checked_add(since)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(item: &Item) -> Item {
        to_item(Some(&to_headers(item)), item.payload.clone()).unwrap()
    }

    #[test]
    fn an_item_comes_back_as_it_was() {
        let plain = Item::new("x").key("ключ").header("kind", "a \"test\"").header("empty", "");
        let odd = Item::new("x")
            .key(" spaces \n")
            .header("", "no name")
            .header("two words", "x")
            .header("line", "a\r\nb")
            .header("Nats-Msg-Id", "1")
            .header("pipeline-key", "2")
            .header("Traceparent", "3")
            .header("имя", "4")
            .header("a:b", "5");
        for item in [Item::new(""), plain, odd.clone().trace(TraceContext::random()), odd] {
            let back = there_and_back(&item);
            assert_eq!(back.headers, item.headers);
            assert_eq!((&back.key, back.trace), (&item.key, item.trace));
        }
    }

    #[test]
    fn plain_headers_are_headers_of_nats() {
        let headers = to_headers(&Item::new("").key("k").header("kind", "order"));
        assert_eq!(headers.get("kind").map(HeaderValue::as_str), Some("order"));
        assert_eq!(headers.get(KEY).map(HeaderValue::as_str), Some("k"));
        assert!(headers.get(REST).is_none());
    }

    #[test]
    fn a_dead_letter_has_the_headers_that_the_item_had() {
        let item = Item::new("").key("k").header("kind", "order").header("x\ny", "z");
        let mut headers = to_headers(&item);
        let death = Death::new("it\nis bad", 3, from_ms(5000), SystemTime::UNIX_EPOCH);
        with_death(&mut headers, &death);
        headers.insert(MESSAGE_ID, "9");
        assert_eq!(super::death(&headers), death);
        assert_eq!(death.enqueued_at(), from_ms(5000));
        let before = without_death(&headers);
        assert_eq!(before, to_headers(&item));
    }

    #[test]
    fn a_long_reason_is_cut() {
        let death = Death::new(&"ж".repeat(2000), 1, None, SystemTime::UNIX_EPOCH);
        assert_eq!(death.reason, "ж".repeat(LONGEST / 2));
    }

    #[test]
    fn a_dead_letter_always_fits_and_says_what_it_lacks() {
        let death = |reason: &str| Death::new(reason, 3, None, SystemTime::UNIX_EPOCH);
        let item = Item::new("x").key("k").header("kind", "order");
        let odd = "\u{1}".repeat(2000);
        for (large, payload, limit, reason) in [
            (100_000, 100, 50_000, "it is bad"),
            (64_900, 100, 1_000_000, "it is bad"),
            (100, 100_000, 50_000, "it is bad"),
            (100_000, 100_000, 50_000, &*odd),
            (10, 3000, 2000, &*odd),
        ] {
            let mut headers = to_headers(&item.clone().header("large", "x".repeat(large)));
            let mut payload = Bytes::from(vec![b'x'; payload]);
            let before = payload.len();
            fit(&mut headers, &mut payload, limit, reason, death);
            let size = size_of_headers(&headers);
            assert!(payload.len() + size <= limit && size <= MOST_HEADERS, "{large} {size}");
            let death = super::death(&headers);
            assert!(death.reason.contains("did not fit"), "{death:?}");
            assert_eq!(headers.get("large").is_none(), large > 10_000);
            assert_eq!(payload.len() == before, before < 1000);
            assert_eq!(headers.get(KEY).map(HeaderValue::as_str), Some("k"));
        }
    }

    #[test]
    fn a_delivery_tells_of_itself() {
        let told = told("$JS.ACK.orders.pipeline.3.42.7.1700000000123456789.5").unwrap();
        assert_eq!((told.deliveries, told.sequence), (3, 42));
        let at = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789);
        assert_eq!(told.enqueued_at, Some(at));
        let in_a_domain =
            super::told("$JS.ACK.hub.Abc.orders.pipeline.3.42.7.17.5.random").unwrap();
        assert_eq!((in_a_domain.deliveries, in_a_domain.sequence), (3, 42));
        for not in ["", "$JS.ACK.orders", "a.b.c.d.e.f.g.h.i", "$JS.ACK.o.p.x.42.7.17.5"] {
            assert_eq!(super::told(not), None, "{not}");
        }
    }

    #[test]
    fn times_are_read() {
        let seconds = |text| {
            let time = from_rfc3339(text)?;
            Some(time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64())
        };
        assert_eq!(seconds("1970-01-01T00:00:00Z"), Some(0.0));
        assert_eq!(seconds("2000-02-29T12:34:56Z"), Some(951_827_696.0));
        assert_eq!(seconds("2026-11-29T14:01:59.5Z"), Some(1_795_960_919.5));
        assert_eq!(seconds("2024-03-01T00:00:00.000000001Z"), Some(1_709_251_200.000_000_001));
        for not in ["0001-01-01T00:00:00Z", "", "2026-11-29", "2026-13-29T14:01:59Z", "x"] {
            assert_eq!(from_rfc3339(not), None, "{not}");
        }
    }

    #[test]
    fn headers_that_the_library_cannot_read_are_known() {
        for good in [
            "NATS/1.0\r\na: b\r\n\r\n",
            "NATS/1.0\r\n\r\n",
            "NATS/1.0\r\na: b\r\n c\r\n\r\n",
            "NATS/1.0 404 No\r\n",
            "",
        ] {
            assert!(is_readable(good.as_bytes()), "{good:?}");
        }
        let bad: [&[u8]; 6] = [
            b"NATS/1.0\r\na: \xff\r\n\r\n",
            b"NATS/1.0\r\nno colon\r\n\r\n",
            b"NATS/1.0\r\na b: x\r\n",
            b"NATS/1.0 abc\r\n\r\n",
            b"NATS/2\r\n\r\n",
            b"NATS/1.0\r\na: b\r\n\r\n c\r\n",
        ];
        for bad in bad {
            assert!(!is_readable(bad), "{bad:?}");
        }
        let read = parse_headers(b"NATS/1.0\r\na: \xff\r\nno colon\r\nb: c\r\n\r\n");
        assert_eq!(read.get("b").map(HeaderValue::as_str), Some("c"));
        assert_eq!(read.get("a").map(HeaderValue::as_str), Some("\u{fffd}"));
    }
}
