//! The answer of a call that is completed although nothing waits for it any more.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::sync::oneshot;

/// The two ends of an answer. If the waiting end is dropped before it has got it, also in the moment in
/// which it arrives, `unheard` is called with it.
pub(crate) fn heard<T, U: FnOnce(T) + Clone>(unheard: U) -> (Answer<T, U>, Heard<T, U>) {
    let (sender, receiver) = oneshot::channel();
    let answer = Answer { sender, unheard: unheard.clone() };
    (answer, Heard { receiver, unheard: Some(unheard) })
}

/// The end that answers.
pub(crate) struct Answer<T, U> {
    sender: oneshot::Sender<T>,
    unheard: U,
}

impl<T, U: FnOnce(T)> Answer<T, U> {
    pub(crate) fn send(self, answer: T) {
        if let Err(answer) = self.sender.send(answer) {
            (self.unheard)(answer);
        }
    }
}

/// The end that waits. It gets `None` if the other is dropped.
pub(crate) struct Heard<T, U: FnOnce(T)> {
    receiver: oneshot::Receiver<T>,
    unheard: Option<U>,
}

impl<T, U: FnOnce(T) + Unpin> Future for Heard<T, U> {
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        Pin::new(&mut self.receiver).poll(context).map(Result::ok)
    }
}

impl<T, U: FnOnce(T)> Drop for Heard<T, U> {
    fn drop(&mut self) {
        // From here on, the other end learns that nothing waits.
        self.receiver.close();
        if let (Ok(answer), Some(unheard)) = (self.receiver.try_recv(), self.unheard.take()) {
            unheard(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use futures::FutureExt;

    #[test]
    fn an_answer_is_heard_or_unheard_and_never_both() {
        let unheard = RefCell::new(Vec::new());
        let note = |answer| unheard.borrow_mut().push(answer);
        let (answer, mut waiting) = heard(note);
        assert_eq!((&mut waiting).now_or_never(), None);
        answer.send(1);
        assert_eq!((&mut waiting).now_or_never(), Some(Some(1)));
        drop(waiting);
        let (answer, waiting) = heard(note);
        drop(waiting);
        answer.send(2);
        // It has arrived, and nothing has taken it yet.
        let (answer, waiting) = heard(note);
        answer.send(3);
        drop(waiting);
        let (answer, waiting) = heard(note);
        drop(answer);
        assert_eq!(waiting.now_or_never(), Some(None));
        assert_eq!(*unheard.borrow(), [2, 3]);
    }
}
