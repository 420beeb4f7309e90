//! Whether a quantity grows over time as a leak does. Pure.
//!
//! Clients come and go at random, and bursts come now and then, so every quantity of a server goes up and down. Its
//! floor, the least value of each window, hardly does: what is only used for a moment is not in it, and what is
//! leaked is.

/// The windows into which a series is split, in minutes. What happens in one has little to do with the next: clients
/// do something every few seconds.
const WINDOW: f64 = 0.5;

/// Half the width of a confidence interval in standard deviations: about 95 %.
const DEVIATIONS: usize = 2;

/// The slope of a series, and the limits between which it is with a probability of about 95 %.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Trend {
    pub(crate) low: f64,
    pub(crate) slope: f64,
    pub(crate) high: f64,
}

/// The judgement of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The slope is certainly less than that of a leak.
    Level,
    /// The slope is certainly more than half of that of a leak.
    Leaks,
    /// The series is too short, or too uneven.
    Unclear,
}

impl Trend {
    /// The trend of a series' floor by the method of Theil and Sen: the median of the slopes between any two
    /// points. A single step does not change it much, unless it is in the middle.
    pub(crate) fn of(points: &[(f64, f64)]) -> Self {
        let floors = floors(points);
        let mut slopes = Vec::new();
        for (index, from) in floors.iter().enumerate() {
            slopes.extend(floors[index + 1..].iter().map(|to| (to.1 - from.1) / (to.0 - from.0)));
        }
        slopes.sort_unstable_by(f64::total_cmp);
        // The deviation of the sum of Kendall's signs.
        let (n, pairs) = (floors.len(), slopes.len());
        let deviation = (n * n.saturating_sub(1) * (2 * n + 5) / 18).isqrt() + 1;
        let spread = DEVIATIONS * deviation;
        let low = pairs.checked_sub(spread).and_then(|place| slopes.get(place / 2));
        let high = slopes.get((pairs + spread) / 2);
        Self {
            low: low.copied().unwrap_or(f64::NEG_INFINITY),
            slope: slopes.get(pairs / 2).copied().unwrap_or_default(),
            high: high.copied().unwrap_or(f64::INFINITY),
        }
    }

    /// The judgement, given the slope that a leak would cause.
    pub(crate) fn verdict(&self, leak: f64) -> Verdict {
        if self.low > leak / 2.0 {
            Verdict::Leaks
        } else if self.high < leak {
            Verdict::Level
        } else {
            Verdict::Unclear
        }
    }
}

/// The difference between the usual value of the last third of a series, and that of its first third.
pub(crate) fn rise(points: &[(f64, f64)]) -> f64 {
    let third = points.len() / 3;
    let usual = |points: &[(f64, f64)]| {
        let mut values: Vec<f64> = points.iter().map(|point| point.1).collect();
        values.sort_unstable_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or_default()
    };
    if third == 0 { 0.0 } else { usual(&points[points.len() - third..]) - usual(&points[..third]) }
}

/// The mean of the values of points; 0 for none.
pub(crate) fn mean(points: &[(f64, f64)]) -> f64 {
    points.iter().map(|point| point.1).sum::<f64>() / points.len().max(1) as f64
}

/// The points with the least values, one of each window.
fn floors(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let window = |point: &(f64, f64)| (point.0 / WINDOW).floor();
    let floor = |window: &[(f64, f64)]| window.iter().min_by(|a, b| a.1.total_cmp(&b.1)).copied();
    points.chunk_by(|a, b| window(a) == window(b)).filter_map(floor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    const MIB: f64 = 1024.0 * 1024.0;

    /// A leak of a hundred bytes of each of 3,800 clients in a minute.
    const LEAK: f64 = 100.0 * 3800.0;

    /// Fifteen minutes with a sample per second: 60 MiB, up to 8 MiB more for moments, and this.
    fn series(seed: u64, seconds: u32, more: impl Fn(f64) -> f64) -> Vec<(f64, f64)> {
        let mut random = Random::new(seed);
        let sample = |second| {
            let minutes = f64::from(second) / 60.0;
            (minutes, 60.0 * MIB + random.below(8 << 20) as f64 + more(minutes))
        };
        (0..seconds).map(sample).collect()
    }

    fn verdict(seed: u64, more: impl Fn(f64) -> f64) -> Verdict {
        Trend::of(&series(seed, 900, more)).verdict(LEAK)
    }

    #[test]
    fn a_leak_of_a_hundred_bytes_of_each_client_is_found_and_a_level_line_is_none() {
        for seed in 0..50 {
            assert_eq!(verdict(seed, |minutes| LEAK * minutes), Verdict::Leaks, "{seed}");
            assert_eq!(verdict(seed, |minutes| 9.0 * LEAK * minutes), Verdict::Leaks, "{seed}");
            let in_steps = |minutes: f64| LEAK * minutes.floor();
            assert_eq!(verdict(seed, in_steps), Verdict::Leaks, "{seed}");
            assert_eq!(verdict(seed, |_| 0.0), Verdict::Level, "{seed}");
            assert_eq!(verdict(seed, |minutes| -LEAK * minutes), Verdict::Level, "{seed}");
        }
    }

    #[test]
    fn a_step_is_no_leak_and_a_large_one_is_a_rise() {
        for seed in 0..50 {
            for at in [3.0, 7.5, 12.0] {
                let step = |minutes| if minutes < at { 0.0 } else { 4.0 * MIB };
                assert_ne!(verdict(seed, step), Verdict::Leaks, "{seed}, {at}");
            }
            let early = |minutes| if minutes < 3.0 { 0.0 } else { 4.0 * MIB };
            assert_eq!(verdict(seed, early), Verdict::Level, "{seed}");
            let large = |minutes| if minutes < 12.0 { 0.0 } else { 20.0 * MIB };
            let rose = |more: &dyn Fn(f64) -> f64| rise(&series(seed, 900, more)) / MIB;
            assert!((0.0..1.0).contains(&rose(&|_| 0.0).abs()), "{seed}");
            assert!((9.0..21.0).contains(&rose(&large)), "{seed}: {}", rose(&large));
        }
    }

    #[test]
    fn a_short_series_is_unclear() {
        for seed in 0..50 {
            let short = series(seed, 30, |_| 0.0);
            assert_eq!(Trend::of(&short).verdict(LEAK), Verdict::Unclear, "{seed}");
        }
        for count in 0..4 {
            let line: Vec<_> = (0..count).map(|n| (f64::from(n), f64::from(n))).collect();
            let trend = Trend::of(&line);
            assert!(trend.low < 0.0 && trend.high > 1e9, "{count}: {trend:?}");
            assert_eq!(trend.verdict(0.1), Verdict::Unclear, "{count}");
        }
    }

    #[test]
    fn the_slope_is_that_of_the_line() {
        let line: Vec<_> = (0..10).map(|n| (f64::from(n), 5.0 + 3.0 * f64::from(n))).collect();
        let Trend { low, slope, high } = Trend::of(&line);
        assert_eq!([low, slope, high].map(|slope| (slope * 1e6).round() / 1e6), [3.0; 3]);
        assert!((rise(&line) - 21.0).abs() < 1e-9 && (mean(&line) - 18.5).abs() < 1e-9);
        assert!(rise(&[]).abs() < 1e-9 && mean(&[]).abs() < 1e-9);
    }
}
