//! Cases of docs/spec/stages.md that a program cannot express: code that does not compile, each
//! with the case's number, next to code that differs in one word and compiles.

/// S-023: `NotAConsumer`. A producer receives nothing, so there is nothing it could subscribe to.
///
/// ```compile_fail,E0308
/// # use pipeline_core::{
/// #     stage::ProducerHandle,
/// #     subscription::{SubscribeError, SubscribeOptions},
/// #     testkit::{RecordingConsumer, ScriptedProducer},
/// # };
/// # async fn subscribe(
/// #     producer: ProducerHandle<ScriptedProducer<u64>>,
/// #     consumer: pipeline_core::stage::ConsumerHandle<RecordingConsumer<u64>>,
/// #     another: ProducerHandle<ScriptedProducer<u64>>,
/// # ) -> Result<(), SubscribeError> {
/// producer.subscribe(&another, SubscribeOptions::new()).await?;
/// # Ok(())
/// # }
/// ```
///
/// ```
/// # use pipeline_core::{
/// #     stage::ProducerHandle,
/// #     subscription::{SubscribeError, SubscribeOptions},
/// #     testkit::{RecordingConsumer, ScriptedProducer},
/// # };
/// # async fn subscribe(
/// #     producer: ProducerHandle<ScriptedProducer<u64>>,
/// #     consumer: pipeline_core::stage::ConsumerHandle<RecordingConsumer<u64>>,
/// #     another: ProducerHandle<ScriptedProducer<u64>>,
/// # ) -> Result<(), SubscribeError> {
/// consumer.subscribe(&another, SubscribeOptions::new()).await?;
/// # Ok(())
/// # }
/// ```
///
/// Neither a producer nor any other stage can subscribe to a consumer.
///
/// ```compile_fail,E0308
/// # use pipeline_core::{
/// #     stage::ProducerHandle,
/// #     subscription::{SubscribeError, SubscribeOptions},
/// #     testkit::{RecordingConsumer, ScriptedProducer},
/// # };
/// # async fn subscribe(
/// #     producer: ProducerHandle<ScriptedProducer<u64>>,
/// #     consumer: pipeline_core::stage::ConsumerHandle<RecordingConsumer<u64>>,
/// # ) -> Result<(), SubscribeError> {
/// producer.subscribe(&consumer, SubscribeOptions::new()).await?;
/// # Ok(())
/// # }
/// ```
fn s_023_a_producer_cannot_subscribe() {}

/// S-060: a consumer that emits. Its event callbacks have no emitter, and the emitter of its
/// messages takes events of a type without values.
///
/// ```compile_fail,E0308
/// # use std::convert::Infallible;
/// # use pipeline_core::{
/// #     ExitReason,
/// #     stage::{Consumer, Emitter, HandleCast},
/// #     subscription::Subscription,
/// # };
/// # struct Last;
/// # impl HandleCast<u64> for Last {
/// async fn handle_cast(&mut self, message: u64, out: &mut Emitter<'_, Infallible>) -> Result<(), ExitReason> {
///     out.emit(message);
///     Ok(())
/// }
/// # }
/// ```
///
/// ```
/// # use std::convert::Infallible;
/// # use pipeline_core::{
/// #     ExitReason,
/// #     stage::{Consumer, Emitter, HandleCast},
/// #     subscription::Subscription,
/// # };
/// # struct Last;
/// # impl HandleCast<u64> for Last {
/// async fn handle_cast(&mut self, message: u64, out: &mut Emitter<'_, Infallible>) -> Result<(), ExitReason> {
///     Ok(())
/// }
/// # }
/// ```
///
/// ```compile_fail,E0271
/// # use pipeline_core::{ExitReason, stage::Consumer, subscription::Subscription};
/// # struct Last;
/// # impl Consumer for Last {
/// # type Event = u64;
/// async fn handle_events(&mut self, events: Vec<u64>, _: &Subscription) -> Result<Vec<u64>, ExitReason> {
///     Ok(events)
/// }
/// # }
/// ```
///
/// ```
/// # use pipeline_core::{ExitReason, stage::Consumer, subscription::Subscription};
/// # struct Last;
/// # impl Consumer for Last {
/// # type Event = u64;
/// async fn handle_events(&mut self, events: Vec<u64>, _: &Subscription) -> Result<(), ExitReason> {
///     Ok(())
/// }
/// # }
/// ```
fn s_060_a_consumer_cannot_emit() {}

/// S-151: children that are always restarted. A child that has finished its event would be
/// restarted with it forever.
///
/// ```compile_fail,E0599
/// # use pipeline_core::supervisor::{ConsumerSupervisor, Restart};
/// # let worker = async |_: &u64| Ok(());
/// let supervisor = ConsumerSupervisor::<u64, _>::new(worker).restart(Restart::Permanent);
/// ```
///
/// ```
/// # use pipeline_core::supervisor::{ConsumerSupervisor, Restart};
/// # let worker = async |_: &u64| Ok(());
/// let supervisor = ConsumerSupervisor::<u64, _>::new(worker).restart(Restart::Temporary);
/// ```
fn s_151_children_that_are_always_restarted() {}

/// S-152: no worker, or two.
///
/// ```compile_fail,E0061
/// # use pipeline_core::supervisor::ConsumerSupervisor;
/// let supervisor = ConsumerSupervisor::<u64, _>::new();
/// ```
///
/// ```compile_fail,E0061
/// # use pipeline_core::supervisor::ConsumerSupervisor;
/// # let (one, two) = (async |_: &u64| Ok(()), async |_: &u64| Ok(()));
/// let supervisor = ConsumerSupervisor::<u64, _>::new(one, two);
/// ```
///
/// ```
/// # use pipeline_core::supervisor::ConsumerSupervisor;
/// # let one = async |_: &u64| Ok(());
/// let supervisor = ConsumerSupervisor::<u64, _>::new(one);
/// ```
fn s_152_a_supervisor_has_one_worker() {}

/// S-186: an option that does not exist.
///
/// ```compile_fail,E0599
/// # use pipeline_core::processing::{Message, Processors};
/// # let processors = Processors::from_fn(async |n: &mut Message<u64>| Ok(**n));
/// let processors = processors.concurency(4);
/// ```
///
/// ```
/// # use pipeline_core::processing::{Message, Processors};
/// # let processors = Processors::from_fn(async |n: &mut Message<u64>| Ok(**n));
/// let processors = processors.concurrency(4);
/// ```
fn s_186_options_are_methods() {}

/// S-199: `prepare_messages` with fewer messages than it got. It is lent a slice.
///
/// ```compile_fail,E0599
/// # use pipeline_core::processing::Message;
/// # fn prepare(messages: &mut [Message<u64>]) {
/// messages.pop();
/// # }
/// ```
///
/// ```
/// # use pipeline_core::processing::Message;
/// # fn prepare(messages: &mut [Message<u64>]) {
/// messages.last();
/// # }
/// ```
fn s_199_a_preparation_keeps_all_messages() {}

/// X-036: `handle_batch` that returns fewer messages than it got. A batch derefs to a slice.
///
/// ```compile_fail,E0599
/// # use pipeline_core::processing::Batch;
/// # fn handle(batch: &mut Batch<u64, u64>) {
/// batch.pop();
/// # }
/// ```
///
/// ```
/// # use pipeline_core::processing::Batch;
/// # fn handle(batch: &mut Batch<u64, u64>) {
/// batch.last();
/// # }
/// ```
fn x_036_a_batch_keeps_all_messages() {}
