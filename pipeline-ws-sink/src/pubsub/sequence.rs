//! A pipeline's order of events, kept while workers handle them.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;

use super::lanes::{Lanes, Place, Who};

/// The order in which the events of a pipeline arrived, for the events that are being worked on.
///
/// Each event has a ticket, taken in that order. Its topic is known later, when its work is done,
/// in any order. Events enter the lanes of their topics in the order of the tickets: an event whose
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
    places: HashMap<u64, Place, foldhash::fast::FixedState>,
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
    lanes: Arc<Lanes>,
    number: u64,
    /// The place kept from an attempt that failed.
    kept: Mutex<Option<Place>>,
}

impl Sequence {
    /// Takes the next ticket.
    pub(super) fn ticket(self: &Arc<Self>, lanes: &Arc<Lanes>) -> Ticket {
        let mut state = self.state.lock();
        state.line.push_back(InLine::Working);
        let number = state.first + state.line.len() as u64 - 1;
        Ticket { sequence: self.clone(), lanes: lanes.clone(), number, kept: Mutex::default() }
    }

    /// Waits until all tickets have entered their lanes or left the line. Only one task at a time
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
    /// The ticket's place in line, if it is still in line.
    fn ticket(&mut self, number: u64) -> Option<&mut InLine> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.line.get_mut(at)
    }

    /// Assigns places to the tickets at the front of the line whose topics are known.
    fn advance(&mut self, lanes: &Arc<Lanes>) -> Vec<Waker> {
        let mut tasks = Vec::new();
        while let Some(InLine::Ready { .. } | InLine::Gone) = self.line.front() {
            let number = self.first;
            self.first += 1;
            if let Some(InLine::Ready { topic, task }) = self.line.pop_front() {
                self.places.insert(number, lanes.enter(&topic, Who::Ordered));
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

    /// Enters the lane of a topic, once all earlier tickets have entered theirs.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a later call resumes.
    pub(super) async fn enter(&self, topic: &Arc<str>) -> Place {
        match self.get_ready(topic) {
            Some(place) => place,
            None => self.fetch().await,
        }
    }

    /// Waits for earlier tickets, or returns the place if all of them have entered their lanes.
    fn get_ready(&self, topic: &Arc<str>) -> Option<Place> {
        // The kept place may have been passed meanwhile.
        let kept = self.kept.lock().take().and_then(Place::goes_on);
        let mut state = self.sequence.state.lock();
        if kept.is_none() && state.first == self.number && state.line.len() == 1 {
            // This is the only ticket in line.
            state.line.clear();
            state.first += 1;
            let task = state.supervisor.take();
            let place = self.lanes.enter(topic, Who::Ordered);
            drop(state);
            task.into_iter().for_each(Waker::wake);
            return Some(place);
        }
        // A cancelled call may have received a place that it did not collect.
        if let Some(place) = kept.or_else(|| state.places.remove(&self.number)) {
            drop(state);
            // A place in another lane is given up.
            return Some(if place.topic() == topic {
                place
            } else {
                self.lanes.enter(topic, Who::Ordered)
            });
        }
        match state.ticket(self.number) {
            Some(ticket) if !matches!(ticket, InLine::Gone) => {
                *ticket = InLine::Ready { topic: topic.clone(), task: None };
            }
            // An earlier attempt has left the line.
            _ => return Some(self.lanes.enter(topic, Who::Ordered)),
        }
        let tasks = state.advance(&self.lanes);
        let place = state.places.remove(&self.number);
        drop(state);
        tasks.into_iter().for_each(Waker::wake);
        place
    }

    /// Keeps a place for the retry, unless it is passed meanwhile.
    pub(super) fn keep(&self, place: Place) {
        place.rest();
        *self.kept.lock() = Some(place);
    }

    async fn fetch(&self) -> Place {
        poll_fn(|cx| {
            let mut state = self.sequence.state.lock();
            if let Some(place) = state.places.remove(&self.number) {
                return Poll::Ready(place);
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
                state.advance(&self.lanes)
            }
            None => Vec::new(),
        };
        let place = state.places.remove(&self.number);
        drop(state);
        drop(place);
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

    fn tickets<const N: usize>() -> ([Ticket; N], Arc<Lanes>) {
        let (sequence, lanes) = (Arc::new(Sequence::default()), Arc::new(Lanes::default()));
        ([(); N].map(|()| sequence.ticket(&lanes)), lanes)
    }

    #[tokio::test]
    async fn lanes_are_entered_in_the_order_of_the_tickets() {
        let ([first, second, third], lanes) = tickets();
        let (one, other): (Arc<str>, Arc<str>) = ("one".into(), "other".into());
        let mut enters_third = pin!(third.enter(&one));
        let mut enters_second = pin!(second.enter(&other));
        assert!(poll!(&mut enters_third).is_pending());
        assert!(poll!(&mut enters_second).is_pending());
        let first = first.enter(&one).await;
        let (second, third) = (enters_second.await, enters_third.await);
        assert!(poll!(pin!(third.turn())).is_pending());
        second.turn().await;
        first.turn().await;
        drop((first, second));
        third.turn().await;
        drop(third);
        assert_eq!(lanes.open(), 0);
    }

    #[tokio::test]
    async fn a_ticket_that_is_dropped_or_whose_work_fails_does_not_delay_others() {
        let topic: Arc<str> = "t".into();
        let ([first, second, third], lanes) = tickets();
        let mut enters = pin!(third.enter(&topic));
        assert!(poll!(&mut enters).is_pending());
        drop(first);
        assert_eq!(second.work(|| Err::<(), _>("no")), Err("no"));
        let third = enters.await;
        // It enters when its work succeeds.
        let second = second.enter(&topic).await;
        assert!(poll!(pin!(second.turn())).is_pending());
        drop(third);
        second.turn().await;
        drop(second);
        assert_eq!(lanes.open(), 0);
    }

    #[tokio::test]
    async fn a_cancelled_and_repeated_enter_takes_one_place() {
        let first_topic: Arc<str> = "t".into();
        for topic in ["t", "another"] {
            let ([first, second], lanes) = tickets();
            {
                let mut enters = pin!(second.enter(&first_topic));
                assert!(poll!(&mut enters).is_pending());
            }
            // It becomes the first in line while nothing awaits it.
            drop(first.enter(&first_topic).await);
            let place = second.enter(&topic.into()).await;
            assert_eq!(&**place.topic(), topic);
            assert!(poll!(pin!(place.turn())).is_ready(), "it waits behind its own place");
            assert_eq!(lanes.open(), 1);
            drop((place, second));
            assert_eq!(lanes.open(), 0);
        }
    }

    #[tokio::test]
    async fn a_retry_gets_its_kept_place() {
        let topic: Arc<str> = "t".into();
        let ([first, second], lanes) = tickets();
        first.keep(first.enter(&topic).await);
        let behind = second.enter(&topic).await;
        assert!(poll!(pin!(behind.turn())).is_pending());
        let place = first.enter(&topic).await;
        place.turn().await;
        first.keep(place);
        drop(first);
        behind.turn().await;
        drop((behind, second));
        assert_eq!(lanes.open(), 0);
    }
}
