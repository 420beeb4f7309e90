//! The fields of a stream's entries.

use std::{
    collections::BTreeMap,
    str::{FromStr, from_utf8},
    sync::Arc,
    time::SystemTime,
};

use bytes::Bytes;

use super::RedisReceipt;
use crate::{
    item::{DeadLetter, Delivery, Item},
    unix_ms::from_ms,
};

/// An entry of a stream, as the server sends it: its id, and names and values by turns.
pub(super) type Entry = (String, Vec<Vec<u8>>);

/// What the names of a dead letter's own fields begin with.
const DEAD: &str = "dead:";

/// The names and the values of an item's fields, by turns.
pub(super) fn fields(item: &Item) -> Vec<Bytes> {
    let text = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    let mut fields = vec![Bytes::from_static(b"payload"), item.payload.clone()];
    if let Some(key) = &item.key {
        fields.extend([Bytes::from_static(b"key"), text(key)]);
    }
    let headers: BTreeMap<&str, &str> = item.headers.iter().map(|(k, v)| (&**k, &**v)).collect();
    // Text is always valid JSON.
    if !headers.is_empty()
        && let Ok(headers) = serde_json::to_vec(&headers)
    {
        fields.extend([Bytes::from_static(b"headers"), headers.into()]);
    }
    if let Some(trace) = item.trace {
        fields.extend([Bytes::from_static(b"trace"), text(&trace.to_string())]);
    }
    fields
}

/// What an entry says.
#[derive(Default)]
struct Read {
    item: Item,
    has_payload: bool,
    enqueued_at: Option<SystemTime>,
    malformed: Option<String>,
    /// The fields of a dead letter.
    id: Option<String>,
    reason: Option<String>,
    deliveries: Option<u32>,
    given_up_at: Option<SystemTime>,
}

impl Read {
    /// Reads the fields of an item, or of a dead letter: its own fields come first, and an item of another program may
    /// have fields of their names.
    fn of(id: &str, fields: Vec<Vec<u8>>, is_dead: bool) -> Self {
        let mut read = Self::default();
        let mut fields = fields.into_iter();
        while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
            let outcome = if name.starts_with(DEAD.as_bytes()) {
                if is_dead {
                    read.dead_field(&name, &value);
                }
                Ok(())
            } else {
                read.field(&name, value)
            };
            if let Err(why) = outcome {
                read.malformed.get_or_insert(why);
            }
        }
        if !read.has_payload {
            read.malformed.get_or_insert_with(|| "it has no field `payload`".to_owned());
        }
        // An id begins with the time at which it was given.
        let id = read.id.as_deref().unwrap_or(id);
        read.enqueued_at = read.enqueued_at.or_else(|| time(id.split('-').next()?.as_bytes()));
        read
    }

    /// Reads a field of a dead letter, unless it has it already.
    fn dead_field(&mut self, name: &[u8], value: &[u8]) {
        let text = || String::from_utf8_lossy(value).into_owned();
        match name {
            b"dead:id" => _ = self.id.get_or_insert_with(text),
            b"dead:reason" => _ = self.reason.get_or_insert_with(text),
            b"dead:deliveries" => self.deliveries = self.deliveries.or_else(|| number(value)),
            b"dead:at" => self.given_up_at = self.given_up_at.or_else(|| time(value)),
            _ => {}
        }
    }

    /// Reads a field. An error says why the item is malformed.
    fn field(&mut self, name: &[u8], value: Vec<u8>) -> Result<(), String> {
        let not_text = |what: &str| format!("its {what} is not valid UTF-8");
        let shown = String::from_utf8_lossy(name).into_owned();
        match name {
            b"payload" => {
                self.item.payload = value.into();
                self.has_payload = true;
            }
            b"key" => {
                let key = String::from_utf8(value).map_err(|_| not_text("key"))?;
                self.item.key = Some(key.into());
            }
            b"headers" => {
                let headers: BTreeMap<String, String> = serde_json::from_slice(&value)
                    .map_err(|error| format!("its headers are not an object of texts: {error}"))?;
                let headers = headers.into_iter().map(|(name, value)| (name.into(), value.into()));
                self.item.headers.extend(headers);
            }
            // A trace that cannot be read is no reason to give the item up.
            b"trace" => self.item.trace = number(&value),
            b"enqueued_at" => self.enqueued_at = time(&value),
            _ => {
                let header = |bytes: &[u8]| Some(Arc::<str>::from(from_utf8(bytes).ok()?));
                let name = header(name).ok_or_else(|| not_text("field's name"))?;
                let value = header(&value).ok_or_else(|| not_text(&format!("field {shown:?}")))?;
                self.item.headers.insert(name, value);
            }
        }
        Ok(())
    }
}

fn number<T: FromStr>(bytes: &[u8]) -> Option<T> {
    from_utf8(bytes).ok()?.parse().ok()
}

/// A time in milliseconds since 1970.
fn time(bytes: &[u8]) -> Option<SystemTime> {
    from_ms(number(bytes)?)
}

/// A delivery of an entry to a consumer.
pub(super) fn delivery(
    (id, fields): Entry,
    deliveries: u32,
    failures: u32,
    consumer: &Arc<str>,
) -> Delivery<RedisReceipt> {
    let read = Read::of(&id, fields, false);
    let id = Arc::<str>::from(id);
    Delivery {
        receipt: RedisReceipt { id: id.clone(), consumer: consumer.clone(), deliveries },
        id,
        item: read.item,
        enqueued_at: read.enqueued_at,
        deliveries,
        failures: Some(failures),
        malformed: read.malformed.map(Into::into),
    }
}

/// A dead letter.
pub(super) fn dead_letter((id, fields): Entry) -> DeadLetter<Arc<str>> {
    let read = Read::of(&id, fields, true);
    DeadLetter {
        id: id.into(),
        item: read.item,
        enqueued_at: read.enqueued_at,
        given_up_at: read.given_up_at,
        deliveries: read.deliveries.unwrap_or_default(),
        reason: read.reason.unwrap_or_default().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pipeline_core::timed::TraceContext;

    fn read(fields: &[(&str, &[u8])]) -> Delivery<RedisReceipt> {
        let fields = fields.iter().flat_map(|(name, value)| [name.as_bytes(), value]);
        let entry = ("1500-2".to_owned(), fields.map(<[u8]>::to_vec).collect());
        delivery(entry, 1, 0, &"me".into())
    }

    #[test]
    fn an_item_is_read_as_it_was_written() {
        let item = Item::new(&[0, 255, b'\n'][..])
            .key("ключ")
            .header("payload", "a \"header\"")
            .header("", "")
            .trace(TraceContext::random());
        let fields = fields(&item).into_iter().map(|field| field.to_vec()).collect();
        let delivery = delivery(("1500-2".to_owned(), fields), 3, 2, &"me".into());
        assert_eq!((delivery.malformed, &*delivery.id, delivery.deliveries), (None, "1500-2", 3));
        assert_eq!(delivery.item, item);
        assert_eq!(delivery.enqueued_at, from_ms(1500));
    }

    #[test]
    fn another_program_may_write_fields_of_its_own() {
        let fields: [(&str, &[u8]); 4] =
            [("kind", b"order"), ("payload", b"7"), ("enqueued_at", b"1400"), ("trace", b"?")];
        let delivery = read(&fields);
        assert_eq!(delivery.malformed, None);
        assert_eq!(delivery.item, Item::new("7").header("kind", "order"));
        assert_eq!(delivery.enqueued_at, from_ms(1400));
    }

    #[test]
    fn an_item_cannot_forge_its_dead_letter() {
        let own: [(&str, &[u8]); 5] = [
            ("payload", b"7"),
            ("dead:id", b"9-9"),
            ("dead:reason", b"forged"),
            ("dead:deliveries", b"77"),
            ("dead:at", b"77"),
        ];
        let delivery = read(&own);
        assert_eq!((delivery.malformed, delivery.enqueued_at), (None, from_ms(1500)));
        assert_eq!(delivery.item, Item::new("7"));
        let given_up: [(&str, &[u8]); 4] = [
            ("dead:id", b"1500-2"),
            ("dead:reason", b"it is bad"),
            ("dead:deliveries", b"3"),
            ("dead:at", b"1600"),
        ];
        let fields = given_up.iter().chain(&own).flat_map(|(name, value)| [name.as_bytes(), value]);
        let dead = dead_letter(("1700-0".to_owned(), fields.map(<[u8]>::to_vec).collect()));
        assert_eq!((&*dead.reason, dead.deliveries), ("it is bad", 3));
        assert_eq!((dead.given_up_at, dead.enqueued_at), (from_ms(1600), from_ms(1500)));
    }

    #[test]
    fn an_item_that_cannot_be_read_says_why() {
        let why = |fields: &[(&str, &[u8])]| read(fields).malformed.unwrap_or_default();
        assert_eq!(&*why(&[("kind", b"order")]), "it has no field `payload`");
        let payload: (&str, &[u8]) = ("payload", b"7");
        assert_eq!(&*why(&[payload, ("key", &[255])]), "its key is not valid UTF-8");
        assert!(why(&[payload, ("headers", b"[]")]).starts_with("its headers are not an object"));
        assert_eq!(&*why(&[payload, ("kind", &[255])]), "its field \"kind\" is not valid UTF-8");
    }
}
