//! One socket of the client.

use std::io::{self, ErrorKind, Read, Write};

use mio::net::TcpStream;

use pipeline_load::frame::{self, Frame};

use super::tally::Tally;
use crate::error::LoadError;

/// The path of WebSockets.
pub(super) const PATH: &str = "/socket/websocket?vsn=2.0.0";

/// A socket with its state.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    /// The bytes of an incomplete frame.
    rest: Vec<u8>,
    phase: Phase,
    topics: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Upgrading,
    /// The number of joins without a reply.
    Joining(usize),
    Joined,
    Closed,
}

impl Connection {
    /// Requests a WebSocket. The topics are joined once it is open.
    pub(super) fn open(
        mut stream: TcpStream,
        host: &str,
        topics: Vec<String>,
    ) -> Result<Self, LoadError> {
        stream.set_nodelay(true)?;
        stream.write_all(frame::upgrade(host, PATH).as_bytes())?;
        Ok(Self { stream, rest: Vec::new(), phase: Phase::Upgrading, topics })
    }

    /// A WebSocket that has joined its topics. These bytes have arrived after the answer.
    pub(super) fn joined(stream: TcpStream, rest: Vec<u8>) -> Self {
        Self { stream, rest, phase: Phase::Joined, topics: Vec::new() }
    }

    /// Reads the available bytes and counts their frames.
    pub(super) fn receive(&mut self, space: &mut [u8], tally: &mut Tally) -> Result<(), LoadError> {
        while self.phase != Phase::Closed {
            let length = match self.stream.read(space) {
                Ok(0) => return Err(LoadError::Closed),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            let (arrived, more) = (&space[..length], length == space.len());
            if self.rest.is_empty() {
                // Most reads end at a frame boundary, so most frames are never copied.
                let taken = self.take(arrived, tally)?;
                self.rest.extend_from_slice(&arrived[taken..]);
            } else {
                let mut rest = std::mem::take(&mut self.rest);
                rest.extend_from_slice(arrived);
                let taken = self.take(&rest, tally)?;
                rest.drain(..taken);
                self.rest = rest;
            }
            if !more {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Processes all complete frames, and returns their total length.
    fn take(&mut self, bytes: &[u8], tally: &mut Tally) -> Result<usize, LoadError> {
        let mut taken = 0;
        if self.phase == Phase::Upgrading {
            let Some(length) = frame::head(bytes) else { return Ok(0) };
            if !bytes.starts_with(b"HTTP/1.1 101") {
                let head = String::from_utf8_lossy(&bytes[..length]);
                return Err(LoadError::Refused(head.lines().next().unwrap_or_default().to_owned()));
            }
            taken = length;
            self.ask_to_join()?;
        }
        while let Some((frame, length)) = Frame::first(&bytes[taken..]) {
            taken += length;
            if frame.closes() {
                self.phase = Phase::Closed;
                return Err(LoadError::Closed);
            }
            match self.phase {
                Phase::Joining(left) => {
                    if !frame.grants() {
                        let answer = String::from_utf8_lossy(frame.body).into_owned();
                        return Err(LoadError::Refused(answer));
                    }
                    self.phase = if left == 1 { Phase::Joined } else { Phase::Joining(left - 1) };
                    tally.joined += usize::from(left == 1);
                }
                _ if frame.answers_heartbeat() => {}
                _ => tally.count(&frame),
            }
        }
        Ok(taken)
    }

    pub(super) fn heartbeat(&mut self) -> io::Result<()> {
        self.stream.write_all(&frame::heartbeat())
    }

    fn ask_to_join(&mut self) -> io::Result<()> {
        let topics = std::mem::take(&mut self.topics);
        self.phase = Phase::Joining(topics.len());
        let joins: Vec<u8> = topics.iter().flat_map(|topic| frame::join(topic)).collect();
        self.stream.write_all(&joins)
    }
}
