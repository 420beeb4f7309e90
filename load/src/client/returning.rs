//! Sockets that are cut off at once, and their way back: that of the official client.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap},
    io::{self, ErrorKind, Read, Write},
    net::SocketAddr,
    time::Duration,
};

use mio::{Interest, Registry, Token, net::TcpStream};
use pipeline_load::frame::{self, Frame};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::connection::{Connection, PATH};
use crate::error::LoadError;

/// How long the official client waits before it connects again, by the number of tries since it was connected.
const RECONNECT_AFTER_MS: [u64; 10] = [10, 50, 100, 150, 200, 250, 500, 1000, 2000, 5000];

/// How long it waits before it joins again, by the number of tries.
const REJOIN_AFTER_MS: [u64; 4] = [1000, 2000, 5000, 10_000];

/// How long it waits for the answer to a join.
const JOIN_WITHIN: Duration = Duration::from_secs(10);

/// How many actions are begun between two looks at what has arrived.
const AT_ONCE: usize = 64;

/// The sockets that have come back.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Returned {
    /// How long each was away, in milliseconds.
    pub(crate) away_ms: Vec<u64>,
    /// How many tries failed, by what they were answered.
    pub(crate) failed: BTreeMap<String, u64>,
}

/// The way back of one socket.
#[derive(Debug)]
struct Trip {
    stream: Option<TcpStream>,
    step: Step,
    connects: usize,
    joins: usize,
    /// Tells the answer to a join from those to joins before it.
    reference: u32,
    /// The bytes that have arrived and are not read yet.
    rest: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Waits before the next try to connect, or to join.
    Pausing,
    Connecting,
    Upgrading,
    Joining,
}

/// What a socket does at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Connect,
    /// The next join has this reference.
    Join(u32),
    /// The join with this reference has not been answered.
    GiveUp(u32),
}

/// What has become of a try.
enum Progress {
    None,
    /// The WebSocket is open.
    Open,
    /// The connection has ended, or was refused.
    Lost(String),
    /// The join was refused.
    Refused(String),
    Back,
}

/// All sockets that are on their way back.
pub(super) struct Returning<'a> {
    address: SocketAddr,
    host: String,
    topic: &'a dyn Fn(usize) -> String,
    trips: HashMap<usize, Trip>,
    due: BinaryHeap<Reverse<(Instant, usize, Due)>>,
    began: Instant,
    /// How long those that are back were away, in milliseconds.
    back: BTreeMap<usize, u64>,
    failed: BTreeMap<String, u64>,
}

impl<'a> Returning<'a> {
    /// These sockets have been cut off since then.
    pub(super) fn new(
        address: SocketAddr,
        sockets: usize,
        topic: &'a dyn Fn(usize) -> String,
        began: Instant,
    ) -> Self {
        let mut returning = Self {
            address,
            host: address.to_string(),
            topic,
            trips: HashMap::new(),
            due: BinaryHeap::new(),
            began,
            back: BTreeMap::new(),
            failed: BTreeMap::new(),
        };
        (0..sockets).for_each(|number| returning.leave(number));
        returning
    }

    /// How many are still away.
    pub(super) fn away(&self) -> usize {
        self.trips.len()
    }

    /// A socket that had come back was closed.
    pub(super) fn lost_again(&mut self, number: usize) {
        self.back.remove(&number);
        self.failed("closed after its return");
        self.leave(number);
    }

    fn leave(&mut self, number: usize) {
        let trip = Trip {
            stream: None,
            step: Step::Pausing,
            connects: 0,
            joins: 0,
            reference: 0,
            rest: Vec::new(),
        };
        self.trips.insert(number, trip);
        self.connect_later(number);
    }

    /// Begins what is due. Returns how long nothing else is.
    pub(super) fn begin_due(&mut self, registry: &Registry) -> Duration {
        for _ in 0..AT_ONCE {
            let Some(Reverse((at, number, due))) = self.due.peek().copied() else {
                return Duration::MAX;
            };
            let now = Instant::now();
            if at > now {
                return at - now;
            }
            self.due.pop();
            let Some(trip) = self.trips.get_mut(&number) else { continue };
            match due {
                Due::Connect => {
                    if let Err(error) = trip.connect(self.address, number, registry) {
                        self.lost(number, &said(&error));
                    }
                }
                Due::Join(reference) if trip.waits_to_join(reference) => self.join(number),
                Due::GiveUp(reference) if trip.waits_for_answer(reference) => {
                    self.refused(number, "a join was not answered");
                }
                Due::Join(_) | Due::GiveUp(_) => {}
            }
        }
        Duration::ZERO
    }

    /// Something has arrived for a socket, or it is connected. Returns its connection if it is back.
    pub(super) fn advance(&mut self, number: usize, space: &mut [u8]) -> Option<Connection> {
        loop {
            let trip = self.trips.get_mut(&number)?;
            match trip.advance(&self.host, space) {
                Ok(Progress::None) => return None,
                // The answer to the join may have come already.
                Ok(Progress::Open) => self.join(number),
                Ok(Progress::Lost(why)) => return self.lost(number, &why),
                Err(error) => return self.lost(number, &said(&error)),
                Ok(Progress::Refused(why)) => return self.refused(number, &why),
                Ok(Progress::Back) => {
                    let trip = self.trips.remove(&number)?;
                    let away = self.began.elapsed().as_millis();
                    self.back.insert(number, u64::try_from(away).unwrap_or(u64::MAX));
                    return Some(Connection::joined(trip.stream?, trip.rest));
                }
            }
        }
    }

    fn join(&mut self, number: usize) {
        let Some(trip) = self.trips.get_mut(&number) else { return };
        trip.reference += 1;
        trip.step = Step::Joining;
        let give_up = Due::GiveUp(trip.reference);
        let topic = (self.topic)(number);
        let frame = frame::join_as(&topic, trip.reference);
        if let Err(error) = trip.send(&frame) {
            self.lost(number, &said(&error));
            return;
        }
        self.due.push(Reverse((Instant::now() + JOIN_WITHIN, number, give_up)));
    }

    fn lost(&mut self, number: usize, why: &str) -> Option<Connection> {
        self.failed(why);
        self.connect_later(number);
        None
    }

    fn connect_later(&mut self, number: usize) {
        let Some(trip) = self.trips.get_mut(&number) else { return };
        (trip.stream, trip.step) = (None, Step::Pausing);
        trip.rest.clear();
        let pause = delay(&RECONNECT_AFTER_MS, trip.connects);
        trip.connects += 1;
        self.due.push(Reverse((Instant::now() + pause, number, Due::Connect)));
    }

    fn refused(&mut self, number: usize, why: &str) -> Option<Connection> {
        self.failed(why);
        let trip = self.trips.get_mut(&number)?;
        trip.step = Step::Pausing;
        let pause = delay(&REJOIN_AFTER_MS, trip.joins);
        trip.joins += 1;
        let join = Due::Join(trip.reference + 1);
        self.due.push(Reverse((Instant::now() + pause, number, join)));
        None
    }

    fn failed(&mut self, why: &str) {
        *self.failed.entry(why.to_owned()).or_default() += 1;
    }
}

impl Trip {
    fn waits_to_join(&self, reference: u32) -> bool {
        self.step == Step::Pausing && self.stream.is_some() && self.reference + 1 == reference
    }

    fn waits_for_answer(&self, reference: u32) -> bool {
        self.step == Step::Joining && self.reference == reference
    }

    fn connect(
        &mut self,
        address: SocketAddr,
        number: usize,
        registry: &Registry,
    ) -> io::Result<()> {
        let mut stream = TcpStream::connect(address)?;
        let both = Interest::READABLE | Interest::WRITABLE;
        registry.register(&mut stream, Token(number), both)?;
        (self.stream, self.step) = (Some(stream), Step::Connecting);
        Ok(())
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.as_mut().ok_or(ErrorKind::NotConnected)?.write_all(bytes)
    }

    fn advance(&mut self, host: &str, space: &mut [u8]) -> io::Result<Progress> {
        let Some(stream) = &mut self.stream else { return Ok(Progress::None) };
        if self.step == Step::Connecting {
            if let Some(error) = stream.take_error()? {
                return Err(error);
            }
            match stream.peer_addr() {
                Err(error) if error.kind() == ErrorKind::NotConnected => return Ok(Progress::None),
                connected => connected?,
            };
            stream.set_nodelay(true)?;
            stream.write_all(frame::upgrade(host, PATH).as_bytes())?;
            self.step = Step::Upgrading;
        }
        let is_ended = self.read(space)?;
        let progress = self.take();
        match progress {
            Progress::None if is_ended => Ok(Progress::Lost("closed without an answer".into())),
            progress => Ok(progress),
        }
    }

    /// Reads what has arrived. Returns whether the server has closed the connection.
    fn read(&mut self, space: &mut [u8]) -> io::Result<bool> {
        let Some(stream) = &mut self.stream else { return Ok(false) };
        loop {
            match stream.read(space) {
                Ok(0) => return Ok(true),
                Ok(length) => self.rest.extend_from_slice(&space[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// What the bytes that have arrived mean. Those after an answer stay.
    fn take(&mut self) -> Progress {
        if self.step == Step::Upgrading {
            let Some(length) = frame::head(&self.rest) else { return Progress::None };
            let head: Vec<_> = self.rest.drain(..length).collect();
            if head.starts_with(b"HTTP/1.1 101") {
                (self.connects, self.joins) = (0, 0);
                return Progress::Open;
            }
            let head = String::from_utf8_lossy(&head);
            let status = head.lines().next().unwrap_or_default();
            let body = String::from_utf8_lossy(&self.rest);
            let status = status.trim_start_matches("HTTP/1.1 ");
            return Progress::Lost(format!("{status}: {}", body.trim_end()));
        }
        while let Some((frame, length)) = Frame::first(&self.rest) {
            let answer = if frame.closes() {
                Some(Progress::Lost("closed by the server".into()))
            } else if self.step == Step::Joining && frame.answers_join(self.reference) {
                let refused = || Progress::Refused(reason(&frame));
                Some(if frame.grants() { Progress::Back } else { refused() })
            } else {
                None
            };
            self.rest.drain(..length);
            if let Some(answer) = answer {
                return answer;
            }
        }
        Progress::None
    }
}

/// Why a join was refused.
fn reason(frame: &Frame<'_>) -> String {
    let body = String::from_utf8_lossy(frame.body);
    let reason = body.split_once(r#""reason":""#).and_then(|(_, rest)| rest.split('"').next());
    format!("a join was refused: {}", reason.unwrap_or(&body))
}

fn said(error: &io::Error) -> String {
    error.kind().to_string()
}

fn delay(delays: &[u64], tries: usize) -> Duration {
    Duration::from_millis(delays[tries.min(delays.len() - 1)])
}

impl From<Returning<'_>> for Result<Returned, LoadError> {
    fn from(returning: Returning<'_>) -> Self {
        let (away, within) = (returning.away(), returning.began.elapsed());
        let joined = returning.back.len();
        match away {
            0 => Ok(Returned {
                away_ms: returning.back.into_values().collect(),
                failed: returning.failed,
            }),
            away => Err(LoadError::NotJoined { joined, of: joined + away, within }),
        }
    }
}
