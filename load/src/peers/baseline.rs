//! A hand-written server as one would write it in an afternoon: axum, a task per socket, tokio's
//! broadcast, and just enough of the protocol to reply to a join.

use std::{collections::HashMap, io, time::Duration};

use axum::{
    Router,
    extract::{
        Query, State,
        ws::{Message, Utf8Bytes, WebSocket, WebSocketUpgrade},
    },
    response::Response,
    routing::get,
};
use tokio::{
    net::TcpListener,
    sync::broadcast::{self, Sender},
    time::{interval, sleep},
};

use super::{JOINED, broadcast};
use pipeline_load::{server::LISTENING, unix_micros};

/// The maximum number of messages that wait for the slowest socket.
const CAPACITY: usize = 16_384;

/// Serves until the process is killed.
pub(crate) async fn serve(port: u16) -> io::Result<()> {
    let (messages, _) = broadcast::channel(CAPACITY);
    let app = Router::new()
        .route("/socket/websocket", get(upgrade))
        .route("/bcast", get(broadcasts))
        .with_state(messages);
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    println!("{LISTENING}{}", listener.local_addr()?);
    axum::serve(listener, app).await
}

async fn upgrade(upgrade: WebSocketUpgrade, State(messages): State<Sender<Utf8Bytes>>) -> Response {
    upgrade.on_upgrade(|socket| run(socket, messages))
}

async fn run(mut socket: WebSocket, messages: Sender<Utf8Bytes>) {
    let joined = socket.recv().await;
    let mut messages = messages.subscribe();
    if joined.is_none() || socket.send(Message::Text(JOINED.into())).await.is_err() {
        return;
    }
    loop {
        tokio::select! {
            message = messages.recv() => match message {
                Ok(message) => if socket.send(Message::Text(message)).await.is_err() { return },
                Err(_) => return,
            },
            message = socket.recv() => if message.is_none() { return },
        }
    }
}

async fn broadcasts(
    State(messages): State<Sender<Utf8Bytes>>,
    Query(asked): Query<HashMap<String, String>>,
) {
    let number = |name| asked.get(name).and_then(|value| value.parse().ok()).unwrap_or_default();
    let every = number("every_us");
    let mut pace = (every > 0).then(|| interval(Duration::from_micros(every)));
    for n in 0..number("n") {
        if let Some(pace) = &mut pace {
            pace.tick().await;
        }
        // A receiver that lags loses messages, so wait before that happens.
        while messages.len() > CAPACITY * 9 / 10 {
            sleep(Duration::from_millis(1)).await;
        }
        // An error means that there are no receivers.
        let _ = messages.send(broadcast(n, unix_micros()).into());
    }
}
