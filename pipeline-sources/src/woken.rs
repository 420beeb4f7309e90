//! The items whose delays are to be ended, kept until their broker has ended them.

use tokio::sync::mpsc;

/// How many items may wait for a call of the broker. The delays of others end by themselves.
const MOST_WAITING: usize = 100_000;

/// How often the broker is called for the same items. After that their delays end by themselves.
const MOST_TRIES: u32 = 5;

/// The items whose delays are to be ended. They outlive sessions.
#[derive(Debug)]
pub(crate) struct Woken<R> {
    waiting: mpsc::Receiver<R>,
    /// Those that the broker is called for, and how many calls have failed.
    group: Vec<R>,
    tries: u32,
}

impl<R> Woken<R> {
    /// The place where items wait, which are none yet, and what adds some.
    pub(crate) fn new() -> (mpsc::Sender<R>, Self) {
        let (sender, waiting) = mpsc::channel(MOST_WAITING);
        (sender, Self { waiting, group: Vec::new(), tries: 0 })
    }

    /// Waits for items, and returns them, `most` at a time. They are the same until [`done`](Self::done) is called or they are
    /// given up. None, if no more come.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no item is lost.
    pub(crate) async fn next(&mut self, most: usize) -> &[R] {
        if self.group.is_empty() {
            self.waiting.recv_many(&mut self.group, most).await;
        }
        &self.group
    }

    /// The call for the items that were returned last has failed.
    pub(crate) fn failed(&mut self) {
        self.tries += 1;
    }

    /// The delays of the items that were returned last are ended.
    pub(crate) fn done(&mut self) {
        self.group.clear();
        self.tries = 0;
    }

    /// Gives up items for which too many calls have failed. Returns how many.
    pub(crate) fn give_up(&mut self) -> usize {
        if self.tries < MOST_TRIES {
            return 0;
        }
        let count = self.group.len();
        self.done();
        count
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn items_are_returned_until_they_are_done_or_given_up_and_the_others_after_them() {
        let (sender, mut woken) = Woken::new();
        (1..=5).for_each(|n| sender.try_send(n).unwrap());
        for _ in 0..2 * MOST_TRIES {
            // A session that ends for another reason is no try.
            assert_eq!(woken.next(2).now_or_never(), Some(&[1, 2][..]));
            assert_eq!(woken.give_up(), 0);
        }
        woken.failed();
        woken.done();
        for _ in 0..MOST_TRIES {
            assert_eq!(woken.give_up(), 0);
            assert_eq!(woken.next(2).now_or_never(), Some(&[3, 4][..]));
            woken.failed();
        }
        assert_eq!(woken.give_up(), 2);
        assert_eq!(woken.next(2).now_or_never(), Some(&[5][..]));
        woken.done();
        for _ in 0..2 * MOST_TRIES {
            assert_eq!(woken.give_up(), 0);
            assert_eq!(woken.next(2).now_or_never(), None, "to wait for some is no try");
        }
        drop(sender);
        assert_eq!(woken.next(2).now_or_never(), Some(&[][..]));
    }

    #[test]
    fn no_more_items_wait_than_may() {
        let (sender, _woken) = Woken::new();
        assert_eq!(
            (0..2 * MOST_WAITING).filter(|n| sender.try_send(*n).is_ok()).count(),
            MOST_WAITING
        );
    }
}
