//! Options of a node of a cluster.

use std::time::Duration;

use pipeline_core::{
    backoff::{Backoff, Jitter},
    telemetry::Telemetry,
};

/// The options of a node of a cluster.
///
/// ```
/// use pipeline_cluster::ClusterOptions;
///
/// let options = ClusterOptions::new("shop").node("shop-1");
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct ClusterOptions {
    pub(crate) prefix: String,
    pub(crate) node: Option<String>,
    pub(crate) max_waiting: usize,
    pub(crate) max_waiting_bytes: usize,
    pub(crate) refuse_when_full: bool,
    pub(crate) linger: Duration,
    pub(crate) join_wait: Duration,
    pub(crate) settle: Duration,
    pub(crate) backoff: Backoff,
    pub(crate) ping_interval: Duration,
    pub(crate) timeout: Duration,
    pub(crate) telemetry: Telemetry,
}

impl ClusterOptions {
    /// The options of a node of this application. Nodes whose `prefix` is the same are one cluster, and
    /// several clusters can share a server.
    pub fn new(prefix: impl Into<String>) -> Self {
        Self {
            prefix: prefix.into(),
            node: None,
            max_waiting: 100_000,
            max_waiting_bytes: 64 << 20,
            refuse_when_full: false,
            linger: Duration::from_secs(10),
            join_wait: Duration::from_secs(1),
            settle: Duration::from_secs(5),
            backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(5))
                .jitter(Jitter::Equal),
            ping_interval: Duration::from_secs(2),
            timeout: Duration::from_secs(5),
            telemetry: Telemetry::global(),
        }
    }

    /// The name of this node, unique in the cluster. Default: a random name.
    ///
    /// A node that is started again under the same name replaces the former one in presences at once.
    pub fn node(mut self, name: impl Into<String>) -> Self {
        self.node = Some(name.into());
        self
    }

    /// How many broadcasts may wait to be sent while the server is away or slow. Beyond that, the oldest
    /// are dropped. Default 100,000.
    pub fn max_waiting(mut self, broadcasts: usize) -> Self {
        self.max_waiting = broadcasts;
        self
    }

    /// How many bytes the waiting broadcasts may have together. Default 64 MiB.
    pub fn max_waiting_bytes(mut self, bytes: usize) -> Self {
        self.max_waiting_bytes = bytes;
        self
    }

    /// Refuses a broadcast when too many wait, instead of dropping the oldest. The broadcast then fails
    /// with an error, and is not delivered on this node either.
    pub fn refuse_when_full(mut self) -> Self {
        self.refuse_when_full = true;
        self
    }

    /// How long this node still receives a topic after its last subscriber has left. Default 10 s. A user
    /// who comes back within this time costs no message to the server. With [`Duration::MAX`], a node never leaves
    /// a topic.
    pub fn linger(mut self, linger: Duration) -> Self {
        self.linger = linger;
        self
    }

    /// How long a client's join of a topic may wait until this node receives the topic. Default 1 s.
    ///
    /// A client that has its answer receives what other nodes broadcast from then on. A topic that this
    /// node receives already costs no time, and another one a way to the server and back. When the server
    /// takes longer than this, the join is answered all the same, and counted in
    /// `pipeline.cluster.joins_early`; so it is at once while the node is not connected. With
    /// [`Duration::ZERO`], no join waits.
    pub fn join_wait(mut self, limit: Duration) -> Self {
        self.join_wait = limit;
        self
    }

    /// After the connection was lost: how long what waits is kept back for other nodes that connect again
    /// later than this one, and would miss it. Default 5 s, which is the longest delay between their tries.
    ///
    /// With Redis, it is sent as soon as there are as many nodes as there were at most in the half minute
    /// before. When Redis says more, it does not know yet that some are dead. Then, and with NATS, which does
    /// not tell, it waits for as long as the connection was lost, from half a second to this. It may be sent
    /// too early where a dead connection is counted instead of a node that is not back.
    /// [`Cluster::flush`](crate::Cluster::flush) ends the wait.
    pub fn settle(mut self, limit: Duration) -> Self {
        self.settle = limit;
        self
    }

    /// The delays between tries to connect. Default from 100 ms to 5 s, half of them random.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// How often the server is asked whether it answers. Default 2 s. It must be longer than zero.
    pub fn ping_interval(mut self, interval: Duration) -> Self {
        self.ping_interval = interval;
        self
    }

    /// How long the server may take to answer. Then the connection is made anew. Default 5 s. It must be longer than zero. A process that was
    /// suspended meanwhile waits as long again, and one to which messages arrive for up to six times as long: the answer may be
    /// behind them.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Where the metrics are recorded. Default [`Telemetry::global`].
    pub fn telemetry(mut self, telemetry: Telemetry) -> Self {
        self.telemetry = telemetry;
        self
    }
}
