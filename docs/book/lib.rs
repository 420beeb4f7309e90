//! The programs of the guide, which are the documentation tests of this package, and what they share.

use std::time::SystemTime;

use pipeline::ws::{
    Channel, Payload, Socket, Topic,
    channel::{JoinContext, JoinError},
    socket::{ConnectError, ConnectInfo, Params},
    token::Signer,
};

/// The socket of the first chapter: its assigns are the user's id, from a signed token.
#[derive(Debug)]
pub struct UserSocket(pub Signer);

impl Socket for UserSocket {
    type Assigns = u64;

    async fn connect(&self, params: &Params, _: &ConnectInfo) -> Result<u64, ConnectError> {
        Ok(self.0.verify(params.require("token")?, SystemTime::now())?)
    }

    fn id(&self, user: &u64) -> Result<Option<String>, ConnectError> {
        Ok(Some(format!("users_socket:{user}")))
    }
}

/// The channel of the first chapter: a user joins the topic of the own id.
#[derive(Debug)]
pub struct UserChannel;

impl Channel for UserChannel {
    type Socket = UserSocket;
    type Config = ();

    async fn join(
        topic: &Topic,
        _: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        let own = topic.rest() == cx.assigns().to_string();
        own.then_some(UserChannel).ok_or(JoinError::unauthorized())
    }
}

/// The guide's programs, run by `cargo test --doc`.
#[cfg(doctest)]
mod chapters {
    macro_rules! chapters {
        ($($name:ident),* $(,)?) => {
            $(#[doc = include_str!(concat!("src/", stringify!($name), ".md"))] mod $name {})*
        };
    }

    chapters!(
        axum, channels, demand, deploying, elixir, failing, first, machines, presence, security,
        seeing, sizing, slow, sources, table, testing,
    );

    #[doc = include_str!("../deploys.md")]
    mod deploys {}
    #[doc = include_str!("../metrics.md")]
    mod metrics {}
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    /// The chapters whose programs are run: the list at the top, as text.
    const LIST: &str = include_str!("lib.rs");

    #[test]
    fn every_chapter_with_a_program_is_in_the_list() {
        let (_, list) = LIST.split_once("chapters!(").unwrap();
        let (list, _) = list.split_once(");").unwrap();
        let listed: Vec<_> = list.split(',').map(str::trim).collect();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut missing = Vec::new();
        for file in fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            let Some(name) = path.file_stem().and_then(|name| name.to_str()) else { continue };
            if path.extension().is_none_or(|ending| ending != "md") {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let is_program = |line: &str| line.starts_with("```rust") && !line.contains("ignore");
            if text.lines().any(is_program) && !listed.contains(&name) {
                missing.push(name.to_owned());
            }
        }
        assert!(listed.contains(&"sizing"), "{listed:?}");
        assert_eq!(missing, [""; 0], "chapters with programs that no test compiles");
    }
}
