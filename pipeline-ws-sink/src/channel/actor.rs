//! The task of one channel, from its join to its end.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use futures::{FutureExt, future};
use pipeline_core::ExitReason;
use serde_json::json;
use tokio::{
    task::JoinHandle,
    time::{self, Instant},
};

use super::{
    Channel, ChannelContext, JoinContext, JoinError, PushError, Stop,
    handle::{self, BoxedMessage},
    mailbox::{ChannelMessage, Handling, Intercepted, Mailbox, MailboxReader, Overflow},
    reply::{Refusal, Reply},
};
use crate::{
    endpoint::arrivals::TooMany,
    outbox::PendingMetrics,
    payload::{IntoPayload, Payload, PayloadError},
    protocol::{frame::Frame, message::Address, reference::Ref},
    pubsub::{JoinedChannel, SubscriberId, SubscriptionGuard, topic::Topic},
    session::{Connection, SessionEvent, end::SocketEnd, inbox::InboxBytes, pay},
    socket::Socket,
    telemetry::{
        InSpan, Outcome, RouteMetrics, begin_event, limited,
        log::{self, MessageLog},
        shown,
    },
};

/// The time limit of a channel's `terminate`, and of the end of a replaced channel.
const TERMINATE: Duration = Duration::from_secs(5);

/// How often it is checked whether a client that waits to join is still there.
const IS_THERE: Duration = Duration::from_secs(1);

/// Why a channel ends whose mailbox has no room for an intercepted broadcast. It says what to do.
const TOO_MANY_BROADCASTS: &str = "too many broadcasts to handle; do not intercept an event that comes in bursts, \
    or send it with `broadcast_when_ready` and set `WhenFull::Block`";

/// A client's request to join.
pub(crate) struct Join<S: Socket> {
    pub(crate) connection: Arc<Connection<S>>,
    pub(crate) topic: Topic,
    /// The join reference as sent. The answer to the join carries it, and so do the frames that
    /// announce the channel's end.
    pub(crate) join_ref: Ref,
    pub(crate) reference: Ref,
    pub(crate) payload: Payload,
    /// The request counts as received until it has been answered.
    pub(crate) held: InboxBytes,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) instance: Instance,
    pub(crate) metrics: Arc<RouteMetrics>,
    /// The channel that this one replaces.
    pub(crate) replaces: Option<Replaced>,
}

/// A channel that is replaced by a new join.
pub(crate) struct Replaced {
    pub(crate) join_ref: Ref,
    pub(crate) instance: Instance,
    pub(crate) task: JoinHandle<()>,
}

/// One instance of a channel: its id, and whether its end has been announced.
#[derive(Clone, Debug)]
pub(crate) struct Instance {
    id: u64,
    announced: Arc<AtomicBool>,
}

impl Instance {
    pub(crate) fn new(id: u64) -> Self {
        Self { id, announced: Arc::default() }
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Whether the caller is the one to announce the end, which is announced once.
    fn announce(&self) -> bool {
        !self.announced.swap(true, Ordering::AcqRel)
    }
}

/// Runs a channel from its join to its end.
pub(super) async fn run<C: Channel>(join: Join<C::Socket>, config: &C::Config) {
    // Dropped last, so that a test knows that everything else is gone.
    #[cfg(feature = "test-kit")]
    let _probed = join.connection.events.probe.get().map(|probe| probe.started::<C>(&join));
    let reader = MailboxReader(join.mailbox.clone());
    // Boxed: the state that only the join needs is freed after it, and not when the channel ends.
    let Some(mut channel) = Box::pin(enter::<C>(join, config)).await else { return };
    let end = channel.live(&reader).await;
    // Boxed like the join: it is only needed once.
    Box::pin(channel.end(end)).await;
}

/// Runs the join: accepts the client, or sends it the refusal.
async fn enter<C: Channel>(join: Join<C::Socket>, config: &C::Config) -> Option<RunningChannel<C>> {
    let Join { connection, topic, join_ref, reference, payload, held, mailbox, .. } = join;
    let (instance, metrics, replaces) = (join.instance, join.metrics, join.replaces);
    let turn = turn(&connection).await;
    let replaced = match replaces {
        Some(replaced) => replaced.end().await,
        None => None,
    };
    // Its client reads no answer, and it is no join that was refused.
    let turn = turn?;
    // Without a join reference, the channel uses the reference of the message.
    let context_ref = join_ref.or(&reference);
    let context = ChannelContext::new(connection.clone(), topic, context_ref, mailbox.clone());
    let address = Address { join_ref: &join_ref, ..context.address() };
    let topic = context.topic.shared();
    let answer = JoinAnswer {
        connection: &connection,
        address,
        reference: &reference,
        topic,
        instance: &instance,
        replaced,
    };
    let mut cx = JoinContext { channel: &context, config, reply: Ok(Payload::empty()) };
    let entry = MessageLog::join(&payload, &metrics.filter);
    let (begun, span) = (Instant::now(), log::join_span());
    let joined = match turn {
        Ok(()) => {
            let joining = catch_panic(|| C::join(&context.topic, payload, &mut cx));
            InSpan::new(&span, joining).await
        }
        Err(TooMany) => Ok(Err(JoinError::reason("too many joins"))),
    };
    let took = begun.elapsed();
    drop(held);
    let accepted = cx.reply.and_then(|response| address.reply(&reference, "ok", &response));
    let joined = match (joined, accepted) {
        (Ok(Ok(channel)), Ok(frame)) => Ok((channel, frame)),
        (Ok(Ok(_)), Err(error)) => Err(Refusal::Crashed(error.into())),
        (Ok(Err(JoinError(refusal))), _) => Err(refusal),
        (Err(panicked), _) => Err(Refusal::Crashed(panicked)),
    };
    let result = match &joined {
        Ok(_) => Outcome::Ok,
        Err(Refusal::Refused(_)) => Outcome::Rejected,
        Err(Refusal::Crashed(_)) => Outcome::Panicked,
    };
    span.record("result", result.status());
    metrics.joins.count(result == Outcome::Ok);
    metrics.join_time.record(result, took);
    match result {
        Outcome::Ok => entry.joined(&metrics, &context.topic, took),
        Outcome::Rejected => entry.refused(&metrics, &context.topic, took),
        Outcome::Panicked => {}
    }

    let (channel, accepted) = match joined {
        Ok(joined) => joined,
        Err(refusal) => {
            #[cfg(feature = "test-kit")]
            if let (Refusal::Crashed(reason), Some(probe)) =
                (&refusal, connection.events.probe.get())
            {
                probe.ended(topic, context.join_ref(), reason);
            }
            let refused = refuse(refusal, &metrics, &context.topic, |response| {
                address.reply(&reference, "error", response)
            });
            answer.refuse(&refused);
            return None;
        }
    };
    // What other nodes broadcast after the answer must arrive too. Held until the table has the channel.
    let expected = connection.pubsub.expect(topic).await;
    let channel_of_table = JoinedChannel {
        outbox: connection.outbox.clone(),
        version: connection.version,
        intercept: C::INTERCEPT,
        mailbox,
        route: metrics.clone(),
    };
    let listening = answer.accept(&accepted, context.id(), channel_of_table);
    drop(expected);
    Some(RunningChannel { channel, context, join_ref, instance, listening, metrics })
}

/// Waits for the turn of a join. None if the client leaves meanwhile, which is noticed within a second.
async fn turn<S: Socket>(connection: &Arc<Connection<S>>) -> Option<Result<(), TooMany>> {
    let socket = Arc::as_ptr(connection).addr();
    let mut turn = pin!(connection.pubsub.join_turn(socket));
    loop {
        tokio::select! {
            biased;
            turn = &mut turn => return Some(turn),
            () = time::sleep(IS_THERE) => if connection.outbox.has_ended() {
                return None;
            }
        }
    }
}

/// The answer to a join. If the join panics outside of its callback, for example in the drop of a
/// panic's payload, dropping the answer refuses the join: an unanswered one would block its topic for
/// as long as the socket lives.
struct JoinAnswer<'a, S: Socket> {
    connection: &'a Connection<S>,
    address: Address<'a>,
    reference: &'a Ref,
    topic: &'a Arc<str>,
    instance: &'a Instance,
    /// The join reference of the channel that was replaced, if its end has to be announced.
    replaced: Option<Ref>,
}

impl<S: Socket> JoinAnswer<'_, S> {
    /// Subscribes the channel to its topic, and accepts the client in the same step: no broadcast
    /// is missed after the answer, and none reaches the client before it.
    fn accept(self, frame: &Frame, id: SubscriberId, joined: JoinedChannel) -> SubscriptionGuard {
        let Connection { events, outbox, pubsub, .. } = self.connection;
        let event = SessionEvent::Joined { topic: self.topic.clone(), id: self.instance.id() };
        let closed = self.replaced.as_ref();
        let closed = closed.map(|old| Address { join_ref: old, ..self.address }.close());
        let (answer, closed) = (outbox.ready(frame), closed.map(|frame| outbox.ready(&frame)));
        let mut unrecorded = PendingMetrics::default();
        let listening = pubsub.table().join(self.topic, id, joined, || {
            // Notifies the session first, as `send` does.
            events.send(event);
            outbox.queue(&answer, &mut unrecorded);
            if let Some(closed) = &closed {
                outbox.queue(closed, &mut unrecorded);
            }
        });
        outbox.write_queued(unrecorded);
        listening
    }

    fn refuse(&self, frame: &Frame) {
        self.send(SessionEvent::Ended { topic: self.topic.clone(), id: self.instance.id() }, frame);
    }

    /// Notifies the session first: when the client reads the answer, the session knows.
    fn send(&self, event: SessionEvent, frame: &Frame) {
        let Connection { events, outbox, .. } = self.connection;
        events.send(event);
        outbox.send(frame, None);
        if let Some(old) = &self.replaced {
            outbox.send(&Address { join_ref: old, ..self.address }.close(), None);
        }
    }
}

impl<S: Socket> Drop for JoinAnswer<'_, S> {
    fn drop(&mut self) {
        if thread::panicking() {
            let response = join_crashed();
            if let Ok(frame) = self.address.reply(self.reference, "error", &response) {
                self.refuse(&frame);
            }
        }
    }
}

impl Replaced {
    /// Aborts the channel at once, without its `terminate`. Returns its join reference if its end
    /// has not been announced.
    async fn end(mut self) -> Option<Ref> {
        let is_unannounced = self.instance.announce();
        self.task.abort();
        // The task ends at its next await. If it never gets there, it can at least announce nothing.
        let _ = time::timeout(TERMINATE, &mut self.task).await;
        is_unannounced.then(|| self.join_ref.clone())
    }
}

impl Drop for Replaced {
    fn drop(&mut self) {
        // The join that was to end this channel may have been aborted before it began.
        self.task.abort();
    }
}

/// The response to a client whose join is refused or crashed.
fn refuse(
    refusal: Refusal,
    metrics: &RouteMetrics,
    topic: &Topic,
    written: impl Fn(&Payload) -> Result<Frame, PayloadError>,
) -> Frame {
    let crashed = |reason: ExitReason| {
        let (lines, channel) = (metrics.join_crash_lines.of_reason(&reason), metrics.channel);
        limited!(
            lines,
            ERROR,
            channel,
            topic = shown(topic),
            reason = shown(&reason),
            "a join crashed"
        );
        written(&join_crashed()).expect("every version can carry JSON")
    };
    match refusal {
        Refusal::Refused(response) => {
            written(&response).unwrap_or_else(|error| crashed(error.into()))
        }
        Refusal::Crashed(reason) => crashed(reason),
    }
}

/// The response to a join that crashed.
fn join_crashed() -> Payload {
    json!({ "reason": "join crashed" }).into_payload().expect("a literal is JSON")
}

/// A channel that was joined.
struct RunningChannel<C: Channel> {
    /// Dropped before the context: the context's drop announces that the client has left, which
    /// this channel must not receive.
    listening: SubscriptionGuard,
    channel: C,
    context: ChannelContext<C>,
    join_ref: Ref,
    instance: Instance,
    metrics: Arc<RouteMetrics>,
}

/// Units of tokio's cooperative budget, 128 per poll of a task, that one callback uses: it is the
/// user's code, and a client with many messages would otherwise occupy a thread for 128 of them.
const CALLBACK: u64 = 8;

/// The reason why a channel ends.
enum End {
    /// The client left; holds the reference of its message.
    Left(Ref),
    /// The socket has ended.
    Closed(ExitReason),
    Stopped(ExitReason),
}

/// The last frame that the client receives.
#[derive(Clone, Copy)]
enum FinalFrame {
    Close,
    Error,
}

impl<C: Channel> RunningChannel<C> {
    /// Handles messages until the channel has to end. It borrows the channel: a future that owns one
    /// has room for it twice.
    async fn live(&mut self, reader: &MailboxReader) -> End {
        loop {
            // Yields to other tasks, even if there is always something to handle.
            pay(CALLBACK + self.context.connection.outbox.take_unpaid()).await;
            // Timers and messages alternate, so that neither starves the other.
            let due = self.context.timers(|timers| timers.due(Instant::now()));
            if let Some(message) = due
                && let Some(end) = self.handle(ChannelMessage::Internal(message)).await
            {
                return end;
            }
            let message = match next_message(&self.context, reader).await {
                Some(Ok(message)) => message,
                Some(Err(Overflow { dropped })) => {
                    self.context.connection.metrics.dropped_by_mailbox.increment(dropped);
                    return End::Stopped(ExitReason::failed(TOO_MANY_BROADCASTS));
                }
                None => continue,
            };
            if let Some(end) = self.handle(message).await {
                return end;
            }
        }
    }

    /// Handles a message. A callback that ends because it could no longer push ends the channel as
    /// its socket's end does.
    async fn handle(&mut self, message: ChannelMessage) -> Option<End> {
        match self.call(message).await {
            Some(End::Stopped(reason)) if is_socket_end(&reason) => {
                let ended = self.context.connection.outbox.ended();
                Some(End::Closed(ended.map_or(reason, SocketEnd::reason)))
            }
            end => end,
        }
    }

    async fn call(&mut self, message: ChannelMessage) -> Option<End> {
        let Self { channel, context, metrics, .. } = self;
        match message {
            // The message counts as received until it has been handled.
            ChannelMessage::Event { reference, event, payload, held: _held } => {
                context.reference = reference.clone();
                let outcome = match begin_event() {
                    None if !log::events_are_seen() => {
                        catch_panic(|| channel.handle_in(&event, payload, context)).await
                    }
                    // Boxed, so that an idle channel is no larger for it.
                    begun => {
                        Box::pin(watched(channel, &event, payload, context, metrics, begun)).await
                    }
                };
                context.reference = Ref::NULL;
                let (reply, stop) = match outcome {
                    Ok(Ok(reply)) => (reply, None),
                    Ok(Err(Stop { reason, reply })) => (reply, Some(reason)),
                    Err(panicked) => (Reply::none(), Some(panicked)),
                };
                let stop = self.answer(&reference, reply).err().or(stop);
                stop.map(End::Stopped)
            }
            ChannelMessage::Intercepted(Intercepted { event, payload, timeline, copy }) => {
                let push = copy.push().cloned();
                let handling = Handling::new(copy);
                // With `WhenFull::Block`, a channel that intercepts waits too: its broadcasts stay
                // in the mailbox meanwhile, and their senders wait for room there.
                context.connection.outbox.wait_for_room().await;
                (context.timeline, context.push) = (timeline, push);
                let outcome = catch_panic(|| channel.handle_out(&event, payload, context)).await;
                (context.timeline, context.push) = (None, None);
                let end = stopped(outcome);
                match &end {
                    None => handling.succeeded(),
                    Some(End::Stopped(why)) if !(why.is_graceful() || is_socket_end(why)) => {
                        drop(handling);
                    }
                    Some(_) => handling.ended(),
                }
                end
            }
            ChannelMessage::Foreign(broadcast) => {
                stopped(catch_panic(|| channel.handle_broadcast(broadcast, context)).await)
            }
            ChannelMessage::Internal(message) => self.handle_message(message).await,
            ChannelMessage::Expiring => {
                // It may have been renewed meanwhile.
                let left = context.connection.expiry.warning()?;
                // Boxed, so that an idle channel is no larger for it.
                let told = Box::pin(catch_panic(|| channel.handle_expiring(left, context)));
                stopped(told.await)
            }
            ChannelMessage::Stop => {
                Some(End::Stopped(ExitReason::ShutdownWith("ended by an operator".into())))
            }
            ChannelMessage::Leave { reference, held: _held } => Some(End::Left(reference)),
            ChannelMessage::Close(reason) => Some(End::Closed(reason)),
        }
    }

    async fn handle_message(&mut self, message: BoxedMessage) -> Option<End> {
        let Self { channel, context, .. } = self;
        stopped(catch_panic(|| handle::deliver(message, channel, context)).await)
    }

    fn answer(&self, reference: &Ref, reply: Reply) -> Result<(), ExitReason> {
        if let Some(answer) = reply.into_answer() {
            let response = answer.response?;
            let frame = self.context.address().reply(reference, &answer.status, &response)?;
            self.context.connection.outbox.send(&frame, None);
        }
        Ok(())
    }

    /// Ends the channel: announces the end to session and client, in the order that the client
    /// expects, and terminates it.
    async fn end(mut self, end: End) {
        match end {
            End::Left(reference) => {
                let reply = self.answer(&reference, Reply::ok());
                debug_assert!(reply.is_ok(), "an empty response can be encoded");
                self.announce(FinalFrame::Close);
                self.terminate(&ExitReason::ShutdownWith("left".into())).await;
            }
            End::Stopped(reason) if reason.is_graceful() => {
                self.announce(FinalFrame::Close);
                self.terminate(&reason).await;
            }
            End::Stopped(reason) => {
                let (lines, channel) =
                    (self.metrics.crash_lines.of_reason(&reason), self.metrics.channel);
                let topic = &self.context.topic;
                limited!(
                    lines,
                    ERROR,
                    channel,
                    topic = shown(topic),
                    reason = shown(&reason),
                    "a channel crashed"
                );
                self.terminate(&reason).await;
                self.announce(FinalFrame::Error);
            }
            End::Closed(reason) => self.terminate(&reason).await,
        }
    }

    /// Announces the channel's end to the session and then to the client. From here on, the topic
    /// is free to be joined, and no broadcast reaches the client through this channel.
    fn announce(&mut self, final_frame: FinalFrame) {
        self.listening.cancel();
        if self.instance.announce() {
            let Connection { events, outbox, .. } = &*self.context.connection;
            let topic = self.context.topic.shared().clone();
            events.send(SessionEvent::Ended { topic, id: self.instance.id() });
            let address = Address { join_ref: &self.join_ref, ..self.context.address() };
            let frame = match final_frame {
                FinalFrame::Close => address.close(),
                FinalFrame::Error => address.error(),
            };
            outbox.send(&frame, None);
        }
        // The channel no longer listens, so its client does not receive its own leave.
        self.context.leave();
    }

    async fn terminate(&mut self, reason: &ExitReason) {
        let Self { channel, context, .. } = self;
        #[cfg(feature = "test-kit")]
        if let Some(probe) = context.connection.events.probe.get() {
            probe.ended(context.topic.shared(), context.join_ref(), reason);
        }
        let terminated =
            time::timeout(TERMINATE, catch_panic(|| channel.terminate(reason, context))).await;
        let (lines, channel) = (&self.metrics.terminate_lines, self.metrics.channel);
        let topic = &self.context.topic;
        match terminated {
            Ok(Ok(())) => {}
            Ok(Err(reason)) => {
                limited!(
                    lines,
                    ERROR,
                    channel,
                    topic = shown(topic),
                    reason = shown(&reason),
                    "terminate crashed"
                );
            }
            Err(_) => {
                limited!(lines, ERROR, channel, topic = shown(topic), "terminate took too long");
            }
        }
    }
}

impl<C: Channel> Drop for RunningChannel<C> {
    /// Announces the end of a channel that panics outside of its callbacks, for example in the drop of
    /// a panic's payload.
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = catch_unwind(AssertUnwindSafe(|| self.announce(FinalFrame::Error)));
        }
    }
}

/// Runs `handle_in`, and records it.
async fn watched<C: Channel>(
    channel: &mut C,
    event: &str,
    payload: Payload,
    context: &ChannelContext<C>,
    metrics: &RouteMetrics,
    begun: Option<Instant>,
) -> Result<Result<Reply, Stop>, ExitReason> {
    let ChannelContext { topic, reference, .. } = context;
    let entry = MessageLog::event(topic, &payload, &metrics.filter);
    let span = log::handle_in_span(event, reference);
    let timed = begun.unwrap_or_else(Instant::now);
    let handling = catch_panic(|| channel.handle_in(event, payload, context));
    let (outcome, took) = (InSpan::new(&span, handling).await, timed.elapsed());
    let result = match &outcome {
        Ok(Err(stop)) if !stop.reason.is_graceful() && !is_socket_end(&stop.reason) => {
            Outcome::Rejected
        }
        Ok(_) => Outcome::Ok,
        Err(_) => Outcome::Panicked,
    };
    span.record("result", result.status());
    if begun.is_some() {
        metrics.handle_in_time.record(result, took);
    }
    if result != Outcome::Panicked {
        entry.handled(metrics.channel, topic, (event, reference), took);
    }
    outcome
}

/// The next message, or `None` when a timer is due before it comes.
async fn next_message<C: Channel>(
    context: &ChannelContext<C>,
    reader: &MailboxReader,
) -> Option<Result<ChannelMessage, Overflow>> {
    let next = context.timers(|timers| timers.next());
    let Some(at) = next else { return Some(reader.0.receive().await) };
    // A message that is already there is handled, even if there is always a timer that is due.
    if let Some(message) = reader.0.receive().now_or_never() {
        return Some(message);
    }
    tokio::select! {
        biased;
        () = at.passed() => None,
        message = reader.0.receive() => Some(message),
    }
}

/// Whether a callback failed because it pushed to a socket that has ended.
fn is_socket_end(reason: &ExitReason) -> bool {
    let error = reason.source().and_then(|error| error.downcast_ref::<PushError>());
    matches!(error, Some(PushError::Ended))
}

/// The end that results from a callback without an answer, if any.
fn stopped(outcome: Result<Result<(), Stop>, ExitReason>) -> Option<End> {
    match outcome {
        Ok(Ok(())) => None,
        Ok(Err(stop)) => Some(End::Stopped(stop.reason)),
        Err(panicked) => Some(End::Stopped(panicked)),
    }
}

/// Runs a callback; a panic in it becomes an [`ExitReason`], also before it returns its future.
///
/// After a panic only the channel's `terminate` is called, as in Phoenix.
fn catch_panic<F: Future>(
    callback: impl FnOnce() -> F,
) -> impl Future<Output = Result<F::Output, ExitReason>> {
    let running = AssertUnwindSafe(future::lazy(|_| callback()).flatten()).catch_unwind();
    running.map(|outcome| outcome.map_err(|payload| ExitReason::from_panic(&*payload)))
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn a_channel_to_be_replaced_ends_even_if_the_new_join_never_begins() {
        let task = tokio::spawn(pending());
        let handle = task.abort_handle();
        drop(Replaced { join_ref: Ref::NULL, instance: Instance::new(1), task });
        pipeline_test_support::eventually(|| handle.is_finished()).await;
    }
}
