//! The filter of clients' parameters in the log. Pure.

use std::fmt::{self, Write};

use pipeline_core::shown::{Cut, cut};
use serde_json::{Map, Value};

use crate::payload::Payload;

/// The replacement of a hidden value.
const FILTERED: &str = "[FILTERED]";

/// Names that suggest a secret, in normalized form.
const SECRETS: [&str; 11] = [
    "password",
    "passwd",
    "passphrase",
    "token",
    "secret",
    "authorization",
    "apikey",
    "privatekey",
    "credential",
    "cookie",
    "jwt",
];

/// Which parameters of clients may be logged: those of `connect`, and the payloads of joins and
/// events. Names are always shown; hidden values, at any depth, are replaced by `[FILTERED]`.
///
/// By default a value is hidden if its name contains `password`, `passwd`, `passphrase`, `token`,
/// `secret`, `authorization`, `api_key`, `private_key`, `credential`, `cookie` or `jwt`, or if it
/// is a text that assigns a value to one of these, such as `"?token=.."`. Case, `_` and `-` are
/// ignored: `userToken` and `API-Key` are hidden too. No more than 512 bytes are ever logged.
///
/// This is `:filter_parameters` of Phoenix's `Phoenix.Logger`, which is case-sensitive, and hides
/// only `password` by default.
///
/// ```
/// # use pipeline_ws_sink::{Mount, Socket, mount::ParamFilter};
/// # fn options<S: Socket>(mount: Mount<S>) -> Mount<S> {
/// mount.filter_params(ParamFilter::discard(["password", "token", "card"]))
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct ParamFilter {
    names: Vec<String>,
    keeps: bool,
}

impl ParamFilter {
    /// Shows all parameters except those whose names contain one of these, ignoring case, `_` and
    /// `-`. This replaces the default names.
    pub fn discard<T: Into<String>>(names: impl IntoIterator<Item = T>) -> Self {
        let names = names.into_iter().map(|name| plain(&name.into()));
        // A name of only `_` would be contained in all names.
        Self { names: names.filter(|name| !name.is_empty()).collect(), keeps: false }
    }

    /// Shows only the parameters of exactly these names, with everything in them.
    pub fn keep<T: Into<String>>(names: impl IntoIterator<Item = T>) -> Self {
        Self { names: names.into_iter().map(Into::into).collect(), keeps: true }
    }

    /// The filtered parameters, for the log.
    pub(crate) fn params(&self, params: &Map<String, Value>) -> String {
        cut(|out| self.write_map(params, out))
    }

    /// The filtered payload, for the log.
    pub(crate) fn payload(&self, payload: &Payload) -> String {
        match (payload.as_binary(), payload.parse::<Value>()) {
            (Some(bytes), _) => format!("{} bytes", bytes.len()),
            (None, Ok(value)) => cut(|out| self.write(&value, out)),
            // The payload is nested too deeply to be filtered.
            (None, Err(_)) => FILTERED.to_owned(),
        }
    }

    fn write(&self, value: &Value, out: &mut Cut) -> fmt::Result {
        match value {
            Value::Object(map) => self.write_map(map, out),
            Value::Array(values) => {
                out.write_char('[')?;
                for (at, value) in values.iter().enumerate() {
                    out.write_str(if at == 0 { "" } else { "," })?;
                    self.write(value, out)?;
                }
                out.write_char(']')
            }
            _ if self.keeps => write!(out, "{FILTERED:?}"),
            Value::String(text) if self.names_a_secret(text) => write!(out, "{FILTERED:?}"),
            value => write!(out, "{value}"),
        }
    }

    fn write_map(&self, map: &Map<String, Value>, out: &mut Cut) -> fmt::Result {
        out.write_char('{')?;
        for (at, (name, value)) in map.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(out, "{comma}{}:", Value::from(name.as_str()))?;
            if !self.names(name) {
                self.write(value, out)?;
            } else if self.keeps {
                write!(out, "{value}")?;
            } else {
                write!(out, "{FILTERED:?}")?;
            }
        }
        out.write_char('}')
    }

    /// Whether this parameter's name is in the list.
    fn names(&self, parameter: &str) -> bool {
        if self.keeps {
            return self.names.iter().any(|name| parameter == name);
        }
        let parameter = plain(parameter);
        self.names.iter().any(|name| parameter.contains(name))
    }

    /// Whether a text contains a name of the list and assigns it a value, as the query of a URL, a
    /// header or JSON does.
    fn names_a_secret(&self, text: &str) -> bool {
        let text = plain(text);
        let given = |name: &String| {
            let mut after = text.match_indices(name).map(|(at, name)| at + name.len());
            after.any(|at| {
                let behind = text[at..].trim_start_matches(['"', '\'', '\\', ' ']);
                behind.starts_with(['=', ':'])
            })
        };
        self.names.iter().any(given)
    }
}

/// Normalizes a text: lower case, without `_` and `-`.
fn plain(text: &str) -> String {
    let kept = text.chars().filter(|char| !matches!(char, '_' | '-'));
    kept.flat_map(char::to_lowercase).collect()
}

impl Default for ParamFilter {
    fn default() -> Self {
        Self::discard(SECRETS)
    }
}

#[cfg(test)]
mod tests {
    use pipeline_core::shown::LONGEST;
    use serde_json::json;

    use super::*;

    fn shown(filter: &ParamFilter, value: &Value) -> Value {
        let shown = filter.payload(&Payload::new(value).unwrap());
        serde_json::from_str(&shown).unwrap()
    }

    #[test]
    fn values_with_secret_names_are_hidden_at_any_depth() {
        let value = json!({
            "name": "ada", "password": "x", "auth_token": ["y"], "n": 1,
            "in": [{ "new_password2": { "a": 1 }, "keys": "z" }, null],
        });
        let expected = json!({
            "name": "ada", "password": FILTERED, "auth_token": FILTERED, "n": 1,
            "in": [{ "new_password2": FILTERED, "keys": "z" }, null],
        });
        assert_eq!(shown(&ParamFilter::default(), &value), expected);
    }

    #[test]
    fn the_spelling_of_a_name_does_not_matter() {
        let filter = ParamFilter::default();
        for name in [
            "userToken",
            "accessToken",
            "Password",
            "PASSWORD",
            "client_secret",
            "Authorization",
            "api_key",
            "apiKey",
            "X-API-Key",
            "privateKey",
            "Set-Cookie",
            "pass_word",
        ] {
            let hidden = shown(&filter, &json!({ name: "x" }));
            assert_eq!(hidden, json!({ name: FILTERED }), "{name}");
        }
        let own = ParamFilter::discard(["Card_Number"]);
        assert_eq!(shown(&own, &json!({ "cardNumber": 1 })), json!({ "cardNumber": FILTERED }));
        assert_eq!(shown(&ParamFilter::discard(["", "_"]), &json!({ "a": 1 })), json!({ "a": 1 }));
    }

    #[test]
    fn a_text_that_contains_a_secret_is_hidden() {
        for text in [
            "/x?token=y",
            "token, password=p",
            "/x?userToken=y",
            "Authorization: Bearer y",
            r#"{"apiKey":"y"}"#,
            r#"{\"api_key\" : 1}"#,
        ] {
            assert_eq!(shown(&ParamFilter::default(), &json!([text])), json!([FILTERED]), "{text}");
        }
        let harmless = json!(["a token", "the password is secret", "a=b"]);
        assert_eq!(shown(&ParamFilter::default(), &harmless), harmless);
    }

    #[test]
    fn only_kept_parameters_are_shown() {
        let value = json!({ "id": { "of": [1, "x"] }, "ids": 1, "in": [{ "id": 2, "b": "c" }, 3] });
        let expected = json!({
            "id": { "of": [1, "x"] }, "ids": FILTERED,
            "in": [{ "id": 2, "b": FILTERED }, FILTERED],
        });
        assert_eq!(shown(&ParamFilter::keep(["id"]), &value), expected);
    }

    #[test]
    fn long_values_are_truncated_and_binary_ones_shown_by_length() {
        let filter = ParamFilter::default();
        let long = filter.payload(&Payload::new(&json!({ "a": "é".repeat(1000) })).unwrap());
        assert!(long.len() <= LONGEST + '…'.len_utf8() && long.ends_with("é…"), "{long}");
        assert_eq!(filter.payload(&Payload::binary(vec![0; 12])), "12 bytes");
        let exact = "x".repeat(LONGEST - 2);
        assert_eq!(filter.payload(&Payload::new(&exact).unwrap()), format!("{exact:?}"));
    }

    #[test]
    fn parameters_of_a_query_are_filtered_too() {
        let params = json!({ "vsn": "2.0.0", "token": "x" });
        let shown = ParamFilter::default().params(params.as_object().unwrap());
        assert_eq!(shown, r#"{"token":"[FILTERED]","vsn":"2.0.0"}"#);
    }
}
