//! A dispatcher that sends each event to the partition it belongs to. Pure.

mod key;
mod stable_hash;

use std::{
    borrow::Cow,
    collections::{HashMap, VecDeque},
    fmt,
    hash::Hash,
    mem, vec,
};

pub(crate) use self::stable_hash::partition_number;
use self::{key::Names, stable_hash::stable_hash};
use super::{
    Deliveries, DemandDispatcher, Dispatcher, Marker, Refusal, Subscriber, demand::take_front,
};
use crate::{
    exit::ExitReason,
    subscription::{Cancel, SubscribeError, SubscribeOptions, SubscriptionId},
};

/// Sends each event to the consumer of its partition, so that related events are handled by one
/// consumer and in order.
///
/// The partitions are fixed, and each has at most one consumer, which names it with
/// [`SubscribeOptions::partition`](crate::subscription::SubscribeOptions::partition). A missing,
/// unknown or taken partition is refused with [`SubscribeError::BadPartition`]: by `start`, if the
/// pipeline has planned the subscription, else the subscription alone is refused. With
/// [`shared`](Self::shared), a partition may have several consumers. The events of a partition that
/// has none wait, and are part of the demand of the others; if none is planned either, it is logged.
///
/// # Where events wait
///
/// The producer cannot see partitions: it receives their total demand. So demand of one partition
/// can be spent by an event for another, which then waits in the queue of its partition. These
/// queues are bounded by demand: together they hold no more events than were asked for at one time.
/// A queue outlives its consumer and is passed to the next.
///
/// Events beyond the demand wait in the producer's buffer, where an event for a busy partition
/// blocks one for an idle partition. Partitioning assumes a load that is about even.
///
/// # Where events end
///
/// An event without a partition (`None`) is discarded. An event for a partition that does not exist
/// is discarded and reported. Neither costs demand.
///
/// The semantics are those of GenStage's partition dispatcher, with two exceptions: no event or
/// demand is lost when subscribers come and go or events are discarded, and a wrong partition ends
/// one subscription instead of the producer.
///
/// ```
/// use pipeline_core::{dispatcher::PartitionDispatcher, subscription::SubscribeOptions};
///
/// struct Order {
///     user: u64,
///     region: &'static str,
/// }
///
/// // All orders of a region to the consumer of that region; orders from elsewhere are discarded.
/// let by_region = PartitionDispatcher::by_key(["eu", "us"], |order: &Order| Some(order.region));
/// let europe = SubscribeOptions::new().partition("eu");
///
/// // All orders of a user to one of four consumers.
/// let by_user = PartitionDispatcher::by_key(0..4, |order: &Order| Some(order.user % 4));
/// let first = SubscribeOptions::new().partition(0);
/// ```
///
/// Names need a function that maps events to them; omitting it does not compile (case S-133):
///
/// ```compile_fail,E0061
/// # use pipeline_core::dispatcher::PartitionDispatcher;
/// let dispatcher = PartitionDispatcher::<u64, &str>::by_key(["odd", "even"]);
/// ```
///
/// ```compile_fail,E0599
/// # use pipeline_core::dispatcher::PartitionDispatcher;
/// let dispatcher = PartitionDispatcher::<u64, &str>::numbered(2);
/// ```
#[must_use]
pub struct PartitionDispatcher<E, K> {
    names: Names<K>,
    /// Indexed by the place in `names`.
    partitions: Vec<Partition<E>>,
    subscriptions: HashMap<SubscriptionId, usize>,
    markers: PendingMarkers,
    hash: Hashing<E, K>,
    shared: bool,
    /// The total demand of all consumers.
    demand: u128,
    /// Events in the queues of all partitions.
    queued: usize,
    /// The partitions that the events of an emission belong to. Kept to reuse its allocation.
    touched: Vec<usize>,
}

/// How the partition of an event is determined.
enum Hashing<E, K> {
    /// From a reference. The most common way, and it avoids moving the event.
    Key(Box<KeyFn<E, K>>),
    /// From the event itself, which the function may change.
    Hash(Box<HashFn<E, K>>),
}

type KeyFn<E, K> = dyn FnMut(&E) -> Option<K> + Send;
type HashFn<E, K> = dyn FnMut(E) -> Option<(E, K)> + Send;

/// A partition: it has demand or a queue, never both.
struct Partition<E> {
    consumers: DemandDispatcher,
    queue: VecDeque<E>,
    /// Events of the emission that is being dispatched, to be placed behind the queue.
    fresh: Vec<E>,
}

impl<E> PartitionDispatcher<E, usize> {
    /// A dispatcher with `partitions` partitions like [`numbered`](PartitionDispatcher::numbered), where an
    /// event belongs to the partition of its key: that of the key's hash modulo their number.
    ///
    /// # Panics
    ///
    /// If there are 0 partitions.
    ///
    /// ```
    /// use pipeline_core::{dispatcher::PartitionDispatcher, subscription::SubscribeOptions};
    ///
    /// struct Tick {
    ///     symbol: String,
    ///     price: f64,
    /// }
    ///
    /// let by_symbol = PartitionDispatcher::numbered_by(4, |tick: &Tick| tick.symbol.clone());
    /// let last = SubscribeOptions::new().partition(3);
    /// ```
    pub fn numbered_by<K: Hash>(
        partitions: usize,
        mut key: impl FnMut(&E) -> K + Send + 'static,
    ) -> Self {
        Self::by_key(0..partitions, move |event| Some(numbered(&key(event), partitions)))
    }
}

/// The partition of a key among so many.
fn numbered<K: Hash + ?Sized>(key: &K, partitions: usize) -> usize {
    let place = stable_hash(key) % partitions as u64;
    usize::try_from(place).expect("the remainder fits a usize")
}

impl<E: Hash> PartitionDispatcher<E, usize> {
    /// A dispatcher with `partitions` partitions, named 0, 1, 2 and so on. An event belongs to the
    /// partition of its hash modulo their number.
    ///
    /// The hash function has no random key (FNV-1a with a finalizer), so an event belongs to the
    /// same partition in every process and every version, as long as its [`Hash`] stays the same.
    ///
    /// # Panics
    ///
    /// If there are 0 partitions.
    ///
    /// ```
    /// use pipeline_core::{dispatcher::PartitionDispatcher, subscription::SubscribeOptions};
    ///
    /// let dispatcher = PartitionDispatcher::<String, _>::numbered(4);
    /// let last = SubscribeOptions::new().partition(3);
    /// ```
    pub fn numbered(partitions: usize) -> Self {
        Self::by_key(0..partitions, move |event| Some(numbered(event, partitions)))
    }
}

impl<E, K: Eq + Hash + fmt::Debug + 'static> PartitionDispatcher<E, K> {
    /// A dispatcher with these partitions; `key` returns the partition of an event, and `None`
    /// discards it.
    ///
    /// `key` is called once for each event, when there is demand for it. It runs in the producer's
    /// task, so it should be fast.
    ///
    /// # Panics
    ///
    /// If there are 0 partitions.
    pub fn by_key(
        partitions: impl IntoIterator<Item = K>,
        key: impl FnMut(&E) -> Option<K> + Send + 'static,
    ) -> Self {
        Self::new(partitions, Hashing::Key(Box::new(key)))
    }

    /// A dispatcher with these partitions, like [`by_key`](Self::by_key), whose function may also
    /// change the event. This is GenStage's `hash`.
    ///
    /// # Panics
    ///
    /// If there are 0 partitions.
    ///
    /// ```
    /// use pipeline_core::dispatcher::PartitionDispatcher;
    ///
    /// // "eu:shoes" becomes "shoes", for the partition "eu".
    /// let dispatcher = PartitionDispatcher::by_hash(
    ///     ["eu".to_owned(), "us".to_owned()],
    ///     |line: String| {
    ///         let (region, rest) = line.split_once(':')?;
    ///         Some((rest.to_owned(), region.to_owned()))
    ///     },
    /// );
    /// ```
    pub fn by_hash(
        partitions: impl IntoIterator<Item = K>,
        hash: impl FnMut(E) -> Option<(E, K)> + Send + 'static,
    ) -> Self {
        Self::new(partitions, Hashing::Hash(Box::new(hash)))
    }

    fn new(partitions: impl IntoIterator<Item = K>, hash: Hashing<E, K>) -> Self {
        let names = Names::new(partitions);
        assert!(names.len() > 0, "a partition dispatcher needs at least one partition");
        // A single consumer has no demand to compare its own with.
        let alone = || DemandDispatcher::new().max_demand(usize::MAX);
        Self {
            partitions: (0..names.len()).map(|_| Partition::new(alone())).collect(),
            names,
            subscriptions: HashMap::new(),
            markers: PendingMarkers::default(),
            hash,
            shared: false,
            demand: 0,
            queued: 0,
            touched: Vec::new(),
        }
    }

    /// Lets a partition have several consumers. They share its events as the consumers of a
    /// [`DemandDispatcher`] do, so the order is kept for each of them but not between them.
    pub fn shared(mut self) -> Self {
        self.shared = true;
        for partition in &mut self.partitions {
            partition.consumers = DemandDispatcher::new();
        }
        self
    }
}

impl<E> Partition<E> {
    fn new(consumers: DemandDispatcher) -> Self {
        Self { consumers, queue: VecDeque::new(), fresh: Vec::new() }
    }

    fn queued(&self) -> usize {
        self.queue.len() + self.fresh.len()
    }
}

impl<E: Send + 'static, K> PartitionDispatcher<E, K> {
    /// Sends from a partition's queue as far as it has demand, and returns the markers that this
    /// releases.
    fn serve(&mut self, place: usize, out: &mut Deliveries<E>) {
        let Partition { consumers, queue, .. } = &mut self.partitions[place];
        self.demand -= consumers.total();
        loop {
            // Events behind a marker are not sent in one message with those before it.
            let room = self.markers.room(place).min(queue.len());
            let behind = (room < queue.len()).then(|| queue.split_off(room));
            consumers.dispatch(queue, out);
            let sent = room - queue.len();
            self.queued -= sent;
            let is_done = !queue.is_empty() || behind.is_none();
            queue.extend(behind.into_iter().flatten());
            self.markers.left(place, sent, out);
            if is_done {
                break;
            }
        }
        self.demand += consumers.total();
    }
}

impl<E, K> Dispatcher<E> for PartitionDispatcher<E, K>
where
    E: Send + 'static,
    K: Eq + Hash + fmt::Debug + Send + 'static,
{
    fn check(&self, planned: &[&SubscribeOptions]) -> Result<Vec<Cow<'static, str>>, Refusal> {
        let mut taken = vec![false; self.partitions.len()];
        for (number, options) in planned.iter().enumerate() {
            let refused = |bad| Refusal::new(number, SubscribeError::from(bad));
            let place = self.names.place_in(options).map_err(refused)?;
            // One that reconnects may stand by until the partition is free.
            let is_needed = matches!(options.mode(), Cancel::Permanent | Cancel::Transient);
            if mem::replace(&mut taken[place], true) && is_needed && !self.shared {
                return Err(refused(self.names.taken(place)));
            }
        }
        let vacant = self.names.shown_of((0..taken.len()).filter(|place| !taken[*place]));
        // Without any plan, all consumers come later.
        let warning = vacant.filter(|_| !planned.is_empty()).map(|names| {
            format!("no consumer is planned for partition {names}, whose events wait for one")
                .into()
        });
        Ok(warning.into_iter().collect())
    }

    fn subscribe(&mut self, subscriber: Subscriber<'_>) -> Result<(), ExitReason> {
        let place = self.names.place_in(subscriber.options).map_err(SubscribeError::from)?;
        let is_taken = || self.subscriptions.values().any(|other| *other == place);
        if !self.shared && is_taken() {
            return Err(SubscribeError::from(self.names.taken(place)).into());
        }
        self.subscriptions.insert(subscriber.id, place);
        Dispatcher::<E>::subscribe(&mut self.partitions[place].consumers, subscriber)
    }

    fn cancel(&mut self, id: SubscriptionId, out: &mut Deliveries<E>) {
        if let Some(place) = self.subscriptions.remove(&id) {
            let consumers = &mut self.partitions[place].consumers;
            self.demand -= consumers.total();
            consumers.cancel(id, out);
            self.demand += consumers.total();
        }
    }

    fn ask(&mut self, id: SubscriptionId, demand: usize, out: &mut Deliveries<E>) {
        if let Some(&place) = self.subscriptions.get(&id) {
            let consumers = &mut self.partitions[place].consumers;
            self.demand -= consumers.total();
            consumers.ask(id, demand, out);
            self.demand += consumers.total();
            self.serve(place, out);
        }
    }

    fn unmet(&self) -> usize {
        let beyond_queued = self.demand.saturating_sub(self.queued as u128);
        usize::try_from(beyond_queued).unwrap_or(usize::MAX)
    }

    fn dispatch(&mut self, events: &mut VecDeque<E>, out: &mut Deliveries<E>) {
        let mut room = self.unmet();
        let share = events.len().min(room).div_ceil(self.partitions.len().max(1));
        let mut touched = mem::take(&mut self.touched);
        while room > 0 && !events.is_empty() {
            let mut coming = Coming::first(room, events);
            for event in coming.events.by_ref() {
                let hashed = match &mut self.hash {
                    Hashing::Key(key) => key(&event).map(|key| (event, key)),
                    Hashing::Hash(hash) => hash(event),
                };
                let Some((event, key)) = hashed else {
                    out.filtered(1);
                    continue;
                };
                let Some(place) = self.names.place(&key) else {
                    out.unroutable(1);
                    continue;
                };
                let fresh = &mut self.partitions[place].fresh;
                if fresh.is_empty() {
                    touched.push(place);
                    fresh.reserve(share);
                }
                fresh.push(event);
                self.queued += 1;
                room -= 1;
            }
        }
        for place in touched.drain(..) {
            let Partition { queue, fresh, .. } = &mut self.partitions[place];
            if queue.is_empty() {
                *queue = mem::take(fresh).into();
                self.serve(place, out);
            } else {
                // A partition with queued events has no demand.
                queue.extend(fresh.drain(..));
            }
        }
        self.touched = touched;
    }

    fn info(&mut self, marker: Marker, out: &mut Deliveries<E>) {
        if self.queued == 0 {
            out.info(marker);
        } else {
            let queued = self.partitions.iter().map(Partition::queued);
            self.markers.push(marker, queued.collect());
        }
    }

    fn outstanding(&self, id: SubscriptionId) -> usize {
        self.subscriptions
            .get(&id)
            .map_or(0, |&place| Dispatcher::<E>::outstanding(&self.partitions[place].consumers, id))
    }

    fn queued(&self) -> usize {
        self.queued
    }
}

/// The first events of an emission. When a hash panics, the remaining ones go back to the others,
/// to be counted.
struct Coming<'a, E> {
    events: vec::IntoIter<E>,
    others: &'a mut VecDeque<E>,
}

impl<'a, E> Coming<'a, E> {
    fn first(count: usize, events: &'a mut VecDeque<E>) -> Self {
        Self { events: take_front(events, count).into_iter(), others: events }
    }
}

impl<E> Drop for Coming<'_, E> {
    fn drop(&mut self) {
        self.others.extend(self.events.by_ref());
    }
}

impl<E, K> fmt::Debug for PartitionDispatcher<E, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PartitionDispatcher")
            .field("partitions", &self.partitions.len())
            .field("consumers", &self.subscriptions.len())
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}

/// Markers in the order of their arrival, each with the number of events that have to leave each
/// partition's queue before it. Events queued behind a marker do not delay it.
#[derive(Debug, Default)]
struct PendingMarkers(VecDeque<(Marker, Vec<usize>)>);

impl PendingMarkers {
    /// Puts a marker behind `queued` events of each partition.
    fn push(&mut self, marker: Marker, queued: Vec<usize>) {
        self.0.push_back((marker, queued));
    }

    /// How many events may leave this partition's queue before the next marker.
    fn room(&self, partition: usize) -> usize {
        let ahead = self.0.iter().map(|(_, ahead)| ahead[partition]);
        ahead.into_iter().find(|events| *events > 0).unwrap_or(usize::MAX)
    }

    /// Records that events have left this partition's queue; returns the markers that are no longer
    /// preceded by events.
    fn left<E>(&mut self, partition: usize, events: usize, out: &mut Deliveries<E>) {
        for (_, ahead) in &mut self.0 {
            ahead[partition] = ahead[partition].saturating_sub(events);
        }
        while let Some(&(marker, ref ahead)) = self.0.front()
            && ahead.iter().all(|events| *events == 0)
        {
            out.info(marker);
            self.0.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::subscription::{StageId, SubscribeOptions};

    #[test]
    fn a_hash_that_panics_loses_the_event_it_was_given_and_no_other() {
        let key = |event: &u32| if *event == 3 { panic!("no key") } else { Some(0) };
        let mut dispatcher = PartitionDispatcher::by_key([0], key);
        let mut out = Deliveries::new();
        let (id, options) = (SubscriptionId::new(1), SubscribeOptions::new().partition(0));
        let subscriber = Subscriber::new(id, StageId::new(1), &options);
        dispatcher.subscribe(subscriber).unwrap();
        dispatcher.ask(id, 5, &mut out);
        let mut events = VecDeque::from([1, 2, 3, 4, 5, 6]);
        let dispatching = || dispatcher.dispatch(&mut events, &mut out);
        assert!(catch_unwind(AssertUnwindSafe(dispatching)).is_err());
        // Two events have a place, three have not been hashed.
        assert_eq!((dispatcher.queued(), events.len()), (2, 3));
    }

    #[test]
    fn an_ask_for_usize_max_can_be_repeated_and_added_to() {
        let mut dispatcher = PartitionDispatcher::by_key(0..2, |event: &u64| Some(event % 2));
        let mut out = Deliveries::new();
        for place in 0..2 {
            let (id, options) =
                (SubscriptionId::new(place), SubscribeOptions::new().partition(place));
            let subscriber = Subscriber::new(id, StageId::new(place), &options);
            dispatcher.subscribe(subscriber).unwrap();
            dispatcher.ask(id, usize::MAX, &mut out);
            dispatcher.ask(id, usize::MAX, &mut out);
        }
        assert_eq!(dispatcher.unmet(), usize::MAX);
        let mut events = VecDeque::from([0, 1, 2, 3, 5]);
        dispatcher.dispatch(&mut events, &mut out);
        assert_eq!((dispatcher.queued(), events.len()), (0, 0));
        assert_eq!(dispatcher.outstanding(SubscriptionId::new(1)), usize::MAX - 3);
        dispatcher.cancel(SubscriptionId::new(1), &mut out);
        assert_eq!(dispatcher.unmet(), usize::MAX - 2);
    }
}
