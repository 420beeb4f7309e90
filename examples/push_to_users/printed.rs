//! What a newcomer sees of StatsD lines: one line a second that sums up, or the lines themselves.

use std::collections::HashMap;

/// Counters that grow each second, whatever happens.
const CONSTANT: [&str; 2] = ["pipeline.time_", "statsd.client."];

/// What is printed, and what was printed so far.
pub struct Printed {
    kind: Kind,
    /// By everything of a gauge's line but the value.
    gauges: HashMap<(String, String), String>,
    /// How long pushes took since the last summary, in milliseconds, and how many took so long.
    delivered: Vec<(f64, f64)>,
    /// How many pushes have been handled since the last summary. They arrive only where a page is open.
    handled: f64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// One line a second in which something happened.
    Summary,
    /// Lines that tell something new.
    News,
    /// All lines.
    All,
}

impl Printed {
    /// Prints a line a second that sums up.
    pub fn summary() -> Self {
        Self::new(Kind::Summary)
    }

    /// Prints the lines that tell something new.
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

    /// Whether a line is to be printed. A gauge is when it is not what it was, which is zero at first.
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

    /// What happened since the last summary, if anything did, or something still waits.
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

    /// What the gauges of this name come to, whatever their tags.
    fn level(&self, name: &str) -> f64 {
        let is_of_it = |key: &str| key.split(';').next() == Some(name);
        let of_name = self.gauges.iter().filter(|((key, _), _)| is_of_it(key));
        of_name
            .filter_map(|(_, value)| value.parse::<f64>().ok())
            .fold(0.0, |sum, level| sum + level)
    }
}

/// A sample and how many it stands for, of what follows its name.
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
    fn what_grows_each_second_is_printed_only_if_all_is() {
        let lines = ["statsd.client.lines:3|c", "pipeline.time_busy:3|c", "events:3|c", "t:3|ms"];
        assert_eq!(lines.map(|line| Printed::news().wants(line)), [false, false, true, true]);
        assert_eq!(lines.map(|line| Printed::all().wants(line)), [true; 4]);
        assert_eq!(lines.map(|line| Printed::summary().wants(line)), [false; 4]);
    }

    #[test]
    fn a_summary_tells_how_many_arrived_how_long_they_took_and_what_waits() {
        let mut printed = Printed::summary();
        assert_eq!(printed.take_summary(), None, "nothing has happened");
        for line in [
            "pipeline.push_delivered:0.25|ms|@0.1",
            "pipeline.push_delivered:2.5|ms",
            "pipeline.worker.process_time:0.1|ms|@0.25|#pipeline:push",
            "pipeline.events_queued:3|g|#pipeline:push,stage:producer",
            "pipeline.workers;pipeline=push:2|g",
        ] {
            assert!(!printed.wants(line));
        }
        let told = "pushes   11 arrived, p50 0.25 ms, p99 2.50 ms; 4 handled, 3 queued, 2 workers";
        assert_eq!(printed.take_summary().as_deref(), Some(told));
        let told = "pushes   0 arrived, p50 -, p99 -; 0 handled, 3 queued, 2 workers";
        assert_eq!(printed.take_summary().as_deref(), Some(told), "these still wait");
    }
}
