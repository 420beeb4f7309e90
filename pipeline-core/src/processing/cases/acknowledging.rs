//! How messages are acknowledged.

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

use parking_lot::Mutex;

use super::{Log, Source, pass, processors, recorder};
use crate::{
    Pipeline,
    processing::{
        Acknowledgement, Acknowledger, Batch, Failure, FailureKind, Message, NotConfigurable,
    },
    source::from_iter,
    testkit::{scripted, settle},
};

#[tokio::test(start_paused = true)]
async fn s_206_messages_are_acknowledged_by_their_acknowledgers() {
    let (producer, script) = scripted();
    let groups = Log::default();
    let (r1, r2) = (recorder("r1", &groups), recorder("r2", &groups));
    let handle = async |n: &mut Message<u64>| {
        if [2, 3].contains(&**n) { Err(Failure::new("no")) } else { Ok(()) }
    };
    let _pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(processors(handle).concurrency(1))
        .start()
        .unwrap();
    let of = |n, to| Message::new(n, n, to);
    script.emit([of(1, &r1), of(2, &r2), of(3, &r1), of(4, &r2)]).await;
    settle().await;
    assert_eq!(groups.take(), [("r1", vec![1], vec![3]), ("r2", vec![4], vec![2])]);
}

#[tokio::test(start_paused = true)]
async fn x_035_an_acknowledger_that_panics_concerns_its_own_messages_only() {
    let (producer, script) = scripted();
    let groups = Log::default();
    let [bad, g1, g2] = ["bad", "g1", "g2"].map(|name| recorder(name, &groups));
    let pipeline =
        Pipeline::of_messages("test").source(producer).processors(pass()).start().unwrap();
    let of = |n, to| Message::new(n, n, to);
    script.emit([of(1, &bad), of(2, &g1), of(3, &g2)]).await;
    settle().await;
    assert_eq!(groups.take(), [("g1", vec![2], vec![]), ("g2", vec![3], vec![])]);
    assert!(pipeline.snapshot().stages.iter().all(|stage| stage.failures == 0));
}

#[tokio::test(start_paused = true)]
async fn s_210_a_message_that_is_acknowledged_at_once_is_not_acknowledged_again() {
    let (producer, source) = Source::new();
    let handle = async |n: &mut Message<u64>| {
        n.acknowledge_now();
        if **n == 1 { Ok(()) } else { Err(Failure::new("too late")) }
    };
    let _pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(processors(handle).concurrency(1))
        .start()
        .unwrap();
    source.push([1, 2]).await;
    assert_eq!(source.acks(), [(vec![1], vec![]), (vec![2], vec![])]);
}

/// An acknowledger with an option: the receipt's new value.
#[derive(Default)]
struct Renumbers(Mutex<Vec<u64>>);

impl Acknowledger for Renumbers {
    type Receipt = u64;

    fn acknowledge(&self, done: Vec<u64>, _failed: Vec<(u64, Failure)>) {
        self.0.lock().extend(done);
    }

    fn configure(&self, receipt: &mut u64, options: &dyn Any) -> Result<(), NotConfigurable> {
        let Some(number) = options.downcast_ref() else {
            return Err(NotConfigurable { acknowledger: "Renumbers" });
        };
        *receipt = *number;
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn s_211_a_message_whose_acknowledger_cannot_be_configured_fails() {
    let (producer, source) = Source::new();
    let handle = async |n: &mut Message<u64>| {
        if **n == 1 {
            n.configure_acknowledgement(&7u64)?;
        }
        Ok(())
    };
    let processors = processors(handle).concurrency(1);
    let _pipeline =
        Pipeline::of_messages("test").source(producer).processors(processors).start().unwrap();
    source.push([1, 2]).await;
    assert_eq!(source.acks(), [(vec![2], vec![1])]);
    assert!(source.failures()[0].1.ends_with("Recorder has no such options"));
}

#[test]
fn an_acknowledger_may_be_configured() {
    let numbers = Arc::new(Renumbers::default());
    let mut message = Message::new("a line", 1, &numbers);
    assert!(message.configure_acknowledgement(&"text").is_err());
    message.configure_acknowledgement(&7u64).unwrap();
    message.acknowledge_now();
    assert_eq!(*numbers.0.lock(), [7]);
}

#[tokio::test(start_paused = true)]
async fn a_message_is_acknowledged_later_by_what_took_its_acknowledgement() {
    let (producer, source) = Source::new();
    let taken = Arc::new(Mutex::new(Vec::<Acknowledgement>::new()));
    let later = taken.clone();
    let handle = async move |n: &mut Message<u64>| {
        later.lock().extend(n.take_acknowledgement());
        Ok(())
    };
    let _pipeline = Pipeline::of_messages("test")
        .source(producer)
        .processors(processors(handle).concurrency(1))
        .start()
        .unwrap();
    source.push(1..=3).await;
    assert_eq!(source.acks(), []);
    let mut taken = taken.lock().drain(..).collect::<Vec<_>>().into_iter();
    taken.next().unwrap().done();
    taken.next().unwrap().fail(Failure::new("refused"));
    assert_eq!(source.acks(), [(vec![1], vec![]), (vec![], vec![2])]);
    drop(taken);
    assert_eq!(source.acks(), [(vec![], vec![3])]);
    let failures = source.acks.failures.take();
    assert_eq!(failures.last().map(|(_, failure)| failure.kind()), Some(FailureKind::Forgotten));
}

#[test]
fn x_045_a_message_that_is_dropped_has_failed() {
    let groups = Log::default();
    let acks = recorder("acks", &groups);
    drop(Message::new(1, 1, &acks));
    assert_eq!(groups.take(), [("acks", vec![], vec![1])]);
    assert_eq!(acks.failures.take()[0].1.kind(), FailureKind::Dropped);
}

/// An acknowledger that knows from which receipt on outcomes matter.
#[derive(Default)]
struct Current {
    from: AtomicU64,
    failed: Mutex<Vec<(u64, FailureKind)>>,
}

impl Acknowledger for Current {
    type Receipt = u64;

    fn acknowledge(&self, _done: Vec<u64>, failed: Vec<(u64, Failure)>) {
        let failed = failed.into_iter().map(|(n, failure)| (n, failure.kind()));
        self.failed.lock().extend(failed);
    }

    fn is_current(&self, receipt: &u64) -> bool {
        assert_ne!(*receipt, 9, "it does not know");
        *receipt >= self.from.load(SeqCst)
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_whose_outcome_does_not_matter_any_more_is_not_handled() {
    let current = Arc::new(Current::default());
    let handled = Arc::new(Mutex::new(Vec::new()));
    let (log, later) = (handled.clone(), current.clone());
    let handle = async move |n: &mut Message<u64>| {
        log.lock().push(**n);
        if **n == 1 {
            later.from.store(4, SeqCst);
        }
        Ok(())
    };
    let messages: Vec<_> = (1..10).map(|n| Message::new(n, n, &current)).collect();
    let mut pipeline = Pipeline::of_messages("test")
        .source(from_iter(messages))
        .processors(processors(handle).concurrency(1).max_demand(3))
        .start()
        .unwrap();
    pipeline.join().await;
    // Some have been in the chunk of the first one, and some have not.
    assert_eq!(*handled.lock(), [1, 4, 5, 6, 7, 8, 9]);
    assert_eq!(*current.failed.lock(), [(2, FailureKind::Dropped), (3, FailureKind::Dropped)]);
}

#[test]
fn messages_are_shared_between_threads() {
    fn is_sync<T: Sync>() {}
    is_sync::<Message<u64>>();
    is_sync::<Batch<u64, u64>>();
}

#[test]
fn a_message_that_is_dropped_by_a_panic_has_failed() {
    let groups = Log::default();
    let message = Message::new(1, 1, &recorder("acks", &groups));
    let panicked = std::thread::spawn(move || {
        let _message = message;
        panic!("dropped on the way");
    });
    assert!(panicked.join().is_err());
    assert_eq!(groups.take(), [("acks", vec![], vec![1])]);
}

#[test]
fn a_message_that_cannot_be_converted_has_failed() {
    let groups = Log::default();
    let acks = recorder("acks", &groups);
    let convert = |text: &str| Ok(text.parse::<u64>()?);
    let number = Message::new("7", 1, &acks).try_map(convert).unwrap();
    assert!(Message::new("seven", 2, &acks).try_map(convert).is_none());
    assert_eq!(groups.take(), [("acks", vec![], vec![2])]);
    assert_eq!(*number, 7);
}
