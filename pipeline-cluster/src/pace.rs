//! How many bytes are given to the server at once, so that it can answer in time. Pure.

use std::time::Duration;

use crate::packing::Message;

/// The first portion, the smallest one and the largest one, in bytes. A message is never split.
const FIRST: usize = 64 << 10;
const SMALLEST: usize = 4 << 10;
const LARGEST: usize = 1 << 20;

/// How often a message is sent alone without an answer in time, before it is given up: the way to the server is too slow
/// for it.
const TRIES: u32 = 5;

/// The size of the portions in which messages are sent.
///
/// The server answers when it has taken a portion. One that is too large for a slow way would never be answered in time,
/// however often it was sent, and nothing behind it would be sent either.
#[derive(Debug)]
pub(crate) struct Pace {
    bytes: usize,
    /// How long the server may take to answer.
    limit: Duration,
}

impl Pace {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { bytes: FIRST, limit }
    }

    /// How many of these messages are sent at once: at least one, if there is one.
    pub(crate) fn portion(&self, messages: &[Message]) -> usize {
        let mut bytes = 0;
        let fitting = messages.iter().take_while(|message| {
            bytes += message.bytes.len();
            bytes <= self.bytes
        });
        fitting.count().max(1).min(messages.len())
    }

    /// A portion of so many bytes was answered after this time.
    pub(crate) fn answered(&mut self, bytes: usize, took: Duration) {
        if took > self.limit / 2 {
            self.shrink();
        } else if took < self.limit / 8 && bytes >= self.bytes / 2 {
            self.bytes = (self.bytes * 2).min(LARGEST);
        }
    }

    /// These messages wait, and the server has not answered in time. Returns whether the first of them is given up.
    pub(crate) fn missed(&mut self, messages: &mut [Message]) -> bool {
        let was_alone = self.portion(messages) == 1;
        self.shrink();
        match messages.first_mut() {
            Some(first) if was_alone => {
                first.tries += 1;
                first.tries == TRIES
            }
            _ => false,
        }
    }

    fn shrink(&mut self) {
        self.bytes = (self.bytes / 2).max(SMALLEST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channels::Channel;

    const LIMIT: Duration = Duration::from_secs(1);

    fn messages(count: usize, length: usize) -> Vec<Message> {
        let bytes = vec![0; length].into();
        vec![
            Message { channel: Channel::All, bytes, frames: 1, is_request: false, tries: 0 };
            count
        ]
    }

    /// How long the portions take over a way of so many bytes in a second, of which `None` were not answered in time.
    fn over(rate: usize, pace: &mut Pace, mut left: Vec<Message>) -> Vec<Option<Duration>> {
        let mut all = Vec::new();
        while !left.is_empty() {
            let sent: Vec<_> = left.drain(..pace.portion(&left)).collect();
            let bytes = sent.iter().map(|it| it.bytes.len()).sum::<usize>();
            let took = LIMIT * u32::try_from(bytes).unwrap() / u32::try_from(rate).unwrap();
            if took <= LIMIT {
                pace.answered(bytes, took);
                all.push(Some(took));
            } else {
                left.splice(..0, sent);
                all.push(None);
                if pace.missed(&mut left) {
                    left.remove(0);
                }
            }
        }
        all
    }

    #[test]
    fn portions_become_as_large_as_a_fast_server_takes_them() {
        let (mut pace, all) = (Pace::new(LIMIT), messages(10_000, 1_000));
        let portions = over(100_000_000, &mut pace, all);
        assert_eq!(portions.len(), 13, "64 kB, 128, 256, 512, and nine of 1 MB");
        assert_eq!(pace.portion(&messages(10_000, 1_000)), 1_048);
        // A few messages say nothing about many.
        let mut pace = Pace::new(LIMIT);
        (0..100).for_each(|_| pace.answered(1_000, Duration::ZERO));
        assert_eq!(pace.portion(&messages(100, 1_000)), 65);
    }

    #[test]
    fn portions_become_so_small_that_a_slow_server_answers_in_time() {
        let (mut pace, all) = (Pace::new(LIMIT), messages(500, 1_000));
        let portions = over(20_000, &mut pace, all);
        let late = portions.iter().filter(|took| took.is_none()).count();
        assert_eq!(late, 2, "64 and 32 kB are too large");
        let last = &portions[portions.len() - 40..];
        assert!(last.iter().all(|took| took.unwrap() <= LIMIT / 2), "{last:?}");
    }

    #[test]
    fn a_message_that_is_too_long_for_the_way_is_given_up_and_the_next_is_sent() {
        let mut pace = Pace::new(LIMIT);
        let all = [messages(1, 100_000), messages(1, 1_000)].concat();
        let portions = over(20_000, &mut pace, all);
        assert_eq!(portions.iter().filter(|took| took.is_none()).count(), 5);
        assert_eq!(portions.len(), 6);
    }

    #[test]
    fn each_message_has_its_tries() {
        let mut pace = Pace::new(LIMIT);
        let mut requests = messages(8, 100_000);
        // A request is not sent again on the next connection: the one behind it has not been tried.
        for _ in 0..8 {
            for _ in 1..TRIES {
                assert!(!pace.missed(&mut requests));
            }
            requests.remove(0);
        }
        let mut one = messages(1, 100_000);
        let given_up = (0..TRIES).map(|_| pace.missed(&mut one)).collect::<Vec<_>>();
        assert_eq!(given_up, [false, false, false, false, true]);
    }

    #[test]
    fn what_is_empty_has_no_portion() {
        assert_eq!(Pace::new(LIMIT).portion(&[]), 0);
    }
}
