//! Rows, as any program may have written them. What cannot be read makes an item malformed, and is no
//! error: an error would stop the source, and the row would be there again.

use std::{collections::BTreeMap, error::Error};

use pipeline_core::timed::TraceContext;
use tokio_postgres::{
    Row,
    types::{FromSql, Type},
};

use super::{PostgresError, session::PostgresReceipt};
use crate::{
    item::{DeadLetter, Delivery, Item, QueuedItem, QueuedState},
    unix_ms::from_ms,
};

/// The bytes of a value. A text need not be UTF-8 where the database has no encoding (`SQL_ASCII`).
struct Raw<'a>(&'a [u8]);

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(raw))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// The text in a column, and whether it is not UTF-8.
fn text(row: &Row, column: usize) -> Result<Option<(String, bool)>, PostgresError> {
    let raw = row.try_get::<_, Option<Raw<'_>>>(column)?;
    Ok(raw.map(|Raw(bytes)| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        (text, str::from_utf8(bytes).is_err())
    }))
}

/// An item in the columns `key`, `payload`, `headers` and `trace` after the first, and why it cannot be
/// read.
fn item(row: &Row) -> Result<(Item, Option<String>), PostgresError> {
    let mut malformed = None;
    let key = text(row, 1)?.map(|(key, is_odd)| {
        if is_odd {
            malformed = Some("its key is not UTF-8".to_owned());
        }
        key.into()
    });
    let payload = row.try_get::<_, Option<Raw<'_>>>(2)?.map(|Raw(bytes)| bytes.to_vec());
    let mut headers = BTreeMap::<String, String>::new();
    if let Some((text, _)) = text(row, 3)? {
        match serde_json::from_str(&text) {
            Ok(read) => headers = read,
            Err(error) => {
                malformed = Some(format!("its headers are not an object of texts: {error}"));
            }
        }
    }
    // A trace that cannot be read is no reason to give the item up.
    let trace = text(row, 4)?.and_then(|(trace, _)| trace.parse::<TraceContext>().ok());
    let headers = headers.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
    Ok((Item { key, payload: payload.unwrap_or_default().into(), headers, trace }, malformed))
}

fn deliveries(row: &Row) -> Result<u32, PostgresError> {
    Ok(u32::try_from(row.try_get::<_, i32>(6)?).unwrap_or_default())
}

/// The delivery of an item that was leased, or `None` if the row is not of an item.
pub(super) fn delivery(
    row: &Row,
    lease: i64,
) -> Result<Option<Delivery<PostgresReceipt>>, PostgresError> {
    let Some(id) = row.try_get::<_, Option<i64>>(0)? else { return Ok(None) };
    let (item, mut malformed) = item(row)?;
    let enqueued_at = row.try_get::<_, Option<i64>>(5)?.and_then(from_ms);
    if enqueued_at.is_none() {
        malformed.get_or_insert_with(|| "its enqueued_at is no time".to_owned());
    }
    Ok(Some(Delivery {
        receipt: PostgresReceipt { id, lease },
        id: id.to_string().into(),
        item,
        enqueued_at,
        deliveries: deliveries(row)?,
        failures: Some(u32::try_from(row.try_get::<_, i32>(7)?).unwrap_or_default()),
        malformed: malformed.map(Into::into),
    }))
}

/// The text in the first column.
pub(super) fn first_text(row: &Row) -> Result<Option<String>, PostgresError> {
    Ok(text(row, 0)?.map(|(text, _)| text))
}

/// Of a row that is not of an item, the key in it.
pub(super) fn key(row: &Row) -> Result<Option<String>, PostgresError> {
    Ok(text(row, 1)?.map(|(key, _)| key))
}

pub(super) fn dead_letter(row: &Row) -> Result<DeadLetter, PostgresError> {
    Ok(DeadLetter {
        id: row.try_get(0)?,
        item: item(row)?.0,
        enqueued_at: row.try_get::<_, Option<i64>>(5)?.and_then(from_ms),
        deliveries: deliveries(row)?,
        reason: text(row, 7)?.map(|(reason, _)| reason).unwrap_or_default().into(),
        given_up_at: row.try_get::<_, Option<i64>>(8)?.and_then(from_ms),
    })
}

pub(super) fn queued(row: &Row) -> Result<QueuedItem, PostgresError> {
    let (item, malformed) = item(row)?;
    let until = row.try_get::<_, Option<i64>>(8)?.and_then(from_ms);
    let state = match (row.try_get::<_, &str>(7)?, until) {
        ("in work", Some(until)) => QueuedState::InWork { until },
        ("later", Some(until)) => QueuedState::Later { at: until },
        ("blocked", _) => QueuedState::Blocked,
        _ => QueuedState::Available,
    };
    Ok(QueuedItem {
        id: row.try_get(0)?,
        item,
        enqueued_at: row.try_get::<_, Option<i64>>(5)?.and_then(from_ms),
        deliveries: deliveries(row)?,
        state,
        malformed: malformed.map(Into::into),
    })
}
