//! Thin entrances to private code, for the fuzz targets of this project.
//!
//! Not a part of the public API: anything here changes or disappears without notice.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::{
    handshake::{
        origin::{CheckOrigin, Origin, OwnHost, parse_host},
        path::{MountPath, PathError},
        query, subprotocol,
    },
    payload::{Payload, PayloadError},
    presence::{
        TrackerOptions,
        tracker::{Input, Message, OutboundMessage, StepOutput, To, Tracker},
    },
    protocol::{
        connection::{Decoder, FrameLimits, Incoming, Passed, ProtocolError, Rest},
        deflate::{self, InflateError, Inflating},
        frame::Frame,
        longpoll::{self, Batch},
        message::{Address, ClientMessage, Encoded, Received},
        reference::Ref,
        version::Version,
    },
    token::Signer,
};

/// A unit of a client's data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// A text message.
    Text(Bytes),
    /// A binary message.
    Binary(Bytes),
    /// A fragment of a message, with its size.
    Part(usize),
    /// A step of decompressing a message.
    Inflated {
        /// How many compressed bytes it consumed.
        taken: usize,
        /// Whether the message is complete.
        is_last: bool,
    },
    /// A ping.
    Ping(Bytes),
    /// A pong.
    Pong,
    /// A close frame.
    Close,
}

/// The receiving side of a connection. Its errors are the codes of the resulting close frames.
#[derive(Debug)]
pub struct FrameDecoder(Decoder);

impl FrameDecoder {
    /// A decoder with these limits, in bytes of a frame and of a message.
    #[must_use]
    pub fn new(frame: usize, message: usize, inflates: bool) -> Self {
        Self(Decoder::new(FrameLimits { frame, message }, Bytes::new()).inflating(inflates))
    }

    /// Receives bytes.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.0.buffer().extend_from_slice(bytes);
    }

    /// How many bytes the connection reads next, at most.
    #[must_use]
    pub fn wants(&self) -> usize {
        self.0.wants()
    }

    /// The bytes held for an incomplete message.
    #[must_use]
    pub fn held(&self) -> usize {
        self.0.held()
    }

    /// Frees the memory of an empty buffer.
    pub fn release(&mut self) {
        self.0.release();
    }

    /// Whether a received message is being decompressed.
    #[must_use]
    pub fn is_inflating(&self) -> bool {
        self.0.is_inflating()
    }

    /// The next unit, if enough bytes have been received.
    ///
    /// # Errors
    ///
    /// The client has violated the protocol.
    pub fn next_unit(&mut self) -> Result<Option<Decoded>, u16> {
        let next = self.0.next().map_err(ProtocolError::close_code)?;
        Ok(next.map(|incoming| match incoming {
            Incoming::Message(Received::Text(text)) => Decoded::Text(text),
            Incoming::Message(Received::Binary(bytes)) => Decoded::Binary(bytes),
            Incoming::Part(bytes) => Decoded::Part(bytes),
            Incoming::Inflated(step) => {
                Decoded::Inflated { taken: step.taken, is_last: step.is_last }
            }
            Incoming::Ping(payload) => Decoded::Ping(payload),
            Incoming::Pong => Decoded::Pong,
            Incoming::Close => Decoded::Close,
        }))
    }

    /// Skips everything from here on.
    #[must_use]
    pub fn into_skipper(self) -> FrameSkipper {
        FrameSkipper(self.0.into_rest())
    }
}

/// The receiving side of a connection that the server has closed.
#[derive(Debug)]
pub struct FrameSkipper(Rest);

impl FrameSkipper {
    /// Receives bytes.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.0.buffer().extend_from_slice(bytes);
    }

    /// How many bytes it holds.
    #[must_use]
    pub fn held(&mut self) -> usize {
        self.0.buffer().len()
    }

    /// Skips a frame. Returns whether it was the client's close frame.
    ///
    /// # Errors
    ///
    /// The client has violated the protocol.
    pub fn next_frame(&mut self) -> Result<Option<bool>, u16> {
        let passed = self.0.next().map_err(ProtocolError::close_code)?;
        Ok(passed.map(|passed| passed == Passed::Close))
    }
}

/// Compresses a message; `None` if that does not make it smaller.
#[must_use]
pub fn deflate(payload: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    deflate::deflate(payload, &mut out).map(|()| out)
}

/// Why a message was not decompressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotInflated {
    /// Broken data.
    Invalid,
    /// A message over the limit.
    TooLarge,
}

/// Decompresses a message, and calls `step` after each step with the blocks of the step and the bytes held.
///
/// # Errors
///
/// The message is broken, or larger than the limit.
pub fn inflate(
    payload: &[u8],
    limit: usize,
    mut step: impl FnMut(usize, usize),
) -> Result<Bytes, NotInflated> {
    let mut inflating = Inflating::new(payload.into(), limit);
    loop {
        let done = inflating.step().map_err(|error| match error {
            InflateError::Invalid => NotInflated::Invalid,
            InflateError::TooLarge => NotInflated::TooLarge,
        })?;
        step(done.blocks, inflating.held());
        if done.is_last {
            return Ok(inflating.finish());
        }
    }
}

/// The answer to a client's offers of extensions.
#[must_use]
pub fn negotiate_deflate(headers: &[&str]) -> Option<String> {
    deflate::negotiate(headers.iter().copied())
}

/// The auth token in a `sec-websocket-protocol` header, and the rest of the header. `None` if the token is
/// malformed.
#[must_use]
pub fn take_token(header: &str) -> Option<(Option<String>, Option<String>)> {
    subprotocol::take_token(header).ok().map(|taken| (taken.token, taken.header))
}

/// The negotiated subprotocol; `None` if none is supported.
#[must_use]
pub fn select_subprotocol<'a>(
    ours: &'a [String],
    offered: Option<&str>,
) -> Option<Option<&'a str>> {
    subprotocol::select(ours, offered).ok()
}

/// The number of the protocol's version that a `vsn` parameter selects.
#[must_use]
pub fn version(vsn: Option<&str>) -> Option<u8> {
    Version::negotiate(vsn).map(|version| match version {
        Version::V1 => 1,
        Version::V2 => 2,
    })
}

/// A client's message. All but the payload are JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientsMessage {
    /// The reference of the join.
    pub join_ref: String,
    /// The reference of the message.
    pub reference: String,
    /// The topic.
    pub topic: String,
    /// The topic, if it is a string.
    pub plain_topic: Option<String>,
    /// The event, if it is a string.
    pub plain_event: Option<String>,
    /// The payload.
    pub payload: Payload,
    /// The length of a field that is too long.
    pub too_long: Option<usize>,
}

/// Decodes a client's message.
#[must_use]
pub fn decode_message(is_v1: bool, is_binary: bool, data: Bytes) -> Option<ClientsMessage> {
    let received = if is_binary { Received::Binary(data) } else { Received::Text(data) };
    let message = ClientMessage::decode(numbered(is_v1), &received).ok()?;
    Some(ClientsMessage {
        join_ref: message.join_ref().json().to_owned(),
        reference: message.reference().json().to_owned(),
        topic: message.topic_json().to_owned(),
        plain_topic: message.topic().map(Into::into),
        plain_event: message.event().map(Into::into),
        payload: message.payload(&received),
        too_long: message.too_long().map(|(_, length)| length),
    })
}

fn numbered(is_v1: bool) -> Version {
    if is_v1 { Version::V1 } else { Version::V2 }
}

/// A message of the server to one client. All texts are JSON, except for the event and the status.
#[derive(Clone, Copy, Debug)]
pub enum ServersMessage<'a> {
    /// The answer to the message with this reference, with this status.
    Reply(&'a str, &'a str, &'a Payload),
    /// A push of this event.
    Push(&'a str, &'a Payload),
    /// The channel's normal end.
    Close,
    /// The channel's crash.
    Error,
}

/// The frame of a message of the server to one client.
///
/// # Errors
///
/// The version cannot express the message.
pub fn encode_message(
    is_v1: bool,
    join_ref: &str,
    topic: &str,
    message: ServersMessage<'_>,
) -> Result<Bytes, PayloadError> {
    let join_ref = Ref::new(join_ref);
    let address = Address { version: numbered(is_v1), join_ref: &join_ref, topic };
    let frame = match message {
        ServersMessage::Reply(reference, status, payload) => {
            address.reply(&Ref::new(reference), status, payload)?
        }
        ServersMessage::Push(event, payload) => address.push(event, payload)?,
        ServersMessage::Close => address.close(),
        ServersMessage::Error => address.error(),
    };
    Ok(frame.bytes().clone())
}

/// A broadcast: its frames for version 2 and for version 1, which cannot express all, and its payload as
/// the application gets it back.
#[derive(Clone, Debug)]
pub struct BroadcastFrames {
    /// The frame for version 2.
    pub v2: Bytes,
    /// The frame for version 1.
    pub v1: Option<Bytes>,
    /// The payload.
    pub payload: Payload,
}

/// Encodes a broadcast.
///
/// # Errors
///
/// The payload is no object, or a name of a binary broadcast is too long.
pub fn encode_broadcast(
    topic: &str,
    event: &str,
    payload: &Payload,
) -> Result<BroadcastFrames, PayloadError> {
    let encoded = Encoded::new(topic, event, payload)?;
    let frame = |version| encoded.frame(version).map(|frame| frame.frame().bytes().clone());
    Ok(BroadcastFrames {
        v2: frame(Version::V2).unwrap_or_default(),
        v1: frame(Version::V1),
        payload: encoded.payload(),
    })
}

/// The messages in the body of a long-polling request, each with whether it is binary; `None` for a line that
/// is no message.
#[must_use]
pub fn longpoll_messages(content_type: Option<&str>, body: Bytes) -> Vec<Option<(bool, Bytes)>> {
    let messages = Batch::new(content_type, body).map(|message| match message.ok()? {
        Received::Text(text) => Some((false, text)),
        Received::Binary(bytes) => Some((true, bytes)),
    });
    messages.collect()
}

/// The answer to a poll that fetches these text messages.
#[must_use]
pub fn longpoll_answer(token: &str, texts: &[&str]) -> Bytes {
    let frame = |text: &&str| {
        Frame::text::<std::convert::Infallible>(|out| {
            out.extend_from_slice(text.as_bytes());
            Ok(())
        })
    };
    let frames: Vec<Frame> = texts.iter().filter_map(|text| frame(text).ok()).collect();
    longpoll::messages_body(longpoll::Status::Ok, token, &frames)
}

/// A path that sockets are mounted at.
#[derive(Clone, Debug)]
pub struct SocketPath(MountPath);

impl SocketPath {
    /// Parses the mount's path and the transport's path below it.
    ///
    /// # Errors
    ///
    /// No socket can be mounted there.
    pub fn parse(mount: &str, transport: &str) -> Result<Self, PathError> {
        MountPath::parse(mount, transport).map(Self)
    }

    /// The variables of a request's path, if it matches. `Err` if one of them is not UTF-8.
    #[must_use]
    pub fn variables(&self, asked: &str) -> Option<Result<Vec<(String, String)>, ()>> {
        let owned = |variables: Vec<(&str, String)>| {
            variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
        };
        self.0.matches(asked).map(|matched| matched.map(owned).map_err(|_| ()))
    }

    /// Whether both match the same requests.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.0.is_same(&other.0)
    }

    /// The path in its written form.
    #[must_use]
    pub fn shown(&self) -> String {
        self.0.to_string()
    }
}

/// The parameters of a query.
#[must_use]
pub fn decode_query(query: &str) -> Option<Map<String, Value>> {
    query::decode(query).ok()
}

/// Whether a page with this `origin` header may connect to a server with this scheme, `host` header and
/// configured host.
#[must_use]
pub fn allows_origin(
    rule: &CheckOrigin,
    origin: &str,
    configured: Option<&str>,
    scheme: &str,
    authority: Option<&str>,
) -> bool {
    let own = OwnHost::new(configured, scheme, authority);
    rule.check(&Origin::parse(origin), &own).is_ok()
}

/// The parts of an `origin` header.
#[must_use]
pub fn parse_origin(text: &str) -> Origin {
    Origin::parse(text)
}

/// The host that an endpoint is configured with, if it is one.
#[must_use]
pub fn configured_host(host: &str) -> Option<String> {
    parse_host(host)
}

/// A token with any content, signed.
#[must_use]
pub fn sign_term(signer: &Signer, term: &[u8]) -> String {
    signer.sign_term(term)
}

/// The meta of an entry.
pub type PresenceMeta = Arc<Map<String, Value>>;

/// A replica of the presences.
pub struct PresenceReplica(Tracker);

/// The changes of a list: topic, key and meta of each join and each leave.
#[derive(Debug, Default)]
pub struct PresenceDiffs {
    /// The entries that are new.
    pub joins: Vec<(Arc<str>, Arc<str>, PresenceMeta)>,
    /// The entries that are gone.
    pub leaves: Vec<(Arc<str>, Arc<str>, PresenceMeta)>,
}

/// A message to one replica, or to all, in its encoded form.
pub type PresenceMessage = (Option<Arc<str>>, Bytes);

impl PresenceReplica {
    /// A replica that starts now.
    #[must_use]
    pub fn new(node: &str, version: u64, options: TrackerOptions, now: Duration) -> Self {
        Self(Tracker::replicated(node, version, version, options, now))
    }

    /// Tracks an entry. Returns whether the actor did not track the key before.
    pub fn track(
        &mut self,
        actor: u64,
        topic: &Arc<str>,
        key: &Arc<str>,
        meta: PresenceMeta,
    ) -> bool {
        self.0.track(actor, topic, key, meta).is_ok()
    }

    /// Replaces an entry's meta, and returns the previous one.
    pub fn update(
        &mut self,
        actor: u64,
        topic: &str,
        key: &str,
        meta: PresenceMeta,
    ) -> Option<PresenceMeta> {
        self.0.update(actor, topic, key, meta)
    }

    /// Removes an entry, and returns its meta.
    pub fn untrack(&mut self, actor: u64, topic: &str, key: &str) -> Option<PresenceMeta> {
        self.0.untrack(actor, topic, key)
    }

    /// The listed entries of a topic.
    #[must_use]
    pub fn list(&self, topic: &str) -> Vec<(Arc<str>, PresenceMeta)> {
        self.0.list(topic).map(|(key, meta)| (key.clone(), meta.clone())).collect()
    }

    /// The number of entries.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a target needs the number alone")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// When it ticks next.
    #[must_use]
    pub fn next_tick(&self) -> Option<Duration> {
        self.0.next_tick()
    }

    /// Whether it has all changes of all known replicas.
    #[must_use]
    pub fn knows_all(&self) -> bool {
        self.0.knows_all()
    }

    /// A tick.
    ///
    /// # Errors
    ///
    /// A message cannot be encoded.
    pub fn tick(
        &mut self,
        now: Duration,
    ) -> Result<(PresenceDiffs, Vec<PresenceMessage>), PayloadError> {
        written(self.0.step(Input::Tick, now))
    }

    /// Receives a message; `None` if it is refused.
    ///
    /// # Errors
    ///
    /// A message that results from it cannot be encoded.
    pub fn receive(
        &mut self,
        json: Bytes,
        now: Duration,
    ) -> Result<Option<(PresenceDiffs, Vec<PresenceMessage>)>, PayloadError> {
        match Message::from_payload(&Payload::from_json(json)) {
            Ok(message) => written(self.0.step(Input::Message(message), now)).map(Some),
            Err(_) => Ok(None),
        }
    }
}

fn written(output: StepOutput) -> Result<(PresenceDiffs, Vec<PresenceMessage>), PayloadError> {
    let StepOutput { diffs, send } = output;
    let mut all = PresenceDiffs::default();
    for (topic, diff) in diffs {
        all.joins.extend(diff.joins.into_iter().map(|(key, meta)| (topic.clone(), key, meta)));
        all.leaves.extend(diff.leaves.into_iter().map(|(key, meta)| (topic.clone(), key, meta)));
    }
    let send = send.into_iter().map(|OutboundMessage { to, message }| {
        let to = match to {
            To::All => None,
            To::Node(node) => Some(node),
        };
        Ok((to, message.to_payload()?.bytes().clone()))
    });
    Ok((all, send.collect::<Result<_, _>>()?))
}

impl std::fmt::Debug for PresenceReplica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PresenceReplica").field("len", &self.len()).finish()
    }
}
