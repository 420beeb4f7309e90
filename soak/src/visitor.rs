//! One client of the soak: it joins, leaves, dies, freezes and comes back, and checks everything that it receives.

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
use serde_json::Value;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    client::{Client, Ended, Http, Message, PATIENCE, Transport},
    endings::{End, user_of},
    excuse::{Excuse, Known, excuse},
    presence::{People, Presences},
    random::Random,
    sequence::{Received, Sequence},
    soak::Run,
};

/// How often a client sends a heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(20);

/// How long the last items may take to arrive.
const ARRIVED_WITHIN: Duration = Duration::from_secs(30);

/// How long a client waits after an unexpected end.
const PAUSE: Duration = Duration::from_secs(1);

/// How often the server may answer that a connection that its client has lost has not ended, and the time between. A
/// session that did not take a message expires after some seconds.
const ASKS: usize = 200;
const ASKS_EVERY: Duration = Duration::from_millis(100);

/// For how long a client that cannot ask tries again.
const ANSWERS_WITHIN: Duration = Duration::from_secs(300);

/// Ticks that were late in this time before an end may have caused it.
const LATE_WITHIN: Duration = Duration::from_secs(10);

/// What the clients do.
#[derive(Clone, Debug)]
pub(crate) enum Phase {
    /// Everything.
    Churn,
    /// They only read.
    Quiet,
    /// Each compares what it has with what the server has.
    Check(Arc<Expected>),
    /// All leave, in different ways.
    Leave,
}

/// The state of the server when nothing happens any more.
#[derive(Debug)]
pub(crate) struct Expected {
    /// The last item of each user.
    pub(crate) numbers: Vec<u64>,
    /// The presences of each room.
    pub(crate) rooms: Vec<People>,
}

/// The payload of an item.
#[derive(Deserialize)]
struct Item {
    user: usize,
    from: usize,
    n: u64,
    k: u64,
}

#[derive(Deserialize)]
struct At {
    k: u64,
}

#[derive(Deserialize)]
struct Reply {
    status: String,
}

/// The answer to a mark.
#[derive(Deserialize)]
struct Marked {
    response: At,
}

/// A client and what it knows.
pub(crate) struct Visitor {
    run: Arc<Run>,
    number: usize,
    /// The number of this connection.
    visit: u64,
    user: usize,
    room: Option<usize>,
    transport: Transport,
    random: Random,
    sequence: Sequence,
    presences: Presences,
    /// The last reference of a message.
    reference: u64,
    /// The references of the user topic's last join, of its leave and its mark that are not answered, and of the room's
    /// join.
    joining: u64,
    leaving: Option<u64>,
    marking: Option<u64>,
    /// Whether it has not read for a while, and has no answer since: the server may have ended its connection.
    is_unsure: bool,
    entering: u64,
    /// When it joins again after a leave.
    rejoin_at: Option<Instant>,
    /// What it knows of this connection.
    known: Known,
    /// When its last poll was sent, and the longest time from one to the next.
    polls: Option<(Instant, Duration)>,
    is_counted: bool,
}

/// How a connection went on.
enum Turn {
    Continue,
    /// The client has ended the connection by itself.
    Over,
}

impl Visitor {
    pub(crate) fn new(run: Arc<Run>, number: usize) -> Self {
        // Two clients on each topic, and one in five over long polling.
        let user = user_of(number);
        let room = number.is_multiple_of(2).then_some(number / 2 % run.rooms);
        let transport = if number % 5 == 4 { Transport::LongPoll } else { Transport::WebSocket };
        Self {
            number,
            visit: 0,
            user,
            room,
            transport,
            random: Random::new(run.seed.wrapping_add(number as u64)),
            sequence: Sequence::new(user),
            presences: Presences::default(),
            reference: 0,
            joining: 0,
            leaving: None,
            marking: None,
            is_unsure: false,
            entering: 0,
            rejoin_at: None,
            known: Known::default(),
            polls: None,
            is_counted: false,
            run,
        }
    }

    /// Lives until all clients leave.
    pub(crate) async fn live(mut self, mut phase: watch::Receiver<Phase>) {
        // Not all connect at once.
        sleep(Duration::from_millis(self.random.below(3000))).await;
        while !matches!(*phase.borrow_and_update(), Phase::Leave) {
            self.visit += 1;
            self.known = Known::default();
            let began = Instant::now();
            self.at("connecting");
            match Client::connect(self.run.address, self.transport, &self.connection()).await {
                Ok(client) => {
                    self.run.totals.connects.add();
                    if let Err(ended) = self.stay(client, &mut phase).await {
                        self.known.lasted = began.elapsed();
                        self.known.seen = self.sequence.seen();
                        self.known.late = self.run.ticks.worst_within(LATE_WITHIN);
                        if let Some((at, longest)) = self.polls {
                            self.known.unpolled = longest.max(at.elapsed());
                        }
                        self.ended(&ended).await;
                        sleep(PAUSE).await;
                    }
                }
                Err(ended) => {
                    self.run.totals.refused.add();
                    self.run.violated(self.number, &format!("could not connect: {ended:?}"));
                    sleep(PAUSE).await;
                }
            }
            self.sequence.leave();
            self.count();
        }
    }

    /// The name of this connection, which the server counts the end of.
    fn connection(&self) -> String {
        format!("{}.{}", self.number, self.visit)
    }

    /// Counts an end that the client has not caused, by what the server has recorded of it.
    async fn ended(&self, ended: &Ended) {
        self.at("asking for the end");
        let end = self.recorded().await;
        let totals = &self.run.totals;
        match excuse(ended, end.as_ref(), self.known) {
            Ok(Excuse::Slow) => totals.slow.add(),
            Ok(Excuse::SlowAndBroken) => totals.slow_and_broken.add(),
            Ok(Excuse::Expired) => totals.expired.add(),
            Ok(Excuse::Untaken) => totals.untaken.add(),
            Err(fault) => self.run.violated(self.number, &fault),
        }
        if end.is_some_and(|end| end.reason == "Overflow") && self.known.frozen.is_zero() {
            totals.slow_and_reading.add();
        }
    }

    /// Waits until the server has recorded the end of this connection. A client that cannot ask tries again: only
    /// answers count.
    async fn recorded(&self) -> Option<End> {
        let path = format!("/ended?connection={}", self.connection());
        let (until, mut asked) = (Instant::now() + ANSWERS_WITHIN, 0);
        while asked < ASKS && Instant::now() < until {
            let asking =
                async { Http::connect(self.run.address).await?.request("GET", &path, "").await };
            if let Ok(Ok((200, body))) = timeout(PATIENCE, asking).await {
                if let Ok(Some(end)) = serde_json::from_slice(&body) {
                    return Some(end);
                }
                asked += 1;
            }
            sleep(ASKS_EVERY).await;
        }
        None
    }

    /// Says where this client is, in case it gets no further.
    fn at(&self, place: &'static str) {
        *self.run.places[self.number].lock() = place;
    }

    async fn stay(
        &mut self,
        mut client: Client,
        phase: &mut watch::Receiver<Phase>,
    ) -> Result<(), Ended> {
        (self.leaving, self.marking, self.rejoin_at) = (None, None, None);
        self.polls = client.polls();
        self.is_unsure = false;
        self.at("joining");
        self.join(&mut client).await?;
        if let Some(room) = self.room {
            self.enter(&mut client, room).await?;
        }
        // A client that has connected late takes part in the phase that has begun meanwhile.
        phase.mark_changed();
        let mut act_at = self.next_action();
        let mut beat_at = Instant::now() + HEARTBEAT;
        loop {
            let churning = matches!(*phase.borrow(), Phase::Churn);
            let rejoin_at = self.rejoin_at;
            self.at("reading");
            tokio::select! {
                received = client.receive() => {
                    self.polls = client.polls();
                    let received = received?;
                    self.received(&received)?;
                }
                () = sleep_until(act_at), if churning && self.rejoin_at.is_none() => {
                    act_at = self.next_action();
                    self.polls = client.polls();
                    self.at("acting");
                    client = match self.act(client).await? {
                        (Turn::Continue, Some(client)) => client,
                        _ => return Ok(()),
                    };
                    act_at = act_at.max(Instant::now());
                }
                () = sleep_until(rejoin_at.unwrap_or(beat_at)), if rejoin_at.is_some() => {
                    self.rejoin_at = None;
                    self.polls = client.polls();
                    self.join(&mut client).await?;
                }
                () = sleep_until(beat_at) => {
                    beat_at = Instant::now() + HEARTBEAT;
                    self.polls = client.polls();
                    let reference = self.next_reference();
                    let text = format!(r#"[null,"{reference}","phoenix","heartbeat",{{}}]"#);
                    client.send(&text).await?;
                    self.mark(&mut client).await?;
                }
                Ok(()) = phase.changed() => {
                    self.polls = client.polls();
                    let now = phase.borrow_and_update().clone();
                    match now {
                        Phase::Churn | Phase::Quiet => {}
                        Phase::Check(expected) => self.check(&mut client, &expected).await?,
                        Phase::Leave => {
                            self.run.totals.left.add();
                            if self.random.one_in(2) { client.reset() } else { client.close().await }
                            return Ok(());
                        }
                    }
                }
            }
            if self.is_unsure {
                self.mark(&mut client).await?;
            }
            self.count();
        }
    }

    fn next_action(&mut self) -> Instant {
        let calm = self.run.calm_millis;
        Instant::now() + Duration::from_millis(calm / 10 + self.random.below(calm))
    }

    fn next_reference(&mut self) -> u64 {
        self.reference += 1;
        self.reference
    }

    async fn join(&mut self, client: &mut Client) -> Result<(), Ended> {
        self.joining = self.next_reference();
        self.sequence.join();
        self.run.totals.joins.add();
        let (user, joining) = (self.user, self.joining);
        client.send(&format!(r#"["{joining}","{joining}","user:{user}","phx_join",{{}}]"#)).await
    }

    /// Asks for the last item that was broadcast: it has to arrive before the answer.
    async fn mark(&mut self, client: &mut Client) -> Result<(), Ended> {
        if !self.sequence.is_subscribed() || self.leaving.is_some() || self.marking.is_some() {
            return Ok(());
        }
        let (user, joining, reference) = (self.user, self.joining, self.next_reference());
        self.marking = Some(reference);
        client.send(&format!(r#"["{joining}","{reference}","user:{user}","mark",{{}}]"#)).await
    }

    async fn enter(&mut self, client: &mut Client, room: usize) -> Result<(), Ended> {
        self.presences = Presences::default();
        self.entering = self.next_reference();
        let entering = self.entering;
        client.send(&format!(r#"["{entering}","{entering}","room:{room}","phx_join",{{}}]"#)).await
    }

    /// Does something that clients do.
    async fn act(&mut self, mut client: Client) -> Result<(Turn, Option<Client>), Ended> {
        let run = self.run.clone();
        let totals = &run.totals;
        match self.random.below(10) {
            0..3 => {
                totals.resets.add();
                client.reset();
                sleep(Duration::from_millis(self.random.below(2000))).await;
                return Ok((Turn::Over, None));
            }
            3 => {
                totals.closes.add();
                client.close().await;
                return Ok((Turn::Over, None));
            }
            4..6 => {
                totals.freezes.add();
                if self.leaving.is_none() && self.random.one_in(self.run.bursts) {
                    self.run.totals.bursts.add();
                    let (user, joining) = (self.user, self.joining);
                    let reference = self.next_reference();
                    let text = format!(r#"["{joining}","{reference}","user:{user}","burst",{{}}]"#);
                    client.send(&text).await?;
                }
                let began = Instant::now();
                self.is_unsure = true;
                self.count();
                sleep(Duration::from_millis(500 + self.random.below(8000))).await;
                // An earlier answer may have waited.
                self.marking = None;
                self.known.frozen = self.known.frozen.max(began.elapsed());
            }
            6 => {
                // The room is left and entered again without waiting for the answer.
                if let Some(room) = self.room {
                    let (entering, reference) = (self.entering, self.next_reference());
                    let text =
                        format!(r#"["{entering}","{reference}","room:{room}","phx_leave",{{}}]"#);
                    client.send(&text).await?;
                    self.enter(&mut client, room).await?;
                }
            }
            _ if self.leaving.is_none() => {
                totals.leaves.add();
                self.mark(&mut client).await?;
                let (user, joining) = (self.user, self.joining);
                let reference = self.next_reference();
                self.leaving = Some(reference);
                let text = format!(r#"["{joining}","{reference}","user:{user}","phx_leave",{{}}]"#);
                client.send(&text).await?;
            }
            _ => {}
        }
        Ok((Turn::Continue, Some(client)))
    }

    /// Handles a message of the server.
    fn received(&mut self, text: &[u8]) -> Result<(), Ended> {
        let invalid = |_| Ended::Invalid(String::from_utf8_lossy(text).chars().take(200).collect());
        let (_, reference, topic, event, payload): Message<'_> =
            serde_json::from_slice(text).map_err(invalid)?;
        let reference = reference.and_then(|reference| reference.parse::<u64>().ok());
        let payload = payload.get();
        let checked = match (topic.split_once(':'), &*event) {
            (Some(("user", user)), "item") => {
                let item: Item = serde_json::from_str(payload).map_err(invalid)?;
                if user.parse() != Ok(self.user) {
                    let what = format!("an item of topic {topic}: {payload}");
                    self.run.violated(self.number, &what);
                }
                self.run.totals.items.add();
                let Item { user, from, n, k } = item;
                self.sequence.item(Received { user, from: from.min(2), n, k })
            }
            (Some(("user", _)), "at") => {
                let At { k } = serde_json::from_str(payload).map_err(invalid)?;
                self.sequence.subscribed(k)
            }
            (Some(("room", _)), "presence_state") => {
                let state: Value = serde_json::from_str(payload).map_err(invalid)?;
                self.presences.state(&state);
                Ok(())
            }
            (Some(("room", _)), "presence_diff") => {
                let diff: Value = serde_json::from_str(payload).map_err(invalid)?;
                self.presences.diff(diff);
                Ok(())
            }
            (_, "phx_reply") => {
                let Reply { status } = serde_json::from_str(payload).map_err(invalid)?;
                if status != "ok" {
                    self.run.violated(self.number, &format!("{topic} answered {payload}"));
                }
                if reference == Some(self.entering) {
                    // Earlier diffs are those of the join before.
                    self.presences = Presences::default();
                }
                if reference.is_some() && reference == self.marking {
                    (self.marking, self.is_unsure) = (None, false);
                    let Marked { response: At { k } } =
                        serde_json::from_str(payload).map_err(invalid)?;
                    self.run.totals.marks.add();
                    self.sequence.end(k)
                } else {
                    Ok(())
                }
            }
            // Items may arrive until here: the reply to the leave comes before.
            (Some(("user", _)), "phx_close") => {
                if self.leaving.take().is_none() {
                    self.run.violated(self.number, "the server closed a channel");
                }
                self.sequence.leave();
                let pause = Duration::from_millis(self.random.below(1000));
                self.rejoin_at = Some(Instant::now() + pause);
                Ok(())
            }
            (_, "phx_error") => {
                self.run.violated(self.number, &format!("a channel crashed: {topic}"));
                Ok(())
            }
            _ => Ok(()),
        };
        if let Err(violation) = checked {
            self.run.violated(self.number, &format!("user {}: {violation:?}", self.user));
        }
        Ok(())
    }

    /// Waits until the client has what the server has, and otherwise records the difference.
    async fn check(&mut self, client: &mut Client, expected: &Expected) -> Result<(), Ended> {
        self.at("checking");
        let last = expected.numbers[self.user];
        let room = self.room.map(|room| &expected.rooms[room]);
        let agrees = |visitor: &Self| {
            visitor.sequence.end(last).is_ok()
                && room.is_none_or(|room| visitor.presences.people() == Some(room))
        };
        let until = Instant::now() + ARRIVED_WITHIN;
        while !agrees(self) {
            let left = until.duration_since(Instant::now());
            let Ok(received) = timeout(left, client.receive()).await else { break };
            self.received(&received?)?;
        }
        if let Err(violation) = self.sequence.end(last) {
            self.run.violated(self.number, &format!("user {}: {violation:?}", self.user));
        }
        if let Some(room) = room
            && self.presences.people() != Some(room)
        {
            let seen = self.presences.people();
            self.run.violated(self.number, &format!("presences are {room:?}, and not {seen:?}"));
        }
        self.at("checked");
        self.run.totals.checked.add();
        Ok(())
    }

    /// Keeps the number of subscribed clients.
    fn count(&mut self) {
        let is_subscribed = self.sequence.is_subscribed()
            && self.leaving.is_none()
            && !self.is_unsure
            && (self.room.is_none() || self.presences.people().is_some());
        if is_subscribed != self.is_counted {
            self.is_counted = is_subscribed;
            self.run.subscribed(is_subscribed);
        }
    }
}
