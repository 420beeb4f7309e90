//! A pipeline's order of events, kept while workers handle them.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;

use super::turns::{TopicTurns, Turn, TurnKind};

/// The order in which the events of a pipeline arrived, for the events that are being worked on.
///
/// Each event has a ticket, taken in that order. Its topic is known later, when its work is done,
/// in any order. Events enter their topics in the order of the tickets: an event whose
/// topic is not known yet keeps those behind it from entering, and no longer.
#[derive(Default)]
pub(super) struct Sequence {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The number of the first ticket in line.
    first: u64,
    line: VecDeque<InLine>,
    /// The supervisor's task, while it waits until the line is empty.
    supervisor: Option<Waker>,
    /// Places that have not been collected.
    turns: HashMap<u64, Turn, foldhash::fast::FixedState>,
}

/// The state of a ticket in line.
enum InLine {
    /// The topic is not known yet.
    Working,
    /// The topic is known, and the ticket waits for those before it.
    Ready { topic: Arc<str>, task: Option<Waker> },
    /// The event is done, or will be retried later.
    Gone,
}

/// An event's ticket. Dropping it leaves the line.
pub(super) struct Ticket {
    sequence: Arc<Sequence>,
    topics: Arc<TopicTurns>,
    number: u64,
    /// The turn kept from an attempt that failed.
    kept: Mutex<Option<Turn>>,
}

impl Sequence {
    /// Takes the next ticket.
    pub(super) fn ticket(self: &Arc<Self>, topics: &Arc<TopicTurns>) -> Ticket {
        let mut state = self.state.lock();
        state.line.push_back(InLine::Working);
        let number = state.first + state.line.len() as u64 - 1;
        Ticket { sequence: self.clone(), topics: topics.clone(), number, kept: Mutex::default() }
    }

    /// Waits until all tickets have entered their topics or left the line. Only one task at a time
    /// waits.
    pub(super) fn poll_empty(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.line.is_empty() {
            return Poll::Ready(());
        }
        state.supervisor = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl State {
    /// the ticket's state, if it is still in line.
    fn ticket(&mut self, number: u64) -> Option<&mut InLine> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.line.get_mut(at)
    }

    /// Assigns turns to the tickets at the front of the line whose topics are known.
    fn advance(&mut self, topics: &Arc<TopicTurns>) -> Vec<Waker> {
        let mut tasks = Vec::new();
        while let Some(InLine::Ready { .. } | InLine::Gone) = self.line.front() {
            let number = self.first;
            self.first += 1;
            if let Some(InLine::Ready { topic, task }) = self.line.pop_front() {
                self.turns.insert(number, topics.enter(&topic, TurnKind::Ordered));
                tasks.extend(task);
            }
        }
        if self.line.is_empty() {
            tasks.extend(self.supervisor.take());
        }
        tasks
    }
}

impl Ticket {
    /// Runs the work that determines the topic. If it fails, or panics, the tickets behind do not
    /// wait for the retry.
    pub(super) fn work<T, E>(&self, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let leaving = Leave(self);
        let done = work();
        if done.is_ok() {
            std::mem::forget(leaving);
        }
        done
    }

    /// Enters a topic, once all earlier tickets have entered theirs.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a later call resumes.
    pub(super) async fn enter(&self, topic: &Arc<str>) -> Turn {
        match self.get_ready(topic) {
            Some(turn) => turn,
            None => self.fetch().await,
        }
    }

    /// Waits for earlier tickets, or returns the turn if all of them have entered their topics.
    fn get_ready(&self, topic: &Arc<str>) -> Option<Turn> {
        // The kept turn may have been passed meanwhile.
        let kept = self.kept.lock().take().and_then(Turn::resume);
        let mut state = self.sequence.state.lock();
        if kept.is_none() && state.first == self.number && state.line.len() == 1 {
            // This is the only ticket in line.
            state.line.clear();
            state.first += 1;
            let task = state.supervisor.take();
            let turn = self.topics.enter(topic, TurnKind::Ordered);
            drop(state);
            task.into_iter().for_each(Waker::wake);
            return Some(turn);
        }
        // A cancelled call may have received a turn that it did not collect.
        if let Some(turn) = kept.or_else(|| state.turns.remove(&self.number)) {
            drop(state);
            // A turn of another topic is given up.
            return Some(if turn.topic() == topic {
                turn
            } else {
                self.topics.enter(topic, TurnKind::Ordered)
            });
        }
        match state.ticket(self.number) {
            Some(ticket) if !matches!(ticket, InLine::Gone) => {
                *ticket = InLine::Ready { topic: topic.clone(), task: None };
            }
            // An earlier attempt has left the line.
            _ => return Some(self.topics.enter(topic, TurnKind::Ordered)),
        }
        let tasks = state.advance(&self.topics);
        let turn = state.turns.remove(&self.number);
        drop(state);
        tasks.into_iter().for_each(Waker::wake);
        turn
    }

    /// Keeps a turn for the retry, unless it is passed meanwhile.
    pub(super) fn keep(&self, turn: Turn) {
        turn.rest();
        *self.kept.lock() = Some(turn);
    }

    async fn fetch(&self) -> Turn {
        poll_fn(|cx| {
            let mut state = self.sequence.state.lock();
            if let Some(turn) = state.turns.remove(&self.number) {
                return Poll::Ready(turn);
            }
            if let Some(InLine::Ready { task, .. }) = state.ticket(self.number) {
                *task = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    fn leave(&self) {
        let kept = self.kept.lock().take();
        drop(kept);
        let mut state = self.sequence.state.lock();
        let tasks = match state.ticket(self.number) {
            Some(ticket) => {
                *ticket = InLine::Gone;
                state.advance(&self.topics)
            }
            None => Vec::new(),
        };
        let turn = state.turns.remove(&self.number);
        drop(state);
        drop(turn);
        tasks.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.leave();
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("number", &self.number).finish_non_exhaustive()
    }
}

/// Leaves the line when it is dropped.
struct Leave<'a>(&'a Ticket);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::poll;

    use super::*;

    fn tickets<const N: usize>() -> ([Ticket; N], Arc<TopicTurns>) {
        let (sequence, topics) = (Arc::new(Sequence::default()), Arc::new(TopicTurns::default()));
        ([(); N].map(|()| sequence.ticket(&topics)), topics)
    }

    #[tokio::test]
    async fn topics_are_entered_in_the_order_of_the_tickets() {
        let ([first, second, third], topics) = tickets();
        let (one, other): (Arc<str>, Arc<str>) = ("one".into(), "other".into());
        let mut enters_third = pin!(third.enter(&one));
        let mut enters_second = pin!(second.enter(&other));
        assert!(poll!(&mut enters_third).is_pending());
        assert!(poll!(&mut enters_second).is_pending());
        let first = first.enter(&one).await;
        let (second, third) = (enters_second.await, enters_third.await);
        assert!(poll!(pin!(third.wait())).is_pending());
        second.wait().await;
        first.wait().await;
        drop((first, second));
        third.wait().await;
        drop(third);
        assert_eq!(topics.open(), 0);
    }

    #[tokio::test]
    async fn a_ticket_that_is_dropped_or_whose_work_fails_does_not_delay_others() {
        let topic: Arc<str> = "t".into();
        let ([first, second, third], topics) = tickets();
        let mut enters = pin!(third.enter(&topic));
        assert!(poll!(&mut enters).is_pending());
        drop(first);
        assert_eq!(second.work(|| Err::<(), _>("no")), Err("no"));
        let third = enters.await;
        // It enters when its work succeeds.
        let second = second.enter(&topic).await;
        assert!(poll!(pin!(second.wait())).is_pending());
        drop(third);
        second.wait().await;
        drop(second);
        assert_eq!(topics.open(), 0);
    }

    #[tokio::test]
    async fn a_cancelled_and_repeated_enter_takes_one_turn() {
        let first_topic: Arc<str> = "t".into();
        for topic in ["t", "another"] {
            let ([first, second], topics) = tickets();
            {
                let mut enters = pin!(second.enter(&first_topic));
                assert!(poll!(&mut enters).is_pending());
            }
            // It becomes the first in line while nothing awaits it.
            drop(first.enter(&first_topic).await);
            let turn = second.enter(&topic.into()).await;
            assert_eq!(&**turn.topic(), topic);
            assert!(poll!(pin!(turn.wait())).is_ready(), "it waits behind its own turn");
            assert_eq!(topics.open(), 1);
            drop((turn, second));
            assert_eq!(topics.open(), 0);
        }
    }

    #[tokio::test]
    async fn a_retry_gets_its_kept_turn() {
        let topic: Arc<str> = "t".into();
        let ([first, second], topics) = tickets();
        first.keep(first.enter(&topic).await);
        let behind = second.enter(&topic).await;
        assert!(poll!(pin!(behind.wait())).is_pending());
        let turn = first.enter(&topic).await;
        turn.wait().await;
        first.keep(turn);
        drop(first);
        behind.wait().await;
        drop((behind, second));
        assert_eq!(topics.open(), 0);
    }
}
