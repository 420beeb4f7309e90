//! Broadcasts from one node to others, compared with messages of the bare client libraries.

use pipeline_test_support::servers::{Kind, Server};
use tokio::runtime::Runtime;

use crate::{
    bench::{Bench, Size},
    error::LoadError,
    nodes::{self, Traffic, bare, server},
    rows::stages::line,
    table::Line,
};

pub(super) fn lines(bench: &Bench) -> Result<Vec<Line>, LoadError> {
    let (messages, paced) = match bench.size {
        Size::Full => (500_000, 5_000),
        Size::Quick => (100_000, 1_000),
        Size::Tiny => (2_000, 20),
    };
    let mut lines = Vec::new();
    for (kind, name) in [(Kind::Redis, "Redis"), (Kind::Nats, "NATS")] {
        if Runtime::new()?.block_on(Server::start(kind)).is_none() {
            continue;
        }
        let to_one = Traffic { messages, topics: 1, others: 1, listening: 1 };
        for topics in [1, 1_000] {
            let load = Traffic { topics, ..to_one };
            let plural = if topics == 1 { "topic" } else { "topics" };
            let ours = async || nodes::rate(&server(kind).await?, kind, load).await;
            let bares = async || bare::rate(&server(kind).await?, kind, load).await;
            let rate = line(
                bench,
                &format!("{name}, node to node, {topics} {plural}: broadcasts/s"),
                async || Ok(ours().await?.per_second),
                async || Ok(bares().await?.per_second),
            )?;
            let baseline = rate.baseline.as_ref().map_or(f64::NAN, |figure| figure.median);
            lines.push(rate.at_least(0.6 * baseline, "≥ 0.6 × baseline"));
            lines.push(line(
                bench,
                &format!("{name}, the same: µs of processor time for each"),
                async || Ok(ours().await?.processor_micros),
                async || Ok(bares().await?.processor_micros),
            )?);
        }
        // The baseline is the same library with one other node, which listens.
        let alone = Traffic { topics: 1_000, ..to_one };
        let of = |others, listening| Traffic { others, listening, ..alone };
        let nodes = [
            // It encodes, sends and dispatches in one task.
            (of(0, 0), "the node itself listens", None),
            (of(3, 1), "one of three other nodes listens", Some(0.8)),
            (of(3, 2), "two of three other nodes listen", Some(0.8 / 2.0)),
            (of(3, 3), "three of three other nodes listen", Some(0.8 / 3.0)),
        ];
        for (load, who, share) in nodes {
            let rate = async |load| nodes::rate(&server(kind).await?, kind, load).await;
            let speed = line(
                bench,
                &format!("{name}, {who}: broadcasts/s"),
                async || Ok(rate(load).await?.per_second),
                async || Ok(rate(alone).await?.per_second),
            )?;
            let baseline = speed.baseline.as_ref().map_or(f64::NAN, |figure| figure.median);
            lines.push(match share {
                Some(share) => {
                    speed.at_least(share * baseline, &format!("≥ {share:.2} × one other node"))
                }
                None => speed,
            });
            lines.push(line(
                bench,
                &format!("{name}, the same: µs of processor time for each"),
                async || Ok(rate(load).await?.processor_micros),
                async || Ok(rate(alone).await?.processor_micros),
            )?);
        }
        for (part, percent) in [(50, "p50"), (99, "p99")] {
            let at = |times: Vec<f64>| {
                let at = times.len() * part / 100;
                times.get(at).copied().unwrap_or(f64::NAN)
            };
            let ours = async |to_another| {
                nodes::latencies(&server(kind).await?, kind, paced, to_another).await.map(at)
            };
            lines.push(line(
                bench,
                &format!("{name}, one at a time, ms until it arrives: {percent}"),
                async || ours(true).await,
                async || bare::latencies(&server(kind).await?, kind, paced).await.map(at),
            )?);
            lines.push(line(
                bench,
                &format!("{name}, the same next to one node alone: {percent}"),
                async || ours(true).await,
                async || ours(false).await,
            )?);
        }
    }
    Ok(lines)
}
