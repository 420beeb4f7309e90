//! A producer controlled by a test.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, OnceLock},
};

use parking_lot::Mutex;

use crate::{
    exit::ExitReason,
    stage::{
        CallError, Caller, Emitter, HandleCall, HandleInfo, Producer, ProducerHandle, StageContext,
    },
    subscription::{Cancellation, SubscribeOptions, Subscription},
};

/// Creates a producer that does what its [`Script`] says, and records its demand.
///
/// The [module](crate::testkit) has an example.
///
/// ```
/// use pipeline_core::{Pipeline, subscription::SubscribeOptions, testkit};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (producer, script) = testkit::scripted();
/// let (consumer, recording) = testkit::recording();
/// let _pipeline = Pipeline::builder("test")
///     .producer(producer)
///     .consumer(consumer, SubscribeOptions::new().max_demand(8))
///     .start()?;
/// script.emit(["a", "b"]).await;
/// testkit::settle().await;
/// assert_eq!(recording.events(), ["a", "b"]);
/// # Ok(())
/// # }
/// ```
pub fn scripted<E: Send + 'static>() -> (ScriptedProducer<E>, Script<E>) {
    let shared = Arc::new(Shared {
        handle: OnceLock::new(),
        recorded: Mutex::new(Recorded::default()),
        answers: Mutex::new(VecDeque::new()),
    });
    (ScriptedProducer { shared: shared.clone(), source: None }, Script { shared })
}

/// The producer returned by [`scripted`].
///
/// ```
/// use pipeline_core::{Pipeline, subscription::SubscribeOptions, testkit};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (producer, script) = testkit::scripted();
/// let (consumer, recording) = testkit::recording();
/// let _pipeline = Pipeline::builder("test")
///     .producer(producer.from_iter(0..6))
///     .consumer(consumer, SubscribeOptions::new().max_demand(4))
///     .start()?;
/// testkit::settle().await;
/// assert_eq!(recording.events(), [0, 1, 2, 3, 4, 5]);
/// assert_eq!(script.demands(), [4, 2, 2, 2]);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct ScriptedProducer<E: Send + 'static> {
    shared: Arc<Shared<E>>,
    source: Option<Box<dyn Iterator<Item = E> + Send>>,
}

/// The test's handle of a [`ScriptedProducer`]. It returns each recorded item once: the next call
/// returns later ones.
///
/// ```
/// use pipeline_core::{Pipeline, subscription::SubscribeOptions, testkit};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (producer, script) = testkit::scripted();
/// let (consumer, recording) = testkit::recording::<u64>();
/// let _pipeline = Pipeline::builder("test")
///     .producer(producer)
///     .consumer(consumer, SubscribeOptions::new().max_demand(2))
///     .start()?;
/// testkit::settle().await;
/// assert_eq!(script.demands(), [2]);
/// assert_eq!(script.subscribed().len(), 1);
///
/// recording.subscription().pause();
/// script.emit([1, 2, 3]).await;
/// script.mark("behind the third").await;
/// testkit::settle().await;
/// assert!(script.infos().is_empty());
/// # Ok(())
/// # }
/// ```
pub struct Script<E: Send + 'static> {
    shared: Arc<Shared<E>>,
}

struct Shared<E: Send + 'static> {
    handle: OnceLock<ProducerHandle<ScriptedProducer<E>>>,
    recorded: Mutex<Recorded>,
    /// The commands for the next demands.
    answers: Mutex<VecDeque<Command<E>>>,
}

#[derive(Default)]
struct Recorded {
    demands: Vec<usize>,
    subscribed: Vec<(Subscription, SubscribeOptions)>,
    cancelled: Vec<(Subscription, Cancellation)>,
    infos: Vec<String>,
    terminated: Option<ExitReason>,
}

/// A command for a [`ScriptedProducer`].
///
/// ```
/// use pipeline_core::{Pipeline, subscription::SubscribeOptions, testkit};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (producer, script) = testkit::scripted();
/// let (consumer, recording) = testkit::recording();
/// script.on_demand(testkit::Command::EmitAndFinish(vec![7, 8]));
/// let mut pipeline = Pipeline::builder("test")
///     .producer(producer)
///     .consumer(consumer, SubscribeOptions::new())
///     .start()?;
/// assert!(pipeline.join().await.failure().is_none());
/// assert_eq!(recording.events(), [7, 8]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub enum Command<E> {
    /// Emit these events.
    Emit(Vec<E>),
    /// Emit these events, and finish once all are delivered.
    EmitAndFinish(Vec<E>),
    /// End with this reason.
    End(ExitReason),
    /// Emit these events and end with this reason at once.
    EmitAndEnd(Vec<E>, ExitReason),
    /// Panic with this message.
    Panic(&'static str),
}

impl<E: Send + 'static> ScriptedProducer<E> {
    /// Also answers each demand with items of this iterator, until it ends.
    pub fn from_iter<I>(mut self, items: I) -> Self
    where
        I: IntoIterator<Item = E, IntoIter: Send + 'static>,
    {
        self.source = Some(Box::new(items.into_iter()));
        self
    }

    #[expect(clippy::panic, reason = "the test asked for it")]
    fn obey(&self, command: Command<E>, out: &mut Emitter<'_, E>) -> Result<(), ExitReason> {
        match command {
            Command::Emit(events) => out.emit_all(events),
            Command::EmitAndFinish(events) => {
                out.emit_all(events);
                out.finish();
            }
            Command::End(reason) => return Err(reason),
            Command::EmitAndEnd(events, reason) => {
                out.emit_all(events);
                return Err(reason);
            }
            Command::Panic(message) => panic!("{message}"),
        }
        Ok(())
    }
}

impl<E: Send + 'static> Script<E> {
    /// Lets the producer emit these events, whatever the demand. Returns when it has emitted them.
    ///
    /// # Panics
    ///
    /// If the producer is not running.
    pub async fn emit(&self, events: impl IntoIterator<Item = E>) {
        self.execute(Command::Emit(events.into_iter().collect()))
            .await
            .expect("the producer is running");
    }

    /// Lets the producer execute a command. Returns when it has, even if the command ends it.
    ///
    /// # Errors
    ///
    /// [`CallError`] if the producer is not running.
    pub async fn execute(&self, command: Command<E>) -> Result<(), CallError> {
        self.handle().call(command).await
    }

    /// Lets the producer execute a command on its next demand; one for each demand.
    pub fn on_demand(&self, command: Command<E>) {
        self.shared.answers.lock().push_back(command);
    }

    /// Queues a message behind all events that the producer holds; [`infos`](Self::infos) returns
    /// it when it has arrived.
    ///
    /// # Panics
    ///
    /// If the producer is not running.
    pub async fn mark(&self, name: &str) {
        self.handle().sync_info(name.to_owned()).await.expect("the producer is running");
    }

    /// The demands received since the last call.
    #[must_use]
    pub fn demands(&self) -> Vec<usize> {
        std::mem::take(&mut self.shared.recorded.lock().demands)
    }

    /// The subscriptions made since the last call.
    #[must_use]
    pub fn subscribed(&self) -> Vec<(Subscription, SubscribeOptions)> {
        std::mem::take(&mut self.shared.recorded.lock().subscribed)
    }

    /// The subscriptions that have ended since the last call, and how.
    #[must_use]
    pub fn cancelled(&self) -> Vec<(Subscription, Cancellation)> {
        std::mem::take(&mut self.shared.recorded.lock().cancelled)
    }

    /// The messages of [`mark`](Self::mark) that have arrived since the last call.
    #[must_use]
    pub fn infos(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.recorded.lock().infos)
    }

    /// Why it ended, if it has.
    #[must_use]
    pub fn terminated(&self) -> Option<ExitReason> {
        self.shared.recorded.lock().terminated.clone()
    }

    /// The producer's handle.
    ///
    /// # Panics
    ///
    /// If the producer has not been started.
    #[must_use]
    pub fn handle(&self) -> &ProducerHandle<ScriptedProducer<E>> {
        self.shared.handle.get().expect("the producer has been started")
    }
}

#[diagnostic::do_not_recommend]
impl<E: Send + 'static> Producer for ScriptedProducer<E> {
    type Event = E;

    fn init(&mut self, context: &StageContext<ProducerHandle<Self>>) -> Result<(), ExitReason> {
        // A restarted producer has the same handle.
        let _ = self.shared.handle.set(context.handle().clone());
        Ok(())
    }

    async fn handle_demand(
        &mut self,
        demand: usize,
        out: &mut Emitter<'_, E>,
    ) -> Result<(), ExitReason> {
        self.shared.recorded.lock().demands.push(demand);
        let answer = self.shared.answers.lock().pop_front();
        if let Some(command) = answer {
            return self.obey(command, out);
        }
        if let Some(source) = &mut self.source {
            out.emit_all(source.take(demand));
        }
        Ok(())
    }

    async fn handle_subscribe(
        &mut self,
        options: &SubscribeOptions,
        to: &Subscription,
        _out: &mut Emitter<'_, E>,
    ) -> Result<(), ExitReason> {
        self.shared.recorded.lock().subscribed.push((to.clone(), options.clone()));
        Ok(())
    }

    async fn handle_cancel(
        &mut self,
        ended: &Cancellation,
        to: &Subscription,
        _out: &mut Emitter<'_, E>,
    ) -> Result<(), ExitReason> {
        self.shared.recorded.lock().cancelled.push((to.clone(), ended.clone()));
        Ok(())
    }

    async fn terminate(&mut self, reason: &ExitReason) {
        self.shared.recorded.lock().terminated = Some(reason.clone());
    }
}

#[diagnostic::do_not_recommend]
impl<E: Send + 'static> HandleCall<Command<E>, E> for ScriptedProducer<E> {
    type Reply = ();

    async fn handle_call(
        &mut self,
        command: Command<E>,
        caller: &mut Caller<()>,
        out: &mut Emitter<'_, E>,
    ) -> Result<(), ExitReason> {
        caller.reply(());
        self.obey(command, out)
    }
}

#[diagnostic::do_not_recommend]
impl<E: Send + 'static> HandleInfo<String, E> for ScriptedProducer<E> {
    async fn handle_info(
        &mut self,
        name: String,
        _out: &mut Emitter<'_, E>,
    ) -> Result<(), ExitReason> {
        self.shared.recorded.lock().infos.push(name);
        Ok(())
    }
}

impl<E: Send + 'static> fmt::Debug for ScriptedProducer<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScriptedProducer")
    }
}

impl<E: Send + 'static> Clone for Script<E> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<E: Send + 'static> fmt::Debug for Script<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Script")
    }
}
