//! Subjects of NATS.

use std::{collections::HashMap, pin::pin, sync::Arc};

use async_nats::{Client, ConnectOptions, Event, RequestErrorKind, ServerAddr, Subscriber};
use futures::{
    FutureExt, StreamExt,
    stream::{AbortHandle, Abortable, SelectAll},
};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use crate::{
    ClusterError,
    core::Core,
    driver::{Server, Session, SessionError},
    packing::Message,
};

/// How many subscriptions may wait for the task that reads them.
const NEW: usize = 1024;

/// How many messages are received before all else is looked at.
const AT_ONCE: usize = 64;

/// Servers of NATS.
#[derive(Debug)]
pub(crate) struct Nats {
    servers: Vec<ServerAddr>,
}

type Messages = Abortable<Subscriber>;

/// A connection to NATS.
pub(crate) struct NatsSession {
    client: Client,
    /// Notified when the connection ends.
    lost: Arc<Notify>,
    new: mpsc::Sender<Messages>,
    reading: tokio::sync::Mutex<mpsc::Receiver<Messages>>,
    /// Ends the subscription to each subject.
    subscribed: Mutex<HashMap<String, AbortHandle>>,
    /// A subject that has no subscribers.
    nowhere: String,
}

impl Nats {
    pub(crate) fn new(urls: &str) -> Result<Self, ClusterError> {
        // The error may quote the address, which may have a password.
        let servers =
            urls.split(',').map(|url| url.trim().parse().map_err(|_| ClusterError::Address));
        Ok(Self { servers: servers.collect::<Result<_, _>>()? })
    }
}

impl Server for Nats {
    type Session = NatsSession;

    async fn connect(&self, core: &Arc<Core>) -> Result<NatsSession, SessionError> {
        let lost = Arc::new(Notify::new());
        let ended = lost.clone();
        let options = ConnectOptions::new()
            .name(&*core.name)
            .no_echo()
            // The task connects again itself, and subscribes again.
            .max_reconnects(1)
            .connection_timeout(core.options.timeout)
            .request_timeout(None)
            .event_callback(move |event| {
                if matches!(event, Event::Disconnected | Event::Closed) {
                    ended.notify_one();
                }
                std::future::ready(())
            });
        let client = options.connect(&self.servers).await.map_err(|error| failed(&error))?;
        let (new, reading) = mpsc::channel(NEW);
        Ok(NatsSession {
            client,
            lost,
            new,
            reading: tokio::sync::Mutex::new(reading),
            subscribed: Mutex::default(),
            nowhere: format!("{}.1.ping", core.options.prefix),
        })
    }
}

impl NatsSession {
    /// Returns when the server has handled what it was sent before. It answers a request to a subject
    /// without subscribers at once.
    async fn round_trip(&self) -> Result<(), SessionError> {
        match self.client.request(self.nowhere.clone(), Vec::new().into()).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == RequestErrorKind::NoResponders => Ok(()),
            Err(error) => Err(failed(&error)),
        }
    }
}

impl Session for NatsSession {
    fn max_message(&self) -> usize {
        self.client.server_info().max_payload
    }

    async fn publish(&self, core: &Core, messages: &[Message]) -> Result<(), SessionError> {
        for Message { channel, bytes, .. } in messages {
            let published = self.client.publish(core.channel_name(*channel), bytes.clone()).await;
            published.map_err(|error| failed(&error))?;
        }
        self.round_trip().await
    }

    async fn subscribe(&self, names: &[String]) -> Result<(), SessionError> {
        for name in names {
            let subscriber = self.client.subscribe(name.clone()).await;
            let subscriber = subscriber.map_err(|error| failed(&error))?;
            let (end, ended) = AbortHandle::new_pair();
            let subscriber = Abortable::new(subscriber, ended);
            self.new.send(subscriber).await.map_err(|error| failed(&error))?;
            self.subscribed.lock().insert(name.clone(), end);
        }
        self.round_trip().await
    }

    async fn unsubscribe(&self, names: &[String]) -> Result<(), SessionError> {
        let mut subscribed = self.subscribed.lock();
        for end in names.iter().filter_map(|name| subscribed.remove(name)) {
            end.abort();
        }
        Ok(())
    }

    async fn ping(&self, core: &Core) -> Result<(), SessionError> {
        self.round_trip().await?;
        core.clock.follow_wall();
        Ok(())
    }

    async fn nodes(&self, _: &Core) -> Result<Option<u64>, SessionError> {
        Ok(None)
    }

    async fn receive(&self, core: &Core) -> SessionError {
        let mut reading = self.reading.lock().await;
        let mut messages: SelectAll<Messages> = SelectAll::new();
        let mut lost = pin!(self.lost.notified());
        loop {
            tokio::select! {
                biased;
                () = &mut lost => {
                    return SessionError::Lost("the server has closed it".to_owned());
                }
                Some(new) = reading.recv() => messages.push(new),
                Some(message) = messages.next() => {
                    core.receive(&message.payload);
                    // What is there already, without a look at all else for each.
                    for _ in 0..AT_ONCE {
                        let Some(Some(message)) = messages.next().now_or_never() else { break };
                        core.receive(&message.payload);
                    }
                }
            }
        }
    }
}

fn failed(error: &dyn std::error::Error) -> SessionError {
    SessionError::Lost(error.to_string())
}
