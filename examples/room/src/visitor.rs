//! The socket of a visitor.

use std::time::SystemTime;

use pipeline::ws::{
    Socket,
    socket::{ConnectError, ConnectInfo, Params},
    token::Signer,
};

/// Maximum length of a name and of a device in characters.
pub const MAX_NAME: usize = 30;

/// A visitor with a name and a device.
#[derive(Clone, Debug)]
pub struct Visitor {
    pub name: String,
    pub device: String,
}

/// A socket for visitors with a signed token.
pub struct VisitorSocket {
    signer: Signer,
}

impl VisitorSocket {
    pub fn new(signer: Signer) -> Self {
        Self { signer }
    }
}

impl Socket for VisitorSocket {
    type Assigns = Visitor;

    async fn connect(&self, params: &Params, _: &ConnectInfo) -> Result<Visitor, ConnectError> {
        let name = self.signer.verify(params.require("token")?, SystemTime::now())?;
        let device = params.require("device")?.to_owned();
        if !is_name(&device) {
            return Err(ConnectError::because(format!("a device has 1 to {MAX_NAME} characters")));
        }
        Ok(Visitor { name, device })
    }
}

/// Whether this is a valid name.
pub fn is_name(name: &str) -> bool {
    !name.trim().is_empty() && name.chars().count() <= MAX_NAME
}
