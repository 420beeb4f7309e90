//! Broadcasts: in a burst, in a trickle, and to many.

use std::time::Duration;

use crate::{
    bench::{Bench, Contender, Load},
    error::LoadError,
    table::Line,
};

pub(super) fn burst(bench: &Bench) -> Result<Vec<Line>, LoadError> {
    let load = Load::broadcasts(bench.sockets(1000), bench.scaled(500), None);
    let series = bench.rounds(&[
        (Contender::Target, &load),
        (Contender::Baseline, &load),
        (Contender::Raw, &load),
        (Contender::RawTens, &load),
    ])?;
    let cpu = |n: usize| series[n].figure(|measured| measured.cpu_seconds_per_million);
    let rate = |n: usize| series[n].figure(|measured| measured.frames_per_second);
    let work = "burst, 1 topic × 1000 sockets × 500 messages";
    Ok(vec![
        Line::new(format!("{work}: CPU-s per million frames (raw: one write per frame)"), cpu(0))
            .beam("12.8")
            .baseline(cpu(1))
            .raw(cpu(2))
            .at_most(0.12 * cpu(2).median, "≤ 0.12 × raw"),
        Line::new("the same (raw: one write per ten frames)", cpu(0)).raw(cpu(3)),
        Line::new("the same: frames/s (raw: one write per frame)", rate(0))
            .beam("105 k")
            .baseline(rate(1))
            .raw(rate(2))
            .at_least(2e6, "≥ 2 M"),
        Line::new("the same (raw: one write per ten frames)", rate(0)).raw(rate(3)),
    ])
}

pub(super) fn trickle(bench: &Bench) -> Result<Vec<Line>, LoadError> {
    let every = Some(Duration::from_millis(20));
    let load = Load::broadcasts(bench.sockets(1000), bench.scaled(150), every);
    let series = bench.rounds(&[
        (Contender::Target, &load),
        (Contender::Baseline, &load),
        (Contender::Raw, &load),
    ])?;
    let cpu = |n: usize| series[n].figure(|measured| measured.cpu_seconds_per_million);
    let p50 = |n: usize| series[n].figure(|measured| measured.p50_ms);
    let p99 = |n: usize| series[n].figure(|measured| measured.p99_ms);
    let work = "trickle, a message every 20 ms to 1000 sockets";
    Ok(vec![
        Line::new(format!("{work}: CPU-s per million frames"), cpu(0))
            .beam("19.4")
            .baseline(cpu(1))
            .raw(cpu(2))
            .at_most(1.25 * cpu(2).median, "≤ 1.25 × raw"),
        Line::new("the same: latency in ms, p50", p50(0))
            .beam("8.3")
            .baseline(p50(1))
            .raw(p50(2))
            .at_most(1.15 * p50(2).median, "≤ 1.15 × raw"),
        Line::new("the same, p99", p99(0))
            .beam("18.6")
            .baseline(p99(1))
            .raw(p99(2))
            .at_most(1.15 * p99(2).median, "≤ 1.15 × raw"),
    ])
}

pub(super) fn many(bench: &Bench) -> Result<Vec<Line>, LoadError> {
    let thousand = Load::broadcasts(bench.sockets(1000), bench.scaled(500), None);
    let ten = Load::broadcasts(bench.sockets(10_000), bench.scaled(100), None);
    let most = Load::broadcasts(bench.sockets(18_000), bench.scaled(100), None);
    let series = bench.rounds(&[
        (Contender::Target, &thousand),
        (Contender::Target, &ten),
        (Contender::Baseline, &ten),
        (Contender::Target, &most),
    ])?;
    let cpu = |n: usize| series[n].figure(|measured| measured.cpu_seconds_per_million);
    let limit = 1.2 * cpu(0).median;
    let work = |sockets: usize| format!("burst to {sockets} sockets: CPU-s per million frames");
    let reach = "≤ 1.2 × that at 1000";
    Ok(vec![
        Line::new(work(ten.sockets), cpu(1)).beam("21").baseline(cpu(2)).at_most(limit, reach),
        Line::new(work(most.sockets), cpu(3)).beam("18").at_most(limit, reach),
    ])
}
