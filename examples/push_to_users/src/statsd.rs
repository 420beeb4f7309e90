//! The receiver of StatsD lines: a server, or this terminal.

use std::{error::Error, fmt, io, time::Duration};

use pipeline::statsd::{Dialect, StatsdFlusher, StatsdRecorder};
use pipeline_example_support::{complain, say};
use tokio::{
    net::UdpSocket,
    sync::oneshot,
    task::JoinHandle,
    time::{interval, timeout},
};

use crate::printed::Printed;

/// How long the socket stays silent after the last line.
const QUIET: Duration = Duration::from_millis(100);

/// The installed recorder.
pub struct Statsd {
    flusher: StatsdFlusher,
    target: String,
    printer: Option<Printer>,
}

/// Receives StatsD lines, as a server would, and prints them.
struct Printer {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Statsd {
    /// Sends to this server, or to a local listener that prints the lines.
    pub async fn install(
        server: Option<&str>,
        dialect: Dialect,
        printed: Printed,
    ) -> Result<Self, Box<dyn Error>> {
        let (target, printer) = match server {
            Some(server) => (server.to_owned(), None),
            None => {
                let socket = UdpSocket::bind("127.0.0.1:0").await?;
                let address = socket.local_addr()?.to_string();
                let (stop, stopped) = oneshot::channel();
                let task = tokio::spawn(print(socket, stopped, printed));
                (address, Some(Printer { stop, task }))
            }
        };
        let flusher = StatsdRecorder::udp(target.clone())
            .map_err(|error| format!("cannot send StatsD to {target}: {error}"))?
            .dialect(dialect)
            .flush_every(Duration::from_secs(1))
            .install()?;
        Ok(Self { flusher, target, printer })
    }

    /// Sends the remaining lines, and prints them.
    pub async fn flush(self) {
        drop(self.flusher);
        if let Some(Printer { stop, task }) = self.printer {
            let _ = stop.send(());
            let _ = task.await;
        }
    }
}

impl fmt::Display for Statsd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.printer {
            Some(_) => write!(f, "printed here, as received on {}", self.target),
            None => write!(f, "sent to {}", self.target),
        }
    }
}

async fn print(socket: UdpSocket, mut stopped: oneshot::Receiver<()>, mut printed: Printed) {
    let mut packet = vec![0; 65_536];
    let mut seconds = interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            _ = seconds.tick() => print_summary(&mut printed),
            received = socket.recv(&mut packet) => print_packet(&packet, received, &mut printed),
            _ = &mut stopped => break,
        }
    }
    // Lines sent before the stop are in flight: read until the socket is silent.
    while let Ok(received) = timeout(QUIET, socket.recv(&mut packet)).await {
        print_packet(&packet, received, &mut printed);
    }
    print_summary(&mut printed);
}

fn print_summary(printed: &mut Printed) {
    if let Some(line) = printed.take_summary() {
        say(line);
    }
}

fn print_packet(packet: &[u8], received: io::Result<usize>, printed: &mut Printed) {
    match received {
        Ok(length) => {
            for line in String::from_utf8_lossy(&packet[..length]).lines() {
                if printed.wants(line) {
                    say(format!("statsd | {line}"));
                }
            }
        }
        Err(error) => complain(format!("statsd: {error}")),
    }
}
