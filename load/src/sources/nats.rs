//! The queue in a stream of NATS JetStream, and the same pulls and acknowledgements by the bare client.

use std::{hint::black_box, time::Duration};

use async_nats::Request;
use futures::StreamExt;
use pipeline_sources::nats::NatsQueue;
use tokio::time::{Instant, timeout};

use super::{failed, handled, in_batches, new_name, pushed};
use crate::error::LoadError;

/// How long a pull is waited for.
const WAIT: Duration = Duration::from_secs(5);

async fn filled(url: &str, items: u64) -> Result<NatsQueue, LoadError> {
    let queue = NatsQueue::new(url, &new_name()).map_err(failed)?;
    let adding = queue.clone();
    pushed(items, move |item| {
        let queue = adding.clone();
        async move { queue.push(item).await.map(drop) }
    })
    .await?;
    Ok(queue)
}

/// Handles items by a source.
pub(crate) async fn source(url: &str, at_once: usize, items: u64) -> Result<f64, LoadError> {
    handled(filled(url, items).await?, at_once, items).await
}

/// Pulls batches and acknowledges each message by the bare client, and waits for the answer to the last
/// acknowledgement of a batch.
pub(crate) async fn bare(url: &str, at_once: usize, items: u64) -> Result<f64, LoadError> {
    let queue = filled(url, items).await?;
    let began = Instant::now();
    let client = async_nats::connect(url).await.map_err(failed)?;
    let pull = format!("$JS.API.CONSUMER.MSG.NEXT.{}.pipeline", queue.name());
    let wanted = format!("{{\"batch\": {at_once}, \"no_wait\": true}}");
    in_batches(items, began, async || {
        let inbox = client.new_inbox();
        let mut arriving = client.subscribe(inbox.clone()).await.map_err(failed)?;
        let request = wanted.clone().into();
        let sent = client.publish_with_reply(pull.clone(), inbox, request);
        sent.await.map_err(failed)?;
        let (mut handled, mut last) = (0, None);
        for _ in 0..at_once {
            let message = timeout(WAIT, arriving.next()).await.map_err(failed)?;
            // A message with a status says that there are no more.
            let Some(message) = message.filter(|message| message.status.is_none()) else { break };
            handled += 1;
            if let Some(before) = last.replace(black_box(message).reply) {
                acknowledge(&client, before).await?;
            }
        }
        if let Some(Some(reply)) = last {
            let confirmed = client.send_request(reply, Request::new().payload("+ACK".into()));
            confirmed.await.map_err(failed)?;
        }
        Ok(handled)
    })
    .await
}

async fn acknowledge(
    client: &async_nats::Client,
    reply: Option<async_nats::Subject>,
) -> Result<(), LoadError> {
    if let Some(reply) = reply {
        client.publish(reply, "+ACK".into()).await.map_err(failed)?;
    }
    Ok(())
}
