//! Moving shoppers to other nodes: by hand, by alarm, and by age.
//!
//! Sockets stay where they are, so a node that is added has none. A socket that is closed with 1012 connects again, and the
//! load balancer, or chance, gives it to another node.

use std::{convert::Infallible, fs, num::NonZero, thread::available_parallelism, time::Duration};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::{HeaderMap, StatusCode, header::ORIGIN},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use pipeline::ws::{Endpoint, endpoint::Shed};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::channels::sockets::{SHARDS, shard_id};

/// The topic on which one node asks all of them.
const BALANCE: &str = "balance";

/// Which sockets an operator wants to be closed, and where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Request {
    /// This part of the open ones, from 0 to 1.
    pub share: Option<f64>,
    /// So many that this number stays.
    pub down_to: Option<usize>,
    /// Those that have been open for so many seconds.
    pub older_than: Option<u64>,
    /// How many a second.
    pub per_second: Option<usize>,
    /// Whether all nodes are to do it.
    pub everywhere: bool,
}

impl Request {
    /// Which sockets the endpoint closes; `None` unless exactly one kind of choice was made.
    fn shed(self) -> Option<Shed> {
        let shed = match (self.share, self.down_to, self.older_than) {
            (Some(share), None, None) if (0.0..=1.0).contains(&share) => Shed::share(share),
            (None, Some(sockets), None) => Shed::down_to(sockets),
            (None, None, Some(seconds)) => Shed::older_than(Duration::from_secs(seconds)),
            _ => return None,
        };
        Some(self.per_second.map_or(shed, |per_second| shed.per_second(per_second)))
    }
}

/// The shards that an operator wants to be closed, and where.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Shards {
    #[serde(default)]
    first: u32,
    count: u32,
    #[serde(default)]
    everywhere: bool,
}

/// The operator's requests: `GET /` says how many sockets are open, `POST /shed` and `POST /shards` close some.
pub fn router(endpoint: Endpoint) -> Router {
    Router::new()
        .route("/", get(count))
        .route("/shed", post(shed))
        .route("/shards", post(shards))
        .with_state(endpoint)
}

async fn count(State(endpoint): State<Endpoint>) -> Response {
    Json(json!({ "sockets": endpoint.open_sockets() })).into_response()
}

/// A page of any site can have a browser on this machine post here, but not without saying so.
fn is_of_a_page(headers: &HeaderMap) -> bool {
    headers.contains_key(ORIGIN)
}

/// Closes sockets, and answers when it has. A client that does not wait for the answer stops it.
async fn shed(
    State(endpoint): State<Endpoint>,
    headers: HeaderMap,
    Query(request): Query<Request>,
) -> Response {
    let Some(shed) = request.shed().filter(|_| !is_of_a_page(&headers)) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    if request.everywhere {
        return match endpoint.broadcast(BALANCE, "shed", request) {
            Ok(()) => StatusCode::ACCEPTED.into_response(),
            Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
        };
    }
    Json(json!({ "closed": endpoint.shed(shed).await })).into_response()
}

/// Closes the sockets of some shards. Each page is in a shard at random, and in another one when it comes back, so a node
/// that is to lose all of them closes its own: those that have moved stay where they are.
async fn shards(
    State(endpoint): State<Endpoint>,
    headers: HeaderMap,
    Query(Shards { first, count, everywhere }): Query<Shards>,
) -> Response {
    let end = first.saturating_add(count);
    if end > SHARDS || is_of_a_page(&headers) {
        return StatusCode::BAD_REQUEST.into_response();
    }
    for id in (first..end).map(shard_id) {
        if everywhere {
            endpoint.disconnect(&id);
        } else if let Err(error) = endpoint.local_broadcast(&id, "disconnect", json!({})) {
            return (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response();
        }
    }
    StatusCode::NO_CONTENT.into_response()
}

/// Does what operators ask of all nodes.
pub async fn follow(endpoint: Endpoint) -> Infallible {
    let mut asked = endpoint.subscribe(BALANCE);
    loop {
        // What was missed is asked for again by the operator, who sees that the nodes are not even.
        let Ok(broadcast) = asked.recv().await else { continue };
        let request = broadcast.payload().parse::<Request>().ok();
        if let Some(shed) = request.and_then(Request::shed) {
            endpoint.shed(shed).await;
        }
    }
}

/// What a node uses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// The part of all cores, in percent.
    pub cpu_percent: f64,
    /// The memory, in MiB.
    pub memory_mib: u64,
}

/// When a node gives away sockets by itself. Pure.
#[derive(Clone, Debug)]
pub struct Alarm {
    limits: Limits,
    /// Since when the load is above its limits without a break.
    above_since: Option<Instant>,
    /// How many sockets stay, whatever the load is. Known once the alarm has begun.
    stay: Option<usize>,
}

/// The limits of an alarm. Those that are `None` do not exist.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// The part of all cores, in percent.
    pub cpu_percent: Option<f64>,
    /// The memory, in MiB.
    pub memory_mib: Option<u64>,
    /// For how long the load is above a limit before sockets are closed.
    pub patience: Duration,
}

/// How often a node looks at its load.
const LOOK: Duration = Duration::from_secs(1);

/// The part of the sockets that is closed at each look.
const STEP: usize = 20;

impl Alarm {
    /// An alarm with these limits.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, above_since: None, stay: None }
    }

    /// How many of the open sockets to close now. One alarm closes no more than half of them: memory comes back late, and
    /// a node that is busy for another reason would lose all.
    pub fn look(&mut self, load: Load, open: usize, now: Instant) -> usize {
        let Limits { cpu_percent, memory_mib, patience } = self.limits;
        let is_above = cpu_percent.is_some_and(|limit| load.cpu_percent > limit)
            || memory_mib.is_some_and(|limit| load.memory_mib > limit);
        if !is_above {
            (self.above_since, self.stay) = (None, None);
            return 0;
        }
        let since = *self.above_since.get_or_insert(now);
        if now.saturating_duration_since(since) < patience {
            return 0;
        }
        let stay = *self.stay.get_or_insert(open.div_ceil(2));
        open.div_ceil(STEP).min(open.saturating_sub(stay))
    }
}

/// Closes sockets while the load is above its limits. `load` is asked once a second.
pub async fn relieve(
    endpoint: Endpoint,
    mut alarm: Alarm,
    mut load: impl FnMut() -> Option<Load>,
) -> Infallible {
    loop {
        sleep(LOOK).await;
        let Some(load) = load() else { continue };
        let open = endpoint.open_sockets();
        let count = alarm.look(load, open, Instant::now());
        if count > 0 {
            tracing::warn!(?load, count, "the load is above its limit: sockets are closed");
            // Within half of the time until the next look.
            let shed = Shed::down_to(open.saturating_sub(count));
            endpoint.shed(shed.per_second(count.saturating_mul(2))).await;
        }
    }
}

/// Closes sockets when they have been open for nine tenths of an age, so slowly that those that came at the same moment go
/// one after the other until the age is over.
pub async fn retire(endpoint: Endpoint, age: Duration) -> Infallible {
    let tenth = age / 10;
    let look = (tenth / 10).max(Duration::from_millis(10));
    loop {
        sleep(look).await;
        let open = endpoint.open_sockets();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            reason = "a rate of sockets, not negative"
        )]
        let per_second = (open as f64 / tenth.saturating_sub(look).as_secs_f64()).ceil() as usize;
        endpoint.shed(Shed::older_than(tenth * 9).per_second(per_second)).await;
    }
}

/// The load of this process, as the system tells it. The first answer has no time to compare with, and is `None`, as all are
/// on other systems than Linux.
pub fn of_process() -> impl FnMut() -> Option<Load> + Send {
    let cores = available_parallelism().map_or(1, NonZero::get);
    let mut before: Option<(f64, Instant)> = None;
    move || {
        let (cpu, memory_mib) = used()?;
        let now = Instant::now();
        let (earlier, at) = before.replace((cpu, now))?;
        let elapsed = now.saturating_duration_since(at).as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a number of cores")]
        let all = elapsed * cores as f64;
        Some(Load { cpu_percent: (cpu - earlier) / all.max(0.001) * 100.0, memory_mib })
    }
}

/// The seconds of CPU time until now, and the memory in MiB.
fn used() -> Option<(f64, u64)> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name before the bracket may have spaces.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = resident.split_whitespace().next()?.parse().ok()?;
    // Of the user and of the system, in hundredths of a second.
    Some(((ticks(11)? + ticks(12)?) / 100.0, kib / 1024))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits {
        cpu_percent: Some(80.0),
        memory_mib: Some(500),
        patience: Duration::from_secs(10),
    };

    fn load(cpu_percent: f64, memory_mib: u64) -> Load {
        Load { cpu_percent, memory_mib }
    }

    #[test]
    fn an_alarm_begins_after_a_while_and_stops_with_its_reason() {
        let (mut alarm, start) = (Alarm::new(LIMITS), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(alarm.look(load(90.0, 1), 1000, at(0)), 0);
        assert_eq!(alarm.look(load(90.0, 1), 1000, at(9)), 0);
        // A moment of rest, and the while begins again.
        assert_eq!(alarm.look(load(80.0, 500), 1000, at(10)), 0);
        assert_eq!(alarm.look(load(1.0, 501), 1000, at(11)), 0);
        assert_eq!(alarm.look(load(1.0, 501), 1000, at(20)), 0);
        assert_eq!(alarm.look(load(1.0, 501), 1000, at(21)), 50);
        assert_eq!(alarm.look(load(90.0, 1), 950, at(22)), 48);
        assert_eq!(alarm.look(load(80.0, 500), 902, at(23)), 0);
        assert_eq!(alarm.look(load(90.0, 1), 902, at(24)), 0);
    }

    #[test]
    fn without_limits_there_is_no_alarm() {
        let none = Limits { cpu_percent: None, memory_mib: None, patience: Duration::ZERO };
        assert_eq!(Alarm::new(none).look(load(100.0, u64::MAX), 1000, Instant::now()), 0);
    }

    proptest! {
        #[test]
        fn half_of_the_sockets_stay(open in 0_usize..5_000, looks in 1_u64..200) {
            let (mut alarm, start) = (Alarm::new(LIMITS), Instant::now());
            let mut left = open;
            for look in 0..looks {
                left -= alarm.look(load(100.0, 1), left, start + Duration::from_secs(look));
                prop_assert!(left >= open / 2);
            }
            if looks == 199 {
                prop_assert_eq!(left, open.div_ceil(2));
            }
        }
    }

    #[test]
    fn a_request_makes_one_choice() {
        let none = Request::default();
        assert_eq!(none.shed(), None);
        let share = |share| Request { share: Some(share), ..none };
        assert_eq!(share(0.1).shed(), Some(Shed::share(0.1)));
        assert_eq!([1.1, -0.1, f64::NAN].map(|it| share(it).shed()), [None; 3]);
        let slowly = Request { down_to: Some(7), per_second: Some(5), ..none };
        assert_eq!(slowly.shed(), Some(Shed::down_to(7).per_second(5)));
        assert_eq!(Request { older_than: Some(1), ..share(0.1) }.shed(), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_load_of_this_process_is_known() {
        let mut load = of_process();
        assert_eq!(load(), None);
        let began = Instant::now();
        // Looking is work.
        loop {
            let load = load().unwrap();
            assert!(load.memory_mib > 0, "{load:?}");
            if load.cpu_percent > 0.0 {
                break;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "{load:?}");
        }
    }
}
