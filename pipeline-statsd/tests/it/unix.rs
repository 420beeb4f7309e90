use std::{fs, os::unix::net::UnixDatagram, path::PathBuf, process, time::Duration};

use metrics::{counter, gauge, with_local_recorder};
use pipeline_statsd::{StatsdBuilder, StatsdRecorder};

use crate::support::PATIENCE;

/// The path of a test's socket. The file is removed on drop.
struct Path(PathBuf);

impl Path {
    fn new(test: &str) -> Self {
        Self(std::env::temp_dir().join(format!("statsd-{test}-{}", process::id())))
    }

    fn bind(&self) -> UnixDatagram {
        let _ = fs::remove_file(&self.0);
        let server = UnixDatagram::bind(&self.0).expect("the path is free");
        server.set_read_timeout(Some(PATIENCE)).expect("patience is not zero");
        server
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A recorder that flushes only on request.
fn to(path: &Path) -> StatsdBuilder {
    let statsd = StatsdRecorder::unix(&path.0).expect("a socket can be created");
    statsd.own_counters(false).flush_every(Duration::MAX)
}

fn packet(server: &UnixDatagram) -> String {
    let mut packet = vec![0; 65_536];
    let length = server.recv(&mut packet).expect("a packet comes");
    String::from_utf8(packet[..length].to_vec()).expect("lines are ASCII")
}

#[test]
fn many_lines_arrive_in_packets_of_at_most_8192_bytes() {
    let path = Path::new("packets");
    let server = path.bind();
    let (recorder, flusher) = to(&path).build().unwrap();
    with_local_recorder(&recorder, || {
        (0..1000).for_each(|n| counter!("joins", "channel" => n.to_string()).increment(1));
    });
    let report = flusher.flush();
    assert_eq!((report.lines, report.errors, report.packets), (1000, 0, 3));
    let packets: Vec<_> = (0..report.packets).map(|_| packet(&server)).collect();
    assert!(packets.iter().all(|packet| packet.len() <= 8192));
    assert!(packets[0].len() > 8192 - 30);
    assert_eq!(packets.iter().map(|packet| packet.lines().count()).sum::<usize>(), 1000);
}

#[test]
fn a_server_that_starts_later_or_restarts_is_found() {
    let path = Path::new("again");
    let (recorder, flusher) = to(&path).build().unwrap();
    with_local_recorder(&recorder, || gauge!("g").set(1));
    for _ in 0..2 {
        let report = flusher.flush();
        assert_eq!((report.errors, report.lines_lost), (1, 1), "no server is listening");

        let server = path.bind();
        assert_eq!(flusher.flush().errors, 0);
        assert_eq!(packet(&server), "g:1|g");
    }
}

#[test]
fn a_server_that_does_not_read_costs_lines_and_half_an_interval() {
    let path = Path::new("full");
    let server = path.bind();
    let statsd = to(&path).packet_bytes(10).flush_every(Duration::from_millis(10));
    let (recorder, flusher) = statsd.build().unwrap();
    let counter = with_local_recorder(&recorder, || counter!("c"));
    // Its queue is bounded; a flush that waited for it without a limit would never return.
    let taken = (0..1_000_000)
        .take_while(|_| {
            counter.increment(1);
            flusher.flush().errors == 0
        })
        .count();
    assert!((1..1_000_000).contains(&taken), "{taken}");
    assert_eq!(packet(&server), "c:1|c");
    counter.increment(1);
    assert_eq!(flusher.flush().errors, 0, "the queue has room again");
}

#[test]
fn a_single_value_that_finds_no_room_is_lost_and_counted_and_recording_does_not_wait() {
    const VALUES: usize = 10_000;
    let path = Path::new("per-event");
    let server = path.bind();
    let (recorder, flusher) = to(&path).per_event().own_counters(true).build().unwrap();
    // Nothing reads from the server's queue.
    with_local_recorder(&recorder, || (0..VALUES).for_each(|_| counter!("c").increment(1)));
    server.set_nonblocking(true).unwrap();
    let received = std::iter::from_fn(|| server.recv(&mut [0; 100]).ok()).count();
    assert!((1..VALUES).contains(&received), "{received}");
    flusher.flush();
    let (own, lost) = (packet(&server), VALUES - received);
    assert!(own.lines().any(|line| line == format!("statsd.client.lines_lost:{lost}|c")), "{own}");
}
