//! Rows, as any program may have written them. What cannot be read makes an item malformed, and is no
//! error: an error would stop the source, and the row would be there again.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use pipeline_core::timed::TraceContext;
use rusqlite::{
    Row, ToSql,
    types::{FromSql, FromSqlResult, ToSqlOutput, ValueRef},
};

use super::{SqliteReceipt, schema::NEVER};
use crate::{
    item::{DeadLetter, Delivery, Item, QueuedItem, QueuedState},
    unix_ms::{from_ms, now_ms},
};

/// A value of any type as the file has it. Its text may be any bytes: another program may have written them.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum RawValue {
    Null,
    Integer(i64),
    Real(f64),
    Text(Vec<u8>),
    Blob(Vec<u8>),
}

impl FromSql for RawValue {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Ok(match value {
            ValueRef::Null => Self::Null,
            ValueRef::Integer(number) => Self::Integer(number),
            ValueRef::Real(number) => Self::Real(number),
            ValueRef::Text(bytes) => Self::Text(bytes.to_vec()),
            ValueRef::Blob(bytes) => Self::Blob(bytes.to_vec()),
        })
    }
}

impl ToSql for RawValue {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Integer(number) => ValueRef::Integer(*number),
            Self::Real(number) => ValueRef::Real(*number),
            Self::Text(bytes) => ValueRef::Text(bytes),
            Self::Blob(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

/// The bytes of a value of any type.
fn bytes(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Vec<u8>>> {
    Ok(match row.get_ref(column)? {
        ValueRef::Null => None,
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(bytes.to_vec()),
        ValueRef::Integer(number) => Some(number.to_string().into_bytes()),
        ValueRef::Real(number) => Some(number.to_string().into_bytes()),
    })
}

/// The text in a column, and whether it is not UTF-8.
fn text(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<(String, bool)>> {
    Ok(bytes(row, column)?.map(|bytes| match String::from_utf8_lossy(&bytes) {
        Cow::Borrowed(text) => (text.to_owned(), false),
        Cow::Owned(text) => (text, true),
    }))
}

fn integer(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<i64>> {
    Ok(match row.get_ref(column)? {
        ValueRef::Integer(number) => Some(number),
        _ => None,
    })
}

fn count(row: &Row<'_>, column: usize) -> rusqlite::Result<u32> {
    let count = integer(row, column)?.unwrap_or_default().clamp(0, u32::MAX.into());
    Ok(u32::try_from(count).unwrap_or_default())
}

/// An item in the columns `key`, `payload`, `headers` and `trace`, from this one on, and why it cannot be
/// read.
fn item(row: &Row<'_>, first: usize) -> rusqlite::Result<(Item, Option<Arc<str>>)> {
    let mut malformed: Option<Arc<str>> = None;
    let key = text(row, first)?.map(|(key, is_odd)| {
        if is_odd {
            malformed = Some("its key is not UTF-8".into());
        }
        key.into()
    });
    let mut headers = BTreeMap::<String, String>::new();
    if let Some((text, _)) = text(row, first + 2)? {
        match serde_json::from_str(&text) {
            Ok(read) => headers = read,
            Err(error) => {
                let why = format!("its headers are not an object of texts: {error}");
                malformed = Some(why.into());
            }
        }
    }
    let item = Item {
        key,
        payload: bytes(row, first + 1)?.map(Bytes::from).unwrap_or_default(),
        headers: headers.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
        // A trace that cannot be read is no reason to give the item up.
        trace: text(row, first + 3)?.and_then(|(trace, _)| trace.parse::<TraceContext>().ok()),
    };
    Ok((item, malformed))
}

/// The delivery of an item that was leased.
pub(super) fn delivery(
    row: &Row<'_>,
    receipt: SqliteReceipt,
) -> rusqlite::Result<Delivery<SqliteReceipt>> {
    let (item, mut malformed) = item(row, 0)?;
    let enqueued_at = integer(row, 4)?.and_then(from_ms);
    if enqueued_at.is_none() {
        malformed.get_or_insert_with(|| "its enqueued_at is no integer".into());
    }
    Ok(Delivery {
        receipt,
        id: receipt.id.to_string().into(),
        item,
        enqueued_at,
        deliveries: count(row, 5)?,
        failures: Some(count(row, 6)?),
        malformed,
    })
}

pub(super) fn dead_letter(row: &Row<'_>) -> rusqlite::Result<DeadLetter> {
    Ok(DeadLetter {
        id: row.get(0)?,
        item: item(row, 1)?.0,
        enqueued_at: integer(row, 5)?.and_then(from_ms),
        deliveries: count(row, 6)?,
        reason: text(row, 7)?.map(|(reason, _)| reason).unwrap_or_default().into(),
        given_up_at: integer(row, 8)?.and_then(from_ms),
    })
}

pub(super) fn queued(row: &Row<'_>) -> rusqlite::Result<QueuedItem> {
    let (item, malformed) = item(row, 1)?;
    let available_at = integer(row, 7)?.unwrap_or_default();
    let state = match from_ms(available_at) {
        _ if available_at == NEVER => QueuedState::Blocked,
        Some(until) if available_at > now_ms() && row.get(8)? => QueuedState::InWork { until },
        Some(at) if available_at > now_ms() => QueuedState::Later { at },
        _ => QueuedState::Available,
    };
    Ok(QueuedItem {
        id: row.get(0)?,
        item,
        enqueued_at: integer(row, 5)?.and_then(from_ms),
        deliveries: count(row, 6)?,
        state,
        malformed,
    })
}

/// The integer in the first column, which may be of another type.
pub(super) fn first_integer(row: &Row<'_>) -> rusqlite::Result<Option<i64>> {
    integer(row, 0)
}
