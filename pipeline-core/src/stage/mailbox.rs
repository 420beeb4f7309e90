//! The mailbox of a stage: any task puts mail in, and the stage takes out all there is at once.
//!
//! It has no bound of its own. Who may put what in is the business of [`Address`](super::slot::Address).

use std::{
    collections::VecDeque,
    mem,
    task::{Context, Poll, Waker},
};

use crate::sync::{Arc, Mutex};

/// A mailbox: where mail is put in, and where it is taken out.
pub(super) fn mailbox<T>() -> (Letterbox<T>, Mailbox<T>) {
    let shared =
        Arc::new(Mutex::new(Shared { mail: VecDeque::new(), reader: None, closed: false }));
    (Letterbox(shared.clone()), Mailbox { shared, taken: VecDeque::new() })
}

/// Where mail is put in.
pub(super) struct Letterbox<T>(Arc<Mutex<Shared<T>>>);

/// Where mail is taken out. Dropping it closes the mailbox.
pub(crate) struct Mailbox<T> {
    shared: Arc<Mutex<Shared<T>>>,
    /// What was taken out and is still to be read. The lock is taken once for all of it.
    taken: VecDeque<T>,
}

struct Shared<T> {
    mail: VecDeque<T>,
    /// Who waits for mail. The first that comes wakes it; the rest finds nobody to wake.
    reader: Option<Waker>,
    closed: bool,
}

impl<T> Letterbox<T> {
    /// Gives the mail back if the mailbox is closed.
    pub(super) fn send(&self, mail: T) -> Result<(), T> {
        let mut shared = self.0.lock();
        if shared.closed {
            return Err(mail);
        }
        shared.mail.push_back(mail);
        let reader = shared.reader.take();
        drop(shared);
        if let Some(reader) = reader {
            reader.wake();
        }
        Ok(())
    }
}

impl<T> Clone for Letterbox<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Mailbox<T> {
    /// The next mail of what was taken out.
    pub(super) fn next(&mut self) -> Option<T> {
        self.taken.pop_front()
    }

    /// Whether [`next`](Self::next) has something.
    pub(super) fn has_next(&self) -> bool {
        !self.taken.is_empty()
    }

    /// Takes out the mail that is there, without waiting for any. Whether [`next`](Self::next) has
    /// something.
    pub(super) fn take(&mut self) -> bool {
        if !self.has_next() {
            mem::swap(&mut self.shared.lock().mail, &mut self.taken);
        }
        self.has_next()
    }

    /// Whether there is mail of a kind, taken out or not.
    pub(super) fn has(&self, mut kind: impl FnMut(&T) -> bool) -> bool {
        self.taken.iter().any(&mut kind) || self.shared.lock().mail.iter().any(kind)
    }

    /// Waits until there is mail, and takes it out.
    pub(super) fn poll_take(&mut self, context: &Context<'_>) -> Poll<()> {
        if self.has_next() {
            return Poll::Ready(());
        }
        let mut shared = self.shared.lock();
        if shared.mail.is_empty() {
            match &mut shared.reader {
                Some(reader) => reader.clone_from(context.waker()),
                None => shared.reader = Some(context.waker().clone()),
            }
            return Poll::Pending;
        }
        // Both keep their room.
        mem::swap(&mut shared.mail, &mut self.taken);
        Poll::Ready(())
    }

    /// Lets nothing more in. What is there can still be read.
    pub(super) fn close(&mut self) {
        let mut shared = self.shared.lock();
        shared.closed = true;
        self.taken.append(&mut shared.mail);
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
    fn mail_is_read_in_the_order_it_came() {
        let (letterbox, mut mailbox) = mailbox();
        let context = Context::from_waker(Waker::noop());
        assert!(mailbox.poll_take(&context).is_pending());
        assert!(letterbox.send(1).is_ok() && letterbox.send(2).is_ok());
        assert!(mailbox.poll_take(&context).is_ready());
        assert_eq!(mailbox.next(), Some(1));
        assert!(letterbox.send(3).is_ok());
        assert!(mailbox.poll_take(&context).is_ready(), "there is still some of before");
        assert_eq!(all(&mut mailbox), [2]);
        assert!(mailbox.poll_take(&context).is_ready());
        assert_eq!(all(&mut mailbox), [3]);
        assert!(mailbox.poll_take(&context).is_pending());
    }

    #[test]
    fn mail_can_be_taken_without_waiting_for_it() {
        let (letterbox, mut mailbox) = mailbox();
        assert!(!mailbox.take());
        assert!(letterbox.send(1).is_ok() && mailbox.take());
        assert!(letterbox.send(2).is_ok() && mailbox.take(), "there is still some of before");
        assert_eq!(all(&mut mailbox), [1]);
        assert!(mailbox.take());
        assert_eq!(all(&mut mailbox), [2]);
    }

    #[test]
    fn a_closed_mailbox_gives_mail_back_and_lets_out_what_it_holds() {
        let (letterbox, mut mailbox) = mailbox();
        assert!(letterbox.send(1).is_ok());
        assert!(mailbox.poll_take(&Context::from_waker(Waker::noop())).is_ready());
        assert!(letterbox.send(2).is_ok());
        mailbox.close();
        assert_eq!(letterbox.send(3), Err(3));
        assert_eq!(all(&mut mailbox), [1, 2]);
    }

    #[test]
    fn what_is_in_a_mailbox_goes_when_it_does() {
        let (letterbox, mailbox) = mailbox();
        let mail = Arc::new(());
        assert!(letterbox.send(mail.clone()).is_ok());
        drop(mailbox);
        assert_eq!(Arc::strong_count(&mail), 1);
        assert!(letterbox.send(mail).is_err());
    }
}

/// Senders and the reader meet in every order, up to a number of preemptions. A lost wakeup shows as
/// a deadlock.
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
    fn a_reader_gets_all_mail_of_each_sender_in_order() {
        in_every_order(|| {
            let (letterbox, mut mailbox) = mailbox();
            let senders = [10, 20].map(|first| {
                let letterbox = letterbox.clone();
                thread::spawn(move || {
                    assert!(letterbox.send(first).is_ok() && letterbox.send(first + 1).is_ok());
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
                sender.join().expect("it does not panic");
            }
            let of =
                |tens: u32| read.iter().copied().filter(|n| n / 10 == tens).collect::<Vec<_>>();
            assert_eq!((of(1), of(2)), (vec![10, 11], vec![20, 21]));
        });
    }

    #[test]
    fn mail_for_a_mailbox_that_is_being_closed_is_read_or_given_back() {
        in_every_order(|| {
            let (letterbox, mut mailbox) = mailbox();
            let sender = thread::spawn(move || [1, 2].map(|mail| letterbox.send(mail).is_ok()));
            mailbox.close();
            let read: Vec<u32> = std::iter::from_fn(|| mailbox.next()).collect();
            let sent = sender.join().expect("it does not panic");
            let expected: Vec<u32> = [1, 2]
                .into_iter()
                .zip(sent)
                .filter_map(|(mail, sent)| sent.then_some(mail))
                .collect();
            assert_eq!(read, expected);
        });
    }
}
