//! The command-line arguments.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};
use pipeline::{statsd, ws::pubsub::Acknowledge};

/// Push items to the users they are meant for, and see how long each takes.
///
/// Open the printed URL, push something, and watch it arrive. Ctrl-C stops the program: accepted pushes
/// are still delivered.
#[derive(Debug, Parser)]
#[command(name = "push_to_users", args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    pub command: Option<Command>,

    /// The port to serve on; 0 picks a free one
    #[arg(long, default_value_t = 4000)]
    pub port: u16,

    /// The address to serve on; 0.0.0.0 lets other machines in
    #[arg(long, default_value = "127.0.0.1")]
    pub host: IpAddr,

    /// The host name that browsers use, if it is neither localhost nor an address
    #[arg(long, value_name = "NAME")]
    pub public_host: Option<String>,

    /// Look up users at /inspect/lookup, and close their sockets there. Anyone who reaches the page may then
    #[arg(long)]
    pub operator: bool,

    /// Push a steady trickle to users 1, 2 and 3
    #[arg(long)]
    pub demo: bool,

    /// Read pushes from standard input, as NDJSON: one per line, as for POST /push
    #[arg(long)]
    pub stdin: bool,

    /// How many workers may run at once. A push of --durable or --source that only waits for its client
    /// leaves its worker: 8,000 may wait so
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = at_least_one)]
    pub max_demand: usize,

    /// Ask for more items when only this many workers are running [default: a little below --max-demand]
    #[arg(long, value_name = "N")]
    min_demand: Option<usize>,

    /// How long each worker takes before it pushes, to see demand at work
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub delay_ms: u64,

    /// How many items may wait for a worker; when the queue is full, POST /push answers 503 and
    /// standard input waits
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = at_least_one)]
    pub queue: usize,

    /// Keep pushes in this SQLite file until they are done: POST /push answers when they are on the disk,
    /// and they survive the process. The pushes of a user are worked on one after the other, so a user has one
    /// worker at a time. --queue is of no effect then. Needs the feature `sqlite`
    #[arg(long, value_name = "FILE", group = "kept", conflicts_with = "source")]
    durable: Option<PathBuf>,

    /// Keep pushes at this server instead, and read those of other programs from there: redis://..,
    /// nats://.., postgres://.., amqp://.. or kafka://... POST /push answers when the server has confirmed
    /// them. Needs the feature `redis`, `nats`, `postgres`, `rabbitmq` or `kafka`
    #[arg(long, value_name = "URL", group = "kept", env = "PUSH_SOURCE", hide_env_values = true)]
    source: Option<String>,

    /// The name of the stream, queue or topic of --source
    #[arg(long, value_name = "NAME", requires = "source", default_value = "pushes")]
    source_name: String,

    /// How long after the death of a process its pushes of --durable or --source are delivered again, if the
    /// server does not notice that itself
    #[arg(
        long,
        value_name = "SECS",
        requires = "kept",
        default_value_t = 30,
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    lease_secs: u64,

    /// How many seconds a push of --durable or --source is kept for a user who is not there, as after a
    /// restart, since it was accepted; it is looked for again after a second and later once a minute. 0: a
    /// user who is not there misses it [default: 3600, and 60 with Kafka, whose partition it holds up]
    #[arg(long, value_name = "SECS", requires = "kept")]
    keep_secs: Option<u64>,

    /// How far a push of --durable or --source has to come before it is done. Until then it survives the
    /// process
    #[arg(
        long,
        value_name = "LEVEL",
        requires = "kept",
        value_enum,
        default_value_t = Level::Written
    )]
    pub acknowledge: Level,

    /// Connect this process with others by a server: redis://.. or nats://... A push finds its user at any of
    /// them, which may read from one --source or --durable. They need the same --secret. Without this flag,
    /// let one process read from a queue: a push reaches the users of the process that has fetched it. Needs
    /// the feature `cluster`
    #[arg(long, value_name = "URL", env = "PUSH_CLUSTER", hide_env_values = true)]
    pub cluster: Option<String>,

    /// Send StatsD lines to this address, instead of printing them
    #[arg(long, value_name = "HOST:PORT", value_parser = host_and_port)]
    pub statsd: Option<String>,

    /// The format of StatsD lines
    #[arg(long, value_enum, default_value_t = Dialect::Dogstatsd)]
    pub statsd_dialect: Dialect,

    /// Print StatsD lines with new values, instead of one summary line a second
    #[arg(long, conflicts_with = "statsd")]
    pub statsd_lines: bool,

    /// Print all StatsD lines, including those without new values
    #[arg(long, conflicts_with = "statsd")]
    pub statsd_all: bool,

    /// The secret that signs tokens, at least 20 bytes [default: a random one, so that tokens are valid
    /// for this run only]
    #[arg(long, value_name = "TEXT", env = "PUSH_SECRET", hide_env_values = true)]
    secret: Option<String>,

    /// How many seconds a token is valid
    #[arg(long, value_name = "SECS", default_value_t = 3600)]
    token_age_secs: u64,

    /// Maximum number of seconds to keep delivering after Ctrl-C
    #[arg(long, value_name = "SECS", default_value_t = 10)]
    pub drain_secs: u64,
}

/// What else the program does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Manage the pushes that were given up: they failed too often, or are not valid
    DeadLetters(DeadLetters),
}

/// The command `dead-letters`.
#[derive(Debug, clap::Args)]
pub struct DeadLetters {
    /// The file of the queue
    #[arg(long, value_name = "FILE", global = true, conflicts_with = "source")]
    durable: Option<PathBuf>,

    /// The server of the queue
    #[arg(long, value_name = "URL", global = true, env = "PUSH_SOURCE", hide_env_values = true)]
    source: Option<String>,

    /// The name of the queue in the file, or of the stream, queue or topic of --source
    #[arg(long, value_name = "NAME", global = true, default_value = "pushes")]
    source_name: String,

    /// Print JSON, an object a line
    #[arg(long, global = true)]
    pub json: bool,

    #[command(subcommand)]
    pub action: Action,
}

/// What is to be done with dead letters.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// List them, the oldest first, a page at a time
    List {
        /// Begin after this one: the last of the page before
        #[arg(long, value_name = "ID")]
        after: Option<String>,
        /// How many to list at most
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Show one with all that is known of it
    Show {
        /// Its id
        id: String,
    },
    /// Add them to the queue again
    Replay(Which),
    /// Remove them for good
    Drop(Which),
}

/// Which dead letters.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct Which {
    /// Their ids
    pub ids: Vec<String>,
    /// All that there are when the command begins
    #[arg(long)]
    pub all: bool,
}

/// Where a durable queue is.
#[cfg_attr(
    not(feature = "durable"),
    expect(
        dead_code,
        reason = "a program without durable queues only says which feature is missing"
    )
)]
pub enum QueueAt {
    File { path: PathBuf, name: String },
    Server { address: String, name: String },
}

/// The kinds of durable queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broker {
    Sqlite,
    Redis,
    Nats,
    Postgres,
    RabbitMq,
    Kafka,
}

impl QueueAt {
    fn new(file: Option<&PathBuf>, server: Option<&String>, name: &str) -> Option<Self> {
        match (file, server) {
            (Some(file), _) => Some(Self::File { path: file.clone(), name: name.to_owned() }),
            (None, Some(address)) => {
                Some(Self::Server { address: address.clone(), name: name.to_owned() })
            }
            (None, None) => None,
        }
    }

    /// For how long it keeps a push for a user who is not there, unless the flag says so. What Kafka keeps holds
    /// up its partition in the end: no more than ten thousand pushes are read beyond it.
    fn keep_for(&self) -> Duration {
        let seconds = if self.broker() == Ok(Broker::Kafka) { 60 } else { 3600 };
        Duration::from_secs(seconds)
    }

    /// What it is. The address may have a password, so errors do not quote it.
    pub fn broker(&self) -> Result<Broker, String> {
        let Self::Server { address, .. } = self else { return Ok(Broker::Sqlite) };
        match address.split_once("://").map(|(scheme, _)| scheme) {
            Some("redis" | "rediss") => Ok(Broker::Redis),
            Some("nats") => Ok(Broker::Nats),
            Some("postgres" | "postgresql") => Ok(Broker::Postgres),
            Some("amqp" | "amqps") => Ok(Broker::RabbitMq),
            Some("kafka") => Ok(Broker::Kafka),
            _ => {
                Err("the address of --source begins with none of redis://, nats://, postgres://, \
                      amqp:// and kafka://"
                    .to_owned())
            }
        }
    }
}

impl Broker {
    /// The feature of this program that it needs.
    pub fn feature(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Redis => "redis",
            Self::Nats => "nats",
            Self::Postgres => "postgres",
            Self::RabbitMq => "rabbitmq",
            Self::Kafka => "kafka",
        }
    }

    /// The flag that asks for it.
    pub fn flag(self) -> &'static str {
        match self {
            Self::Sqlite => "--durable FILE",
            Self::Redis => "--source redis://..",
            Self::Nats => "--source nats://..",
            Self::Postgres => "--source postgres://..",
            Self::RabbitMq => "--source amqp://..",
            Self::Kafka => "--source kafka://..",
        }
    }
}

/// How far a push has to come.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Level {
    /// The program has it; a crash loses it
    TakenOver,
    /// The outboxes of all sockets have it
    Handled,
    /// Every socket has taken it, or has ended
    Written,
    /// A client has confirmed it within ten seconds
    Confirmed,
}

impl From<Level> for Acknowledge {
    fn from(level: Level) -> Self {
        match level {
            Level::TakenOver => Self::TakenOver,
            Level::Handled => Self::Handled,
            Level::Written => Self::Written,
            Level::Confirmed => Self::Confirmed { within: Duration::from_secs(10) },
        }
    }
}

impl DeadLetters {
    pub fn queue_at(&self) -> Option<QueueAt> {
        QueueAt::new(self.durable.as_ref(), self.source.as_ref(), &self.source_name)
    }
}

/// The receiver of StatsD lines.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Dialect {
    /// The original daemon: tags in the name
    Statsd,
    /// The Datadog agent and compatible receivers: tags after the value
    Dogstatsd,
}

impl Args {
    /// The durable queue, if there is one.
    pub fn queue_at(&self) -> Option<QueueAt> {
        QueueAt::new(self.durable.as_ref(), self.source.as_ref(), &self.source_name)
    }

    /// Low enough to request items in batches, high enough to keep the workers busy.
    pub fn min_demand(&self) -> usize {
        self.min_demand.unwrap_or(self.max_demand - self.max_demand.div_ceil(5))
    }

    pub fn secret(&self) -> String {
        self.secret.clone().unwrap_or_else(|| {
            let mut bytes = [0; 32];
            getrandom::fill(&mut bytes).expect("the operating system has random numbers");
            bytes.iter().map(|byte| format!("{byte:02x}")).collect()
        })
    }

    /// For how long a push of this queue is kept for a user who is not there. After a restart no user
    /// is, until the clients have connected again.
    pub fn keep_for(&self, at: &QueueAt) -> Duration {
        self.keep_secs.map_or_else(|| at.keep_for(), Duration::from_secs)
    }

    pub fn lease(&self) -> Duration {
        Duration::from_secs(self.lease_secs)
    }

    pub fn token_age(&self) -> Duration {
        Duration::from_secs(self.token_age_secs)
    }
}

impl From<Dialect> for statsd::Dialect {
    fn from(dialect: Dialect) -> Self {
        match dialect {
            Dialect::Statsd => Self::StatsD,
            Dialect::Dogstatsd => Self::DogStatsD,
        }
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("expected at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(error) => Err(error.to_string()),
    }
}

fn host_and_port(text: &str) -> Result<String, String> {
    let port = text
        .rsplit_once(':')
        .and_then(|(host, port)| (!host.is_empty()).then(|| port.parse::<u16>().ok()).flatten());
    match port {
        Some(_) => Ok(text.to_owned()),
        None => Err("expected HOST:PORT, for instance 127.0.0.1:8125".to_owned()),
    }
}
