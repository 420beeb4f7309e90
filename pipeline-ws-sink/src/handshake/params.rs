//! The parameters that a client connects with.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use thiserror::Error;

use super::{
    leaves::{self, LeafError},
    query::{self, QueryError},
};

/// The parameters of a client's connection: the query of its request, and the variables of the path
/// that its socket is mounted at.
///
/// Names may nest, as the official client nests them: `a[b]=c` is an object, `l[]=1&l[]=2` a list.
/// All leaves are strings. The protocol version, `vsn`, is one of the parameters. The decoding is
/// that of `Plug.Conn.Query`.
/// `Plug.Conn.Query` decodes.
///
/// A query with more than 1000 parameters, or nested deeper than 32, or that is not percent-encoded
/// UTF-8, is refused with status 400.
///
/// ```
/// # use pipeline_ws_sink::socket::Params;
/// use serde_json::json;
///
/// // The parameters of `?user=42&device[kind]=phone`.
/// let params = Params::from_iter([
///     ("user".to_owned(), json!("42")),
///     ("device".to_owned(), json!({ "kind": "phone" })),
/// ]);
/// assert_eq!(params.get("user"), Some("42"));
/// assert_eq!(params.get("device"), None);
/// assert_eq!(params.as_map()["device"]["kind"], "phone");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Params(Map<String, Value>);

impl Params {
    /// The parameters of a request. Variables of the path replace those of the query.
    pub(crate) fn decode(
        query: &str,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, QueryError> {
        let mut params = query::decode(query)?;
        params.extend(variables.into_iter().map(|(name, value)| (name, Value::String(value))));
        Ok(Self(params))
    }

    /// The value of a parameter that is a string; the last value, if there are several.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }

    /// The value of a required parameter that is a string.
    ///
    /// # Errors
    ///
    /// [`MissingParam`] names the parameter; as the error of a `connect`, it refuses the client.
    pub fn require(&self, name: &str) -> Result<&str, MissingParam> {
        self.get(name).ok_or_else(|| MissingParam { name: name.into() })
    }

    /// Deserializes all parameters into a type of your own.
    ///
    /// A leaf is parsed as the expected type: a number, `true` or `false`, the name of a variant.
    /// Below `#[serde(flatten)]` and `#[serde(untagged)]`, where serde does not pass the expected
    /// type, it is a string.
    ///
    /// # Errors
    ///
    /// [`ParamsError`] if they do not match the type; as the error of a `connect`, it refuses the
    /// client.
    ///
    /// ```
    /// # use pipeline_ws_sink::socket::{Params, ParamsError};
    /// # use serde_json::json;
    /// #[derive(serde::Deserialize)]
    /// struct Query {
    ///     user: u64,
    ///     #[serde(default)]
    ///     rooms: Vec<String>,
    /// }
    ///
    /// # let params = Params::from_iter([("user".to_owned(), json!("42"))]);
    /// let query: Query = params.parse()?;
    /// assert_eq!((query.user, query.rooms.len()), (42, 0));
    /// # Ok::<(), ParamsError>(())
    /// ```
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, ParamsError> {
        leaves::read(&self.0).map_err(|source| ParamsError { source })
    }

    /// All parameters.
    #[must_use]
    pub fn as_map(&self) -> &Map<String, Value> {
        &self.0
    }
}

/// For tests of a [`Socket::connect`](crate::Socket::connect): the parameters that a query would
/// decode to.
impl FromIterator<(String, Value)> for Params {
    fn from_iter<T: IntoIterator<Item = (String, Value)>>(params: T) -> Self {
        Self(params.into_iter().collect())
    }
}

/// A required parameter is missing or is not a string.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("the parameter {name:?} is missing")]
pub struct MissingParam {
    name: Box<str>,
}

/// The parameters do not match the expected type.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("invalid parameters: {source}")]
pub struct ParamsError {
    source: LeafError,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn variables_replace_parameters_of_the_query() {
        let variables = [("tenant".to_owned(), "acme".to_owned())];
        let params = Params::decode("tenant[a]=evil&x=1", variables).unwrap();
        assert_eq!(json!(params), json!({"tenant": "acme", "x": "1"}));
    }

    #[test]
    fn get_returns_only_strings() {
        let params = Params::decode("a=1&a=2&l[]=3", []).unwrap();
        assert_eq!(params.get("a"), Some("2"));
        assert_eq!((params.get("l"), params.get("b")), (None, None));
        assert!(params.require("l").is_err());
        assert_eq!(params.as_map()["l"], json!(["3"]));
    }
}
