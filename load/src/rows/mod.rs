//! The rows of the table, a kind of load each.

mod broadcasts;
mod connecting;
mod pushes;
mod stages;

use clap::ValueEnum;

use crate::{bench::Bench, error::LoadError, table::Line};

/// Rows that are measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rows {
    /// Broadcasts as fast as they come, to 1000 sockets
    Burst,
    /// A broadcast every 20 ms to 1000 sockets
    Trickle,
    /// Broadcasts to 10,000 and 18,000 sockets
    Many,
    /// Timed pushes through a pipeline, as fast as they go
    Pipeline,
    /// Timed pushes through a pipeline, at a pace
    Paced,
    /// 10,000 sockets that connect and stay
    Connect,
    /// Stages and dispatchers, without sockets
    Stages,
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
        }
    }
}
