//! Who may come in.

use std::time::SystemTime;

use pipeline::ws::{ConnectError, ConnectInfo, Params, Signer, Socket};

/// How long a name may be, and what a device is called, in characters.
pub const MAX_NAME: usize = 30;

/// Somebody with a name, on a device.
#[derive(Clone, Debug)]
pub struct Visitor {
    pub name: String,
    pub device: String,
}

/// Lets in whoever has signed in.
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

/// Whether somebody may be called that.
pub fn is_name(name: &str) -> bool {
    !name.trim().is_empty() && name.chars().count() <= MAX_NAME
}
