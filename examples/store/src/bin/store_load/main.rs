//! A rush of shoppers: they wait with open pages, a release comes, and all buy until nothing is left.
//!
//! `cargo run --release -p store --bin store_load -- --shoppers 5000`. It starts a store of its own, and checks that no
//! item was sold twice, that none was lost, and that every open page is right at the end. With `--visit`, nothing is sold:
//! the shoppers come, each puts an item into a cart, and the dashboard has to count them.

mod client;
mod measured;
mod proxy;

use std::{
    collections::{BTreeMap, HashMap},
    error::Error,
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use clap::Parser;
use parking_lot::Mutex;
use rusqlite::Connection;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep},
};

use self::{
    client::{Page, Shopper, request},
    measured::{Measured, Usage},
    proxy::Proxy,
};

/// A rush of shoppers
#[derive(Debug, Parser)]
#[command(name = "store_load")]
struct Args {
    /// How many shoppers
    #[arg(long, default_value_t = 1000)]
    shoppers: usize,

    /// How many nodes; more than one need --redis or --nats
    #[arg(long, default_value_t = 1)]
    nodes: usize,

    /// The server of Redis of several nodes
    #[arg(long, value_name = "URL")]
    redis: Option<String>,

    /// The server of NATS of several nodes
    #[arg(long, value_name = "URL")]
    nats: Option<String>,

    /// Sells nothing: shoppers of four pages come, and the dashboard counts them and their carts
    #[arg(long)]
    visit: bool,

    /// Restarts each node once during the sale; shoppers come through a proxy of the load's own, or through --door
    #[arg(long)]
    restart: bool,

    /// The load balancer through which shoppers come. It knows the nodes by --ports, and asks /readyz
    #[arg(long, value_name = "HOST:PORT", requires = "ports")]
    door: Option<String>,

    /// The ports of each node: those of its pages and of its operator. Default: free ones
    #[arg(long, value_name = "PORT:PORT", value_delimiter = ',')]
    ports: Vec<String>,

    /// How many seconds the sale may take
    #[arg(long, default_value_t = 60)]
    within: u64,

    /// The number that the stock is drawn from
    #[arg(long, default_value_t = 23)]
    seed: u64,
}

/// What all shoppers share.
struct Rush {
    bought: AtomicU64,
    refused: AtomicU64,
    /// Why answers were no answers, and how often.
    failed: Mutex<BTreeMap<String, u64>>,
    /// The microseconds of the last sale since the beginning.
    last_sale: AtomicU64,
    /// How long pages were cut off.
    away: Mutex<Vec<Duration>>,
    /// When each page showed that everything was gone, and that its shopper has nothing more to wait for.
    right: Mutex<Vec<Instant>>,
    began: Instant,
}

impl Rush {
    fn has_failed(&self, why: &str) {
        let why = why.lines().next().unwrap_or_default().to_owned();
        *self.failed.lock().entry(why).or_default() += 1;
    }
}

/// How many shoppers arrive at the same time.
const ARRIVALS: usize = 64;

const ADMIN: &str = "authorization: Basic YWRtaW46bG9hZA==";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let args = Args::parse();
    let folder = std::env::temp_dir().join(format!("store_load_{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let db = folder.join("store.db");
    let measured = Measured::listen().await?;
    let mut nodes = Vec::new();
    for number in 0..args.nodes {
        nodes.push(Node::start(&args, number, &db, measured.address()).await?);
    }
    let before = counts(&db)?;
    let stock: i64 = before.iter().sum();
    println!("{} shoppers, {} nodes, {stock} items in stock", args.shoppers, args.nodes);

    let began = Instant::now();
    let proxy = if args.restart && args.door.is_none() {
        let nodes = nodes.iter().map(|node| node.address.clone()).collect();
        Some(Proxy::start(nodes).await?)
    } else {
        None
    };
    let empty = Usage::of(&nodes)?;
    if let Some(door) = &args.door {
        while !request(door, "GET", "/readyz", &[], "").await?.0.contains(" 200 ") {
            sleep(Duration::from_millis(50)).await;
        }
    }
    let door = args.door.as_ref().or(proxy.as_ref().map(|proxy| &proxy.address));
    let mut shoppers = arrive(&args, &nodes, door).await?;
    let took = began.elapsed().as_secs_f64();
    println!("all pages are open after {took:.1} s, {:.0} a second", args.shoppers as f64 / took);
    let first = nodes.first().ok_or("no node")?;
    let mut admin = Page::admin(&first.address, ADMIN).await?;
    let is_counted = |totals: &Value| totals["shoppers"] == json!(args.shoppers);
    let totals = totals(&mut admin, is_counted).await?;
    println!("the dashboard counts {} shoppers", totals["shoppers"]);
    let arrived = Usage::of(&nodes)?;
    println!("cpu of the arrivals  {:.2} s", arrived.cpu_seconds - empty.cpu_seconds);
    let is_right = if args.visit {
        visit(&args, &nodes, &mut shoppers, &mut admin).await?
    } else {
        sell(&args, &mut nodes, proxy.as_ref(), shoppers, admin, &db, &measured).await?
    };
    drop(nodes);
    std::fs::remove_dir_all(&folder)?;
    if is_right { Ok(()) } else { Err("not everything was right".into()) }
}

/// The totals of the dashboard once they are as they should be, or those of the moment when patience ends.
async fn totals(
    admin: &mut Page,
    are_right: impl Fn(&Value) -> bool,
) -> Result<Value, Box<dyn Error + Send + Sync>> {
    let began = Instant::now();
    loop {
        let totals = admin.totals().await?;
        if are_right(&totals) || began.elapsed() > Duration::from_secs(90) {
            return Ok(totals);
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// Each shopper puts a random item into a cart. Returns whether the dashboard has counted them all.
async fn visit(
    args: &Args,
    nodes: &[Node],
    shoppers: &mut [Shopper],
    admin: &mut Page,
) -> Result<bool, Box<dyn Error + Send + Sync>> {
    let first = nodes.first().ok_or("no node")?;
    for product in [1, 2] {
        release(&first.address, product).await?;
    }
    let (began, before) = (Instant::now(), Usage::of(nodes)?);
    let mut wanted = HashMap::<i64, u64>::new();
    let adding =
        shoppers.iter_mut().map(async |shopper| -> Result<i64, Box<dyn Error + Send + Sync>> {
            let item = loop {
                match shopper.wants() {
                    Some(item) => break item,
                    None => shopper.change().await?,
                }
            };
            shopper.add(item).await?;
            Ok(item)
        });
    for item in futures::future::try_join_all(adding).await? {
        *wanted.entry(item).or_default() += 1;
    }
    let took = began.elapsed().as_secs_f64();
    println!(
        "all carts have an item after {took:.1} s, {:.0} a second",
        args.shoppers as f64 / took
    );
    let are_right = |totals: &Value| {
        let pages = totals["pages"].as_object();
        let tabs: u64 = pages.into_iter().flatten().filter_map(|(_, tabs)| tabs.as_u64()).sum();
        totals["shoppers"] == json!(args.shoppers)
            && tabs == args.shoppers as u64
            && wanted.iter().all(|(item, carts)| totals["items"][item.to_string()] == json!(carts))
    };
    let totals = totals(admin, are_right).await?;
    let usage = Usage::of(nodes)?;
    println!("the dashboard counts {} shoppers with {} tabs", totals["shoppers"], totals["tabs"]);
    println!("pages                {}", totals["pages"]);
    println!("items                {}", totals["items"]);
    println!("cpu of the changes   {:.2} s", usage.cpu_seconds - before.cpu_seconds);
    println!("memory               {} MiB", usage.mebibytes);
    Ok(are_right(&totals))
}

/// The sale, until nothing is left. Returns whether everything was right.
async fn sell(
    args: &Args,
    nodes: &mut [Node],
    proxy: Option<&Proxy>,
    shoppers: Vec<Shopper>,
    mut admin: Page,
    db: &PathBuf,
    measured: &Measured,
) -> Result<bool, Box<dyn Error + Send + Sync>> {
    let first = nodes.first().ok_or("no node")?.address.clone();
    let before = counts(db)?;
    let idle = Usage::of(nodes)?;
    let rush = Arc::new(Rush {
        bought: AtomicU64::new(0),
        refused: AtomicU64::new(0),
        failed: Mutex::default(),
        last_sale: AtomicU64::new(0),
        right: Mutex::default(),
        away: Mutex::default(),
        began: Instant::now(),
    });
    let mut tasks = JoinSet::new();
    for shopper in shoppers {
        tasks.spawn(buy(shopper, rush.clone()));
    }
    for product in [1, 2] {
        release(&first, product).await?;
    }
    if args.restart {
        for (number, node) in nodes.iter_mut().enumerate() {
            sleep(Duration::from_millis(500)).await;
            let began = Instant::now();
            node.restart(args, number, db, measured.address()).await?;
            if let Some(proxy) = proxy {
                proxy.moved(number, &node.address);
            }
            println!("node {number} is back after {:.1} s", began.elapsed().as_secs_f64());
        }
        let first = nodes.first().ok_or("no node")?;
        admin = Page::admin(&first.address, ADMIN).await?;
    }
    let deadline = Duration::from_secs(args.within);
    let is_done = || rush.right.lock().len() == args.shoppers;
    while !is_done() && rush.began.elapsed() < deadline {
        sleep(Duration::from_millis(10)).await;
    }
    // What was bought is in no cart any more, and all pages are still there. A page that was cut off between an answer and
    // the removal of what is gone keeps it in its cart.
    let are_right = |totals: &Value| {
        let items = totals["items"].as_object();
        let are_empty = items.is_some_and(|items| items.values().all(|carts| *carts == json!(0)));
        totals["shoppers"] == json!(args.shoppers) && (are_empty || args.restart)
    };
    let totals = totals(&mut admin, are_right).await?;
    let after = Usage::of(nodes)?;
    // Nodes send what they have measured every few seconds.
    sleep(Duration::from_secs(12)).await;
    let is_exact = report(args, &rush, &before, db, &idle, &after, measured)?;
    let carts = totals["items"].as_object().into_iter().flatten();
    let carts: u64 = carts.filter_map(|(_, carts)| carts.as_u64()).sum();
    println!("dashboard            {} shoppers, {carts} items in carts", totals["shoppers"]);
    let is_right = is_done() && is_exact && are_right(&totals);
    tasks.abort_all();
    Ok(is_right)
}

/// A node of the store. Killed on drop.
struct Node {
    process: Child,
    address: String,
}

impl Node {
    async fn start(
        args: &Args,
        number: usize,
        db: &PathBuf,
        statsd: String,
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let program = std::env::current_exe()?.with_file_name("store");
        let (seed, node) = (args.seed.to_string(), format!("node{number}"));
        let mut command = Command::new(program);
        let ports = args.ports.get(number).and_then(|ports| ports.split_once(':'));
        let (port, admin_port) = ports.unwrap_or(("0", "0"));
        if args.door.is_some() {
            // A load balancer that asks notices after two seconds that a node is not ready.
            command.args(["--linger-secs", "3"]);
        }
        command
            .args(["--port", port, "--admin-port", admin_port, "--admin", "admin:load"])
            .args(["--seed", &seed])
            .args(["--node", &node, "--statsd", &statsd, "--bench", "--db"])
            .arg(db);
        for (flag, url) in [("--redis", &args.redis), ("--nats", &args.nats)] {
            if let Some(url) = url {
                command.args([flag, url]);
            }
        }
        let mut process = command
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let output = process.stdout.take().ok_or("no output")?;
        let mut lines = BufReader::new(output).lines();
        let address = loop {
            let line = lines.next_line().await?.ok_or("the store has ended")?;
            if let Some(address) = line.strip_prefix("shop     http://") {
                break address.trim_end_matches('/').to_owned();
            }
        };
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        while !request(&address, "GET", "/readyz", &[], "").await?.0.contains(" 200 ") {
            sleep(Duration::from_millis(50)).await;
        }
        Ok(Self { process, address })
    }

    /// Ends it, and starts it again on another port: the old one may be taken by now.
    async fn restart(
        &mut self,
        args: &Args,
        number: usize,
        db: &PathBuf,
        statsd: String,
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        let id = self.process.id().ok_or("it has ended")?.to_string();
        Command::new("kill").args(["-TERM", &id]).status().await?;
        self.process.wait().await?;
        *self = Self::start(args, number, db, statsd).await?;
        Ok(())
    }
}

fn counts(db: &PathBuf) -> rusqlite::Result<Vec<i64>> {
    let database = Connection::open(db)?;
    let mut counts =
        database.prepare("SELECT available_count FROM item_availabilities ORDER BY item_id")?;
    let counts = counts.query_map([], |row| row.get(0))?;
    counts.collect()
}

/// The pages of all shoppers, spread over the nodes.
async fn arrive(
    args: &Args,
    nodes: &[Node],
    door: Option<&String>,
) -> Result<Vec<Shopper>, Box<dyn Error + Send + Sync>> {
    let doors = Arc::new(Semaphore::new(ARRIVALS));
    let mut tasks = JoinSet::new();
    for number in 0..args.shoppers {
        let node = nodes.get(number % nodes.len()).ok_or("no node")?;
        let address = door.unwrap_or(&node.address).clone();
        let doors = doors.clone();
        let page = if args.visit { format!("/bench/{}", number % 4 + 1) } else { "/".to_owned() };
        tasks.spawn(async move {
            let _door = doors.acquire().await?;
            Shopper::arrive(address, &page).await
        });
    }
    let mut shoppers = Vec::new();
    while let Some(shopper) = tasks.join_next().await {
        shoppers.push(shopper??);
    }
    Ok(shoppers)
}

async fn release(address: &str, product: i64) -> Result<(), Box<dyn Error + Send + Sync>> {
    let (_, page) = request(address, "GET", "/admin", &[ADMIN], "").await?;
    let csrf = client::after(&page, "name=\"csrf_token\" value=\"")?;
    let path = format!("/admin/products/{product}/release");
    let (head, _) =
        request(address, "POST", &path, &[ADMIN], &format!("csrf_token={csrf}")).await?;
    if head.contains(" 303 ") { Ok(()) } else { Err(format!("not released: {head}").into()) }
}

/// A shopper buys one item after the other until its page shows that all are gone.
async fn buy(mut shopper: Shopper, rush: Arc<Rush>) {
    loop {
        if let Some(at) = shopper.saw_nothing_left() {
            rush.right.lock().push(at);
            // The page stays open, and is right when it comes back.
            loop {
                while shopper.change().await.is_ok() {}
                if !reconnected(&mut shopper, &rush).await || shopper.saw_nothing_left().is_none() {
                    return;
                }
            }
        }
        let Some(item) = shopper.wants() else {
            // The release is still to come.
            if shopper.change().await.is_err() && !reconnected(&mut shopper, &rush).await {
                return;
            }
            continue;
        };
        match shopper.buy(item).await {
            Ok(true) => {
                rush.bought.fetch_add(1, Relaxed);
                rush.last_sale.fetch_max(micros(&rush), Relaxed);
            }
            Ok(false) => {
                rush.refused.fetch_add(1, Relaxed);
            }
            Err(error) => rush.has_failed(&error.to_string()),
        }
        // A person takes a moment.
        sleep(Duration::from_millis(fastrand::u64(100..400))).await;
        if shopper.has_ended() && !reconnected(&mut shopper, &rush).await {
            return;
        }
    }
}

/// Has a page connect again. Returns whether it did.
async fn reconnected(shopper: &mut Shopper, rush: &Rush) -> bool {
    match shopper.reconnect().await {
        Ok(away) => {
            rush.away.lock().push(away);
            true
        }
        Err(_) => false,
    }
}

fn micros(rush: &Rush) -> u64 {
    rush.began.elapsed().as_micros().try_into().unwrap_or(u64::MAX)
}

fn report(
    args: &Args,
    rush: &Rush,
    before: &[i64],
    db: &PathBuf,
    idle: &Usage,
    after: &Usage,
    measured: &Measured,
) -> Result<bool, Box<dyn Error + Send + Sync>> {
    let database = Connection::open(db)?;
    let left = counts(db)?;
    let mut oversold = 0;
    let mut lost = 0;
    for ((item, before), left) in (1_i64..).zip(before).zip(&left) {
        let query = "SELECT count(*) FROM order_items WHERE item_id = ?";
        let sold: i64 = database.query_row(query, [item], |row| row.get(0))?;
        oversold += (sold - before).max(0);
        lost += (before - left - sold).abs();
    }
    let orders: i64 = database.query_row("SELECT count(*) FROM orders", [], |row| row.get(0))?;
    let last_sale = Duration::from_micros(rush.last_sale.load(Relaxed));
    let right = rush.right.lock().clone();
    let after_sale = |at: &Instant| at.duration_since(rush.began).saturating_sub(last_sale);
    let in_time = right.iter().filter(|at| after_sale(at) <= Duration::from_secs(1)).count();
    let last_page = right.iter().map(after_sale).max().unwrap_or_default();
    let sold: i64 = before.iter().sum::<i64>() - left.iter().sum::<i64>();
    println!("sold                 {sold} in {orders} orders, {} left", left.iter().sum::<i64>());
    println!("oversold             {oversold}");
    println!("lost                 {lost}");
    println!("sales a second       {:.0}", sold as f64 / last_sale.as_secs_f64().max(0.001));
    println!("last sale after      {:.2} s", last_sale.as_secs_f64());
    println!(
        "pages right          {} of {}, {in_time} within a second after the last sale was answered, the last after {:.3} s",
        right.len(),
        args.shoppers,
        last_page.as_secs_f64()
    );
    println!(
        "answers              {} bought, {} refused, {} failed",
        rush.bought.load(Relaxed),
        rush.refused.load(Relaxed),
        rush.failed.lock().values().sum::<u64>()
    );
    for (why, times) in &*rush.failed.lock() {
        println!("failed               {times} times: {why}");
    }
    let mut away = rush.away.lock().clone();
    away.sort_unstable();
    if let (Some(half), Some(most), Some(last)) =
        (away.get(away.len() / 2), away.get(away.len() * 99 / 100), away.last())
    {
        println!(
            "cut off              {} times, p50 {:.2} s, p99 {:.2} s, at most {:.2} s",
            away.len(),
            half.as_secs_f64(),
            most.as_secs_f64(),
            last.as_secs_f64()
        );
    }
    for name in ["store.level_told", "pipeline.push_delivered", "store.checkout_time"] {
        let [p50, p99] = measured.percentiles(name);
        println!("{name:24} p50 {p50:.2} ms, p99 {p99:.2} ms");
    }
    println!(
        "memory               {} MiB idle, {} MiB at the end",
        idle.mebibytes, after.mebibytes
    );
    // That of nodes that have ended is not known.
    if !args.restart {
        println!("cpu of the sale      {:.1} s", after.cpu_seconds - idle.cpu_seconds);
    }
    Ok(oversold == 0 && lost == 0)
}
