//! The presences of a topic, and their changes, as sent to clients. Pure.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::{Map, Value};

use super::tracker::{Diff, Meta};

/// The field with the metas of a key.
const METAS: &str = "metas";

/// The presences of a topic: for each key a list of metas, one for each time it is tracked, and the data
/// that [`fetch`](crate::presence::PresenceBuilder::fetch) has added.
///
/// Its JSON is the format that the official client's `Presence` expects: `{"ada": {"metas":
/// [{"device": "phone", "phx_ref": ".."}]}}`.
///
/// Cheap to clone: clones share everything until data is added to one of them.
///
/// ```
/// # use pipeline_ws_sink::presence::PresenceList;
/// fn devices<'a>(who: &'a PresenceList, key: &str) -> Vec<&'a str> {
///     who.metas(key).filter_map(|meta| meta.get("device")?.as_str()).collect()
/// }
/// # assert!(devices(&PresenceList::default(), "ada").is_empty());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct PresenceList(Arc<BTreeMap<Arc<str>, Entry>>);

/// The entry of one key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Entry {
    /// Shared with the tracker, so that listing a topic copies no meta.
    metas: Vec<Meta>,
    added: Map<String, Value>,
}

impl PresenceList {
    /// The number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no keys.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(|key| &**key)
    }

    /// The entry of a key: its `metas`, and the added data.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Map<String, Value>> {
        let Entry { metas, added } = self.0.get(key)?;
        let metas = metas.iter().map(|meta| Value::Object((**meta).clone())).collect();
        let mut entry = added.clone();
        entry.insert(METAS.to_owned(), Value::Array(metas));
        Some(entry)
    }

    /// The metas of a key; none if the key is not present.
    pub fn metas(&self, key: &str) -> impl Iterator<Item = &Map<String, Value>> {
        self.0.get(key).into_iter().flat_map(|entry| &entry.metas).map(|meta| &**meta)
    }

    /// Adds a field to a key's entry, next to its `metas`, which cannot be changed. Does nothing if
    /// the key is not present.
    pub fn add(&mut self, key: &str, field: &str, value: impl Into<Value>) {
        if field == METAS || !self.0.contains_key(key) {
            return;
        }
        if let Some(entry) = Arc::make_mut(&mut self.0).get_mut(key) {
            entry.added.insert(field.to_owned(), value.into());
        }
    }

    /// Groups metas by key.
    pub(super) fn of(metas: impl IntoIterator<Item = (Arc<str>, Meta)>) -> Self {
        let mut grouped = BTreeMap::<Arc<str>, Entry>::new();
        for (key, meta) in metas {
            grouped.entry(key).or_default().metas.push(meta);
        }
        Self(Arc::new(grouped))
    }

    /// Takes over the added data, and nothing else: `fetch` cannot change keys or metas.
    pub(super) fn enrich(&mut self, enriched: Self) {
        if Arc::ptr_eq(&self.0, &enriched.0) {
            return;
        }
        let who = Arc::make_mut(&mut self.0);
        for (key, Entry { added, .. }) in Arc::unwrap_or_clone(enriched.0) {
            if let Some(entry) = who.get_mut(&key) {
                entry.added.extend(added);
            }
        }
    }
}

impl Serialize for Entry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut entry = serializer.serialize_map(Some(self.added.len() + 1))?;
        entry.serialize_entry(METAS, &self.metas)?;
        self.added.iter().try_for_each(|(field, value)| entry.serialize_entry(field, value))?;
        entry.end()
    }
}

/// The joins and leaves on a topic. An updated meta is in both: the new meta joins, the old one
/// leaves, and no client sees the key missing meanwhile.
///
/// Clients receive it as the event `presence_diff`; code on the server receives it through
/// [`PresenceBuilder::on_diff`](crate::presence::PresenceBuilder::on_diff).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PresenceDiff {
    /// The topic.
    #[serde(skip)]
    pub topic: Arc<str>,
    /// The new metas only; the key may have others.
    pub joins: PresenceList,
    /// The removed metas only.
    pub leaves: PresenceList,
    /// The keys that have come: they had no meta before this diff, and have one now. On whatever node
    /// and device, only the first meta of a user is such a join. Each node of a cluster has it. Clients
    /// do not receive it.
    #[serde(skip)]
    pub first_joins: Vec<Arc<str>>,
    /// The keys that have gone: they had a meta before this diff, and have none now. Clients do not
    /// receive it.
    #[serde(skip)]
    pub last_leaves: Vec<Arc<str>>,
}

impl PresenceDiff {
    /// The diff of these changes. `metas` is the number of metas that a key has after it.
    pub(super) fn new(
        topic: Arc<str>,
        Diff { joins, leaves }: Diff,
        metas: impl Fn(&str) -> usize,
    ) -> Self {
        let mut keys: BTreeMap<&Arc<str>, (usize, usize)> = BTreeMap::new();
        joins.iter().for_each(|(key, _)| keys.entry(key).or_default().0 += 1);
        leaves.iter().for_each(|(key, _)| keys.entry(key).or_default().1 += 1);
        let (mut first_joins, mut last_leaves) = (Vec::new(), Vec::new());
        // A diff has all changes of its keys.
        for (key, (joined, left)) in keys {
            let now = metas(key);
            let before = (now + left).saturating_sub(joined);
            match (before, now) {
                (0, 1..) => first_joins.push(key.clone()),
                (1.., 0) => last_leaves.push(key.clone()),
                _ => {}
            }
        }
        let (joins, leaves) = (PresenceList::of(joins), PresenceList::of(leaves));
        Self { topic, joins, leaves, first_joins, last_leaves }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn meta(value: &Value) -> Meta {
        Arc::new(value.as_object().unwrap().clone())
    }

    fn two() -> PresenceList {
        let (phone, laptop) = (meta(&json!({ "on": "phone" })), meta(&json!({ "on": "laptop" })));
        let ada: Arc<str> = "ada".into();
        PresenceList::of([("ben".into(), laptop.clone()), (ada.clone(), phone), (ada, laptop)])
    }

    #[test]
    fn metas_are_grouped_by_key_in_their_order() {
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
    fn enriching_cannot_add_remove_or_change_metas() {
        let mut wrong =
            PresenceList::of([("eve".into(), Meta::default()), ("ada".into(), Meta::default())]);
        wrong.add("ada", "name", "Ada");
        wrong.add("ada", "metas", json!([]));
        wrong.add("eve", "name", "Eve");
        let mut who = two();
        who.enrich(wrong);
        let mut expected = two();
        expected.add("ada", "name", "Ada");
        assert_eq!(who, expected);
        assert_eq!(json!(who)["ada"]["name"], "Ada");
        assert_eq!(json!(who.get("ada")), json!(who)["ada"]);
    }

    #[test]
    fn clones_share_their_metas_until_data_is_added_to_one() {
        let who = two();
        let mut clone = who.clone();
        clone.add("eve", "name", "Eve");
        assert!(Arc::ptr_eq(&who.0, &clone.0));
        clone.add("ada", "name", "Ada");
        assert!(Arc::ptr_eq(&who.0["ada"].metas[0], &clone.0["ada"].metas[0]));
        assert_eq!((json!(who.get("ada"))["name"].is_null(), who), (true, two()));
    }
}
