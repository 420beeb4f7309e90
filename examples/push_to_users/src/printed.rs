//! Selects the StatsD lines to print: one summary a second, or the lines themselves.

use std::collections::HashMap;

/// Counters that grow every second, even when idle.
const CONSTANT: [&str; 4] = [
    "pipeline.stage.busy_time",
    "pipeline.stage.event_wait_time",
    "pipeline.stage.demand_wait_time",
    "statsd.client.",
];

/// The selection, and the values printed so far.
pub struct Printed {
    kind: Kind,
    /// Gauges, by the parts of a line except the value.
    gauges: HashMap<(String, String), String>,
    /// Delivery times since the last summary in milliseconds, each with its weight.
    delivered: Vec<(f64, f64)>,
    /// Pushes handled since the last summary. They only arrive if a page is open.
    handled: f64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// One line for each second with activity.
    Summary,
    /// Lines with new values.
    News,
    /// All lines.
    All,
}

impl Printed {
    /// Prints one summary line a second.
    pub fn summary() -> Self {
        Self::new(Kind::Summary)
    }

    /// Prints the lines with new values.
    pub fn news() -> Self {
        Self::new(Kind::News)
    }

    /// Prints all lines.
    pub fn all() -> Self {
        Self::new(Kind::All)
    }

    fn new(kind: Kind) -> Self {
        Self { kind, gauges: HashMap::new(), delivered: Vec::new(), handled: 0.0 }
    }

    /// Whether a line is printed. A gauge is printed when it has changed; its first value is compared
    /// with zero.
    pub fn wants(&mut self, line: &str) -> bool {
        if self.kind == Kind::All {
            return true;
        }
        if CONSTANT.iter().any(|name| line.starts_with(name)) {
            return false;
        }
        let Some((name, rest)) = line.split_once(':') else { return true };
        if self.kind == Kind::Summary && name.starts_with("pipeline.push_delivered") {
            self.delivered.extend(sample(rest));
        }
        if self.kind == Kind::Summary && name.starts_with("pipeline.worker.process_time") {
            self.handled += sample(rest).map_or(0.0, |(_, weight)| weight);
        }
        let is_news = match rest.split_once("|g") {
            Some((value, tags)) => {
                let gauge = (name.to_owned(), tags.to_owned());
                let last = self.gauges.entry(gauge).or_insert("0".to_owned());
                let is_new = last != value;
                value.clone_into(last);
                is_new
            }
            None => true,
        };
        is_news && self.kind == Kind::News
    }

    /// A summary since the last one, if there was activity or items are queued.
    pub fn take_summary(&mut self) -> Option<String> {
        let mut times = std::mem::take(&mut self.delivered);
        times.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        let handled = std::mem::take(&mut self.handled);
        let count = times.iter().fold(0.0, |sum, (_, weight)| sum + weight);
        let (queued, workers) =
            (self.level("pipeline.events_queued"), self.level("pipeline.workers"));
        if self.kind != Kind::Summary || count + handled + queued + workers == 0.0 {
            return None;
        }
        let took = |share: f64| {
            let mut behind = count * share;
            let found = times.iter().find(|(_, weight)| {
                behind -= weight;
                behind <= 0.0
            });
            found.map_or("-".to_owned(), |(ms, _)| format!("{ms:.2} ms"))
        };
        Some(format!(
            "pushes   {count:.0} arrived, p50 {}, p99 {}; \
             {handled:.0} handled, {queued:.0} queued, {workers:.0} workers",
            took(0.5),
            took(0.99),
        ))
    }

    /// The sum of all gauges of this name.
    fn level(&self, name: &str) -> f64 {
        let is_of_it = |key: &str| key.split(';').next() == Some(name);
        let of_name = self.gauges.iter().filter(|((key, _), _)| is_of_it(key));
        of_name
            .filter_map(|(_, value)| value.parse::<f64>().ok())
            .fold(0.0, |sum, level| sum + level)
    }
}

/// The sample and its weight, from the rest of a line after its name.
fn sample(rest: &str) -> Option<(f64, f64)> {
    let mut fields = rest.split('|');
    let value = fields.next()?.parse().ok()?;
    let rate = fields.find_map(|field| field.strip_prefix('@')?.parse::<f64>().ok());
    Some((value, rate.map_or(1.0, f64::recip)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gauge_is_printed_when_it_has_changed() {
        let mut printed = Printed::news();
        let lines = ["a:0|g|#s:x", "a:1|g|#s:x", "a:1|g|#s:x", "a:1|g|#s:y", "a:0|g|#s:x"];
        assert_eq!(lines.map(|line| printed.wants(line)), [false, true, false, true, true]);
    }

    #[test]
    fn constant_counters_are_printed_only_with_all_lines() {
        let lines =
            ["statsd.client.lines:3|c", "pipeline.stage.busy_time:3|c", "events:3|c", "t:3|ms"];
        assert_eq!(lines.map(|line| Printed::news().wants(line)), [false, false, true, true]);
        assert_eq!(lines.map(|line| Printed::all().wants(line)), [true; 4]);
        assert_eq!(lines.map(|line| Printed::summary().wants(line)), [false; 4]);
    }

    #[test]
    fn a_summary_shows_arrivals_their_times_and_queued_items() {
        let mut printed = Printed::summary();
        assert_eq!(printed.take_summary(), None, "no activity");
        for line in [
            "pipeline.push_delivered:0.25|ms|@0.1",
            "pipeline.push_delivered:2.5|ms",
            "pipeline.worker.process_time:0.1|ms|@0.25|#pipeline:push",
            "pipeline.events_queued:3|g|#pipeline:push,stage:producer",
            "pipeline.workers;pipeline=push:2|g",
        ] {
            assert!(!printed.wants(line));
        }
        let summary =
            "pushes   11 arrived, p50 0.25 ms, p99 2.50 ms; 4 handled, 3 queued, 2 workers";
        assert_eq!(printed.take_summary().as_deref(), Some(summary));
        let summary = "pushes   0 arrived, p50 -, p99 -; 0 handled, 3 queued, 2 workers";
        assert_eq!(printed.take_summary().as_deref(), Some(summary), "items are still queued");
    }
}
