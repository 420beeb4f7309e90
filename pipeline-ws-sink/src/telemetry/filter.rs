//! What of a client's parameters may stand in a log. Pure.

use std::fmt::{self, Write};

use serde_json::{Map, Value};

use crate::payload::Payload;

/// What stands in place of what may not be read.
const FILTERED: &str = "[FILTERED]";

/// So many bytes of parameters are logged. A log is to tell who it was, and not to keep what they said.
const LONGEST: usize = 512;

/// Which parameters of clients may stand in the log: those of `connect`, and the payloads of joins and
/// events. Names are always shown; in place of a value that may not be, at any depth, `[FILTERED]` is.
///
/// By default, whatever is called something with `password` or `token` is not shown. Case counts. Nor
/// is a text in which one of these is given a value, such as `"?token=.."`. No more than 512 bytes are
/// logged in any case.
///
/// This is `:filter_parameters` of Phoenix's `Phoenix.Logger`.
///
/// ```
/// # use pipeline_ws_sink::*;
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
    /// Shows all but the parameters whose names contain one of these.
    ///
    /// ```
    /// # use pipeline_ws_sink::ParamFilter;
    /// assert_eq!(ParamFilter::default(), ParamFilter::discard(["password", "token"]));
    /// ```
    pub fn discard<T: Into<String>>(names: impl IntoIterator<Item = T>) -> Self {
        Self { names: names.into_iter().map(Into::into).collect(), keeps: false }
    }

    /// Shows only the parameters of these names, with all that is in them.
    ///
    /// ```
    /// # use pipeline_ws_sink::ParamFilter;
    /// let little = ParamFilter::keep(["vsn", "page"]);
    /// ```
    pub fn keep<T: Into<String>>(names: impl IntoIterator<Item = T>) -> Self {
        Self { names: names.into_iter().map(Into::into).collect(), keeps: true }
    }

    /// The parameters as they may be shown.
    pub(crate) fn params(&self, params: &Map<String, Value>) -> String {
        self.cut(|out| self.write_map(params, out))
    }

    /// What a message carries, as it may be shown.
    pub(crate) fn payload(&self, payload: &Payload) -> String {
        match (payload.as_binary(), payload.parse::<Value>()) {
            (Some(bytes), _) => format!("{} bytes", bytes.len()),
            (None, Ok(value)) => self.cut(|out| self.write(&value, out)),
            // It is nested too deep to be looked through.
            (None, Err(_)) => FILTERED.to_owned(),
        }
    }

    /// What this writes, up to so much.
    fn cut(&self, write: impl FnOnce(&mut Cut) -> fmt::Result) -> String {
        let mut cut = Cut(String::new());
        if write(&mut cut).is_err() {
            cut.0.push('…');
        }
        cut.0
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
            Value::String(text) if self.gives_away(text) => write!(out, "{FILTERED:?}"),
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

    /// Whether a parameter of this name is one of those.
    fn names(&self, parameter: &str) -> bool {
        let is_it =
            |name: &String| if self.keeps { parameter == name } else { parameter.contains(name) };
        self.names.iter().any(is_it)
    }

    /// Whether a text has one of those in it, as the query of a URL has.
    fn gives_away(&self, text: &str) -> bool {
        let given = |name: &String| {
            let mut after = text.match_indices(name).map(|(at, name)| at + name.len());
            after.any(|at| text[at..].starts_with('='))
        };
        self.names.iter().any(given)
    }
}

impl Default for ParamFilter {
    fn default() -> Self {
        Self::discard(["password", "token"])
    }
}

/// A text that takes so much and no more.
struct Cut(String);

impl Write for Cut {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = LONGEST - self.0.len();
        if text.len() <= room {
            self.0.push_str(text);
            return Ok(());
        }
        let mut fits = room;
        while !text.is_char_boundary(fits) {
            fits -= 1;
        }
        self.0.push_str(&text[..fits]);
        Err(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(filter: &ParamFilter, value: &Value) -> Value {
        let shown = filter.payload(&Payload::new(value).unwrap());
        serde_json::from_str(&shown).unwrap()
    }

    #[test]
    fn what_is_called_password_or_token_is_not_shown_at_any_depth() {
        let value = json!({
            "name": "ada", "password": "x", "auth_token": ["y"], "n": 1,
            "in": [{ "new_password2": { "a": 1 }, "Password": "z" }, null],
        });
        let expected = json!({
            "name": "ada", "password": FILTERED, "auth_token": FILTERED, "n": 1,
            "in": [{ "new_password2": FILTERED, "Password": "z" }, null],
        });
        assert_eq!(shown(&ParamFilter::default(), &value), expected);
    }

    #[test]
    fn a_text_that_gives_one_away_is_not_shown() {
        let value = json!({ "a": "/x?token=y", "b": "a token", "c": ["token, password=p"] });
        let expected = json!({ "a": FILTERED, "b": "a token", "c": [FILTERED] });
        assert_eq!(shown(&ParamFilter::default(), &value), expected);
    }

    #[test]
    fn only_what_is_to_be_kept_is_shown() {
        let value = json!({ "id": { "of": [1, "x"] }, "ids": 1, "in": [{ "id": 2, "b": "c" }, 3] });
        let expected = json!({
            "id": { "of": [1, "x"] }, "ids": FILTERED,
            "in": [{ "id": 2, "b": FILTERED }, FILTERED],
        });
        assert_eq!(shown(&ParamFilter::keep(["id"]), &value), expected);
    }

    #[test]
    fn what_is_long_is_cut_and_what_is_binary_is_measured() {
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
