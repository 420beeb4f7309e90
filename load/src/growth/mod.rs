//! How cost grows with the number of sockets and topics.

use std::{fmt::Write as _, fs, path::Path, time::Duration};

use pipeline_load::chart::{Curve, Panel, chart};

use crate::{
    bench::{Bench, Contender, Load, Topics},
    error::LoadError,
};

/// The numbers of sockets on a topic.
const SOCKETS: [usize; 6] = [100, 300, 1000, 3000, 10_000, 18_000];

/// The baseline is not measured above this number of sockets.
const BASELINE_SOCKETS: usize = 10_000;

/// The approximate number of frames in a burst.
const FRAMES: usize = 500_000;

/// The numbers of topics other than the measured one.
const TOPICS: [usize; 6] = [1, 10, 100, 1000, 10_000, 100_000];

/// The number of sockets on the measured topic.
const ON_THE_SMALL_TOPIC: usize = 10;

/// The maximum number of sockets for the other topics.
const ON_THE_OTHERS: usize = 2000;

/// Measures both, and writes the figures and a chart into a folder.
pub(crate) fn measure(bench: &Bench, folder: &Path) -> Result<(), LoadError> {
    let panels = [by_sockets(bench)?, by_topics(bench)?];
    fs::write(folder.join("growth.csv"), csv(&panels))?;
    fs::write(folder.join("growth.svg"), chart(&panels))?;
    print!("{}", csv(&panels));
    Ok(())
}

fn by_sockets(bench: &Bench) -> Result<Panel, LoadError> {
    let contenders = [
        (Contender::Target, "pipeline"),
        (Contender::Baseline, "baseline: axum, tokio's broadcast"),
        (Contender::Raw, "raw: one thread, one write per frame"),
    ];
    let mut curves = contenders.map(|(_, name)| Curve::new(name));
    for sockets in SOCKETS.map(|sockets| bench.sockets(sockets)) {
        let messages = bench.scaled((FRAMES / sockets).clamp(100, 2000) as u64);
        let load = Load::broadcasts(sockets, messages, None);
        let measured: Vec<usize> = (0..contenders.len())
            .filter(|n| contenders[*n].0 != Contender::Baseline || sockets <= BASELINE_SOCKETS)
            .collect();
        let loads: Vec<_> = measured.iter().map(|n| (contenders[*n].0, &load)).collect();
        for (n, series) in measured.iter().zip(bench.rounds(&loads)?) {
            let cost = series.figure(|measured| measured.cpu_seconds_per_million);
            curves[*n].points.push((sockets as f64, cost.median));
        }
        eprintln!("measured {sockets} sockets");
    }
    Ok(Panel {
        title: "A burst to the sockets of one topic",
        x: "sockets",
        y: "CPU-seconds per million frames",
        curves: curves.into(),
    })
}

fn by_topics(bench: &Bench) -> Result<Panel, LoadError> {
    let mut curve = Curve::new("pipeline");
    for others in TOPICS.map(|topics| bench.topics(topics)) {
        let sockets = others.clamp(ON_THE_SMALL_TOPIC, ON_THE_OTHERS);
        let broadcasts = bench.scaled(20_000);
        let load = Load {
            request: Some(format!("/bcast?topic=room:small&n={broadcasts}&size=64&every_us=100")),
            frames: broadcasts * ON_THE_SMALL_TOPIC as u64,
            topics: Topics::Many { others, sockets, on_the_small: ON_THE_SMALL_TOPIC },
            within: Duration::from_secs(60),
            ..Load::connecting(sockets, Topics::Room)
        };
        let series = &bench.rounds(&[(Contender::Target, &load)])?[0];
        let cost = series.figure(|measured| measured.cpu_seconds_per_million);
        let a_broadcast = cost.median * ON_THE_SMALL_TOPIC as f64;
        curve.points.push((others as f64, a_broadcast));
        eprintln!("measured {others} other topics");
    }
    Ok(Panel {
        title: "A broadcast to the ten sockets of a small topic",
        x: "other topics",
        y: "CPU-microseconds per broadcast",
        curves: vec![curve],
    })
}

fn csv(panels: &[Panel]) -> String {
    let mut text = String::from("chart,series,x,y\n");
    for panel in panels {
        for curve in &panel.curves {
            for (x, y) in &curve.points {
                writeln!(text, "{} by {},{:?},{x},{y:.4}", panel.y, panel.x, curve.name)
                    .expect("a String takes any text");
            }
        }
    }
    text
}
