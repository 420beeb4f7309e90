//! A node of the store in the test's own process, which can be stopped and started again.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::Router;
use pipeline::{inspect::Inspector, serve, telemetry::Telemetry, ws::listen};
use pipeline_test_support::{PATIENCE, request};
use serde_json::{Value, json};
use store::{
    clock::Clock,
    database::{SqliteDatabase, SqliteOptions, seed::seed},
    domain::catalogue::Catalogue,
    pipelines::Duties,
    shop::{CART_TRACKER, Shop, ShopOptions},
    store::Store,
};
use tempfile::TempDir;
use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{sleep, timeout},
};

/// The name and password of the admin.
pub(crate) const ADMIN: &str = "ann:secret";

/// What a stopped node leaves: its database and its address.
pub(crate) struct Stopped {
    folder: TempDir,
    address: SocketAddr,
    catalogue: Catalogue,
    idle_timeout: Duration,
}

/// A running node.
pub(crate) struct Server {
    pub(crate) shop: Arc<Shop>,
    pub(crate) pubsub: pipeline::ws::PubSub,
    database: SqliteDatabase,
    /// The address of operators.
    operator: SocketAddr,
    left: Stopped,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

impl Server {
    /// A node with a database of its own, and the products of the seed.
    pub(crate) async fn start() -> Self {
        Self::with(seed(23)).await
    }

    /// A node with these products.
    pub(crate) async fn with(catalogue: Catalogue) -> Self {
        Self::with_idle_timeout(catalogue, Duration::from_secs(60)).await
    }

    /// A node that misses pages after this time.
    pub(crate) async fn with_idle_timeout(catalogue: Catalogue, idle_timeout: Duration) -> Self {
        let folder = TempDir::new().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        Stopped { folder, address, catalogue, idle_timeout }.start(Clock::wall()).await
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.left.address)
    }

    /// The page that only an admin may see.
    pub(crate) fn admin_url(&self) -> String {
        format!("http://{ADMIN}@{}/admin", self.left.address)
    }

    pub(crate) async fn release(&self, product: i64) {
        self.shop.release(product).await.unwrap();
    }

    /// Sets how many of an item there are.
    pub(crate) async fn stock(&self, item: i64, count: i64) {
        assert!(self.shop.stock(item, count).await.unwrap());
    }

    /// How many there are of an item.
    pub(crate) fn count(&self, item: i64) -> i64 {
        self.shop.inventory.snapshot().unwrap().item(item).unwrap().available_count
    }

    /// How many carts are open.
    pub(crate) async fn carts(&self) -> usize {
        self.shop.presence.list(CART_TRACKER).await.len()
    }

    /// Kills the stages that tell, keep the copy and apply what other nodes say, as an operator does, and closes the
    /// database.
    pub(crate) async fn kill_stages(&self) {
        for (pipeline, stage) in
            [("telling", "tell"), ("inventory", "inventory"), ("replication", "apply")]
        {
            let path = format!("/inspect/end?pipeline={pipeline}&stage={stage}");
            let operator = self.operator.to_string();
            let answer = request(&operator, "POST", &path, &[("x-inspect", "end")], "").await;
            assert_eq!(answer.json(), json!({ "ended": 1 }), "{stage}");
        }
        self.database.disconnect().await;
    }

    /// Says something on a topic that the shop itself would not say.
    pub(crate) fn say(&self, topic: &str, event: &str, payload: Value) {
        self.pubsub.local_broadcast(topic, event, payload).unwrap();
    }

    pub(crate) async fn stop(self) -> Stopped {
        let _ = self.stop.send(());
        timeout(PATIENCE, self.served).await.unwrap().unwrap();
        self.left
    }
}

impl Stopped {
    /// Starts the node again, on the same address.
    pub(crate) async fn start(mut self, clock: Clock) -> Server {
        let database = SqliteDatabase::new(SqliteOptions {
            path: self.folder.path().join("store.db"),
            seed: self.catalogue.clone(),
            creates: true,
            confirm_orders: false,
        });
        let database = database.unwrap();
        let options = ShopOptions {
            database: Arc::new(database.clone()),
            secret: "a secret of tests, which is long enough".to_owned(),
            max_cart_items: 4,
            clock,
            telemetry: Telemetry::global(),
            bench: false,
            idle_timeout: self.idle_timeout,
            trusted_proxies: Vec::new(),
        };
        let admins = vec![ADMIN.parse().unwrap()];
        let store = Store::open(options, admins, Duties::default(), |endpoint| endpoint).unwrap();
        let (shop, pubsub) = (store.shop.clone(), store.endpoint.pubsub().clone());
        let loaded = async {
            while !shop.inventory.is_loaded() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, loaded).await.unwrap();
        let listener = listen(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let mut inspector = Inspector::builder();
        for pipeline in &store.pipelines {
            inspector = inspector.pipeline_operator(pipeline.operator());
        }
        let operators = listen("127.0.0.1:0").await.unwrap();
        let operator = operators.local_addr().unwrap();
        let pages = Router::new().nest_service("/inspect", inspector.build().unwrap());
        let mut server = serve(listener, store.router)
            .admin(operators, pages)
            .endpoint(store.endpoint)
            .drain_within(Duration::from_secs(2))
            .until(async {
                let _ = stopped.await;
            });
        for pipeline in store.pipelines {
            server = server.pipeline(pipeline);
        }
        let served = tokio::spawn(async {
            server.await.unwrap();
        });
        Server { shop, pubsub, database, operator, left: self, stop, served }
    }

    /// Starts it when this time has passed, by its clock.
    pub(crate) async fn start_after(self, time: Duration) -> Server {
        self.start(Clock::running_from(SystemTime::now() + time)).await
    }
}
