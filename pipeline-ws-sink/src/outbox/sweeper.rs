//! The sweeper: it writes to many sockets in turn when frames come faster than single writes.

use std::{
    collections::VecDeque,
    io::IoSlice,
    mem,
    num::NonZeroUsize,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::Notify,
    task,
    time::{self, Instant},
};

use super::{GATHER, Outbox, Unrecorded, backlog::InHand, pace::Stretch};

/// The number of sockets after which the task yields. Writing to that many takes about as long as a
/// few pushes of a pipeline, which then make the next writes more efficient: with 16, a pipeline to
/// 1000 sockets takes a sixth more time of all cores.
const TURN: usize = 4;

/// How long idle sockets keep their memory.
const COOL: Duration = Duration::from_millis(20);

/// How long busy sockets keep it.
const WARM: Duration = Duration::from_secs(1);

/// The sockets that have frames to be written soon, but not by the sender.
///
/// Waking the task of every socket for every frame costs more than the write, and each frame would
/// need a write of its own. So a few tasks go from socket to socket, and write to each the frames
/// that have arrived until then: the higher the load, the more frames share a write.
///
/// A socket that takes no more is left to its own task. The queues hold only references to sockets,
/// each at most once, and the tasks end when the queues are empty.
pub(crate) struct Sweeper {
    rounds: Box<[Arc<Round>]>,
    next: AtomicUsize,
}

/// The sockets of one task.
#[derive(Default)]
struct Round {
    due: Mutex<Due>,
    /// Notifies a waiting task.
    more: Notify,
}

#[derive(Default)]
struct Due {
    sockets: VecDeque<Arc<Outbox>>,
    task: Task,
}

/// The task of a round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Task {
    #[default]
    Absent,
    Writing,
    /// It has nothing to do, and stays for a moment.
    Waiting,
}

/// A socket's place: the task that writes to it, and the runtime to start that task on.
#[derive(Clone)]
pub(crate) struct Place {
    round: Arc<Round>,
    /// The socket's own runtime. Broadcasting tasks may run elsewhere.
    runtime: Handle,
}

impl Sweeper {
    pub(crate) fn new() -> Self {
        let tasks = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self { rounds: (0..tasks).map(|_| Arc::default()).collect(), next: AtomicUsize::new(0) }
    }

    /// A place for a socket on the caller's runtime.
    pub(crate) fn place(&self) -> Place {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        let round = self.rounds[next % self.rounds.len()].clone();
        Place { round, runtime: Handle::current() }
    }
}

impl Place {
    /// Queues a socket to be written to soon. It must not be queued already.
    pub(super) fn soon(&self, outbox: &Arc<Outbox>) {
        let mut due = self.round.due.lock();
        due.sockets.push_back(outbox.clone());
        let task = mem::replace(&mut due.task, Task::Writing);
        drop(due);
        match task {
            Task::Writing => {}
            Task::Waiting => self.round.more.notify_one(),
            Task::Absent => drop(self.runtime.spawn(Sweep::new(self).run())),
        }
    }
}

/// A task that goes from socket to socket.
struct Sweep {
    place: Place,
    /// The sockets of this round that have not been visited.
    sockets: VecDeque<Arc<Outbox>>,
    /// The frames that are written next.
    hand: InHand,
    /// Sockets that keep memory. Some may be gone.
    warm: Vec<Weak<Outbox>>,
    /// When they were last cooled.
    cooled: Instant,
    done: bool,
}

impl Sweep {
    fn new(place: &Place) -> Self {
        Self {
            place: place.clone(),
            sockets: VecDeque::new(),
            hand: InHand::default(),
            warm: Vec::new(),
            cooled: Instant::now(),
            done: false,
        }
    }

    async fn run(mut self) {
        while !self.done {
            self.write().await;
            let more = self.place.round.more.notified();
            if time::timeout(COOL, more).await.is_err() {
                self.cool();
                self.end();
            }
        }
    }

    /// Writes until no socket is queued.
    async fn write(&mut self) {
        let (mut since, mut stretch) = (Instant::now(), Stretch::default());
        while self.more() {
            if let Some(pause) = stretch.pause(since.elapsed()) {
                time::sleep(pause).await;
                (since, stretch) = (Instant::now(), Stretch::default());
            }
            self.round(&mut stretch).await;
            if self.cooled.elapsed() > WARM {
                self.cool();
            }
        }
    }

    /// Takes the newly queued sockets, behind those that have more to write. If there are no
    /// sockets, the next one queued notifies this task.
    fn more(&mut self) -> bool {
        let mut due = self.place.round.due.lock();
        self.sockets.append(&mut due.sockets);
        due.task = if self.sockets.is_empty() { Task::Waiting } else { Task::Writing };
        due.task == Task::Writing
    }

    /// Visits every queued socket once. A socket that has more waits for the next round.
    async fn round(&mut self, stretch: &mut Stretch) {
        for visited in 1..=self.sockets.len() {
            let Some(outbox) = self.sockets.pop_front() else { break };
            self.visit(&outbox, stretch);
            if visited.is_multiple_of(TURN) {
                task::yield_now().await;
            }
        }
    }

    /// Writes a socket's pending frames, or as many as fit into one write.
    fn visit(&mut self, outbox: &Arc<Outbox>, stretch: &mut Stretch) {
        // Senders that need the result of the write wait for this lock. The others need
        // not wait for the system.
        let writing = outbox.sweeping.lock();
        let Some((stream, is_new)) = outbox.take_in_hand(&mut self.hand) else { return };
        if is_new {
            self.warm.push(Arc::downgrade(outbox));
        }
        let mut slices = [IoSlice::new(&[]); GATHER];
        let count = self.hand.slices(&mut slices);
        let begun = outbox.metrics.write_time.begin();
        let written = stream.try_write_vectored(&slices[..count]);
        let (wrote, now) = (written.is_ok(), Instant::now());
        stretch.wrote(count);
        let mut unrecorded = Unrecorded::default();
        let has_more = outbox.put_back(&mut self.hand, written, now, &mut unrecorded);
        drop(writing);
        if has_more {
            self.sockets.push_back(outbox.clone());
        }
        // Recorded last: a recorder may panic, and then the next task finds a consistent state.
        outbox.metrics.write_time.end(begun.filter(|_| wrote), now);
        outbox.let_go(&mut self.hand, now);
        unrecorded.record(&outbox.metrics);
    }

    /// Makes the sockets free memory that they do not need.
    fn cool(&mut self) {
        self.cooled = Instant::now();
        self.warm.drain(..).filter_map(|outbox| outbox.upgrade()).for_each(|outbox| outbox.cool());
    }

    /// Ends the task, if no socket is queued.
    fn end(&mut self) {
        let mut due = self.place.round.due.lock();
        self.done = due.sockets.is_empty();
        if self.done {
            due.task = Task::Absent;
        }
    }
}

impl Drop for Sweep {
    /// Without a regular end, a recorder has panicked, or the task's runtime ends. In the latter
    /// case the sockets of that runtime end too, but others may be in the same round.
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut due = self.place.round.due.lock();
        due.task = Task::Absent;
        self.sockets.append(&mut due.sockets);
        let ended = (!thread::panicking()).then(|| self.place.runtime.id());
        let ends = |place: &Place| Some(place.runtime.id()) == ended;
        let stays = |outbox: &Arc<Outbox>| !outbox.place.as_ref().is_none_or(ends);
        let (mut stay, gone): (VecDeque<_>, VecDeque<_>) =
            mem::take(&mut self.sockets).into_iter().partition(stays);
        let next = stay.pop_front();
        due.sockets = stay;
        drop(due);
        drop(gone);
        if let Some(outbox) = next
            && let Some(place) = &outbox.place
        {
            place.soon(&outbox);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use metrics::{
        Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString,
        Unit,
    };
    use pipeline_core::Telemetry;
    use pipeline_test_support::{PATIENCE, Recorded, eventually};
    use tokio::{
        io::AsyncReadExt,
        net::{TcpListener, TcpStream},
        runtime,
    };

    use super::{
        super::{EventKey, OutboxLimits, SharedFrame, Way, WhenFull, Writer},
        *,
    };
    use crate::{
        protocol::frame::Frame,
        telemetry::{SocketMetrics, since::Since},
    };

    /// A swept outbox, and its client.
    async fn socket(sweeper: &Sweeper, telemetry: &Telemetry) -> (Arc<Outbox>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        stream.writable().await.unwrap();
        let limits = OutboxLimits { frames: 100_000, bytes: 1 << 30 };
        let metrics = Arc::new(SocketMetrics::register(telemetry));
        let outbox = Outbox::new(Writer::Tcp(Arc::new(stream)), limits, metrics)
            .when_full(WhenFull::DropOldest)
            .at(sweeper.place());
        (Arc::new(outbox), client)
    }

    /// A frame with a payload of this length.
    fn frame(fill: u8, length: usize) -> Frame {
        let write = |out: &mut Vec<u8>| {
            out.resize(out.len() + length, fill);
            Ok::<_, ()>(())
        };
        Frame::text(write).unwrap()
    }

    fn news(fill: u8, length: usize) -> SharedFrame {
        let since = Some(Since::now());
        SharedFrame::new(frame(fill, length), EventKey::new("t", "e")).timed(since)
    }

    fn keeps_memory(outbox: &Outbox) -> bool {
        outbox.state.lock().backlog.is_some()
    }

    fn tasks(sweeper: &Sweeper) -> usize {
        sweeper.rounds.iter().filter(|round| round.due.lock().task != Task::Absent).count()
    }

    #[tokio::test]
    async fn swept_frames_arrive_complete_in_order_and_timed() {
        const EACH: u8 = 200;
        let (sweeper, (telemetry, recorded)) = (Sweeper::new(), Recorded::new());
        let mut sockets = vec![];
        for _ in 0..7 {
            sockets.push(socket(&sweeper, &telemetry).await);
        }
        for number in 0..EACH {
            let news = news(number, 100);
            for (outbox, _) in &sockets {
                outbox.send_and_record(&news, Way::Swept);
            }
            if number % 50 == 49 {
                // A frame for one socket alone keeps its place.
                sockets.iter().for_each(|(outbox, _)| outbox.send(&frame(number, 20), None));
                task::yield_now().await;
            }
        }
        for (_, client) in &mut sockets {
            for number in 0..EACH {
                let mut received = [0; 102];
                client.read_exact(&mut received).await.unwrap();
                assert_eq!(received, frame(number, 100).bytes()[..]);
                if number % 50 == 49 {
                    let mut received = [0; 22];
                    client.read_exact(&mut received).await.unwrap();
                    assert_eq!(received, frame(number, 20).bytes()[..]);
                }
            }
        }
        eventually(|| recorded.samples("pipeline.push_delivered").len() == 7 * usize::from(EACH))
            .await;
    }

    #[tokio::test]
    async fn a_socket_that_takes_no_more_is_left_to_its_own_task() {
        const COUNT: usize = 2_000;
        let sweeper = Sweeper::new();
        let (outbox, mut client) = socket(&sweeper, &Telemetry::global()).await;
        let (other, mut others_client) = socket(&sweeper, &Telemetry::global()).await;
        let (polled, task) = (Arc::new(AtomicUsize::new(0)), outbox.clone());
        let polls = polled.clone();
        let task = tokio::spawn(poll_fn(move |cx| {
            polls.fetch_add(1, Ordering::Relaxed);
            task.poll_write(cx)
        }));
        eventually(|| polled.load(Ordering::Relaxed) > 0).await;

        let large = news(b'x', 10_000);
        (0..COUNT).for_each(|_| outbox.send_and_record(&large, Way::Swept));
        other.send_and_record(&large, Way::Swept);
        let mut received = vec![0; 10_004];
        others_client.read_exact(&mut received).await.unwrap();

        eventually(|| !outbox.state.lock().is_due && !outbox.state.lock().in_hand).await;
        assert!(outbox.state.lock().waiting().is_some(), "the system has taken everything");
        for _ in 0..COUNT {
            client.read_exact(&mut received).await.unwrap();
            assert_eq!(received, frame(b'x', 10_000).bytes()[..]);
        }
        task.abort();
    }

    #[tokio::test]
    async fn memory_is_freed_and_the_task_ends_when_no_frames_come() {
        let sweeper = Sweeper::new();
        let (outbox, mut client) = socket(&sweeper, &Telemetry::global()).await;
        for _ in 0..2 {
            outbox.send_and_record(&news(b'x', 10), Way::Swept);
            assert!(keeps_memory(&outbox));
            assert_eq!(tasks(&sweeper), 1);
            client.read_exact(&mut [0; 12]).await.unwrap();
            eventually(|| tasks(&sweeper) == 0).await;
            assert!(!keeps_memory(&outbox));
        }
    }

    /// Panics at the first delivery, and counts the others.
    struct Faulty(Arc<AtomicUsize>);

    impl HistogramFn for Faulty {
        fn record(&self, _: f64) {
            assert!(self.0.fetch_add(1, Ordering::Relaxed) > 0, "a recorder that panics once");
        }
    }

    impl Recorder for Faulty {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

        fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
            Counter::noop()
        }

        fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::noop()
        }

        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::from_arc(Arc::new(Self(self.0.clone())))
        }
    }

    #[tokio::test]
    async fn a_recorder_that_panics_loses_no_frame() {
        const EACH: usize = 3 * GATHER;
        let (sweeper, recorded) = (Sweeper::new(), Arc::default());
        let telemetry = Telemetry::to(Faulty(Arc::clone(&recorded)));
        let mut sockets = vec![];
        // More than one socket in each round.
        for _ in 0..2 * sweeper.rounds.len() {
            sockets.push(socket(&sweeper, &telemetry).await);
        }
        let news = news(b'x', 10);
        for _ in 0..EACH {
            sockets.iter().for_each(|(outbox, _)| outbox.send_and_record(&news, Way::Swept));
        }
        for (_, client) in &mut sockets {
            client.read_exact(&mut [0; 12 * EACH]).await.unwrap();
        }
        assert!(recorded.load(Ordering::Relaxed) > 1);
    }

    #[tokio::test]
    async fn a_closed_socket_is_not_kept_open() {
        let sweeper = Sweeper::new();
        let (outbox, mut client) = socket(&sweeper, &Telemetry::global()).await;
        outbox.send_and_record(&news(b'x', 10), Way::Swept);
        client.read_exact(&mut [0; 12]).await.unwrap();
        drop(outbox);
        assert_eq!(client.read(&mut [0; 12]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_socket_that_ends_wakes_its_task_although_it_is_being_written_to() {
        let sweeper = Sweeper::new();
        let (outbox, mut client) = socket(&sweeper, &Telemetry::global()).await;
        let close = Frame::close(1000);
        outbox.send_and_record(&news(b'x', 10), Way::Swept);
        outbox.finish(&close);
        let closing = tokio::spawn(async move { poll_fn(|cx| outbox.poll_close(cx)).await });
        let mut received = vec![];
        client.read_to_end(&mut received).await.unwrap();
        closing.await.unwrap().unwrap();
        assert_eq!(received, [&frame(b'x', 10).bytes()[..], close.bytes()].concat());
    }

    fn with_one_round() -> Sweeper {
        Sweeper { rounds: Box::new([Arc::default()]), next: AtomicUsize::new(0) }
    }

    #[tokio::test]
    async fn a_socket_that_always_has_more_waits_for_the_others_in_every_round() {
        let sweeper = with_one_round();
        let (busy, _client) = socket(&sweeper, &Telemetry::global()).await;
        let (calm, _others_client) = socket(&sweeper, &Telemetry::global()).await;
        (0..3 * GATHER).for_each(|_| busy.send_and_record(&news(b'x', 10), Way::Swept));
        // The round's own task is not polled in this test.
        let (mut sweep, mut stretch) = (Sweep::new(&sweeper.place()), Stretch::default());
        assert!(sweep.more());
        calm.send_and_record(&news(b'y', 10), Way::Swept);
        for _ in 0..2 {
            sweep.round(&mut stretch).await;
            sweep.more();
        }
        assert_eq!(calm.load().frames, 0);
        assert_eq!(busy.load().frames, GATHER);
    }

    #[test]
    fn a_runtime_that_ends_leaves_the_sockets_of_others_to_another_task() {
        let sweeper = with_one_round();
        let runtime = || runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (ends, lives) = (runtime(), runtime());
        let (gone, _client) = ends.block_on(socket(&sweeper, &Telemetry::global()));
        let (outbox, mut client) = lives.block_on(socket(&sweeper, &Telemetry::global()));
        // The task of the round is on the first runtime.
        gone.send_and_record(&news(b'x', 10), Way::Swept);
        outbox.send_and_record(&news(b'x', 10), Way::Swept);
        drop(ends);
        let received = async { client.read_exact(&mut [0; 12]).await };
        lives.block_on(async { time::timeout(PATIENCE, received).await }).unwrap().unwrap();
    }
}
