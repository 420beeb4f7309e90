//! The channel of a cart: one per tab. The tabs of a cart are kept in step, and hear when something in it is gone.

use std::{collections::BTreeSet, fmt, mem, ops::Range, sync::Arc, time::Duration};

use metrics::Gauge;
use pipeline::ws::{
    Channel, Payload, Topic,
    channel::{ChannelContext, HandleMessage, JoinContext, JoinError, Reply, Stop},
    payload::IntoPayload,
    presence::PresenceGuard,
    pubsub::{Broadcast, BroadcastError},
    token::TokenError,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{product::canonical_id, sockets::ShopperSocket};
use crate::{
    domain::{
        cart::{Cart, CartError, Ordered},
        catalogue::Catalogue,
        ids::is_cart_id,
    },
    pipelines::alerts,
    shop::{CART_TRACKER, Shop},
};

/// The event by which a tab says which cart it has: to all others when it has joined, and to a tab that has missed changes.
const CART_STATE: &str = "cart_state";

/// How many answers to its join a tab hears. Of very many tabs, most then find that nothing waits for theirs.
const MAX_ANSWERS: u32 = 16;

/// How many changes are noted while a tab hears answers. With more of them, an answer comes too late.
const MAX_SINCE: usize = 32;

/// How long a tab waits, in milliseconds, before it announces that an item of another tab has left for want of room. Within
/// this time, one of the tabs is the first, and the others hear it.
const ANNOUNCES_AFTER: Range<u64> = 250..2250;

/// How many items that have left wait to be announced. With more of them, a tab announces the next one at once.
const MAX_LEFT: usize = 16;

/// The channel `cart:{id}`.
pub struct CartChannel {
    shop: Arc<Shop>,
    cart: Cart,
    /// The items whose alerts it hears: those of the cart.
    hears: BTreeSet<i64>,
    /// The items of the cart that this tab has added.
    own: BTreeSet<i64>,
    /// The items that have left for want of room, until a tab has announced it.
    left: BTreeSet<i64>,
    asked: Option<Asked>,
    tracked: Tracked,
    _open: Open,
}

/// A tab has said which cart it has, and hears from those that know of more changes.
struct Asked {
    /// The topic of its own on which they answer, so that the number of messages grows with the tabs and not with their square.
    topic: String,
    answers: u32,
    /// The changes that it has done or heard of since. No answer that comes later has to have them.
    since: Vec<Updated>,
}

impl Asked {
    const PREFIX: &str = "cart_answer:";

    fn new() -> Self {
        let topic = format!("{}{:032x}", Self::PREFIX, fastrand::u128(..));
        Self { topic, answers: 0, since: Vec::new() }
    }
}

/// What a tab that has joined says to the others.
#[derive(Deserialize, Serialize)]
struct Asks<C> {
    #[serde(flatten)]
    cart: C,
    /// The topic on which to answer. Tabs of older nodes have none, and hear what all hear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    answer_to: Option<String>,
}

/// Whether admins see the tab.
enum Tracked {
    /// Not yet: with these fields it will be.
    Not { page: Option<String>, page_loaded_at: i64 },
    /// The presence leaves when this is dropped, however the channel ends.
    As { guard: PresenceGuard, page: Option<String>, page_loaded_at: i64 },
}

/// Counts an open cart.
struct Open(Gauge);

impl Open {
    fn new(carts: &Gauge) -> Self {
        carts.increment(1.0);
        Self(carts.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// Sent to the channel after its join.
#[derive(Debug)]
pub struct Joined;

/// Sent to the channel when no other tab has announced that an item has left.
#[derive(Debug)]
pub struct HasLeft(i64);

/// What another tab has done.
#[derive(Clone, Deserialize)]
struct Updated {
    #[serde(default)]
    added: Vec<i64>,
    #[serde(default)]
    removed: Vec<i64>,
    /// The key of the order that has bought what is removed.
    #[serde(default)]
    order: Option<String>,
}

impl fmt::Debug for CartChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CartChannel").field("cart", &self.cart).finish_non_exhaustive()
    }
}

impl Channel for CartChannel {
    type Socket = ShopperSocket;
    type Config = Arc<Shop>;

    const INTERCEPT: &'static [&'static str] = &["cart_updated", CART_STATE];

    async fn join(
        topic: &Topic,
        payload: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        let shop = cx.config().clone();
        let params: Map<String, Value> = payload.parse().unwrap_or_default();
        let text = |name: &str| params.get(name).and_then(Value::as_str);
        let id = topic.rest();
        if !is_cart_id(id) {
            return Err(JoinError::unauthorized());
        }
        let now = shop.clock.now();
        match shop.signers.page.verify_optional::<String>(text("token"), now) {
            Ok(of) if of == id => {}
            Err(TokenError::Expired) => return Err(JoinError::reason("expired")),
            Ok(_) | Err(_) => return Err(JoinError::unauthorized()),
        }
        let catalogue =
            shop.inventory.snapshot().ok_or_else(|| JoinError::reason("unavailable"))?;
        let is_known = |item| catalogue.item(item).is_some();
        let mut cart = Cart::restore(text("serialized"), &shop.rules, now, is_known);
        // The page that says what was bought.
        let bought = shop.signers.ordered.verify_optional::<Ordered>(text("bought"), now).ok();
        if let Some(Ordered { order, items, .. }) = bought.filter(|it| it.cart == id) {
            cart.take_out(&order, &items);
        }
        // It listens before it looks, so a sale in between is not missed.
        let hears: BTreeSet<i64> = cart.item_ids().collect();
        for item in &hears {
            cx.subscribe(&alerts::topic(*item));
        }
        cx.send_after(Duration::ZERO, Joined)?;
        // What is no text is no page of the shop either.
        let page = params.get("page").map(|page| match page.as_str() {
            Some(page) => page_of(page, shop.bench).to_owned(),
            None => OTHER.to_owned(),
        });
        let tracked = Tracked::Not { page, page_loaded_at: shop.clock.now_ms() };
        let open = Open::new(&shop.metrics.carts);
        let (own, left) = Default::default();
        Ok(Self { shop, cart, hears, own, left, asked: None, tracked, _open: open })
    }

    async fn handle_in(
        &mut self,
        event: &str,
        payload: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        let changed = match event {
            "add_item" => {
                item_id(&payload).and_then(|item| self.add(item, cx).map(|()| (Some(item), None)))
            }
            "remove_item" => item_id(&payload)
                .and_then(|item| self.remove(item, cx).map(|()| (None, Some(item)))),
            other => return Err(Stop::unknown_event(other)),
        };
        match changed {
            Ok((added, removed)) => {
                let (done, undone) = (added.as_slice(), removed.as_slice());
                self.note(cx, &Updated::of(done, undone));
                let cart = self.draw()?;
                let updated = json!({
                    "serialized": cart["serialized"],
                    "added": done,
                    "removed": undone,
                });
                // The commit of a cart is in this tab. A node that does not hear of it has it with the next join.
                tell_others(cx, "cart_updated", updated);
                self.track(cx)?;
                Ok(Reply::ok().with(cart))
            }
            Err(why) => Ok(Reply::error().with(json!({ "error": why }))),
        }
    }

    async fn handle_out(
        &mut self,
        event: &str,
        payload: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<(), Stop> {
        let before = self.cart.clone();
        if event == CART_STATE {
            self.compare(payload.parse()?, cx);
        } else {
            let updated: Updated = payload.parse()?;
            self.note(cx, &updated);
            self.follow(updated, cx);
        }
        self.show_unless_like(&before, cx)
    }

    /// An item of the cart is gone, or there again; or another tab answers that it knows of more changes.
    async fn handle_broadcast(
        &mut self,
        broadcast: Broadcast,
        cx: &ChannelContext<Self>,
    ) -> Result<(), Stop> {
        if broadcast.event() != CART_STATE {
            cx.push("cart", self.draw()?)?;
            return Ok(());
        }
        let before = self.cart.clone();
        self.hear_answer(broadcast.payload().parse()?, cx);
        self.show_unless_like(&before, cx)
    }
}

impl HandleMessage<Joined> for CartChannel {
    /// The cart that the join has brought is older than the subscription. A tab that has changed it in between knows of more
    /// changes, and answers.
    async fn handle_message(&mut self, _: Joined, cx: &ChannelContext<Self>) -> Result<(), Stop> {
        let asked = Asked::new();
        cx.subscribe(&asked.topic);
        let asks = Asks { cart: &self.cart, answer_to: Some(asked.topic.clone()) };
        tell_others(cx, CART_STATE, &asks);
        self.asked = Some(asked);
        cx.push("cart", self.draw()?)?;
        self.track(cx)
    }
}

impl HandleMessage<HasLeft> for CartChannel {
    async fn handle_message(
        &mut self,
        HasLeft(item): HasLeft,
        cx: &ChannelContext<Self>,
    ) -> Result<(), Stop> {
        if self.left.remove(&item) {
            self.announce_left(&[item], cx);
        }
        Ok(())
    }
}

impl Updated {
    fn of(added: &[i64], removed: &[i64]) -> Self {
        Self { added: added.to_vec(), removed: removed.to_vec(), order: None }
    }
}

impl CartChannel {
    fn add(&mut self, item: i64, cx: &ChannelContext<Self>) -> Result<(), &'static str> {
        self.may_add(item)?;
        self.cart.add(item, &self.shop.rules).map_err(reason)?;
        self.own.insert(item);
        self.left.remove(&item);
        self.listen(cx);
        Ok(())
    }

    /// Does what another tab has done.
    fn follow(&mut self, updated: Updated, cx: &ChannelContext<Self>) {
        let Updated { added, removed, order } = updated;
        for item in added.iter().chain(&removed) {
            self.left.remove(item);
        }
        if let Some(order) = order {
            self.cart.take_out(&order, &removed);
            return;
        }
        let left = self.cart.follow(&added, &removed, &self.shop.rules);
        self.leave(left, cx);
    }

    /// Has the other tabs hear of items that have left for want of room: one that has removed something since has room for
    /// them. All tabs find at the same moment that they have left. The one that has added an item announces it, and if it is
    /// there no more, the first one of the others whose wait is over.
    fn leave(&mut self, mut left: Vec<i64>, cx: &ChannelContext<Self>) {
        left.retain(|item| {
            let is_own = self.own.contains(item);
            let wait = Duration::from_millis(fastrand::u64(ANNOUNCES_AFTER));
            // One that waits already is announced once.
            let waits = !is_own
                && (self.left.contains(item)
                    || self.left.len() < MAX_LEFT && cx.send_after(wait, HasLeft(*item)).is_ok());
            if waits {
                self.left.insert(*item);
            }
            !waits
        });
        self.announce_left(&left, cx);
    }

    fn announce_left(&mut self, left: &[i64], cx: &ChannelContext<Self>) {
        if !left.is_empty() {
            self.cart.count_change();
            tell_others(cx, "cart_updated", json!({ "added": [], "removed": left }));
        }
    }

    /// Compares the cart with that of a tab that has joined: the one that has missed changes becomes the other.
    fn compare(&mut self, asks: Asks<Cart>, cx: &ChannelContext<Self>) {
        let Asks { cart: other, answer_to } = asks;
        if self.cart.changes() > other.changes() {
            match answer_to.filter(|topic| topic.starts_with(Asked::PREFIX)) {
                Some(topic) if !cx.pubsub().has_subscribers(&topic) => {}
                Some(topic) => said(cx.pubsub().broadcast(&topic, CART_STATE, &self.cart)),
                None => tell_others(cx, CART_STATE, &self.cart),
            }
        }
        self.catch_up(other);
    }

    /// Takes over the cart of a tab that knows of more changes, and does in it what was done since this tab has asked.
    fn hear_answer(&mut self, other: Cart, cx: &ChannelContext<Self>) {
        let Some(asked) = &mut self.asked else { return };
        asked.answers += 1;
        let (is_last, since) = (asked.answers >= MAX_ANSWERS, asked.since.clone());
        if is_last {
            self.hear_no_answers(cx);
        }
        if self.catch_up(other) {
            for updated in since {
                self.follow(updated, cx);
            }
        }
    }

    fn hear_no_answers(&mut self, cx: &ChannelContext<Self>) {
        if let Some(asked) = self.asked.take() {
            cx.unsubscribe(&asked.topic);
        }
    }

    /// Notes a change while answers may come that do not have it.
    fn note(&mut self, cx: &ChannelContext<Self>, updated: &Updated) {
        let Some(asked) = &mut self.asked else { return };
        if asked.since.len() < MAX_SINCE {
            asked.since.push(updated.clone());
        } else {
            self.hear_no_answers(cx);
        }
    }

    fn catch_up(&mut self, other: Cart) -> bool {
        let catalogue = self.shop.inventory.snapshot();
        // It is loaded, or the tab would not have joined.
        let is_known = |item| catalogue.as_deref().is_none_or(|it| it.item(item).is_some());
        self.cart.catch_up(other, &self.shop.rules, is_known)
    }

    /// Shows the cart to the client if it is another than before.
    fn show_unless_like(&mut self, before: &Cart, cx: &ChannelContext<Self>) -> Result<(), Stop> {
        self.listen(cx);
        if !self.cart.is_like(before) {
            cx.push("cart", self.draw()?)?;
            self.track(cx)?;
        }
        Ok(())
    }

    fn may_add(&self, item: i64) -> Result<(), &'static str> {
        let catalogue = self.shop.inventory.snapshot();
        let found = catalogue.as_deref().and_then(|catalogue| catalogue.item_with_product(item));
        let Some((found, product)) = found else { return Err("unknown_item") };
        if self.cart.has(item) {
            Err(reason(CartError::DuplicateItem))
        } else if !product.released {
            Err("not_released")
        } else if found.level().is_out() {
            Err("out_of_stock")
        } else {
            Ok(())
        }
    }

    fn remove(&mut self, item: i64, cx: &ChannelContext<Self>) -> Result<(), &'static str> {
        self.cart.remove(item).map_err(reason)?;
        self.listen(cx);
        Ok(())
    }

    /// Listens to the alerts of exactly the items in the cart. It does so before the cart is drawn, so a sale in between is
    /// not missed.
    fn listen(&mut self, cx: &ChannelContext<Self>) {
        let wanted: BTreeSet<i64> = self.cart.item_ids().collect();
        for item in self.hears.difference(&wanted) {
            cx.unsubscribe(&alerts::topic(*item));
        }
        for item in wanted.difference(&self.hears) {
            cx.subscribe(&alerts::topic(*item));
        }
        self.own.retain(|item| wanted.contains(item));
        self.hears = wanted;
    }

    /// The cart as clients get it, as of this moment.
    fn draw(&self) -> Result<Value, TokenError> {
        let catalogue = self.shop.inventory.snapshot();
        draw(&self.cart, catalogue.as_deref(), &self.shop)
    }

    /// Shows the tab to the admins, with the items that it has now.
    fn track(&mut self, cx: &ChannelContext<Self>) -> Result<(), Stop> {
        let items: Vec<i64> = self.cart.item_ids().collect();
        let meta = |page: &Option<String>, at: i64| json!({ "page": page, "page_loaded_at": at, "items": items });
        match &mut self.tracked {
            Tracked::As { guard, page, page_loaded_at } => {
                guard.update(&meta(page, *page_loaded_at))?;
            }
            Tracked::Not { page, page_loaded_at } => {
                let (page, at) = (mem::take(page), *page_loaded_at);
                let key = self.shop.keys.of(cx.topic().rest());
                let guard =
                    self.shop.presence.track_detached(CART_TRACKER, &key, &meta(&page, at))?;
                self.tracked = Tracked::As { guard, page, page_loaded_at: at };
            }
        }
        Ok(())
    }
}

/// Broadcasts to the other tabs of the cart.
fn tell_others(cx: &ChannelContext<CartChannel>, event: &str, payload: impl IntoPayload) {
    said(cx.broadcast_from(event, payload));
}

fn said(said: Result<(), BroadcastError>) {
    if let Err(error) = said {
        tracing::warn!(error = error.to_string(), "a cart was not updated on all nodes");
    }
}

/// A cart as clients get it.
pub(crate) fn draw(
    cart: &Cart,
    catalogue: Option<&Catalogue>,
    shop: &Shop,
) -> Result<Value, TokenError> {
    let drawn = |id| {
        let (item, product) = catalogue?.item_with_product(id)?;
        Some(json!({
            "id": item.id,
            "size": item.size,
            "sku": item.sku,
            "brand": product.brand,
            "color": product.color,
            "name": product.name,
            "price_usd": product.price_usd,
            "main_image_url": product.main_image_url,
            "released": product.released,
            "out_of_stock": item.level().is_out(),
        }))
    };
    let items: Vec<Value> = cart.item_ids().filter_map(drawn).collect();
    let serialized = cart.serialize(&shop.rules, shop.clock.now())?;
    Ok(json!({ "items": items, "serialized": serialized }))
}

/// The id of an item in an event: a number, or its plain decimal text.
fn item_id(payload: &Payload) -> Result<i64, &'static str> {
    let payload: Map<String, Value> = payload.parse().map_err(|_| "invalid_item")?;
    let id = match payload.get("item_id") {
        Some(Value::Number(id)) => id.as_i64().filter(|id| *id >= 0),
        Some(Value::String(id)) => canonical_id(id),
        _ => None,
    };
    id.ok_or("invalid_item")
}

fn reason(error: CartError) -> &'static str {
    match error {
        CartError::DuplicateItem => "duplicate_item",
        CartError::NotFound => "not_found",
        CartError::Full => "cart_full",
    }
}

/// A page that is none of the shop's.
pub(crate) const OTHER: &str = "other";

/// The shop's own pages.
const PAGES: [&str; 9] = [
    "/",
    "/drops",
    "/checkout",
    "/checkout/complete",
    "/app",
    "/app/drops",
    "/app/feed",
    "/app/count",
    "/app/cart",
];

/// A page as the dashboard names it. Clients say what they like, so only the shop's own pages have names.
fn page_of(page: &str, bench: bool) -> &str {
    let is_bench = || bench && ["/bench/1", "/bench/2", "/bench/3", "/bench/4"].contains(&page);
    if PAGES.contains(&page) || is_bench() { page } else { OTHER }
}
