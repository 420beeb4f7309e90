//! A long-polling session.

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use serde::Deserialize;
use tokio::time::Instant;

use super::{Ended, Http};

/// A session with one connection for polls and one for messages, as a browser has.
#[derive(Debug)]
pub(crate) struct LongPoll {
    polls: Http,
    messages: Http,
    path: String,
    received: VecDeque<String>,
    /// When the last poll was sent, and the longest time from one to the next.
    polled: Instant,
    unpolled: Duration,
}

#[derive(Deserialize)]
struct Answer {
    status: u16,
    token: Option<String>,
    #[serde(default)]
    messages: Vec<String>,
}

fn answer((status, body): (u16, Vec<u8>)) -> Result<Answer, Ended> {
    if status == 503 {
        return Err(Ended::Refused);
    }
    serde_json::from_slice(&body).map_err(|error| {
        Ended::Invalid(format!("{error}: {status}, {}", String::from_utf8_lossy(&body)))
    })
}

impl LongPoll {
    pub(super) async fn connect(address: SocketAddr, name: &str) -> Result<Self, Ended> {
        let mut polls = Http::connect(address).await?;
        let messages = Http::connect(address).await?;
        let path = format!("/socket/longpoll?vsn=2.0.0&client={name}");
        let answered = answer(polls.request("GET", &path, "").await?)?;
        let (410, Some(token)) = (answered.status, answered.token) else {
            return Err(Ended::Refused);
        };
        let path = format!("{path}&token={token}");
        let (polled, unpolled) = (Instant::now(), Duration::ZERO);
        Ok(Self { polls, messages, path, received: VecDeque::new(), polled, unpolled })
    }

    pub(super) async fn receive(&mut self) -> Result<Vec<u8>, Ended> {
        loop {
            if let Some(message) = self.received.pop_front() {
                return Ok(message.into_bytes());
            }
            if !self.polls.is_pending {
                let now = Instant::now();
                self.unpolled = self.unpolled.max(now - self.polled);
                self.polled = now;
                self.polls.send("GET", &self.path, "").await?;
            }
            let answered = answer(self.polls.answer().await?)?;
            match answered.status {
                200 => self.received.extend(answered.messages),
                204 => {}
                // The session has ended. In the answer to a poll there is a new one, which is not used.
                _ => return Err(Ended::Gone),
            }
        }
    }

    pub(super) async fn send(&mut self, text: &str) -> Result<(), Ended> {
        let began = Instant::now();
        let answered = answer(self.messages.request("POST", &self.path, text).await?)?;
        match answered.status {
            200 => Ok(()),
            408 => Err(Ended::NotTaken(began.elapsed())),
            _ => Err(Ended::Gone),
        }
    }

    /// When the last poll was sent, and the longest time from one to the next.
    pub(super) fn polls(&self) -> (Instant, Duration) {
        (self.polled, self.unpolled)
    }

    pub(super) fn reset(self) {
        self.polls.reset();
        self.messages.reset();
    }
}
