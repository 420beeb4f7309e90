//! Timed pushes through a pipeline, each to a user's own topic.

use crate::{
    bench::{Bench, Contender, Load, Size, Topics},
    error::LoadError,
    peers::raw::STAMPED_TOGETHER,
    table::Line,
};

/// At full speed.
pub(super) fn fast(bench: &Bench) -> Result<Vec<Line>, LoadError> {
    let users = bench.sockets(1000);
    let pushes = bench.scaled(200_000);
    let load = Load {
        request: Some(format!("/pipe?users={users}&n={pushes}")),
        frames: pushes,
        ..Load::connecting(users, Topics::Users)
    };
    let series = bench.rounds(&[(Contender::Target, &load), (Contender::Raw, &load)])?;
    let cpu = |n: usize| series[n].figure(|measured| measured.cpu_seconds_per_million);
    let rate = |n: usize| series[n].figure(|measured| measured.frames_per_second);
    let work = "pipeline to 1000 user topics, timed, 200 k pushes";
    Ok(vec![
        Line::new(format!("{work}: CPU-s per million (raw: one write per push)"), cpu(0))
            .beam("36")
            .raw(cpu(1))
            .at_most(4.0, "≤ 4"),
        Line::new("the same: pushes/s delivered", rate(0))
            .beam("40 k")
            .raw(rate(1))
            .at_least(4e5, "≥ 400 k"),
    ])
}

/// At a fixed rate, with the BEAM's p50, p99 and processor time.
pub(super) fn paced(bench: &Bench) -> Result<Vec<Line>, LoadError> {
    let paces = [
        (1000, "1 k", ["0.47", "1.8", "84"]),
        (10_000, "10 k", ["1.9", "4.7", "42"]),
        (20_000, "20 k", ["3.3", "5.8", "37"]),
    ];
    // Each takes at least a second.
    let paces = if bench.size == Size::Tiny { &paces[..1] } else { &paces };
    let mut lines = Vec::new();
    for (rate, short, [beam_p50, beam_p99, beam_cpu]) in paces {
        let users = bench.sockets(1000);
        // A burst every 10 ms has at least one push.
        let (rate, secs) = (bench.scaled(*rate).max(100), bench.scaled(3));
        let load = Load {
            request: Some(format!("/paced?users={users}&rate={rate}&secs={secs}")),
            frames: rate * secs,
            timed: true,
            ..Load::connecting(users, Topics::Users)
        };
        let together = Load {
            request: Some(format!("/paced?rate={rate}&secs={secs}&{STAMPED_TOGETHER}")),
            ..load.clone()
        };
        let series = bench.rounds(&[
            (Contender::Target, &load),
            (Contender::Raw, &load),
            (Contender::Raw, &together),
        ])?;
        let cpu = |n: usize| series[n].figure(|measured| measured.cpu_seconds_per_million);
        let p50 = |n: usize| series[n].figure(|measured| measured.p50_ms);
        let p99 = |n: usize| series[n].figure(|measured| measured.p99_ms);
        let work = format!("timed pushes to 1000 user topics, {short} a second");
        let soon = "≤ 1.5 × raw + 0.1 ms";
        lines.extend([
            Line::new(format!("{work}: ms from enqueue to client, p50"), p50(0))
                .beam(beam_p50)
                .raw(p50(1))
                .at_most(1.5 * p50(1).median + 0.1, soon),
            Line::new("the same, p99", p99(0))
                .beam(beam_p99)
                .raw(p99(1))
                .at_most(1.5 * p99(1).median + 0.1, soon),
            Line::new("the same, p50 (raw: one enqueue time per burst)", p50(0)).raw(p50(2)),
            Line::new("the same, p99", p99(0)).raw(p99(2)),
            Line::new("the same: CPU-s per million pushes", cpu(0))
                .beam(beam_cpu)
                .raw(cpu(1))
                .at_most(2.0 * cpu(1).median, "≤ 2 × raw"),
        ]);
    }
    Ok(lines)
}
