use std::{
    io,
    net::UdpSocket,
    sync::mpsc::{self, Receiver, SyncSender},
    time::Duration,
};

use metrics::{counter, gauge, histogram, with_local_recorder};
use parking_lot::Mutex;
use pipeline_statsd::{StatsdRecorder, cadence::MetricSink};

use crate::support::{PATIENCE, value, weight};

/// Reports each call, then blocks in it until it is released.
struct Stuck {
    entered: SyncSender<String>,
    released: Mutex<Receiver<()>>,
}

impl MetricSink for Stuck {
    fn emit(&self, metric: &str) -> io::Result<usize> {
        let _ = self.entered.send(metric.to_owned());
        // At the end of the test, the sender is dropped and every call returns.
        let _ = self.released.lock().recv();
        Ok(metric.len())
    }
}

#[test]
fn a_blocked_sink_blocks_no_recording_and_no_value_is_lost() {
    const EACH: u64 = 50_000;
    let (entered, entries) = mpsc::sync_channel(100_000);
    let (release, released) = mpsc::channel();
    let (recorder, flusher) =
        StatsdRecorder::sink(Stuck { entered, released: Mutex::new(released) })
            .own_counters(false)
            .flush_every(Duration::from_millis(1))
            .build()
            .unwrap();
    with_local_recorder(&recorder, || counter!("first").increment(1));
    assert_eq!(entries.recv_timeout(PATIENCE).unwrap(), "first:1|c");

    // The flush is in the sink now, and stays there until all of this is done.
    with_local_recorder(&recorder, || {
        let held = counter!("events");
        for n in 0..EACH {
            held.increment(1);
            histogram!("sizes").record(2);
            counter!("events", "of" => (n % 100).to_string()).increment(1); // new series, too
            gauge!("level").set(n as f64);
        }
    });
    assert!(entries.try_recv().is_err(), "the sink is still in the same call");

    drop(release);
    drop(flusher);
    let lines: Vec<_> = entries.try_iter().collect();
    let events = lines.iter().filter(|line| line.starts_with("events:"));
    assert_eq!(events.map(|line| value(line).parse::<u64>().unwrap()).sum::<u64>(), 2 * EACH);
    let sizes = lines.iter().filter(|line| line.starts_with("sizes:"));
    assert_eq!(sizes.map(|line| weight(line)).sum::<u64>(), EACH);
    assert!(lines.contains(&format!("level:{}|g", EACH - 1)));
}

#[test]
fn a_server_that_is_down_costs_only_the_lines_sent_meanwhile() {
    let gone = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = gone.local_addr().unwrap();
    drop(gone);
    let (recorder, flusher) =
        StatsdRecorder::udp(address).unwrap().own_counters(false).build().unwrap();
    for _ in 0..10 {
        with_local_recorder(&recorder, || counter!("lost").increment(1));
        flusher.flush();
    }

    // The port may be in use by another program now; then there is nothing to test.
    let Ok(server) = UdpSocket::bind(address) else { return };
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    with_local_recorder(&recorder, || counter!("found").increment(1));
    flusher.flush();
    let mut packet = [0; 100];
    let length = server.recv(&mut packet).unwrap();
    assert_eq!(&packet[..length], b"found:1|c");
}
