//! All open sockets of an endpoint.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use futures::future::join_all;
use parking_lot::Mutex;
use slab::Slab;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

use super::{drainer::MountDrainer, entrants::Entrants};
use crate::{
    outbox::{Load, Outbox},
    session::{
        end::SocketEnd,
        question::{Question, Questioned},
    },
    telemetry::log,
};

/// How many sockets are visited before the table is unlocked for others.
const LOOK: usize = 1024;

/// The open sockets, which can be ended all at once or by id.
#[derive(Default)]
pub(crate) struct Sockets {
    table: Mutex<Table>,
    /// Cancelled once no more sockets are accepted.
    closing: CancellationToken,
}

#[derive(Default)]
struct Table {
    open: Slab<OpenSocket>,
    by_id: HashMap<Arc<str>, Vec<usize>>,
    entrants: Entrants,
    /// The end of a socket that registers once no more are accepted.
    closed: Option<SocketEnd>,
    /// The number of sockets that were open when the first draining began.
    drained: Option<usize>,
    /// The number of sockets that were shed and have not left yet.
    shed: usize,
    /// The number of sockets that were ever opened.
    opened: u64,
}

struct OpenSocket {
    outbox: Arc<Outbox>,
    id: Option<Arc<str>>,
    /// Its index in the list of its id.
    at: usize,
    /// The drainer of its mount.
    drainer: Arc<MountDrainer>,
    opened_at: Instant,
    is_shed: bool,
    number: u64,
    /// Where it can be asked, once its session has begun.
    asked: Option<Weak<dyn Questioned>>,
}

/// A socket that was looked up.
pub(super) struct Found {
    pub(super) number: u64,
    pub(super) id: Option<Arc<str>>,
    pub(super) opened_at: Instant,
    /// Its name in metrics.
    pub(super) socket: &'static str,
    outbox: Arc<Outbox>,
    asked: Option<Arc<dyn Questioned>>,
}

impl Found {
    fn of(open: &OpenSocket) -> Self {
        let OpenSocket { outbox, id, opened_at, number, drainer, asked, .. } = open;
        Self {
            number: *number,
            id: id.clone(),
            opened_at: *opened_at,
            socket: drainer.socket,
            outbox: outbox.clone(),
            asked: asked.as_ref().and_then(Weak::upgrade),
        }
    }

    /// Asks its session. If it has ended, the question is dropped.
    pub(super) fn ask(&self, question: Question) {
        if let Some(asked) = &self.asked {
            asked.ask(question);
        }
    }

    pub(super) fn transport(&self) -> &'static str {
        self.asked.as_ref().map_or("", |asked| asked.transport())
    }

    pub(super) fn expires_in(&self) -> Option<Duration> {
        self.asked.as_ref()?.expires_in()
    }

    /// The time since its client was heard.
    pub(super) fn silence(&self) -> Duration {
        self.outbox.last_heard().elapsed()
    }

    pub(super) fn load(&self) -> Load {
        self.outbox.load()
    }

    /// Closes it, as a disconnect of its id does.
    pub(super) fn end(&self) {
        self.outbox.end(SocketEnd::Disconnected);
    }
}

/// The draining of all sockets that were open when it began. Dropping it closes the remaining ones
/// at once.
pub(crate) struct Draining {
    mounts: Vec<MountDraining>,
    count: usize,
}

/// The sockets of a mount, in the order in which they are closed.
struct MountDraining {
    drainer: Arc<MountDrainer>,
    with_channels: Vec<Arc<Outbox>>,
    channels: Vec<usize>,
    without_channels: Vec<Arc<Outbox>>,
}

/// A client that is connecting: it is made before the socket's `connect` is called, so that a
/// disconnect of its id concerns it although its id is not known yet.
pub(crate) struct Entrant {
    sockets: Arc<Sockets>,
    since: u64,
}

/// A socket's entry in the table, for as long as the socket lives.
pub(crate) struct Registration {
    sockets: Arc<Sockets>,
    key: usize,
}

impl Sockets {
    /// A client begins to connect.
    pub(crate) fn enter(self: &Arc<Self>) -> Entrant {
        let since = self.table.lock().entrants.enter();
        Entrant { sockets: self.clone(), since }
    }

    /// Whether no more sockets are accepted.
    pub(crate) fn are_closed(&self) -> bool {
        self.table.lock().closed.is_some()
    }

    /// Waits until no more sockets are accepted.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn closed(&self) {
        self.closing.cancelled().await;
    }

    /// Stops accepting sockets. Open sockets end when the draining runs. The first draining has all
    /// of them; another that begins meanwhile only waits.
    pub(crate) fn drain(&self) -> Draining {
        let mut table = self.table.lock();
        let open = table.open.len();
        let count = *table.drained.get_or_insert(open);
        let first = table.closed.replace(SocketEnd::Draining).is_none();
        self.closing.cancel();
        let mounts = if first { table.by_mount() } else { Vec::new() };
        Draining { mounts, count }
    }

    /// Ends all sockets, including those that are still to register: a client may be between its
    /// `connect` and its registration.
    pub(crate) fn end_all(&self, end: SocketEnd) {
        let mut table = self.table.lock();
        table.closed.get_or_insert(end);
        self.closing.cancel();
        table.open.iter().for_each(|(_, open)| open.outbox.end(end));
    }

    /// Ends the sockets with this id, including those that are still to register. Returns the number
    /// of those that have.
    pub(crate) fn disconnect(&self, id: &str) -> usize {
        let mut table = self.table.lock();
        table.entrants.disconnect(id);
        let keys = table.by_id.get(id).map_or(&[][..], Vec::as_slice);
        for &key in keys {
            table.open[key].outbox.end(SocketEnd::Disconnected);
        }
        keys.len()
    }

    /// The open sockets with this id, the oldest first: so many at most, and how many more there are.
    pub(super) fn find(&self, id: &str, most: usize) -> (Vec<Found>, usize) {
        let table = self.table.lock();
        let keys = table.by_id.get(id).map_or(&[][..], Vec::as_slice);
        let mut keys: Vec<usize> = keys.to_vec();
        keys.sort_unstable_by_key(|&key| table.open[key].number);
        let found: Vec<_> =
            keys.iter().take(most).map(|&key| Found::of(&table.open[key])).collect();
        let more = keys.len() - found.len();
        (found, more)
    }

    /// The open socket with this id and this number.
    pub(super) fn find_one(&self, id: &str, number: u64) -> Option<Found> {
        let table = self.table.lock();
        let mut open = table.by_id.get(id)?.iter().map(|&key| &table.open[key]);
        open.find(|open| open.number == number).map(Found::of)
    }

    /// The open socket that has this number and no id.
    pub(super) fn find_without_id(&self, number: u64) -> Option<Found> {
        let table = self.table.lock();
        let mut open = table.open.iter().map(|(_, open)| open);
        open.find(|open| open.number == number && open.id.is_none()).map(Found::of)
    }

    pub(crate) fn len(&self) -> usize {
        self.table.lock().open.len()
    }

    /// When each socket was opened, and its key.
    pub(super) fn opened(&self) -> Vec<(Instant, usize)> {
        let table = self.table.lock();
        table.open.iter().map(|(key, open)| (open.opened_at, key)).collect()
    }

    /// Ends the socket with this key, if it is the one that was opened then. Returns whether it was open.
    pub(super) fn shed(&self, key: usize, opened_at: Instant) -> bool {
        let mut table = self.table.lock();
        let open = table.open.get_mut(key).filter(|open| open.opened_at == opened_at);
        let Some(open) = open.filter(|open| !open.outbox.has_ended()) else { return false };
        open.is_shed = true;
        open.outbox.end(SocketEnd::Draining);
        table.shed += 1;
        true
    }

    /// The number of sockets, without those that were shed and have not left yet.
    pub(super) fn staying(&self) -> usize {
        let table = self.table.lock();
        table.open.len().saturating_sub(table.shed)
    }

    /// The pending frames of all sockets. Sockets that open or close meanwhile may be missed.
    pub(crate) fn waiting(&self) -> Load {
        let (mut waiting, mut next) = (Load::default(), 0);
        loop {
            let table = self.table.lock();
            let to = table.open.capacity().min(next + LOOK);
            for open in (next..to).filter_map(|key| table.open.get(key)) {
                waiting = waiting.plus(open.outbox.load());
            }
            next = to;
            if next == table.open.capacity() {
                return waiting;
            }
        }
    }
}

/// A walk over all sockets, in parts, for those with the most waiting bytes. Sockets that open or close
/// meanwhile may be missed.
pub(super) struct MostWaiting {
    most: usize,
    next: usize,
    /// The waiting bytes and the keys of those found so far, in any order.
    found: Vec<(usize, usize, u64)>,
}

impl MostWaiting {
    pub(super) const fn new(most: usize) -> Self {
        Self { most, next: 0, found: Vec::new() }
    }

    /// Looks at the next part. Returns whether there are more.
    pub(super) fn look(&mut self, sockets: &Sockets) -> bool {
        let table = sockets.table.lock();
        let to = table.open.capacity().min(self.next + LOOK);
        for key in self.next..to {
            let Some(open) = table.open.get(key) else { continue };
            let bytes = open.outbox.load().bytes;
            if bytes > 0 {
                self.found.push((bytes, key, open.number));
            }
        }
        self.next = to;
        let are_more = to < table.open.capacity();
        drop(table);
        self.found.sort_unstable_by_key(|&(bytes, ..)| std::cmp::Reverse(bytes));
        self.found.truncate(self.most);
        are_more
    }

    /// Those that are still open, the one with the most waiting bytes first.
    pub(super) fn found(self, sockets: &Sockets) -> Vec<Found> {
        let table = sockets.table.lock();
        let open = self.found.into_iter().filter_map(|(_, key, number)| {
            table.open.get(key).filter(|open| open.number == number)
        });
        open.map(Found::of).collect()
    }
}

impl Entrant {
    /// Registers the client's socket. If the endpoint drains or has ended already, or the id was
    /// disconnected meanwhile, the socket is ended.
    pub(crate) fn register(
        self,
        outbox: &Arc<Outbox>,
        id: Option<&str>,
        drainer: &Arc<MountDrainer>,
    ) -> Registration {
        let sockets = self.sockets.clone();
        let mut table = sockets.table.lock();
        if id.is_some_and(|id| table.entrants.is_disconnected(self.since, id)) {
            outbox.end(SocketEnd::Disconnected);
        }
        let id: Option<Arc<str>> = id.map(Into::into);
        let key = table.open.vacant_key();
        let at = id.clone().map_or(0, |id| {
            let alike = table.by_id.entry(id).or_default();
            alike.push(key);
            alike.len() - 1
        });
        table.opened += 1;
        let number = table.opened;
        let open = OpenSocket {
            outbox: outbox.clone(),
            id,
            at,
            drainer: drainer.clone(),
            opened_at: Instant::now(),
            is_shed: false,
            number,
            asked: None,
        };
        table.open.insert(open);
        if let Some(end) = table.closed {
            outbox.end(end);
        }
        drop(table);
        Registration { sockets, key }
    }
}

impl Drop for Entrant {
    fn drop(&mut self) {
        self.sockets.table.lock().entrants.leave(self.since);
    }
}

impl Table {
    fn by_mount(&self) -> Vec<MountDraining> {
        let mut mounts: Vec<MountDraining> = Vec::new();
        for (_, open) in &self.open {
            let of_mount = |mount: &MountDraining| Arc::ptr_eq(&mount.drainer, &open.drainer);
            let at = mounts.iter().position(of_mount).unwrap_or_else(|| {
                mounts.push(MountDraining::new(open.drainer.clone()));
                mounts.len() - 1
            });
            mounts[at].insert(&open.outbox);
        }
        mounts
    }
}

impl Draining {
    /// The number of sockets that were open when the first draining began.
    pub(crate) fn sockets(&self) -> usize {
        self.count
    }

    /// Ends all sockets, batch by batch. They may take their time.
    pub(crate) async fn run(&self) {
        join_all(self.mounts.iter().map(MountDraining::run)).await;
    }

    /// The number of sockets that have not been ended.
    pub(crate) fn left(&self) -> usize {
        let sockets = |mount: &MountDraining| {
            let sockets = mount.with_channels.iter().chain(&mount.without_channels);
            sockets.filter(|outbox| !outbox.has_ended()).count()
        };
        self.mounts.iter().map(sockets).sum()
    }
}

impl Drop for Draining {
    fn drop(&mut self) {
        for mount in &self.mounts {
            MountDraining::end(&mount.with_channels);
            MountDraining::end(&mount.without_channels);
        }
    }
}

impl MountDraining {
    fn new(drainer: Arc<MountDrainer>) -> Self {
        let (with_channels, channels, without_channels) = Default::default();
        Self { drainer, with_channels, channels, without_channels }
    }

    fn insert(&mut self, outbox: &Arc<Outbox>) {
        match outbox.channels() {
            0 => self.without_channels.push(outbox.clone()),
            channels => {
                self.with_channels.push(outbox.clone());
                self.channels.push(channels);
            }
        }
    }

    async fn run(&self) {
        let MountDrainer { socket, drainer } = &*self.drainer;
        let batches = drainer.batches(&self.channels);
        let (rounds, interval) = (batches.len(), drainer.interval());
        let total = self.channels.iter().sum();
        for (index, batch) in (1..).zip(batches) {
            let count = self.channels[batch.clone()].iter().sum();
            log::DrainBatch { socket, count, total, index, rounds, interval }.drains();
            Self::end(&self.with_channels[batch]);
            if index < rounds {
                time::sleep(interval).await;
            }
        }
        Self::end(&self.without_channels);
    }

    fn end(sockets: &[Arc<Outbox>]) {
        sockets.iter().for_each(|outbox| outbox.end(SocketEnd::Draining));
    }
}

impl Table {
    fn remove(&mut self, key: usize) -> OpenSocket {
        let open = self.open.remove(key);
        self.shed -= usize::from(open.is_shed);
        if let Some(id) = &open.id
            && let Some(alike) = self.by_id.get_mut(id)
        {
            alike.swap_remove(open.at);
            match alike.get(open.at) {
                // The last socket has taken the freed place.
                Some(&moved) => self.open[moved].at = open.at,
                None if alike.is_empty() => drop(self.by_id.remove(id)),
                None => {}
            }
        }
        if self.open.is_empty() {
            // The table never shrinks by itself, and it may have been large.
            (self.open, self.by_id) = Default::default();
        }
        open
    }
}

impl Registration {
    /// The socket's session has begun, and can be asked.
    pub(crate) fn answered_by(&self, asked: Weak<dyn Questioned>) {
        if let Some(open) = self.sockets.table.lock().open.get_mut(self.key) {
            open.asked = Some(asked);
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let open = self.sockets.table.lock().remove(self.key);
        drop(open);
    }
}

#[cfg(test)]
impl Sockets {
    /// The number of ids of open sockets.
    pub(super) fn ids(&self) -> usize {
        self.table.lock().by_id.len()
    }
}

#[cfg(test)]
mod tests {
    use pipeline_test_support::Recorded;

    use super::*;
    use crate::{
        endpoint::drainer::Drainer,
        outbox::{OutboxLimits, Writer},
        telemetry::SocketMetrics,
    };

    fn outbox() -> Arc<Outbox> {
        let (telemetry, _) = Recorded::new();
        let metrics = Arc::new(SocketMetrics::register(&telemetry));
        Arc::new(Outbox::new(Writer::Fetched, OutboxLimits { frames: 8, bytes: 1 << 20 }, metrics))
    }

    fn drainer() -> Arc<MountDrainer> {
        Arc::new(MountDrainer { socket: "UserSocket", drainer: Drainer::new() })
    }

    #[test]
    fn a_socket_that_registers_after_the_end_of_all_is_ended_too() {
        let (sockets, drainer) = (Arc::<Sockets>::default(), drainer());
        let early = outbox();
        let _early = sockets.enter().register(&early, None, &drainer);
        sockets.end_all(SocketEnd::Disconnected);
        let late = outbox();
        let _late = sockets.enter().register(&late, None, &drainer);
        assert!(early.has_ended() && late.has_ended());
        assert!(sockets.are_closed());
    }

    #[test]
    fn a_client_that_is_connecting_is_disconnected_by_its_id() {
        let (sockets, drainer) = (Arc::<Sockets>::default(), drainer());
        let [known, other, nameless, late] = [(); 4].map(|()| outbox());
        let [first, second, third] = [(); 3].map(|()| sockets.enter());
        assert_eq!(sockets.disconnect("user:1"), 0, "none has registered");
        let _registered = [
            first.register(&known, Some("user:1"), &drainer),
            second.register(&other, Some("user:2"), &drainer),
            third.register(&nameless, None, &drainer),
            sockets.enter().register(&late, Some("user:1"), &drainer),
        ];
        assert_eq!(known.ended(), Some(SocketEnd::Disconnected));
        assert!(!other.has_ended() && !nameless.has_ended() && !late.has_ended());
    }

    #[test]
    fn sockets_of_one_id_are_found_in_any_order_of_leaving() {
        for leaves in 0..3 {
            let (sockets, drainer) = (Arc::<Sockets>::default(), drainer());
            let outboxes = [outbox(), outbox(), outbox()];
            let mut places = outboxes
                .each_ref()
                .map(|outbox| Some(sockets.enter().register(outbox, Some("user:1"), &drainer)));
            let _other = sockets.enter().register(&outbox(), Some("user:2"), &drainer);
            places[leaves] = None;
            assert_eq!(sockets.disconnect("user:1"), 2);
            for (at, outbox) in outboxes.iter().enumerate() {
                assert_eq!(outbox.has_ended(), at != leaves, "{at} of those that {leaves} left");
            }
            places[(leaves + 1) % 3] = None;
            assert_eq!(sockets.disconnect("user:1"), 1);
            places[(leaves + 2) % 3] = None;
            assert_eq!(sockets.disconnect("user:1"), 0);
            assert_eq!(sockets.len(), 1);
        }
    }
}
