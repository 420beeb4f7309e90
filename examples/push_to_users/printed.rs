//! Which StatsD lines a newcomer wants to see.

use std::collections::HashMap;

/// Counters that grow each second, whatever happens.
const CONSTANT: [&str; 2] = ["pipeline.time_", "statsd.client."];

/// What was printed so far.
pub struct Printed {
    all: bool,
    /// By everything of a gauge's line but the value.
    gauges: HashMap<(String, String), String>,
}

impl Printed {
    /// Prints all lines, or those that tell something new.
    pub fn new(all: bool) -> Self {
        Self { all, gauges: HashMap::new() }
    }

    /// Whether a line is to be printed. A gauge is when it is not what it was, which is zero at first.
    pub fn wants(&mut self, line: &str) -> bool {
        if self.all {
            return true;
        }
        if CONSTANT.iter().any(|name| line.starts_with(name)) {
            return false;
        }
        let Some((name, rest)) = line.split_once(':') else { return true };
        let Some((value, tags)) = rest.split_once("|g") else { return true };
        let last = self.gauges.entry((name.to_owned(), tags.to_owned())).or_insert("0".to_owned());
        let is_new = last != value;
        value.clone_into(last);
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gauge_is_printed_when_it_has_changed() {
        let mut printed = Printed::new(false);
        let lines = ["a:0|g|#s:x", "a:1|g|#s:x", "a:1|g|#s:x", "a:1|g|#s:y", "a:0|g|#s:x"];
        assert_eq!(lines.map(|line| printed.wants(line)), [false, true, false, true, true]);
    }

    #[test]
    fn what_grows_each_second_is_printed_only_if_all_is() {
        let lines = ["statsd.client.lines:3|c", "pipeline.time_busy:3|c", "events:3|c", "t:3|ms"];
        let printed = |all| lines.map(|line| Printed::new(all).wants(line));
        assert_eq!(printed(false), [false, false, true, true]);
        assert_eq!(printed(true), [true; 4]);
    }
}
