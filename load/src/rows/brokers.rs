//! Durable sources at servers, compared with the bare client libraries.

use pipeline_test_support::servers::{Kind, Server};
use tokio::runtime::Runtime;

use super::sources::TARGETS;
use crate::{
    bench::{Bench, Broker, Size},
    error::LoadError,
    rows::stages::line,
    sources::{kafka::Cluster, nats, postgres, rabbitmq, redis},
    table::Line,
};

pub(super) fn lines(bench: &Bench) -> Result<Vec<Line>, LoadError> {
    let items = match bench.size {
        Size::Full => 20_000,
        Size::Quick => 10_000,
        Size::Tiny => 640,
    };
    let is_asked_for = |broker| bench.broker.is_none_or(|only| only == broker);
    let mut lines = Vec::new();
    macro_rules! rows {
        ($name:literal, $broker:expr, $kind:expr, $of:ident) => {
            // One that is not installed has no rows.
            if is_asked_for($broker)
                && let Some(server) = Runtime::new()?.block_on(Server::start($kind))
            {
                let url = server.url();
                for target in TARGETS {
                    lines.push(compared(
                        bench,
                        $name,
                        target,
                        async |at_once| $of::source(&url, at_once, items).await,
                        async |at_once| $of::bare(&url, at_once, items).await,
                    )?);
                }
            }
        };
    }
    rows!("PostgreSQL", Broker::Postgres, Kind::Postgres, postgres);
    rows!("Redis", Broker::Redis, Kind::Redis, redis);
    rows!("NATS", Broker::Nats, Kind::Nats, nats);
    rows!("RabbitMQ", Broker::Rabbitmq, Kind::RabbitMq, rabbitmq);
    if !is_asked_for(Broker::Kafka) {
        return Ok(lines);
    }
    let cluster = Cluster::start()?;
    for target in TARGETS {
        lines.push(compared(
            bench,
            "Kafka (mock cluster)",
            target,
            async |at_once| cluster.source(at_once, items).await,
            async |at_once| cluster.bare(at_once, items).await,
        )?);
    }
    Ok(lines)
}

fn compared(
    bench: &Bench,
    name: &str,
    (at_once, share, target): (usize, f64, &str),
    source: impl AsyncFn(usize) -> Result<f64, LoadError>,
    bare: impl AsyncFn(usize) -> Result<f64, LoadError>,
) -> Result<Line, LoadError> {
    let work = format!("{name}, source with batches of {at_once}: items/s");
    let line = line(bench, &work, async || source(at_once).await, async || bare(at_once).await)?;
    let baseline = line.baseline.as_ref().map_or(f64::NAN, |figure| figure.median);
    Ok(line.at_least(share * baseline, target))
}
