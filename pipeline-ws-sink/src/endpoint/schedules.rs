//! Sockets that open and close while their endpoint drains, ends or disconnects some of them, in
//! random orders on several threads.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use parking_lot::Mutex;
use pipeline_test_support::{PATIENCE, Recorded, Schedule, on_any_schedule};
use tokio::{sync::Notify, time::timeout};

use super::{
    admission::Admissions,
    drainer::{Drainer, MountDrainer},
    sockets::Sockets,
};
use crate::{
    outbox::{Outbox, OutboxLimits, Writer},
    session::end::SocketEnd,
    telemetry::SocketMetrics,
};

const IDS: [Option<&str>; 4] = [None, Some("user:1"), Some("user:2"), Some("user:3")];

/// An endpoint, and the counts that its own are compared with.
struct House {
    sockets: Arc<Sockets>,
    admissions: Arc<Admissions>,
    metrics: Arc<SocketMetrics>,
    mounts: Vec<Arc<MountDrainer>>,
    max: usize,
    refused: AtomicU64,
    admitted: AtomicUsize,
    /// The sockets that are about to register, and those that have.
    registering: AtomicUsize,
    registered: AtomicUsize,
    /// The sockets that are about to leave, and those that have left.
    leaving: AtomicUsize,
    left: AtomicUsize,
    /// The ids that have been disconnected.
    disconnected: Mutex<Vec<&'static str>>,
    /// How many disconnects of each id have begun and ended.
    disconnects: [[AtomicUsize; 2]; IDS.len()],
    /// Notified when the endpoint has ended.
    over: Notify,
}

/// How the endpoint ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// A drain runs to its end.
    Drained,
    /// A drain that is dropped while it runs.
    Interrupted,
    /// A second drain begins while the first runs.
    DrainedTwice,
    /// All sockets end at once.
    Ended,
    /// All sockets end at once while a drain runs.
    EndedMeanwhile,
}

const ENDINGS: [Ending; 5] = [
    Ending::Drained,
    Ending::Interrupted,
    Ending::DrainedTwice,
    Ending::Ended,
    Ending::EndedMeanwhile,
];

impl House {
    fn any(schedule: &mut Schedule) -> Self {
        let (telemetry, _) = Recorded::new();
        let max = schedule.one_of(&[1, 4, 1_000]);
        let mount = |schedule: &mut Schedule| {
            let interval = Duration::from_millis(schedule.one_of(&[0, 1]));
            let batch_size = schedule.one_of(&[0, 1, 3, 1_000]);
            let drainer = Drainer::new().batch_size(batch_size).batch_interval(interval);
            Arc::new(MountDrainer { socket: "UserSocket", drainer })
        };
        Self {
            sockets: Arc::default(),
            admissions: Arc::new(Admissions::new(max, &telemetry)),
            metrics: Arc::new(SocketMetrics::register(&telemetry)),
            mounts: (0..schedule.pick(1..=2)).map(|_| mount(schedule)).collect(),
            max,
            refused: AtomicU64::new(0),
            admitted: AtomicUsize::new(0),
            registering: AtomicUsize::new(0),
            registered: AtomicUsize::new(0),
            leaving: AtomicUsize::new(0),
            left: AtomicUsize::new(0),
            disconnected: Mutex::default(),
            disconnects: Default::default(),
            over: Notify::new(),
        }
    }

    /// Asserts that a number of open sockets, which `count` returns, is one that was true meanwhile.
    fn assert_count(&self, count: impl FnOnce() -> usize) {
        let (registered, left) = (self.registered.load(SeqCst), self.left.load(SeqCst));
        let counted = count();
        let (registering, leaving) = (self.registering.load(SeqCst), self.leaving.load(SeqCst));
        let possible = registered.saturating_sub(leaving)..=registering - left;
        assert!(possible.contains(&counted), "{counted} sockets are not in {possible:?}");
    }

    /// A client that connects, and stays until its socket ends, or until it leaves by itself.
    async fn connect(self: Arc<Self>, mut schedule: Schedule) {
        schedule.pause().await;
        if self.sockets.are_closed() {
            return;
        }
        let Some(admission) = self.admissions.admit() else {
            self.refused.fetch_add(1, SeqCst);
            return;
        };
        let others = self.admitted.fetch_add(1, SeqCst);
        assert!(others < self.max, "more sockets are admitted than there may be");
        let id = schedule.one_of(&IDS);
        let [begun, ended] = &self.disconnects[IDS.iter().position(|it| *it == id).unwrap_or(0)];
        let entrant = self.sockets.enter();
        // The client's `connect`, which knows of the disconnects before it. The endpoint may end
        // meanwhile.
        let known = begun.load(SeqCst);
        (0..schedule.pick(..4)).for_each(|_| schedule.hesitate());
        schedule.pause().await;
        let limits = OutboxLimits { frames: 8, bytes: 1 << 20 };
        let outbox = Arc::new(Outbox::new(Writer::Fetched, limits, self.metrics.clone()));
        outbox.set_channels(schedule.pick(..3));
        let mount = &self.mounts[schedule.pick(..self.mounts.len())];
        let was_closed = self.sockets.are_closed();
        self.registering.fetch_add(1, SeqCst);
        let registration = entrant.register(&outbox, id, mount);
        self.registered.fetch_add(1, SeqCst);
        let missed = ended.load(SeqCst).saturating_sub(known);
        assert!(missed == 0 || outbox.has_ended(), "{missed} disconnects of {id:?} are missed");
        assert!(!was_closed || outbox.has_ended(), "a socket opens at a closed endpoint");
        schedule.hesitate();
        outbox.set_channels(schedule.pick(..3));
        let end = if schedule.once_in(3) {
            schedule.pause().await;
            outbox.ended()
        } else {
            let end = timeout(PATIENCE, outbox.write()).await;
            Some(end.expect("a socket that has registered stays open"))
        };
        if end == Some(SocketEnd::Disconnected) && !self.sockets.are_closed() {
            let disconnected = self.disconnected.lock();
            let is_meant = id.is_some_and(|id| disconnected.contains(&id));
            assert!(is_meant, "a socket of {id:?} was disconnected, with {disconnected:?}");
        }
        self.leaving.fetch_add(1, SeqCst);
        drop(registration);
        self.left.fetch_add(1, SeqCst);
        self.admitted.fetch_sub(1, SeqCst);
        drop(admission);
    }

    /// Reads counts, and disconnects ids, until the endpoint has ended.
    async fn watch(self: Arc<Self>, mut schedule: Schedule) {
        let mut over = std::pin::pin!(self.over.notified());
        over.as_mut().enable();
        loop {
            self.assert_count(|| self.sockets.len());
            self.sockets.waiting();
            let at = schedule.pick(..IDS.len());
            if let (true, Some(id)) = (schedule.once_in(4), IDS[at]) {
                self.disconnected.lock().push(id);
                let [begun, ended] = &self.disconnects[at];
                begun.fetch_add(1, SeqCst);
                let all = self.sockets.disconnect(id);
                ended.fetch_add(1, SeqCst);
                assert!(all <= self.max.min(self.registering.load(SeqCst)));
            }
            schedule.pause().await;
            tokio::select! {
                biased;
                () = &mut over => return,
                () = tokio::task::yield_now() => {}
            }
        }
    }

    /// Ends the endpoint. No socket that had registered by then is open afterwards.
    async fn end(&self, ending: Ending, schedule: &mut Schedule) {
        let sockets = &self.sockets;
        if ending == Ending::Ended {
            sockets.end_all(SocketEnd::Disconnected);
            return;
        }
        let mut draining = None;
        self.assert_count(|| draining.insert(sockets.drain()).sockets());
        let Some(draining) = draining else { return };
        assert!(sockets.are_closed());
        match ending {
            Ending::Interrupted => {
                let interrupted = async {
                    (0..schedule.pick(..4)).for_each(|_| schedule.hesitate());
                    schedule.pause().await;
                };
                tokio::select! {
                    () = draining.run() => {}
                    () = interrupted => {}
                }
                drop(draining);
            }
            Ending::DrainedTwice => {
                let another = sockets.drain();
                tokio::join!(draining.run(), another.run());
                assert_eq!((draining.left(), another.left()), (0, 0));
            }
            Ending::EndedMeanwhile => {
                tokio::join!(draining.run(), async {
                    schedule.pause().await;
                    sockets.end_all(SocketEnd::Disconnected);
                });
                assert_eq!(draining.left(), 0);
            }
            Ending::Drained | Ending::Ended => {
                draining.run().await;
                assert_eq!(draining.left(), 0);
            }
        }
        timeout(PATIENCE, sockets.closed()).await.expect("the endpoint is closed");
    }
}

async fn case(seed: u64) {
    let mut schedule = Schedule::new(seed);
    let house = Arc::new(House::any(&mut schedule));
    let ending = schedule.one_of(&ENDINGS);
    let clients: Vec<_> = (0..schedule.pick(1..=24))
        .map(|_| tokio::spawn(house.clone().connect(schedule.fork())))
        .collect();
    let watching = tokio::spawn(house.clone().watch(schedule.fork()));
    for _ in 0..schedule.pick(..20) {
        schedule.pause().await;
    }
    house.end(ending, &mut schedule).await;
    for client in clients {
        client.await.unwrap_or_else(|error| panic!("{ending:?}: {error}"));
    }
    house.over.notify_one();
    watching.await.unwrap();
    assert!(house.sockets.are_closed());
    assert_eq!((house.sockets.len(), house.sockets.ids()), (0, 0), "{ending:?}");
    assert_eq!(house.admissions.open(), 0, "{ending:?}");
    assert_eq!(house.admissions.refused(), house.refused.load(SeqCst), "{ending:?}");
}

#[test]
fn a_socket_that_registers_while_a_drain_begins_is_drained_or_refused() {
    on_any_schedule(1_000, case);
}
