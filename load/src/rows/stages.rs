//! Stages and dispatchers, compared with hand-written code.

use std::time::Duration;

use tokio::runtime::Runtime;

use crate::{
    bench::{Bench, Size},
    error::LoadError,
    figure::Figure,
    stages::{Window, baseline, library},
    table::Line,
};

/// The number of consumers of a dispatcher.
const CONSUMERS: u64 = 4;

pub(super) fn lines(bench: &Bench) -> Result<Vec<Line>, LoadError> {
    let window = match bench.size {
        Size::Full => window(150, 500),
        Size::Quick => window(100, 200),
        Size::Tiny => window(10, 20),
    };
    let events = bench.scaled(2_000_000);
    let mut lines = vec![
        line(
            bench,
            "producer → consumer, demand 10/5: events/s",
            async || library::two_stages(10, window).await,
            async || Ok(baseline::two_stages(5, window).await),
        )?
        .beam("1.7 M")
        .at_least(12e6, "≥ 12 M"),
        line(
            bench,
            "the same, 1000/500",
            async || library::two_stages(1000, window).await,
            async || Ok(baseline::two_stages(500, window).await),
        )?
        .beam("19 M")
        .at_least(250e6, "≥ 250 M"),
        line(
            bench,
            "three stages, 1000/500",
            async || library::three_stages(1000, window).await,
            async || Ok(baseline::three_stages(500, window).await),
        )?
        .beam("9.7 M")
        .at_least(120e6, "≥ 120 M"),
    ];
    for (at_once, beam) in [(10, "153 k"), (100, "181 k"), (1000, "149 k")] {
        let line = line(
            bench,
            &format!("consumer supervisor, empty job, {at_once}: jobs/s"),
            async || library::workers(at_once, window).await,
            async || Ok(baseline::workers(at_once, window).await),
        )?;
        let baseline = line.baseline.as_ref().map_or(f64::NAN, |figure| figure.median);
        lines.push(
            line.beam(beam).at_least(2e6, "≥ 2 M").at_least(1.2 * baseline, "≥ 1.2 × baseline"),
        );
    }
    lines.extend([
        line(
            bench,
            "push from outside: events/s",
            async || library::pushes(events).await,
            async || Ok(baseline::pushes(events).await),
        )?
        .beam("0.4–0.48 M")
        .at_least(6e6, "≥ 6 M"),
        line(
            bench,
            "broadcast dispatcher × 4: deliveries/s",
            async || library::broadcast(CONSUMERS, window).await,
            async || Ok(baseline::broadcast(CONSUMERS, window).await),
        )?
        .beam("34 M")
        .at_least(200e6, "≥ 200 M"),
        line(
            bench,
            "partition dispatcher × 4: events/s",
            async || library::partition(CONSUMERS, window).await,
            async || Ok(baseline::partition(CONSUMERS, window).await),
        )?
        .beam("4.8 M")
        .at_least(50e6, "≥ 50 M"),
    ]);
    Ok(lines)
}

/// Measures both in turn, each on its own runtime.
pub(super) fn line(
    bench: &Bench,
    work: &str,
    library: impl AsyncFn() -> Result<f64, LoadError>,
    baseline: impl AsyncFn() -> Result<f64, LoadError>,
) -> Result<Line, LoadError> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..bench.rounds {
        ours.push(Runtime::new()?.block_on(library())?);
        theirs.push(Runtime::new()?.block_on(baseline())?);
    }
    let rounds = "there is at least one round";
    Ok(Line::new(work, Figure::new(ours).expect(rounds))
        .baseline(Figure::new(theirs).expect(rounds)))
}

fn window(warm_up: u64, counted: u64) -> Window {
    Window { warm_up: Duration::from_millis(warm_up), counted: Duration::from_millis(counted) }
}
