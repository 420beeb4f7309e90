//! Sockets that are looked up by their id, and what an operator ends: sockets, channels and stages.

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, Method, StatusCode};
use pipeline_core::PipelineOperator;
use pipeline_ws_sink::endpoint::EndpointOperator;
use serde_json::{Value, json};
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

/// Answers lookups, and ends channels, sockets and stages.
pub(crate) struct Lookup {
    /// Looks up sockets and ends them, if that is on.
    endpoint: Option<EndpointOperator>,
    pipelines: Arc<[PipelineOperator]>,
    turns: Arc<Semaphore>,
}

/// The status of an answer, and its body.
pub(crate) type Looked = (StatusCode, Result<Bytes, &'static str>);

impl Lookup {
    /// None if it could do nothing.
    pub(crate) fn new(
        endpoint: Option<EndpointOperator>,
        pipelines: Vec<PipelineOperator>,
    ) -> Option<Self> {
        let is_on = endpoint.is_some() || !pipelines.is_empty();
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        is_on.then(|| Self { endpoint, pipelines: pipelines.into(), turns })
    }

    /// Whether a path is one of its own.
    pub(crate) fn has(path: &str) -> bool {
        method_of(path).is_some()
    }

    /// The answer to a request of one of its paths. None if the path is another, or is about sockets and that is off.
    pub(crate) fn answer(
        &self,
        method: &Method,
        path: &str,
        query: &str,
        headers: &HeaderMap,
    ) -> Option<BoxFuture<'static, Looked>> {
        let wanted = method_of(path)?;
        if matches!(path, "/lookup.json" | "/waiting.json") && self.endpoint.is_none() {
            return None;
        }
        let refused = |status, text| Some(ready((status, Err(text))));
        if method != wanted {
            return refused(StatusCode::METHOD_NOT_ALLOWED, "wrong method\n");
        }
        let ends = wanted == Method::POST;
        if ends && headers.get(HEADER).is_none_or(|value| value != VALUE) {
            return refused(StatusCode::FORBIDDEN, "the header x-inspect: end is missing\n");
        }
        if path == "/stages.json" {
            let answer = self.stages().to_string();
            return Some(ready((StatusCode::OK, Ok(answer.into()))));
        }
        let lists = path == "/waiting.json";
        let asked = (query.len() <= LONGEST && !lists).then(|| Asked::parse(query)).flatten();
        let asked = asked.filter(|asked| asked.may_be_asked(ends, self.endpoint.is_some()));
        if asked.is_none() && !lists {
            return refused(
                StatusCode::BAD_REQUEST,
                "the query has to name an id, or to end a socket without one or a stage of a pipeline\n",
            );
        }
        let Ok(turn) = self.turns.clone().try_acquire_owned() else {
            return refused(StatusCode::SERVICE_UNAVAILABLE, "too many requests at once\n");
        };
        let (endpoint, pipelines) = (self.endpoint.clone(), self.pipelines.clone());
        let answer = async move {
            let answer = match (asked, endpoint) {
                (Some(Asked::Stage { pipeline, stage }), _) => {
                    let named = pipelines.iter().filter(|it| it.name() == pipeline);
                    json!({ "ended": named.filter(|it| it.kill(&stage)).count() })
                }
                (_, None) => json!({ "ended": 0 }),
                (Some(Asked::Sockets(asked)), Some(endpoint)) if ends => {
                    json!({ "ended": asked.end(&endpoint).await })
                }
                (Some(Asked::Sockets(AskedSockets { id: Some(id), .. })), Some(endpoint)) => {
                    let found = endpoint.find(&id).await;
                    json!({ "id": id, "sockets": found.sockets, "more": found.more })
                }
                (_, Some(endpoint)) => json!({ "sockets": endpoint.most_waiting(LISTED).await }),
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

    /// What the page offers: whether sockets can be looked up, and the stages that can be killed.
    fn stages(&self) -> Value {
        let pipelines: Vec<Value> = self
            .pipelines
            .iter()
            .map(|it| json!({ "name": it.name(), "stages": it.stages().collect::<Vec<_>>() }))
            .collect();
        json!({ "sockets": self.endpoint.is_some(), "pipelines": pipelines })
    }
}

/// The method of each path that is answered here.
fn method_of(path: &str) -> Option<Method> {
    match path {
        "/lookup.json" | "/waiting.json" | "/stages.json" => Some(Method::GET),
        "/end" => Some(Method::POST),
        _ => None,
    }
}

fn ready(looked: Looked) -> BoxFuture<'static, Looked> {
    Box::pin(std::future::ready(looked))
}

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Sockets(AskedSockets),
    /// A stage of a pipeline.
    Stage {
        pipeline: String,
        stage: String,
    },
}

/// The sockets of an id, one socket, or its channel of a topic.
#[derive(Debug, PartialEq, Eq)]
struct AskedSockets {
    id: Option<String>,
    socket: Option<u64>,
    topic: Option<String>,
}

impl Asked {
    /// Reads a query. None if it names no id, socket or stage, a topic without an id and a socket, or something that is
    /// not known.
    fn parse(query: &str) -> Option<Self> {
        let (mut id, mut socket, mut topic) = (None, None, None);
        let (mut pipeline, mut stage) = (None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=')?;
            let value = decode(value)?;
            match name {
                "id" => id = Some(value),
                "socket" => socket = Some(value.parse().ok()?),
                "topic" => topic = Some(value),
                "pipeline" => pipeline = Some(value),
                "stage" => stage = Some(value),
                _ => return None,
            }
        }
        match (pipeline, stage) {
            (None, None) => {
                // A topic is that of a socket with an id.
                let is_complete = match topic {
                    Some(_) => id.is_some() && socket.is_some(),
                    None => id.is_some() || socket.is_some(),
                };
                is_complete.then_some(Self::Sockets(AskedSockets { id, socket, topic }))
            }
            (Some(pipeline), Some(stage)) => {
                let is_alone = id.is_none() && socket.is_none() && topic.is_none();
                is_alone.then_some(Self::Stage { pipeline, stage })
            }
            _ => None,
        }
    }

    /// Whether a request may ask for it: a stage and a socket without an id are ended and not looked up, and sockets need
    /// the operator of an endpoint.
    fn may_be_asked(&self, ends: bool, has_endpoint: bool) -> bool {
        match self {
            Self::Sockets(asked) => has_endpoint && (ends || asked.id.is_some()),
            Self::Stage { .. } => ends,
        }
    }
}

impl AskedSockets {
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
    fn a_query_names_a_stage_or_an_id_and_perhaps_a_socket_and_its_topic() {
        let sockets = |id: Option<&str>, socket, topic| {
            Asked::Sockets(AskedSockets { id: id.map(str::to_owned), socket, topic })
        };
        let id = |id| sockets(Some(id), None, None);
        assert_eq!(Asked::parse("id=users%3A1+%C3%A9"), Some(id("users:1 é")));
        assert_eq!(Asked::parse("id="), Some(id("")));
        let all = sockets(Some("u"), Some(7), Some("room:1".to_owned()));
        assert_eq!(Asked::parse("topic=room:1&id=u&socket=7"), Some(all));
        assert_eq!(Asked::parse("socket=7"), Some(sockets(None, Some(7), None)));
        let stage = Asked::Stage { pipeline: "levels".to_owned(), stage: "tell it".to_owned() };
        assert_eq!(Asked::parse("pipeline=levels&stage=tell+it"), Some(stage));
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
            "pipeline=levels",
            "stage=tell",
            "id=u&pipeline=levels&stage=tell",
            "pipeline=levels&stage=tell&socket=7",
        ] {
            assert_eq!(Asked::parse(wrong), None, "{wrong}");
        }
    }
}
