//! Pure: how long items are postponed, so that they leave room for new ones.

use std::time::Duration;

use tokio::time::Instant;

/// Over how long it is measured how many items the pipeline takes.
const WINDOW: Duration = Duration::from_secs(1);

/// A longer time without a full pull was a pause, which says nothing about the pace.
const PAUSE: Duration = Duration::from_secs(30);

/// The longest delay that an item gets for the sake of new ones.
const LONGEST: Duration = Duration::from_secs(3600);

/// The share of new items in the pulls of a source.
///
/// The server delivers what is due again before what is new. Each of N postponed items is due once in its delay, and a
/// pipeline takes as many items as it can. So a delay of the time in which it takes 2 N items leaves half of them to
/// new ones. It is needed only while the server has more items than the pipeline takes.
#[derive(Debug, Default)]
pub(super) struct Share {
    /// The number of items that this source has postponed, less those that have come again.
    postponed: u64,
    /// When the last window has begun, and how many items were pulled since, if each pull had as many as were asked for.
    window: Option<(Instant, u32)>,
    /// How long the pipeline takes for an item, if the server has more than it takes, and when that was measured.
    per_item: Option<(Duration, Instant)>,
}

impl Share {
    /// A pull was answered with so many items, of which some had been delivered before.
    pub(super) fn pulled(&mut self, asked: usize, items: usize, again: usize, now: Instant) {
        self.postponed = self.postponed.saturating_sub(u64::try_from(again).unwrap_or(u64::MAX));
        if items < asked {
            (self.window, self.per_item) = (None, None);
            return;
        }
        let Some((begun, before)) = self.window else {
            self.window = Some((now, 0));
            return;
        };
        let all = before.saturating_add(u32::try_from(items).unwrap_or(u32::MAX));
        let time = now.saturating_duration_since(begun);
        self.window = Some((begun, all));
        if time >= PAUSE {
            (self.window, self.per_item) = (Some((now, 0)), None);
        } else if time >= WINDOW {
            self.per_item = time.checked_div(all).map(|per_item| (per_item, now)).or(self.per_item);
            self.window = Some((now, 0));
        }
    }

    /// So many items are delivered and not done, in all sources together.
    pub(super) fn pending(&mut self, pending: u64) {
        self.postponed = self.postponed.min(pending);
    }

    /// An item is postponed for so long at least. Returns for how long it is.
    pub(super) fn postpone(&mut self, after: Duration, now: Instant) -> Duration {
        self.postponed = self.postponed.saturating_add(1);
        let recent = |at: &Instant| now.saturating_duration_since(*at) < PAUSE;
        let Some((per_item, _)) = self.per_item.filter(|(_, at)| recent(at)) else { return after };
        let twice = u32::try_from(self.postponed.saturating_mul(2)).unwrap_or(u32::MAX);
        per_item.saturating_mul(twice).min(LONGEST).max(after)
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::collections::{BinaryHeap, VecDeque};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A server with items that are postponed each time, and a new one after each interval, and a pipeline. Returns how
    /// long the new ones have waited, and how often the others were delivered in the last half of the time.
    fn run(
        postponed: usize,
        delay: Duration,
        per_item: Duration,
        (every, for_time): (Duration, Duration),
    ) -> (Vec<Duration>, usize) {
        let begin = Instant::now();
        let (mut now, end) = (begin, begin + for_time);
        let mut share = Share::default();
        let mut new: VecDeque<(Instant, bool)> = (0..postponed).map(|_| (now, true)).collect();
        let mut due = BinaryHeap::new();
        let (mut next, mut waited, mut looks) = (begin + every, Vec::new(), 0);
        while now < end {
            while next <= now {
                new.push_back((next, false));
                next += every;
            }
            let (is_again, item) = match due.peek() {
                Some(Reverse(at)) if *at <= now => {
                    due.pop();
                    (true, Some((now, true)))
                }
                _ => (false, new.pop_front()),
            };
            share.pulled(1, usize::from(item.is_some()), usize::from(is_again), now);
            now += per_item;
            match item {
                Some((_, true)) => {
                    due.push(Reverse(now + share.postpone(delay, now)));
                    looks += usize::from(now > begin + for_time / 2);
                }
                Some((added, false)) => waited.push(now - added),
                None => {}
            }
        }
        waited.extend(new.iter().filter(|(_, kept)| !kept).map(|(added, _)| end - *added));
        (waited, looks)
    }

    #[test]
    fn new_items_get_half_of_the_pulls_however_many_others_are_due_again() {
        // They would be due 200 times as often as the pipeline can take.
        let (waited, looks) = run(2_000, SECOND, SECOND / 10, (SECOND / 4, 3000 * SECOND));
        // The others were new once, and came before them.
        let late = waited.iter().skip(waited.len() / 4 * 3).max().unwrap();
        assert!(*late < 20 * SECOND, "{late:?}");
        assert!(looks > 5_000, "those that are due again get the rest: {looks}");
    }

    #[test]
    fn delays_are_as_asked_for_while_the_pipeline_takes_all() {
        let mut share = Share::default();
        let mut now = Instant::now();
        for _ in 0..100 {
            share.pulled(10, 9, 0, now);
            now += SECOND;
            assert_eq!(share.postpone(SECOND, now), SECOND);
        }
        // A hundred have not come again, and it takes ten a second.
        for _ in 0..100 {
            share.pulled(1, 1, 0, now);
            now += SECOND / 10;
        }
        assert_eq!(share.postpone(SECOND, now).as_millis().div_ceil(100), 101 * 2);
        assert_eq!(share.postpone(60 * SECOND, now), 60 * SECOND, "a longer one stays");
        share.pending(10);
        assert_eq!(share.postpone(SECOND, now).as_millis().div_ceil(100), 11 * 2);
        share.pulled(1, 1, 1, now);
        share.pending(u64::MAX);
        assert_eq!(share.postpone(SECOND, now).as_millis().div_ceil(100), 11 * 2);
        // It had not as many as were asked for.
        share.pulled(1, 0, 0, now);
        assert_eq!(share.postpone(SECOND, now), SECOND);
    }

    #[test]
    fn a_pause_says_nothing_about_the_pace() {
        let mut share = Share { postponed: 1_000, ..Share::default() };
        let begin = Instant::now();
        share.pulled(1, 1, 0, begin);
        // Nothing was asked for, since a service was away.
        let later = begin + 1_800 * SECOND;
        share.pulled(10, 10, 0, later);
        assert_eq!(share.postpone(SECOND, later), SECOND);
        // And what was measured before a pause is not used after it.
        let then = later + 2 * SECOND;
        share.pulled(10, 10, 0, then);
        assert!(share.postpone(SECOND, then) > SECOND);
        assert_eq!(share.postpone(SECOND, then + PAUSE), SECOND);
    }

    #[test]
    fn a_delay_has_an_end() {
        let mut share = Share { postponed: u64::MAX, ..Share::default() };
        let now = Instant::now();
        share.pulled(1, 1, 0, now);
        let later = now + 20 * SECOND;
        share.pulled(1, 1, 0, later);
        assert_eq!(share.postpone(SECOND, later), LONGEST);
        assert_eq!(share.postpone(Duration::MAX, later), Duration::MAX);
    }
}
