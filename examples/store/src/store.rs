//! The parts of the store, put together.

use std::sync::Arc;

use axum::Router;
use pipeline::{
    Pipeline,
    builder::StartError,
    health::Health,
    ws::{
        Endpoint,
        endpoint::{BuildError, EndpointBuilder},
        pubsub::BroadcastError,
    },
};
use thiserror::Error;

use crate::{
    admins::{self, Admins, Credentials},
    channels, http,
    pipelines::{self, Duties},
    shop::{Shop, ShopError, ShopOptions},
};

/// A node of the store, which serves as soon as its router does.
#[derive(Debug)]
pub struct Store {
    /// The shop.
    pub shop: Arc<Shop>,
    /// The admins.
    pub admins: Arc<Admins>,
    /// The sockets.
    pub endpoint: Endpoint,
    /// The pipelines.
    pub pipelines: Vec<Pipeline>,
    /// Whether the node is alive, and ready.
    pub health: Health,
    /// Pages and sockets.
    pub router: Router,
}

/// A store that cannot be opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The shop.
    #[error(transparent)]
    Shop(#[from] ShopError),
    /// The endpoint.
    #[error(transparent)]
    Endpoint(#[from] BuildError),
    /// A pipeline.
    #[error(transparent)]
    Pipeline(#[from] StartError),
}

impl Store {
    /// Opens a node. It loads the inventory by itself, as soon as the database is there.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the options are invalid.
    pub fn open(
        options: ShopOptions,
        admins: Vec<Credentials>,
        duties: Duties,
        endpoint: impl FnOnce(EndpointBuilder) -> EndpointBuilder,
    ) -> Result<Self, StoreError> {
        let (shop, producers) = Shop::new(options)?;
        let admins = Arc::new(Admins::new(admins));
        let endpoint = endpoint(channels::endpoint(&shop, &admins)).build()?;
        let pipelines = pipelines::start(&shop, endpoint.pubsub(), producers, duties)?;
        let loaded = shop.clone();
        let mut health = Health::new()
            .endpoint(endpoint.observer())
            .requires("the inventory", move || loaded.inventory.is_loaded());
        for pipeline in &pipelines {
            health = health.pipeline(pipeline.observer());
        }
        let router = http::router(shop.clone(), admins.clone())
            .merge(health.router())
            .fallback_service(endpoint.clone());
        Ok(Self { shop, admins, endpoint, pipelines, health, router })
    }

    /// Withdraws the access of an admin, whose open sockets are closed on all nodes. Returns how many were open here; `None`
    /// if there is no such admin here.
    ///
    /// # Errors
    ///
    /// [`BroadcastError`] if the other nodes were not told.
    pub fn withdraw(&self, admin: &str) -> Result<Option<usize>, BroadcastError> {
        admins::withdraw(&self.admins, &self.endpoint, admin)
    }
}
