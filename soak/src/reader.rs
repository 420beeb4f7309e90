//! A client that joins the topic of one user, and reads to the end.

use std::{net::SocketAddr, time::Duration};

use serde::Deserialize;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

use crate::{
    client::{Client, Ended, Message, Transport},
    sequence::{Received, Sequence, Violation},
};

/// The payload of an item.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Item {
    pub(crate) user: usize,
    pub(crate) from: usize,
    pub(crate) n: u64,
    pub(crate) k: u64,
}

/// A message from `phx_reply`.
#[derive(Deserialize)]
struct Reply {
    status: String,
}

/// What a reader has received until its connection ended.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) user: usize,
    pub(crate) items: Vec<Item>,
    pub(crate) violations: Vec<Violation>,
    pub(crate) ended: Ended,
}

/// Joins, and reads in a task of its own, except while it is asleep. Sends a heartbeat every so often.
pub(crate) async fn start(
    address: SocketAddr,
    transport: Transport,
    user: usize,
    asleep: watch::Receiver<bool>,
    heartbeat: Duration,
) -> Result<JoinHandle<Read>, Ended> {
    let mut client = Client::connect(address, transport, &user.to_string()).await?;
    client.send(&format!(r#"["1","1","user:{user}","phx_join",{{}}]"#)).await?;
    let mut reader =
        Reader { sequence: Sequence::new(user), items: Vec::new(), violations: Vec::new() };
    reader.sequence.join();
    while !reader.sequence.is_subscribed() {
        let text = client.receive().await?;
        reader.received(&text)?;
    }
    Ok(tokio::spawn(async move {
        let ended = reader.read(&mut client, asleep, heartbeat).await;
        let Reader { items, violations, .. } = reader;
        Read { user, items, violations, ended }
    }))
}

struct Reader {
    sequence: Sequence,
    items: Vec<Item>,
    violations: Vec<Violation>,
}

impl Reader {
    async fn read(
        &mut self,
        client: &mut Client,
        mut asleep: watch::Receiver<bool>,
        heartbeat: Duration,
    ) -> Ended {
        let mut beat = interval(heartbeat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        beat.tick().await;
        loop {
            let done = tokio::select! {
                Ok(()) = asleep.changed() => None,
                received = client.receive() => Some(received.and_then(|text| self.received(&text))),
                _ = beat.tick() => Some(client.send(r#"[null,"2","phoenix","heartbeat",{}]"#).await),
            };
            match done {
                // It wakes up at the latest when the sender is gone.
                None => while *asleep.borrow_and_update() && asleep.changed().await.is_ok() {},
                Some(Err(ended)) => return ended,
                Some(Ok(())) => {}
            }
        }
    }

    fn received(&mut self, text: &[u8]) -> Result<(), Ended> {
        let invalid = |_| Ended::Invalid(String::from_utf8_lossy(text).chars().take(200).collect());
        let (_, _, _, event, payload): Message<'_> =
            serde_json::from_slice(text).map_err(invalid)?;
        let checked = match &*event {
            "item" => {
                let item: Item = serde_json::from_str(payload.get()).map_err(invalid)?;
                self.items.push(item);
                let Item { user, from, n, k } = item;
                self.sequence.item(Received { user, from: from.min(2), n, k })
            }
            "at" => {
                #[derive(Deserialize)]
                struct At {
                    k: u64,
                }
                let At { k } = serde_json::from_str(payload.get()).map_err(invalid)?;
                self.sequence.subscribed(k)
            }
            "phx_reply" => {
                let Reply { status } = serde_json::from_str(payload.get()).map_err(invalid)?;
                if status != "ok" {
                    return Err(Ended::Invalid(payload.get().to_owned()));
                }
                Ok(())
            }
            _ => Ok(()),
        };
        self.violations.extend(checked.err());
        Ok(())
    }
}
