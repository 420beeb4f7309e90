//! The durable source in a SQLite file, compared with the bare library.

use crate::{
    bench::{Bench, Size},
    error::LoadError,
    rows::stages::line,
    sources::sqlite,
    table::Line,
};

/// What a source reaches of the bare client library, at least, for these batches.
pub(super) const TARGETS: [(usize, f64, &str); 2] =
    [(100, 0.6, "≥ 0.6 × baseline"), (10, 0.4, "≥ 0.4 × baseline")];

pub(super) fn lines(bench: &Bench) -> Result<Vec<Line>, LoadError> {
    let items = match bench.size {
        Size::Full => 100_000,
        Size::Quick => 20_000,
        Size::Tiny => 640,
    };
    let pushes = line(
        bench,
        "SQLite, 64 pushers: durable pushes/s",
        async || sqlite::pushes(items).await,
        async || sqlite::bare_pushes(items).await,
    )?;
    let mut lines = vec![pushes.at_least(40_000.0, "≥ 40 k")];
    for (at_once, share, target) in TARGETS {
        let line = line(
            bench,
            &format!("SQLite, source with batches of {at_once}: items/s"),
            async || sqlite::source(at_once, items).await,
            async || sqlite::bare_source(at_once, items).await,
        )?;
        let baseline = line.baseline.as_ref().map_or(f64::NAN, |figure| figure.median);
        lines.push(line.at_least(share * baseline, target));
    }
    Ok(lines)
}
