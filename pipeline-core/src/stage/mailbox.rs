//! The mailbox of a stage: any task sends messages, and the stage takes all pending messages at
//! once.
//!
//! It has no bound of its own. [`Address`](super::slot::Address) limits the senders.

use std::{
    collections::VecDeque,
    mem,
    task::{Context, Poll, Waker},
};

use crate::sync::{Arc, Mutex};

/// Creates a mailbox: its sending and its receiving half.
pub(super) fn mailbox<T>() -> (MailboxSender<T>, Mailbox<T>) {
    let shared =
        Arc::new(Mutex::new(Shared { messages: VecDeque::new(), reader: None, closed: false }));
    (MailboxSender(shared.clone()), Mailbox { shared, taken: VecDeque::new() })
}

/// The sending half.
pub(super) struct MailboxSender<T>(Arc<Mutex<Shared<T>>>);

/// The receiving half. Dropping it closes the mailbox.
pub(crate) struct Mailbox<T> {
    shared: Arc<Mutex<Shared<T>>>,
    /// Messages that were taken and are still to be read. The lock is taken once for all of them.
    taken: VecDeque<T>,
}

struct Shared<T> {
    messages: VecDeque<T>,
    /// The waker of the waiting stage. The first message takes it; later ones have nothing to wake.
    reader: Option<Waker>,
    closed: bool,
}

impl<T> MailboxSender<T> {
    /// Returns the message if the mailbox is closed.
    pub(super) fn send(&self, message: T) -> Result<(), T> {
        let mut shared = self.0.lock();
        if shared.closed {
            return Err(message);
        }
        shared.messages.push_back(message);
        let reader = shared.reader.take();
        drop(shared);
        if let Some(reader) = reader {
            reader.wake();
        }
        Ok(())
    }
}

impl<T> Clone for MailboxSender<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Mailbox<T> {
    /// The next taken message.
    pub(super) fn next(&mut self) -> Option<T> {
        self.taken.pop_front()
    }

    /// Whether [`next`](Self::next) has a message.
    pub(super) fn has_next(&self) -> bool {
        !self.taken.is_empty()
    }

    /// Takes the pending messages without waiting. Returns whether [`next`](Self::next) has a
    /// message.
    pub(super) fn take(&mut self) -> bool {
        if !self.has_next() {
            mem::swap(&mut self.shared.lock().messages, &mut self.taken);
        }
        self.has_next()
    }

    /// Whether there is a message of a kind, taken or not.
    pub(super) fn has(&self, mut kind: impl FnMut(&T) -> bool) -> bool {
        self.taken.iter().any(&mut kind) || self.shared.lock().messages.iter().any(kind)
    }

    /// Waits for messages and takes them.
    pub(super) fn poll_take(&mut self, context: &Context<'_>) -> Poll<()> {
        if self.has_next() {
            return Poll::Ready(());
        }
        let mut shared = self.shared.lock();
        if shared.messages.is_empty() {
            match &mut shared.reader {
                Some(reader) => reader.clone_from(context.waker()),
                None => shared.reader = Some(context.waker().clone()),
            }
            return Poll::Pending;
        }
        // Both buffers keep their allocation.
        mem::swap(&mut shared.messages, &mut self.taken);
        Poll::Ready(())
    }

    /// Closes the mailbox. Pending messages can still be read.
    pub(super) fn close(&mut self) {
        let mut shared = self.shared.lock();
        shared.closed = true;
        self.taken.append(&mut shared.messages);
    }
}

impl<T> Drop for Mailbox<T> {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(all(test, not(interleavings)))]
mod tests {
    use super::*;

    fn all(mailbox: &mut Mailbox<u32>) -> Vec<u32> {
        std::iter::from_fn(|| mailbox.next()).collect()
    }

    #[test]
    fn messages_are_read_in_the_order_of_arrival() {
        let (sender, mut mailbox) = mailbox();
        let context = Context::from_waker(Waker::noop());
        assert!(mailbox.poll_take(&context).is_pending());
        assert!(sender.send(1).is_ok() && sender.send(2).is_ok());
        assert!(mailbox.poll_take(&context).is_ready());
        assert_eq!(mailbox.next(), Some(1));
        assert!(sender.send(3).is_ok());
        assert!(mailbox.poll_take(&context).is_ready(), "earlier messages are left");
        assert_eq!(all(&mut mailbox), [2]);
        assert!(mailbox.poll_take(&context).is_ready());
        assert_eq!(all(&mut mailbox), [3]);
        assert!(mailbox.poll_take(&context).is_pending());
    }

    #[test]
    fn messages_can_be_taken_without_waiting() {
        let (sender, mut mailbox) = mailbox();
        assert!(!mailbox.take());
        assert!(sender.send(1).is_ok() && mailbox.take());
        assert!(sender.send(2).is_ok() && mailbox.take(), "earlier messages are left");
        assert_eq!(all(&mut mailbox), [1]);
        assert!(mailbox.take());
        assert_eq!(all(&mut mailbox), [2]);
    }

    #[test]
    fn a_closed_mailbox_returns_new_messages_and_yields_pending_ones() {
        let (sender, mut mailbox) = mailbox();
        assert!(sender.send(1).is_ok());
        assert!(mailbox.poll_take(&Context::from_waker(Waker::noop())).is_ready());
        assert!(sender.send(2).is_ok());
        mailbox.close();
        assert_eq!(sender.send(3), Err(3));
        assert_eq!(all(&mut mailbox), [1, 2]);
    }

    #[test]
    fn pending_messages_are_dropped_with_the_mailbox() {
        let (sender, mailbox) = mailbox();
        let message = Arc::new(());
        assert!(sender.send(message.clone()).is_ok());
        drop(mailbox);
        assert_eq!(Arc::strong_count(&message), 1);
        assert!(sender.send(message).is_err());
    }
}

/// The senders and the reader interleave in every order, up to a number of preemptions. A lost
/// wakeup shows as a deadlock.
#[cfg(all(test, interleavings))]
mod interleavings {
    use std::future::poll_fn;

    use loom::{future::block_on, model::Builder, thread};

    use super::*;

    fn in_every_order(case: impl Fn() + Send + Sync + 'static) {
        let mut builder = Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(case);
    }

    #[test]
    fn a_reader_gets_all_messages_of_each_sender_in_order() {
        in_every_order(|| {
            let (sender, mut mailbox) = mailbox();
            let senders = [10, 20].map(|first| {
                let sender = sender.clone();
                thread::spawn(move || {
                    assert!(sender.send(first).is_ok() && sender.send(first + 1).is_ok());
                })
            });
            let read = block_on(async {
                let mut read = Vec::new();
                while read.len() < 4 {
                    poll_fn(|context| mailbox.poll_take(context)).await;
                    read.extend(std::iter::from_fn(|| mailbox.next()));
                }
                read
            });
            for sender in senders {
                sender.join().expect("the sender does not panic");
            }
            let of =
                |tens: u32| read.iter().copied().filter(|n| n / 10 == tens).collect::<Vec<_>>();
            assert_eq!((of(1), of(2)), (vec![10, 11], vec![20, 21]));
        });
    }

    #[test]
    fn messages_to_a_closing_mailbox_are_read_or_returned() {
        in_every_order(|| {
            let (sender, mut mailbox) = mailbox();
            let sender = thread::spawn(move || [1, 2].map(|message| sender.send(message).is_ok()));
            mailbox.close();
            let read: Vec<u32> = std::iter::from_fn(|| mailbox.next()).collect();
            let sent = sender.join().expect("the sender does not panic");
            let expected: Vec<u32> = [1, 2]
                .into_iter()
                .zip(sent)
                .filter_map(|(message, sent)| sent.then_some(message))
                .collect();
            assert_eq!(read, expected);
        });
    }
}
