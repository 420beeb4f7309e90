//! Pushes of a channel, and their limits.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]

mod support;

use pipeline_core::ExitReason;
use pipeline_test_support::{Log, PATIENCE};
use pipeline_ws_sink::{
    Channel, Endpoint, Mount, Payload, Topic,
    channel::{ChannelContext, JoinContext, JoinError, PushError, Reply, Stop},
    payload::PayloadError,
};
use serde_json::json;
use support::{channels::NamedSocket, memory::MemoryServer};
use tokio::{sync::mpsc, time::timeout};

const T: &str = "counting:1";

/// Pushes until that fails, and reports how it ended.
struct Counting(mpsc::Sender<String>);

impl Channel for Counting {
    type Socket = NamedSocket;
    type Config = mpsc::Sender<String>;

    async fn join(
        _: &Topic,
        _: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        Ok(Self(cx.config().clone()))
    }

    async fn handle_in(
        &mut self,
        event: &str,
        _: Payload,
        cx: &ChannelContext<Self>,
    ) -> Result<Reply, Stop> {
        if event == "forward" {
            let pushed = cx.push("phx_close", json!({}));
            assert!(
                matches!(pushed, Err(PushError::Payload(PayloadError::Reserved { .. }))),
                "{pushed:?}"
            );
            return Ok(Reply::ok());
        }
        for n in 0.. {
            cx.push("tick", json!({ "n": n }))?;
        }
        Ok(Reply::ok())
    }

    async fn terminate(&mut self, reason: &ExitReason, _: &ChannelContext<Self>) {
        self.0.send(reason.to_string()).await.unwrap();
    }
}

fn server() -> (MemoryServer, mpsc::Receiver<String>) {
    let (ended, ends) = mpsc::channel(1);
    let mount = Mount::new(NamedSocket).channel_with::<Counting>("counting:*", ended);
    (MemoryServer::start(Endpoint::builder().mount("/socket", mount)), ends)
}

#[tokio::test]
async fn a_handler_that_pushes_endlessly_ends_with_its_socket_without_a_crash() {
    let (log, _guard) = Log::keep();
    let (server, mut ends) = server();
    let mut ada = server.connect(4096).await;
    ada.join("1", T).await;
    // Its client is slow, and the handler occupies the only thread until it ends.
    ada.send(json!(["1", "2", T, "count", {}])).await;
    let reason = timeout(PATIENCE, ends.recv()).await.unwrap().unwrap();
    assert_eq!(reason, "shutdown: closed");
    let crashed = log.take().into_iter().find(|line| line.contains("crashed"));
    assert_eq!(crashed, None);
}

#[tokio::test]
async fn a_channel_cannot_push_protocol_events() {
    let (server, _ends) = server();
    let mut ada = server.connect(4096).await;
    ada.join("1", T).await;
    ada.send(json!(["1", "2", T, "forward", {}])).await;
    assert_eq!(ada.receive().await[4]["status"], "ok");
}
