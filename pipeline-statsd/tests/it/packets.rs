use std::{sync::Arc, time::Duration};

use metrics::{Recorder as _, counter, gauge, with_local_recorder};
use parking_lot::Mutex;
use pipeline_statsd::cadence::MetricSink;
use pipeline_statsd::{Dialect, StatsdRecorder};

/// A sink that keeps whole packets.
#[derive(Clone, Default)]
struct Packets(Arc<Mutex<Vec<String>>>);

impl MetricSink for Packets {
    fn emit(&self, packet: &str) -> std::io::Result<usize> {
        self.0.lock().push(packet.to_owned());
        Ok(packet.len())
    }
}

impl Packets {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock())
    }
}

#[test]
fn lines_are_packed_into_full_packets_and_never_split() {
    const LIMIT: usize = 100;
    let packets = Packets::default();
    let (recorder, flusher) = StatsdRecorder::sink(packets.clone())
        .packet_bytes(LIMIT)
        .own_counters(false)
        .flush_every(Duration::MAX)
        .build()
        .unwrap();
    with_local_recorder(&recorder, || {
        (0..200).for_each(|n| counter!("joins", "n" => n.to_string()).increment(1));
    });
    let report = flusher.flush();
    let packets = packets.take();
    assert_eq!(report.packets, packets.len() as u64);
    assert_eq!(report.bytes, packets.iter().map(|packet| packet.len() as u64).sum::<u64>());
    assert!(packets.iter().all(|packet| packet.len() <= LIMIT), "{packets:?}");
    // A line has at most 17 bytes. All but the last packet are as full as they can be.
    let (last, full) = packets.split_last().unwrap();
    assert!(!last.is_empty());
    assert!(full.iter().all(|packet| packet.len() + 1 + 17 > LIMIT), "{packets:?}");

    let mut lines: Vec<_> = packets.iter().flat_map(|packet| packet.split('\n')).collect();
    lines.sort_unstable();
    let mut expected: Vec<_> = (0..200).map(|n| format!("joins:1|c|#n:{n}")).collect();
    expected.sort_unstable();
    assert_eq!(lines, expected);
}

#[test]
fn the_two_lines_of_a_negative_gauge_stay_in_one_packet() {
    let packets = Packets::default();
    let (recorder, flusher) = StatsdRecorder::sink(packets.clone())
        .dialect(Dialect::StatsD)
        .own_counters(false)
        // Room for three lines, and the gauges have two each.
        .packet_bytes(3 * "depth;n=10:-1|g\n".len())
        .flush_every(Duration::MAX)
        .build()
        .unwrap();
    with_local_recorder(&recorder, || {
        (10..30).for_each(|n| gauge!("depth", "n" => n.to_string()).set(-1));
    });
    assert_eq!(flusher.flush().lines, 40);
    let packets = packets.take();
    assert_eq!(packets.len(), 20);
    for packet in packets {
        let (zero, below) = packet.split_once('\n').unwrap();
        assert_eq!(zero.replace(":0|g", ":-1|g"), below);
    }
}

#[test]
fn a_line_longer_than_a_packet_is_dropped_and_counted() {
    let packets = Packets::default();
    let (recorder, flusher) = StatsdRecorder::sink(packets.clone())
        .packet_bytes(20)
        .own_counters(false)
        .flush_every(Duration::MAX)
        .build()
        .unwrap();
    recorder.register_counter(&"x".repeat(20).into(), &METADATA).increment(1);
    with_local_recorder(&recorder, || counter!("short").increment(1));
    let report = flusher.flush();
    assert_eq!((report.lines, report.lines_oversized), (1, 1));
    assert_eq!(packets.take(), ["short:1|c"]);
}

const METADATA: metrics::Metadata<'static> =
    metrics::Metadata::new("packets", metrics::Level::INFO, None);

#[test]
fn a_cadence_sink_receives_one_line_at_a_time_by_default() {
    let packets = Packets::default();
    let (recorder, flusher) =
        StatsdRecorder::sink(packets.clone()).flush_every(Duration::MAX).build().unwrap();
    with_local_recorder(&recorder, || {
        (0..3).for_each(|n| gauge!("g", "n" => n.to_string()).set(1));
    });
    assert_eq!(flusher.flush().packets, 3);
    let mut lines = packets.take();
    lines.sort_unstable();
    assert_eq!(lines, ["g:1|g|#n:0", "g:1|g|#n:1", "g:1|g|#n:2"]);
}
