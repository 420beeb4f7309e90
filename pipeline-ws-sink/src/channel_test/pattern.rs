//! The expected payload of an assertion. Pure.

use serde::Serialize;
use serde_json::Value;

/// An expected JSON value, built by the assertion macros.
#[doc(hidden)]
#[derive(Clone, Debug, PartialEq)]
pub enum Pattern {
    /// Anything.
    Any,
    /// This value, and nothing more or less.
    Exactly(Value),
    /// An object with at least these fields.
    Object(Vec<(String, Pattern)>),
    /// A list of these items, in this order.
    Array(Vec<Pattern>),
}

impl Pattern {
    /// The value of an expression.
    ///
    /// # Panics
    ///
    /// If the value has no JSON form.
    #[must_use]
    pub fn exactly(value: &(impl Serialize + ?Sized)) -> Self {
        Self::Exactly(serde_json::to_value(value).expect("the expected value has a JSON form"))
    }

    /// Adds a field to an object.
    #[must_use]
    pub fn field(mut self, key: &str, value: Self) -> Self {
        if let Self::Object(fields) = &mut self {
            fields.push((key.to_owned(), value));
        }
        self
    }

    /// Adds an item to a list.
    #[must_use]
    pub fn item(mut self, item: Self) -> Self {
        if let Self::Array(items) = &mut self {
            items.push(item);
        }
        self
    }

    /// Whether the value matches.
    #[must_use]
    pub fn matches(&self, value: &Value) -> bool {
        match (self, value) {
            (Self::Any, _) => true,
            (Self::Exactly(expected), value) => expected == value,
            (Self::Object(fields), Value::Object(object)) => fields
                .iter()
                .all(|(key, pattern)| object.get(key).is_some_and(|value| pattern.matches(value))),
            (Self::Array(patterns), Value::Array(items)) => {
                patterns.len() == items.len()
                    && patterns.iter().zip(items).all(|(pattern, item)| pattern.matches(item))
            }
            (Self::Object(_) | Self::Array(_), _) => false,
        }
    }
}

/// Builds a [`Pattern`] from JSON syntax.
#[doc(hidden)]
#[macro_export]
macro_rules! __pattern {
    (@fields $pattern:expr;) => { $pattern };
    (@fields $pattern:expr; $key:literal : _ $(, $($rest:tt)*)?) => {
        $crate::__pattern!(@fields $pattern.field($key, $crate::__pattern!(_)); $($($rest)*)?)
    };
    (@fields $pattern:expr; $key:literal : null $(, $($rest:tt)*)?) => {
        $crate::__pattern!(@fields $pattern.field($key, $crate::__pattern!(null)); $($($rest)*)?)
    };
    (@fields $pattern:expr; $key:literal : { $($inner:tt)* } $(, $($rest:tt)*)?) => {
        $crate::__pattern!(@fields $pattern.field($key, $crate::__pattern!({ $($inner)* })); $($($rest)*)?)
    };
    (@fields $pattern:expr; $key:literal : [ $($inner:tt)* ] $(, $($rest:tt)*)?) => {
        $crate::__pattern!(@fields $pattern.field($key, $crate::__pattern!([ $($inner)* ])); $($($rest)*)?)
    };
    (@fields $pattern:expr; $key:literal : $value:expr $(, $($rest:tt)*)?) => {
        $crate::__pattern!(@fields $pattern.field($key, $crate::__pattern!($value)); $($($rest)*)?)
    };
    (@items $pattern:expr;) => { $pattern };
    (@items $pattern:expr; _ $(, $($rest:tt)*)?) => {
        $crate::__pattern!(@items $pattern.item($crate::__pattern!(_)); $($($rest)*)?)
    };
    (@items $pattern:expr; null $(, $($rest:tt)*)?) => {
        $crate::__pattern!(@items $pattern.item($crate::__pattern!(null)); $($($rest)*)?)
    };
    (@items $pattern:expr; { $($inner:tt)* } $(, $($rest:tt)*)?) => {
        $crate::__pattern!(@items $pattern.item($crate::__pattern!({ $($inner)* })); $($($rest)*)?)
    };
    (@items $pattern:expr; [ $($inner:tt)* ] $(, $($rest:tt)*)?) => {
        $crate::__pattern!(@items $pattern.item($crate::__pattern!([ $($inner)* ])); $($($rest)*)?)
    };
    (@items $pattern:expr; $value:expr $(, $($rest:tt)*)?) => {
        $crate::__pattern!(@items $pattern.item($crate::__pattern!($value)); $($($rest)*)?)
    };
    (_) => { $crate::channel_test::Pattern::Any };
    (null) => { $crate::channel_test::Pattern::exactly(&()) };
    ({ $($inner:tt)* }) => {
        $crate::__pattern!(@fields $crate::channel_test::Pattern::Object(::std::vec![]); $($inner)*)
    };
    ([ $($inner:tt)* ]) => {
        $crate::__pattern!(@items $crate::channel_test::Pattern::Array(::std::vec![]); $($inner)*)
    };
    ($value:expr) => { $crate::channel_test::Pattern::exactly(&$value) };
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn named_fields_are_required_and_others_allowed() {
        let pattern = __pattern!({ "body": "hi", "user": { "id": _ }, });
        assert!(pattern.matches(&json!({"body": "hi", "user": {"id": 1, "n": 2}, "more": true})));
        for other in [
            json!({"body": "hi", "user": {}}),
            json!({"body": "hi", "user": 1}),
            json!({"body": "ho", "user": {"id": 1}}),
            json!({"user": {"id": 1}}),
            json!([]),
            json!(null),
        ] {
            assert!(!pattern.matches(&other), "{other}");
        }
        assert!(__pattern!({}).matches(&json!({"a": 1})));
        assert!(!__pattern!({}).matches(&json!([])));
    }

    #[test]
    fn a_list_has_the_same_number_of_items() {
        let pattern = __pattern!([1, _, { "a": null }, [], "x"]);
        assert!(pattern.matches(&json!([1, [2], {"a": null, "b": 1}, [], "x"])));
        assert!(!pattern.matches(&json!([1, [2], {"a": 0}, [], "x"])));
        assert!(!__pattern!([1]).matches(&json!([1, 2])));
        assert!(!__pattern!([]).matches(&json!([1])));
        assert!(__pattern!([]).matches(&json!([])));
    }

    #[test]
    fn values_may_be_expressions() {
        let (count, names) = (3, ["ada", "joe"]);
        let pattern = __pattern!({ "count": count + 1, "names": names, "many": [names.len(), -1] });
        assert!(pattern.matches(&json!({"count": 4, "names": ["ada", "joe"], "many": [2, -1]})));
        assert!(!pattern.matches(&json!({"count": 3, "names": ["ada", "joe"], "many": [2, -1]})));
        // The value of an expression is compared as a whole.
        assert!(!__pattern!({ "at": json!({"x": 1}) }).matches(&json!({"at": {"x": 1, "y": 2}})));
        assert!(__pattern!({ "at": { "x": 1 } }).matches(&json!({"at": {"x": 1, "y": 2}})));
    }
}
