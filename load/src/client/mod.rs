//! A client of Phoenix Channels with thousands of sockets in one thread, which leaves most of the
//! machine to the measured server.

mod connection;
mod returning;
mod tally;

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use mio::{Events, Interest, Poll, Token};
use tokio::time::Instant;

use self::{connection::Connection, returning::Returning, tally::Tally};
pub(crate) use self::{returning::Returned, tally::Age};
use crate::error::LoadError;
pub(crate) use pipeline_load::latency::Latencies;

/// The size of a read.
const SPACE: usize = 256 << 10;

/// How often the deadline is checked while no bytes arrive.
const TICK: Duration = Duration::from_millis(100);

/// The sockets to connect.
#[derive(Clone, Copy)]
pub(crate) struct Crowd<'a> {
    pub(crate) sockets: usize,
    /// The maximum number of concurrent connects and joins.
    pub(crate) at_once: usize,
    /// The topics of each socket, by its number.
    pub(crate) topics: &'a dyn Fn(usize) -> Vec<String>,
    /// The time limit for connecting, and for each load.
    pub(crate) within: Duration,
}

/// Sockets that are connected and have joined their topics.
#[derive(Debug)]
pub(crate) struct Client {
    address: SocketAddr,
    poll: Poll,
    events: Events,
    /// By number. None while one is on its way back.
    connections: Vec<Option<Connection>>,
    tally: Tally,
    space: Vec<u8>,
    within: Duration,
    /// How long all connects and joins took.
    pub(crate) joined_in: Duration,
    heartbeats: Option<Heartbeats>,
}

/// Heartbeats of all sockets in turn.
#[derive(Debug)]
struct Heartbeats {
    since: Instant,
    every: Duration,
    sent: usize,
}

/// The result of a load.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) frames: u64,
    /// The time from the request until the last frame.
    pub(crate) took: Duration,
    pub(crate) latencies: Latencies,
}

impl Client {
    /// Connects all sockets, and waits until all have joined.
    pub(crate) fn join(address: SocketAddr, crowd: Crowd<'_>) -> Result<Self, LoadError> {
        let mut client = Self {
            address,
            poll: Poll::new()?,
            events: Events::with_capacity(4096),
            connections: Vec::with_capacity(crowd.sockets),
            tally: Tally::default(),
            space: vec![0; SPACE],
            within: crowd.within,
            joined_in: Duration::ZERO,
            heartbeats: None,
        };
        let (host, began) = (address.to_string(), Instant::now());
        while client.tally.joined < crowd.sockets {
            let until = crowd.sockets.min(client.tally.joined + crowd.at_once);
            while client.connections.len() < until {
                client.connect(&host, crowd.topics)?;
                if began.elapsed() > crowd.within {
                    break;
                }
            }
            if began.elapsed() > crowd.within {
                let (joined, of) = (client.tally.joined, crowd.sockets);
                return Err(LoadError::NotJoined { joined, of, within: crowd.within });
            }
            client.receive()?;
        }
        client.joined_in = began.elapsed();
        Ok(client)
    }

    fn connect(
        &mut self,
        host: &str,
        topics: impl Fn(usize) -> Vec<String>,
    ) -> Result<(), LoadError> {
        let number = self.connections.len();
        let stream = TcpStream::connect(self.address)?;
        stream.set_nonblocking(true)?;
        let stream = mio::net::TcpStream::from_std(stream);
        let mut connection = Connection::open(stream, host, topics(number))?;
        let registry = self.poll.registry();
        registry.register(&mut connection.stream, Token(number), Interest::READABLE)?;
        self.connections.push(Some(connection));
        Ok(())
    }

    /// Sends a request to the server, and counts frames until the expected number has arrived.
    pub(crate) fn load(
        &mut self,
        request: &str,
        expected: u64,
        timed: bool,
    ) -> Result<Arrived, LoadError> {
        let (address, request) = (self.address, request.to_owned());
        let requesting = thread::spawn(move || get(address, &request));
        let arrived = self.collect(expected, timed)?;
        requesting
            .join()
            .map_err(|_| LoadError::Request("the request thread panicked".to_owned()))??;
        let ages = self.take_ages().iter().map(|age| age.micros).collect();
        Ok(Arrived { latencies: Latencies::new(ages), ..arrived })
    }

    /// Counts frames until the expected number has arrived. Their ages can be taken afterwards.
    pub(crate) fn collect(&mut self, expected: u64, timed: bool) -> Result<Arrived, LoadError> {
        self.tally.frames = 0;
        self.tally.ages = timed.then(Vec::new);
        let began = Instant::now();
        let mut last = began;
        while self.tally.frames < expected {
            let before = self.tally.frames;
            self.receive()?;
            if self.tally.frames > before {
                last = Instant::now();
            } else if last.elapsed() > self.within {
                return Err(LoadError::Missing { arrived: self.tally.frames, of: expected });
            }
        }
        let latencies = Latencies::new(Vec::new());
        Ok(Arrived { frames: self.tally.frames, took: last - began, latencies })
    }

    /// The ages of the frames of the last load.
    pub(crate) fn take_ages(&mut self) -> Vec<Age> {
        self.tally.ages.take().unwrap_or_default()
    }

    /// Reads what has arrived, for a tick at most, and sends the heartbeats that are due.
    pub(crate) fn idle(&mut self) -> Result<(), LoadError> {
        self.receive()
    }

    /// From now on each socket sends a heartbeat in this time, as the official client does every 30 s.
    pub(crate) fn send_heartbeats(&mut self, every: Duration) {
        self.heartbeats = Some(Heartbeats { since: Instant::now(), every, sent: 0 });
    }

    /// From now on frames count as missing when none has arrived for this long.
    pub(crate) fn wait_at_most(&mut self, within: Duration) {
        self.within = within;
    }

    fn heartbeat(&mut self) -> Result<(), LoadError> {
        let Some(beats) = &mut self.heartbeats else { return Ok(()) };
        let between = beats.every.as_nanos() / self.connections.len().max(1) as u128;
        while beats.since.elapsed().as_nanos() > between * beats.sent as u128 {
            let turn = beats.sent % self.connections.len();
            if let Some(connection) = &mut self.connections[turn] {
                connection.heartbeat()?;
            }
            beats.sent += 1;
        }
        Ok(())
    }

    /// Closes all sockets at once. Each connects again as the official client does, and joins its topic. Returns when
    /// all have, or after this time.
    pub(crate) fn cut_off(
        &mut self,
        topic: &dyn Fn(usize) -> String,
        within: Duration,
    ) -> Result<Returned, LoadError> {
        let began = Instant::now();
        self.connections.fill_with(|| None);
        let mut returning = Returning::new(self.address, self.connections.len(), topic, began);
        while returning.away() > 0 && began.elapsed() < within {
            let pause = returning.begin_due(self.poll.registry());
            self.heartbeat()?;
            self.wait(pause.min(TICK))?;
            for event in &self.events {
                let number = event.token().0;
                match &mut self.connections[number] {
                    Some(back) => {
                        if back.receive(&mut self.space, &mut self.tally).is_err() {
                            self.connections[number] = None;
                            returning.lost_again(number);
                        }
                    }
                    away => *away = returning.advance(number, &mut self.space),
                }
            }
        }
        returning.into()
    }

    /// Waits for bytes to arrive, for a tick at most.
    fn receive(&mut self) -> Result<(), LoadError> {
        self.heartbeat()?;
        self.wait(TICK)?;
        for event in &self.events {
            if let Some(connection) = &mut self.connections[event.token().0] {
                connection.receive(&mut self.space, &mut self.tally)?;
            }
        }
        Ok(())
    }

    /// Waits for events.
    fn wait(&mut self, at_most: Duration) -> Result<(), LoadError> {
        match self.poll.poll(&mut self.events, Some(at_most)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// Sends the request that starts the load, and reads its response to the end.
pub(crate) fn get(address: SocketAddr, request: &str) -> Result<(), LoadError> {
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET {request} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.starts_with("HTTP/1.1 200") {
        Ok(())
    } else {
        Err(LoadError::Request(answer.lines().next().unwrap_or_default().to_owned()))
    }
}
