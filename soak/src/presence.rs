//! A client's view of a room's presences. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// The keys of a room, each with the references of its metas.
pub(crate) type People = BTreeMap<String, BTreeSet<String>>;

/// A list with the changes to it, as the official client keeps it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Presences {
    people: Option<People>,
    /// Diffs that came before the list.
    pending: Vec<Value>,
}

impl Presences {
    pub(crate) fn state(&mut self, state: &Value) {
        self.people = Some(people(state));
        for diff in std::mem::take(&mut self.pending) {
            self.diff(diff);
        }
    }

    pub(crate) fn diff(&mut self, diff: Value) {
        let Some(all) = &mut self.people else { return self.pending.push(diff) };
        for (key, references) in people(&diff["joins"]) {
            all.entry(key).or_default().extend(references);
        }
        for (key, references) in people(&diff["leaves"]) {
            let Some(left) = all.get_mut(&key) else { continue };
            left.retain(|reference| !references.contains(reference));
            if left.is_empty() {
                all.remove(&key);
            }
        }
    }

    /// The list, once it has arrived.
    pub(crate) fn people(&self) -> Option<&People> {
        self.people.as_ref()
    }
}

/// Reads the keys and references of a list.
pub(crate) fn people(list: &Value) -> People {
    let references = |entry: &Value| {
        let metas = entry["metas"].as_array().into_iter().flatten();
        metas.filter_map(|meta| meta["phx_ref"].as_str().map(str::to_owned)).collect()
    };
    let entries = list.as_object().into_iter().flatten();
    entries.map(|(key, entry)| (key.clone(), references(entry))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn list(entries: &[(&str, &str)]) -> Value {
        let entries = entries.iter().map(|(key, reference)| {
            ((*key).to_owned(), json!({ "metas": [{ "phx_ref": reference }] }))
        });
        Value::Object(entries.collect())
    }

    #[test]
    fn diffs_are_applied_to_the_list_also_if_they_come_first() {
        let mut presences = Presences::default();
        presences.diff(json!({ "joins": list(&[("ada", "2")]), "leaves": list(&[("ben", "1")]) }));
        assert_eq!(presences.people(), None);
        presences.state(&list(&[("ben", "1"), ("cleo", "1")]));
        assert_eq!(presences.people(), Some(&people(&list(&[("ada", "2"), ("cleo", "1")]))));
        presences.diff(json!({ "joins": list(&[("ada", "3")]), "leaves": list(&[("ada", "2")]) }));
        assert_eq!(presences.people(), Some(&people(&list(&[("ada", "3"), ("cleo", "1")]))));
    }
}
