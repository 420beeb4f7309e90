//! One connection to a server, and the requests of JetStream on it.

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use async_nats::{
    Client, ConnectOptions, Event, HeaderMap, Message, Request, ServerAddr,
    client::RequestErrorKind,
};
use bytes::Bytes;
use percent_encoding::percent_decode_str;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{sync::watch, time::timeout};

use super::{NatsError, NatsOptions, NatsStorage, format::MESSAGE_ID};

/// What the server answers when a stream, a consumer or a message is not there.
pub(super) const STREAM_NOT_FOUND: u64 = 10059;
pub(super) const CONSUMER_NOT_FOUND: u64 = 10014;
const NO_MESSAGE_FOUND: u64 = 10037;

/// What the server answers when a stream does not store a message, because it is full.
pub(super) const NOT_STORED: u64 = 10077;

/// How long the library waits before it connects again on its own. The link is given up before.
const RECONNECT: Duration = Duration::from_secs(1);

/// The shortest and the longest time between two pings. The library cannot count longer ones.
const SOONEST_PING: Duration = Duration::from_millis(100);
const LATEST_PING: Duration = Duration::from_secs(3600);

/// The longest time of a stream or a consumer. Servers reckon with moments that are as far away.
const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A time in nanoseconds, for the server.
pub(super) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.min(CENTURY).as_nanos()).unwrap_or(u64::MAX)
}

/// The most that is added to an item when it becomes a dead letter, in bytes.
pub(super) const RESERVED: usize = 8 * 1024;

/// One connection. It is not used any more when it was lost once: what was received on it may be of a stream
/// that has lost its data since.
#[derive(Clone, Debug)]
pub(super) struct Link {
    client: Client,
    lost: watch::Receiver<bool>,
    api: Arc<str>,
    timeout: Duration,
}

impl Link {
    pub(super) async fn connect(
        servers: &[ServerAddr],
        options: &NatsOptions,
    ) -> Result<Self, NatsError> {
        let (sender, lost) = watch::channel(false);
        let connected = Arc::new(AtomicBool::new(false));
        let was_connected = connected.clone();
        // It sees three missing answers to pings before it gives a connection up.
        let ping = (options.timeout / 3).clamp(SOONEST_PING, LATEST_PING);
        let connect = authenticated(options.connect.clone(), servers)
            .connection_timeout(options.timeout)
            .max_reconnects(servers.len())
            .ping_interval(ping)
            .reconnect_delay_callback(move |_| {
                if was_connected.load(SeqCst) { RECONNECT } else { Duration::ZERO }
            })
            .event_callback(move |event| {
                if matches!(event, Event::Disconnected | Event::Closed) {
                    sender.send_replace(true);
                }
                async {}
            });
        let connecting =
            timeout(options.timeout.saturating_mul(2), connect.connect(servers.to_vec()));
        let client = match connecting.await {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => return Err(NatsError::Connect(Arc::new(error))),
            Err(_) => return Err(NatsError::Timeout("connecting")),
        };
        connected.store(true, SeqCst);
        Ok(Self { client, lost, api: options.api(), timeout: options.timeout })
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) const fn timeout(&self) -> Duration {
        self.timeout
    }

    pub(super) fn is_lost(&self) -> bool {
        *self.lost.borrow()
    }

    /// Waits until the connection is lost.
    pub(super) async fn lost(&self) -> NatsError {
        // The library has given up if the sender is gone.
        let _ = self.lost.clone().wait_for(|lost| *lost).await;
        NatsError::Lost
    }

    pub(super) async fn request(
        &self,
        what: &'static str,
        subject: String,
        request: Request,
    ) -> Result<Message, NatsError> {
        if self.is_lost() {
            return Err(NatsError::Lost);
        }
        let request = request.timeout(Some(self.timeout));
        let answered = async {
            // The library's own time begins when it has taken the request.
            let answered =
                timeout(self.timeout.saturating_mul(2), self.client.send_request(subject, request));
            match answered.await {
                Ok(Ok(message)) => Ok(message),
                Ok(Err(error)) => Err(match error.kind() {
                    RequestErrorKind::NoResponders => NatsError::NotThere(what),
                    RequestErrorKind::TimedOut => NatsError::Timeout(what),
                    _ => NatsError::Request(Arc::new(error)),
                }),
                Err(_) => Err(NatsError::Timeout(what)),
            }
        };
        tokio::select! {
            answered = answered => answered,
            lost = self.lost() => Err(lost),
        }
    }

    /// A request of JetStream's interface.
    pub(super) async fn api<T: DeserializeOwned>(
        &self,
        what: &'static str,
        subject: &str,
        body: &impl Serialize,
    ) -> Result<T, NatsError> {
        let body = serde_json::to_vec(body).map_err(|error| NatsError::json(what, &error))?;
        let request = Request::new().payload(body.into());
        let answer = self.request(what, format!("{}.{subject}", self.api), request).await?;
        read(what, &answer)
    }

    pub(super) fn api_subject(&self, subject: &str) -> String {
        format!("{}.{subject}", self.api)
    }

    /// Adds a message to a stream, and waits until it is stored. Returns its sequence.
    pub(super) async fn publish(
        &self,
        subject: &str,
        mut headers: HeaderMap,
        payload: Bytes,
        id: Option<&str>,
    ) -> Result<u64, NatsError> {
        if let Some(id) = id {
            headers.insert(MESSAGE_ID, id);
        }
        let request = Request::new().payload(payload);
        let request = if headers.is_empty() { request } else { request.headers(headers) };
        let answer = self.request("adding an item", subject.to_owned(), request).await?;
        let stored: Value = read("adding an item", &answer)?;
        let sequence = stored["seq"].as_u64();
        sequence.ok_or_else(|| NatsError::Unexpected("adding an item", stored.to_string().into()))
    }

    /// Makes a stream unless it is there. Returns what the server tells about it.
    pub(super) async fn stream(&self, stream: &Stream<'_>) -> Result<Value, NatsError> {
        let what = "looking for the stream";
        let name = stream.name;
        match self.api::<Value>(what, &format!("STREAM.INFO.{name}"), &json!({})).await {
            Err(NatsError::Refused { code: STREAM_NOT_FOUND, .. }) => {}
            answered => return answered,
        }
        let made =
            self.api("making the stream", &format!("STREAM.CREATE.{name}"), &stream.config()).await;
        match made {
            // Another process was faster.
            Err(NatsError::Refused { .. }) => {
                let there = self.api(what, &format!("STREAM.INFO.{name}"), &json!({})).await;
                there.or(made)
            }
            made => made,
        }
    }

    /// A stored message, the next one of the subject from this sequence on or the one of this sequence.
    pub(super) async fn stored(
        &self,
        stream: &str,
        wanted: &Value,
    ) -> Result<Option<Stored>, NatsError> {
        let what = "reading a message";
        let answer = self.api::<Value>(what, &format!("STREAM.MSG.GET.{stream}"), wanted).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(NatsError::Refused { code: NO_MESSAGE_FOUND, .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let stored = Stored::read(&answer["message"]);
        stored.map(Some).ok_or_else(|| NatsError::Unexpected(what, answer.to_string().into()))
    }

    /// Removes the stored messages of a subject up to this sequence. Returns how many there were.
    pub(super) async fn remove_up_to(
        &self,
        stream: &str,
        subject: &str,
        sequence: u64,
    ) -> Result<u64, NatsError> {
        let what = "removing dead letters";
        // The server keeps the one of the sequence of the request.
        let body = json!({ "filter": subject, "seq": sequence.saturating_add(1) });
        let answer: Value = self.api(what, &format!("STREAM.PURGE.{stream}"), &body).await?;
        let removed = answer["purged"].as_u64();
        removed.ok_or_else(|| NatsError::Unexpected(what, answer.to_string().into()))
    }

    /// Removes a stored message. Returns whether it was there.
    pub(super) async fn remove(&self, stream: &str, sequence: u64) -> Result<bool, NatsError> {
        if self.stored(stream, &json!({ "seq": sequence })).await?.is_none() {
            return Ok(false);
        }
        let subject = format!("STREAM.MSG.DELETE.{stream}");
        let body = json!({ "seq": sequence, "no_erase": true });
        let answer: Value = self.api("removing a dead letter", &subject, &body).await?;
        Ok(answer["success"].as_bool() == Some(true))
    }
}

/// The body of an answer, unless it is an error.
fn read<T: DeserializeOwned>(what: &'static str, answer: &Message) -> Result<T, NatsError> {
    let body: Value =
        serde_json::from_slice(&answer.payload).map_err(|error| NatsError::json(what, &error))?;
    if let Some(error) = body.get("error") {
        let description = error["description"].as_str().unwrap_or("without a reason");
        return Err(NatsError::Refused {
            what,
            code: error["err_code"].as_u64().or_else(|| error["code"].as_u64()).unwrap_or_default(),
            description: description.into(),
        });
    }
    serde_json::from_value(body).map_err(|error| NatsError::json(what, &error))
}

/// A message of a stream, as it is stored.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) sequence: u64,
    /// The bytes of its headers.
    pub(super) headers: Vec<u8>,
    pub(super) payload: Bytes,
}

impl Stored {
    fn read(message: &Value) -> Option<Self> {
        use base64::{Engine, engine::general_purpose::STANDARD};
        let bytes = |name: &str| match message.get(name) {
            Some(text) => STANDARD.decode(text.as_str()?).ok(),
            None => Some(Vec::new()),
        };
        Some(Self {
            sequence: message["seq"].as_u64()?,
            headers: bytes("hdrs")?,
            payload: bytes("data")?.into(),
        })
    }
}

/// A stream that is made if it is missing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stream<'a> {
    pub(super) name: &'a str,
    pub(super) subject: &'a str,
    /// Whether a message is removed when it is acknowledged.
    pub(super) is_queue: bool,
    pub(super) max_bytes: Option<u64>,
    pub(super) options: &'a NatsOptions,
}

impl Stream<'_> {
    fn config(&self) -> Value {
        json!({
            "name": self.name,
            "subjects": [self.subject],
            "retention": if self.is_queue { "workqueue" } else { "limits" },
            "storage": match self.options.storage {
                NatsStorage::File => "file",
                NatsStorage::Memory => "memory",
            },
            "num_replicas": self.options.replicas,
            "max_consumers": -1,
            "max_msgs": -1,
            "max_msgs_per_subject": -1,
            "max_bytes": self.max_bytes.map_or(-1, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
            "max_age": 0,
            "max_msg_size": -1,
            // What is full refuses new messages rather than drop old ones.
            "discard": "new",
            "duplicate_window": nanoseconds(self.options.duplicate_window),
        })
    }
}

/// Options with the user and the password of the first address that has them, which the client leaves out. A user
/// without a password is a token.
fn authenticated(options: ConnectOptions, servers: &[ServerAddr]) -> ConnectOptions {
    let named = servers.iter().find_map(|it| Some((it.username()?, it.password())));
    match named.map(|(user, password)| (decoded(user), password.map(decoded))) {
        Some((user, Some(password))) => options.user_and_password(user, password),
        Some((token, None)) => options.token(token),
        None => options,
    }
}

/// A part of an address, without its escapes.
fn decoded(part: &str) -> String {
    percent_decode_str(part).decode_utf8().map_or_else(|_| part.to_owned(), Cow::into_owned)
}
