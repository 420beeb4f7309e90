//! Connections to a server, and the queues that are made on them.

use std::{
    fmt,
    future::Future,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ExchangeKind,
    options::{
        BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions,
        QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable, ShortString},
    uri::AMQPUri,
};
use pipeline_core::Deadline;
use tokio::{
    runtime::Handle,
    sync::Mutex,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::{
    RabbitError, RabbitOptions, RabbitQueueKind, format,
    transport::{self, Connected},
};

/// How often a push that waits for a blocked connection looks at it.
const LOOK: Duration = Duration::from_millis(20);

/// The largest properties, in bytes. They have to fit into one frame, of 128 KiB as servers have it.
const LARGEST_PROPERTIES: usize = 100 * 1024;

/// How much of it is kept free for what a retry or a dead letter adds.
const RESERVED: usize = 4 * 1024;

/// How many channels in a row the library may refuse.
const MOST_REFUSED: usize = 16;

/// What a push that ends with an error was at.
pub(super) const ADDING: &str = "adding an item";

/// How long a refusal of a retry or of a dead letter is taken for a passing one.
const PASSING: Duration = Duration::from_millis(200);

/// How many places of a queue are taken before it is looked at again. Other processes take the same ones meanwhile.
const PLACES: u64 = 64;

/// For how long what a look at a queue has told is used.
const RECENT: Duration = Duration::from_secs(1);

/// Waits for a call of the library, no longer than this.
pub(super) async fn within<T>(
    limit: Duration,
    what: &'static str,
    call: impl Future<Output = lapin::Result<T>>,
) -> Result<T, RabbitError> {
    match timeout(limit, call).await {
        Ok(answered) => answered.map_err(|error| RabbitError::new(what, error)),
        Err(_) => Err(RabbitError::Timeout(what)),
    }
}

/// Opens a channel.
pub(super) async fn open_channel(
    connection: &Connection,
    limit: Duration,
) -> Result<Channel, RabbitError> {
    let open = || within(limit, "opening a channel", connection.create_channel());
    for _ in 0..MOST_REFUSED {
        match open().await {
            // The library gives numbers to channels, and begins again after the last one. It refuses those of channels
            // that the server had closed.
            Err(RabbitError::Client { .. }) if connection.status().connected() => {}
            opened => return opened,
        }
    }
    Err(RabbitError::NoChannel)
}

/// Opens connections.
pub(super) struct Dialer {
    uri: AMQPUri,
    limit: Duration,
    dialing: Mutex<Dialing>,
}

/// A connection that is not answered. The library keeps a thread for it until the server answers or is gone,
/// so there is no second one for a while.
#[derive(Debug, Default)]
struct Dialing {
    task: Option<(JoinHandle<lapin::Result<Connected>>, Instant)>,
    /// How many were given up in a row.
    given_up: u32,
}

impl fmt::Debug for Dialer {
    /// Without the address, which may have a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl Dialer {
    pub(super) fn new(mut uri: AMQPUri, limit: Duration) -> Self {
        let ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        uri.query.connection_timeout.get_or_insert(ms);
        // A connection is given up when nothing was heard of the server for this time.
        let seconds = u16::try_from(limit.as_secs().max(1)).unwrap_or(u16::MAX);
        uri.query.heartbeat.get_or_insert(seconds);
        Self { uri, limit, dialing: Mutex::default() }
    }

    pub(super) async fn connect(&self) -> Result<Connected, RabbitError> {
        const WHAT: &str = "connecting";
        let deadline = Deadline::from_now(self.limit);
        let dialing = deadline.limit(self.dialing.lock()).await;
        let mut dialing = dialing.map_err(|_| RabbitError::Timeout(WHAT))?;
        let Dialing { task, given_up } = &mut *dialing;
        // The library does not always notice that a server was killed while it connected.
        let patience = self.limit.saturating_mul(2 << (*given_up).min(8));
        if let Some((old, _)) = task.take_if(|(_, since)| since.elapsed() >= patience) {
            old.abort();
            *given_up += 1;
        }
        let (running, _) = task.get_or_insert_with(|| {
            let connected = transport::connect(self.uri.clone());
            (tokio::spawn(connected), Instant::now())
        });
        let connected = deadline.limit(running).await;
        let connected = connected.map_err(|_| RabbitError::Timeout(WHAT))?;
        *dialing = Dialing::default();
        match connected {
            Ok(connected) => connected.map_err(|error| RabbitError::new(WHAT, error)),
            // The task has panicked, or its runtime ends.
            Err(_) => Err(RabbitError::Closed),
        }
    }
}

/// A connection that is closed when it is dropped.
#[derive(Debug)]
pub(super) struct Owned {
    connection: Option<Connection>,
    /// A channel that has consumers. It is dropped after the connection was closed: the library ends consumers under a lock,
    /// and the end of the last user of a channel waits for another one, whose owner may wait for the first.
    channel: Option<Channel>,
    limit: Duration,
}

impl Owned {
    pub(super) const fn new(connection: Connection, limit: Duration) -> Self {
        Self { connection: Some(connection), channel: None, limit }
    }

    /// The same, with a channel on which items are delivered.
    pub(super) fn with_consumers(mut self, channel: Channel) -> Self {
        self.channel = Some(channel);
        self
    }
}

impl Deref for Owned {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection.as_ref().expect("it is taken only when it is dropped")
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let (Some(connection), Ok(runtime)) = (self.connection.take(), Handle::try_current())
        else {
            return;
        };
        // The library may keep a connection that is only dropped.
        let (limit, channel) = (self.limit, self.channel.take());
        runtime.spawn(async move {
            let closed = timeout(limit, connection.close(200, "done".into())).await;
            let has_ended = async {
                while connection.status().connected() {
                    sleep(LOOK).await;
                }
            };
            if closed.is_err() && channel.is_some() {
                // The server does not answer. The library gives it up after two heartbeats.
                let _ = timeout(limit.saturating_mul(4), has_ended).await;
            }
            drop(channel);
        });
    }
}

/// The queues of one [`RabbitQueue`](super::RabbitQueue).
#[derive(Debug)]
pub(super) struct Names {
    pub(super) queue: ShortString,
    /// The exchange and the queue of dead letters.
    pub(super) dead: ShortString,
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

fn number(value: u64) -> AMQPValue {
    AMQPValue::LongLongInt(i64::try_from(value).unwrap_or(i64::MAX))
}

/// The arguments of a queue of this kind.
fn of_kind(kind: RabbitQueueKind) -> FieldTable {
    let mut arguments = FieldTable::default();
    let name = match kind {
        RabbitQueueKind::Quorum => "quorum",
        RabbitQueueKind::Classic => "classic",
    };
    arguments.insert("x-queue-type".into(), text(name));
    // What is full refuses new messages rather than drop old ones.
    arguments.insert("x-overflow".into(), text("reject-publish"));
    if kind == RabbitQueueKind::Quorum {
        // What the server moves to another queue is kept until it is there.
        arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
    }
    arguments
}

/// The arguments of the queue of the items. It has no limit at the server, which would refuse what comes back from a
/// retry as well.
fn of_queue(names: &Names, options: &RabbitOptions) -> FieldTable {
    let mut arguments = of_kind(options.kind);
    arguments.insert("x-dead-letter-exchange".into(), text(names.dead.as_str()));
    arguments.insert("x-dead-letter-routing-key".into(), text(names.queue.as_str()));
    if options.kind == RabbitQueueKind::Quorum {
        arguments.insert("x-delivery-limit".into(), number(options.delivery_limit.into()));
    }
    if let Some(time) = options.consumer_timeout {
        let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        arguments.insert("x-consumer-timeout".into(), number(ms));
    }
    arguments
}

/// Makes the queues and the exchange that are missing. Those that are there are used as they are.
pub(super) async fn prepare(
    connection: &Connection,
    names: &Names,
    options: &RabbitOptions,
) -> Result<(), RabbitError> {
    let limit = options.timeout;
    let Names { queue, dead } = names;
    // The server closes a channel on which something is missing.
    let open = || open_channel(connection, limit);
    let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    let kind = ExchangeKind::Direct;
    let there = open().await?;
    let found = there.exchange_declare(dead.clone(), kind.clone(), passive, FieldTable::default());
    let has_exchange = is_there(within(limit, "looking for the exchange", found).await)?;
    let has_dead = is_there(declared(&open().await?, dead, limit).await)?;
    let has_queue = is_there(declared(&open().await?, queue, limit).await)?;
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    if has_queue && options.max_items.is_some() && options.kind == RabbitQueueKind::Classic {
        // The server tells what a queue was made with only where that is not what is asked for.
        let channel = open().await?;
        let asked = channel.queue_declare(queue.clone(), durable, of_queue(names, options));
        match within(limit, "looking for a limit of the queue", asked).await {
            Err(error) if error.is_about("x-max-length") => {
                return Err(RabbitError::HasLimit { queue: queue.as_str().into() });
            }
            // What else it was made with is used as it is.
            Err(error) if error.is_about("inequivalent arg") => {}
            asked => drop(asked?),
        }
    }
    if has_exchange && has_dead && has_queue {
        return Ok(());
    }
    let channel = open().await?;
    if !has_exchange {
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let made = channel.exchange_declare(dead.clone(), kind, durable, FieldTable::default());
        within(limit, "making the exchange of dead letters", made).await?;
    }
    if !has_dead {
        // A quorum queue counts how often its messages were looked at, and drops them in the end.
        let arguments = of_kind(RabbitQueueKind::Classic);
        let made = channel.queue_declare(dead.clone(), durable, arguments);
        within(limit, "making the queue of dead letters", made).await?;
    }
    if !has_exchange || !has_dead {
        let options = QueueBindOptions::default();
        let bound = channel.queue_bind(
            dead.clone(),
            dead.clone(),
            queue.clone(),
            options,
            FieldTable::default(),
        );
        within(limit, "binding the queue of dead letters", bound).await?;
    }
    if !has_queue {
        let made = channel.queue_declare(queue.clone(), durable, of_queue(names, options));
        within(limit, "making the queue", made).await?;
    }
    Ok(())
}

/// Whether something is there that was looked for.
pub(super) fn is_there<T>(found: Result<T, RabbitError>) -> Result<bool, RabbitError> {
    match found {
        Ok(_) => Ok(true),
        Err(error) if error.is_missing() => Ok(false),
        Err(error) => Err(error),
    }
}

/// How many messages a queue has that are not delivered.
pub(super) async fn declared(
    channel: &Channel,
    queue: &ShortString,
    limit: Duration,
) -> Result<u32, RabbitError> {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let found = channel.queue_declare(queue.clone(), passive, FieldTable::default());
    Ok(within(limit, "looking for the queue", found).await?.message_count())
}

/// The places of a queue that has a limit. The server does not count them, so that it refuses nothing that comes back.
#[derive(Debug)]
struct Places {
    most: u64,
    known: Mutex<Known>,
    /// The items that have a place and are not confirmed.
    under_way: AtomicU64,
}

/// What the last look at the queue has told.
#[derive(Debug, Default)]
struct Known {
    /// How many places can be taken before the queue is looked at again.
    free: u64,
    looked: Option<Instant>,
    asking: Option<Channel>,
}

impl Places {
    fn of(most: u64) -> Self {
        Self { most, known: Mutex::default(), under_way: AtomicU64::new(0) }
    }
}

/// The place of an item, until it is confirmed.
struct Place<'a>(&'a Places);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, SeqCst);
    }
}

/// A connection that adds messages, each of which is confirmed.
#[derive(Debug)]
pub(super) struct Publisher {
    connection: Owned,
    channel: Channel,
    limit: Duration,
    kind: RabbitQueueKind,
    /// Those of a queue that has a limit.
    places: Option<Places>,
    /// Whether the library has refused to open a channel, and always will.
    is_used_up: AtomicBool,
}

impl Publisher {
    pub(super) async fn connect(
        dialer: &Dialer,
        names: &Names,
        options: &RabbitOptions,
    ) -> Result<Arc<Self>, RabbitError> {
        let limit = options.timeout;
        let (connection, _) = dialer.connect().await?;
        let connection = Owned::new(connection, limit);
        if options.creates {
            prepare(&connection, names, options).await?;
        }
        let channel = open_channel(&connection, limit).await?;
        let confirmed = channel.confirm_select(ConfirmSelectOptions::default());
        within(limit, "asking for confirmations", confirmed).await?;
        let (kind, places) = (options.kind, options.max_items.map(Places::of));
        let is_used_up = AtomicBool::new(false);
        Ok(Arc::new(Self { connection, channel, limit, kind, places, is_used_up }))
    }

    pub(super) fn is_open(&self) -> bool {
        let is_connected =
            self.connection.status().connected() && self.channel.status().connected();
        is_connected && !self.is_used_up.load(SeqCst)
    }

    /// Opens a channel. When the connection opens none any more, the next call of the queue connects anew.
    pub(super) async fn open_channel(&self) -> Result<Channel, RabbitError> {
        self.noted(open_channel(&self.connection, self.limit).await)
    }

    /// Makes the queues and the exchange that are missing, unless the options say otherwise.
    pub(super) async fn prepare(
        &self,
        names: &Names,
        options: &RabbitOptions,
    ) -> Result<(), RabbitError> {
        if !options.creates {
            return Ok(());
        }
        self.noted(prepare(&self.connection, names, options).await)
    }

    /// Takes note when the connection opens no channel any more.
    fn noted<T>(&self, opened: Result<T, RabbitError>) -> Result<T, RabbitError> {
        if matches!(opened, Err(RabbitError::NoChannel)) {
            self.is_used_up.store(true, SeqCst);
        }
        opened
    }

    /// The largest properties of a message, in bytes.
    pub(super) fn largest_properties(&self) -> usize {
        let frame = usize::try_from(self.connection.configuration().frame_max());
        (frame.unwrap_or(usize::MAX) / 4 * 3).min(LARGEST_PROPERTIES)
    }

    /// Adds an item, and waits until it is confirmed.
    pub(super) async fn push(
        &self,
        queue: &ShortString,
        properties: BasicProperties,
        payload: &[u8],
    ) -> Result<(), RabbitError> {
        let limit = self.largest_properties().saturating_sub(RESERVED);
        // One that was made with a limit, by an operator say, refuses what it has no place for.
        let patience = if self.places.is_some() { PASSING } else { self.limit };
        let to = (&ShortString::default(), queue);
        let published = async {
            let _place = self.place(queue).await?;
            self.publish(to, properties, payload, limit, self.limit, patience).await
        };
        match timeout(self.limit, published).await {
            Err(_) | Ok(Err(RabbitError::Timeout(_))) if self.is_blocked() => {
                Err(RabbitError::Blocked)
            }
            Ok(published) => published,
            Err(_) => Err(RabbitError::Timeout(ADDING)),
        }
    }

    /// Takes a place in the queue for an item, if the queue has a limit.
    async fn place(&self, queue: &ShortString) -> Result<Option<Place<'_>>, RabbitError> {
        let Some(places) = &self.places else { return Ok(None) };
        let mut known = places.known.lock().await;
        if known.free == 0 || known.looked.is_none_or(|looked| looked.elapsed() >= RECENT) {
            known.free = 0;
            let channel = match known.asking.take() {
                Some(channel) if channel.status().connected() => channel,
                _ => self.open_channel().await?,
            };
            // What is confirmed after this counts twice, and so never too little.
            let under_way = places.under_way.load(SeqCst);
            let there = declared(&channel, queue, self.limit).await;
            let there = match there {
                Err(error) if error.is_missing() => Err(RabbitError::Unroutable),
                there => there,
            };
            let taken = under_way.saturating_add(there?.into());
            known.free = places.most.saturating_sub(taken).min(PLACES);
            known.looked = Some(Instant::now());
            known.asking = Some(channel);
        }
        known.free = known.free.checked_sub(1).ok_or(RabbitError::Refused)?;
        places.under_way.fetch_add(1, SeqCst);
        Ok(Some(Place(places)))
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    /// Adds a message that was delivered before, and waits until it is confirmed, however long that takes. It
    /// does not wait for a server or a queue that takes nothing now, because other outcomes would wait with it.
    pub(super) async fn push_again(
        &self,
        to: (&ShortString, &ShortString),
        properties: BasicProperties,
        payload: &[u8],
    ) -> Result<(), RabbitError> {
        let limit = self.largest_properties();
        self.publish(to, properties, payload, limit, Duration::ZERO, PASSING).await
    }

    /// Adds a message to an exchange with a key, and waits until it is confirmed. It waits for a blocked connection,
    /// and adds it again when it is refused, for these times.
    async fn publish(
        &self,
        (exchange, key): (&ShortString, &ShortString),
        properties: BasicProperties,
        payload: &[u8],
        limit: usize,
        blocked: Duration,
        refused: Duration,
    ) -> Result<(), RabbitError> {
        let size = format::size(&properties);
        if size > limit {
            return Err(RabbitError::TooLarge { size, limit });
        }
        let began = Instant::now();
        // What is handed to the library now would be sent later, and would take memory until then.
        while self.is_blocked() {
            if began.elapsed() >= blocked {
                return Err(RabbitError::Blocked);
            }
            sleep(LOOK).await;
        }
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        loop {
            let (exchange, key) = (exchange.clone(), key.clone());
            let sent =
                self.channel.basic_publish(exchange, key, options, payload, properties.clone());
            let published = async { sent.await?.await };
            return match published.await {
                Ok(Confirmation::Ack(None) | Confirmation::NotRequested) => Ok(()),
                Ok(Confirmation::Ack(Some(_))) => Err(RabbitError::Unroutable),
                // A queue without a limit refuses for a moment only, such as one that has just been made.
                Ok(Confirmation::Nack(_)) if began.elapsed() < refused => {
                    sleep(LOOK).await;
                    continue;
                }
                Ok(Confirmation::Nack(_)) => Err(RabbitError::Refused),
                Err(error) => Err(RabbitError::new(ADDING, error)),
            };
        }
    }

    /// Makes the queue of retries of a group of delays. It stays, also when it is not used: if the server removed it in the
    /// end, it would remove the items that another queue has refused for so long. There are no more than 32.
    pub(super) async fn retries(
        &self,
        names: &Names,
        group_ms: u64,
    ) -> Result<ShortString, RabbitError> {
        // Those of an earlier version were named `.retry.`, and had an end.
        let name = format!("{}.later.{group_ms}ms", names.queue);
        let name = ShortString::try_new(&name).map_err(|_| RabbitError::Name(name.into()))?;
        let mut arguments = of_kind(self.kind);
        // A message goes back to its queue when its time is over.
        arguments.insert("x-dead-letter-exchange".into(), text(""));
        arguments.insert("x-dead-letter-routing-key".into(), text(names.queue.as_str()));
        // The server closes the channel if a queue of this name has other arguments.
        let channel = self.open_channel().await?;
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let made = channel.queue_declare(name.clone(), durable, arguments);
        within(self.limit, "making a queue of retries", made).await?;
        Ok(name)
    }
}
