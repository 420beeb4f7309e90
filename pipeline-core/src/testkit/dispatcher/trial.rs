//! A simulated stage around a dispatcher, which tracks every event and every demand.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Delivering, Rules, Step};
use crate::{
    dispatcher::{Deliveries, Delivery, Dispatcher, Marker, Subscriber},
    subscription::{StageId, SubscribeOptions, SubscriptionId},
};

/// A broken rule and the details.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) rule: &'static str,
    pub(super) detail: String,
}

type Kept = Result<(), Broken>;

fn broken<T>(rule: &'static str, detail: String) -> Result<T, Broken> {
    Err(Broken { rule, detail })
}

const ASKED: &str = "no more is sent than was asked for";
const KNOWN: &str = "only subscribers are sent events";
const ONE_FATE: &str = "every event is sent, left, queued or discarded: exactly one of these";
const ORDER: &str = "events keep their order";
const DEMAND: &str = "demand is conserved";
const SERVED: &str = "unmet demand can be served";
const UNASKED: &str = "without unmet demand nothing is taken, but to be discarded";
const REFUSAL: &str = "a refusal changes nothing";
const REFUSED: &str = "subscriptions to be refused are refused, and no others";
const MARKERS: &str = "markers come back once, in order, and just behind what preceded them";
const WANTED: &str =
    "an event goes to the subscribers that want it, and is discarded if there are none";
const TO_ALL: &str = "every event goes to all who want it";
const IN_VAIN: &str = "when all have asked for more than there is, everything is sent";

pub(super) struct Trial<'a, D> {
    dispatcher: D,
    rules: &'a Rules,
    /// The events that the dispatcher did not take.
    buffer: VecDeque<Held>,
    emitted: u64,
    subscriptions: u64,
    live: Vec<Subscription>,
    /// Subscriptions that were cancelled or refused.
    gone: Vec<SubscriptionId>,
    /// Events that the dispatcher has taken and not sent so far.
    taken: BTreeSet<u64>,
    /// The number of them that no subscriber wants.
    unwanted: usize,
    discarded: usize,
    marks: u64,
    /// Markers that the dispatcher has received and not returned.
    waiting: VecDeque<Waiting>,
    /// Events behind which a marker came back before they had been sent.
    overtaken: BTreeMap<u64, u64>,
    history: Vec<String>,
}

#[derive(Clone, Copy)]
enum Held {
    Event(u64),
    /// A marker, and the number of events emitted before it.
    Marker(u64, u64),
}

struct Subscription {
    number: u64,
    subscriber: usize,
    asked: usize,
    sent: usize,
    last: Option<u64>,
}

struct Waiting {
    marker: u64,
    /// The number of events emitted before it.
    before: u64,
    /// How many of those were queued in the dispatcher and have not been sent.
    queued: usize,
}

impl Subscription {
    fn id(&self) -> SubscriptionId {
        SubscriptionId::new(self.number)
    }

    fn outstanding(&self) -> usize {
        self.asked - self.sent
    }
}

impl<'a, D: Dispatcher<u64>> Trial<'a, D> {
    pub(super) fn new(dispatcher: D, rules: &'a Rules) -> Self {
        Self {
            dispatcher,
            rules,
            buffer: VecDeque::new(),
            emitted: 0,
            subscriptions: 0,
            live: Vec::new(),
            gone: Vec::new(),
            taken: BTreeSet::new(),
            unwanted: 0,
            discarded: 0,
            marks: 0,
            waiting: VecDeque::new(),
            overtaken: BTreeMap::new(),
            history: Vec::new(),
        }
    }

    /// The operations so far, one per line.
    pub(super) fn history(&self) -> &[String] {
        &self.history
    }

    /// Checks that the rules hold at the start.
    pub(super) fn begin(&self) -> Kept {
        self.audit()
    }

    pub(super) fn step(&mut self, step: Step) -> Kept {
        match step {
            Step::Subscribe(subscriber) => self.subscribe(subscriber)?,
            Step::Refused(n) => self.be_refused(n)?,
            Step::Cancel(n) if !self.live.is_empty() => self.cancel(n % self.live.len())?,
            Step::Ask(n, demand) if !self.live.is_empty() => {
                self.ask(n % self.live.len(), demand)?;
            }
            Step::Cancel(_) | Step::Ask(..) => {}
            Step::Emit(events) => self.emit(events as u64)?,
            Step::Mark => self.mark(),
        }
        self.settle()
    }

    /// All stages subscribe and ask for more than there is: no event may remain.
    pub(super) fn finish(&mut self) -> Kept {
        for subscriber in 0..self.rules.subscribers {
            if !self.is_subscribed(subscriber) {
                self.subscribe(subscriber)?;
                self.settle()?;
            }
        }
        let enough = self.buffer.len() + self.dispatcher.queued() + 1;
        for place in 0..self.live.len() {
            self.ask(place, enough)?;
            self.settle()?;
        }
        let queued = self.dispatcher.queued();
        if !self.buffer.is_empty() || queued > 0 {
            let detail =
                format!("{} could not be sent, and {queued} are queued", self.buffer.len());
            return broken(IN_VAIN, detail);
        }
        Ok(())
    }

    fn is_subscribed(&self, subscriber: usize) -> bool {
        self.live.iter().any(|live| live.subscriber == subscriber)
    }

    fn subscribe(&mut self, subscriber: usize) -> Kept {
        let options = (self.rules.options)(subscriber);
        let again = self.is_subscribed(subscriber);
        let accepted = self.introduce(subscriber, &options)?;
        if !accepted && !again {
            let detail = format!("subscriber {subscriber}, which has no other subscription");
            return broken(REFUSED, detail);
        }
        Ok(())
    }

    fn be_refused(&mut self, n: usize) -> Kept {
        let Some(options) = self.rules.refused.get(n) else { return Ok(()) };
        // A stage that never subscribes otherwise.
        let fresh = self.rules.subscribers + n;
        if self.introduce(fresh, options)? {
            return broken(REFUSED, format!("it accepted {options:?}"));
        }
        Ok(())
    }

    /// Returns whether the subscription was accepted.
    fn introduce(&mut self, subscriber: usize, options: &SubscribeOptions) -> Result<bool, Broken> {
        self.subscriptions += 1;
        let number = self.subscriptions;
        let stage = StageId::new(subscriber as u64);
        let before = (self.dispatcher.unmet(), self.dispatcher.queued());
        let id = SubscriptionId::new(number);
        let outcome = self.dispatcher.subscribe(Subscriber::new(id, stage, options));
        let accepted = outcome.is_ok();
        match outcome {
            Ok(()) => {
                self.note(format!("subscriber {subscriber} subscribes: #{number}"));
                let live = Subscription { number, subscriber, asked: 0, sent: 0, last: None };
                self.live.push(live);
            }
            Err(reason) => {
                self.note(format!("subscriber {subscriber} is refused: #{number}, {reason}"));
                self.gone.push(id);
                let after = (self.dispatcher.unmet(), self.dispatcher.queued());
                if before != after {
                    let detail = format!(
                        "unmet demand and queued events were {before:?} before, {after:?} after"
                    );
                    return broken(REFUSAL, detail);
                }
            }
        }
        self.audit()?;
        Ok(accepted)
    }

    fn cancel(&mut self, place: usize) -> Kept {
        let live = self.live.remove(place);
        self.note(format!("#{} leaves", live.number));
        self.gone.push(live.id());
        self.call(|dispatcher, out| dispatcher.cancel(live.id(), out))
    }

    fn ask(&mut self, place: usize, demand: usize) -> Kept {
        let live = &mut self.live[place];
        live.asked += demand;
        let (number, id) = (live.number, live.id());
        self.note(format!("#{number} asks for {demand}"));
        self.call(|dispatcher, out| dispatcher.ask(id, demand, out))
    }

    fn emit(&mut self, events: u64) -> Kept {
        let new = self.emitted..self.emitted + events;
        self.emitted = new.end;
        self.note(format!("the source emits {:?}", new.clone().collect::<Vec<_>>()));
        if self.buffer.is_empty() {
            self.dispatch(new.collect())
        } else {
            self.buffer.extend(new.map(Held::Event));
            Ok(())
        }
    }

    fn mark(&mut self) {
        self.marks += 1;
        self.note(format!("marker {} is put behind what there is", self.marks));
        self.buffer.push_back(Held::Marker(self.marks, self.emitted));
    }

    /// Offers the buffered events while there is demand for them.
    fn settle(&mut self) -> Kept {
        loop {
            match self.buffer.front() {
                None => return Ok(()),
                Some(&Held::Marker(marker, before)) => {
                    self.buffer.pop_front();
                    let queued = self.dispatcher.queued();
                    self.waiting.push_back(Waiting { marker, before, queued });
                    self.call(|dispatcher, out| dispatcher.info(Marker::new(marker), out))?;
                }
                Some(Held::Event(_)) if self.dispatcher.unmet() == 0 => return Ok(()),
                Some(Held::Event(_)) => {
                    let event = |held: &Held| match held {
                        Held::Event(event) => Some(*event),
                        Held::Marker(..) => None,
                    };
                    let run: VecDeque<u64> = self.buffer.iter().map_while(event).collect();
                    self.buffer.drain(..run.len());
                    self.dispatch(run)?;
                }
            }
        }
    }

    /// Passes events to the dispatcher. Events that it leaves go to the front of the buffer.
    fn dispatch(&mut self, given: VecDeque<u64>) -> Kept {
        let (unmet, queued) = (self.dispatcher.unmet(), self.dispatcher.queued());
        let mut left = given.clone();
        let mut out = Deliveries::new();
        self.dispatcher.dispatch(&mut left, &mut out);
        let mut rest = given.iter();
        if !left.iter().all(|event| rest.any(|other| other == event)) {
            let detail = format!("of {given:?}, it left {left:?}");
            return broken(ORDER, detail);
        }
        let taken: BTreeSet<u64> =
            given.into_iter().filter(|event| !left.contains(event)).collect();
        for event in &taken {
            let is_wanted = |subscriber| self.rules.wants(subscriber, *event);
            self.unwanted += usize::from(!(0..self.rules.subscribers).any(is_wanted));
        }
        if !left.is_empty() && (unmet > 0 || !taken.is_empty()) {
            self.note(format!("it leaves {left:?}"));
        }
        self.taken.extend(&taken);
        let sent = self.take_in(out, &taken)?;
        if unmet > 0 && taken.is_empty() {
            return broken(SERVED, format!("unmet() was {unmet}, but it took none of {left:?}"));
        }
        for event in left.into_iter().rev() {
            self.buffer.push_front(Held::Event(event));
        }
        let grown = self.dispatcher.queued().saturating_sub(queued);
        if grown > unmet || (unmet == 0 && sent) {
            let what = if sent { "sent events" } else { "queued events" };
            return broken(UNASKED, format!("unmet() was {unmet}, but it {what}"));
        }
        self.audit()
    }

    /// Calls another method of the dispatcher.
    fn call(&mut self, action: impl FnOnce(&mut D, &mut Deliveries<u64>)) -> Kept {
        let mut out = Deliveries::new();
        action(&mut self.dispatcher, &mut out);
        self.take_in(out, &BTreeSet::new())?;
        self.audit()
    }

    /// Processes the decisions of a call; `taken` are the events that the dispatcher took in this
    /// call. Returns whether it sent any event.
    fn take_in(&mut self, mut out: Deliveries<u64>, taken: &BTreeSet<u64>) -> Result<bool, Broken> {
        let mut receivers: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for delivery in out.drain() {
            match delivery {
                Delivery::Events { to, events } => self.receive(to, &events, &mut receivers)?,
                Delivery::Info(marker) => self.come_back(marker, &receivers)?,
            }
        }
        for event in receivers.keys() {
            self.taken.remove(event);
        }
        let (filtered, unroutable) = out.take_discarded();
        if filtered + unroutable > 0 {
            self.note(format!("it discards {}", filtered + unroutable));
            self.discarded += filtered + unroutable;
        }
        if self.rules.delivering == Delivering::ToAll {
            self.went_to_all(taken, &receivers)?;
        }
        Ok(!receivers.is_empty())
    }

    /// Processes a message to a subscriber.
    fn receive(
        &mut self,
        to: SubscriptionId,
        events: &[u64],
        receivers: &mut BTreeMap<u64, Vec<u64>>,
    ) -> Kept {
        let Some(place) = self.live.iter().position(|live| live.id() == to) else {
            return broken(KNOWN, format!("{events:?} went to {to:?}"));
        };
        let number = self.live[place].number;
        self.note(format!("#{number} is sent {events:?}"));
        let live = &mut self.live[place];
        if events.len() > live.outstanding() {
            let detail = format!("#{number} had asked for {} more", live.outstanding());
            return broken(ASKED, detail);
        }
        live.sent += events.len();
        for &event in events {
            if live.last.is_some_and(|last| last >= event) {
                return broken(ORDER, format!("#{number} is sent {event} too late"));
            }
            live.last = Some(event);
            let is_copy = self.rules.delivering == Delivering::ToAll;
            if !self.taken.contains(&event) || (!is_copy && receivers.contains_key(&event)) {
                return broken(ONE_FATE, format!("{event} was not there to be sent"));
            }
            if !self.rules.wants(live.subscriber, event) {
                return broken(WANTED, format!("#{number} does not want {event}"));
            }
            if let Some(marker) = self.overtaken.get(&event) {
                return broken(MARKERS, format!("{event} was before marker {marker}"));
            }
            let is_new = !receivers.contains_key(&event);
            receivers.entry(event).or_default().push(number);
            for waiting in
                self.waiting.iter_mut().filter(|waiting| is_new && event < waiting.before)
            {
                waiting.queued = waiting.queued.saturating_sub(1);
            }
        }
        let is_between = |waiting: &&Waiting| {
            events.iter().any(|event| *event < waiting.before)
                && events.iter().any(|event| *event >= waiting.before)
        };
        match self.waiting.iter().find(is_between) {
            Some(waiting) => {
                broken(MARKERS, format!("marker {} stands within {events:?}", waiting.marker))
            }
            None => Ok(()),
        }
    }

    /// Processes a returned marker.
    fn come_back(&mut self, marker: Marker, receivers: &BTreeMap<u64, Vec<u64>>) -> Kept {
        let next = self.waiting.front().map(|waiting| Marker::new(waiting.marker));
        let waiting = self.waiting.pop_front().filter(|_| next == Some(marker));
        let Some(Waiting { marker, before, .. }) = waiting else {
            return broken(MARKERS, format!("{marker:?} came, expected {next:?}"));
        };
        self.note(format!("marker {marker} comes back"));
        let unsent = self.taken.range(..before).filter(|event| !receivers.contains_key(event));
        self.overtaken.extend(unsent.map(|event| (*event, marker)));
        Ok(())
    }

    /// Checks that every event that was sent or taken went to all subscribers that want it.
    fn went_to_all(&self, taken: &BTreeSet<u64>, receivers: &BTreeMap<u64, Vec<u64>>) -> Kept {
        let none = Vec::new();
        for event in taken.iter().chain(receivers.keys()) {
            let wants = |live: &&Subscription| self.rules.wants(live.subscriber, *event);
            let mut wanting: Vec<u64> =
                self.live.iter().filter(wants).map(|live| live.number).collect();
            let mut went_to = receivers.get(event).unwrap_or(&none).clone();
            wanting.sort_unstable();
            went_to.sort_unstable();
            // Without `wanted`, a discard is not checked.
            let is_discard = went_to.is_empty() && self.rules.wanted.is_none();
            if went_to != wanting && !is_discard {
                let detail = format!("{event} went to {went_to:?}, expected {wanting:?}");
                return broken(TO_ALL, detail);
            }
        }
        Ok(())
    }

    /// The invariants after every call.
    fn audit(&self) -> Kept {
        let queued = self.dispatcher.queued();
        let unsent = self.taken.len();
        if unsent != queued + self.discarded {
            let detail = format!(
                "{unsent} were taken and not sent, but {queued} are queued and {} discarded",
                self.discarded
            );
            return broken(ONE_FATE, detail);
        }
        let is_exact = self.rules.wanted.is_some() && self.rules.delivering == Delivering::Once;
        if is_exact && self.discarded != self.unwanted {
            let detail =
                format!("{} were discarded, and {} are unwanted", self.discarded, self.unwanted);
            return broken(WANTED, detail);
        }
        for live in &self.live {
            let (said, true_) = (self.dispatcher.outstanding(live.id()), live.outstanding());
            if said != true_ {
                let detail = format!("outstanding(#{}) is {said}, expected {true_}", live.number);
                return broken(DEMAND, detail);
            }
        }
        for id in &self.gone {
            let said = self.dispatcher.outstanding(*id);
            if said > 0 {
                let detail = format!("{id:?} is not subscribed, but has {said} outstanding");
                return broken(DEMAND, detail);
            }
        }
        let all: usize = self.live.iter().map(Subscription::outstanding).sum();
        let unmet = self.dispatcher.unmet();
        if unmet > all.saturating_sub(queued) {
            let detail = format!("unmet() is {unmet}, of {all} outstanding and {queued} queued");
            return broken(DEMAND, detail);
        }
        match self.waiting.front() {
            Some(waiting) if waiting.queued == 0 || queued == 0 => {
                broken(MARKERS, format!("nothing precedes marker {} any more", waiting.marker))
            }
            _ => Ok(()),
        }
    }

    fn note(&mut self, line: String) {
        self.history.push(line);
    }
}

impl Rules {
    fn wants(&self, subscriber: usize, event: u64) -> bool {
        self.wanted.as_ref().is_none_or(|wanted| wanted(subscriber, event))
    }
}
