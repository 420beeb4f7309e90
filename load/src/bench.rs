//! Measures a server under load.
#![expect(clippy::disallowed_methods, reason = "there is no runtime here")]

use std::{env, path::PathBuf, process::Command, thread, time::Duration};

use clap::ValueEnum;

use crate::{
    client::{Client, Crowd},
    error::LoadError,
    figure::Figure,
    server::Server,
    usage::{ProcessorTime, resident},
};

/// How long a server has to settle after all sockets have joined.
const REST: Duration = Duration::from_millis(300);

/// The default number of concurrent connection attempts.
const AT_ONCE: usize = 100;

/// The server of raw writes accepts one connection at a time.
const AT_ONCE_TO_RAW: usize = 50;

/// The server under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    /// The project's own server.
    Target,
    /// The hand-written baseline: axum and tokio's broadcast channel.
    Baseline,
    /// Raw writes: one thread, one write per frame.
    Raw,
    /// Raw writes: one thread, one write per ten frames.
    RawTens,
}

/// The scale of the loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    Full,
    /// For a first impression.
    Quick,
    /// Only checks that everything arrives.
    Tiny,
}

/// The configuration of a measurement.
#[derive(Clone, Debug)]
pub(crate) struct Bench {
    /// The path of the project's own server.
    pub(crate) target: PathBuf,
    pub(crate) rounds: usize,
    pub(crate) size: Size,
    /// The maximum number of sockets in a process.
    pub(crate) descriptors: usize,
    /// The only broker whose sources are measured, if not all are.
    pub(crate) broker: Option<Broker>,
}

/// A broker whose sources are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Broker {
    Postgres,
    Redis,
    Nats,
    Rabbitmq,
    Kafka,
}

/// The topics that a load's sockets join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Topics {
    /// The same topic for all sockets.
    Room,
    /// One topic per socket.
    Users,
    /// Each socket has its share of the other topics, and the first few also join the small one.
    Many { others: usize, sockets: usize, on_the_small: usize },
}

/// A number of sockets, and the messages that they receive.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) sockets: usize,
    pub(crate) at_once: usize,
    pub(crate) topics: Topics,
    /// The path of the request that starts the load, if there is one.
    pub(crate) request: Option<String>,
    /// The number of frames.
    pub(crate) frames: u64,
    /// Whether to measure the age of frames on arrival.
    pub(crate) timed: bool,
    pub(crate) within: Duration,
}

/// The cost of a load.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) joined_in_seconds: f64,
    pub(crate) kilobytes_per_socket: f64,
    pub(crate) cpu_seconds_per_million: f64,
    pub(crate) frames_per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

/// The cost of a load in several rounds.
#[derive(Debug, Default)]
pub(crate) struct Series(Vec<Measured>);

impl Load {
    /// Connects and joins only.
    pub(crate) fn connecting(sockets: usize, topics: Topics) -> Self {
        Self {
            sockets,
            at_once: AT_ONCE,
            topics,
            request: None,
            frames: 0,
            timed: false,
            within: Duration::from_secs(30),
        }
    }

    /// Broadcasts this many messages on one topic to all sockets.
    pub(crate) fn broadcasts(sockets: usize, messages: u64, every: Option<Duration>) -> Self {
        let pace = every.map(|every| format!("&every_us={}", every.as_micros()));
        let pace = pace.unwrap_or_default();
        Self {
            request: Some(format!("/bcast?topic=room:1&n={messages}&size=64{pace}")),
            frames: sockets as u64 * messages,
            timed: every.is_some(),
            ..Self::connecting(sockets, Topics::Room)
        }
    }
}

impl Bench {
    /// The full load, or less of it in a smaller size.
    pub(crate) fn scaled(&self, full: u64) -> u64 {
        let divided = match self.size {
            Size::Full => full,
            Size::Quick => full / 4,
            Size::Tiny => full / 100,
        };
        divided.max(1)
    }

    /// The number of sockets, or fewer in a smaller size.
    pub(crate) fn sockets(&self, full: usize) -> usize {
        self.topics(full).min(self.descriptors)
    }

    /// The number of topics, or fewer in a smaller size.
    pub(crate) fn topics(&self, full: usize) -> usize {
        if self.size == Size::Tiny { full.div_ceil(100) } else { full }
    }

    /// Measures all of these in turn, in several rounds, so that other activity of the machine does not
    /// affect only one of them.
    pub(crate) fn rounds(&self, loads: &[(Contender, &Load)]) -> Result<Vec<Series>, LoadError> {
        let mut series: Vec<Series> = loads.iter().map(|_| Series::default()).collect();
        for _ in 0..self.rounds {
            for (series, (contender, load)) in series.iter_mut().zip(loads) {
                series.0.push(self.measure(*contender, load)?);
            }
        }
        Ok(series)
    }

    /// Applies a load to a freshly started server.
    pub(crate) fn measure(&self, contender: Contender, load: &Load) -> Result<Measured, LoadError> {
        let server = Server::start(&mut self.command(contender)?)?;
        let process = server.process();
        let empty = resident(process)?;
        let at_once = match contender {
            Contender::Raw | Contender::RawTens => load.at_once.min(AT_ONCE_TO_RAW),
            Contender::Target | Contender::Baseline => load.at_once,
        };
        let topics = |number| load.topics.of(number);
        let crowd = Crowd { sockets: load.sockets, at_once, topics: &topics, within: load.within };
        let mut client = Client::join(server.address, crowd)?;
        thread::sleep(REST);
        let full = resident(process)?.saturating_sub(empty);
        let before = ProcessorTime::of(process)?;
        let arrived = match &load.request {
            Some(request) => Some(client.load(request, load.frames, load.timed)?),
            None => None,
        };
        let cpu_seconds = ProcessorTime::of(process)?.since(&before).as_secs_f64();
        let arrived = arrived.as_ref();
        let frames = arrived.map_or(f64::NAN, |arrived| arrived.frames as f64);
        Ok(Measured {
            joined_in_seconds: client.joined_in.as_secs_f64(),
            kilobytes_per_socket: full as f64 / 1024.0 / load.sockets as f64,
            cpu_seconds_per_million: cpu_seconds * 1e6 / frames,
            frames_per_second: arrived.map_or(f64::NAN, |load| frames / load.took.as_secs_f64()),
            p50_ms: arrived.map_or(f64::NAN, |arrived| arrived.latencies.at(500)),
            p99_ms: arrived.map_or(f64::NAN, |arrived| arrived.latencies.at(990)),
        })
    }

    fn command(&self, contender: Contender) -> Result<Command, LoadError> {
        let arguments: &[&str] = match contender {
            Contender::Target => &["--port", "0"],
            Contender::Baseline => &["baseline"],
            Contender::Raw => &["raw"],
            Contender::RawTens => &["raw", "--glue", "10"],
        };
        let program = match contender {
            Contender::Target => self.target.clone(),
            _ => env::current_exe()?,
        };
        let mut command = Command::new(program);
        command.args(arguments);
        Ok(command)
    }
}

impl Topics {
    fn of(self, number: usize) -> Vec<String> {
        match self {
            Self::Room => vec!["room:1".to_owned()],
            Self::Users => vec![format!("user:{number}")],
            Self::Many { others, sockets, on_the_small } => {
                let own = (number..others).step_by(sockets).map(|n| format!("room:{n}"));
                own.chain((number < on_the_small).then(|| "room:small".to_owned())).collect()
            }
        }
    }
}

impl Series {
    /// A figure from one quantity of the measurements.
    pub(crate) fn figure(&self, quantity: impl Fn(&Measured) -> f64) -> Figure {
        let rounds = self.0.iter().map(quantity).collect();
        Figure::new(rounds).expect("there is at least one round")
    }
}
