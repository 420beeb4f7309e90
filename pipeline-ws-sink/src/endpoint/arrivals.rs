//! How many clients may arrive in a second, and what becomes of those that come at once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    convert::Infallible,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use metrics::{Counter, Histogram};
use parking_lot::Mutex;
use pipeline_core::{
    Deadline,
    telemetry::{Telemetry, milliseconds},
};
use tokio::{
    sync::{Mutex as Lead, oneshot},
    time::{Instant, sleep_until},
};

use crate::handshake::connect_info::ConnectInfo;

/// How many clients may connect or join in a second, and how long the others may wait for their turn.
///
/// When all clients of a server come at once, after its restart or that of another node, their `connect`
/// and `join` callbacks would compete with each other, and with the clients that are there. With a rate,
/// they wait. That costs no memory but their own, and a client that waits does nothing else, so the
/// callbacks of those that are connected are not delayed.
///
/// Clients that connect take turns by their address, and joins by their socket: each address or socket that
/// waits gets one turn, then each gets its second. An IPv6 address counts with its network of 64 bits. So one
/// machine that comes as often as it can delays another by one turn. Clients behind a load balancer have its
/// address, unless [`behind_proxies`](Self::behind_proxies) says where theirs is.
///
/// One that has waited for [`wait`](Self::wait) is refused, and tries again. There is room for as many as
/// have their turn within that time, and at most for [`max_waiting`](Self::max_waiting). When it is full, the
/// newest of the address or socket with the most that wait is refused: a client that comes, or one that
/// waits. The turn of a client that gives up goes to the next.
///
/// ```
/// # use std::time::Duration;
/// # use pipeline_ws_sink::{Endpoint, endpoint::ArrivalRate};
/// let builder = Endpoint::builder()
///     .connect_rate(ArrivalRate::new(2_000).behind_proxies(1))
///     .join_rate(ArrivalRate::new(4_000).wait(Duration::from_secs(3)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct ArrivalRate {
    interval: Duration,
    wait: Duration,
    max_waiting: Option<usize>,
    proxies: usize,
}

impl ArrivalRate {
    /// This number in a second, and a wait of at most five seconds.
    ///
    /// # Panics
    ///
    /// If it is zero: no client would ever arrive.
    pub fn new(per_second: u32) -> Self {
        assert!(per_second > 0, "per_second must be at least 1");
        // Beyond 10^9 in a second the interval would be none.
        let interval = (Duration::from_secs(1) / per_second).max(Duration::from_nanos(1));
        Self { interval, wait: Duration::from_secs(5), max_waiting: None, proxies: 0 }
    }

    /// How long a client may wait for its turn. Default five seconds. The official client gives up a join
    /// after ten, and begins it again later.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// How many may wait at once. Default 2,500 clients that connect, or 20,000 joins.
    ///
    /// A client that waits to connect has a connection of the server's, while polls and other requests need
    /// one too: so set it well below the server's limit of connections. `serve` lowers it to a quarter of its
    /// `max_connections`.
    pub fn max_waiting(mut self, clients: usize) -> Self {
        self.max_waiting = Some(clients);
        self
    }

    /// How many proxies are in front of this server, each of which adds the address that it is connected
    /// from to the header `x-forwarded-for`. Default none: the address is that of the connection.
    ///
    /// With one, the client's address is the last in the header, with two it is the last but one. Set it
    /// only if every request comes through them: the rest of the header is whatever the client has sent.
    pub fn behind_proxies(mut self, proxies: usize) -> Self {
        self.proxies = proxies;
        self
    }

    /// How many have their turn within the time that one may wait.
    fn within_wait(&self) -> usize {
        let turns = self.wait.as_nanos() / self.interval.as_nanos().max(1);
        usize::try_from(turns).unwrap_or(usize::MAX)
    }
}

/// How many may come at once after a pause, as the time in which the rate lets them come.
const BURST: Duration = Duration::from_millis(100);

/// How many clients that connect may wait, unless it is set.
const CONNECTS: usize = 2_500;

/// How many joins may wait, unless it is set.
const JOINS: usize = 20_000;

/// How long a client may wait beyond its time, because timers are late: the last one has its turn when its
/// time is over.
const LATE: Duration = Duration::from_millis(50);

/// An address or a socket, which takes turns with the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Arriving {
    /// Clients of an address, or of an unknown one.
    From(Option<IpAddr>),
    /// The joins of a socket, by where it is in memory.
    Socket(usize),
}

/// Those that wait, in the order of their turns. Pure.
#[derive(Debug)]
struct Line<T> {
    waiting: HashMap<Arriving, Group<T>>,
    /// Whose turn is next, by place.
    order: BTreeMap<u64, Arriving>,
    /// How many wait of each, with its place.
    lengths: BTreeSet<(usize, u64)>,
    count: usize,
    /// The number of the next place or client.
    next: u64,
}

/// Those of one address or socket. There is at least one.
#[derive(Debug)]
struct Group<T> {
    place: u64,
    /// By number: the oldest is the first.
    clients: BTreeMap<u64, T>,
}

impl<T> Line<T> {
    fn new() -> Self {
        Self {
            waiting: HashMap::new(),
            order: BTreeMap::new(),
            lengths: BTreeSet::new(),
            count: 0,
            next: 0,
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// How many of a group wait.
    fn of(&self, arriving: Arriving) -> usize {
        self.waiting.get(&arriving).map_or(0, |group| group.clients.len())
    }

    /// The group of which the most wait, and their number.
    fn longest(&self) -> Option<(usize, Arriving)> {
        let (length, place) = self.lengths.last()?;
        Some((*length, *self.order.get(place)?))
    }

    /// Adds a client, and returns its number.
    fn add(&mut self, arriving: Arriving, client: T) -> u64 {
        let (number, place) = (self.number(), self.number());
        let group = self.take_out(arriving);
        let mut group = group.unwrap_or_else(|| Group { place, clients: BTreeMap::new() });
        group.clients.insert(number, client);
        self.put_back(arriving, group);
        number
    }

    /// Removes a client.
    fn remove(&mut self, arriving: Arriving, number: u64) -> Option<T> {
        let mut group = self.take_out(arriving)?;
        let removed = group.clients.remove(&number);
        self.put_back(arriving, group);
        removed
    }

    /// Removes the newest of a group.
    fn remove_newest(&mut self, arriving: Arriving) -> Option<T> {
        let mut group = self.take_out(arriving)?;
        let removed = group.clients.pop_last();
        self.put_back(arriving, group);
        removed.map(|(_, client)| client)
    }

    /// Removes the one whose turn it is. The others of its group are behind all groups.
    fn take(&mut self) -> Option<T> {
        let arriving = *self.order.first_key_value()?.1;
        let mut group = self.take_out(arriving)?;
        let oldest = group.clients.pop_first();
        group.place = self.number();
        self.put_back(arriving, group);
        oldest.map(|(_, client)| client)
    }

    fn take_out(&mut self, arriving: Arriving) -> Option<Group<T>> {
        let group = self.waiting.remove(&arriving)?;
        self.order.remove(&group.place);
        self.lengths.remove(&(group.clients.len(), group.place));
        self.count -= group.clients.len();
        Some(group)
    }

    fn put_back(&mut self, arriving: Arriving, group: Group<T>) {
        if group.clients.is_empty() {
            return;
        }
        self.order.insert(group.place, arriving);
        self.lengths.insert((group.clients.len(), group.place));
        self.count += group.clients.len();
        self.waiting.insert(arriving, group);
    }
}

/// The turns, and those that wait for them. Pure.
#[derive(Debug)]
struct Turns<T> {
    interval: Duration,
    /// How many may wait.
    room: usize,
    /// When the next turn is. None before the first.
    next: Option<Instant>,
    line: Line<T>,
}

/// What becomes of a client that comes.
#[derive(Debug, PartialEq, Eq)]
enum Came<T> {
    /// The client's turn has come.
    Now,
    /// The client waits, with this number. The other one is refused, if there is one.
    Waits(u64, Option<T>),
    /// No room: the client is refused.
    Full,
}

impl<T> Turns<T> {
    fn come(&mut self, arriving: Arriving, client: T, now: Instant) -> Came<T> {
        if self.line.count == 0 && self.next.is_none_or(|next| next <= now) {
            self.advance(now);
            return Came::Now;
        }
        let mut refused = None;
        if self.line.count >= self.room {
            match self.line.longest() {
                Some((length, longest)) if length > self.line.of(arriving) + 1 => {
                    refused = self.line.remove_newest(longest);
                }
                _ => return Came::Full,
            }
        }
        Came::Waits(self.line.add(arriving, client), refused)
    }

    /// The next one whose turn has come.
    fn call(&mut self, now: Instant) -> Option<T> {
        if self.next.is_some_and(|next| next > now) {
            return None;
        }
        let called = self.line.take()?;
        self.advance(now);
        Some(called)
    }

    /// A turn is taken.
    fn advance(&mut self, now: Instant) {
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let at = self.next.map_or(earliest, |next| next.max(earliest));
        self.next = at.checked_add(self.interval);
    }

    /// A turn that was taken is not used.
    fn give_back(&mut self) {
        self.next = self.next.and_then(|next| next.checked_sub(self.interval));
    }
}

/// The end of a client's wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Called {
    ItsTurn,
    Refused,
}

/// Where clients wait for their turn.
pub(crate) struct Arrivals {
    queue: Option<Queue>,
    waited: Histogram,
    refused: Counter,
    gave_up: Counter,
}

struct Queue {
    rate: ArrivalRate,
    turns: Mutex<Turns<oneshot::Sender<Called>>>,
    /// The one that waits and holds this calls those whose turn has come.
    lead: Lead<()>,
}

/// A client that waits. When this is dropped, its place is free.
struct Waiting<'a> {
    arrivals: &'a Arrivals,
    queue: &'a Queue,
    arriving: Arriving,
    number: u64,
    called: oneshot::Receiver<Called>,
    is_over: bool,
}

/// A client would have to wait for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooMany;

impl Arrivals {
    /// Clients that connect.
    pub(crate) fn connects(rate: Option<ArrivalRate>, telemetry: &Telemetry) -> Self {
        Self {
            queue: rate.map(|rate| Queue::new(rate, CONNECTS)),
            waited: telemetry.timer(
                "socket.connect_waited",
                "Time that clients waited to connect",
                [],
            ),
            refused: telemetry.counter(
                "socket.connects_over_rate",
                "Clients refused because too many connect",
                [],
            ),
            gave_up: telemetry.counter(
                "socket.connects_given_up",
                "Clients that left while they waited to connect",
                [],
            ),
        }
    }

    /// Channels that are joined.
    pub(crate) fn joins(rate: Option<ArrivalRate>, telemetry: &Telemetry) -> Self {
        Self {
            queue: rate.map(|rate| Queue::new(rate, JOINS)),
            waited: telemetry.timer(
                "channel.join_waited",
                "Time that joins waited for their turn",
                [],
            ),
            refused: telemetry.counter(
                "channel.joins_over_rate",
                "Joins refused because too many clients join",
                [],
            ),
            gave_up: telemetry.counter(
                "channel.joins_given_up",
                "Joins of clients that left while they waited",
                [],
            ),
        }
    }

    /// Lowers how many may wait.
    pub(crate) fn limit_waiting(&self, most: usize) {
        if let Some(queue) = &self.queue {
            let mut turns = queue.turns.lock();
            turns.room = turns.room.min(most);
        }
    }

    /// Waits for the turn of a client that connects.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: its place is free then.
    pub(crate) async fn connect(&self, info: &ConnectInfo) -> Result<(), TooMany> {
        let Some(queue) = &self.queue else { return Ok(()) };
        self.turn(queue, Arriving::From(address(info, queue.rate.proxies))).await
    }

    /// Waits for the turn of a join of the socket with this number.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: its place is free then.
    pub(crate) async fn join(&self, socket: usize) -> Result<(), TooMany> {
        let Some(queue) = &self.queue else { return Ok(()) };
        self.turn(queue, Arriving::Socket(socket)).await
    }

    async fn turn(&self, queue: &Queue, arriving: Arriving) -> Result<(), TooMany> {
        let (call, called) = oneshot::channel();
        let now = Instant::now();
        let came = queue.turns.lock().come(arriving, call, now);
        let number = match came {
            Came::Now => return Ok(()),
            Came::Waits(number, refused) => {
                // It may have just left.
                let _ = refused.map(|refused| refused.send(Called::Refused));
                number
            }
            Came::Full => {
                self.refused.increment(1);
                return Err(TooMany);
            }
        };
        let mut waiting =
            Waiting { arrivals: self, queue, arriving, number, called, is_over: false };
        let until = Deadline::after(now, queue.rate.wait.saturating_add(LATE));
        let called = tokio::select! {
            biased;
            called = &mut waiting.called => {
                waiting.is_over = true;
                called.unwrap_or(Called::Refused)
            }
            never = queue.call_all() => match never {},
            () = until.passed() => {
                waiting.leave();
                Called::Refused
            }
        };
        if called == Called::Refused {
            self.refused.increment(1);
            return Err(TooMany);
        }
        self.waited.record(milliseconds(now.elapsed()));
        Ok(())
    }
}

impl Queue {
    fn new(rate: ArrivalRate, most: usize) -> Self {
        let room = rate.within_wait().min(rate.max_waiting.unwrap_or(most));
        let turns = Turns { interval: rate.interval, room, next: None, line: Line::new() };
        Self { rate, turns: Mutex::new(turns), lead: Lead::new(()) }
    }

    /// Calls those whose turn has come, once no other one does. One of those that wait does this for all,
    /// and the next one when it has been called or has left.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    async fn call_all(&self) -> Infallible {
        let _lead = self.lead.lock().await;
        loop {
            let next = self.turns.lock().next;
            sleep_until(next.unwrap_or_else(Instant::now)).await;
            self.call_due();
            // The turns that are due have been taken, or the next one who comes takes one.
            tokio::task::yield_now().await;
        }
    }

    fn call_due(&self) {
        let mut turns = self.turns.lock();
        let now = Instant::now();
        while let Some(call) = turns.call(now) {
            // It is there: it leaves the line under the same lock.
            let _ = call.send(Called::ItsTurn);
        }
    }
}

impl Waiting<'_> {
    /// Leaves the line. A turn that has come meanwhile goes to the next.
    fn leave(&mut self) {
        self.is_over = true;
        let mut turns = self.queue.turns.lock();
        let removed = turns.line.remove(self.arriving, self.number);
        if removed.is_none() && self.called.try_recv() == Ok(Called::ItsTurn) {
            turns.give_back();
            drop(turns);
            self.queue.call_due();
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.leave();
            self.arrivals.gave_up.increment(1);
        }
    }
}

/// The address by which a client takes turns.
fn address(info: &ConnectInfo, proxies: usize) -> Option<IpAddr> {
    let forwarded = proxies.checked_sub(1).and_then(|behind| {
        let headers = info.x_headers().filter(|(name, _)| name.as_str() == "x-forwarded-for");
        let addresses = headers.filter_map(|(_, value)| value.to_str().ok());
        let addresses: Vec<_> = addresses.flat_map(|list| list.split(',')).collect();
        let address = addresses.iter().rev().nth(behind)?.trim();
        let with_port = || address.parse().map(|address: std::net::SocketAddr| address.ip());
        address.parse().or_else(|_| with_port()).ok()
    });
    let address = forwarded.or_else(|| info.peer_addr.map(|address| address.ip()))?;
    Some(match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pipeline_test_support::{Recorded, settle};
    use proptest::prelude::*;

    use super::*;

    fn arrivals(rate: ArrivalRate) -> (Arc<Arrivals>, Recorded) {
        let (telemetry, recorded) = Recorded::new();
        (Arc::new(Arrivals::joins(Some(rate), &telemetry)), recorded)
    }

    /// Lets this many of a socket wait, and returns them in the order in which they came.
    async fn wait(
        arrivals: &Arc<Arrivals>,
        socket: usize,
        count: usize,
    ) -> Vec<tokio::task::JoinHandle<Result<(), TooMany>>> {
        let waiting = (0..count).map(|_| {
            let arrivals = arrivals.clone();
            tokio::spawn(async move { arrivals.join(socket).await })
        });
        let waiting = waiting.collect();
        settle().await;
        waiting
    }

    /// Takes the turns that are free after a pause.
    async fn take_free(arrivals: &Arrivals) {
        while arrivals.queue.as_ref().is_some_and(|queue| {
            let turns = queue.turns.lock();
            turns.next.is_none_or(|next| next <= Instant::now())
        }) {
            arrivals.join(0).await.unwrap();
        }
    }

    fn places(arrivals: &Arrivals) -> usize {
        arrivals.queue.as_ref().unwrap().turns.lock().line.count
    }

    #[tokio::test(start_paused = true)]
    async fn the_turns_of_those_that_have_left_go_to_the_others() {
        let (arrivals, recorded) = arrivals(ArrivalRate::new(10));
        take_free(&arrivals).await;
        let ghosts = wait(&arrivals, 1, 50).await;
        assert_eq!(arrivals.join(1).await, Err(TooMany), "there is no room");
        ghosts.iter().for_each(tokio::task::JoinHandle::abort);
        settle().await;
        assert_eq!(places(&arrivals), 0);
        let begun = Instant::now();
        assert_eq!(arrivals.join(2).await, Ok(()));
        assert!(begun.elapsed() <= Duration::from_millis(110), "{:?}", begun.elapsed());
        assert_eq!(recorded.counters("channel.joins_given_up"), [(String::new(), 50)]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_takes_all_places_delays_another_by_one_turn() {
        let (arrivals, recorded) = arrivals(ArrivalRate::new(10));
        take_free(&arrivals).await;
        let mut many = wait(&arrivals, 1, 50).await;
        let begun = Instant::now();
        let one = arrivals.join(2);
        assert_eq!(one.await, Ok(()));
        assert!(begun.elapsed() <= Duration::from_millis(210), "{:?}", begun.elapsed());
        // The newest of those that had all places was refused for it.
        assert_eq!(many.pop().unwrap().await.unwrap(), Err(TooMany));
        for waiting in many {
            assert_eq!(waiting.await.unwrap(), Ok(()));
        }
        assert_eq!(recorded.counters("channel.joins_over_rate"), [(String::new(), 1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_came_as_its_client_left_is_the_next_ones() {
        let (arrivals, _recorded) = arrivals(ArrivalRate::new(10));
        take_free(&arrivals).await;
        let queue = arrivals.queue.as_ref().unwrap();
        let mut leaving = Box::pin(arrivals.join(1));
        assert!(futures::poll!(&mut leaving).is_pending());
        let staying = wait(&arrivals, 2, 1).await.remove(0);
        // It is called, and does not run any more.
        tokio::time::advance(Duration::from_millis(100)).await;
        queue.call_due();
        assert_eq!(places(&arrivals), 1);
        drop(leaving);
        assert_eq!(places(&arrivals), 0);
        let begun = Instant::now();
        assert_eq!(staying.await.unwrap(), Ok(()));
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn fewer_may_wait_once_that_is_said() {
        let (arrivals, _recorded) = arrivals(ArrivalRate::new(10).max_waiting(9));
        take_free(&arrivals).await;
        arrivals.limit_waiting(3);
        arrivals.limit_waiting(5);
        let _waiting = wait(&arrivals, 1, 20).await;
        assert_eq!(places(&arrivals), 3);
    }

    #[test]
    fn clients_take_turns_by_their_address() {
        let of = |peer: Option<&str>, forwarded: &[&str], proxies| {
            let mut request = http::Request::get("/");
            for value in forwarded {
                request = request.header("x-forwarded-for", *value);
            }
            let mut request = request.body(()).unwrap();
            if let Some(peer) = peer {
                let peer = crate::socket::PeerAddr(peer.parse().unwrap());
                request.extensions_mut().insert(peer);
            }
            address(&ConnectInfo::of(&request), proxies).map(|address| address.to_string())
        };
        let peer = Some("192.0.2.1:7");
        let cases: &[(_, &[&str], _, _)] = &[
            (None, &[], 0, None),
            (peer, &["1.1.1.1"], 0, Some("192.0.2.1")),
            (Some("[::ffff:192.0.2.1]:7"), &[], 0, Some("192.0.2.1")),
            (Some("[2001:db8:1:2:3:4:5:6]:7"), &[], 0, Some("2001:db8:1:2::")),
            // What a client makes up is before what the proxies add.
            (peer, &["9.9.9.9, 1.1.1.1"], 1, Some("1.1.1.1")),
            (peer, &["9.9.9.9", "1.1.1.1:80"], 1, Some("1.1.1.1")),
            (peer, &["9.9.9.9, 1.1.1.1", "10.0.0.1"], 2, Some("1.1.1.1")),
            (peer, &["1.1.1.1"], 2, Some("192.0.2.1")),
            (peer, &["unknown"], 1, Some("192.0.2.1")),
            (peer, &[], 1, Some("192.0.2.1")),
        ];
        for (peer, forwarded, proxies, expected) in cases {
            assert_eq!(of(*peer, forwarded, *proxies).as_deref(), *expected, "{forwarded:?}");
        }
    }

    proptest! {
        #[test]
        fn turns_come_at_the_rate_and_go_round(
            per_second in 1_u32..5_000,
            room in 0_usize..30,
            steps in prop::collection::vec((0_u64..50, 0_usize..4, 0_usize..5), 1..300),
        ) {
            let interval = ArrivalRate::new(per_second).interval;
            let mut turns = Turns { interval, room, next: None, line: Line::new() };
            let begun = Instant::now() + Duration::from_secs(1);
            let (mut now, mut taken) = (begun, 0_u32);
            // Who waits, in the order in which they came.
            let mut waiting: Vec<(usize, u64, usize)> = Vec::new();
            for (at, (pause, group, what)) in steps.into_iter().enumerate() {
                now += Duration::from_millis(pause);
                // The groups that have been called since this one was.
                let mut round = std::collections::HashSet::new();
                while let Some(called) = turns.call(now) {
                    taken += 1;
                    let index = waiting.iter().position(|(client, ..)| *client == called).unwrap();
                    let (_, _, group) = waiting.remove(index);
                    let is_oldest = waiting[..index].iter().all(|(.., other)| *other != group);
                    prop_assert!(is_oldest);
                    if !round.insert(group) {
                        // Its second turn comes after that of all others that wait.
                        prop_assert!(waiting.iter().all(|(.., other)| round.contains(other)));
                        round = [group].into();
                    }
                }
                let arriving = Arriving::Socket(group);
                if what == 0 && let Some(index) = waiting.iter().position(|it| it.2 == group) {
                    let (client, number, _) = waiting.remove(index);
                    prop_assert_eq!(turns.line.remove(arriving, number), Some(client));
                } else {
                    match turns.come(arriving, at, now) {
                        Came::Now => taken += 1,
                        Came::Full => prop_assert!(waiting.len() >= room),
                        Came::Waits(number, refused) => {
                            waiting.push((at, number, group));
                            if let Some(refused) = refused {
                                let index = waiting.iter().position(|it| it.0 == refused).unwrap();
                                let (.., longest) = waiting.remove(index);
                                // It was the newest of those that have no fewer still.
                                prop_assert!(waiting[index..].iter().all(|it| it.2 != longest));
                                let of = |group| waiting.iter().filter(|it| it.2 == group).count();
                                prop_assert!(of(longest) >= of(group));
                            }
                        }
                    }
                }
                prop_assert!(turns.line.count == waiting.len() && waiting.len() <= room);
                prop_assert_eq!(turns.line.order.len(), turns.line.waiting.len());
                prop_assert_eq!(turns.line.lengths.len(), turns.line.waiting.len());
                let most = (now - begun + BURST).as_secs_f64() / interval.as_secs_f64() + 1.0;
                prop_assert!(f64::from(taken) <= most + 1e-6, "{taken} of {most}");
            }
        }
    }
}
