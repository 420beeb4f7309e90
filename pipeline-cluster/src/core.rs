//! A node of a cluster, apart from its connection.

use std::{
    future::Future,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;
use pipeline_core::timed::Timeline;
use pipeline_ws_sink::{
    Payload,
    payload::PayloadError,
    pubsub::{AdapterError, AdapterSnapshot, Broadcast, LocalNode},
};
use tokio::{
    sync::{Notify, broadcast, watch},
    time::{Duration, Instant, timeout},
};

use crate::{
    ClusterError, ClusterOptions,
    channels::Channel,
    clock::{SharedClock, micros},
    frame::{self, Frame, FrameError, LONGEST_NODE, set_sequence},
    gap::{Gap, Missing, UNREAD},
    log::LineLimit,
    metrics::{ClusterMetrics, Reason},
    queue::{Outgoing, Queue},
    receiving::{Arrives, Receiving},
    sequence::{Arrival, Arrived, Sent},
};

/// A node of a cluster, apart from its connection. Its adapter sends through it and its connection
/// receives through it.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) options: ClusterOptions,
    pub(crate) name: Arc<str>,
    /// The start of this node: that of a later node of the same name is greater.
    epoch: u64,
    pub(crate) clock: SharedClock,
    pub(crate) metrics: ClusterMetrics,
    outbound: Mutex<Outbound>,
    /// Wakes the task when there is something to send.
    pub(crate) wake: Notify,
    arrived: Mutex<Arrived>,
    /// How many messages have arrived from the server.
    heard: AtomicU64,
    pub(crate) last_heard: LastHeard,
    /// How many frames are on the way to the server, or wait to be sent again.
    in_flight: AtomicUsize,
    receiving: Arc<Receiving>,
    node: OnceLock<LocalNode>,
    /// Wakes the task when the endpoint is built.
    pub(crate) started: Notify,
    pub(crate) gaps: broadcast::Sender<Gap>,
    pub(crate) state: watch::Sender<State>,
    pub(crate) log: Limits,
}

/// How many parts of clients' requests may wait to be sent, and their bytes. Further ones are refused.
const REQUESTS: (usize, usize) = (4_096, 16 << 20);

/// What waits to be sent, and the numbers of what was sent: both in one order.
#[derive(Debug)]
struct Outbound {
    queue: Queue,
    sent: Sent,
    /// Parts of clients' requests, which have no numbers: nothing is done about one that is missing.
    requests: Queue,
}

/// What is waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) is_connected: bool,
    /// The first try to connect has ended.
    pub(crate) has_tried: bool,
    /// How often the subscribed channels have changed.
    pub(crate) subscriptions: u64,
    /// Nothing waits to be sent.
    pub(crate) is_flushed: bool,
    /// How many tasks wait until nothing waits to be sent.
    pub(crate) flushes: usize,
    /// The cluster is dropped.
    pub(crate) is_ending: bool,
}

/// The last moment up to which this node has everything that the server has sent it.
#[derive(Debug)]
pub(crate) struct LastHeard {
    start: Instant,
    micros: AtomicU64,
}

impl LastHeard {
    fn now() -> Self {
        Self { start: Instant::now(), micros: AtomicU64::new(0) }
    }

    /// What the server had sent by this moment has arrived.
    pub(crate) fn at(&self, moment: Instant) {
        self.micros.fetch_max(self.since(moment), Relaxed);
    }

    /// Something that has arrived at this moment is not delivered.
    pub(crate) fn only_until(&self, moment: Instant) {
        self.micros.fetch_min(self.since(moment), Relaxed);
    }

    pub(crate) fn get(&self) -> Instant {
        let since = Duration::from_micros(self.micros.load(Relaxed));
        self.start.checked_add(since).unwrap_or(self.start)
    }

    fn since(&self, moment: Instant) -> u64 {
        micros(moment.saturating_duration_since(self.start))
    }
}

/// A task that waits until nothing waits to be sent.
struct Flush<'a>(&'a watch::Sender<State>);

impl Drop for Flush<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|state| state.flushes = state.flushes.saturating_sub(1));
    }
}

/// The limits of log lines.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    pub(crate) malformed: LineLimit,
    pub(crate) dropped: LineLimit,
    pub(crate) overrun: LineLimit,
    pub(crate) unpublished: LineLimit,
    pub(crate) connection: LineLimit,
    pub(crate) same_name: LineLimit,
    pub(crate) counts_anew: LineLimit,
}

/// How a frame was received wrongly.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Malformed {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Payload(#[from] PayloadError),
    #[error("a request for one node was sent to several")]
    Request,
    #[error("the number {0} is too far from those before it")]
    Number(u64),
}

impl Outbound {
    fn waiting(&self) -> usize {
        self.queue.len() + self.requests.len()
    }
}

impl Core {
    pub(crate) fn new(options: ClusterOptions) -> Result<Self, ClusterError> {
        let prefix = &options.prefix;
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        if prefix.is_empty() || prefix.len() > 64 || !prefix.bytes().all(is_plain) {
            return Err(ClusterError::Prefix { prefix: prefix.clone() });
        }
        let name = options.node.clone().unwrap_or_else(|| format!("node-{:016x}", random()));
        if name.is_empty() || name.len() > LONGEST_NODE {
            return Err(ClusterError::NodeName { name });
        }
        for (option, time) in
            [("timeout", options.timeout), ("ping_interval", options.ping_interval)]
        {
            if time.is_zero() {
                return Err(ClusterError::Zero { option });
            }
        }
        let clock = SharedClock::start();
        let outbound = Outbound {
            queue: Queue::new(options.max_waiting, options.max_waiting_bytes),
            sent: Sent::default(),
            requests: Queue::new(REQUESTS.0, REQUESTS.1),
        };
        let mut arrived = Arrived::default();
        arrived.follow(Channel::All);
        arrived.follow(Channel::of_node(&name));
        Ok(Self {
            name: name.into(),
            // Two nodes that start in the same microsecond differ too.
            epoch: clock.now() & !0x3ff | random() & 0x3ff,
            clock,
            metrics: ClusterMetrics::register(&options.telemetry),
            outbound: Mutex::new(outbound),
            wake: Notify::new(),
            arrived: Mutex::new(arrived),
            heard: AtomicU64::new(0),
            last_heard: LastHeard::now(),
            in_flight: AtomicUsize::new(0),
            receiving: Arc::default(),
            node: OnceLock::new(),
            started: Notify::new(),
            gaps: broadcast::Sender::new(UNREAD),
            state: watch::Sender::new(State { is_flushed: true, ..State::default() }),
            log: Limits::default(),
            options,
        })
    }

    pub(crate) fn start(&self, node: LocalNode) {
        // An adapter belongs to one endpoint: a second one would receive nothing.
        if self.node.set(node).is_err() {
            tracing::error!(
                "a cluster is the adapter of two endpoints: the second receives nothing"
            );
        }
        self.started.notify_one();
    }

    pub(crate) fn node(&self) -> Option<&LocalNode> {
        self.node.get()
    }

    /// The name of a channel on the server.
    pub(crate) fn channel_name(&self, channel: Channel) -> String {
        channel.name(&self.options.prefix)
    }

    /// Sends to all nodes that have subscribers of the topic, or to all nodes.
    pub(crate) fn broadcast(&self, broadcast: &Broadcast) -> Result<(), AdapterError> {
        let is_for_every_node = broadcast.is_for_every_node();
        let channel =
            if is_for_every_node { Channel::All } else { Channel::of_topic(broadcast.topic()) };
        self.send(channel, broadcast)
    }

    /// Sends to one node.
    pub(crate) fn direct(&self, node: &str, broadcast: &Broadcast) -> Result<(), AdapterError> {
        if *node == *self.name {
            return match self.node() {
                Some(node) => Ok(node.deliver(broadcast)?),
                None => Ok(()),
            };
        }
        self.send(Channel::of_node(node), broadcast)
    }

    fn send(&self, channel: Channel, broadcast: &Broadcast) -> Result<(), AdapterError> {
        let timeline = broadcast.timeline();
        let age = timeline.map(|it| micros(it.total_time(Instant::now())));
        let trace = timeline.and_then(Timeline::trace).map(|trace| trace.to_string());
        let payload = broadcast.payload();
        let frame = Frame {
            origin: &self.name,
            epoch: self.epoch,
            sequence: 0,
            sent_at: self.clock.now(),
            age,
            trace: trace.as_deref(),
            is_direct: matches!(channel, Channel::Node(_)),
            topic: broadcast.topic(),
            event: broadcast.event(),
            is_binary: payload.is_binary(),
            payload: match payload.json() {
                Some(json) => json.as_bytes(),
                None => payload.as_binary().map_or(&[][..], |bytes| bytes),
            },
        };
        let is_request = broadcast.is_request();
        if is_request && !self.state.borrow().is_connected {
            return Err(AdapterError::new(ClusterError::NotConnected));
        }
        let mut frame = match frame.encode() {
            Ok(frame) => frame,
            Err(error) if self.options.refuse_when_full || is_request => {
                return Err(AdapterError::new(error));
            }
            Err(_) => {
                // It has a number all the same, so that other nodes know that it is missing.
                self.outbound.lock().sent.next(channel);
                self.dropped(Reason::TooLong, 1);
                return Ok(());
            }
        };
        let (dropped, waiting) = {
            let mut outbound = self.outbound.lock();
            let Outbound { queue, sent, requests } = &mut *outbound;
            let queue = if is_request { requests } else { queue };
            let refuses = is_request || self.options.refuse_when_full;
            if refuses && !queue.has_room(frame.len()) {
                drop(outbound);
                self.dropped(self.no_room(), 1);
                return Err(AdapterError::new(ClusterError::Full));
            }
            if !is_request {
                set_sequence(&mut frame, sent.next(channel));
            }
            let dropped = queue.push(Outgoing { channel, frame: frame.into(), is_request });
            (dropped.len(), outbound.waiting())
        };
        if dropped > 0 {
            self.dropped(self.no_room(), dropped);
        }
        // After an outage, requests are sent while broadcasts wait.
        if waiting == 1 || is_request {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Why there is no room for what is to be sent.
    fn no_room(&self) -> Reason {
        if self.state.borrow().is_connected { Reason::QueueFull } else { Reason::NotConnected }
    }

    /// The next frames to send. Requests get no more than half, unless no broadcasts wait.
    pub(crate) fn take(&self, max_frames: usize, max_bytes: usize) -> Vec<Outgoing> {
        let mut outbound = self.outbound.lock();
        if outbound.requests.len() == 0 {
            return outbound.queue.take(max_frames, max_bytes);
        }
        let mut taken = outbound.requests.take(max_frames.div_ceil(2), max_bytes / 2);
        taken.extend(outbound.queue.take(max_frames - taken.len(), max_bytes / 2));
        taken
    }

    /// The next requests to send, without broadcasts.
    pub(crate) fn take_requests(&self, max_frames: usize, max_bytes: usize) -> Vec<Outgoing> {
        self.outbound.lock().requests.take(max_frames, max_bytes)
    }

    pub(crate) fn waiting(&self) -> usize {
        self.outbound.lock().waiting()
    }

    /// So many frames are on the way to the server, or wait to be sent again.
    pub(crate) fn set_in_flight(&self, frames: usize) {
        self.in_flight.store(frames, Relaxed);
        self.observe();
    }

    /// Records how much is not sent yet.
    pub(crate) fn observe(&self) {
        self.metrics.waiting.set(self.not_sent() as f64);
    }

    /// How many frames wait to be sent, or are on the way to the server.
    fn not_sent(&self) -> usize {
        self.waiting() + self.in_flight.load(Relaxed)
    }

    /// The connection is lost: requests that wait are not sent on the next one.
    fn drop_requests(&self) {
        let dropped = self.outbound.lock().requests.clear();
        if dropped > 0 {
            self.dropped(Reason::NotConnected, dropped);
        }
    }

    pub(crate) fn snapshot(&self) -> AdapterSnapshot {
        let mut snapshot = self.metrics.snapshot();
        snapshot.is_connected = self.state.borrow().is_connected;
        snapshot.waiting = self.not_sent();
        snapshot
    }

    /// Waits until nothing waits to be sent.
    pub(crate) async fn flushed(&self) {
        let mut state = self.state.subscribe();
        while !state.borrow_and_update().is_flushed || self.waiting() > 0 {
            if state.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits until nothing waits to be sent, and lets nothing wait for other nodes.
    pub(crate) async fn flush(&self) {
        if self.state.borrow().is_flushed && self.waiting() == 0 {
            return;
        }
        self.state.send_modify(|state| state.flushes += 1);
        let _flush = Flush(&self.state);
        self.wake.notify_one();
        self.flushed().await;
    }

    /// Counts what was not sent, and logs it.
    pub(crate) fn dropped(&self, reason: Reason, count: usize) {
        self.metrics.dropped(reason, count);
        if let Some(left_out) = self.log.dropped.allow() {
            tracing::warn!(count, ?reason, left_out, "broadcasts are not sent to other nodes");
        }
    }

    /// The server has refused to publish so many broadcasts, for a reason that it has said.
    pub(crate) fn unpublished(&self, count: usize, error: &str) {
        self.metrics.dropped(Reason::Refused, count);
        if let Some(left_out) = self.log.unpublished.allow() {
            tracing::error!(
                error,
                count,
                left_out,
                "the server does not publish what this node sends"
            );
        }
    }

    /// So many broadcasts that had arrived were dropped, because others arrive faster than this node delivers them.
    pub(crate) fn overrun(&self, count: usize) {
        self.metrics.dropped(Reason::Overrun, count);
        if let Some(left_out) = self.log.overrun.allow() {
            tracing::warn!(
                count,
                left_out,
                "broadcasts of other nodes are dropped: they arrive faster than this node delivers them"
            );
        }
        self.report(Gap::Overrun(count as u64));
    }

    /// The node is connected, and receives what it has followed.
    pub(crate) fn connected(&self) {
        self.receiving.connected();
        self.metrics.connects.increment(1);
        self.metrics.connected.set(1.0);
        self.state.send_modify(|state| {
            state.is_connected = true;
        });
    }

    /// The node is not connected. Returns whether it has been.
    pub(crate) fn disconnected(&self) -> bool {
        self.receiving.disconnected();
        self.metrics.connected.set(0.0);
        self.metrics.channels.set(0.0);
        // How many there are is not known any more.
        self.metrics.nodes.set(0.0);
        let mut was_connected = false;
        self.state.send_modify(|state| {
            state.has_tried = true;
            was_connected = std::mem::take(&mut state.is_connected);
        });
        // After the state says that no more may come.
        self.drop_requests();
        was_connected
    }

    /// This node is about to subscribe to these channels. Messages may arrive before the answer.
    pub(crate) fn follow(&self, channels: &[Channel]) {
        let mut arrived = self.arrived.lock();
        channels.iter().for_each(|channel| arrived.follow(*channel));
    }

    /// Joins need not wait for these channels.
    pub(crate) fn arrives(&self, channels: &[Channel]) {
        self.receiving.add(channels);
        self.state.send_modify(|state| state.subscriptions += 1);
    }

    /// These channels are about to be unsubscribed from: joins that begin now wait for them.
    pub(crate) fn abandon(&self, channels: &[Channel]) {
        self.receiving.remove(channels);
    }

    /// This node is not subscribed to these channels any more.
    pub(crate) fn unfollow(&self, channels: &[Channel]) {
        let mut arrived = self.arrived.lock();
        channels.iter().for_each(|channel| arrived.unfollow(*channel));
    }

    /// Whether this node receives what other nodes broadcast to a topic.
    pub(crate) fn receives(&self, topic: &str) -> bool {
        self.receiving.has(Channel::of_topic(topic))
    }

    /// What a join of a topic waits for: that this node receives it, for a while. It does not wait while
    /// the node is not connected, so that clients are served as they would be without other nodes.
    pub(crate) fn until_receives(
        self: &Arc<Self>,
        topic: &str,
    ) -> Option<impl Future<Output = ()> + Send + 'static> {
        let limit = self.options.join_wait;
        if limit.is_zero() {
            return None;
        }
        let waiter = match self.receiving.arrives(Channel::of_topic(topic)) {
            Arrives::Yes => return None,
            Arrives::No => {
                self.metrics.joins_early.increment(1);
                return None;
            }
            Arrives::Soon(waiter) => waiter,
        };
        let (core, since) = (self.clone(), Instant::now());
        Some(async move {
            let arrives = timeout(limit, waiter.wait()).await;
            if arrives == Ok(true) {
                core.metrics.join_waited(since.elapsed());
            } else {
                core.metrics.joins_early.increment(1);
            }
        })
    }

    pub(crate) fn report(&self, gap: Gap) {
        // Without a reader, it is counted alone.
        let _ = self.gaps.send(gap);
    }

    /// How many messages have arrived from the server.
    pub(crate) fn heard(&self) -> u64 {
        self.heard.load(Relaxed)
    }

    /// A message from the server is delivered.
    pub(crate) fn receive(&self, message: &Bytes) {
        let now = Instant::now();
        self.heard.fetch_add(1, Relaxed);
        for frame in frame::frames(message) {
            let received = frame.map_err(Malformed::from);
            if let Err(error) = received.and_then(|frame| self.try_receive(&frame, now)) {
                self.malformed(&error, message.len());
                // A node that sends one sends no others, and what is missing is seen as a gap.
                return;
            }
        }
    }

    fn malformed(&self, error: &Malformed, length: usize) {
        self.metrics.dropped(Reason::Malformed, 1);
        if let Some(left_out) = self.log.malformed.allow() {
            let error = error.to_string();
            tracing::warn!(error, length, left_out, "ignored a message that is no broadcast");
        }
    }

    fn try_receive(&self, bytes: &Bytes, now: Instant) -> Result<(), Malformed> {
        let frame = Frame::decode(bytes)?;
        if *frame.origin == *self.name {
            if frame.epoch == self.epoch {
                // The server sends to everyone who has subscribed.
                return Ok(());
            }
            if let Some(left_out) = self.log.same_name.allow() {
                let node = &*self.name;
                tracing::warn!(
                    node,
                    left_out,
                    "another node has the same name, or had it just now"
                );
            }
        }
        let payload = bytes.slice_ref(frame.payload);
        let payload =
            if frame.is_binary { Payload::binary(payload) } else { Payload::json_text(payload)? };
        let mut broadcast = Broadcast::new(frame.topic, frame.event, payload)?;
        if broadcast.is_request() && !frame.is_direct {
            return Err(Malformed::Request);
        }
        let channel = if frame.is_direct {
            Channel::of_node(&self.name)
        } else if broadcast.is_for_every_node() {
            Channel::All
        } else {
            Channel::of_topic(frame.topic)
        };
        let number = frame.sequence;
        let arrival = self.arrived.lock().arrive(frame.origin, frame.epoch, channel, number);
        match arrival {
            Arrival::Expected => {}
            Arrival::After(count, origin) => {
                self.metrics.gaps.increment(1);
                self.metrics.lost.increment(count);
                self.report(Gap::Missing(Missing { origin, count, channel }));
            }
            Arrival::CountsAnew(origin) => {
                if let Some(left_out) = self.log.counts_anew.allow() {
                    let node = &*origin;
                    tracing::warn!(
                        node,
                        number,
                        left_out,
                        "a node counts from a lower number: broadcasts may have been dropped"
                    );
                }
                self.metrics.gaps.increment(1);
                self.report(Gap::Missing(Missing { origin, count: 0, channel }));
            }
            Arrival::Unbelievable => return Err(Malformed::Number(number)),
            Arrival::Repeated => {
                self.metrics.dropped(Reason::Repeated, 1);
                return Ok(());
            }
        }
        let lag = Duration::from_micros(self.clock.at(now).saturating_sub(frame.sent_at));
        if let Some(age) = frame.age {
            let age = Duration::from_micros(age).saturating_add(lag);
            let mut timeline = Timeline::from(now.checked_sub(age).unwrap_or(now));
            if let Some(trace) = frame.trace.and_then(|trace| trace.parse().ok()) {
                timeline = timeline.with_trace(trace);
            }
            broadcast = broadcast.timed(timeline);
        }
        if let Some(node) = self.node() {
            node.deliver(&broadcast)?;
        }
        self.metrics.received.increment(1);
        self.metrics.received_bytes.increment(bytes.len() as u64);
        self.metrics.delivered(lag, frame.age.is_some());
        Ok(())
    }
}

/// A random number for names, epochs and delays.
pub(crate) fn random() -> u64 {
    RandomState::new().hash_one(())
}

#[cfg(test)]
mod tests {
    use pipeline_test_support::{PATIENCE, Recorded};
    use pipeline_ws_sink::Endpoint;
    use serde_json::json;

    use super::*;
    use crate::{
        Gaps,
        frame::{GROUP, append_to_group},
    };

    fn core(name: &str) -> (Arc<Core>, Recorded) {
        let (telemetry, recorded) = Recorded::new();
        let options = ClusterOptions::new("test").node(name).telemetry(telemetry);
        (Arc::new(Core::new(options).unwrap()), recorded)
    }

    fn reasons(recorded: &Recorded) -> Vec<(String, u64)> {
        recorded.counters("pipeline.cluster.dropped")
    }

    /// What a node sends next.
    fn sent(core: &Core) -> Bytes {
        core.take(1, usize::MAX).remove(0).frame
    }

    fn news(n: u64) -> Broadcast {
        Broadcast::new("room:1", "news", json!({ "n": n })).unwrap()
    }

    #[tokio::test]
    async fn what_is_no_broadcast_is_dropped_and_counted() {
        let endpoint = Endpoint::builder().build().unwrap();
        let (left, (right, recorded)) = (core("left").0, core("right"));
        right.start(LocalNode::of(endpoint.pubsub()));
        let mut room = endpoint.subscribe("room:1");
        left.broadcast(&news(1)).unwrap();
        let good = sent(&left);
        let mut bad = vec![Bytes::new(), Bytes::from_static(b"nonsense"), good.slice(..20)];
        // A version of the future, a group that is cut off, and JSON that ends too early or is no object.
        bad.push([&[3], &good[1..]].concat().into());
        bad.push([&[2], &good[1..]].concat().into());
        bad.push(good.slice(..good.len() - 1));
        bad.push([&good[..good.len() - 7], b"[1]"].concat().into());
        for bad in &bad {
            right.receive(bad);
        }
        assert_eq!(reasons(&recorded), [("reason=malformed".to_owned(), bad.len() as u64)]);
        right.receive(&good);
        assert_eq!(room.recv().await.unwrap().payload().json(), Some(r#"{"n":1}"#));
        right.broadcast(&news(2)).unwrap();
        right.receive(&sent(&right));
        left.broadcast(&news(3)).unwrap();
        right.receive(&sent(&left));
        let next = room.recv().await.unwrap();
        assert_eq!(next.payload().json(), Some(r#"{"n":3}"#), "its own echo is no broadcast");
    }

    #[tokio::test]
    async fn a_message_ends_at_its_first_frame_that_is_none() {
        let endpoint = Endpoint::builder().build().unwrap();
        let (left, (right, recorded)) = (core("left").0, core("right"));
        right.start(LocalNode::of(endpoint.pubsub()));
        let mut room = endpoint.subscribe("room:1");
        left.broadcast(&news(1)).unwrap();
        let mut group = vec![GROUP];
        append_to_group(&mut group, &sent(&left));
        // A quarter of a million frames without a byte.
        group.resize(1 << 20, 0);
        right.receive(&group.into());
        assert_eq!(room.recv().await.unwrap().payload().json(), Some(r#"{"n":1}"#));
        assert_eq!(reasons(&recorded), [("reason=malformed".to_owned(), 1)]);
    }

    #[tokio::test]
    async fn a_broadcast_with_a_changed_or_missing_byte_is_received_or_counted() {
        let endpoint = Endpoint::builder().build().unwrap();
        let (left, (right, recorded)) = (core("left").0, core("right"));
        right.start(LocalNode::of(endpoint.pubsub()));
        right.follow(&[Channel::of_topic("room:1")]);
        let mut room = endpoint.subscribe("room:1");
        left.broadcast(&news(1)).unwrap();
        let good = sent(&left);
        let mut bad: Vec<Bytes> = (0..good.len()).map(|cut| good.slice(..cut)).collect();
        bad.extend((0..good.len() * 8).map(|bit| {
            let mut changed = good.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            changed.into()
        }));
        // As long as a server lets pass.
        bad.push([&good[..], &[b'x'; 1 << 20]].concat().into());
        bad.iter().for_each(|bad| right.receive(bad));
        let cut = recorded.counters("pipeline.cluster.dropped");
        let dropped: u64 = cut.iter().map(|(_, count)| count).sum();
        let received: u64 =
            recorded.counters("pipeline.cluster.received").iter().map(|(_, count)| count).sum();
        assert_eq!(dropped + received, bad.len() as u64, "{cut:?}, and {received} received");
        assert!(dropped > good.len() as u64, "a part of a broadcast is none: {cut:?}");
        // None of them silences the node.
        for n in 2..=10 {
            left.broadcast(&news(n)).unwrap();
            right.receive(&sent(&left));
        }
        let last =
            async { while room.recv().await.unwrap().payload().json() != Some(r#"{"n":10}"#) {} };
        timeout(PATIENCE, last).await.expect("what the node sends next is heard");
    }

    #[tokio::test]
    async fn a_node_that_counts_anew_is_heard_and_reported() {
        let endpoint = Endpoint::builder().build().unwrap();
        let (left, (right, recorded)) = (core("left").0, core("right"));
        right.start(LocalNode::of(endpoint.pubsub()));
        right.follow(&[Channel::of_topic("room:1")]);
        let mut gaps = Gaps(right.gaps.subscribe());
        let mut room = endpoint.subscribe("room:1");
        let mut say = |number: u64| {
            left.broadcast(&news(number)).unwrap();
            let mut frame = sent(&left).to_vec();
            set_sequence(&mut frame, number);
            right.receive(&frame.into());
        };
        say(1);
        say(u64::MAX);
        (1_000..2_000).for_each(&mut say);
        assert_eq!(
            reasons(&recorded),
            [("reason=malformed".to_owned(), 1)],
            "and none is silenced"
        );
        // The first two are as good as copies; those after them have never arrived.
        (2..=21).for_each(&mut say);
        let repeated = [("reason=repeated".to_owned(), 2)];
        assert_eq!(reasons(&recorded), repeated);
        let Gap::Missing(first) = gaps.next().await.unwrap() else { panic!("1,000 follows 1") };
        let Gap::Missing(anew) = gaps.next().await.unwrap() else { panic!("it counts anew") };
        assert_eq!((first.count(), anew.count(), anew.origin()), (998, 0, "left"));
        let mut heard = 0;
        while let Ok(Ok(_)) = timeout(Duration::ZERO, room.recv()).await {
            heard += 1;
        }
        assert_eq!(heard, 1_019);
    }

    #[tokio::test]
    async fn a_gap_is_reported_and_a_copy_is_dropped() {
        let endpoint = Endpoint::builder().build().unwrap();
        let (left, (right, recorded)) = (core("left").0, core("right"));
        right.start(LocalNode::of(endpoint.pubsub()));
        right.follow(&[Channel::of_topic("room:1")]);
        let mut gaps = Gaps(right.gaps.subscribe());
        let frames = [1, 2, 3, 4].map(|n| {
            left.broadcast(&news(n)).unwrap();
            sent(&left)
        });
        for at in [0, 3, 3, 1] {
            right.receive(&frames[at]);
        }
        let gap = gaps.next().await.unwrap();
        let Gap::Missing(missing) = &gap else { panic!("{gap:?}") };
        assert_eq!((missing.origin(), missing.count()), ("left", 2));
        assert!(gap.concerns("room:1") && !gap.concerns("room:2"));
        assert_eq!(reasons(&recorded), [("reason=repeated".to_owned(), 2)]);
        let lost = recorded.counters("pipeline.cluster.lost");
        assert_eq!(lost, [(String::new(), 2)]);
    }

    fn request(length: usize) -> Broadcast {
        let bytes = Payload::binary(vec![b'x'; length]);
        Broadcast::new("phx_longpoll:relay", "relay", bytes).unwrap()
    }

    #[tokio::test]
    async fn requests_take_no_room_of_broadcasts_and_have_no_numbers() {
        let (left, recorded) = core("left");
        left.direct("right", &request(10)).unwrap_err();
        assert_eq!(left.waiting(), 0, "nothing is kept while the node is not connected");
        left.state.send_modify(|state| state.is_connected = true);
        for n in 0..100 {
            left.broadcast(&news(n)).unwrap();
        }
        let sent = (0..20).filter(|_| left.direct("right", &request(1 << 20)).is_ok()).count();
        assert_eq!(sent, 15, "16 MiB with the heads of frames");
        assert_eq!(reasons(&recorded), [("reason=queue_full".to_owned(), 5)]);
        // Names of nodes, even if many are made up, need no numbers.
        let before = left.outbound.lock().sent.clone();
        for n in 0..100 {
            left.direct(&format!("node {n}"), &request(1)).unwrap();
        }
        assert_eq!(left.outbound.lock().sent, before);
        // Both get their part.
        let taken = left.take(20, 1 << 30);
        assert_eq!(taken.iter().filter(|it| it.is_request).count(), 10);
        assert_eq!(taken.len(), 20);
        // What waits when the connection is lost is not sent on the next one.
        left.drop_requests();
        assert_eq!(reasons(&recorded), [("reason=not_connected".to_owned(), 105)]);
        let taken = left.take(1_000, 1 << 30);
        assert_eq!((taken.len(), taken.iter().any(|it| it.is_request)), (90, false));
    }

    #[tokio::test]
    async fn a_request_that_is_sent_to_several_nodes_is_none() {
        let endpoint = Endpoint::builder().build().unwrap();
        let (left, (right, recorded)) = (core("left").0, core("right"));
        right.start(LocalNode::of(endpoint.pubsub()));
        left.state.send_modify(|state| state.is_connected = true);
        left.broadcast(&request(1)).unwrap();
        right.receive(&sent(&left));
        assert_eq!(reasons(&recorded), [("reason=malformed".to_owned(), 1)]);
        left.direct("right", &request(1)).unwrap();
        right.receive(&sent(&left));
        assert_eq!(reasons(&recorded), [], "no more");
    }

    #[tokio::test]
    async fn what_has_no_room_while_the_node_is_not_connected_is_counted_so() {
        let (telemetry, recorded) = Recorded::new();
        let options = ClusterOptions::new("test").max_waiting(2).telemetry(telemetry);
        let left = Core::new(options).unwrap();
        let say = |count| (0..count).for_each(|n| left.broadcast(&news(n)).unwrap());
        say(5);
        assert_eq!(reasons(&recorded), [("reason=not_connected".to_owned(), 3)]);
        left.connected();
        say(4);
        assert_eq!(reasons(&recorded), [("reason=queue_full".to_owned(), 4)]);
        left.disconnected();
        say(1);
        assert_eq!(reasons(&recorded), [("reason=not_connected".to_owned(), 1)]);
    }

    #[tokio::test]
    async fn what_does_not_fit_in_a_frame_is_dropped_and_counted_and_known_to_be_missing() {
        let (left, recorded) = core("left");
        let topic = "x".repeat(5_000);
        let endpoint = Endpoint::builder().build().unwrap();
        let (right, _) = core("right");
        right.start(LocalNode::of(endpoint.pubsub()));
        let mut gaps = right.gaps.subscribe();
        // The trackers' topics are of one channel, so that the name of one may be too long and that of others not.
        let say = |topic: &str| {
            left.broadcast(&Broadcast::new(topic, "news", json!({})).unwrap()).unwrap();
        };
        say("phx_presence:one");
        right.receive(&sent(&left));
        say(&format!("phx_presence:{topic}"));
        assert_eq!(reasons(&recorded), [("reason=too_long".to_owned(), 1)]);
        assert_eq!(left.waiting(), 0);
        say("phx_presence:one");
        right.receive(&sent(&left));
        let gap = gaps.try_recv().unwrap();
        assert!(matches!(&gap, Gap::Missing(missing) if missing.count() == 1), "{gap:?}");
    }

    #[tokio::test]
    async fn what_is_on_the_way_counts_as_not_sent() {
        let (left, _) = core("left");
        (0..5).for_each(|n| left.broadcast(&news(n)).unwrap());
        left.set_in_flight(left.take(3, usize::MAX).len());
        assert_eq!((left.waiting(), left.snapshot().waiting), (2, 5));
    }

    #[tokio::test]
    async fn invalid_options_are_errors() {
        for prefix in ["", "a.b", "shop ", "ü", &"x".repeat(65)] {
            let error = Core::new(ClusterOptions::new(prefix)).unwrap_err();
            assert_eq!(error, ClusterError::Prefix { prefix: prefix.to_owned() });
        }
        for name in ["", &*"x".repeat(256)] {
            let error = Core::new(ClusterOptions::new("shop").node(name)).unwrap_err();
            assert_eq!(error, ClusterError::NodeName { name: name.to_owned() });
        }
        let options = || ClusterOptions::new("shop");
        let never = options().timeout(Duration::ZERO);
        let endless = options().ping_interval(Duration::ZERO);
        for (option, options) in [("timeout", never), ("ping_interval", endless)] {
            let error = Core::new(options).unwrap_err();
            assert_eq!(error, ClusterError::Zero { option });
        }
    }
}
