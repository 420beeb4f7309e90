//! The recorder of the whole process, in a file of its own because there can be only one.

use pipeline_statsd::{InstallError, StatsdRecorder, cadence::SpyMetricSink};

#[test]
fn an_installed_recorder_serves_the_process_and_a_second_one_is_refused() {
    let (sent, sink) = SpyMetricSink::new();
    let flusher = StatsdRecorder::sink(sink).prefix("push").install().unwrap();

    let (second_sent, second) = SpyMetricSink::new();
    let error = StatsdRecorder::sink(second).install().unwrap_err();
    assert!(matches!(error, InstallError::AlreadyInstalled));
    assert!(second_sent.recv().is_err(), "the thread has ended and the sink is dropped");

    std::thread::spawn(|| metrics::counter!("joins").increment(1)).join().unwrap();
    drop(flusher);
    assert_eq!(sent.recv().unwrap(), b"push.joins:1|c");
    assert!(sent.recv().is_err(), "the sink is dropped");
}
