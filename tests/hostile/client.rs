//! A client without a library, with blocking I/O, and the bytes that it sends.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use pipeline_test_support::PATIENCE;
use serde_json::{Value, json};

/// Parts of a frame's first byte.
pub(crate) const FIN: u8 = 0x80;
pub(crate) const RSV1: u8 = 0x40;
pub(crate) const RSV2: u8 = 0x20;
pub(crate) const RSV3: u8 = 0x10;
pub(crate) const CONTINUE: u8 = 0;
pub(crate) const TEXT: u8 = 1;
pub(crate) const BINARY: u8 = 2;
pub(crate) const CLOSE: u8 = 8;
pub(crate) const PING: u8 = 9;
pub(crate) const PONG: u8 = 10;

/// The flag of a masked frame in its second byte.
const MASKED: u8 = 0x80;

/// The key that frames are masked with.
const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// The path of a WebSocket of version 2.
pub(crate) const SOCKET: &str = "/socket/websocket?vsn=2.0.0";

/// The topic that hostile clients join.
pub(crate) const TOPIC: &str = "room:hostile";

/// A masked frame with the shortest form of its length.
pub(crate) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = head(first, payload.len() as u64);
    bytes.extend(masked(payload));
    bytes
}

/// The header of a masked frame that announces this length, in its shortest form.
pub(crate) fn head(first: u8, length: u64) -> Vec<u8> {
    match length {
        0..126 => head_of(first, u8::try_from(length).unwrap(), &[]),
        126..65536 => head_of(first, 126, &u16::try_from(length).unwrap().to_be_bytes()),
        _ => head_of(first, 127, &length.to_be_bytes()),
    }
}

/// The header of a masked frame with this length and this extended length.
pub(crate) fn head_of(first: u8, length: u8, extended: &[u8]) -> Vec<u8> {
    [&[first, MASKED | length], extended, &KEY].concat()
}

/// The frames that these bytes are, if they are whole, masked with the key, and have the shortest form of their lengths:
/// first bytes and payloads.
pub(crate) fn frames(mut bytes: &[u8]) -> Option<Vec<(u8, Vec<u8>)>> {
    let mut frames = Vec::new();
    while let [first, length, ..] = *bytes {
        let length: u64 = match length & !MASKED {
            126 => u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?).into(),
            127 => u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?),
            length => length.into(),
        };
        let (before, length) = (head(first, length), usize::try_from(length).ok()?);
        bytes = bytes.strip_prefix(&before[..])?;
        frames.push((first, masked(bytes.get(..length)?)));
        bytes = &bytes[length..];
    }
    bytes.is_empty().then_some(frames)
}

/// The payload as it is sent behind such a header.
pub(crate) fn masked(payload: &[u8]) -> Vec<u8> {
    payload.iter().zip(KEY.iter().cycle()).map(|(byte, key)| byte ^ key).collect()
}

/// A complete text.
pub(crate) fn text(payload: impl AsRef<[u8]>) -> Vec<u8> {
    frame(FIN | TEXT, payload.as_ref())
}

/// A complete text with this JSON.
pub(crate) fn json_text(message: &Value) -> Vec<u8> {
    text(message.to_string())
}

/// A message for the topic of hostile clients.
pub(crate) fn event(reference: &str, event: &str, payload: &Value) -> Vec<u8> {
    json_text(&json!(["1", reference, TOPIC, event, payload]))
}

pub(crate) fn join(topic: &str) -> Vec<u8> {
    json_text(&json!(["1", "1", topic, "phx_join", {}]))
}

pub(crate) fn heartbeat(reference: &str) -> Vec<u8> {
    json_text(&json!([null, reference, "phoenix", "heartbeat", {}]))
}

/// The answer to it.
pub(crate) fn beaten(reference: &str) -> Value {
    json!([null, reference, "phoenix", "phx_reply", { "status": "ok", "response": {} }])
}

/// A payload compressed by permessage-deflate.
pub(crate) fn deflated(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + 64);
    let mut compress = Compress::new(Compression::default(), false);
    compress.compress_vec(payload, &mut out, FlushCompress::Sync).unwrap();
    out.truncate(out.len() - 4);
    out
}

/// The inverse of it.
pub(crate) fn inflated(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 << 20);
    let payload = [payload, &[0, 0, 0xff, 0xff]].concat();
    let mut decompress = Decompress::new(false);
    decompress.decompress_vec(&payload, &mut out, FlushDecompress::Sync).unwrap();
    out
}

/// A request for a WebSocket, with these additional header lines, each with its line break.
pub(crate) fn upgrade(path: &str, lines: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{lines}\r\n"
    )
    .into_bytes()
}

/// The header line that offers compression.
pub(crate) const OFFER: &str = "Sec-WebSocket-Extensions: permessage-deflate\r\n";

/// A connection.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    /// The head of the answer to its handshake.
    pub(crate) head: String,
}

/// A frame as the server sent it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) first: u8,
    pub(crate) payload: Vec<u8>,
}

impl Client {
    /// Connects without a request.
    pub(crate) fn tcp(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream, head: String::new() })
    }

    /// Connects a WebSocket, with these additional header lines.
    pub(crate) fn open(address: SocketAddr, path: &str, lines: &str) -> io::Result<Self> {
        let mut client = Self::tcp(address)?;
        client.send(&upgrade(path, lines))?;
        client.read_head()?;
        if client.head.starts_with("HTTP/1.1 101 ") {
            return Ok(client);
        }
        Err(io::Error::other(format!("not upgraded: {}", client.head)))
    }

    /// Reads the head of an answer.
    pub(crate) fn read_head(&mut self) -> io::Result<()> {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte)?;
            bytes.push(byte[0]);
        }
        self.head = String::from_utf8_lossy(&bytes).into_owned();
        Ok(())
    }

    /// Sends a request, and returns the JSON in the body of the answer, or its status as a number.
    pub(crate) fn request(&mut self, bytes: &[u8]) -> Result<Value, String> {
        let failed = |error: io::Error| format!("{error} instead of an answer");
        // A server that refuses a request need not read all of it.
        let _ = self.send(bytes);
        self.read_head().map_err(failed)?;
        let length = self
            .head
            .split_once("content-length: ")
            .and_then(|(_, rest)| rest.split("\r\n").next().and_then(|length| length.parse().ok()));
        let mut body = vec![0; length.unwrap_or_default()];
        self.stream.read_exact(&mut body).map_err(failed)?;
        Ok(serde_json::from_slice(&body).unwrap_or(json!(self.status())))
    }

    /// The status of the answer.
    pub(crate) fn status(&self) -> u16 {
        let status = self.head.split(' ').nth(1).and_then(|status| status.parse().ok());
        status.unwrap_or_default()
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next frame.
    pub(crate) fn next(&mut self) -> io::Result<Frame> {
        let mut head = [0; 2];
        self.stream.read_exact(&mut head)?;
        let mut extended = [0; 8];
        let length = match head[1] {
            126 => {
                self.stream.read_exact(&mut extended[6..])?;
                u64::from_be_bytes(extended)
            }
            127 => {
                self.stream.read_exact(&mut extended)?;
                u64::from_be_bytes(extended)
            }
            length => length.into(),
        };
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.stream.read_exact(&mut payload)?;
        let mut first = head[0];
        if first & RSV1 != 0 {
            first &= !RSV1;
            payload = inflated(&payload);
        }
        Ok(Frame { first, payload })
    }

    /// The message in the next frame.
    pub(crate) fn message(&mut self) -> Result<Value, String> {
        let frame = self.next().map_err(|error| format!("{error} instead of a message"))?;
        frame.message()
    }

    /// Sends a message, and returns the one that comes next.
    pub(crate) fn ask(&mut self, bytes: &[u8]) -> Result<Value, String> {
        self.send(bytes).map_err(|error| format!("a message cannot be sent: {error}"))?;
        self.message()
    }

    /// Joins the topic of hostile clients.
    pub(crate) fn join(&mut self) -> Result<(), String> {
        let joined = self.ask(&join(TOPIC))?;
        if joined[4]["status"] == "ok" { Ok(()) } else { Err(format!("not joined: {joined}")) }
    }

    /// The connection is reset instead of closed when it is dropped.
    pub(crate) fn resets(&self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    }

    /// Sends no more.
    pub(crate) fn finish(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// The bytes that have arrived and have not been read.
    pub(crate) fn arrived(&mut self) -> io::Result<Vec<u8>> {
        let mut arrived = Vec::new();
        self.stream.set_nonblocking(true)?;
        // It ends with an error if nothing more has arrived, or the connection was reset.
        let _ = self.stream.read_to_end(&mut arrived);
        self.stream.set_nonblocking(false)?;
        Ok(arrived)
    }

    /// All bytes until the connection ends, by a close or a reset.
    pub(crate) fn rest(&mut self) -> Result<Vec<u8>, String> {
        let mut all = Vec::new();
        match self.stream.read_to_end(&mut all) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err("the connection stays open".to_owned())
            }
            _ => Ok(all),
        }
    }
}

impl Client {
    /// The server ends the connection, and sends nothing more.
    pub(crate) fn has_ended(&mut self) -> Result<(), String> {
        let rest = self.rest()?;
        if rest.is_empty() { Ok(()) } else { Err(format!("{} bytes came after it", rest.len())) }
    }
}

impl Frame {
    /// The message in a text.
    pub(crate) fn message(&self) -> Result<Value, String> {
        if self.first != FIN | TEXT {
            return Err(format!("a message was expected, and {self} came"));
        }
        serde_json::from_slice(&self.payload).map_err(|error| format!("{error} in {self}"))
    }
}

impl std::fmt::Display for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { first, payload } = self;
        match (first & 0x0f, &payload[..]) {
            (CLOSE, [high, low, reason @ ..]) => {
                let code = u16::from_be_bytes([*high, *low]);
                write!(f, "close {code} {:?}", String::from_utf8_lossy(reason))
            }
            _ => {
                let start = &payload[..payload.len().min(200)];
                write!(f, "frame {first:#x} {:?}", String::from_utf8_lossy(start))
            }
        }
    }
}
