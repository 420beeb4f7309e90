//! A quantity measured several times. Pure.

use std::fmt;

use serde::Serialize;

/// The median of a quantity, and its values.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Figure {
    pub(crate) median: f64,
    pub(crate) rounds: Vec<f64>,
}

impl Figure {
    /// None without values.
    pub(crate) fn new(rounds: Vec<f64>) -> Option<Self> {
        let mut sorted = rounds.clone();
        sorted.sort_by(f64::total_cmp);
        let median = *sorted.get(sorted.len() / 2)?;
        let lower = sorted[(sorted.len() - 1) / 2];
        Some(Self { median: f64::midpoint(lower, median), rounds })
    }
}

/// Formats a number with three digits, in thousands or millions where it is large.
pub(crate) struct Short(pub(crate) f64);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, unit) = match self.0.abs() {
            million if million >= 999_500.0 => (self.0 / 1e6, " M"),
            thousand if thousand >= 9_995.0 => (self.0 / 1e3, " k"),
            _ => (self.0, ""),
        };
        let decimals = match number.abs() {
            large if large >= 99.95 => 0,
            middle if middle >= 9.995 => 1,
            _ => 2,
        };
        write!(f, "{number:.decimals$}{unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let median = |rounds: &[f64]| Figure::new(rounds.to_vec()).map(|figure| figure.median);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn numbers_are_short() {
        let table = [
            (0.3249, "0.32"),
            (4.75, "4.75"),
            (18.64, "18.6"),
            (149.4, "149"),
            (2_500.0, "2500"),
            (148_600.0, "149 k"),
            (2_061_000.0, "2.06 M"),
            (461_200_000.0, "461 M"),
        ];
        for (number, text) in table {
            assert_eq!(Short(number).to_string(), text);
        }
    }
}
