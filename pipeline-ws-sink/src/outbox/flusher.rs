//! The flusher: it writes to many sockets in turn when frames come faster than single writes.

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

use super::{GATHER, Outbox, PendingMetrics, backlog::WriteBatch, pacer::FlushPacer};

/// The number of sockets after which the task yields. Writing to that many takes about as long as a
/// few pushes of a pipeline, which then make the next writes more efficient: with 16, a pipeline to
/// 1000 sockets takes a sixth more time of all cores.
const TURN: usize = 4;

/// How long idle sockets keep their memory.
const IDLE_SHRINK: Duration = Duration::from_millis(20);

/// How long busy sockets keep it.
const BUSY_SHRINK: Duration = Duration::from_secs(1);

/// The sockets that have frames to be written soon, but not by the sender.
///
/// Waking the task of every socket for every frame costs more than the write, and each frame would
/// need a write of its own. So a few tasks go from socket to socket, and write to each the frames
/// that have arrived until then: the higher the load, the more frames share a write.
///
/// A socket that takes no more is left to its own task. The queues hold only references to sockets,
/// each at most once, and the tasks end when the queues are empty.
pub(crate) struct Flusher {
    queues: Box<[Arc<FlushQueue>]>,
    next: AtomicUsize,
}

/// The sockets of one task.
#[derive(Default)]
struct FlushQueue {
    queued: Mutex<Queued>,
    /// Notifies a waiting task.
    more: Notify,
}

#[derive(Default)]
struct Queued {
    sockets: VecDeque<Arc<Outbox>>,
    task: Task,
}

/// The task of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Task {
    #[default]
    Absent,
    Writing,
    /// Has nothing to do, and stays for a moment.
    Waiting,
}

/// A socket's slot: the task that writes to it, and the runtime to start that task on.
#[derive(Clone)]
pub(crate) struct FlushSlot {
    queue: Arc<FlushQueue>,
    /// The socket's own runtime. Broadcasting tasks may run elsewhere.
    runtime: Handle,
}

impl Flusher {
    pub(crate) fn new() -> Self {
        let tasks = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self { queues: (0..tasks).map(|_| Arc::default()).collect(), next: AtomicUsize::new(0) }
    }

    /// A slot for a socket on the caller's runtime.
    pub(crate) fn slot(&self) -> FlushSlot {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        let queue = self.queues[next % self.queues.len()].clone();
        FlushSlot { queue, runtime: Handle::current() }
    }
}

impl FlushSlot {
    /// Queues a socket to be written to soon. It must not be queued already.
    pub(super) fn enqueue(&self, outbox: &Arc<Outbox>) {
        let mut queued = self.queue.queued.lock();
        queued.sockets.push_back(outbox.clone());
        let task = mem::replace(&mut queued.task, Task::Writing);
        drop(queued);
        match task {
            Task::Writing => {}
            Task::Waiting => self.queue.more.notify_one(),
            Task::Absent => drop(self.runtime.spawn(FlushTask::new(self).run())),
        }
    }
}

/// A task that goes from socket to socket.
struct FlushTask {
    slot: FlushSlot,
    /// The sockets of this queue that have not been visited.
    sockets: VecDeque<Arc<Outbox>>,
    /// The frames that are written next.
    batch: WriteBatch,
    /// Sockets that keep memory. Some may be gone.
    keeping: Vec<Weak<Outbox>>,
    /// When they were last shrunk.
    last_shrink: Instant,
    done: bool,
}

impl FlushTask {
    fn new(slot: &FlushSlot) -> Self {
        Self {
            slot: slot.clone(),
            sockets: VecDeque::new(),
            batch: WriteBatch::default(),
            keeping: Vec::new(),
            last_shrink: Instant::now(),
            done: false,
        }
    }

    async fn run(mut self) {
        while !self.done {
            self.write().await;
            let more = self.slot.queue.more.notified();
            if time::timeout(IDLE_SHRINK, more).await.is_err() {
                self.shrink();
                self.end();
            }
        }
    }

    /// Writes until no socket is queued.
    async fn write(&mut self) {
        let (mut since, mut pacer) = (Instant::now(), FlushPacer::default());
        while self.take_queued() {
            if let Some(pause) = pacer.pause(since.elapsed()) {
                time::sleep(pause).await;
                (since, pacer) = (Instant::now(), FlushPacer::default());
            }
            self.flush_all(&mut pacer).await;
            if self.last_shrink.elapsed() > BUSY_SHRINK {
                self.shrink();
            }
        }
    }

    /// Takes the newly queued sockets, behind those that have more to write. If there are no
    /// sockets, the next one queued notifies this task.
    fn take_queued(&mut self) -> bool {
        let mut queued = self.slot.queue.queued.lock();
        self.sockets.append(&mut queued.sockets);
        queued.task = if self.sockets.is_empty() { Task::Waiting } else { Task::Writing };
        queued.task == Task::Writing
    }

    /// Visits every queued socket once. A socket that has more waits for the next pass.
    async fn flush_all(&mut self, pacer: &mut FlushPacer) {
        for visited in 1..=self.sockets.len() {
            let Some(outbox) = self.sockets.pop_front() else { break };
            self.flush(&outbox, pacer);
            if visited.is_multiple_of(TURN) {
                task::yield_now().await;
            }
        }
    }

    /// Writes a socket's pending frames, or as many as fit into one write.
    fn flush(&mut self, outbox: &Arc<Outbox>, pacer: &mut FlushPacer) {
        // Senders that need the result of the write wait for this lock. The others need
        // not wait for the system.
        let writing = outbox.flushing.lock();
        let Some((stream, is_new)) = outbox.begin_write(&mut self.batch) else { return };
        if is_new {
            self.keeping.push(Arc::downgrade(outbox));
        }
        let mut slices = [IoSlice::new(&[]); GATHER];
        let count = self.batch.slices(&mut slices);
        let begun = outbox.metrics.write_time.begin();
        let written = stream.try_write_vectored(&slices[..count]);
        let (wrote, now) = (written.is_ok(), Instant::now());
        pacer.wrote(count);
        let mut unrecorded = PendingMetrics::default();
        let has_more = outbox.finish_write(&mut self.batch, written, now, &mut unrecorded);
        drop(writing);
        if has_more {
            self.sockets.push_back(outbox.clone());
        }
        // Recorded last: a recorder may block.
        outbox.metrics.write_time.end(begun.filter(|_| wrote), now);
        outbox.complete(&mut self.batch, now);
        unrecorded.record(&outbox.metrics);
    }

    /// Makes the sockets free memory that they do not need.
    fn shrink(&mut self) {
        self.last_shrink = Instant::now();
        self.keeping
            .drain(..)
            .filter_map(|outbox| outbox.upgrade())
            .for_each(|outbox| outbox.shrink());
    }

    /// Ends the task, if no socket is queued.
    fn end(&mut self) {
        let mut queued = self.slot.queue.queued.lock();
        self.done = queued.sockets.is_empty();
        if self.done {
            queued.task = Task::Absent;
        }
    }
}

impl Drop for FlushTask {
    /// Without a regular end, the task has panicked, or its runtime ends. In the latter case the
    /// sockets of that runtime end too, but others may be in the same queue.
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut queued = self.slot.queue.queued.lock();
        queued.task = Task::Absent;
        self.sockets.append(&mut queued.sockets);
        let ended = (!thread::panicking()).then(|| self.slot.runtime.id());
        let ends = |slot: &FlushSlot| Some(slot.runtime.id()) == ended;
        let stays = |outbox: &Arc<Outbox>| !outbox.flush_slot.as_ref().is_none_or(ends);
        let (mut stay, gone): (VecDeque<_>, VecDeque<_>) =
            mem::take(&mut self.sockets).into_iter().partition(stays);
        let next = stay.pop_front();
        queued.sockets = stay;
        drop(queued);
        drop(gone);
        if let Some(outbox) = next
            && let Some(slot) = &outbox.flush_slot
        {
            slot.enqueue(&outbox);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        sync::atomic::AtomicBool,
        task::{Context, Wake, Waker},
    };

    use metrics::{
        Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString,
        Unit,
    };
    use pipeline_core::telemetry::Telemetry;
    use pipeline_test_support::{PATIENCE, Recorded, eventually};
    use tokio::{
        io::AsyncReadExt,
        net::{TcpListener, TcpStream},
        runtime,
    };

    use super::{
        super::{EventKey, FlushState, OutboxLimits, SharedFrame, WhenFull, WriteMode, Writer},
        *,
    };
    use crate::{
        protocol::frame::Frame,
        session::end::SocketEnd,
        telemetry::{SocketMetrics, push_times::broadcast_now},
    };

    /// A flushed outbox, and its client.
    async fn socket(flusher: &Flusher, telemetry: &Telemetry) -> (Arc<Outbox>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        stream.writable().await.unwrap();
        let limits = OutboxLimits { frames: 100_000, bytes: 1 << 30 };
        let metrics = Arc::new(SocketMetrics::register(telemetry));
        let outbox = Outbox::new(Writer::Tcp(Arc::new(stream)), limits, metrics)
            .when_full(WhenFull::DropOldest)
            .flushed_by(flusher.slot());
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
        let timeline = Some(broadcast_now());
        SharedFrame::new(frame(fill, length), EventKey::new("t", "e")).timed(timeline)
    }

    fn keeps_memory(outbox: &Outbox) -> bool {
        outbox.state.lock().backlog.is_some()
    }

    fn tasks(flusher: &Flusher) -> usize {
        flusher.queues.iter().filter(|queue| queue.queued.lock().task != Task::Absent).count()
    }

    #[tokio::test]
    async fn deferred_frames_arrive_complete_in_order_and_timed() {
        const EACH: u8 = 200;
        let (flusher, (telemetry, recorded)) = (Flusher::new(), Recorded::new());
        let mut sockets = vec![];
        for _ in 0..7 {
            sockets.push(socket(&flusher, &telemetry).await);
        }
        for number in 0..EACH {
            let news = news(number, 100);
            for (outbox, _) in &sockets {
                outbox.send_and_record(&news, WriteMode::Deferred);
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
        let flusher = Flusher::new();
        let (outbox, mut client) = socket(&flusher, &Telemetry::global()).await;
        let (other, mut others_client) = socket(&flusher, &Telemetry::global()).await;
        let (polled, task) = (Arc::new(AtomicUsize::new(0)), outbox.clone());
        let polls = polled.clone();
        let task = tokio::spawn(poll_fn(move |cx| {
            polls.fetch_add(1, Ordering::Relaxed);
            task.poll_write(cx)
        }));
        eventually(|| polled.load(Ordering::Relaxed) > 0).await;

        let large = news(b'x', 10_000);
        (0..COUNT).for_each(|_| outbox.send_and_record(&large, WriteMode::Deferred));
        other.send_and_record(&large, WriteMode::Deferred);
        let mut received = vec![0; 10_004];
        others_client.read_exact(&mut received).await.unwrap();

        eventually(|| outbox.state.lock().flush == FlushState::Idle).await;
        assert!(outbox.state.lock().waiting().is_some(), "the system has taken everything");
        for _ in 0..COUNT {
            client.read_exact(&mut received).await.unwrap();
            assert_eq!(received, frame(b'x', 10_000).bytes()[..]);
        }
        task.abort();
    }

    #[tokio::test]
    async fn memory_is_freed_and_the_task_ends_when_no_frames_come() {
        let flusher = Flusher::new();
        let (outbox, mut client) = socket(&flusher, &Telemetry::global()).await;
        for _ in 0..2 {
            outbox.send_and_record(&news(b'x', 10), WriteMode::Deferred);
            assert!(keeps_memory(&outbox));
            assert_eq!(tasks(&flusher), 1);
            client.read_exact(&mut [0; 12]).await.unwrap();
            eventually(|| tasks(&flusher) == 0).await;
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
        let (flusher, recorded) = (Flusher::new(), Arc::default());
        let telemetry = Telemetry::with_recorder(Faulty(Arc::clone(&recorded)));
        let mut sockets = vec![];
        // More than one socket in each queue.
        for _ in 0..2 * flusher.queues.len() {
            sockets.push(socket(&flusher, &telemetry).await);
        }
        let news = news(b'x', 10);
        for _ in 0..EACH {
            sockets
                .iter()
                .for_each(|(outbox, _)| outbox.send_and_record(&news, WriteMode::Deferred));
        }
        for (_, client) in &mut sockets {
            client.read_exact(&mut [0; 12 * EACH]).await.unwrap();
        }
        assert!(recorded.load(Ordering::Relaxed) > 1);
    }

    #[tokio::test]
    async fn a_closed_socket_is_not_kept_open() {
        let flusher = Flusher::new();
        let (outbox, mut client) = socket(&flusher, &Telemetry::global()).await;
        outbox.send_and_record(&news(b'x', 10), WriteMode::Deferred);
        client.read_exact(&mut [0; 12]).await.unwrap();
        drop(outbox);
        assert_eq!(client.read(&mut [0; 12]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_socket_that_ends_wakes_its_task_although_it_is_being_written_to() {
        struct Woken(AtomicBool);
        impl Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.store(true, Ordering::Relaxed);
            }
        }

        let flusher = with_one_queue();
        let (outbox, mut client) = socket(&flusher, &Telemetry::global()).await;
        let close = Frame::close(1000);
        outbox.send_and_record(&news(b'x', 10), WriteMode::Deferred);
        // The queue's own task is not polled while this test writes in its place.
        let mut batch = WriteBatch::default();
        let (stream, _) = outbox.begin_write(&mut batch).unwrap();
        outbox.finish(SocketEnd::Disconnected, &close);
        let woken = Arc::new(Woken(AtomicBool::new(false)));
        let waker = Waker::from(woken.clone());
        assert!(outbox.poll_close(&mut Context::from_waker(&waker)).is_pending());
        let mut slices = [IoSlice::new(&[]); GATHER];
        let count = batch.slices(&mut slices);
        let written = stream.try_write_vectored(&slices[..count]);
        drop(stream);
        let mut unrecorded = PendingMetrics::default();
        assert!(!outbox.finish_write(&mut batch, written, Instant::now(), &mut unrecorded));
        assert!(woken.0.load(Ordering::Relaxed));
        poll_fn(|cx| outbox.poll_close(cx)).await.unwrap();
        outbox.release();
        let mut received = vec![];
        client.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, [&frame(b'x', 10).bytes()[..], close.bytes()].concat());
    }

    fn with_one_queue() -> Flusher {
        Flusher { queues: Box::new([Arc::default()]), next: AtomicUsize::new(0) }
    }

    #[tokio::test]
    async fn a_socket_that_always_has_more_waits_for_the_others_in_every_pass() {
        let flusher = with_one_queue();
        let (busy, _client) = socket(&flusher, &Telemetry::global()).await;
        let (calm, _others_client) = socket(&flusher, &Telemetry::global()).await;
        (0..3 * GATHER).for_each(|_| busy.send_and_record(&news(b'x', 10), WriteMode::Deferred));
        // The queue's own task is not polled in this test.
        let (mut task, mut pacer) = (FlushTask::new(&flusher.slot()), FlushPacer::default());
        assert!(task.take_queued());
        calm.send_and_record(&news(b'y', 10), WriteMode::Deferred);
        for _ in 0..2 {
            task.flush_all(&mut pacer).await;
            task.take_queued();
        }
        assert_eq!(calm.load().frames, 0);
        assert_eq!(busy.load().frames, GATHER);
    }

    #[test]
    fn a_runtime_that_ends_leaves_the_sockets_of_others_to_another_task() {
        let flusher = with_one_queue();
        let runtime = || runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (ends, lives) = (runtime(), runtime());
        let (gone, _client) = ends.block_on(socket(&flusher, &Telemetry::global()));
        let (outbox, mut client) = lives.block_on(socket(&flusher, &Telemetry::global()));
        // The task of the queue is on the first runtime.
        gone.send_and_record(&news(b'x', 10), WriteMode::Deferred);
        outbox.send_and_record(&news(b'x', 10), WriteMode::Deferred);
        drop(ends);
        let received = async { client.read_exact(&mut [0; 12]).await };
        lives.block_on(async { time::timeout(PATIENCE, received).await }).unwrap().unwrap();
    }
}
