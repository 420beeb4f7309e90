//! Overload: more is offered than can be delivered, in three ways.

use std::{
    fmt::Write as _,
    fs, io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use clap::ValueEnum;
use parking_lot::Mutex;
use pipeline_load::{
    chart::{Curve, Panel, chart},
    latency::Latencies,
    unix_micros,
};
use serde::Deserialize;
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use crate::{
    client::{Client, Ended, Http, Message, PATIENCE, Transport},
    process::{RunError, Server},
    server::{Options, Stats},
};

/// Offer 1, 2, 5 and 20 times what can be delivered, and show what happens to it
#[derive(Debug, clap::Args)]
pub(crate) struct Overload {
    /// How many seconds each load lasts
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Also replace the table in this file, and draw the chart next to it
    #[arg(long)]
    write: Option<PathBuf>,
}

/// The ways in which items come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Way {
    Push,
    Pipeline,
    Broadcast,
}

/// How many times as much is offered as can be delivered.
const TIMES: [u64; 4] = [1, 2, 5, 20];

/// The number of users, each with one client.
const USERS: usize = 50;

/// The number of connections that push by HTTP, and the requests of each per second.
const INTAKES: u64 = 8;
const REQUESTS: u64 = 50;

/// A rate that is more than can be delivered, in order to measure what can.
const MORE: u64 = 100_000;

/// The clients of a broadcast, the items that each reads per second, and the bytes of an item. A connection's
/// buffers in the operating system hold about a second of them.
const LISTENERS: usize = 10;
const READS: u64 = 400;
const BYTES: usize = 8192;

/// How long the server may take after the load until it holds nothing.
const RECOVERS_WITHIN: Duration = Duration::from_secs(2);

/// The beginning and the end of the table in a file.
const BEGIN: &str = "<!-- overload -->";
const END: &str = "<!-- /overload -->";

/// What clients have received.
#[derive(Debug, Default)]
struct Received {
    items: AtomicU64,
    /// The ages of the items in microseconds.
    ages: Mutex<Vec<u64>>,
}

/// The result of one load.
#[derive(Debug)]
struct Measured {
    way: Way,
    times: u64,
    offered: f64,
    delivered: f64,
    /// The number of delivered items, and how long the load took.
    count: u128,
    took: Duration,
    p50: f64,
    p99: f64,
    refused: f64,
    how: String,
    mebibytes: f64,
    recovered: Duration,
}

#[derive(Deserialize)]
struct Offered {
    offered: u64,
    took_seconds: f64,
}

impl Overload {
    pub(crate) async fn run(&self) -> Result<(), RunError> {
        let mut all = Vec::new();
        for way in Way::value_variants() {
            let capacity = match way {
                Way::Broadcast => READS,
                // Both go through the same queue and the same workers.
                Way::Push | Way::Pipeline => {
                    let most = self.measure(Way::Pipeline, 0, MORE).await?;
                    u64::try_from(most.count * 1000 / most.took.as_millis()).unwrap_or(u64::MAX)
                }
            };
            for times in TIMES {
                let measured = self.measure(*way, times, capacity * times).await?;
                eprintln!("measured {way:?} at {times} times {capacity} a second");
                all.push(measured);
            }
        }
        let table = table(&all);
        print!("{table}");
        if let Some(file) = &self.write {
            let text = fs::read_to_string(file)?;
            let replaced = replaced(&text, &table)
                .ok_or_else(|| RunError::Violated(format!("{} has no {BEGIN}", file.display())))?;
            fs::write(file, replaced)?;
            fs::write(file.with_file_name("overload.svg"), chart(&panels(&all)))?;
        }
        let late: Vec<_> = all.iter().filter(|row| row.recovered > RECOVERS_WITHIN).collect();
        if late.is_empty() {
            Ok(())
        } else {
            Err(RunError::Violated(format!("recovered late: {late:?}")))
        }
    }

    async fn measure(&self, way: Way, times: u64, rate: u64) -> Result<Measured, RunError> {
        let options = Options {
            users: USERS,
            rate: 0,
            failing: false,
            work_us: 2000,
            max_demand: 20,
            queue: 1000,
            outbox: 256,
            drain_secs: 10,
        };
        let server = Server::start(&options).await?;
        let received = Arc::new(Received::default());
        let mut clients = JoinSet::new();
        let (count, pace) = match way {
            Way::Broadcast => (LISTENERS, Some(READS)),
            Way::Push | Way::Pipeline => (USERS, None),
        };
        for client in 0..count {
            let user = if way == Way::Broadcast { 0 } else { client };
            clients.spawn(listen(server.address, user, pace, received.clone()));
        }
        while server.stats().await?.sockets < count {
            sleep(Duration::from_millis(20)).await;
        }
        // The joins are answered.
        sleep(Duration::from_millis(200)).await;

        let (time, began) = (Duration::from_secs(self.seconds), Instant::now());
        let peak = Arc::new(AtomicU64::new(server.resident()?));
        let load = offer(&server, way, rate, time);
        let watch = async {
            loop {
                peak.fetch_max(server.resident().unwrap_or_default(), Relaxed);
                sleep(Duration::from_millis(50)).await;
            }
        };
        let (offered, refused) = tokio::select! {
            load = load => load?,
            () = watch => return Err(RunError::Violated("the watch ended".to_owned())),
        };
        let (took, count) = (began.elapsed(), received.items.load(Relaxed));
        let (recovered, stats) = recovery(&server).await?;
        let latencies = Latencies::new(std::mem::take(&mut *received.ages.lock()));
        let how = match way {
            Way::Push => format!("{refused} answered with 503"),
            Way::Pipeline => format!("{} returned by `try_push`", stats.refused_full),
            Way::Broadcast => {
                format!("{} times a socket was closed with 1011", stats.closed_slow)
            }
        };
        let refused = match way {
            // Frames that waited for a socket that was closed, and broadcasts while its client was away.
            Way::Broadcast => {
                let all = offered * LISTENERS as u64;
                1.0 - stats.frames_out.min(all) as f64 / all.max(1) as f64
            }
            Way::Push | Way::Pipeline => refused as f64 / offered.max(1) as f64,
        };
        Ok(Measured {
            way,
            times,
            offered: offered as f64 / took.as_secs_f64(),
            delivered: count as f64 / took.as_secs_f64(),
            count: u128::from(count),
            took,
            p50: latencies.at(500),
            p99: latencies.at(990),
            refused: refused * 100.0,
            how,
            mebibytes: peak.load(Relaxed) as f64 / 1024.0 / 1024.0,
            recovered,
        })
    }
}

/// Offers items for some time. Returns how many, and how many were refused.
async fn offer(
    server: &Server,
    way: Way,
    rate: u64,
    time: Duration,
) -> Result<(u64, u64), RunError> {
    let millis = time.as_millis();
    match way {
        Way::Pipeline => {
            let path = format!("/offer?rate={rate}&millis={millis}");
            let Offered { offered, .. } = server.get(&path).await?;
            Ok((offered, server.stats().await?.refused_full))
        }
        Way::Broadcast => {
            let path = format!("/broadcast?topic=user:0&rate={rate}&millis={millis}&pad={BYTES}");
            let Offered { offered, took_seconds } = server.get(&path).await?;
            if took_seconds > 2.0 * time.as_secs_f64() {
                eprintln!("the broadcasts took {took_seconds:.1} s");
            }
            Ok((offered, 0))
        }
        Way::Push => {
            let mut intakes = JoinSet::new();
            for number in 0..INTAKES {
                let count = (rate / INTAKES / REQUESTS).max(1);
                intakes.spawn(push(server.address, number, count, time));
            }
            let mut sum = (0, 0);
            while let Some(intake) = intakes.join_next().await {
                let (offered, refused) = intake.map_err(io::Error::other)??;
                sum = (sum.0 + offered, sum.1 + refused);
            }
            Ok(sum)
        }
    }
}

/// Pushes this many items in each request. Returns how many items, and how many were refused.
async fn push(
    address: SocketAddr,
    number: u64,
    count: u64,
    time: Duration,
) -> io::Result<(u64, u64)> {
    #[derive(Deserialize)]
    struct Answer {
        accepted: u64,
    }
    let mut http = Http::connect(address).await?;
    let mut pace = interval(Duration::from_millis(1000 / REQUESTS));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (began, mut sum, mut n) = (Instant::now(), (0, 0), 1);
    for user in (0..USERS as u64).cycle().skip(usize::try_from(number).unwrap_or_default()) {
        pace.tick().await;
        if began.elapsed() >= time {
            break;
        }
        let path = format!("/push?user={user}&n={n}&count={count}");
        let (_, body) = http.request("POST", &path, "").await?;
        let Answer { accepted } = serde_json::from_slice(&body)?;
        (n, sum) = (n + count, (sum.0 + count, sum.1 + count - accepted));
    }
    Ok(sum)
}

/// Waits until the server holds nothing. Returns how long that took.
async fn recovery(server: &Server) -> Result<(Duration, Stats), RunError> {
    let began = Instant::now();
    loop {
        let stats = server.stats().await?;
        let is_idle = stats.held() == 0 && stats.frames_waiting == 0;
        if is_idle || began.elapsed() > 10 * RECOVERS_WITHIN {
            return Ok((began.elapsed(), stats));
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// Joins the topic of a user, receives items at most at a pace, and connects again when it is closed.
async fn listen(address: SocketAddr, user: usize, pace: Option<u64>, received: Arc<Received>) {
    loop {
        let Ok(Ok(mut client)) =
            timeout(PATIENCE, Client::connect(address, Transport::WebSocket, &user.to_string()))
                .await
        else {
            return;
        };
        let join = format!(r#"["1","1","user:{user}","phx_join",{{}}]"#);
        if client.send(&join).await.is_err() {
            return;
        }
        match read(&mut client, pace, &received).await {
            Ended::Closed(1011) | Ended::Broken => {}
            _ => return,
        }
    }
}

async fn read(client: &mut Client, pace: Option<u64>, received: &Received) -> Ended {
    #[derive(Deserialize)]
    struct Item {
        at_us: u64,
    }
    let (mut began, mut count) = (Instant::now(), 0);
    loop {
        let text = match client.receive().await {
            Ok(text) => text,
            Err(ended) => return ended,
        };
        let Ok((_, _, _, event, payload)) = serde_json::from_slice::<Message<'_>>(&text) else {
            return Ended::Invalid(String::from_utf8_lossy(&text).into_owned());
        };
        if event != "item" {
            continue;
        }
        if let Ok(Item { at_us }) = serde_json::from_str(payload.get()) {
            received.items.fetch_add(1, Relaxed);
            received.ages.lock().push(unix_micros().saturating_sub(at_us));
        }
        let Some(pace) = pace else { continue };
        if count == 0 {
            began = Instant::now();
        }
        count += 1;
        // In steps of ten milliseconds, for the timer is not finer than one.
        let due = Duration::from_micros(count * 1_000_000 / pace);
        let ahead = due.saturating_sub(began.elapsed());
        if ahead > Duration::from_millis(10) {
            sleep(ahead).await;
        }
    }
}

fn table(all: &[Measured]) -> String {
    let mut text = String::from(
        "| by | offered | items offered/s | received/s | p50 | p99 | refused | how | memory, at most | recovered in |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: |\n",
    );
    for row in all {
        let way = match row.way {
            Way::Push => "`POST /push`",
            Way::Pipeline => "pipeline",
            Way::Broadcast => "broadcast",
        };
        let Measured { times, offered, delivered, p50, p99, refused, how, mebibytes, .. } = row;
        writeln!(
            text,
            "| {way} | {times} × | {offered:.0} | {delivered:.0} | {p50:.0} ms | {p99:.0} ms | {refused:.1} % | {how} | \
             {mebibytes:.0} MiB | {:.2} s |",
            row.recovered.as_secs_f64()
        )
        .expect("a String takes any text");
    }
    text
}

/// The text with another table.
fn replaced(text: &str, table: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{table}{END}{after}"))
}

fn panels(all: &[Measured]) -> [Panel; 2] {
    let panel = |title, y, value: fn(&Measured) -> f64| {
        let names =
            [(Way::Push, "POST /push"), (Way::Pipeline, "pipeline"), (Way::Broadcast, "broadcast")];
        let curves = names.map(|(way, name)| {
            let mut curve = Curve::new(name);
            let rows = all.iter().filter(|row| row.way == way);
            curve.points.extend(rows.map(|row| (row.times as f64, value(row))));
            curve
        });
        Panel { title, x: "times what can be delivered", y, curves: curves.into() }
    };
    [
        panel("The time until delivery, 99th percentile", "milliseconds", |row| row.p99),
        panel("What is refused", "percent of what is offered", |row| row.refused),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_table_is_replaced() {
        let text = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let expected = format!("before\n{BEGIN}\nnew\n{END}\nafter\n");
        assert_eq!(replaced(&text, "new\n"), Some(expected));
        assert_eq!(replaced("no table", "new\n"), None);
    }
}
