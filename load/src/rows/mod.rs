//! The rows of the table, grouped by load.

mod broadcasts;
mod brokers;
mod connecting;
mod nodes;
mod pushes;
mod sources;
mod stages;

use clap::ValueEnum;

use crate::{bench::Bench, error::LoadError, table::Line};

/// Rows that are measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rows {
    /// Broadcasts at full speed to 1000 sockets
    Burst,
    /// A broadcast every 20 ms to 1000 sockets
    Trickle,
    /// Broadcasts to 10,000 and 18,000 sockets
    Many,
    /// Timed pushes through a pipeline at full speed
    Pipeline,
    /// Timed pushes through a pipeline at a fixed rate
    Paced,
    /// 10,000 sockets that connect and stay
    Connect,
    /// Stages and dispatchers, without sockets
    Stages,
    /// The durable source in a SQLite file, and the bare library
    Sources,
    /// Broadcasts between nodes, and the bare client libraries
    Nodes,
    /// Durable sources at servers that are installed, and the bare client libraries
    Brokers,
}

impl Rows {
    pub(crate) fn measure(self, bench: &Bench) -> Result<Vec<Line>, LoadError> {
        match self {
            Self::Burst => broadcasts::burst(bench),
            Self::Trickle => broadcasts::trickle(bench),
            Self::Many => broadcasts::many(bench),
            Self::Pipeline => pushes::fast(bench),
            Self::Paced => pushes::paced(bench),
            Self::Connect => connecting::lines(bench),
            Self::Stages => stages::lines(bench),
            Self::Sources => sources::lines(bench),
            Self::Nodes => nodes::lines(bench),
            Self::Brokers => brokers::lines(bench),
        }
    }
}
