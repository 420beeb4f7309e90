//! A store for tests: a database in memory that can be taken away, and the clock of tokio.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, UNIX_EPOCH},
};

use axum::{
    body::Body,
    http::{HeaderMap, Request, StatusCode, header::SET_COOKIE},
    response::Response,
};
use futures::FutureExt;
use http_body_util::BodyExt;
use parking_lot::Mutex;
use pipeline::{
    stage::{Consumer, ConsumerHandle},
    telemetry::Telemetry,
    ws::{
        channel_test::{JoinRefused, TestChannel, TestEndpoint, TestSocket},
        endpoint::EndpointBuilder,
        pubsub::{Adapter, AdapterError, Broadcast, LocalNode},
        socket::ConnectInfo,
    },
};
use serde_json::{Value, json};
use store::{
    clock::Clock,
    database::{
        Answer, BoughtBefore, COMPARED, CheckOut, Database, DatabaseError, Order, PlacedOrder,
        Release, Sale, SqliteDatabase,
    },
    domain::{
        catalogue::{Catalogue, Item, Product},
        change::{Change, Row},
        ids,
    },
    pipelines::Duties,
    shop::ShopOptions,
    store::Store,
};
use tokio::sync::watch;
use tower_service::Service;

/// How long tests wait for what is sure to come. It is no measure: on a paused clock it takes no time.
pub const LONG: Duration = Duration::from_secs(60);

/// The address of the proxy that nodes trust.
pub const PROXY: [u8; 4] = [10, 0, 0, 1];

/// A database in memory, which tests take away and look into.
#[derive(Clone, Default)]
pub struct Memory(Arc<Inner>);

#[derive(Default)]
struct Inner {
    rows: Mutex<Rows>,
    /// What becomes of transactions that wait for their end.
    held: Mutex<Option<watch::Receiver<Option<End>>>>,
    is_away: AtomicBool,
    panics: AtomicBool,
    calls: AtomicU64,
}

/// How a transaction ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    Commit,
    RollBack,
}

#[derive(Clone, Default)]
struct Rows {
    catalogue: Catalogue,
    orders: Vec<PlacedOrder>,
}

impl Memory {
    pub fn of(catalogue: Catalogue) -> Self {
        let memory = Self::default();
        memory.0.rows.lock().catalogue = catalogue;
        memory
    }

    /// Takes the database away, or gives it back.
    pub fn take_away(&self, is_away: bool) {
        self.0.is_away.store(is_away, Relaxed);
    }

    /// Has the next call panic.
    pub fn panic_next(&self) {
        self.0.panics.store(true, Relaxed);
    }

    /// Has sales and checkouts wait between their last write and their end, until it is said how they end.
    pub fn hold(&self) -> watch::Sender<Option<End>> {
        let (end, held) = watch::channel(None);
        *self.0.held.lock() = Some(held);
        end
    }

    /// How often the database was asked.
    pub fn calls(&self) -> u64 {
        self.0.calls.load(Relaxed)
    }

    pub fn catalogue(&self) -> Catalogue {
        self.0.rows.lock().catalogue.clone()
    }

    pub fn count(&self, item: i64) -> i64 {
        self.catalogue().item(item).unwrap().available_count
    }

    /// Changes a row without anything being told, as a lost message would.
    pub fn change(&self, change: Change) {
        self.0.rows.lock().catalogue.apply(&change).unwrap();
    }

    /// Loses what was committed since this was read, as a database that is restored.
    pub fn restore(&self, catalogue: Catalogue) {
        self.0.rows.lock().catalogue = catalogue;
    }

    fn answer<T: Send + 'static>(&self, run: impl FnOnce(&mut Rows) -> T) -> Answer<'_, T> {
        self.0.calls.fetch_add(1, Relaxed);
        let answer = if self.0.is_away.load(Relaxed) {
            Err(DatabaseError::Away("a test has taken it".to_owned()))
        } else {
            Ok(run(&mut self.0.rows.lock()))
        };
        let panics = self.0.panics.swap(false, Relaxed);
        async move {
            tokio::task::yield_now().await;
            assert!(!panics, "a test has told it to");
            answer
        }
        .boxed()
    }
}

impl Memory {
    /// A transaction whose end a test may hold back. Others do not see what it has written until then.
    fn transact<T: Send + 'static>(&self, run: impl FnOnce(&mut Rows) -> T) -> Answer<'_, T> {
        let Some(mut held) = self.0.held.lock().take() else { return self.answer(run) };
        let mut rows = self.0.rows.lock().clone();
        let answer = run(&mut rows);
        async move {
            let end = *held.wait_for(Option::is_some).await.unwrap();
            if end == Some(End::RollBack) {
                return Err(DatabaseError::Failed("it was rolled back".to_owned()));
            }
            *self.0.rows.lock() = rows;
            Ok(answer)
        }
        .boxed()
    }
}

fn stock(rows: &mut Rows, id: i64, to: impl FnOnce(i64) -> i64) -> Option<Change> {
    let item = rows.catalogue.item(id)?;
    let change = Change::Item { id, available_count: to(item.available_count), rev: item.rev + 1 };
    rows.catalogue.apply(&change).unwrap();
    Some(change)
}

impl Database for Memory {
    fn load(&self) -> Answer<'_, Catalogue> {
        self.answer(|rows| rows.catalogue.clone())
    }

    fn release(&self, product: i64) -> Answer<'_, Release> {
        self.answer(|rows| {
            let Some(found) = rows.catalogue.product(product) else {
                return Release::UnknownProduct;
            };
            if found.released {
                return Release::AlreadyReleased;
            }
            let change = Change::Product { id: product, released: true, rev: found.rev + 1 };
            rows.catalogue.apply(&change).unwrap();
            Release::Released(change)
        })
    }

    fn schedule(&self, product: i64, at_ms: i64) -> Answer<'_, bool> {
        self.answer(|rows| {
            let products = rows.catalogue.products().map(|it| {
                let is_it = it.id == product && !it.released;
                let (release_at, rev) = (Some(at_ms), it.rev + 1);
                if is_it { Product { release_at, rev, ..(**it).clone() } } else { (**it).clone() }
            });
            let items = rows.catalogue.items().map(|it| (**it).clone()).collect();
            rows.catalogue = Catalogue::new(products.collect(), items);
            true
        })
    }

    fn sell(&self, item: i64) -> Answer<'_, Sale> {
        self.transact(|rows| match rows.catalogue.item(item).map(|it| it.available_count) {
            None => Sale::UnknownItem,
            Some(0) => Sale::OutOfStock,
            Some(_) => Sale::Sold(stock(rows, item, |count| count - 1).unwrap()),
        })
    }

    fn stock(&self, item: i64, available_count: i64) -> Answer<'_, Option<Change>> {
        self.answer(|rows| stock(rows, item, |_| available_count))
    }

    fn raise(&self, raised: Vec<(Row, i64)>) -> Answer<'_, Vec<Change>> {
        self.answer(move |rows| {
            let mut changes = Vec::new();
            for (row, rev) in raised {
                let rev = rev + 1;
                let change = match row {
                    Row::Item(id) => {
                        let available_count = rows.catalogue.item(id).unwrap().available_count;
                        Change::Item { id, available_count, rev }
                    }
                    Row::Product(id) => {
                        let released = rows.catalogue.product(id).unwrap().released;
                        Change::Product { id, released, rev }
                    }
                };
                rows.catalogue.apply(&change).unwrap();
                changes.push(change);
            }
            changes
        })
    }

    fn check_out(&self, order: Order) -> Answer<'_, CheckOut> {
        self.transact(|rows| {
            let same = |it: &PlacedOrder| it.cart == order.cart && it.key == order.key;
            if let Some(placed) = rows.orders.iter().find(|it| same(it)) {
                let is_it = placed.items.iter().map(|(item, _)| *item).eq(order.items);
                return if is_it { CheckOut::Repeated } else { CheckOut::OtherItems };
            }
            let last = rows.orders.iter().rev().filter(|it| it.cart == order.cart).take(COMPARED);
            let earlier = last.map(|it| BoughtBefore {
                key: it.key.clone(),
                items: it.items.iter().map(|(item, _)| *item).collect(),
            });
            let overlooked: Vec<_> = earlier.filter(|earlier| order.overlooks(earlier)).collect();
            if !overlooked.is_empty() {
                return CheckOut::BoughtBefore(overlooked);
            }
            let (mut gone, mut not_for_sale, mut items) = (Vec::new(), Vec::new(), Vec::new());
            for id in &order.items {
                match rows.catalogue.item_with_product(*id) {
                    Some((item, product)) if product.released => {
                        items.push((*id, product.price_usd));
                        if item.available_count == 0 {
                            gone.push(*id);
                        }
                    }
                    _ => not_for_sale.push(*id),
                }
            }
            if !not_for_sale.is_empty() {
                return CheckOut::NotForSale(not_for_sale);
            }
            if !gone.is_empty() {
                return CheckOut::Gone(gone);
            }
            let sell = |id: &i64| stock(rows, *id, |count| count - 1).unwrap();
            let changes = order.items.iter().map(sell).collect();
            let id = rows.orders.len() as i64 + 1;
            let Order { key, cart, placed_at, .. } = order;
            rows.orders.push(PlacedOrder { id, key, cart, placed_at, items });
            CheckOut::Placed(changes)
        })
    }

    fn orders(&self) -> Answer<'_, Vec<PlacedOrder>> {
        self.answer(|rows| rows.orders.clone())
    }
}

/// Product 1 with the items 1 to 3, product 2 with 4 to 8, all of level low.
pub fn shoes() -> Catalogue {
    let product = |id: i64| Product {
        id,
        position: id,
        sku: format!("P{id}"),
        brand: "Fernweh".to_owned(),
        name: format!("Model {id}"),
        color: "ember".to_owned(),
        price_usd: 100 + id,
        main_image_url: "/photos/runner-ember.svg".to_owned(),
        released: false,
        release_at: None,
        rev: 1,
    };
    let item = |id: i64| Item {
        id,
        product_id: if id <= 3 { 1 } else { 2 },
        sku: format!("I{id}"),
        size: (5 + id).to_string(),
        available_count: 10,
        rev: 1,
    };
    Catalogue::new(vec![product(1), product(2)], (1..=8).map(item).collect())
}

/// Connects nodes in one process.
#[derive(Clone, Default)]
struct Switch(Arc<Mutex<BTreeMap<&'static str, LocalNode>>>);

struct Cable {
    name: &'static str,
    switch: Switch,
}

impl Adapter for Cable {
    fn node_name(&self) -> &str {
        self.name
    }

    fn start(&self, node: LocalNode) {
        self.switch.0.lock().insert(self.name, node);
    }

    fn broadcast(&self, broadcast: &Broadcast) -> Result<(), AdapterError> {
        let nodes = self.switch.0.lock().clone();
        nodes.iter().filter(|(name, _)| **name != self.name).try_for_each(|(_, node)| {
            node.deliver(broadcast)?;
            Ok(())
        })
    }

    fn direct_broadcast(&self, name: &str, broadcast: &Broadcast) -> Result<(), AdapterError> {
        if let Some(node) = self.switch.0.lock().get(name).cloned() {
            node.deliver(broadcast)?;
        }
        Ok(())
    }
}

/// A node of the store without a network.
pub struct Node {
    pub store: Store,
    pub kit: TestEndpoint,
    pub database: Memory,
    switch: Switch,
}

impl Node {
    /// Ends what the nodes say to each other, without a word to any of them.
    pub fn unplug(&self) {
        self.switch.0.lock().clear();
    }

    /// A node whose inventory is loaded.
    pub async fn open() -> Self {
        Self::with(shoes()).await
    }

    /// A node with both products released.
    pub async fn selling() -> Self {
        let node = Self::open().await;
        node.release(1).await;
        node.release(2).await;
        node.settle().await;
        node
    }

    pub async fn with(catalogue: Catalogue) -> Self {
        let node = Self::over(Memory::of(catalogue), Telemetry::global());
        eventually(|| node.store.shop.inventory.is_loaded()).await;
        node
    }

    /// Two nodes with one database, both products released.
    pub async fn two_selling() -> [Self; 2] {
        let nodes = Self::two().await;
        nodes[0].release(1).await;
        nodes[0].release(2).await;
        nodes[0].settle().await;
        nodes
    }

    /// Two nodes with one database.
    pub async fn two() -> [Self; 2] {
        Self::two_with(Telemetry::global()).await
    }

    /// Two nodes with one database. The first one's metrics go there.
    pub async fn two_with(telemetry: Telemetry) -> [Self; 2] {
        let (database, switch) = (Memory::of(shoes()), Switch::default());
        let node = |name, telemetry| {
            let cable = Cable { name, switch: switch.clone() };
            let duties = Duties::default();
            let node = Self::of(database.clone(), duties, telemetry, |it| it.adapter(cable));
            Self { switch: switch.clone(), ..node }
        };
        let nodes = [node("a", telemetry), node("b", Telemetry::global())];
        for node in &nodes {
            eventually(|| node.store.shop.inventory.is_loaded()).await;
        }
        nodes
    }

    /// A node that loads what it can.
    pub fn over(database: Memory, telemetry: Telemetry) -> Self {
        Self::of(database, Duties::default(), telemetry, |endpoint| endpoint)
    }

    /// A node whose stage that tells takes so much longer for each event.
    pub async fn telling_late(catalogue: Catalogue, tell_late: Duration) -> Self {
        let duties = Duties { tell_late, ..Duties::default() };
        let node = Self::of(Memory::of(catalogue), duties, Telemetry::global(), |it| it);
        eventually(|| node.store.shop.inventory.is_loaded()).await;
        node
    }

    fn of(
        database: Memory,
        duties: Duties,
        telemetry: Telemetry,
        endpoint: impl FnOnce(EndpointBuilder) -> EndpointBuilder,
    ) -> Self {
        let clock = Clock::running_from(UNIX_EPOCH + Duration::from_secs(1_700_000_000));
        Self::at(clock, database, duties, telemetry, endpoint)
    }

    /// Another node over the same database, whose clock is so far behind.
    pub async fn behind(&self, by: Duration) -> Self {
        let clock = Clock::running_from(self.store.shop.clock.now() - by);
        let (database, duties) = (self.database.clone(), Duties::default());
        let node = Self::at(clock, database, duties, Telemetry::global(), |endpoint| endpoint);
        eventually(|| node.store.shop.inventory.is_loaded()).await;
        node
    }

    /// A node whose system's clock was set back by so much after it had started.
    pub async fn after_setting_back(by: Duration) -> Self {
        let clock = Clock::running_from(UNIX_EPOCH + Duration::from_secs(1_700_000_000));
        let (database, duties) = (Memory::of(shoes()), Duties::default());
        let node = Self::at(clock.set_back(by), database, duties, Telemetry::global(), |it| it);
        eventually(|| node.store.shop.inventory.is_loaded()).await;
        node
    }

    /// A node whose database is in a file. There is none in memory that tests could look into.
    pub async fn over_file(database: SqliteDatabase, telemetry: Telemetry) -> Self {
        let clock = Clock::running_from(UNIX_EPOCH + Duration::from_secs(1_700_000_000));
        let database = Arc::new(database);
        let node = Self::opened(clock, database, Duties::default(), telemetry, |it| it);
        eventually(|| node.store.shop.inventory.is_loaded()).await;
        node
    }

    fn at(
        clock: Clock,
        database: Memory,
        duties: Duties,
        telemetry: Telemetry,
        endpoint: impl FnOnce(EndpointBuilder) -> EndpointBuilder,
    ) -> Self {
        let source = Arc::new(database.clone());
        Self { database, ..Self::opened(clock, source, duties, telemetry, endpoint) }
    }

    fn opened(
        clock: Clock,
        database: Arc<dyn Database>,
        duties: Duties,
        telemetry: Telemetry,
        endpoint: impl FnOnce(EndpointBuilder) -> EndpointBuilder,
    ) -> Self {
        let options = ShopOptions {
            database,
            secret: "a secret of the tests, long enough".to_owned(),
            max_cart_items: 4,
            clock,
            telemetry,
            bench: true,
            idle_timeout: Duration::from_secs(60),
            trusted_proxies: vec![PROXY.into()],
        };
        let admins = ["ann:one", "bob:two"].map(|it| it.parse().unwrap()).into();
        let store = Store::open(options, admins, duties, endpoint).unwrap();
        let kit = TestEndpoint::of(store.endpoint.clone());
        Self { store, kit, database: Memory::default(), switch: Switch::default() }
    }

    pub async fn release(&self, product: i64) {
        self.store.shop.release(product).await.unwrap();
    }

    pub async fn stock(&self, item: i64, count: i64) {
        assert!(self.store.shop.stock(item, count).await.unwrap());
    }

    pub async fn sell(&self, item: i64) -> Sale {
        self.store.shop.sell(item).await.unwrap()
    }

    /// Waits until everything was told. On a paused clock, that is when all tasks wait.
    pub async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(150)).await;
    }

    /// Kills a stage. It is restarted.
    pub fn kill<C: Consumer>(&self, name: &str) {
        let stage = self.store.pipelines.iter().find_map(|pipeline| pipeline.stage(name));
        let stage: ConsumerHandle<C> = stage.expect("there is such a stage");
        stage.kill();
    }

    pub async fn socket(&self) -> TestSocket {
        self.kit.connect(json!({})).await.unwrap()
    }

    /// The params with which a page joins this cart.
    pub fn cart_params(&self, id: &str, items: &[i64]) -> Value {
        let shop = &self.store.shop;
        let now = shop.clock.now();
        let cart: store::domain::cart::Cart = items.iter().copied().collect();
        json!({
            "token": shop.signers.page.sign(id, now).unwrap(),
            "serialized": cart.serialize(&shop.rules, now).unwrap(),
            "page": "/",
        })
    }

    /// A tab that joins its cart with these params.
    pub async fn tab_with(&self, id: &str, params: Value) -> Tab {
        let socket = self.socket().await;
        let channel = socket.join(&format!("cart:{id}"), params).await.unwrap();
        Tab { socket, channel }
    }

    /// A tab of a cart.
    pub async fn tab(&self, id: &str, items: &[i64]) -> Tab {
        let tab = self.tab_with(id, self.cart_params(id, items)).await;
        let cart = tab.cart().await;
        assert_eq!(ids_of(&cart), items);
        tab
    }

    /// The socket of an admin.
    pub async fn admin(&self, name: &str) -> TestSocket {
        let shop = &self.store.shop;
        let token = shop.signers.admin.sign(name, shop.clock.now()).unwrap();
        self.admin_with(Some(token)).await.unwrap()
    }

    pub async fn admin_with(
        &self,
        token: Option<String>,
    ) -> Result<TestSocket, pipeline::ws::socket::ConnectError> {
        let mut info = ConnectInfo::of(&Request::get("/admin_socket/websocket").body(()).unwrap());
        info.auth_token = token;
        self.kit.connect_with(json!({}), &info).await
    }

    /// Answers a request as the server would.
    pub async fn request(&self, request: Request<Body>) -> Answered {
        let response = self.store.router.clone().call(request).await.unwrap();
        Answered::of(response).await
    }

    pub async fn get(&self, path: &str, cookies: &str) -> Answered {
        let mut request = Request::get(path);
        if !cookies.is_empty() {
            request = request.header("cookie", cookies);
        }
        self.request(request.body(Body::empty()).unwrap()).await
    }

    pub async fn post(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        form: &[(&str, &str)],
    ) -> Answered {
        let mut request =
            Request::post(path).header("content-type", "application/x-www-form-urlencoded");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let form: Vec<String> =
            form.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
        self.request(request.body(form.join("&").into()).unwrap()).await
    }
}

fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
            char::from(byte).to_string()
        }
        other => format!("%{other:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// An answer over HTTP.
pub struct Answered {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answered {
    async fn of(response: Response) -> Self {
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body = String::from_utf8_lossy(&body).into_owned();
        Self { status: parts.status, headers: parts.headers, body }
    }

    /// The cookies that it sets, as a browser sends them.
    pub fn cookies(&self) -> String {
        let cookies = self.headers.get_all(SET_COOKIE).iter().map(|it| it.to_str().unwrap());
        cookies.map(|it| it.split(';').next().unwrap()).collect::<Vec<_>>().join("; ")
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The value of an attribute after some text in the body.
    pub fn after(&self, text: &str) -> String {
        let rest =
            self.body.split_once(text).unwrap_or_else(|| panic!("no {text} in {}", self.body)).1;
        rest.split_once('"').unwrap().0.to_owned()
    }
}

/// A tab of a cart.
pub struct Tab {
    socket: TestSocket,
    pub channel: TestChannel,
}

impl Tab {
    /// The next cart that is pushed to the tab.
    pub async fn cart(&self) -> Value {
        let pushes = self.channel.pushes("cart").within(LONG);
        pushes.find("cart", |payload| payload.parse::<Value>().ok()).await.unwrap()
    }

    /// The items of the last cart that was pushed to the tab.
    pub async fn last_cart(&self) -> Vec<i64> {
        let mut last = Vec::new();
        loop {
            let next = self.channel.pushes("cart").within(Duration::from_millis(1));
            match next.find("cart", |payload| payload.parse::<Value>().ok()).await {
                Ok(cart) => last = ids_of(&cart),
                Err(_) => return last,
            }
        }
    }

    /// Cuts it off.
    pub async fn cut(self) {
        self.socket.close().await;
    }

    pub async fn add(&self, item: impl Into<Value>) -> Result<Value, Value> {
        self.ask("add_item", item.into()).await
    }

    pub async fn remove(&self, item: impl Into<Value>) -> Result<Value, Value> {
        self.ask("remove_item", item.into()).await
    }

    async fn ask(&self, event: &str, item: Value) -> Result<Value, Value> {
        self.ask_with(event, json!({ "item_id": item })).await
    }

    pub async fn ask_with(&self, event: &str, payload: Value) -> Result<Value, Value> {
        let asked = self.channel.push(event, payload);
        let parse = |payload: &pipeline::ws::Payload| payload.parse::<Value>().ok();
        tokio::select! {
            ok = self.channel.replies(&asked, "ok").within(LONG).find("ok", parse) => Ok(ok.unwrap()),
            error = self.channel.replies(&asked, "error").within(LONG).find("error", parse) => Err(error.unwrap()),
        }
    }

    /// Whether no cart was pushed that was not looked at, once all tasks wait.
    pub async fn has_no_cart(&self) -> bool {
        let pushes = self.channel.pushes("cart").within(Duration::from_millis(150));
        pushes.refute("cart", |_| Some(())).await.is_ok()
    }
}

/// The ids of the items in a cart.
pub fn ids_of(cart: &Value) -> Vec<i64> {
    cart["items"].as_array().unwrap().iter().map(|item| item["id"].as_i64().unwrap()).collect()
}

pub fn cart_id() -> String {
    ids::cart_id().unwrap()
}

/// Joins, and expects to be refused.
pub async fn refused(socket: &TestSocket, topic: &str, params: Value) -> Value {
    let refused: JoinRefused = match socket.join(topic, params).await {
        Err(refused) => refused,
        Ok(_) => panic!("{topic} was joined"),
    };
    refused.json()
}

/// Waits until something is so.
pub async fn eventually(mut is_so: impl FnMut() -> bool) {
    for _ in 0..20_000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it never was so");
}
