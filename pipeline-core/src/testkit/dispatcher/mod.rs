//! Checks of a dispatcher's contract.

#[cfg(test)]
mod faults;
mod trial;

use std::{fmt, panic::AssertUnwindSafe};

use proptest::{
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRunner},
};

use self::trial::{Broken, Trial};
use crate::{dispatcher::Dispatcher, exit::ExitReason, subscription::SubscribeOptions};

/// Checks that a dispatcher which sends each event to one subscriber keeps the contract of
/// [`Dispatcher`]. Other dispatchers need a [`DispatcherCheck`], which also documents the checked
/// rules.
///
/// # Panics
///
/// If the contract is broken, with the rule and the shortest failing sequence.
///
/// ```
/// use pipeline_core::{dispatcher::DemandDispatcher, testkit};
///
/// testkit::check_dispatcher(DemandDispatcher::new);
/// ```
#[track_caller]
pub fn check_dispatcher<D: Dispatcher<u64>>(make: impl Fn() -> D) {
    DispatcherCheck::new(make).run();
}

/// How many subscribers receive an event.
///
/// ```
/// use pipeline_core::{
///     dispatcher::BroadcastDispatcher,
///     testkit::{Delivering, DispatcherCheck},
/// };
///
/// DispatcherCheck::new(BroadcastDispatcher::new).delivering(Delivering::ToAll).run();
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Delivering {
    /// One subscriber. The default.
    #[default]
    Once,
    /// All subscribers that want it, at the same time.
    ToAll,
}

/// A property test of a dispatcher.
///
/// It behaves like a stage: subscribers subscribe, ask and leave at random, events and markers are
/// emitted, and events that cannot be sent are buffered and offered again, oldest first, while
/// there is unmet demand. The events are the numbers 0, 1, 2 and so on in the order of their
/// emission, and they must come out unchanged. After every call it checks that
///
/// - no more is sent than was asked for, and only to subscribers;
/// - every event is sent, left, queued or discarded, exactly one of these, as `queued` and the
///   reported discards say;
/// - each subscriber gets the events in order, and the events left in place keep their order;
/// - demand is conserved: `outstanding` is the demand that was not served, no demand of cancelled
///   subscribers remains, and `unmet` does not exceed the outstanding demand beyond the queued
///   events;
/// - unmet demand can be served, and without any, events are only taken to be discarded;
/// - a refusal changes nothing, and a stage without a subscription may subscribe;
/// - markers come back once, in order, behind the events before them and no later, and no message
///   has events from before and after one;
/// - with [`wanted`](Self::wanted), an event goes to the subscribers that want it, and only events
///   that no subscriber wants are discarded;
/// - in the end, when all are subscribed and ask for more than there is, everything is sent.
///
/// One rule of the contract needs no check: [`Deliveries`](crate::dispatcher::Deliveries) sends no
/// empty message.
///
/// ```
/// use pipeline_core::{
///     dispatcher::{BroadcastDispatcher, PartitionDispatcher},
///     subscription::SubscribeOptions,
///     testkit::{Delivering, DispatcherCheck},
/// };
///
/// DispatcherCheck::new(BroadcastDispatcher::new).delivering(Delivering::ToAll).run();
///
/// // Three partitions with a subscriber each; the multiples of 4 are discarded.
/// DispatcherCheck::new(|| PartitionDispatcher::by_key(1..4, |n| (n % 4 > 0).then_some(n % 4)))
///     .subscribers(3)
///     .options(|subscriber| SubscribeOptions::new().partition(subscriber as u64 + 1))
///     .wanted(|subscriber, event| event % 4 == subscriber as u64 + 1)
///     .refusing(SubscribeOptions::new().partition(4))
///     .run();
/// ```
#[must_use = "the check does nothing until it is run"]
pub struct DispatcherCheck<M> {
    make: M,
    rules: Rules,
}

/// The properties of a dispatcher.
struct Rules {
    subscribers: usize,
    options: Box<dyn Fn(usize) -> SubscribeOptions>,
    refused: Vec<SubscribeOptions>,
    delivering: Delivering,
    wanted: Option<Box<dyn Fn(usize, u64) -> bool>>,
}

impl<D: Dispatcher<u64>, M: Fn() -> D> DispatcherCheck<M> {
    /// A check of dispatchers that `make` creates, one for each sequence.
    pub fn new(make: M) -> Self {
        let rules = Rules {
            subscribers: 4,
            options: Box::new(|_| SubscribeOptions::new()),
            refused: Vec::new(),
            delivering: Delivering::default(),
            wanted: None,
        };
        Self { make, rules }
    }

    /// The number of subscribing stages. Default 4; they are numbered from 0.
    ///
    /// # Panics
    ///
    /// If it is 0.
    pub fn subscribers(mut self, stages: usize) -> Self {
        assert!(stages > 0, "the number of subscribers must be at least 1");
        self.rules.subscribers = stages;
        self
    }

    /// The options of each subscriber. They have to be accepted, unless the same stage already has
    /// a subscription. Default [`SubscribeOptions::new`].
    pub fn options(mut self, options: impl Fn(usize) -> SubscribeOptions + 'static) -> Self {
        self.rules.options = Box::new(options);
        self
    }

    /// Options that have to be refused. Can be called several times.
    pub fn refusing(mut self, options: SubscribeOptions) -> Self {
        self.rules.refused.push(options);
        self
    }

    /// How many subscribers receive an event. Default [`Delivering::Once`].
    pub fn delivering(mut self, delivering: Delivering) -> Self {
        self.rules.delivering = delivering;
        self
    }

    /// Which subscriber wants which event. Then no other subscriber may get it, and exactly the
    /// events that no subscriber wants have to be discarded. Without this, all subscribers want all
    /// events, and reported discards are not checked.
    pub fn wanted(mut self, wanted: impl Fn(usize, u64) -> bool + 'static) -> Self {
        self.rules.wanted = Some(Box::new(wanted));
        self
    }

    /// Runs the check. It plays twice as many sequences as proptest has cases, which are 256 by
    /// default.
    ///
    /// # Panics
    ///
    /// If the contract is broken, with the rule and the shortest failing sequence.
    #[track_caller]
    #[expect(clippy::panic, reason = "a failed check fails the test")]
    pub fn run(self) {
        // A fault that shows on the way does not need the ending, which would lengthen the report.
        for ending in [Ending::Open, Ending::Served] {
            if let Err(Fault(fault)) = self.search(ending) {
                panic!("{fault}");
            }
        }
    }

    fn search(&self, ending: Ending) -> Result<(), Fault> {
        let config = Config {
            failure_persistence: None,
            // The default generator is cryptographic and takes most of the time in a debug build.
            rng_algorithm: RngAlgorithm::XorShift,
            ..Config::default()
        };
        let steps = prop::collection::vec(step(&self.rules), 0..50);
        let play = |steps: &[Step]| play((self.make)(), &self.rules, steps, ending);
        let outcome = TestRunner::new(config)
            .run(&steps, |steps| play(&steps).map_err(|fault| TestCaseError::fail(fault.0)));
        match outcome {
            Ok(()) => Ok(()),
            Err(TestError::Fail(first, steps)) => {
                Err(shortest(steps, play).unwrap_or_else(|| Fault(first.message().to_owned())))
            }
            Err(TestError::Abort(reason)) => Err(Fault(reason.message().to_owned())),
        }
    }
}

impl<M> fmt::Debug for DispatcherCheck<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DispatcherCheck")
            .field("subscribers", &self.rules.subscribers)
            .field("delivering", &self.rules.delivering)
            .finish_non_exhaustive()
    }
}

/// Removes steps while there is a fault, and returns the last one; proptest tries each step only
/// once. There may be none, because a randomized dispatcher may pass the next time.
fn shortest(mut steps: Vec<Step>, play: impl Fn(&[Step]) -> Result<(), Fault>) -> Option<Fault> {
    let mut found = play(&steps).err()?;
    let mut place = 0;
    while place < steps.len() {
        let step = steps.remove(place);
        match play(&steps) {
            Err(fault) => (found, place) = (fault, 0),
            Ok(()) => {
                steps.insert(place, step);
                place += 1;
            }
        }
    }
    Some(found)
}

/// The end of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Open,
    /// All subscribe, and ask for more than there is.
    Served,
}

/// One operation on a stage.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The subscriber with this number subscribes.
    Subscribe(usize),
    /// A subscription with the nth of the options that have to be refused.
    Refused(usize),
    /// The nth subscriber leaves.
    Cancel(usize),
    /// The nth subscriber asks for this many events.
    Ask(usize, usize),
    Emit(usize),
    Mark,
}

fn step(rules: &Rules) -> impl Strategy<Value = Step> + use<> {
    // A stage may have several subscriptions, so there may be more subscriptions than stages.
    let any = 0..2 * rules.subscribers;
    prop_oneof![
        3 => (0..rules.subscribers).prop_map(Step::Subscribe),
        1 => (0..rules.refused.len().max(1)).prop_map(Step::Refused),
        1 => any.clone().prop_map(Step::Cancel),
        5 => (any, 1usize..6).prop_map(|(n, demand)| Step::Ask(n, demand)),
        4 => (1usize..7).prop_map(Step::Emit),
        1 => Just(Step::Mark),
    ]
}

/// A broken rule and the sequence that led to it, as a readable text.
struct Fault(String);

fn play<D: Dispatcher<u64>>(
    dispatcher: D,
    rules: &Rules,
    steps: &[Step],
    ending: Ending,
) -> Result<(), Fault> {
    let mut trial = Trial::new(dispatcher, rules);
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
        trial.begin()?;
        steps.iter().try_for_each(|step| trial.step(*step))?;
        if ending == Ending::Served { trial.finish() } else { Ok(()) }
    }));
    let Broken { rule, detail } = match outcome {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(broken)) => broken,
        Err(payload) => Broken {
            rule: "a dispatcher does not panic",
            detail: format!("it {}", ExitReason::from_panic(&*payload)),
        },
    };
    let history = trial.history().join("\n  ");
    Err(Fault(format!(
        "the dispatcher breaks a rule: {rule}\n  {detail}\nafter this:\n  {history}"
    )))
}
