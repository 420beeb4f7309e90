//! Sample rates, and the choice of the values that are sent. Pure.

use std::collections::HashMap;

use crate::random::Random;

/// Sample rates by name. A rate is stored as the whole number N of one in N, because receivers convert
/// it so.
#[derive(Clone, Debug)]
pub(crate) struct SampleRates {
    general: u64,
    by_name: HashMap<String, u64>,
}

impl SampleRates {
    /// None if a rate is not above 0 and at most 1.
    pub(crate) fn new(general: f64, by_name: &[(String, f64)]) -> Option<Self> {
        let by_name = by_name.iter().map(|(name, rate)| Some((name.clone(), one_in(*rate)?)));
        Some(Self { general: one_in(general)?, by_name: by_name.collect::<Option<_>>()? })
    }

    /// N, where one in N values of this name is sent.
    pub(crate) fn one_in(&self, name: &str) -> u64 {
        self.by_name.get(name).copied().unwrap_or(self.general)
    }
}

/// The lowest rate from which receivers can compute an exact count.
const MIN_RATE: f64 = 1e-9;

fn one_in(rate: f64) -> Option<u64> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is between 1 and a thousand million"
    )]
    let one_in = |rate: f64| rate.max(MIN_RATE).recip().round() as u64;
    (rate > 0.0 && rate <= 1.0).then(|| one_in(rate))
}

/// Chooses one at random from each N consecutive values.
#[derive(Debug)]
pub(crate) struct Thinning {
    one_in: u64,
    seen: u64,
    chosen: u64,
    random: Random,
}

impl Thinning {
    pub(crate) fn new(one_in: u64, seed: u64) -> Self {
        Self { one_in, seen: 0, chosen: 0, random: Random::new(seed) }
    }

    pub(crate) fn one_in(&self) -> u64 {
        self.one_in
    }

    /// Whether the next value is chosen.
    pub(crate) fn chooses(&mut self) -> bool {
        if self.seen == 0 {
            self.chosen = self.random.below(self.one_in);
        }
        let chooses = self.seen == self.chosen;
        self.seen = (self.seen + 1) % self.one_in;
        chooses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_one_divided_by_a_whole_number() {
        let table = [(1.0, 1), (0.7, 1), (0.5, 2), (0.3, 3), (0.1, 10), (1e-9, 1_000_000_000)];
        for (rate, whole) in table {
            assert_eq!(one_in(rate), Some(whole), "{rate}");
        }
        assert_eq!(one_in(f64::MIN_POSITIVE), Some(1_000_000_000));
        for rate in [0.0, -0.5, 1.1, f64::NAN, f64::INFINITY] {
            assert_eq!(one_in(rate), None, "{rate}");
        }
    }

    #[test]
    fn a_name_can_have_its_own_rate() {
        let rates = SampleRates::new(0.5, &[("a".into(), 0.1), ("b".into(), 1.0)]).unwrap();
        assert_eq!(["a", "b", "c"].map(|name| rates.one_in(name)), [10, 1, 2]);
        assert!(SampleRates::new(0.5, &[("a".into(), 2.0)]).is_none());
    }

    #[test]
    fn one_of_each_n_consecutive_values_is_chosen_at_random() {
        let mut thinning = Thinning::new(10, 7);
        let chosen: Vec<_> =
            (0..1000).map(|_| (0..10).filter(|_| thinning.chooses()).count()).collect();
        assert!(chosen.iter().all(|count| *count == 1));
        let places: Vec<_> =
            (0..1000).filter_map(|_| (0..10).find(|_| thinning.chooses())).collect();
        assert!((0..10).all(|place| places.contains(&place)), "{places:?}");
        let mut all = Thinning::new(1, 7);
        assert!((0..100).all(|_| all.chooses()));
    }
}
