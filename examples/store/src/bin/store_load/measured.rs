//! What the nodes measure, and what they use.

use std::{collections::HashMap, error::Error, fs, io, sync::Arc};

use parking_lot::Mutex;
use tokio::{net::UdpSocket, task::JoinHandle};

use crate::Node;

/// The times that nodes send as StatsD lines.
pub(crate) struct Measured {
    address: String,
    times: Arc<Mutex<HashMap<String, Vec<f64>>>>,
    task: JoinHandle<()>,
}

impl Drop for Measured {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Measured {
    /// Listens on a free port.
    pub(crate) async fn listen() -> io::Result<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0").await?;
        let address = socket.local_addr()?.to_string();
        let times: Arc<Mutex<HashMap<String, Vec<f64>>>> = Arc::default();
        let heard = times.clone();
        let task = tokio::spawn(async move {
            let mut packet = vec![0; 65_536];
            while let Ok(length) = socket.recv(&mut packet).await {
                let text =
                    String::from_utf8_lossy(packet.get(..length).unwrap_or_default()).into_owned();
                let mut times = heard.lock();
                for (name, value) in text.lines().filter_map(time) {
                    times.entry(name).or_default().push(value);
                }
            }
        });
        Ok(Self { address, times, task })
    }

    pub(crate) fn address(&self) -> String {
        self.address.clone()
    }

    /// The median and the 99th percentile.
    pub(crate) fn percentiles(&self, name: &str) -> [f64; 2] {
        let mut times = self.times.lock().get(name).cloned().unwrap_or_default();
        times.sort_by(f64::total_cmp);
        [50, 99].map(|percent| times.get(times.len() * percent / 100).copied().unwrap_or(f64::NAN))
    }
}

/// The name and the time of a line like `store.level_told:1.5|ms|@0.5|#node:a`.
fn time(line: &str) -> Option<(String, f64)> {
    let (name, rest) = line.split_once(':')?;
    let (value, kind) = rest.split_once('|')?;
    let name = name.split([',', ';']).next()?;
    if kind.starts_with("ms") { Some((name.to_owned(), value.parse().ok()?)) } else { None }
}

/// What all nodes together use.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    pub(crate) mebibytes: u64,
    pub(crate) cpu_seconds: f64,
}

impl Usage {
    pub(crate) fn of(nodes: &[Node]) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let mut all = Self::default();
        for id in nodes.iter().filter_map(|node| node.process.id()) {
            let status = fs::read_to_string(format!("/proc/{id}/status"))?;
            let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let kibibytes =
                resident.and_then(|it| it.split_whitespace().next()?.parse::<u64>().ok());
            all.mebibytes += kibibytes.unwrap_or_default() / 1024;
            let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
            let fields: Vec<&str> =
                stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            let ticks = |at: usize| {
                fields.get(at).and_then(|it| it.parse::<f64>().ok()).unwrap_or_default()
            };
            // Of the user and of the system, in hundredths of a second.
            all.cpu_seconds += (ticks(11) + ticks(12)) / 100.0;
        }
        Ok(all)
    }
}
