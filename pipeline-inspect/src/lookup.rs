//! Sockets that are looked up by their id, and what an operator ends.

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, Method, StatusCode};
use pipeline_ws_sink::endpoint::EndpointOperator;
use serde_json::json;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// How many requests may look up or end something at the same time.
const AT_ONCE: usize = 8;

/// How many of the sockets with the most waiting bytes are listed.
const LISTED: usize = 10;

/// The longest query, in bytes.
const LONGEST: usize = 4096;

/// A request that ends something has this header: a page of another origin can send it only if a layer before the
/// inspector allows that.
pub(crate) const HEADER: &str = "x-inspect";

/// Its value.
const VALUE: &str = "end";

/// Answers lookups, and ends channels and sockets.
pub(crate) struct Lookup {
    operator: EndpointOperator,
    turns: Arc<Semaphore>,
}

/// The status of an answer, and its body.
pub(crate) type Looked = (StatusCode, Result<Bytes, &'static str>);

impl Lookup {
    pub(crate) fn new(operator: EndpointOperator) -> Self {
        Self { operator, turns: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Whether a path is one of its own.
    pub(crate) fn has(path: &str) -> bool {
        matches!(path, "/lookup.json" | "/waiting.json" | "/end")
    }

    /// The answer to a request of one of its paths. None if the path is another.
    pub(crate) fn answer(
        &self,
        method: &Method,
        path: &str,
        query: &str,
        headers: &HeaderMap,
    ) -> Option<BoxFuture<'static, Looked>> {
        let wanted = match path {
            "/lookup.json" | "/waiting.json" => Method::GET,
            "/end" => Method::POST,
            _ => return None,
        };
        let refused = |status, text| Some(ready((status, Err(text))));
        if method != wanted {
            return refused(StatusCode::METHOD_NOT_ALLOWED, "wrong method\n");
        }
        let ends = wanted == Method::POST;
        if ends && headers.get(HEADER).is_none_or(|value| value != VALUE) {
            return refused(StatusCode::FORBIDDEN, "the header x-inspect: end is missing\n");
        }
        let lists = path == "/waiting.json";
        let asked = (query.len() <= LONGEST && !lists).then(|| Asked::parse(query)).flatten();
        // A socket without an id is listed and ended, and not looked up.
        let asked = asked.filter(|asked| ends || asked.id.is_some());
        if asked.is_none() && !lists {
            return refused(
                StatusCode::BAD_REQUEST,
                "the query has to name an id, or end a socket without one\n",
            );
        }
        let Ok(turn) = self.turns.clone().try_acquire_owned() else {
            return refused(StatusCode::SERVICE_UNAVAILABLE, "too many requests at once\n");
        };
        let operator = self.operator.clone();
        let answer = async move {
            let answer = match asked {
                Some(asked) if ends => json!({ "ended": asked.end(&operator).await }),
                Some(Asked { id: Some(id), .. }) => {
                    let found = operator.find(&id).await;
                    json!({ "id": id, "sockets": found.sockets, "more": found.more })
                }
                _ => json!({ "sockets": operator.most_waiting(LISTED).await }),
            };
            drop(turn);
            Bytes::from(answer.to_string())
        };
        if !ends {
            return Some(Box::pin(async { (StatusCode::OK, Ok(answer.await)) }));
        }
        // What has ended something logs and counts it, also if the connection of the request is gone meanwhile. It takes
        // a second at most.
        let answer = tokio::spawn(answer);
        Some(Box::pin(async {
            match answer.await {
                Ok(answer) => (StatusCode::OK, Ok(answer)),
                Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, Err("the request has failed\n")),
            }
        }))
    }
}

fn ready(looked: Looked) -> BoxFuture<'static, Looked> {
    Box::pin(std::future::ready(looked))
}

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    id: Option<String>,
    socket: Option<u64>,
    topic: Option<String>,
}

impl Asked {
    /// Reads a query. None if it has neither an id nor a socket, a topic without both, or something that is not known.
    fn parse(query: &str) -> Option<Self> {
        let (mut id, mut socket, mut topic) = (None, None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=')?;
            let value = decode(value)?;
            match name {
                "id" => id = Some(value),
                "socket" => socket = Some(value.parse().ok()?),
                "topic" => topic = Some(value),
                _ => return None,
            }
        }
        let asked = Self { id, socket, topic };
        let Self { id, socket, topic } = &asked;
        // A topic is that of a socket with an id.
        let is_complete = match topic {
            Some(_) => id.is_some() && socket.is_some(),
            None => id.is_some() || socket.is_some(),
        };
        is_complete.then_some(asked)
    }

    /// Ends a channel, a socket, or all sockets of the id. Returns how many were ended on this node.
    async fn end(&self, operator: &EndpointOperator) -> usize {
        match (self.id.as_deref(), self.socket, &self.topic) {
            (Some(id), Some(socket), Some(topic)) => {
                usize::from(operator.end_channel(id, socket, topic).await)
            }
            (id, Some(socket), _) => usize::from(operator.end_socket(id, socket)),
            (Some(id), None, _) => operator.end_sockets(id),
            (None, None, _) => 0,
        }
    }
}

/// A value of a query. None if it is not the encoding of a text.
fn decode(value: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                let digits = digits.iter().all(u8::is_ascii_hexdigit).then_some(digits)?;
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_names_an_id_and_perhaps_a_socket_and_its_topic() {
        let id = |id: &str| Asked { id: Some(id.into()), socket: None, topic: None };
        assert_eq!(Asked::parse("id=users%3A1+%C3%A9"), Some(id("users:1 é")));
        assert_eq!(Asked::parse("id="), Some(id("")));
        let topic = Some("room:1".to_owned());
        let all = Asked { id: Some("u".into()), socket: Some(7), topic };
        assert_eq!(Asked::parse("topic=room:1&id=u&socket=7"), Some(all));
        let without_id = Asked { id: None, socket: Some(7), topic: None };
        assert_eq!(Asked::parse("socket=7"), Some(without_id));
        for wrong in [
            "",
            "id",
            "topic=t",
            "socket=7&topic=t",
            "id=u&topic=t",
            "id=u&socket=x",
            "id=u&socket=-1",
            "id=u&else=1",
            "id=%",
            "id=%4",
            "id=%zz",
            "id=%+1",
            "id=%ff",
        ] {
            assert_eq!(Asked::parse(wrong), None, "{wrong}");
        }
    }
}
