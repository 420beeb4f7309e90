//! Section 5.4: emission.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
};

use futures::{Stream, StreamExt};
use pipeline_core::{
    ExitReason,
    stage::{Caller, Emitter, EventStream, HandleCall, Producer},
    subscription::{Cancel, Cancellation, SubscribeOptions, Subscription},
    testkit::{Command, settle},
};

use crate::support::{
    CallLog, NO_CHUNK, NO_DEMAND, alone, auto, automatic, counting, ended, manual, silent,
};

/// Emits 1, 2 and 3 on a call.
struct Answering;

enum Answer {
    /// The reply of the callback.
    AtTheEnd,
    AtOnce,
}

impl Producer for Answering {
    type Event = u64;

    async fn handle_demand(
        &mut self,
        _demand: usize,
        _out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        Ok(())
    }
}

impl HandleCall<Answer, u64> for Answering {
    type Reply = &'static str;

    async fn handle_call(
        &mut self,
        answer: Answer,
        caller: &mut Caller<&'static str>,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        match answer {
            Answer::AtTheEnd => caller.reply("done"),
            Answer::AtOnce => caller.reply_now("done"),
        }
        out.emit_all([1, 2, 3]);
        Ok(())
    }
}

/// Records when it is sent.
struct LogsWhenSent(&'static str, CallLog);

impl Wake for LogsWhenSent {
    fn wake(self: Arc<Self>) {
        self.1.note(self.0);
    }
}

/// The order in which the events and the reply are sent.
async fn order_of(answer: Answer) -> Vec<String> {
    let calls = CallLog::default();
    let bell = |name| Waker::from(Arc::new(LogsWhenSent(name, calls.clone())));
    let (producer, _pipeline) = alone(|graph| graph.producer("answering", Answering));
    let mut events = EventStream::new();
    events.subscribe(&producer, auto(3, 0)).unwrap();
    settle().await;

    let mut call = pin!(producer.call(answer));
    let waiting = Pin::new(&mut events).poll_next(&mut Context::from_waker(&bell("events")));
    assert_eq!(waiting.map(|_| ()), Poll::Pending);
    let waiting = call.as_mut().poll(&mut Context::from_waker(&bell("reply")));
    assert_eq!(waiting, Poll::Pending);
    settle().await;

    assert_eq!(call.await, Ok("done"));
    let events: Vec<u64> = events.take(3).map(Result::unwrap).collect().await;
    assert_eq!(events, [1, 2, 3]);
    calls.take()
}

#[tokio::test(start_paused = true)]
async fn s_053_events_are_sent_before_the_reply() {
    assert_eq!(order_of(Answer::AtTheEnd).await, ["events", "reply"]);
}

#[tokio::test(start_paused = true)]
async fn s_054_an_early_reply_is_sent_before_the_events() {
    assert_eq!(order_of(Answer::AtOnce).await, ["reply", "events"]);
}

#[tokio::test(start_paused = true)]
async fn s_055_events_without_demand_are_buffered() {
    let (producer, raw) = (silent(), manual());
    raw.subscribe(producer.handle(), SubscribeOptions::new()).await;
    raw.ask(1).await;
    producer.emit([1, 2, 3]).await;
    assert_eq!(raw.chunks(), [[1]]);
    assert_eq!(producer.count().await, 2);
}

#[tokio::test(start_paused = true)]
async fn s_056_a_producer_receives_demand_once() {
    let (producer, raw) = (silent(), manual());
    raw.subscribe(producer.handle(), SubscribeOptions::new()).await;
    raw.ask(5).await;
    assert_eq!(producer.demands(), [5]);
    producer.emit([1, 2]).await;
    assert_eq!(raw.chunks(), [[1, 2]]);
    assert_eq!(producer.demands(), NO_DEMAND);
    producer.emit([3, 4, 5]).await;
    assert_eq!(raw.chunks(), [[3, 4, 5]]);
    assert_eq!(producer.demands(), NO_DEMAND);
}

#[tokio::test(start_paused = true)]
async fn s_057_the_buffer_is_served_before_the_producer_is_asked() {
    let producer = counting(["0", "1", "2", "3", "4", "5", "6"]);
    let consumer = automatic();
    producer.emit(["a", "b", "c", "d", "e"]).await;
    assert_eq!(producer.count().await, 5);
    consumer.subscribe(producer.handle(), auto(4, 0)).await;
    let batches =
        [vec!["a", "b", "c", "d"], vec!["e"], vec!["0", "1", "2"], vec!["3", "4", "5", "6"]];
    assert_eq!(consumer.chunks(), batches);
    assert_eq!(producer.demands(), [3, 4, 4]);
}

#[tokio::test(start_paused = true)]
async fn s_058_excess_events_are_used_up_first() {
    let (producer, raw) = (silent(), manual());
    raw.subscribe(producer.handle(), SubscribeOptions::new()).await;
    producer.on_demand(Command::Emit((0..8).collect()));
    producer.on_demand(Command::Emit((8..16).collect()));
    raw.ask(5).await;
    assert_eq!(producer.demands(), [5]);
    assert_eq!(raw.chunks(), [[0, 1, 2, 3, 4]]);
    assert_eq!(producer.count().await, 3);
    raw.ask(5).await;
    assert_eq!(producer.demands(), [2]);
    assert_eq!(raw.chunks(), [vec![5, 6, 7], vec![8, 9]]);
    assert_eq!(producer.count().await, 6);
}

#[tokio::test(start_paused = true)]
async fn s_059_a_call_that_ends_the_stage_is_answered() {
    let mut producer = silent();
    let answer = producer.execute(Command::End(ExitReason::Shutdown)).await;
    assert_eq!(answer, Ok(()));
    let report = producer.pipeline.join().await;
    assert_eq!(report.stages[0].reason.to_string(), "shutdown");
}

#[tokio::test(start_paused = true)]
async fn s_061_handle_demand_can_end_the_stage() {
    let (mut producer, mut consumer) = (silent(), automatic());
    producer.on_demand(Command::End(ExitReason::failed("done")));
    let options = auto(2, 0).cancel(Cancel::Temporary);
    let subscription = consumer.subscribe(producer.handle(), options).await;
    assert_eq!(producer.demands(), [2]);
    let report = producer.pipeline.join().await;
    assert_eq!(report.stages[0].reason.to_string(), "failed: done");
    assert_eq!(ended(consumer.cancelled()), [(subscription, "down (failed: done)".to_owned())]);
    assert_eq!(consumer.fate().await, "alive");
}

/// Emits 9 whenever a consumer leaves.
struct EmitsOnCancel;

impl Producer for EmitsOnCancel {
    type Event = u64;

    async fn handle_demand(
        &mut self,
        _demand: usize,
        _out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        Ok(())
    }

    async fn handle_cancel(
        &mut self,
        _ended: &Cancellation,
        _to: &Subscription,
        out: &mut Emitter<'_, u64>,
    ) -> Result<(), ExitReason> {
        out.emit(9);
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn x_018_events_emitted_in_handle_cancel_go_to_the_remaining_consumers() {
    for stops in [false, true] {
        let (producer, _pipeline) = alone(|graph| graph.producer("parting", EmitsOnCancel));
        let (a, b) = (manual(), manual());
        for (raw, demand) in [(&a, 5), (&b, 2)] {
            raw.subscribe(&producer, SubscribeOptions::new().cancel(Cancel::Temporary)).await;
            raw.ask(demand).await;
        }
        if stops {
            a.handle.stop(ExitReason::Normal).await;
        } else {
            a.subscription().cancel(ExitReason::Normal);
        }
        settle().await;
        assert_eq!(a.chunks(), NO_CHUNK);
        assert_eq!(b.chunks(), [[9]]);
        assert_eq!(producer.estimate_buffered_count().await, Ok(0));
    }
}
