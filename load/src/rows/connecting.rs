//! Sockets that connect, join, and stay.

use std::time::Duration;

use crate::{
    bench::{Bench, Contender, Load, Size, Topics},
    error::LoadError,
    figure::Figure,
    table::Line,
};

/// For clients that did not fit into the listen backlog, and retry after growing delays.
const LONG: Duration = Duration::from_secs(100);

pub(super) fn lines(bench: &Bench) -> Result<Vec<Line>, LoadError> {
    let few = Load::connecting(bench.sockets(10_000), Topics::Room);
    let many = Load { at_once: 1000, within: LONG, ..few.clone() };
    let series = bench.rounds(&[
        (Contender::Target, &few),
        (Contender::Baseline, &few),
        (Contender::Target, &many),
    ])?;
    let memory = |n: usize| series[n].figure(|measured| measured.kilobytes_per_socket);
    let joined = |n: usize| series[n].figure(|measured| measured.joined_in_seconds);
    let sockets = few.sockets;
    let work = |at_once: usize| {
        format!("{sockets} sockets connected and joined, {at_once} at once: seconds")
    };
    let hundred = Line::new(work(few.at_once), joined(0)).beam("3.0").baseline(joined(1));
    let mut thousand = Line::new(work(many.at_once), joined(2)).beam("3.0");
    if bench.size == Size::Full {
        // One round is enough for a measurement of a minute.
        let baseline = bench.measure(Contender::Baseline, &many)?;
        thousand.baseline = Figure::new(vec![baseline.joined_in_seconds]);
    }
    Ok(vec![
        Line::new("RSS per idle joined socket, kB", memory(0))
            .beam("30–36")
            .baseline(memory(1))
            .at_most(8.0, "≤ 8"),
        hundred.at_most(1.2, "≤ 1.2"),
        thousand.at_most(1.2, "≤ 1.2"),
    ])
}
