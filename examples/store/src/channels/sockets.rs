//! The two kinds of sockets, and who may connect.

use std::sync::Arc;

use pipeline::ws::{
    Socket,
    socket::{ConnectError, ConnectInfo, Params},
    token::TokenError,
};

use crate::{admins::Admins, shop::Shop};

/// How many shards of shoppers there are. An operator who wants to move a part of them closes some.
pub const SHARDS: u32 = 100;

/// The id of the sockets of a shard.
#[must_use]
pub fn shard_id(shard: u32) -> String {
    format!("shoppers:{shard}")
}

/// The socket of a shopper, without a login.
#[derive(Debug)]
pub struct ShopperSocket;

/// A shopper.
#[derive(Clone, Copy, Debug)]
pub struct Shopper {
    shard: u32,
}

impl Socket for ShopperSocket {
    type Assigns = Shopper;

    async fn connect(&self, _: &Params, _: &ConnectInfo) -> Result<Shopper, ConnectError> {
        Ok(Shopper { shard: fastrand::u32(..SHARDS) })
    }

    fn id(&self, shopper: &Shopper) -> Result<Option<String>, ConnectError> {
        Ok(Some(shard_id(shopper.shard)))
    }
}

/// The socket of an admin. Who is on it is an admin, so its channels ask nothing more.
#[derive(Debug)]
pub struct AdminSocket {
    shop: Arc<Shop>,
    admins: Arc<Admins>,
}

/// An admin, by name.
#[derive(Clone, Debug)]
pub struct Admin(pub String);

impl AdminSocket {
    pub(crate) fn new(shop: Arc<Shop>, admins: Arc<Admins>) -> Self {
        Self { shop, admins }
    }

    fn admin(&self, token: Option<&str>) -> Result<Admin, TokenError> {
        let name =
            self.shop.signers.admin.verify_optional::<String>(token, self.shop.clock.now())?;
        if self.admins.has(&name) { Ok(Admin(name)) } else { Err(TokenError::Invalid) }
    }
}

impl Socket for AdminSocket {
    type Assigns = Admin;

    async fn connect(&self, _: &Params, info: &ConnectInfo) -> Result<Admin, ConnectError> {
        self.admin(info.auth_token.as_deref()).map_err(|error| {
            // The token itself stays out of the log.
            tracing::error!(error = error.to_string(), "an admin's socket was refused");
            ConnectError::because(error)
        })
    }

    fn id(&self, admin: &Admin) -> Result<Option<String>, ConnectError> {
        Ok(Some(socket_id(&admin.0)))
    }
}

/// The id of the sockets of an admin.
#[must_use]
pub fn socket_id(admin: &str) -> String {
    format!("admins:{admin}")
}
