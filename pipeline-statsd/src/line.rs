//! One line of StatsD text, and the two dialects.
//!
//! Pure: no clock, no lock, no I/O. A line consists of the head of its series' name, a value, a type, an
//! optional sample rate, and the tail of the name.

use std::fmt::{self, Write as _};

use crate::name::SeriesName;

/// The format of the lines, by the receiver.
///
/// # Characters
///
/// ASCII letters and digits, `_`, `-` and `.` stay in every position. Any other character becomes
/// one `_`, except those that the dialect can carry there:
///
/// | position | [`StatsD`](Self::StatsD) | [`DogStatsD`](Self::DogStatsD) |
/// | --- | --- | --- |
/// | name, prefix | – | – |
/// | tag key | – | `/` |
/// | tag value | – | `/` `:` |
///
/// An empty name becomes `_`. A tag with an empty key or value is omitted. Of labels with one key, the one
/// with the greatest value is sent. Series whose names become
/// equal are sent under one name, and the receiver treats them as one series.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dialect {
    /// The original daemon (npm `statsd`) and receivers modelled on it.
    ///
    /// - Tags are part of the name, as graphite writes them: `name;k=v;k2=v2:1|c`.
    /// - Every histogram is sent as `ms`, because this daemon takes `h` for a counter.
    /// - It has no negative timings: negative samples are dropped and counted in
    ///   [`FlushReport::samples_skipped`](crate::FlushReport::samples_skipped).
    /// - A leading minus means "less than now" in a gauge, so a gauge below zero is sent as two
    ///   lines, `name:0|g` and `name:-3|g`. They are handed to the sink as one text, and so
    ///   travel in one datagram.
    StatsD,

    /// The Datadog agent and receivers that understand its tags: `name:1|c|#k:v,k2:v2`.
    ///
    /// Histograms with a time unit are sent as `ms`, others as `h`. A gauge below zero is sent
    /// unchanged. A receiver that treats a leading minus as a decrement, such as netdata, misreads it.
    #[default]
    DogStatsD,
}

/// The unit of a histogram's samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SampleKind {
    /// Milliseconds.
    Timing,
    /// Anything else.
    Plain,
}

impl Dialect {
    /// Appends the line of a counter that grew by `value`.
    pub(crate) fn write_counter(self, out: &mut String, series: &SeriesName, value: u64) {
        append(out, format_args!("{}:{value}|c{}", series.head(), series.tail()));
    }

    /// Appends the line of a gauge, or the two lines of a negative one in StatsD.
    ///
    /// Appends nothing and returns false if the value is not finite.
    #[must_use]
    pub(crate) fn write_gauge(self, out: &mut String, series: &SeriesName, value: f64) -> bool {
        if !value.is_finite() {
            return false;
        }
        if self == Self::StatsD && value < 0.0 {
            append(out, format_args!("{}:0|g{}\n", series.head(), series.tail()));
        }
        append(out, format_args!("{}:", series.head()));
        write_number(out, value);
        append(out, format_args!("|g{}", series.tail()));
        true
    }

    /// Appends the line of one histogram sample that represents `weight` recorded ones.
    ///
    /// Appends nothing and returns false if the dialect has no line for the value: it is not finite, or
    /// a negative timing in StatsD.
    #[must_use]
    pub(crate) fn write_sample(
        self,
        out: &mut String,
        series: &SeriesName,
        kind: SampleKind,
        value: f64,
        weight: u64,
    ) -> bool {
        let suffix = self.suffix(kind);
        if !value.is_finite() || (self == Self::StatsD && value < 0.0) {
            return false;
        }
        append(out, format_args!("{}:", series.head()));
        write_number(out, value);
        append(out, format_args!("|{suffix}"));
        write_rate(out, weight);
        out.push_str(series.tail());
        true
    }

    /// Appends one line with as many samples as fit into `limit` bytes, at least one. Returns the number
    /// of samples.
    ///
    /// Each represents `weight` recorded ones, and all are finite. Only DogStatsD has such lines.
    pub(crate) fn write_samples(
        self,
        out: &mut String,
        series: &SeriesName,
        kind: SampleKind,
        values: &[f64],
        weight: u64,
        limit: usize,
    ) -> usize {
        let mut end = format!("|{}", self.suffix(kind));
        write_rate(&mut end, weight);
        end.push_str(series.tail());
        let begin = out.len();
        out.push_str(series.head());
        let mut written = 0;
        for value in values {
            let before = out.len();
            out.push(':');
            write_number(out, *value);
            if written > 0 && out.len() - begin + end.len() > limit {
                out.truncate(before);
                break;
            }
            written += 1;
        }
        out.push_str(&end);
        written
    }

    fn suffix(self, kind: SampleKind) -> &'static str {
        match (self, kind) {
            (Self::DogStatsD, SampleKind::Plain) => "h",
            (Self::DogStatsD, SampleKind::Timing) | (Self::StatsD, _) => "ms",
        }
    }
}

/// Nine decimals keep nanoseconds in a value of seconds, and drop rounding errors beyond the measured
/// digits.
const DECIMALS: usize = 9;

/// Appends a finite number: no exponent, no trailing zeros, no `-0`.
fn write_number(out: &mut String, value: f64) {
    let start = out.len();
    append(out, format_args!("{value:.DECIMALS$}"));
    out.truncate(out.trim_end_matches('0').trim_end_matches('.').len());
    if &out[start..] == "-0" {
        out.replace_range(start.., "0");
    }
}

/// Appends `|@rate` for a line that represents `weight` samples, and nothing for one sample.
///
/// The Datadog agent takes the integer part of `1 / rate` as the number of samples. Rates are therefore
/// always one divided by a whole number, rounded down: rounded up, 1/3 would count as 2.
fn write_rate(out: &mut String, weight: u64) {
    if weight <= 1 {
        return;
    }
    // Leading zeros are not significant: a larger weight gets more digits.
    let digits = weight.ilog10() + SIGNIFICANT_DIGITS;
    let one = 10_u128.pow(digits);
    let mut scaled = one / u128::from(weight);
    if one.is_multiple_of(u128::from(weight)) && reciprocal_falls_short(weight) {
        scaled -= 1;
    }
    let width = digits as usize;
    append(out, format_args!("|@0.{scaled:0width$}"));
    out.truncate(out.trim_end_matches('0').len());
}

/// Whether `1 / rate` in floating point ends just below the weight for the exact rate, as it does
/// for 3125 and 0.00032.
fn reciprocal_falls_short(weight: u64) -> bool {
    let weight = weight as f64;
    1.0 / (1.0 / weight) < weight
}

/// Enough for `1 / rate` to be off by less than one up to a thousand million samples per line.
const SIGNIFICANT_DIGITS: u32 = 10;

fn append(out: &mut String, text: fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a String takes any text");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Naming;
    use proptest::prelude::*;

    fn number(value: f64) -> String {
        let mut out = String::from("x0.");
        write_number(&mut out, value);
        out.split_off(3)
    }

    fn rate(weight: u64) -> String {
        let mut out = String::new();
        write_rate(&mut out, weight);
        out
    }

    fn series(dialect: Dialect) -> SeriesName {
        Naming::new(dialect, "push", &[]).series("ws.time", [("k", "v"), ("k2", "v2")])
    }

    fn gauge(dialect: Dialect, value: f64) -> String {
        let mut out = String::new();
        assert!(dialect.write_gauge(&mut out, &series(dialect), value));
        out
    }

    fn sample(dialect: Dialect, kind: SampleKind, value: f64, weight: u64) -> Option<String> {
        let mut out = String::new();
        dialect.write_sample(&mut out, &series(dialect), kind, value, weight).then_some(out)
    }

    #[test]
    fn counters_are_written_in_each_dialect() {
        let mut out = String::new();
        Dialect::DogStatsD.write_counter(&mut out, &series(Dialect::DogStatsD), 5);
        assert_eq!(out, "push.ws.time:5|c|#k:v,k2:v2");

        out.clear();
        Dialect::StatsD.write_counter(&mut out, &series(Dialect::StatsD), u64::MAX);
        assert_eq!(out, "push.ws.time;k=v;k2=v2:18446744073709551615|c");
    }

    #[test]
    fn gauges_are_written_in_each_dialect() {
        assert_eq!(gauge(Dialect::DogStatsD, 1.5), "push.ws.time:1.5|g|#k:v,k2:v2");
        assert_eq!(gauge(Dialect::DogStatsD, -3.0), "push.ws.time:-3|g|#k:v,k2:v2");
        assert_eq!(gauge(Dialect::StatsD, 1.5), "push.ws.time;k=v;k2=v2:1.5|g");
    }

    #[test]
    fn a_gauge_below_zero_is_first_set_to_zero_in_statsd() {
        assert_eq!(
            gauge(Dialect::StatsD, -3.25),
            "push.ws.time;k=v;k2=v2:0|g\npush.ws.time;k=v;k2=v2:-3.25|g"
        );
        assert_eq!(gauge(Dialect::StatsD, -0.0), "push.ws.time;k=v;k2=v2:0|g");
    }

    #[test]
    fn samples_are_written_in_each_dialect() {
        let dog = |kind, weight| sample(Dialect::DogStatsD, kind, 0.75, weight).unwrap();
        assert_eq!(dog(SampleKind::Timing, 1), "push.ws.time:0.75|ms|#k:v,k2:v2");
        assert_eq!(dog(SampleKind::Timing, 10), "push.ws.time:0.75|ms|@0.1|#k:v,k2:v2");
        assert_eq!(dog(SampleKind::Plain, 2), "push.ws.time:0.75|h|@0.5|#k:v,k2:v2");

        let etsy = |kind, weight| sample(Dialect::StatsD, kind, 0.75, weight).unwrap();
        assert_eq!(etsy(SampleKind::Timing, 1), "push.ws.time;k=v;k2=v2:0.75|ms");
        assert_eq!(etsy(SampleKind::Plain, 4), "push.ws.time;k=v;k2=v2:0.75|ms|@0.25");
    }

    #[test]
    fn samples_in_a_shared_line_fill_it_up_to_its_limit() {
        let write = |values: &[f64], weight, limit| {
            let (mut out, series) = (String::new(), series(Dialect::DogStatsD));
            let kind = SampleKind::Timing;
            let written =
                Dialect::DogStatsD.write_samples(&mut out, &series, kind, values, weight, limit);
            (out, written)
        };
        let whole = "push.ws.time:1:2.5:3|ms|@0.1|#k:v,k2:v2";
        assert_eq!(write(&[1.0, 2.5, 3.0], 10, whole.len()), (whole.into(), 3));
        let part = "push.ws.time:1:2.5|ms|@0.1|#k:v,k2:v2";
        assert_eq!(write(&[1.0, 2.5, 3.0], 10, whole.len() - 1), (part.into(), 2));
        assert_eq!(write(&[1.0, 2.5], 1, 0), ("push.ws.time:1|ms|#k:v,k2:v2".into(), 1));
    }

    #[test]
    fn samples_without_a_line_in_the_dialect_write_nothing() {
        assert_eq!(sample(Dialect::StatsD, SampleKind::Timing, -1.0, 1), None);
        assert_eq!(sample(Dialect::DogStatsD, SampleKind::Timing, f64::NAN, 1), None);
        assert_eq!(sample(Dialect::DogStatsD, SampleKind::Plain, f64::INFINITY, 1), None);
        assert!(sample(Dialect::DogStatsD, SampleKind::Plain, -1.0, 1).is_some());

        let mut out = String::new();
        let nan = Dialect::StatsD.write_gauge(&mut out, &series(Dialect::StatsD), f64::NAN);
        assert!(!nan && out.is_empty());
    }

    #[test]
    fn numbers_are_plain_and_short() {
        let table = [
            (0.0, "0"),
            (-0.0, "0"),
            (100.0, "100"),
            (0.75, "0.75"),
            (0.1 + 0.2, "0.3"),
            (-2.5, "-2.5"),
            (1.0 / 3.0, "0.333333333"),
            (0.000_000_001, "0.000000001"),
            (0.000_000_000_1, "0"),
            (-0.000_000_000_1, "0"),
            (9_007_199_254_740_993.0, "9007199254740992"),
            (1e21, "1000000000000000000000"),
        ];
        for (value, text) in table {
            assert_eq!(number(value), text, "{value:?}");
        }
    }

    #[test]
    fn rates_are_one_divided_by_the_weight() {
        let table = [
            (0, ""),
            (1, ""),
            (2, "|@0.5"),
            (3, "|@0.3333333333"),
            (10, "|@0.1"),
            (3125, "|@0.0003199999999"),
            (1024, "|@0.0009765625"),
            (1_000_000_000_000, "|@0.000000000001"),
        ];
        for (weight, text) in table {
            assert_eq!(rate(weight), text, "{weight}");
        }
        // The largest possible weight has a rate above zero.
        assert!(rate(u64::MAX).starts_with("|@0.0000000000000000000542101086"));
    }

    #[test]
    fn a_receiver_that_truncates_recovers_the_weight() {
        for weight in 2..=300_000_u64 {
            let text = rate(weight);
            let parsed: f64 = text.strip_prefix("|@").unwrap().parse().unwrap();
            assert_eq!((1.0 / parsed).trunc(), weight as f64, "{text}");
        }
    }

    proptest! {
        #[test]
        fn numbers_read_back_to_within_half_a_decimal(value: f64) {
            prop_assume!(value.is_finite());
            let text = number(value);
            prop_assert!(text.bytes().all(|b| b.is_ascii_digit() || b == b'.' || b == b'-'));
            prop_assert!(!text.ends_with('.') && text != "-0");
            let back: f64 = text.parse().unwrap();
            prop_assert!((back - value).abs() <= 0.5e-9 + value.abs() * f64::EPSILON);
        }

        #[test]
        fn everyday_numbers_read_back_to_within_half_a_decimal(value in -1e3..1e3_f64) {
            let back: f64 = number(value).parse().unwrap();
            prop_assert!((back - value).abs() <= 0.501e-9);
        }

        #[test]
        fn any_weight_is_recovered(weight in 2..1_000_000_000_u64) {
            let text = rate(weight);
            let parsed: f64 = text.strip_prefix("|@").unwrap().parse().unwrap();
            prop_assert_eq!((1.0 / parsed).trunc(), weight as f64);
        }
    }
}
