//! Closing a part of the sockets, so that their clients connect to other nodes.

use std::time::Duration;

use metrics::Counter;
use tokio::time::{Instant, sleep};

use super::sockets::Sockets;

/// How often sockets are closed in a second, where there are more to close than that.
const STEPS: usize = 20;

/// Which sockets an endpoint closes, and how fast, so that their clients connect again through the load
/// balancer: see [`Endpoint::shed`](crate::Endpoint::shed). The oldest are closed first.
///
/// ```
/// use std::time::Duration;
///
/// use pipeline_ws_sink::endpoint::Shed;
///
/// let tenth = Shed::share(0.1).per_second(50);
/// let to_the_mean = Shed::down_to(20_000).per_second(200);
/// let of_yesterday = Shed::older_than(Duration::from_secs(24 * 3600));
/// # drop((tenth, to_the_mean, of_yesterday));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use]
pub struct Shed {
    which: Which,
    per_second: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Which {
    Share(f64),
    DownTo(usize),
    OlderThan(Duration),
}

impl Shed {
    /// This share of the open sockets, from 0 to 1.
    pub const fn share(share: f64) -> Self {
        Self::new(Which::Share(share))
    }

    /// So many that this number is left, such as the mean of the nodes. It ends early when clients leave
    /// by themselves. Those that are about to end for another reason count until they have, so a few more
    /// may be closed than are needed.
    pub const fn down_to(sockets: usize) -> Self {
        Self::new(Which::DownTo(sockets))
    }

    /// Those that have been open for at least this long.
    pub const fn older_than(age: Duration) -> Self {
        Self::new(Which::OlderThan(age))
    }

    const fn new(which: Which) -> Self {
        Self { which, per_second: 100 }
    }

    /// How many sockets are closed per second, at least one. Default 100.
    pub const fn per_second(mut self, sockets: usize) -> Self {
        self.per_second = if sockets == 0 { 1 } else { sockets };
        self
    }

    /// How many of these sockets to close. They are ordered by age, the oldest first.
    fn count(self, opened: &[(Instant, usize)], now: Instant) -> usize {
        match self.which {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_precision_loss,
                clippy::cast_sign_loss,
                reason = "a share of a number of sockets, not negative"
            )]
            Which::Share(share) => (opened.len() as f64 * share.clamp(0.0, 1.0)).round() as usize,
            Which::DownTo(sockets) => opened.len().saturating_sub(sockets),
            Which::OlderThan(age) => {
                opened.partition_point(|(at, _)| now.saturating_duration_since(*at) >= age)
            }
        }
    }

    /// How many are closed at a time, and the time from one to the next.
    fn step(self) -> (usize, Duration) {
        let at_once = self.per_second.div_ceil(STEPS);
        let at_once = u32::try_from(at_once).unwrap_or(u32::MAX);
        let step = Duration::from_secs(1).saturating_mul(at_once);
        let per_second = u32::try_from(self.per_second).unwrap_or(u32::MAX);
        (at_once as usize, step / per_second)
    }

    /// Closes the sockets, and counts them. Returns how many were closed. It ends when the endpoint drains.
    pub(super) async fn run(self, sockets: &Sockets, counter: &Counter) -> usize {
        let mut opened = sockets.opened();
        opened.sort_unstable();
        let count = self.count(&opened, Instant::now());
        let (at_once, step) = self.step();
        let (mut closed, mut oldest) = (0, opened.into_iter());
        while closed < count {
            let mut of_step = 0;
            while of_step < at_once && closed < count {
                let is_enough = match self.which {
                    Which::DownTo(left) => sockets.staying() <= left,
                    _ => false,
                };
                if is_enough || sockets.are_closed() {
                    return closed;
                }
                // Clients that have left meanwhile are passed over.
                let Some((at, key)) = oldest.next() else { return closed };
                if sockets.shed(key, at) {
                    (of_step, closed) = (of_step + 1, closed + 1);
                    counter.increment(1);
                }
            }
            if closed < count {
                sleep(step).await;
            }
        }
        closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_closed_and_as_many_as_are_asked_for() {
        let start = Instant::now();
        let now = start + Duration::from_secs(100);
        let opened: Vec<_> = (0..10).map(|n| (start + Duration::from_secs(10 * n), 7)).collect();
        let count = |shed: Shed| shed.count(&opened, now);
        assert_eq!([0.0, 0.25, 1.0, 7.0, -1.0].map(|it| count(Shed::share(it))), [0, 3, 10, 10, 0]);
        assert_eq!([0, 4, 10, 11].map(|it| count(Shed::down_to(it))), [10, 6, 0, 0]);
        let older = |seconds| count(Shed::older_than(Duration::from_secs(seconds)));
        assert_eq!([0, 10, 11, 50, 100, 101].map(older), [10, 10, 9, 6, 1, 0]);
        assert_eq!(count(Shed::share(f64::NAN)), 0);
    }

    #[test]
    fn the_rate_is_kept_whether_it_is_low_or_high() {
        let step = |per_second| Shed::share(1.0).per_second(per_second).step();
        assert_eq!(step(1), (1, Duration::from_secs(1)));
        assert_eq!(step(20), (1, Duration::from_millis(50)));
        assert_eq!(step(100), (5, Duration::from_millis(50)));
        assert_eq!(step(1_000), (50, Duration::from_millis(50)));
        assert_eq!(Shed::share(1.0).per_second(0), Shed::share(1.0).per_second(1));
    }
}
