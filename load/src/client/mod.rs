//! A client of Phoenix Channels with thousands of sockets in one thread, which leaves most of the
//! machine to the measured server.

mod connection;
mod tally;

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use mio::{Events, Interest, Poll, Token};
use tokio::time::Instant;

use self::{connection::Connection, tally::Tally};
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
    connections: Vec<Connection>,
    tally: Tally,
    space: Vec<u8>,
    within: Duration,
    /// How long all connects and joins took.
    pub(crate) joined_in: Duration,
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
        self.connections.push(connection);
        Ok(())
    }

    /// Sends a request to the server, and counts frames until the expected number has arrived.
    pub(crate) fn load(
        &mut self,
        request: &str,
        expected: u64,
        timed: bool,
    ) -> Result<Arrived, LoadError> {
        self.tally.frames = 0;
        self.tally.ages = timed.then(Vec::new);
        let (address, request) = (self.address, request.to_owned());
        let began = Instant::now();
        let mut last = began;
        let requesting = thread::spawn(move || get(address, &request));
        while self.tally.frames < expected {
            let before = self.tally.frames;
            self.receive()?;
            if self.tally.frames > before {
                last = Instant::now();
            } else if last.elapsed() > self.within {
                return Err(LoadError::Missing { arrived: self.tally.frames, of: expected });
            }
        }
        requesting
            .join()
            .map_err(|_| LoadError::Request("the request thread panicked".to_owned()))??;
        let latencies = Latencies::new(self.tally.ages.take().unwrap_or_default());
        Ok(Arrived { frames: self.tally.frames, took: last - began, latencies })
    }

    /// Waits for bytes to arrive, for a tick at most.
    fn receive(&mut self) -> Result<(), LoadError> {
        if let Err(error) = self.poll.poll(&mut self.events, Some(TICK))
            && error.kind() != ErrorKind::Interrupted
        {
            return Err(error.into());
        }
        for event in &self.events {
            self.connections[event.token().0].receive(&mut self.space, &mut self.tally)?;
        }
        Ok(())
    }
}

/// Sends the request that starts the load, and reads its response to the end.
fn get(address: SocketAddr, request: &str) -> Result<(), LoadError> {
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
