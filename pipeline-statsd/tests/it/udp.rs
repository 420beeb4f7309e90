use std::{net::UdpSocket, time::Duration};

use metrics::{Unit, counter, describe_histogram, gauge, histogram, with_local_recorder};
use pipeline_statsd::StatsdRecorder;

use crate::support::PATIENCE;

fn receiver(addr: &str) -> Option<UdpSocket> {
    let socket = UdpSocket::bind(addr).ok()?;
    socket.set_read_timeout(Some(PATIENCE)).expect("patience is not zero");
    Some(socket)
}

/// The lines of one datagram, sorted.
fn datagram(receiver: &UdpSocket) -> (usize, Vec<String>) {
    let mut buffer = [0; 65_536];
    let size = receiver.recv(&mut buffer).expect("a datagram comes");
    let text = std::str::from_utf8(&buffer[..size]).expect("lines are ASCII");
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines.sort();
    (size, lines)
}

#[test]
fn a_flush_arrives_as_one_datagram() {
    let receiver = receiver("127.0.0.1:0").unwrap();
    let (recorder, flusher) = StatsdRecorder::udp(receiver.local_addr().unwrap())
        .unwrap()
        .prefix("push")
        .flush_every(Duration::MAX)
        .build()
        .unwrap();
    with_local_recorder(&recorder, || {
        describe_histogram!("time", Unit::Milliseconds, "");
        counter!("joins").increment(3);
        gauge!("sockets").set(2);
        histogram!("time").record(0.75);
    });
    let report = flusher.flush();
    assert_eq!((report.lines, report.errors), (3, 0));
    let (_, lines) = datagram(&receiver);
    assert_eq!(lines, ["push.joins:3|c", "push.sockets:2|g", "push.time:0.75|ms"]);
}

#[test]
fn many_lines_are_packed_into_datagrams_that_fit_an_ethernet() {
    let receiver = receiver("127.0.0.1:0").unwrap();
    let (recorder, flusher) =
        StatsdRecorder::udp(receiver.local_addr().unwrap()).unwrap().build().unwrap();
    with_local_recorder(&recorder, || {
        (0..200).for_each(|n| counter!("joins", "channel" => n.to_string()).increment(1));
    });
    assert_eq!(flusher.flush().lines, 200);
    let mut received = 0;
    while received < 200 {
        let (size, lines) = datagram(&receiver);
        assert!(size <= 1432, "{size}");
        received += lines.len();
    }
}

#[test]
fn the_thread_sends_by_itself_and_the_drop_sends_the_rest() {
    let receiver = receiver("127.0.0.1:0").unwrap();
    let (recorder, flusher) = StatsdRecorder::udp(receiver.local_addr().unwrap())
        .unwrap()
        .own_counters(false)
        .flush_every(Duration::from_millis(1))
        .build()
        .unwrap();
    with_local_recorder(&recorder, || counter!("first").increment(1));
    assert_eq!(datagram(&receiver).1, ["first:1|c"]);
    with_local_recorder(&recorder, || counter!("last").increment(1));
    drop(flusher);
    assert_eq!(datagram(&receiver).1, ["last:1|c"]);
}

#[test]
fn a_receiver_can_have_an_ipv6_address() {
    let Some(receiver) = receiver("[::1]:0") else {
        return;
    }; // a machine without IPv6
    let (recorder, flusher) =
        StatsdRecorder::udp(receiver.local_addr().unwrap()).unwrap().build().unwrap();
    with_local_recorder(&recorder, || counter!("c").increment(1));
    flusher.flush();
    assert_eq!(datagram(&receiver).1, ["c:1|c"]);
}
