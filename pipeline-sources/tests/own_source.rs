//! The source of one's own that the guide builds.
#![cfg(feature = "test-kit")]
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::{
    fs,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::SeqCst},
    },
    time::Duration,
};

use pipeline_core::{
    Pipeline,
    processing::{Message, Processors},
};
use pipeline_sources::{
    Backlog, Broker, BrokerError, Delivery, Fetch, Item, NotStored, Settle, Settlement, Source,
    SourceOptions,
    contract::{Subject, check},
};
use pipeline_test_support::Recorded;
use tempfile::TempDir;
use tokio::time::sleep;

#[expect(dead_code, reason = "it is a program of its own")]
#[path = "../examples/folder.rs"]
mod folder;

use self::folder::Folder;

/// A folder, which is removed at the end.
struct InFolder(Folder, TempDir);

impl Subject for InFolder {
    type Broker = Folder;

    fn broker(&self) -> Folder {
        self.0.clone()
    }

    async fn push(&self, item: Item) {
        self.0.push(&item).unwrap();
    }

    async fn dead_letters(&self) -> Vec<String> {
        self.0.dead_letters().unwrap()
    }

    async fn push_malformed(&self) -> bool {
        fs::write(self.1.path().join("items/1,0,0,0,none"), "no JSON\n").unwrap();
        true
    }

    async fn fill_graves(&self) -> bool {
        // A file cannot have folders in it.
        fs::remove_dir(self.1.path().join("dead")).unwrap();
        fs::write(self.1.path().join("dead"), "").unwrap();
        true
    }

    async fn empty_graves(&self) {
        fs::remove_file(self.1.path().join("dead")).unwrap();
        fs::create_dir(self.1.path().join("dead")).unwrap();
    }
}

fn in_folder() -> InFolder {
    let folder = tempfile::tempdir().unwrap();
    let opened = Folder::open(folder.path().to_owned(), Duration::from_millis(800)).unwrap();
    InFolder(opened, folder)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_folder_of_the_guide_keeps_the_contract() {
    check(async || in_folder()).await;
}

#[tokio::test]
async fn a_file_that_is_no_item_says_why() {
    let InFolder(mut folder, files) = in_folder();
    fs::write(files.path().join("items/1,0,0,0,none"), "no JSON\n").unwrap();
    fs::write(files.path().join("items/a file of another program"), "").unwrap();
    let fetched = folder.fetch(10).await.unwrap();
    assert_eq!(fetched.len(), 1);
    let why = fetched[0].malformed.as_deref().unwrap();
    assert!(why.starts_with("the first line is not JSON: "), "{why}");
}

/// A broker that delivers nothing, and whose backlog is what the number says.
#[derive(Clone, Default)]
struct Idle(Arc<AtomicU8>);

const DELIVERS: u8 = 0;
const STALLED: u8 = 1;
const UNCOUNTED: u8 = 2;
const LOST: u8 = 3;

impl Broker for Idle {
    type Receipt = ();
    type Fetch = Self;
    type Settle = Self;

    async fn connect(&self) -> Result<(Self, Self), BrokerError> {
        Ok((self.clone(), self.clone()))
    }

    fn lease(&self) -> Option<Duration> {
        None
    }
}

impl Fetch for Idle {
    type Receipt = ();

    async fn fetch(&mut self, _: usize) -> Result<Vec<Delivery<()>>, BrokerError> {
        while self.0.load(SeqCst) != LOST {
            sleep(Duration::from_millis(10)).await;
        }
        Err(BrokerError::new("the connection is lost"))
    }

    async fn idle(&mut self) -> BrokerError {
        pending().await
    }
}

impl Settle for Idle {
    type Receipt = ();

    async fn settle(&self, _: &[Settlement<()>]) -> Result<Vec<NotStored>, BrokerError> {
        Ok(Vec::new())
    }

    async fn backlog(&self) -> Result<Backlog, BrokerError> {
        let mut backlog = Backlog::default();
        match self.0.load(SeqCst) {
            STALLED => backlog.stalled = Some("as many are postponed as may be"),
            UNCOUNTED => return Err(BrokerError::new("it does not tell")),
            _ => {}
        }
        Ok(backlog)
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_is_stalled_for_as_long_as_its_server_delivers_nothing() {
    let (telemetry, recorded) = Recorded::new();
    let broker = Idle::default();
    let pipeline = Pipeline::of_messages("test")
        .telemetry(telemetry)
        .source(Source::new(broker.clone(), SourceOptions::new()))
        .processors(Processors::from_fn(async |_: &mut Message<Item>| Ok(())))
        .start()
        .unwrap();
    let is_stalled = async |says: u8, seconds| {
        // A look takes the value away, and a sample sets it again.
        sleep(Duration::from_secs(2)).await;
        broker.0.store(says, SeqCst);
        sleep(Duration::from_secs(seconds)).await;
        recorded.look();
        recorded.gauges("pipeline.source.stalled")[0].1 > 0.0
    };
    assert!(!is_stalled(STALLED, 3).await, "it is a moment of a busy queue");
    assert!(!is_stalled(DELIVERS, 3).await);
    assert!(!is_stalled(STALLED, 3).await, "those before do not count");
    let last_error = || pipeline.snapshot().stages.swap_remove(0).source.unwrap().last_error;
    for otherwise in [DELIVERS, UNCOUNTED, LOST] {
        assert!(is_stalled(STALLED, 100).await);
        let error = last_error();
        assert!(error.is_none_or(|error| !error.contains("postponed")), "no call has failed");
        assert!(!is_stalled(otherwise, 3).await, "{otherwise}");
    }
    assert_eq!(last_error().as_deref(), Some("the connection is lost"));
    assert!(is_stalled(STALLED, 100).await);
    assert_eq!(last_error().as_deref(), Some("the connection is lost"), "it is not overwritten");
    sleep(Duration::from_secs(2)).await;
    pipeline.drain(Duration::from_secs(5)).await;
    recorded.look();
    assert!(recorded.gauges("pipeline.source.stalled")[0].1 < 1.0, "it has ended");
}
