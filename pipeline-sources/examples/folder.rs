//! A source of one's own: a folder, in which each file is an item.

use std::{
    borrow::Cow,
    fs,
    io::{self, ErrorKind, Write},
    path::PathBuf,
    process,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use pipeline_core::{
    Pipeline,
    processing::{Message, Processors},
};
use pipeline_sources::{
    Backlog, Broker, BrokerError, Delivery, Fetch, Item, NotStored, Outcome, Settle, Settlement,
    Source, SourceOptions,
};
use serde_json::{Value, json};
use tokio::{task::spawn_blocking, time::sleep};

/// A folder, in which each file is an item. The name of a file says what is known of it:
/// `id,available,deliveries,failures,lease`. An item is available from a time on, in milliseconds since 1970.
/// To take it is to rename its file, which succeeds for one of those that try.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    lease: Duration,
}

impl Folder {
    pub(crate) fn open(path: PathBuf, lease: Duration) -> io::Result<Self> {
        fs::create_dir_all(path.join("items"))?;
        fs::create_dir_all(path.join("dead"))?;
        Ok(Self { path, lease })
    }

    /// Adds an item: a line with what goes with it, and its payload.
    pub(crate) fn push(&self, item: &Item) -> io::Result<()> {
        let trace = item.trace.map(|trace| trace.to_string());
        let headers = item.headers.iter().map(|(name, value)| (name.to_string(), json!(&**value)));
        let headers = Value::Object(headers.collect());
        let about = json!({ "key": item.key.as_deref(), "headers": headers, "trace": trace });
        let id = format!("{:013}-{}", now_ms(), unique());
        let (written, added) = (self.path.join(&id), self.item(&id, 0, (0, 0), "none"));
        let mut file = fs::File::create(&written)?;
        writeln!(file, "{about}")?;
        file.write_all(&item.payload)?;
        file.sync_all()?;
        fs::rename(written, added)?;
        // The name is on the disk too. What is lost of later names is delivered again.
        fs::File::open(self.path.join("items"))?.sync_all()
    }

    /// The reasons of the items that were given up.
    pub(crate) fn dead_letters(&self) -> io::Result<Vec<String>> {
        let graves = fs::read_dir(self.path.join("dead"))?.collect::<io::Result<Vec<_>>>()?;
        // The item comes last.
        let full = graves.iter().map(fs::DirEntry::path).filter(|it| it.join("item").exists());
        full.map(|grave| fs::read_to_string(grave.join("reason"))).collect()
    }

    fn item(&self, id: &str, available: u128, counts: (u32, u32), lease: &str) -> PathBuf {
        let (deliveries, failures) = counts;
        let name = format!("{id},{available},{deliveries},{failures},{lease}");
        self.path.join("items").join(name)
    }

    /// The files of all items, in the order of their ids.
    fn files(&self) -> io::Result<Vec<File>> {
        let files = fs::read_dir(self.path.join("items"))?;
        let files = files.map(|file| Ok(File::named(file?.path())));
        let mut files: Vec<_> = files.filter_map(Result::transpose).collect::<io::Result<_>>()?;
        files.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(files)
    }

    /// Takes available items.
    fn take(&self, max: usize) -> io::Result<Vec<Delivery<Receipt>>> {
        let mut taken = Vec::new();
        let now = now_ms();
        for File { path, id, available, counts: (deliveries, failures), .. } in self.files()? {
            if taken.len() == max {
                break;
            }
            let receipt = Receipt { id, lease: unique() };
            let until = now + self.lease.as_millis();
            let counts = (deliveries + 1, failures);
            let leased = self.item(&receipt.id, until, counts, &receipt.lease);
            // Another source may have been faster.
            if available <= now && renamed(&path, &leased)? {
                let content = fs::read(&leased)?;
                taken.push(delivery(receipt, counts, &content));
            }
        }
        Ok(taken)
    }

    /// The files of deliveries that are still leased to their receiver.
    fn leased(&self, receipts: &[Receipt]) -> io::Result<Vec<Option<File>>> {
        let files = self.files()?;
        let of = |receipt: &Receipt| {
            files.iter().find(|file| (&file.id, &file.lease) == (&receipt.id, &receipt.lease))
        };
        Ok(receipts.iter().map(|receipt| of(receipt).cloned()).collect())
    }

    /// Stores an outcome. To do it again changes nothing.
    fn store(&self, file: File, outcome: &Outcome) -> io::Result<()> {
        let File { path, id, counts: (deliveries, failed_before), .. } = file;
        match outcome {
            Outcome::Retry { after, failures } => {
                let at = now_ms() + after.as_millis();
                renamed(&path, &self.item(&id, at, (deliveries, *failures), "none"))?;
            }
            Outcome::Release { after } => {
                let at = if after.is_zero() { 0 } else { now_ms() + after.as_millis() };
                let counts = (deliveries.saturating_sub(1), failed_before);
                renamed(&path, &self.item(&id, at, counts, "none"))?;
            }
            Outcome::GiveUp { reason } => {
                let grave = self.path.join("dead").join(&id);
                fs::create_dir_all(&grave)?;
                fs::write(grave.join("reason"), &**reason)?;
                renamed(&path, &grave.join("item"))?;
            }
            Outcome::Done => match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            },
            // A later version may have more. The item stays until its lease is over.
            _ => return Err(ErrorKind::Unsupported.into()),
        }
        Ok(())
    }
}

/// What identifies a delivery. A later one of the same item has another lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Receipt {
    id: String,
    lease: String,
}

/// A file, and what its name says.
#[derive(Clone)]
struct File {
    path: PathBuf,
    id: String,
    available: u128,
    /// How often the item was delivered, and has failed.
    counts: (u32, u32),
    lease: String,
}

impl File {
    /// A file that is an item.
    fn named(path: PathBuf) -> Option<Self> {
        let name = path.file_name()?.to_str()?.to_owned();
        let parts: Vec<_> = name.split(',').collect();
        let [id, available, deliveries, failures, lease] = parts[..] else { return None };
        let (id, lease) = (id.to_owned(), lease.to_owned());
        let counts = (deliveries.parse().ok()?, failures.parse().ok()?);
        Some(Self { path, id, available: available.parse().ok()?, counts, lease })
    }
}

/// Renames a file. False if it is gone.
fn renamed(from: &PathBuf, to: &PathBuf) -> io::Result<bool> {
    match fs::rename(from, to) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The delivery of an item with this content. An item that cannot be read says why, and is given up.
fn delivery(receipt: Receipt, counts: (u32, u32), content: &[u8]) -> Delivery<Receipt> {
    let line = content.iter().position(|byte| *byte == b'\n').unwrap_or(content.len());
    let (about, payload) = content.split_at(line);
    let mut item = Item::new(payload.get(1..).unwrap_or_default().to_vec());
    let malformed = match serde_json::from_slice::<Value>(about) {
        Ok(about) => {
            let text = |value: &Value| value.as_str().map(str::to_owned);
            item.key = text(&about["key"]).map(Into::into);
            item.trace = text(&about["trace"]).and_then(|trace| trace.parse().ok());
            for (name, value) in about["headers"].as_object().into_iter().flatten() {
                item = item.header(&**name, text(value).unwrap_or_default());
            }
            None
        }
        Err(error) => Some(format!("the first line is not JSON: {error}").into()),
    };
    let added = receipt.id.split('-').next().and_then(|ms| ms.parse().ok());
    let enqueued_at = added.map(|ms| UNIX_EPOCH + Duration::from_millis(ms));
    Delivery {
        id: receipt.id.as_str().into(),
        receipt,
        item,
        enqueued_at,
        deliveries: counts.0,
        failures: Some(counts.1),
        malformed,
    }
}

fn now_ms() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()
}

/// A text that no other call returns, in the order of the calls.
fn unique() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{:09}-{}", NEXT.fetch_add(1, Relaxed), process::id())
}

/// Files block, so they are read and written in a thread of their own.
async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, BrokerError> {
    let result = spawn_blocking(call).await.map_err(BrokerError::new)?;
    result.map_err(BrokerError::new)
}

impl Broker for Folder {
    type Receipt = Receipt;
    type Fetch = Self;
    type Settle = Self;

    fn description(&self) -> Cow<'_, str> {
        "a folder of files".into()
    }

    async fn connect(&self) -> Result<(Self, Self), BrokerError> {
        Ok((self.clone(), self.clone()))
    }

    fn lease(&self) -> Option<Duration> {
        Some(self.lease)
    }
}

impl Fetch for Folder {
    type Receipt = Receipt;

    async fn fetch(&mut self, max: usize) -> Result<Vec<Delivery<Receipt>>, BrokerError> {
        loop {
            let folder = self.clone();
            let taken = blocking(move || folder.take(max)).await?;
            if !taken.is_empty() {
                return Ok(taken);
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Settle for Folder {
    type Receipt = Receipt;

    async fn settle(
        &self,
        settlements: &[Settlement<Receipt>],
    ) -> Result<Vec<NotStored>, BrokerError> {
        let (folder, settlements) = (self.clone(), settlements.to_vec());
        blocking(move || {
            let receipts: Vec<_> = settlements.iter().map(|each| each.receipt.clone()).collect();
            let files = folder.leased(&receipts)?.into_iter().zip(&settlements).enumerate();
            let store = |(index, (file, settlement)): (_, (Option<File>, &Settlement<_>))| {
                let stored = folder.store(file?, &settlement.outcome);
                // The others are stored all the same.
                Some(NotStored::new(index, BrokerError::new(stored.err()?)))
            };
            Ok(files.filter_map(store).collect())
        })
        .await
    }

    async fn renew(&self, receipts: &[Receipt]) -> Result<(), BrokerError> {
        let (folder, receipts) = (self.clone(), receipts.to_vec());
        blocking(move || {
            let until = now_ms() + folder.lease.as_millis();
            for File { path, id, counts, lease, .. } in
                folder.leased(&receipts)?.into_iter().flatten()
            {
                renamed(&path, &folder.item(&id, until, counts, &lease))?;
            }
            Ok(())
        })
        .await
    }

    async fn backlog(&self) -> Result<Backlog, BrokerError> {
        let folder = self.clone();
        let count = blocking(move || Ok(folder.files()?.len() as u64)).await?;
        let mut backlog = Backlog::default();
        backlog.items = Some(count);
        Ok(backlog)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::temp_dir().join(format!("orders-{}", process::id()));
    let folder = Folder::open(path.clone(), Duration::from_secs(30))?;
    folder.push(&Item::new(r#"{"id": 7}"#))?;
    let handle = async |order: &mut Message<Value>| {
        println!("order {}", order["id"]);
        Ok(())
    };
    let pipeline = Pipeline::of_messages("orders")
        .source(Source::new(folder.clone(), SourceOptions::new()).json::<Value>())
        .processors(Processors::from_fn(handle))
        .start()?;
    while !folder.files()?.is_empty() {
        sleep(Duration::from_millis(10)).await;
    }
    pipeline.drain(Duration::from_secs(5)).await;
    for reason in folder.dead_letters()? {
        println!("given up: {reason}");
    }
    Ok(fs::remove_dir_all(path)?)
}
