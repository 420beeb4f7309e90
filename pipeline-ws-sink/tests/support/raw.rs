//! A client that sends and receives raw frames.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "these are tests too")]

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use pipeline_test_support::PATIENCE;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// First bytes of frames, and their parts.
pub const FIN: u8 = 0x80;
pub const COMPRESSED: u8 = 0x40;
pub const TEXT: u8 = 1;
pub const CONTINUE: u8 = 0;
pub const CLOSE: u8 = 8;

/// A client without a library.
pub struct RawClient<S = TcpStream> {
    stream: S,
    /// The response to its handshake, in lower case.
    pub head: String,
}

impl<S: AsyncRead + AsyncWrite + Unpin> RawClient<S> {
    /// Connects, with these additional header lines, each with its line break.
    pub async fn connect(mut stream: S, lines: &str) -> Self {
        let request = format!(
            "GET /socket/websocket?vsn=2.0.0&name=ada HTTP/1.1\r\nHost: x\r\n\
             Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{lines}\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = vec![];
        while !head.ends_with(b"\r\n\r\n") {
            head.push(timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap());
        }
        Self { stream, head: String::from_utf8(head).unwrap().to_lowercase() }
    }

    /// Sends a masked frame.
    pub async fn send(&mut self, first: u8, payload: &[u8]) {
        let mut bytes = vec![first];
        match u16::try_from(payload.len()).unwrap() {
            length @ ..126 => bytes.push(0x80 | u8::try_from(length).unwrap()),
            length => {
                bytes.push(0x80 | 126);
                bytes.extend(length.to_be_bytes());
            }
        }
        let mask = [1, 2, 3, 4];
        bytes.extend(mask);
        bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
        self.stream.write_all(&bytes).await.unwrap();
    }

    /// Sends raw bytes.
    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Waits for the end of the stream, and expects nothing before it.
    pub async fn ended(&mut self) -> std::io::Result<()> {
        let read = timeout(PATIENCE, self.stream.read(&mut [0])).await.unwrap()?;
        assert_eq!(read, 0);
        Ok(())
    }

    /// The next frame: its first byte, and its payload.
    pub async fn next(&mut self) -> (u8, Vec<u8>) {
        timeout(PATIENCE, self.read()).await.unwrap().unwrap()
    }

    async fn read(&mut self) -> std::io::Result<(u8, Vec<u8>)> {
        let first = self.stream.read_u8().await?;
        let length = match self.stream.read_u8().await? {
            126 => u64::from(self.stream.read_u16().await?),
            127 => self.stream.read_u64().await?,
            length => u64::from(length),
        };
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.stream.read_exact(&mut payload).await?;
        Ok((first, payload))
    }

    /// The connection after the last frame that was read.
    pub fn into_stream(self) -> S {
        self.stream
    }

    /// The code of the server's close, which has to be the next frame.
    pub async fn closed(&mut self) -> u16 {
        let (first, payload) = self.next().await;
        assert_eq!(first, FIN | 8, "expected a close, got {payload:?}");
        u16::from_be_bytes(payload.try_into().unwrap())
    }
}

/// A payload compressed by permessage-deflate.
pub fn deflate(payload: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + 64);
    let mut compress = Compress::new(Compression::default(), false);
    compress.compress_vec(payload.as_bytes(), &mut out, FlushCompress::Sync).unwrap();
    out.truncate(out.len() - 4);
    out
}

/// The inverse of it.
pub fn inflate(payload: &[u8]) -> String {
    let mut out = Vec::with_capacity(1 << 20);
    let payload = [payload, &[0, 0, 0xff, 0xff]].concat();
    let mut decompress = Decompress::new(false);
    decompress.decompress_vec(&payload, &mut out, FlushDecompress::Sync).unwrap();
    String::from_utf8(out).unwrap()
}
