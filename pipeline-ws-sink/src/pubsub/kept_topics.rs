//! The topics for which messages are kept, so that a join ends the delays of those of its topic.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use foldhash::quality::RandomState;
use parking_lot::Mutex;
use pipeline_core::processing::Wake;
use tokio::time::Instant;

use crate::telemetry::WakeMetrics;

/// How many messages are known that a join would wake.
const MESSAGES: usize = 50_000;

/// How many of them one topic may have.
const OF_A_TOPIC: usize = 1000;

/// How many bytes the names of their topics may have together.
const BYTES: usize = 8 * 1024 * 1024;

/// The topics for which messages are kept.
///
/// What is beyond the limits is only forgotten: it is delivered after its delay, as without this. Of all, that is
/// forgotten first whose delay ends first.
pub(super) struct KeptTopics {
    state: Mutex<State>,
    limits: Limits,
    metrics: WakeMetrics,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    messages: usize,
    of_a_topic: usize,
    bytes: usize,
}

#[derive(Default)]
struct State {
    topics: HashMap<Arc<str>, OfTopic, RandomState>,
    /// The topics by when the delays of their messages end.
    ends: BTreeMap<Place, Arc<str>>,
    bytes: usize,
    last: u64,
}

/// The messages of a topic, the first ones first.
type OfTopic = BTreeMap<u64, (Instant, Wake)>;

/// When a delay ends, and the number of its message.
type Place = (Instant, u64);

impl State {
    fn remove(&mut self, (_, number): Place, topic: &str) {
        let Some(of_topic) = self.topics.get_mut(topic) else { return };
        of_topic.remove(&number);
        if of_topic.is_empty() {
            self.topics.remove(topic);
            self.bytes = self.bytes.saturating_sub(topic.len());
        }
    }

    /// Removes the message whose delay ends first.
    fn remove_first(&mut self) {
        if let Some((place, topic)) = self.ends.pop_first() {
            self.remove(place, &topic);
        }
    }

    /// Removes the messages whose delay is over.
    fn remove_until(&mut self, now: Instant) {
        while self.ends.first_key_value().is_some_and(|((end, _), _)| *end <= now) {
            self.remove_first();
        }
    }

    fn is_too_large(&self, limits: Limits) -> bool {
        self.ends.len() > limits.messages || self.bytes > limits.bytes
    }
}

impl KeptTopics {
    pub(super) fn new(metrics: WakeMetrics) -> Self {
        let limits = Limits { messages: MESSAGES, of_a_topic: OF_A_TOPIC, bytes: BYTES };
        Self { state: Mutex::default(), limits, metrics }
    }

    /// Notes that a message for a topic is kept for this time, and returns what a join gives.
    pub(super) fn keep(&self, topic: &str, delay: Duration) -> Wake {
        let (wake, now) = (Wake::new(), Instant::now());
        let Some(end) = now.checked_add(delay) else { return wake };
        let mut forgotten = 0;
        {
            let mut locked = self.state.lock();
            let state = &mut *locked;
            state.remove_until(now);
            let known = state.topics.get_key_value(topic).map(|(topic, _)| topic.clone());
            let topic: Arc<str> = known.unwrap_or_else(|| {
                state.bytes = state.bytes.saturating_add(topic.len());
                topic.into()
            });
            state.last = state.last.wrapping_add(1);
            let number = state.last;
            let of_topic = state.topics.entry(topic.clone()).or_default();
            of_topic.insert(number, (end, wake.clone()));
            if of_topic.len() > self.limits.of_a_topic
                && let Some((number, (end, _))) = of_topic.pop_first()
            {
                state.ends.remove(&(end, number));
                forgotten += 1;
            }
            state.ends.insert((end, number), topic);
            while state.is_too_large(self.limits) {
                state.remove_first();
                forgotten += 1;
            }
        }
        self.metrics.forgotten.increment(forgotten);
        wake
    }

    /// Wakes the messages that are kept for a topic, because a client has joined it.
    pub(super) fn joined(&self, topic: &str) {
        let now = Instant::now();
        let woken = {
            let mut state = self.state.lock();
            let Some(woken) = state.topics.remove(topic) else { return };
            state.bytes = state.bytes.saturating_sub(topic.len());
            for (number, (end, _)) in &woken {
                state.ends.remove(&(*end, *number));
            }
            woken
        };
        // Those whose delay is over are on their way.
        let woken = woken.into_values().filter(|(end, _)| *end > now);
        let woken: Vec<_> = woken.map(|(_, wake)| wake).collect();
        woken.iter().for_each(Wake::wake);
        self.metrics.woken.increment(woken.len() as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use pipeline_core::telemetry::Telemetry;
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn kept(messages: usize, of_a_topic: usize, bytes: usize) -> KeptTopics {
        let metrics = WakeMetrics::register(&Telemetry::global());
        let limits = Limits { messages, of_a_topic, bytes };
        KeptTopics { state: Mutex::default(), limits, metrics }
    }

    /// Keeps a message, and counts when it is woken.
    fn keep(all: &KeptTopics, topic: &str, delay: Duration, woken: &Arc<AtomicUsize>) {
        let woken = woken.clone();
        let waits = all.keep(topic, delay).on_wake(move || {
            woken.fetch_add(1, SeqCst);
        });
        // It waits until the test ends.
        Box::leak(Box::new(waits));
    }

    fn is_empty(all: &KeptTopics) -> bool {
        let state = all.state.lock();
        state.topics.is_empty() && state.ends.is_empty() && state.bytes == 0
    }

    #[tokio::test(start_paused = true)]
    async fn a_join_wakes_what_is_kept_for_its_topic_and_nothing_else() {
        let (all, [ada, joe]) = (kept(9, 9, 99), [Arc::default(), Arc::default()]);
        keep(&all, "ada", MINUTE, &ada);
        keep(&all, "ada", MINUTE, &ada);
        keep(&all, "joe", MINUTE, &joe);
        all.joined("ada");
        all.joined("ada");
        assert_eq!([ada.load(SeqCst), joe.load(SeqCst)], [2, 0]);
        all.joined("joe");
        assert_eq!(joe.load(SeqCst), 1);
        assert!(is_empty(&all));
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_whose_delay_is_over_is_forgotten_and_not_woken() {
        let (all, woken) = (kept(9, 9, 99), Arc::default());
        keep(&all, "ada", MINUTE, &woken);
        keep(&all, "joe", MINUTE, &woken);
        tokio::time::advance(MINUTE).await;
        all.joined("ada");
        assert_eq!(woken.load(SeqCst), 0);
        keep(&all, "eve", MINUTE, &woken);
        assert_eq!(all.state.lock().topics.len(), 1);
        // Such a message is never looked at again.
        keep(&all, "eve", Duration::MAX, &woken);
        all.joined("eve");
        assert!(is_empty(&all));
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_the_limits_those_are_forgotten_that_are_looked_at_first() {
        let [first, next, last] = [(); 3].map(|()| Arc::default());
        for (messages, of_a_topic, bytes) in [(2, 9, 99), (9, 9, 7), (9, 2, 99)] {
            let all = kept(messages, of_a_topic, bytes);
            let topics = if of_a_topic == 2 { ["ada"; 3] } else { ["ada", "joe", "eve"] };
            for (woken, topic, minutes) in [(&first, 0, 1), (&next, 1, 2), (&last, 2, 3)] {
                keep(&all, topics[topic], minutes * MINUTE, woken);
            }
            topics.iter().for_each(|topic| all.joined(topic));
            let woken =
                [&first, &next, &last].map(|woken: &Arc<AtomicUsize>| woken.swap(0, SeqCst));
            assert_eq!(woken, [0, 1, 1], "{messages} {of_a_topic} {bytes}");
            assert!(is_empty(&all));
        }
    }

    proptest! {
        #[test]
        fn the_limits_hold_and_nothing_is_left(
            steps in prop::collection::vec((0..3u8, 0..9usize, 0..5u64), 0..60),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            runtime.block_on(async {
                let (all, woken) = (kept(6, 3, 20), Arc::default());
                let topic = |nth: usize| "x".repeat(nth + 1);
                for (step, nth, minutes) in steps {
                    let minutes = MINUTE * u32::try_from(minutes).unwrap();
                    match step {
                        0 => all.joined(&topic(nth)),
                        1 => tokio::time::advance(minutes).await,
                        _ => keep(&all, &topic(nth), minutes, &woken),
                    }
                    let state = all.state.lock();
                    let names: usize = state.topics.keys().map(|topic| topic.len()).sum();
                    let messages: usize = state.topics.values().map(BTreeMap::len).sum();
                    assert_eq!((state.bytes, state.ends.len()), (names, messages));
                    assert!(names <= 20 && messages <= 6);
                    assert!(state.topics.values().all(|of| !of.is_empty() && of.len() <= 3));
                }
                (0..9).for_each(|nth| all.joined(&topic(nth)));
                assert!(is_empty(&all));
            });
        }
    }
}
