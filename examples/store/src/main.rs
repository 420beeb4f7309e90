//! The store as a program.
//!
//! `cargo run --release -p store -- --help` explains the flags.
#![allow(unreachable_pub, reason = "its modules are used by the program only")]

mod args;
mod cluster;

use std::{
    error::Error,
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::Parser;
use futures::FutureExt;
use pipeline::{
    Pipeline,
    inspect::Inspector,
    serve,
    statsd::StatsdRecorder,
    telemetry::Telemetry,
    ws::{PubSub, listen},
};
use pipeline_example_support::{complain, finish, log_to_stderr, say};
use store::{
    admins,
    balance::{self, Alarm, Limits},
    clock::Clock,
    database::{Database, LateDatabase, SqliteDatabase, SqliteOptions, mark_of, seed::seed},
    domain::{ids, moment::Moment},
    pipelines::{
        Duties,
        orders::{self, OrdersError},
        rush,
    },
    shop::{Shop, ShopOptions},
    store::Store,
};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

#[cfg(feature = "postgres")]
use store::database::{PostgresDatabase, PostgresOptions};

use self::args::Args;
#[cfg(not(feature = "postgres"))]
use self::cluster::NodeError;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long an open page may say nothing. It says that it is there every 30 seconds.
const IDLE: Duration = Duration::from_secs(60);

/// How soon is tried again what needs the database.
const AGAIN: Duration = Duration::from_millis(500);

#[tokio::main]
async fn main() -> ExitCode {
    log_to_stderr("info");
    let code = match run(Args::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            complain(format!("error: {error}"));
            ExitCode::FAILURE
        }
    };
    finish();
    code
}

async fn run(args: Args) -> Result<bool, Box<dyn Error>> {
    let credentials = args.admins()?;
    // A shop that runs here already keeps its database: this one cannot listen, and ends before it removes anything.
    let listener = listen((args.host, args.port)).await?;
    let operator = listen(("127.0.0.1", args.operator_port())).await?;
    if args.fresh {
        remove(&args.db)?;
    }
    let secret = match &args.secret {
        Some(secret) => secret.clone(),
        None => kept_secret(&args.db)?,
    };
    say_if_descriptors_are_few();
    let (address, operator_address) = (listener.local_addr()?, operator.local_addr()?);
    let statsd = match &args.statsd {
        Some(server) => Some(StatsdRecorder::udp(server.clone())?.install()?),
        None => None,
    };

    let mut database = open_database(&args)?;
    if let Some(by) = args.drill_database {
        database = Arc::new(LateDatabase::new(database, Duration::from_millis(by)));
    }
    let options = ShopOptions {
        database,
        secret,
        max_cart_items: args.max_cart_items,
        clock: Clock::wall(),
        telemetry: Telemetry::global(),
        bench: args.bench,
        idle_timeout: IDLE,
        trusted_proxies: args.trusted_proxy.clone(),
    };
    let node = cluster::join(&args).await?;
    let duties = Duties {
        replicates: !args.no_replication,
        compares: !args.no_comparison,
        tell_late: Duration::from_millis(args.drill_worker.unwrap_or_default()),
    };
    let store = Store::open(options, credentials, duties, |mut endpoint| {
        if let Some(host) = &args.public_host {
            endpoint = endpoint.host(host);
        }
        node.adapter_of(endpoint)
    })?;

    let mut inspector = Inspector::builder().endpoint(store.endpoint.observer());
    for pipeline in &store.pipelines {
        inspector = inspector.pipeline(pipeline.observer());
        if args.drill_kill {
            inspector = inspector.pipeline_operator(pipeline.operator());
        }
    }
    let operator_pages = store
        .health
        .router()
        .nest("/balance", balance::router(store.endpoint.clone()))
        .nest("/admins", admins::router(store.admins.clone(), store.endpoint.clone()))
        .nest_service("/inspect", inspector.build()?);

    // The tasks end with this function.
    let mut tasks = JoinSet::new();
    tasks.spawn(confirm_orders(args.clone(), store.shop.clone(), store.endpoint.clone()));
    tasks.spawn(after_the_load(store.shop.clone(), args.release.clone(), args.sell));
    let withdrawals = admins::follow(store.admins.clone(), store.endpoint.clone());
    tasks.spawn(withdrawals.map(|never| match never {}));
    node.watch(&store.shop, &mut tasks);
    keep_balance(&args, &store.endpoint, &mut tasks);

    say(format!("shop     http://{address}/"));
    say(format!("admin    http://{address}/admin"));
    say(format!("inspect  http://{operator_address}/inspect"));
    match &args.database {
        // The address has a password.
        Some(_) => say("database PostgreSQL"),
        None => say(format!("database {}", args.db.display())),
    }
    let shop = store.shop.clone();
    let mut server = serve(listener, store.router).endpoint(store.endpoint).health(&store.health);
    for pipeline in store.pipelines {
        server = server.pipeline(pipeline);
    }
    let report = server
        .admin(operator, operator_pages)
        .linger(Duration::from_secs(args.linger_secs))
        .drain_within(Duration::from_secs(args.drain_secs))
        .await?;
    drop(tasks);
    // What has begun is said, also if its client is gone.
    if timeout(Duration::from_secs(args.drain_secs), shop.settled()).await.is_err() {
        tracing::warn!("some writes were not done in time");
    }
    node.flush().await;
    drop(statsd);
    say(report.to_string());
    Ok(report.is_clean())
}

/// The database that the flags name.
fn open_database(args: &Args) -> Result<Arc<dyn Database>, Box<dyn Error>> {
    let (seed, creates) = (seed(args.seed), !args.no_create);
    #[cfg(feature = "postgres")]
    if let Some(url) = args.database.clone() {
        let options = PostgresOptions { url, seed, creates };
        return Ok(Arc::new(PostgresDatabase::new(options)?));
    }
    #[cfg(not(feature = "postgres"))]
    if args.database.is_some() {
        return Err(NodeError::Missing("postgres").into());
    }
    let (path, confirm_orders) = (args.db.clone(), true);
    Ok(Arc::new(SqliteDatabase::new(SqliteOptions { path, seed, creates, confirm_orders })?))
}

/// Gives sockets to other nodes as the flags and operators want it.
fn keep_balance(args: &Args, endpoint: &pipeline::ws::Endpoint, tasks: &mut JoinSet<()>) {
    let of = || endpoint.clone();
    tasks.spawn(balance::follow(of()).map(|never| match never {}));
    if let Some(age) = args.max_age {
        let age = Duration::from_secs(age);
        tasks.spawn(balance::retire(of(), age).map(|never| match never {}));
    }
    if args.shed_cpu.is_some() || args.shed_memory.is_some() {
        let limits = Limits {
            cpu_percent: args.shed_cpu,
            memory_mib: args.shed_memory,
            patience: Duration::from_secs(args.shed_after),
        };
        let relieve = balance::relieve(of(), Alarm::new(limits), balance::of_process());
        tasks.spawn(relieve.map(|never| match never {}));
    }
}

/// Every open page takes a descriptor, and a sale some more for a moment.
#[cfg(target_os = "linux")]
const ENOUGH_DESCRIPTORS: u64 = 10_000;

/// Says so if the system lets the process open so few files that shoppers would be turned away.
#[cfg(target_os = "linux")]
fn say_if_descriptors_are_few() {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    // The first number is the limit in force. It may be the word for none.
    let limit = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    if let Some(limit) = limit.filter(|limit| *limit < ENOUGH_DESCRIPTORS) {
        tracing::warn!(
            limit,
            "there are few descriptors, and each open page needs one: see ulimit -n"
        );
    }
}

#[cfg(not(target_os = "linux"))]
fn say_if_descriptors_are_few() {}

/// Confirms placed orders to their carts, once the database is there.
async fn confirm_orders(args: Args, shop: Arc<Shop>, endpoint: pipeline::ws::Endpoint) {
    loop {
        // The database makes its tables first. A queue in a file without them would be in its way.
        if shop.inventory.is_loaded() && (args.database.is_some() || args.db.exists()) {
            match start_orders(&args, endpoint.pubsub()).await {
                Ok(mut pipeline) => {
                    pipeline.join().await;
                    tracing::error!(
                        "the pipeline of placed orders has ended, and is started again"
                    );
                }
                Err(error) => {
                    tracing::warn!(error = error.to_string(), "orders are not confirmed yet");
                }
            }
        }
        sleep(AGAIN).await;
    }
}

async fn start_orders(args: &Args, pubsub: &PubSub) -> Result<Pipeline, OrdersError> {
    #[cfg(feature = "postgres")]
    if let Some(url) = &args.database {
        return orders::start_in_postgres(url, pubsub).await;
    }
    orders::start(args.db.clone(), pubsub).await
}

/// What the flags want to happen to the products.
async fn after_the_load(
    shop: Arc<Shop>,
    releases: Vec<store::domain::moment::ReleaseAt>,
    sell: Option<usize>,
) {
    while !shop.inventory.is_loaded() {
        sleep(Duration::from_millis(50)).await;
    }
    let now = shop.clock.system_ms();
    for release in releases {
        let product = release.product;
        loop {
            let done = match release.at {
                Moment::Now => shop.release(product).await.map(|_| ()),
                at => shop.schedule(product, at.in_ms(now)).await.map(|_| ()),
            };
            let Err(error) = done else { break };
            tracing::warn!(
                product,
                error = error.to_string(),
                "a product was not released yet: it is tried again"
            );
            sleep(AGAIN).await;
        }
    }
    let Some(rate) = sell else { return };
    match rush::start(&shop, rate) {
        Ok(mut rush) => {
            rush.join().await;
            say("rush     all is sold out");
        }
        Err(error) => tracing::error!(error = error.to_string(), "the rush has not begun"),
    }
}

/// The secret of a database whose operator has given none: a random one, in a file that only its owner can read.
fn kept_secret(db: &Path) -> Result<String, Box<dyn Error>> {
    let path = next_to(db, ".secret");
    let secret = match fs::read_to_string(&path) {
        Ok(secret) => secret,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let secret = ids::cart_id().map_err(|error| error.to_string())?;
            write_new(&path, &secret)?;
            // Another node may have been first. What is there is whole.
            fs::read_to_string(&path)?
        }
        Err(error) => return Err(error.into()),
    };
    Ok(secret.trim().to_owned())
}

/// Writes a file that is there as a whole or not at all. If there is one, it stays.
fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let part = next_to(path, &format!(".{}", std::process::id()));
    // One that a process has left which was killed here.
    match fs::remove_file(&part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&part)?;
    io::Write::write_all(&mut file, text.as_bytes())?;
    file.sync_all()?;
    let linked = fs::hard_link(&part, path);
    fs::remove_file(&part)?;
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Removes the file of a database, with its mark and with those that SQLite has next to it.
fn remove(db: &Path) -> io::Result<()> {
    for path in [mark_of(db), db.to_owned(), next_to(db, "-wal"), next_to(db, "-shm")] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// A file whose name is that of the database with an ending.
fn next_to(db: &Path, ending: &str) -> PathBuf {
    let mut name = db.as_os_str().to_owned();
    name.push(ending);
    name.into()
}
