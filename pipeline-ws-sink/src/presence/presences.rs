//! Who is there, as clients are told. Pure.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::tracker::Meta;

/// Where the metas of a key are.
const METAS: &str = "metas";

/// Who is on a topic: for each key a list of metas, one for each time it is tracked, and what
/// [`fetch`](crate::PresenceBuilder::fetch) has added.
///
/// As JSON it is what the official client's `Presence` expects:
/// `{"ada": {"metas": [{"device": "phone", "phx_ref": ".."}]}}`.
///
/// ```
/// # use pipeline_ws_sink::Presences;
/// fn devices<'a>(who: &'a Presences, key: &str) -> Vec<&'a str> {
///     who.metas(key).filter_map(|meta| meta.get("device")?.as_str()).collect()
/// }
/// # assert!(devices(&Presences::default(), "ada").is_empty());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Presences(BTreeMap<String, Map<String, Value>>);

impl Presences {
    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nobody is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The keys, in their order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// What is told of a key: its `metas`, and what was added.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Map<String, Value>> {
        self.0.get(key)
    }

    /// The metas of a key. There are none if it is not there.
    pub fn metas(&self, key: &str) -> impl Iterator<Item = &Map<String, Value>> {
        let metas = self.0.get(key).and_then(|entry| entry.get(METAS)?.as_array());
        metas.into_iter().flatten().filter_map(Value::as_object)
    }

    /// Adds something to what is told of a key, beside its `metas`, which stay as they are. Does nothing
    /// if the key is not there.
    ///
    /// ```
    /// # use pipeline_ws_sink::Presences;
    /// # use serde_json::json;
    /// fn named(mut who: Presences) -> Presences {
    ///     let keys: Vec<_> = who.keys().map(str::to_owned).collect();
    ///     for key in keys {
    ///         who.add(&key, "user", json!({ "name": key.to_uppercase() }));
    ///     }
    ///     who
    /// }
    /// # assert!(named(Presences::default()).is_empty());
    /// ```
    pub fn add(&mut self, key: &str, field: &str, value: impl Into<Value>) {
        if let Some(entry) = self.0.get_mut(key).filter(|_| field != METAS) {
            entry.insert(field.to_owned(), value.into());
        }
    }

    /// Groups metas by their keys.
    pub(super) fn of<'a>(metas: impl IntoIterator<Item = (&'a str, &'a Meta)>) -> Self {
        let mut grouped = BTreeMap::<String, Vec<Value>>::new();
        for (key, meta) in metas {
            let meta = Value::Object((**meta).clone());
            match grouped.get_mut(key) {
                Some(metas) => metas.push(meta),
                None => drop(grouped.insert(key.to_owned(), vec![meta])),
            }
        }
        let entry = |metas| Map::from_iter([(METAS.to_owned(), Value::Array(metas))]);
        Self(grouped.into_iter().map(|(key, metas)| (key, entry(metas))).collect())
    }

    /// Takes over what these have been given, and no more: who is there, and with what, is not for
    /// others to say.
    pub(super) fn enrich(&mut self, enriched: Self) {
        for (key, fields) in enriched.0 {
            for (field, value) in fields {
                self.add(&key, &field, value);
            }
        }
    }

    /// What is told of one key.
    pub(super) fn take(mut self, key: &str) -> Option<Map<String, Value>> {
        self.0.remove(key)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    fn meta(value: &Value) -> Meta {
        Arc::new(value.as_object().unwrap().clone())
    }

    fn two() -> Presences {
        let (phone, laptop) = (meta(&json!({ "on": "phone" })), meta(&json!({ "on": "laptop" })));
        Presences::of([("ben", &laptop), ("ada", &phone), ("ada", &laptop)])
    }

    #[test]
    fn metas_are_grouped_by_their_keys_in_the_order_in_which_they_came() {
        let expected = json!({
            "ada": { "metas": [{ "on": "phone" }, { "on": "laptop" }] },
            "ben": { "metas": [{ "on": "laptop" }] },
        });
        assert_eq!(json!(two()), expected);
        assert_eq!((two().len(), two().keys().collect()), (2, vec!["ada", "ben"]));
        assert_eq!(two().metas("ada").count(), 2);
        assert_eq!(two().metas("eve").count(), 0);
    }

    #[test]
    fn nobody_can_be_added_removed_or_changed_by_enriching() {
        let mut wrong = two();
        wrong.0.remove("ben");
        wrong.0.insert("eve".to_owned(), Map::new());
        wrong.0.insert("ada".to_owned(), Map::from_iter([("metas".to_owned(), json!([]))]));
        wrong.add("ada", "name", "Ada");
        let mut who = two();
        who.enrich(wrong);
        let mut expected = two();
        expected.add("ada", "name", "Ada");
        assert_eq!(who, expected);
        assert_eq!(json!(who)["ada"]["name"], "Ada");
    }
}
