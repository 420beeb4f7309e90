//! A daemon with the system's default buffer, and with some processing time per packet, receives all
//! lines.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::{
    collections::HashMap,
    io,
    net::UdpSocket,
    thread::{self, JoinHandle},
    time::Duration,
};

use metrics::{counter, histogram, with_local_recorder};
use parking_lot::Mutex;
use pipeline_statsd::{StatsdBuilder, StatsdRecorder};

use crate::support::{PATIENCE, weight};

const HISTOGRAMS: usize = 20;
const SAMPLES: usize = 500;

/// Processing time of the daemon per packet. It sleeps, so that it needs no core, and longer than real
/// processing takes, because a flush is about ten times slower in a test build, too.
const A_PACKET: Duration = Duration::from_micros(300);

/// One daemon at a time: their buffers fill up when they do not run.
static ALONE: Mutex<()> = Mutex::new(());

/// The prefix of the last line.
const END: &str = "app.end:";

/// Reads packets, and returns all lines once one of them is the last.
fn daemon(
    receive: impl Fn(&mut [u8]) -> io::Result<usize> + Send + 'static,
) -> JoinHandle<Vec<String>> {
    thread::spawn(move || {
        let mut lines = Vec::new();
        let mut packet = [0; 65_536];
        while let Ok(length) = receive(&mut packet) {
            let text = std::str::from_utf8(&packet[..length]).expect("lines are ASCII");
            lines.extend(text.lines().map(str::to_owned));
            if text.lines().any(|line| line.starts_with(END)) {
                break;
            }
            #[expect(clippy::disallowed_methods, reason = "the thread simulates another program")]
            thread::sleep(A_PACKET);
        }
        lines
    })
}

/// Flushes busy histograms, then sends the last line.
fn flush_busy_histograms(statsd: StatsdBuilder, daemon: JoinHandle<Vec<String>>) -> Vec<String> {
    let statsd = statsd.histogram_samples(SAMPLES).own_counters(false).prefix("app");
    let (recorder, flusher) = statsd.flush_every(Duration::from_secs(60)).build().unwrap();
    with_local_recorder(&recorder, || {
        for stage in 0..HISTOGRAMS {
            let histogram = histogram!("handle_time", "stage" => stage.to_string());
            (0..SAMPLES).for_each(|n| histogram.record(n as f64 / 7.0));
        }
    });
    let report = flusher.flush();
    assert_eq!((report.errors, report.lines_lost), (0, 0));
    // The last line may be lost, too: then it is sent again.
    while !daemon.is_finished() {
        with_local_recorder(&recorder, || counter!("end").increment(1));
        flusher.flush();
    }
    daemon.join().unwrap()
}

/// The number of arrived samples of each histogram, by weight.
fn arrived(lines: &[String]) -> HashMap<String, u64> {
    let mut arrived = HashMap::new();
    for line in lines.iter().filter(|line| line.contains("handle_time")) {
        let (_, stage) = line.split_once("stage:").unwrap();
        let values = line.split('|').next().unwrap().split(':').count() as u64 - 1;
        *arrived.entry(stage.to_owned()).or_default() += values * weight(line);
    }
    arrived
}

fn assert_all_arrived(lines: &[String]) {
    let all = (0..HISTOGRAMS).map(|stage| (stage.to_string(), SAMPLES as u64)).collect();
    assert_eq!(arrived(lines), all);
}

fn udp() -> (StatsdBuilder, JoinHandle<Vec<String>>) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let statsd = StatsdRecorder::udp(socket.local_addr().unwrap()).unwrap();
    (statsd, daemon(move |packet| socket.recv(packet)))
}

#[test]
fn every_line_of_busy_histograms_arrives_over_udp() {
    let _alone = ALONE.lock();
    let (statsd, daemon) = udp();
    assert_all_arrived(&flush_busy_histograms(statsd, daemon));
}

#[test]
fn packed_values_arrive_in_far_fewer_lines() {
    let _alone = ALONE.lock();
    let (statsd, daemon) = udp();
    let lines = flush_busy_histograms(statsd.packed_values(true), daemon);
    assert_all_arrived(&lines);
    assert!(lines.len() < HISTOGRAMS * SAMPLES / 50, "{}", lines.len());
    assert!(lines.iter().all(|line| line.len() <= 1432));
}

#[cfg(unix)]
#[test]
fn every_line_of_busy_histograms_arrives_over_a_unix_socket() {
    use std::os::unix::net::UnixDatagram;

    let _alone = ALONE.lock();
    let path = std::env::temp_dir().join(format!("statsd-arrives-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let statsd = StatsdRecorder::unix(&path).unwrap();
    let lines = flush_busy_histograms(statsd, daemon(move |packet| socket.recv(packet)));
    std::fs::remove_file(&path).unwrap();
    assert_all_arrived(&lines);
}
